/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the memory that the log is read to. The thread that opens.
 *
 * The ring is read in windows, one behind the other, beginning where the first block is asked for. Some behind the
 * current one are on their way (io/backend.h: ahead); what comes of them is heard when they become the current one, so
 * an error beyond the place where the log is found to end does not matter. A block that begins in one window and ends
 * in the next one is made contiguous: what there is of it is copied in front of the next one. No block crosses the
 * ring's end, and no window does. Whoever asks for a place elsewhere begins anew from there.
 */
#include "io/log_read.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/kill_point.h"
#include "include/base/point.h"

#define WINDOW_SECTORS 256
#define LEAD_BYTES FORMAT_BLOCK_BYTES_MAX

int log_reader_init(struct log_reader *r, const struct log *l, struct io_backend *be, uint32_t dev,
                    const struct geometry *g)
{
    *r = (struct log_reader){.l = l, .be = be, .dev = dev, .ring_off_bytes = g->log_off_bytes};
    for (; r->n_windows < LOG_WINDOWS; r->n_windows++) {
        void *mem = aligned_alloc(SECTOR_BYTES, LEAD_BYTES + WINDOW_SECTORS * SECTOR_BYTES);

        if (!mem)
            break;
        r->windows[r->n_windows].mem = mem;
    }
    return r->n_windows > 0 ? 0 : -ENOMEM;
}

/* --- Windows --- */

static struct log_window *window_behind(struct log_reader *r, uint32_t n)
{
    return &r->windows[(r->current + n) % r->n_windows];
}

static uint64_t window_end(const struct log_window *w)
{
    return w->place + w->sectors;
}

static void window_begin(struct log_reader *r, struct log_window *w, uint64_t place)
{
    w->place = place;
    w->sectors = MIN((uint64_t)WINDOW_SECTORS, r->l->ring_sectors - place);
    w->read = (struct io_ahead){.op = IO_AHEAD_READ,
                                .dev = r->dev,
                                .off_bytes = r->ring_off_bytes + place * SECTOR_BYTES,
                                .mem = w->mem + LEAD_BYTES,
                                .len_bytes = w->sectors * SECTOR_BYTES};
    if (r->be->ops->ahead_begin)
        r->be->ops->ahead_begin(r->be, &w->read);
}

static int window_wait(struct log_reader *r, struct log_window *w)
{
    struct io_ahead *a = &w->read;

    if (r->be->ops->ahead_begin)
        return r->be->ops->ahead_wait(r->be, a);
    return r->be->ops->blk_now(r->be, IO_BLK_READ, a->dev, a->off_bytes, a->mem, a->len_bytes);
}

/* Windows behind the current one, as many as may be. */
static void windows_begin(struct log_reader *r)
{
    while (r->n_ahead < MIN(r->n_ahead_max, r->n_windows - 1)) {
        uint64_t place = window_end(window_behind(r, r->n_ahead));

        r->n_ahead++;
        window_begin(r, window_behind(r, r->n_ahead), place == r->l->ring_sectors ? 0 : place);
    }
}

/* Nobody writes to the memory any more. */
static void windows_forget(struct log_reader *r)
{
    for (; r->n_ahead > 0; r->n_ahead--)
        if (r->be->ops->ahead_begin)
            (void)window_wait(r, window_behind(r, r->n_ahead));
    r->windows[r->current].sectors = 0;
    r->lead_sectors = 0;
}

void log_reader_deinit(struct log_reader *r)
{
    windows_forget(r);
    if (r->be->ops->ahead_begin)
        r->be->ops->ahead_over(r->be);
    for (uint32_t i = 0; i < r->n_windows; i++)
        free(r->windows[i].mem);
    r->n_windows = 0;
}

static int window_seek(struct log_reader *r, uint64_t place)
{
    struct log_window *w = &r->windows[r->current];

    windows_forget(r);
    window_begin(r, w, place);
    int e = window_wait(r, w);
    if (e < 0)
        w->sectors = 0;
    return e;
}

/* To the next window. What the current one has from `place` on comes in front of it. */
static int window_advance(struct log_reader *r, uint64_t place)
{
    const struct log_window *from = &r->windows[r->current];
    struct log_window *to = window_behind(r, 1);
    uint64_t end = window_end(from), lead = end == r->l->ring_sectors ? 0 : end - place;

    if (lead > 0)
        memmove(to->mem + LEAD_BYTES - lead * SECTOR_BYTES,
                from->mem + LEAD_BYTES + (from->sectors - lead) * SECTOR_BYTES, lead * SECTOR_BYTES);
    if (r->n_ahead == 0)
        window_begin(r, to, end == r->l->ring_sectors ? 0 : end);
    else
        r->n_ahead--;
    r->current = (uint32_t)(to - r->windows);
    r->lead_sectors = lead;
    int e = window_wait(r, to);
    if (e < 0) {
        windows_forget(r);
        return e;
    }
    r->n_ahead_max = MIN(2 * r->n_ahead_max + 1, (uint32_t)LOG_WINDOWS);
    windows_begin(r);
    return 0;
}

/* At least one sector at this place, and a whole block if the ring does not end before. */
static int reader_at(struct log_reader *r, uint64_t place, const uint8_t **ret, uint32_t *ret_sectors)
{
    uint64_t want = MIN((uint64_t)FORMAT_BLOCK_SECTORS_MAX, r->l->ring_sectors - place);
    const struct log_window *w = &r->windows[r->current];
    int e = 0;

    if (w->sectors == 0 || place + r->lead_sectors < w->place || place > window_end(w))
        e = w->sectors > 0 && place == 0 && window_end(w) == r->l->ring_sectors ? window_advance(r, place)
                                                                                : window_seek(r, place);
    else if (place + want > window_end(w))
        e = window_advance(r, place);
    if (e < 0)
        return e;
    w = &r->windows[r->current];
    *ret = w->mem + LEAD_BYTES + place * SECTOR_BYTES - w->place * SECTOR_BYTES;
    *ret_sectors = (uint32_t)want;
    return 0;
}

/* --- Blocks --- */

int log_read_block(struct log_reader *r, uint64_t lsn, const struct format_block **ret)
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

int log_read_after(struct log_reader *r, struct log_mark at, const struct format_block **ret)
{
    uint64_t place = log_place(r->l, at.lsn);

    int e = log_read_block(r, at.lsn, ret);
    if (e < 0 || (*ret && (*ret)->prev == at.prev))
        return e;
    *ret = NULL;
    if (place == 0 || r->l->ring_sectors - place >= FORMAT_BLOCK_SECTORS_MAX)
        return 0;
    e = log_read_block(r, at.lsn + r->l->ring_sectors - place, ret);
    if (e == 0 && *ret && (*ret)->prev != at.prev)
        *ret = NULL;
    if (*ret)
        sim_reached("recovery: a block at the ring's start");
    return e;
}
