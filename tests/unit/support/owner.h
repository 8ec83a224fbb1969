/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A naive owner of a store, and the oracle of what it may find after a crash.
 *
 * It has n_ids objects of one piece each; an object's bytes follow from its number and its version, and the version
 * travels in the entry's object_bytes, so whatever comes back from the device can be checked without a copy.
 *
 * For each object it keeps the history of states since the last acknowledged sync. After a crash the state that is
 * found must be one of them; the first must be readable, of later ones the `durable` too.
 */
#pragma once

#include "io/store.h"
#include "tests/unit/support/simdisk.h"

#define OWNER_IDS_MAX 4096
#define OWNER_SLOTS 24
#define OWNER_HISTORY_MAX 64
#define OWNER_TXN_PUTS_MAX 8

struct owner_state {
    uint64_t version; /* 0: not there */
    bool forgotten;   /* a cache piece that was evacuated: may be there or not */
    bool unpromised;  /* found after a crash, but never synced, and a cache piece: may be unreadable */
};

struct owner_object {
    struct store_entry entry; /* of the current version, if live */
    uint64_t version;         /* of it; 0: not there */
    uint64_t next_version;    /* the last that was handed out */
    uint32_t writing;         /* puts in flight */
    bool is_moving;
    bool in_txn; /* its next version is part of the open transaction */
    uint32_t n_history;
    struct owner_state history[OWNER_HISTORY_MAX];
};

struct owner;

struct owner_slot {
    struct owner *owner;
    bool busy;
    bool moves; /* an evacuation */
    bool txn;
    uint32_t id;
    uint64_t version;
    struct io_buf buf;
    struct store_put put;
    struct store_get get;
};

struct owner {
    struct simdisk *disk;
    struct store *store;
    uint32_t dev;
    uint64_t device_bytes;
    uint64_t uuid; /* as formatted */
    uint32_t n_ids, n_pools;
    uint32_t size_max_bytes;
    uint32_t key_len;
    bool cache_only;
    uint32_t refuse_below; /* ids that it does not keep when it opens */
    bool were_moved; /* when it opens: as if a process before had moved each piece, and the log had not heard of it */
    uint32_t space_again_at; /* nor of `space`, which this piece was the first of; 0: it had */
    uint64_t now_ns;
    uint64_t budget_bytes; /* of each pool */
    struct owner_object *objects;
    struct owner_slot slots[OWNER_SLOTS];
    uint32_t region;

    /* The last sync that is in flight: where each history was when it was submitted. */
    struct store_sync sync;
    bool syncing;
    int sync_status;
    uint32_t *sync_mark;

    /* The open transaction. */
    uint32_t txn;
    uint32_t n_txn, n_txn_started, n_txn_writing;
    struct {
        uint32_t id;
        uint64_t version;
        struct store_entry entry;
    } txn_puts[OWNER_TXN_PUTS_MAX];

    uint32_t n_evacuations; /* waiting for room */
    uint32_t evacuate[OWNER_IDS_MAX];

    struct store_space space;
    bool has_space;
    int failed;
    uint32_t n_busy;
    uint64_t n_put, n_put_failed, n_enospc, n_eagain, n_wrong, n_lost, n_badmsg;
    int last_put_status;
};

struct owner *owner_new(struct simdisk *disk, uint32_t dev, uint64_t device_bytes, uint32_t n_ids);
void owner_free(struct owner *o);
int owner_format(struct owner *o, uint32_t segment_bytes, uint64_t uuid);
/* Opens, replays, adopts. Then what was found is checked against the histories: n_wrong, n_lost. */
int owner_open(struct owner *o, const char **ret_why);
void owner_turn(struct owner *o);   /* one tick and a few completions */
void owner_settle(struct owner *o); /* until nothing of ours is in flight */
void owner_wait_sync(struct owner *o);
int owner_close(struct owner *o);                   /* clean */
void owner_crash(struct owner *o, bool power_loss); /* frees the store; owner_open() comes next */

uint32_t owner_size(const struct owner *o, uint32_t id, uint64_t version);
uint8_t owner_durability(const struct owner *o, uint32_t id);
int owner_put(struct owner *o, uint32_t id, bool txn);
void owner_drop(struct owner *o, uint32_t id);
bool owner_sync(struct owner *o);
/* Reads a whole object and compares. 0, or the get's status; wrong bytes are counted in n_wrong. */
int owner_check(struct owner *o, uint32_t id);
void owner_check_all(struct owner *o, bool after_crash);
/* The slot's put or get as the test filled it, to its end: the status. */
int owner_raw_put(struct owner *o, struct owner_slot *slot);
int owner_raw_get(struct owner *o, struct owner_slot *slot);
bool owner_txn_begin(struct owner *o);
void owner_txn_commit(struct owner *o);
void owner_fill(uint8_t *out, uint32_t size_bytes, uint32_t id, uint64_t version);

/* Shared by owner.c and owner_check.c. */
struct owner_slot *owner_slot_take(struct owner *o);
void owner_slot_give(struct owner_slot *slot);
void owner_history_add(struct owner_object *x, uint64_t version);
bool owner_bytes_same(const uint8_t *in, uint32_t size_bytes, uint32_t id, uint64_t version);
