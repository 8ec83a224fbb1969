/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the log after a restart. Blocking, on the thread that opens.
 *
 * Two passes over the same blocks: the first finds the true end and the transactions that were committed, the second
 * decodes all entries and replays; puts of a transaction are replayed where it was committed. The end is the first place
 * without a block that is whole and continues the chain. That is normal after a crash; it is damage if something after it was written when this place was already on stable storage (`flushed_lsn`,
 * or `needed_lsn` in the header), and then nothing is guessed: -EUCLEAN.
 *
 * Blocks of a sweep that did not complete repeat what stands before them. Those at the very end are given back: a
 * sweep that is cut off again and again, crash after crash, must not fill the ring.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/cleanup.h"
#include "include/base/kill_point.h"
#include "include/base/point.h"
#include "io/log.h"

#define WINDOW_SECTORS 256
#define RECORDS_AHEAD 32 /* decoded before the first of them is replayed: what that will wait for is on its way */
/* A flush comes at least every LOG_BLOCKS_UNFLUSHED_MAX blocks: no further beyond the end need a witness be sought. */
#define WITNESS_SECTORS ((uint64_t)(LOG_BLOCKS_UNFLUSHED_MAX + 2) * FORMAT_BLOCK_SECTORS_MAX)

struct reader {
    const struct log *l;
    struct io_backend *be;
    uint32_t dev;
    uint64_t ring_off_bytes;
    uint8_t *window;
    uint64_t place;   /* of the window's first sector */
    uint64_t sectors; /* in the window */
};

struct txn_set {
    uint64_t *txns;
    size_t n, room;
};

/* What the first pass found. */
struct extent {
    struct log_mark end;
    struct log_mark repeat; /* where the trailing blocks of an unfinished sweep begin, or the end */
};

/* At least one sector at this place, and a whole block if the ring does not end before. */
static int reader_at(struct reader *r, uint64_t place, const uint8_t **ret, uint32_t *ret_sectors)
{
    uint64_t want = MIN((uint64_t)FORMAT_BLOCK_SECTORS_MAX, r->l->ring_sectors - place);

    if (place < r->place || place + want > r->place + r->sectors) {
        uint64_t n = MIN((uint64_t)WINDOW_SECTORS, r->l->ring_sectors - place);
        int e = r->be->ops->blk_now(r->be, IO_BLK_READ, r->dev, r->ring_off_bytes + place * SECTOR_BYTES, r->window,
                                    n * SECTOR_BYTES);
        if (e < 0)
            return e;
        r->place = place;
        r->sectors = n;
    }
    *ret = r->window + (place - r->place) * SECTOR_BYTES;
    *ret_sectors = (uint32_t)want;
    return 0;
}

/* The block at lsn if it is whole, else NULL. */
static int block_at(struct reader *r, uint64_t lsn, const struct format_block **ret)
{
    const uint8_t *bytes;
    uint32_t sectors;

    int e = reader_at(r, log_place(r->l, lsn), &bytes, &sectors);
    if (e < 0)
        return e;
    const struct format_block *b = (const struct format_block *)(const void *)bytes;
    bool whole = b->magic == FORMAT_BLOCK_MAGIC && b->lsn == lsn && b->partition == r->l->partition &&
                 b->sectors >= 1 && b->sectors <= sectors && b->entry_bytes <= b->sectors * SECTOR_BYTES - sizeof(*b) &&
                 b->checksum == log_block_checksum(r->l, b);
    *ret = whole ? b : NULL;
    return 0;
}

/* The block that follows the mark, here or at the ring's start. */
static int block_after(struct reader *r, struct log_mark at, const struct format_block **ret)
{
    uint64_t place = log_place(r->l, at.lsn);

    int e = block_at(r, at.lsn, ret);
    if (e < 0 || (*ret && (*ret)->prev == at.prev))
        return e;
    *ret = NULL;
    if (place == 0 || r->l->ring_sectors - place >= FORMAT_BLOCK_SECTORS_MAX)
        return 0;
    e = block_at(r, at.lsn + r->l->ring_sectors - place, ret);
    if (e == 0 && *ret && (*ret)->prev != at.prev)
        *ret = NULL;
    if (*ret)
        sim_reached("recovery: a block at the ring's start");
    return e;
}

/* Where in a block its next entry is. */
struct entries {
    const uint8_t *at;
    uint32_t left_bytes, left;
};

static struct entries block_entries(const struct format_block *b)
{
    return (struct entries){.at = (const uint8_t *)b + sizeof(*b), .left_bytes = b->entry_bytes, .left = b->entries};
}

/* Returns how many it has decoded, 0 at the end. */
static int entries_next(const struct log *l, struct entries *e, struct log_record *records, uint32_t n_max)
{
    uint32_t n = MIN(e->left, n_max), bytes;

    for (uint32_t i = 0; i < n; i++) {
        int r = log_decode(l, e->at, e->left_bytes, &records[i], &bytes);
        if (r < 0)
            return r;
        e->at += bytes;
        e->left_bytes -= bytes;
    }
    e->left -= n;
    return n == 0 && e->left_bytes > 0 ? -EUCLEAN : (int)n;
}

/* --- First pass --- */

static int collect_txn(struct txn_set *set, const struct log_record *record)
{
    if (record->type != FORMAT_ENTRY_TXN_COMMIT)
        return 0;
    if (set->n == set->room) {
        size_t room = set->room ? set->room * 2 : 64;
        uint64_t *txns = realloc(set->txns, room * sizeof(*txns));
        if (!txns)
            return -ENOMEM;
        set->txns = txns;
        set->room = room;
    }
    set->txns[set->n++] = record->txn;
    return 0;
}

static int entries_skip(struct entries *e, const struct format_entry *head)
{
    if (head->entry_bytes > e->left_bytes || head->entry_bytes < sizeof(*head))
        return -EUCLEAN;
    e->at += head->entry_bytes;
    e->left_bytes -= head->entry_bytes;
    e->left--;
    return 0;
}

/* `all`: what is wrong with any of its entries is to be found now, since the second pass may leave it out. */
static int collect_block(const struct log *l, const struct format_block *b, bool all, struct txn_set *set)
{
    struct entries entries = block_entries(b);
    struct log_record record;
    struct format_entry head;
    int r = 0;

    while (r == 0 && entries.left > 0) {
        if (entries.left_bytes < sizeof(head))
            return -EUCLEAN;
        memcpy(&head, entries.at, sizeof(head));
        if (!all && head.type != FORMAT_ENTRY_TXN_COMMIT) {
            r = entries_skip(&entries, &head);
            continue;
        }
        r = entries_next(l, &entries, &record, 1);
        if (r > 0)
            r = collect_txn(set, &record);
    }
    return r < 0 ? r : entries.left_bytes > 0 ? -EUCLEAN : 0;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static int find_end(struct reader *r, const struct format_partition *h, struct txn_set *set, struct extent *ret)
{
    struct log_mark at = {.lsn = h->tail_lsn, .prev = h->tail_prev};
    struct extent x = {.repeat = at};
    const struct format_block *b;

    for (;;) {
        int e = block_after(r, at, &b);
        if (e < 0)
            return e;
        if (!b || b->lsn + b->sectors > h->tail_lsn + r->l->ring_sectors)
            break;
        kill_point("replay.found_block");
        bool repeat = (b->flags & FORMAT_BLOCK_SWEEP_ONLY) && b->lsn >= h->needed_lsn;
        e = collect_block(r->l, b, repeat, set);
        if (e < 0)
            return e;
        at = (struct log_mark){.lsn = b->lsn + b->sectors, .prev = b->checksum};
        if (!repeat)
            x.repeat = at;
    }
    kill_point("replay.found_end");
    x.end = at;
    *ret = x;
    return 0;
}

/* Nothing after the end may have been written by one who knew that the end was on stable storage. */
static int check_end(struct reader *r, const struct format_partition *h, uint64_t end_lsn)
{
    const struct format_block *b;

    if (end_lsn < h->needed_lsn || (h->clean && end_lsn != h->needed_lsn))
        return -EUCLEAN;
    kill_point("replay.check_end");
    uint64_t last = MIN(end_lsn + WITNESS_SECTORS, h->tail_lsn + r->l->ring_sectors);
    for (uint64_t lsn = end_lsn; lsn < last; lsn++) {
        int e = block_at(r, lsn, &b);
        if (e < 0)
            return e;
        if (b && b->epoch == h->epoch && b->flushed_lsn > end_lsn)
            return -EUCLEAN;
    }
    return 0;
}

/* --- Second pass --- */

/* Puts of a transaction wait here for its commit: that is where they took effect. */
struct replay {
    const struct txn_set *set;
    const struct log_recovery *recovery;
    struct log_record *held;
    size_t n_held, room;
    struct log_record ahead[RECORDS_AHEAD];
};

static int replay_hold(struct replay *p, const struct log_record *record)
{
    if (!bsearch(&record->put.txn, p->set->txns, p->set->n, sizeof(*p->set->txns), compare_u64))
        return 0;
    sim_reached("recovery: a put waits for its transaction");
    if (p->n_held == p->room) {
        size_t room = p->room ? p->room * 2 : 64;
        struct log_record *held = realloc(p->held, room * sizeof(*held));
        if (!held)
            return -ENOMEM;
        p->held = held;
        p->room = room;
    }
    kill_point("replay.txn_held");
    p->held[p->n_held++] = *record;
    return 0;
}

static int replay_commit(struct replay *p, uint64_t txn)
{
    size_t kept = 0;
    int r = 0;

    for (size_t i = 0; i < p->n_held; i++)
        if (p->held[i].put.txn != txn)
            p->held[kept++] = p->held[i];
        else if (r == 0)
            r = p->recovery->record(p->recovery->ctx, &p->held[i]);
    kill_point("replay.txn_over");
    p->n_held = kept;
    sim_reached("recovery: a transaction takes effect");
    return r;
}

/* What is deleted before its commit must not come back with it. Generations are unique in the partition. */
static void replay_unhold(struct replay *p, uint64_t generation)
{
    size_t kept = 0;

    for (size_t i = 0; i < p->n_held; i++)
        if (p->held[i].put.entry.generation != generation)
            p->held[kept++] = p->held[i];
    p->n_held = kept;
}

static int replay_record(struct replay *p, const struct log_record *record)
{
    if (record->type == FORMAT_ENTRY_DELETE)
        replay_unhold(p, record->delete.generation);
    if (record->type == FORMAT_ENTRY_TXN_COMMIT)
        return replay_commit(p, record->txn);
    if (record->type == FORMAT_ENTRY_PUT && record->put.txn != 0)
        return replay_hold(p, record);
    return p->recovery->record(p->recovery->ctx, record);
}

static int replay_block(struct replay *p, const struct log *l, const struct format_block *b)
{
    struct entries entries = block_entries(b);
    int n;

    while ((n = entries_next(l, &entries, p->ahead, RECORDS_AHEAD)) > 0) {
        for (int i = 0; i < n && p->recovery->warm; i++)
            p->recovery->warm(p->recovery->ctx, &p->ahead[i]);
        for (int i = 0; i < n; i++) {
            int r = replay_record(p, &p->ahead[i]);
            if (r < 0)
                return r;
        }
    }
    return n;
}

static int replay(struct reader *r, struct log_mark at, uint64_t end_lsn, const struct txn_set *set,
                  const struct log_recovery *recovery)
{
    struct replay p = {.set = set, .recovery = recovery};
    const struct format_block *b;
    int e = 0;

    while (e == 0 && at.lsn < end_lsn) {
        e = block_after(r, at, &b);
        if (e == 0 && !b)
            e = -EUCLEAN; /* it was there a moment ago */
        if (e < 0)
            break;
        kill_point("replay.block");
        if (recovery->block)
            recovery->block(recovery->ctx, b);
        e = replay_block(&p, r->l, b);
        at = (struct log_mark){.lsn = b->lsn + b->sectors, .prev = b->checksum};
    }
    kill_point("replay.over");
    free(p.held);
    return e;
}

int log_recover(struct log *l, struct io_backend *be, uint32_t dev, const struct geometry *g,
                const struct format_partition *header, const struct log_recovery *recovery)
{
    struct txn_set set = {0};
    struct extent x;

    cleanup_free uint8_t *window = aligned_alloc(SECTOR_BYTES, (size_t)WINDOW_SECTORS * SECTOR_BYTES);
    if (!window)
        return -ENOMEM;
    struct reader r = {.l = l, .be = be, .dev = dev, .ring_off_bytes = g->log_off_bytes, .window = window};
    int e = find_end(&r, header, &set, &x);
    cleanup_free uint64_t *txns = set.txns;
    if (e == 0)
        e = check_end(&r, header, x.end.lsn);
    if (e < 0)
        return e;
    set.txns = txns;
    kill_point("replay.txns");
    if (set.n > 0)
        qsort(set.txns, set.n, sizeof(*set.txns), compare_u64);
    else
        set.txns = &(uint64_t){0};
    l->tail = (struct log_mark){.lsn = header->tail_lsn, .prev = header->tail_prev};
    kill_point("replay.head");
    l->head = x.repeat;
    l->flushed_lsn = header->needed_lsn;
    return replay(&r, l->tail, x.repeat.lsn, &set, recovery);
}
