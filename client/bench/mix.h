/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mixed load's clients: each is a process of its own that does everything at random, and knows what every byte that
 * it reads must be. mix.c starts them and checks the daemon's books afterwards.
 */
#pragma once

#include <sys/types.h>

#include "client/bench/options.h"
#include "client/bench/payload.h"
#include "include/spillway/spillway.h"

#define MIX_LIST_MAX 24 /* keys of one call */
#define MIX_HELD_MAX 2  /* lists that stay leased for a while */

enum mix_op {
    MIX_LOOKUP,
    MIX_ACQUIRE,
    MIX_STORE,
    MIX_ABORT,
    MIX_PUT,
    MIX_GET,
    MIX_DELETE,
    MIX_TOUCH,
    MIX_PREFETCH,
    MIX_ADVISE,
    MIX_PIN,
    MIX_SYNC,
    MIX_CANCEL,
    MIX_TENSOR_PUT,
    MIX_TENSOR_GET,
    MIX_TENSOR_LEASE,
    MIX_STAT,
    MIX_OPS,
};
extern const char *const mix_op_names[MIX_OPS];

struct mix_plan {
    const char *socket_path, *pool;
    uint32_t client; /* number, for its own keys */
    uint64_t seed;
    uint32_t n_sizes; /* different sizes of blocks */
    double seconds;
    uid_t uid; /* to become; 0: stay */
};

/* What a client tells its parent, through a pipe, now and then and at its end. */
struct mix_report {
    uint64_t calls[MIX_OPS];
    uint64_t hits, misses, refused; /* keys that were served, were not there, found no room or were cancelled */
    uint64_t bytes_verified, bytes_written;
    uint64_t wrong, errors;
    bool ended;
};

/* Spaces of a client; the first two are shared by all clients of a pool. */
enum mix_space { MIX_VARIABLE, MIX_FIXED, MIX_DURABLE, MIX_TENSORS, MIX_SPACES };

struct mix_tensor {
    struct spw_key name;
    uint64_t size_bytes;
    uint32_t *versions; /* of each page; 0: never written, reads as zeros */
};

struct mix_held {
    enum mix_space space;
    uint32_t n;
    struct spw_key keys[MIX_LIST_MAX];
    struct spw_view views[MIX_LIST_MAX];
};

struct mix_client {
    const struct mix_plan *plan;
    spw_session *session;
    spw_pool *pool;
    bool trusted; /* the pool is: tensors can be written */
    spw_space *spaces[MIX_SPACES];
    spw_queue *queue;
    uint64_t random; /* state */
    uint32_t next_version;
    struct mix_report report;
    struct mix_tensor tensor;
    struct mix_held held[MIX_HELD_MAX];
    uint8_t *buffer; /* MIX_BUFFER_BYTES */
};
#define MIX_BUFFER_BYTES (64 * MIB)

/* Runs to its end; 0, or a negative errno after it has said what failed. The report is sent to fd each second. */
int mix_client_run(const struct mix_plan *plan, int fd);

/* ── between mix_client.c, mix_blocks.c and mix_tensor.c ────────────────────────────────────────────────────────── */

uint64_t mix_random(struct mix_client *c, uint64_t below);
/* A result that is neither success nor one of the expected (a list that ends in 0) is counted and printed. */
void mix_expect(struct mix_client *c, enum mix_op op, int status, const int *expected);
/* Compares what is there with what must be there. */
void mix_verify(struct mix_client *c, const struct spw_key *key, const void *bytes, uint64_t size_bytes,
                uint64_t stream, uint64_t offset_bytes);
/* Each does one operation. A negative errno only if the session is of no use any more. */
int mix_block_op(struct mix_client *c, enum mix_op op);
void mix_release_all(struct mix_client *c);
must_check int mix_tensor_init(struct mix_client *c);
int mix_tensor_op(struct mix_client *c, enum mix_op op);

/* ── mix_speed.c ────────────────────────────────────────────────────────────────────────────────────────────────── */

/* What load does to others: another benchmark altogether. Returns the process's status. */
int mix_speed(const struct options *options);
