/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real spillwayd in a folder of its own, with a formatted device if the test wants one, and a little of libspillway
 * around it. Rawclient.h speaks the wire; this is for tests of what applications see. One thread. What goes wrong in the
 * helpers themselves fails the test (ck_abort).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "include/spillway/spillway.h"

#define DAEMON_MIB (UINT64_C(1) << 20)

struct daemon {
    pid_t pid; /* 0: not running */
    char dir[64];
    char socket[96], log[96], config[96], disk[96];
    bool system_mode;     /* without --user: anybody may connect, the pools' lists decide */
    uid_t uid;            /* to run as; 0: ours */
    rlim_t memlock_bytes; /* RLIMIT_MEMLOCK; 0: ours */
    uint64_t disk_bytes;
    void (*in_child)(void *ctx); /* runs before the program does; NULL: nothing */
    void *in_child_ctx;
    uint32_t timeout_ms; /* of daemon_connect(); 0: the library's */
    bool upgrades;       /* started with --upgrade */
    bool is_taken_over;  /* makes system calls that it has no use for: elsewhere these fail the test */
};

/* A folder, and nothing in it. */
void daemon_init(struct daemon *d);
/* spillctl device format. */
void daemon_format(struct daemon *d, uint64_t size_bytes);
void daemon_format_partitions(struct daemon *d, uint64_t size_bytes, unsigned n);
/* [daemon] with the socket and those keys (lines), then `sections`. If there is a device, it is [device disk]. */
void daemon_configure(const struct daemon *d, const char *daemon_keys, const char *sections);
/* Starts it and waits until it serves. */
void daemon_start(struct daemon *d);
/* Starts it, and does not wait. */
void daemon_spawn(struct daemon *d);
/* Starts it where it is expected to refuse; returns its exit status (128 + signal if it was killed). */
int daemon_start_refused(struct daemon *d);
/* Starts another one with --upgrade; returns the exit status of the one whose place it has taken. It may not serve yet. */
int daemon_upgrade(struct daemon *d);
/* SIGTERM; returns the exit status. */
int daemon_stop(struct daemon *d);
/* SIGKILL. */
void daemon_kill(struct daemon *d);
bool daemon_lives(struct daemon *d);
/* Stops it if it runs, expects status 0, and removes the folder. */
void daemon_deinit(struct daemon *d);

/* All of its log; static. */
const char *daemon_log(const struct daemon *d);
/* As much of its end as a message of libcheck can carry. */
const char *daemon_log_end(const struct daemon *d);
/* Does the log have this text? Waits for it, for two seconds at most. */
bool daemon_logged(const struct daemon *d, const char *text);
/* Ticks of user and system time so far. */
uint64_t daemon_cpu_ticks(const struct daemon *d);

/* Runs a program of ours; its standard output and error go to `ret_text` (may be NULL). Returns its exit status. */
int daemon_run_program(const char *program, const char *const args[], char *ret_text, size_t text_bytes);

/* --- Clients ----------------------------------------------------------------------------------------------------- */

spw_session *daemon_connect(const struct daemon *d);
/* The reply to {"get": WHAT}: free() it. */
char *daemon_admin(spw_session *session, const char *what);
/* A whole number in the reply, by path: "devices/0/partitions/0/failed". */
int64_t daemon_admin_number(spw_session *session, const char *what, const char *path);
/* The same of "status", by a session of its own. */
int64_t daemon_status_number(const struct daemon *d, const char *path);
spw_space *daemon_space(spw_session *session, const char *pool, const char *digest, uint64_t item_bytes,
                        unsigned class_id, unsigned durability);

/* Bytes that depend on the key and the version, and on their place. */
void pattern_fill(void *to, size_t size_bytes, uint64_t key, uint64_t version);
bool pattern_is(const void *from, size_t size_bytes, uint64_t key, uint64_t version);

struct spw_key block_key(uint64_t number);
/* One block of that size; the element's status. Waits for room, for ten seconds at most. */
int block_put(spw_space *space, uint64_t number, size_t size_bytes);
/* As block_put; *ret_limit is what stood in its way (enum spw_limit). */
int block_put_within(spw_space *space, uint64_t number, size_t size_bytes, uint32_t timeout_ms, unsigned *ret_limit);
/* Acquires and compares, and fails the test on a wrong byte; the element's status. */
int block_get(spw_space *space, uint64_t number, size_t size_bytes);
/* As block_get, and where it was found. */
int block_get_from(spw_space *space, uint64_t number, size_t size_bytes, unsigned *ret_tier);

void sleep_ms(int ms);
int64_t clock_ms(void);

struct Suite;
/* Runs it; what main() returns. */
int suite_main(struct Suite *suite);
