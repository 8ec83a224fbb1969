/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of the wire protocol with no manners of its own: it sends whatever a test wants, at abi.h's level. And a
 * real spillwayd to send it to. One thread. Whatever goes wrong in the helpers themselves fails the test (ck_abort).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "include/spillway/abi.h"

/* --- The daemon -------------------------------------------------------------------------------------------------- */

struct raw_daemon {
    pid_t pid;
    char dir[64];
    char socket[96];
    char log[96];
};

/* Before raw_daemon_start(), where the configuration names files: a folder, and a formatted device in it. */
void raw_daemon_folder(struct raw_daemon *d);
void raw_daemon_format(const struct raw_daemon *d, const char *name, unsigned mib, unsigned partitions);
/* Starts $SPILLWAY_BIN/spillwayd --user, in a fresh folder unless there is one. `sections` follows a [daemon] section with the socket and
 * `daemon_keys` (lines). Waits until it serves. */
void raw_daemon_start(struct raw_daemon *d, const char *daemon_keys, const char *sections);
/* The same folder and configuration again. */
void raw_daemon_restart(struct raw_daemon *d);
/* SIGTERM; returns the exit status (128 + signal if it was killed). The folder stays. */
int raw_daemon_stop(struct raw_daemon *d);
/* Stops it if it runs, expects status 0, removes the folder. */
void raw_daemon_end(struct raw_daemon *d);
/* Does its log have this text? Waits a little for it. */
bool raw_daemon_logged(const struct raw_daemon *d, const char *text);
/* Descriptors that it has open. */
unsigned raw_daemon_descriptors(const struct raw_daemon *d);

/* --- The socket -------------------------------------------------------------------------------------------------- */

int raw_connect(const struct raw_daemon *d);
void raw_send(int fd, const void *message, size_t size, const int *fds, unsigned n_fds);
/* Fills the header and sends; returns what came back: its size, 0 for the end, or a negative errno after 5 s. */
long raw_request(int fd, uint16_t type, void *message, size_t size, void *reply, size_t reply_size, int *ret_fds,
                 unsigned *ret_n_fds);
long raw_receive(int fd, void *reply, size_t size, int *ret_fds, unsigned *ret_n_fds);
/* True when the daemon has closed the connection, within timeout_ms. */
bool raw_is_closed(int fd, int timeout_ms);

/* --- A session --------------------------------------------------------------------------------------------------- */

struct raw_ring {
    uint32_t number;
    struct spw_ring *shared;
    struct spw_sqe *sqes;
    struct spw_cqe *cqes;
    char *scratch;
    uint64_t ring_bytes, scratch_bytes;
    uint32_t sq_entries, cq_entries;
    uint32_t sq_tail, cq_head; /* ours */
    int ring_fd, scratch_fd, doorbell_fd;
};

struct raw_session {
    const struct raw_daemon *daemon;
    int fd;
    struct spw_msg_welcome welcome;
    struct spw_msg_pool pool;
    struct spw_msg_space space;
    struct raw_ring ring;
};

/* HELLO. */
void raw_session_open(struct raw_session *s, const struct raw_daemon *d);
int raw_session_try(struct raw_session *s, const struct raw_daemon *d); /* the status of HELLO's reply */
/* And a pool, a space and a ring. The digest is `digest` in its first byte. */
void raw_session_full(struct raw_session *s, const struct raw_daemon *d, const char *pool, uint8_t digest,
                      uint64_t item_bytes);
int raw_pool_open(struct raw_session *s, const char *pool);
int raw_space_open(struct raw_session *s, uint8_t digest, uint64_t item_bytes, uint8_t class_id, uint8_t durability);
int raw_ring_new(struct raw_session *s, struct raw_ring *ring, uint32_t entries, uint64_t scratch_bytes);
void raw_ring_unmap(struct raw_ring *ring);
void raw_session_close(struct raw_session *s);

/* Maps the chunk that a result names; MAP_FAILED's place is taken by NULL. prot as mmap(). */
void *raw_chunk_map(struct raw_session *s, const struct spw_result *result, int prot, uint64_t *ret_size_bytes);
void raw_chunk_unmap(void *mem, uint64_t size_bytes);

/* --- Rings ------------------------------------------------------------------------------------------------------- */

/* Publishes one SQE and rings the doorbell if the engine sleeps. */
void raw_submit(struct raw_ring *ring, const struct spw_sqe *sqe);
/* The next CQE; false after timeout_ms. */
bool raw_wait(struct raw_ring *ring, struct spw_cqe *ret_cqe, int timeout_ms);
/* Both: expects a CQE within 10 s. */
struct spw_cqe raw_call(struct raw_ring *ring, const struct spw_sqe *sqe);

/* Items and results of a ring lie at these places of its scratch. */
#define RAW_ITEMS 0
#define RAW_RESULTS 262144
#define RAW_SCRATCH_BYTES (RAW_RESULTS + 4096 * 40 + 4096)
struct spw_item *raw_items(struct raw_ring *ring);
struct spw_handle *raw_handles(struct raw_ring *ring);
struct spw_result *raw_results(struct raw_ring *ring);
struct spw_item raw_item(uint64_t key, uint64_t length_bytes);
/* An SQE of that operation on the first n items, results at RAW_RESULTS. */
struct spw_sqe raw_sqe(const struct raw_session *s, uint8_t opcode, uint32_t n_items);

/* One object: reserve, fill, commit; acquire, compare, release. 0 or the errno that came. */
int raw_put(struct raw_session *s, uint64_t key, uint32_t size_bytes, uint8_t fill);
int raw_get(struct raw_session *s, uint64_t key, uint32_t size_bytes, uint8_t fill);

/* The first member of that name in what the daemon says about itself ({"get": what}); fails if there is none. */
uint64_t raw_admin_number(const struct raw_daemon *d, const char *what, const char *member);
/* Waits until it is `wanted`, 5 s at most. */
bool raw_admin_becomes(const struct raw_daemon *d, const char *what, const char *member, uint64_t wanted);
