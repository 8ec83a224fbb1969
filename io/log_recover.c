/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the log after a restart. Blocking, on the thread that opens.
 *
 * One pass: each block that is whole and continues the chain is replayed, up to the end, which is the first place
 * without such a block. Puts of a transaction wait for its commit, and are dropped at the end if that did not come. So
 * what is replayed is what stands before the end, wherever that is; only whether the log may end there is known not
 * before it is found. That is normal after a crash; it is damage if something after it was written when this place was
 * already on stable storage (`flushed_lsn`, or `needed_lsn` in the header), and then nothing is guessed: -EUCLEAN, and
 * who was told of entries forgets them (io/log.h).
 *
 * Blocks of a sweep that did not complete repeat what stands before them. Those at the very end are given back: a
 * sweep that is cut off again and again, crash after crash, must not fill the ring. So blocks that may be such are
 * only checked, and read again to be replayed once something follows that is none. Nothing need be written over them:
 * where the log was closed in order after that, it ends in front of them.
 */
#include <errno.h>
#include <string.h>

#include "include/base/kill_point.h"
#include "include/base/point.h"
#include "io/log.h"
#include "io/log_hold.h"
#include "io/log_read.h"

#define RECORDS_AHEAD 32 /* decoded before they are replayed */
#define RECORDS_STEP 4   /* of these at once */
/* A flush comes at least every LOG_BLOCKS_UNFLUSHED_MAX blocks: no further beyond the end need a witness be sought. */
#define WITNESS_SECTORS ((uint64_t)(LOG_BLOCKS_UNFLUSHED_MAX + 2) * FORMAT_BLOCK_SECTORS_MAX)

struct replay {
    const struct log *l;
    const struct log_recovery *recovery;
    struct log_reader reader;
    struct log_hold hold;
    struct log_mark found;    /* behind the last block that is whole and continues the chain */
    struct log_mark replayed; /* the same, unless blocks of a sweep lie between them that may be the last ones */
    struct log_record ahead[RECORDS_AHEAD];
};

static struct log_mark mark_behind(const struct format_block *b)
{
    return (struct log_mark){.lsn = b->lsn + b->sectors, .prev = b->checksum};
}

/* --- Entries --- */

/* Where in a block its next entry is. */
struct entries {
    const uint8_t *at;
    uint32_t left_bytes, left;
};

static struct entries block_entries(const struct format_block *b)
{
    return (struct entries){.at = (const uint8_t *)b + sizeof(*b), .left_bytes = b->entry_bytes, .left = b->entries};
}

static int entries_next(const struct log *l, struct entries *e, struct log_record *ret)
{
    uint32_t bytes;
    int r = log_decode(l, e->at, e->left_bytes, ret, &bytes);

    if (r < 0)
        return r;
    e->at += bytes;
    e->left_bytes -= bytes;
    e->left--;
    return 0;
}

/* What is wrong with any of its entries is to be found now, since it may not be replayed. */
static int check_block(const struct log *l, const struct format_block *b)
{
    struct entries entries = block_entries(b);
    struct log_record record;
    int r = 0;

    while (r == 0 && entries.left > 0 && entries.left_bytes > 0)
        r = entries_next(l, &entries, &record);
    return r < 0 ? r : entries.left > 0 || entries.left_bytes > 0 ? -EUCLEAN : 0;
}

static int replay_record(struct replay *p, const struct log_record *record)
{
    const struct log_recovery *recovery = p->recovery;

    switch (record->type) {
    case FORMAT_ENTRY_PUT:
        if (record->put.txn == 0)
            break;
        sim_reached("recovery: a put waits for its transaction");
        kill_point("replay.txn_held");
        return log_hold_add(&p->hold, record);
    case FORMAT_ENTRY_TXN_COMMIT:
        sim_reached("recovery: a transaction takes effect");
        kill_point("replay.txn_over");
        return log_hold_commit(&p->hold, record->txn, recovery->record, recovery->ctx);
    case FORMAT_ENTRY_DELETE:
        log_hold_drop(&p->hold, record->delete.generation);
        break;
    default:
        break;
    }
    return recovery->record(recovery->ctx, record);
}

/* Some entries more, before they are replayed: what that will wait for is on its way then. */
static int decode_some(struct replay *p, struct entries *entries, uint32_t *decoded)
{
    const struct log_recovery *recovery = p->recovery;
    uint32_t n = MIN(entries->left, (uint32_t)RECORDS_STEP);

    for (uint32_t i = 0; i < n; i++) {
        struct log_record *record = &p->ahead[(*decoded + i) % RECORDS_AHEAD];
        int r = entries->left_bytes > 0 ? entries_next(p->l, entries, record) : -EUCLEAN;

        if (r < 0)
            return r;
    }
    for (uint32_t i = 0; i < n && recovery->warm; i++)
        recovery->warm(recovery->ctx, &p->ahead[(*decoded + i) % RECORDS_AHEAD]);
    *decoded += n;
    return 0;
}

static int replay_block(struct replay *p, const struct format_block *b)
{
    const struct log_recovery *recovery = p->recovery;
    struct entries entries = block_entries(b);
    int r = 0;

    kill_point("replay.block");
    if (recovery->block)
        recovery->block(recovery->ctx, b);
    for (uint32_t done = 0, decoded = 0; r == 0 && done < b->entries; done++) {
        while (r == 0 && entries.left > 0 && decoded + RECORDS_STEP <= done + RECORDS_AHEAD)
            r = decode_some(p, &entries, &decoded);
        if (r == 0)
            r = replay_record(p, &p->ahead[done % RECORDS_AHEAD]);
    }
    if (r == 0 && entries.left_bytes > 0)
        r = -EUCLEAN;
    p->replayed = mark_behind(b);
    return r;
}

/* --- Blocks --- */

/* What was only checked until now, and the one behind it. */
static int replay_found(struct replay *p)
{
    const struct format_block *b;

    while (p->replayed.lsn < p->found.lsn) {
        int e = log_read_after(&p->reader, p->replayed, &b);
        if (e == 0 && !b)
            e = -EUCLEAN; /* it was there a moment ago */
        if (e == 0)
            e = replay_block(p, b);
        if (e < 0)
            return e;
    }
    return 0;
}

/* Blocks of a sweep that was cut off: a later start gave them back, wrote nothing over them, and closed in front of them. */
static bool was_given_back(const struct format_block *b, const struct format_partition *h)
{
    return h->clean && b->lsn >= h->needed_lsn && b->epoch < h->epoch && (b->flags & FORMAT_BLOCK_SWEEP_ONLY);
}

static int replay_to_end(struct replay *p, const struct format_partition *h)
{
    const struct format_block *b;

    for (;;) {
        int e = log_read_after(&p->reader, p->found, &b);
        if (e < 0)
            return e;
        if (!b || b->lsn + b->sectors > h->tail_lsn + p->l->ring_sectors || was_given_back(b, h))
            break;
        kill_point("replay.found_block");
        bool may_be_last = (b->flags & FORMAT_BLOCK_SWEEP_ONLY) && b->lsn >= h->needed_lsn;
        bool is_behind = p->replayed.lsn < p->found.lsn;
        p->found = mark_behind(b);
        if (may_be_last)
            e = check_block(p->l, b);
        else
            e = is_behind ? replay_found(p) : replay_block(p, b);
        if (e < 0)
            return e;
    }
    kill_point("replay.found_end");
    return 0;
}

/* Nothing after the end may have been written by one who knew that the end was on stable storage. */
static int check_end(struct log_reader *r, const struct format_partition *h, uint64_t end_lsn)
{
    const struct format_block *b;

    if (end_lsn < h->needed_lsn || (h->clean && end_lsn != h->needed_lsn))
        return -EUCLEAN;
    kill_point("replay.check_end");
    uint64_t last = MIN(end_lsn + WITNESS_SECTORS, h->tail_lsn + r->l->ring_sectors);
    for (uint64_t lsn = end_lsn; lsn < last; lsn++) {
        int e = log_read_block(r, lsn, &b);
        if (e < 0)
            return e;
        if (b && b->epoch == h->epoch && b->flushed_lsn > end_lsn)
            return -EUCLEAN;
    }
    return 0;
}

static int recover(struct replay *p, struct log *l, const struct format_partition *h)
{
    int e = replay_to_end(p, h);

    if (e == 0)
        e = check_end(&p->reader, h, p->found.lsn);
    if (e < 0)
        return e;
    kill_point("replay.over");
    l->tail = (struct log_mark){.lsn = h->tail_lsn, .prev = h->tail_prev};
    l->head = p->replayed;
    l->flushed_lsn = h->needed_lsn;
    if (log_has_unlogged(l)) /* by record() */
        l->unlogged_lsn = l->head.lsn;
    return 0;
}

int log_recover(struct log *l, struct io_backend *be, uint32_t dev, const struct geometry *g,
                const struct format_partition *header, const struct log_recovery *recovery)
{
    const struct log_mark tail = {.lsn = header->tail_lsn, .prev = header->tail_prev};
    struct replay p = {.l = l, .recovery = recovery, .found = tail, .replayed = tail};
    int e = log_reader_init(&p.reader, l, be, dev, g);

    if (e < 0)
        return e;
    log_hold_init(&p.hold);
    e = recover(&p, l, header);
    log_hold_deinit(&p.hold);
    log_reader_deinit(&p.reader);
    return e;
}
