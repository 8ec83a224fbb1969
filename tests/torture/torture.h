/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spilltorture: a real spillwayd that is ended again and again, real clients, and an oracle outside of both, in a file
 * that every process maps and that outlives each of them.
 *
 *   main.c       arguments
 *   place.c      the folder, the device, the configuration, the daemon's process
 *   oracle.c     what was begun and what was acknowledged; what may be there after a death
 *   payload.c    bytes as a function of what they belong to
 *   client.c     clients' processes: they connect and do random things until they are ended
 *   client_ops.c what they do
 *   check.c      reads everything and asks the oracle
 *   points.c     kill points: which one comes next
 *   kill.c       `kill`: load, death, recovery, check, over and over
 *   kill_hot.c   `kill --hot`: the same where memory and clients outlive the daemon
 *   power.h      `power`: what a loss of power leaves of what a run wrote
 */
#pragma once

#include <stdio.h>
#include <sys/types.h>

#include "include/base/base.h"
#include "include/base/kill_point.h"
#include "include/base/mix.h"
#include "include/spillway/spillway.h"
#include "tests/system/support/manager.h"

#define T_CLIENTS 4
#define T_KEYS 40        /* of each kind, of each client */
#define T_SCRATCH_KEYS 6 /* of each client */
#define T_GROUPS 2       /* sets of tensors of each client: one a pool */
#define T_TENSORS 3      /* of a set */
#define T_STRIPE_BYTES 16384
#define T_STRIPES 112      /* of a set */
#define T_PIECE_STRIPES 64 /* segments have 1 MiB, and so have pieces */
#define T_EVENTS_MAX 65536
#define T_STATES_MAX 256 /* that may be there after a death, of one key */
#define T_FORGOTTEN_MAX 64
#define T_PATH_BYTES 256
#define DRAM_PERCENT 60 /* of the default pool, until a reload */

/* What blocks are in, and the sets of tensors: T_GROUP_DEFAULT in the trusted pool, T_GROUP_SHARED in the other. */
enum t_kind { T_DURABLE, T_CACHE, T_SHARED, T_KINDS };

enum t_group { T_GROUP_DEFAULT, T_GROUP_SHARED };

/* --- The oracle ---------------------------------------------------------------------------------------------------- */

/*
 * A key's versions only grow, and each has bytes of its own. `seen` is what the last check has found: nothing older may
 * come back, but for what a cache has forgotten. `live` is for who reads while others write: the version that was
 * acknowledged last, whether it is there, and the last one that was begun.
 *
 * forgotten: of a key of a cache that is absent, the versions that there may have been (the newest ones). A segment that was
 * emptied has forgotten them; until the log says so, a death brings them back.
 */
struct t_key {
    uint64_t live; /* atomic: live_pack() */
    uint32_t next; /* the highest version that was ever given away */
    uint32_t seen; /* 0: absent */
    uint32_t n_forgotten;
    uint32_t forgotten[T_FORGOTTEN_MAX];
};

/* A set of tensors, stripe by stripe; version 0 is zeros. `now` is what any check has found last, also where it was memory. */
struct t_set {
    uint32_t next;
    uint32_t seen[T_STRIPES], now[T_STRIPES];
};

/* T_FOUND, T_FOUND_SET: a check's, of what a change became whose end nobody was told, or of a cache that has evicted. */
enum t_op { T_PUT, T_DELETE, T_SYNC_KEYS, T_FOUND, T_WRITE, T_SYNC_SET, T_FOUND_SET };
enum t_outcome { T_BEGUN, T_DONE, T_FAILED }; /* failed: it has, and will have, no effect */

/*
 * One change that a client began. `before` and `after` are positions in the device's log (power.c), taken before the
 * call and after its end; they stay 0 where nothing is logged.
 */
struct t_event {
    uint8_t op;
    uint8_t outcome;
    uint8_t kind; /* of the key; or the set */
    uint8_t reserved;
    uint16_t key;       /* T_KEYS: all of the kind */
    uint16_t n_stripes; /* T_WRITE */
    uint32_t stripe;
    uint32_t version;
    uint64_t before, after;
};

struct t_client {
    struct t_key keys[T_KINDS][T_KEYS];
    struct t_set sets[T_GROUPS];
    uint64_t n_ops, n_full; /* calls; those that found no room, in memory or on a device */
    uint64_t ops_max;       /* atomic: then it rests; 0: it does not */
    uint32_t n_events;      /* atomic: an event counts when it is whole */
    uint32_t at_rest;       /* atomic: the last `pause` at which it rests */
    bool was_killed;        /* since the last check: what it was writing may be torn */
    uint8_t reserved[7];
    struct t_event events[T_EVENTS_MAX]; /* since the last check */
};

struct t_counts {
    uint64_t starts, clean_stops, deaths_at_points, deaths_from_outside, deaths_in_recovery;
    uint64_t hot_starts, ridden_out, torn; /* daemons with memory before them; clients that outlived one; pieces */
    uint64_t hot_known, hot_served;        /* of cache_known and cache_served: where memory was left */
    uint64_t objects_checked, sets_checked;
    uint64_t cache_known, cache_served; /* after a death: committed and not deleted; of these, found */
    uint64_t calls, full;               /* of clients of lives before */
    uint64_t bad_messages;              /* EBADMSG for `cache` after a death: a miss */
};

/* The file `state` of the folder. */
struct t_oracle {
    uint64_t magic, seed;
    uint32_t cycle;        /* the next one */
    uint32_t life;         /* cycles of one device */
    uint32_t stop;         /* atomic: clients end after what they are doing */
    uint32_t pause;        /* atomic, only grows; odd: they rest after what they are doing */
    uint64_t log_position; /* atomic: of the device's log */
    struct t_counts counts;
    struct t_client clients[T_CLIENTS];
};

/* A cut: what was begun, and what was acknowledged, when the device's log was so long. */
#define T_NOW UINT64_MAX

/* What a crash at the cut may leave. False if the version, or being absent (0), is not among it. `durable` is what the
 * kind of the key says. With `all` whatever was acknowledged must be there: memory has survived. */
bool oracle_key_may_be(const struct t_client *c, enum t_kind kind, uint32_t key, uint64_t cut, bool all,
                       uint32_t version);
bool oracle_set_may_be(const struct t_client *c, enum t_group group, uint64_t cut, bool all,
                       const uint32_t stripes[static T_STRIPES]);
/* In words, static. */
const char *oracle_key_tells(const struct t_client *c, enum t_kind kind, uint32_t key, uint64_t cut);
/* The last acknowledged version, 0 for none: what a reader should find that nobody has raced. */
uint32_t oracle_key_last(const struct t_client *c, enum t_kind kind, uint32_t key);
/* What the check has found in memory that survived: what was acknowledged before is still what a loss of memory goes back to. */
void oracle_found(struct t_oracle *o, struct t_client *c, const uint32_t found[T_KINDS][T_KEYS],
                  const uint32_t sets[T_GROUPS][T_STRIPES]);
/* From now on what the check has found is all that is known. */
void oracle_rebase(struct t_client *c, const uint32_t seen[T_KINDS][T_KEYS], const uint32_t sets[T_GROUPS][T_STRIPES]);

/* The journal; a client's own alone. */
struct t_event *oracle_begin(struct t_oracle *o, struct t_client *c, const struct t_event *what);
void oracle_end(struct t_oracle *o, struct t_event *event, enum t_outcome outcome);
bool oracle_is_full(const struct t_client *c);

static inline uint64_t live_pack(uint32_t acked, bool present, uint32_t begun)
{
    return (uint64_t)acked << 33 | (uint64_t)present << 32 | begun;
}
static inline uint32_t live_acked(uint64_t live)
{
    return (uint32_t)(live >> 33);
}
static inline bool live_present(uint64_t live)
{
    return live >> 32 & 1;
}
static inline uint32_t live_begun(uint64_t live)
{
    return (uint32_t)live;
}

/* --- Bytes ----------------------------------------------------------------------------------------------------------- */

/* Deterministic, one for each use: seed it with what it is for. */
struct t_random {
    uint64_t state;
};
struct t_random random_for(uint64_t seed, uint64_t a, uint64_t b);
uint64_t random_below(struct t_random *r, uint64_t n);
static inline bool random_percent(struct t_random *r, uint32_t percent)
{
    return random_below(r, 100) < percent;
}

/* The size of a key's version, a multiple of 8. */
uint32_t payload_bytes(uint32_t client, enum t_kind kind, uint32_t key, uint32_t version);
#define T_PAYLOAD_MAX (2560 * 1024)
void payload_fill(void *to, uint32_t size_bytes, uint64_t identity, uint32_t version);
/* The version that these bytes are, whole; 0 if they are zeros; UINT32_MAX: they are nothing that was ever written. */
uint32_t payload_version(const void *from, uint32_t size_bytes, uint64_t identity);
uint64_t payload_of_key(uint32_t client, enum t_kind kind, uint32_t key);
uint64_t payload_of_scratch(uint32_t client, uint32_t key);
uint64_t payload_of_stripe(uint32_t client, enum t_group group, uint32_t stripe);
struct spw_key key_of(uint32_t client, uint32_t key);
struct spw_key tensor_of(uint32_t tensor);
/* Of a set: the tensor's stripes. */
uint32_t tensor_first_stripe(uint32_t tensor);
uint32_t tensor_stripes(uint32_t tensor);

/* --- The place --------------------------------------------------------------------------------------------------------- */

struct t_place {
    char dir[T_PATH_BYTES];
    char disk[T_PATH_BYTES + 16], socket[T_PATH_BYTES + 16], log[T_PATH_BYTES + 16], config[T_PATH_BYTES + 16];
    char table_path[T_PATH_BYTES + 16];
    struct t_oracle *oracle;
    struct kill_table *table;
    pid_t daemon; /* 0: none */
    uint32_t engines, partitions;
    bool is_fresh; /* nobody has used the device yet */
    bool hot;      /* the daemon's memory is kept by `manager`, from place_open() on */
    struct manager manager;
    uint32_t dram_percent;
    bool check_syncs; /* the next check of memory that was left ends with a SYNC of all there is */
    /* The caller's, before place_open(). */
    uint64_t disk_bytes;
    bool one_engine;
};

/* Says what went wrong and ends the process: the folder stays. */
void torture_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
int64_t now_ms(void);
void pause_ms(int64_t ms);
/* Waits for it: did it exit with 0? */
bool child_succeeds(pid_t pid);

/* As root: becomes another user, with the right to lock memory kept: shared pools are not for root. */
void place_drop_root(void);
/* Makes the folder (a new one under /var/tmp if `dir` is NULL), or opens it again with what is in it. */
void place_open(struct t_place *p, const char *dir, uint64_t seed, bool resume);
/* To the user that place_drop_root() makes of us. */
void place_give(const struct t_place *p);
/* Nothing is left of it. */
void place_remove(struct t_place *p);
/* A fresh device, and an oracle that knows of nothing. */
void place_begin_life(struct t_place *p);
void place_format(const struct t_place *p, const char *path, uint64_t size_bytes);
/* `dram_percent` of the default pool. */
void place_configure(struct t_place *p, uint32_t dram_percent);
/* kill_at: NAME:N, or NULL. */
void place_start_daemon(struct t_place *p, const char *kill_at);
/* True when it serves; false if it has died. It takes too long: a failure. */
bool place_wait_ready(struct t_place *p);
bool place_daemon_lives(struct t_place *p, int *ret_status);
/* Where memory is kept: nothing of it any more. */
void place_forget(struct t_place *p);
/* In a child of ours that is no daemon: what is kept is not its own. */
void place_leave(struct t_place *p);
/* What a daemon ended with; nothing but SIGKILL may be: a failure. */
void place_was_killed(const struct t_place *p, int status);
/* SIGKILL from outside. */
void place_kill_daemon(struct t_place *p);
/* SIGTERM; its status (waitpid's). */
int place_stop_daemon(struct t_place *p);

/* --- Clients ----------------------------------------------------------------------------------------------------------- */

enum { CLIENT_GONE = 3 }; /* exit status: the daemon went away */

struct t_spaces {
    spw_session *session;
    spw_space *blocks[T_KINDS];
    spw_space *scratch; /* where memory is kept; each client's own */
    spw_space *tensors[T_CLIENTS][T_GROUPS];
};
/* 0, or a negative errno: -ENOTCONN and the like if there is no daemon. */
int spaces_open(const struct t_place *p, const char *name, struct t_spaces *ret_spaces);
void spaces_close(struct t_spaces *spaces);
/* The status of a call that says that the daemon is not there, or not any more. */
bool is_gone(int status);

struct t_worker {
    struct t_place *place;
    struct t_oracle *oracle;
    struct t_client *me;
    uint32_t number;
    struct t_spaces spaces;
    struct t_random random;
    char *bytes; /* T_PAYLOAD_MAX */
    uint32_t set_version[T_GROUPS][T_STRIPES];
    bool set_known[T_GROUPS];
    uint32_t scratch[T_SCRATCH_KEYS]; /* versions, 0: absent; it ends with its owner, so nobody else need know */
};
/* One random thing. Ends the process when the daemon is gone. */
void client_do(struct t_worker *w);
/* The body of a client's process: until it is killed or the daemon is gone. */
void client_run(struct t_place *p, uint32_t number, uint64_t seed) __attribute__((noreturn));
/* The status says so: the process ends. Where memory is kept that may not be. */
void client_gone(struct t_worker *w, int status) __attribute__((noreturn));
/* A negative status of a call: the daemon is gone (the process ends), or something that may not be (it fails). */
void client_must(struct t_worker *w, int status, const char *what);

/* Their processes; ended gently they end after what they are doing. A client that found something fails us. */
void clients_start(struct t_place *p, pid_t pids[T_CLIENTS], uint64_t seed);
void client_kill(struct t_place *p, pid_t pids[T_CLIENTS], uint32_t number);
void clients_end(struct t_place *p, pid_t pids[T_CLIENTS], bool gently);
/* Those that live rest after what they are doing; false: the daemon died meanwhile. One that does not get there fails us. */
bool clients_pause(struct t_place *p, pid_t pids[T_CLIENTS]);
/* No more than so many calls each, until they are told to go on. */
void clients_limit(struct t_place *p, uint64_t n_calls);
/* They go on, and those that are not there are started. */
void clients_resume(struct t_place *p, pid_t pids[T_CLIENTS], uint64_t seed);

/* In a process of its own: reads all there is, asks the oracle, and begins anew from what it found. False: the daemon
 * died meanwhile. A wrong byte, a lost or a returned object: a failure. all: memory has survived the death; then a daemon
 * that dies meanwhile is followed by the next one, which the check rides out. */
bool check_all(struct t_place *p, bool after_death, bool all);

const char *stripes_text(const uint32_t stripes[static T_STRIPES]); /* static */

/* --- Points ------------------------------------------------------------------------------------------------------------ */

enum point_needs {
    POINT_NEEDS_NOTHING,
    POINT_NEEDS_STOP, /* in good order */
    POINT_NEEDS_RELOAD,
    POINT_NEEDS_FRESH,  /* a device that was just formatted */
    POINT_NEEDS_ORPHAN, /* a client that dies while the daemon lives */
};

struct t_point {
    char at[64]; /* NAME:N */
    enum point_needs needs;
    bool is_rare;
};

/* False if the daemon has no points, or none of which it is known. */
bool points_choose(const struct t_place *p, struct t_random *random, bool is_fresh, struct t_point *ret_point);
/* Those that never fired and are not excused, named. */
uint32_t points_missed(const struct t_place *p, FILE *to);
void points_print(const struct t_place *p, FILE *to, bool all);
uint32_t points_fired(const struct t_place *p, uint32_t *ret_n);

/* --- Commands ---------------------------------------------------------------------------------------------------------- */

struct t_command;
struct t_options {
    const struct t_command *command;
    uint64_t seed;
    uint64_t n, runs;
    const char *dir;
    bool resume, keep, hot, list;
};
struct t_command {
    const char *name;
    int (*run)(const struct t_options *options);
    uint64_t n; /* unless said otherwise */
};
/* One cycle; what outlives it. */
struct t_hot {
    pid_t pids[T_CLIENTS];
    uint32_t n_starts; /* since the store was empty; 0: the next start is cold */
    bool after_death;  /* what the next start finds is what that has left */
    bool is_checked;   /* all that there is, since the last cold start */
};
void hot_cycle(struct t_place *p, struct t_hot *hot);
/* Nobody runs, and nothing is kept. */
void hot_end(struct t_place *p, struct t_hot *hot);

/* What a cycle does, of both kinds. */
struct t_plan {
    struct t_point point; /* empty: from outside */
    uint64_t n_calls;     /* of clients, so that a slow machine does as much; then it is ended from outside */
    bool reload, stop;
    bool orphan; /* a client dies before */
};
struct t_plan plan_make(const struct t_place *p, struct t_random *random);
/* Until it has done what it should, or the daemon is gone, or it takes too long. */
void plan_load(struct t_place *p, const struct t_plan *plan, pid_t pids[T_CLIENTS], struct t_random *random);

int torture_kill(const struct t_options *options);
int torture_power(const struct t_options *options);
