/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One engine's tiering on the disk of disk.h: two pools, `a` (trusted) and `b` (shared), small enough that an input of some
 * hundred bytes fills them. One at a time. Helpers wait by turning the world: never long, never in real time.
 */
#pragma once

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/support/disk.h"
#include "tiering/tiering.h"

#define WORLD_PIECE_BYTES ((uint32_t)(128 * KIB))
#define WORLD_OBJECTS 256
#define WORLD_GHOSTS 1024
#define WORLD_MOVES 80 /* a walk through a space for a SYNC goes on only while a tick has 64 left for others */
#define WORLD_REGIONS 512
#define WORLD_TURNS_MAX 2000

/* A chunk, as tiering announced it. */
struct world_chunk {
    bool is_there;
    uint32_t epoch, pool;
    enum io_chunk_kind kind;
    uint64_t session;
};

struct world {
    struct tiering *t;
    uint64_t now_ns;
    bool failed; /* a store */
    struct world_chunk chunks[WORLD_REGIONS];
};
extern struct world world;

enum {
    WORLD_DEVICE = 1 << 0, /* with what is on the device */
    WORLD_CHAIN = 1 << 1,  /* class 0 has the policy `chain` */
    WORLD_PLAN = 1 << 2,   /* all classes have the policy `plan` */
    WORLD_HOT = 1 << 3,    /* after world_leave() */
};
/* What tiering_store_add() or tiering_start() said. */
int world_open(unsigned how);
/* The two halves of it: sessions come back in between. And the two of the first one. */
int world_make(unsigned how);
int world_start(void);
void world_new(unsigned how);
int world_add(void);
/* A device that is empty. */
void world_format(void);
void world_turn(uint32_t io, uint64_t ns);
/* Until nothing moves any more; then counts are checked. */
void world_settle(void);
/* No session is left: nothing is leased or admitted; writes back, closes. What tiering_close_clean() said. */
int world_close(void);
/* For the next process: the sessions have left. */
void world_leave(void);
/* Its memory, as if the process had died. */
void world_forget(void);
/* Ends a snapshot (snapshot.h) that began before disk_snapshot() and world_open(). */
struct snapshot *world_snapshot(void);

struct world_wait {
    struct tiering_wait wait;
    int status; /* 1: it runs */
};
#define WORLD_WAIT ((struct world_wait){.wait = {.done = world_wait_done}, .status = 1})
void world_wait_done(struct tiering_wait *wait, int status);
/* For what a call returned: the end's status, and the grant. -ETIMEDOUT: it was cancelled. */
int world_wait(struct world_wait *wait, int r, struct tiering_grant *ret_grant);
