/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads pieces as the daemon reads them, through store_get(), in the order in which they lie. A piece of several
 * granules is read twice: as a whole, which needs its entry alone, and its first granule, which needs the sums that are
 * kept beside the segment, as reading any part of it does.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "client/ctl/fsck.h"
#include "include/base/units.h"

#define PROGRESS_NS UINT64_C(1000000000)

struct reading {
    struct fsck_open *open;
    struct store_get *get;
    struct io_buf buf;
    int status;
};

struct progress {
    uint64_t start_ns, last_ns, done_bytes, total_bytes;
    bool is_terminal, line_open;
};

static struct reading *reading; /* of the get under way: there is one */

static void is_read(struct store_get *get, int status)
{
    (void)get;
    reading->status = status;
}

static int read_range(struct reading *r, const struct store_entry *entry, uint32_t len_bytes)
{
    *r->get = (struct store_get){.entry = *entry, .len_bytes = len_bytes, .buf = r->buf, .done = is_read};
    r->status = -EINPROGRESS;
    reading = r;
    store_get(r->open->store, r->get);
    fsck_backend_run(&r->open->backend);
    return r->status;
}

static enum fsck_damage read_piece(struct reading *r, const struct store_entry *entry)
{
    if (read_range(r, entry, entry->size_bytes) != 0)
        return FSCK_DAMAGED_BYTES;
    if (entry->size_bytes > GRANULE_BYTES && read_range(r, entry, GRANULE_BYTES) != 0)
        return FSCK_DAMAGED_SUMS;
    return FSCK_WHOLE;
}

/* What nobody can read is not read: its owners are gone, or it was found damaged long ago. */
static bool is_readable(const struct store_entry *entry)
{
    return entry->durability != STORE_SCRATCH && !(entry->kind & STORE_KIND_DAMAGED);
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void show_progress(struct progress *p)
{
    uint64_t now = now_ns();

    if (!p->is_terminal || now - p->last_ns < PROGRESS_NS)
        return;
    double rate = (double)p->done_bytes / ((double)(now - p->start_ns) * 1e-9);
    fprintf(stderr, "\r\033[K%.0f %% read, %.0f MB/s", 100 * (double)p->done_bytes / (double)p->total_bytes,
            rate * 1e-6);
    fflush(stderr);
    p->last_ns = now;
    p->line_open = true;
}

int fsck_data(struct fsck_open *o)
{
    struct progress p = {.start_ns = now_ns(), .last_ns = now_ns(), .is_terminal = isatty(STDERR_FILENO) == 1};
    cleanup_free struct store_get *get = calloc(1, sizeof(*get));
    struct reading r = {.open = o, .get = get};
    void *mem;

    o->damage = calloc((size_t)o->pieces.n + 1, 1);
    if (!get || !o->damage)
        return -ENOMEM;
    int e = o->backend.backend.ops->bounce_alloc(&o->backend.backend, PIECE_BYTES_MAX, &r.buf, &mem);
    for (uint32_t i = 0; i < o->pieces.n; i++)
        p.total_bytes += is_readable(o->sorted[i]) ? o->sorted[i]->size_bytes : 0;
    for (uint32_t i = 0; i < o->pieces.n && e == 0; i++) {
        if (!is_readable(o->sorted[i]))
            continue;
        o->damage[i] = (uint8_t)read_piece(&r, o->sorted[i]);
        p.done_bytes += o->sorted[i]->size_bytes;
        show_progress(&p);
    }
    if (p.line_open)
        fputs("\r\033[K", stderr);
    return e;
}
