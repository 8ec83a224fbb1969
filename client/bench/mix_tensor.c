/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations on tensors: each client has one of its own, and a model of it that knows the version of every page. Ranges
 * are whole pages at random places, so they cross pieces. What was never written reads as zeros. A put that failed may have
 * written some of its range, which is unknown then, until it is written anew. A lease whose change is discarded may leave
 * its pieces unreadable (there may have been no copy to go back to), so they are written as a whole at once. In a pool
 * that is not trusted a writer has a copy of its own, and its release may fail for lack of room: then nothing has changed.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "client/bench/mix.h"
#include "include/base/cleanup.h"
#include "include/base/limits.h"

#define TENSOR_BYTES (20 * MIB)
#define TRIES_MAX 10
#define RANGE_PAGES_MAX 600
#define TIMEOUT_MS 10000
#define UNKNOWN UINT32_MAX /* version of a page that may hold one or the other */

static const int no_room[] = {-ENOSPC, -ETIMEDOUT, -EAGAIN, -EBUSY, 0};

int mix_tensor_init(struct mix_client *c)
{
    struct mix_tensor *t = &c->tensor;
    char name[32];

    snprintf(name, sizeof(name), "tensor-%u-%d", c->plan->client, (int)getpid());
    t->size_bytes = TENSOR_BYTES;
    t->versions = calloc(TENSOR_BYTES / SECTOR_BYTES, sizeof(*t->versions));
    if (!t->versions)
        return -ENOMEM;
    int r = spw_key_init(&t->name, name, strlen(name), 0);
    if (r == 0)
        r = spw_tensor_open(c->spaces[MIX_TENSORS], &t->name, t->size_bytes);
    if (r < 0)
        fprintf(stderr, "spillbench mix: client %u: tensor: %s\n", c->plan->client, spw_error_text());
    return r;
}

struct range {
    uint64_t first_page, n_pages;
};

static struct range choose_range(struct mix_client *c)
{
    struct range range;
    uint64_t n_pages = c->tensor.size_bytes / SECTOR_BYTES;

    range.n_pages = 1 + mix_random(c, mix_random(c, 4) ? 20 : RANGE_PAGES_MAX);
    range.first_page = mix_random(c, n_pages - range.n_pages + 1);
    return range;
}

static uint64_t version_stream(const struct mix_client *c, uint32_t version)
{
    return payload_mix(payload_stream(&c->tensor.name), version);
}

static void fill_page(const struct mix_client *c, uint8_t *to, uint64_t page, uint32_t version)
{
    payload_fill(to, SECTOR_BYTES, version_stream(c, version), page * SECTOR_BYTES);
}

static void check_page(struct mix_client *c, const uint8_t *from, uint64_t page)
{
    uint32_t version = c->tensor.versions[page];

    if (version == UNKNOWN)
        return;
    if (version != 0) {
        mix_verify(c, &c->tensor.name, from, SECTOR_BYTES, version_stream(c, version), page * SECTOR_BYTES);
        return;
    }
    c->report.bytes_verified += SECTOR_BYTES;
    if (from[0] != 0 || memcmp(from, from + 1, SECTOR_BYTES - 1) != 0) {
        if (c->report.wrong++ == 0)
            fprintf(stderr, "WRONG BYTES: client %u: page %llu of a tensor was never written, and is not zero\n",
                    c->plan->client, (unsigned long long)page);
    }
}

static int tensor_put(struct mix_client *c, struct range range)
{
    uint32_t version = ++c->next_version;

    for (uint64_t i = 0; i < range.n_pages; i++)
        fill_page(c, c->buffer + i * SECTOR_BYTES, range.first_page + i, version);
    int r = spw_put_range(c->spaces[MIX_TENSORS], &c->tensor.name, range.first_page * SECTOR_BYTES, c->buffer,
                          range.n_pages * SECTOR_BYTES, TIMEOUT_MS);
    mix_expect(c, MIX_TENSOR_PUT, r, no_room);
    c->report.bytes_written += r == 0 ? range.n_pages * SECTOR_BYTES : 0;
    for (uint64_t i = 0; i < range.n_pages; i++)
        c->tensor.versions[range.first_page + i] = r == 0 ? version : UNKNOWN;
    return r;
}

/* The pieces that a range touches, as a whole; a few times, if there is no room. */
static int tensor_put_pieces(struct mix_client *c, struct range range)
{
    uint64_t pages = PIECE_BYTES_MAX / SECTOR_BYTES, n_pages = c->tensor.size_bytes / SECTOR_BYTES;
    uint64_t first = range.first_page / pages * pages;
    uint64_t end = MIN(round_up(range.first_page + range.n_pages, pages), n_pages);
    int r = 0;

    for (uint64_t page = first; r == 0 && page < end; page += pages) {
        int tries = 0;

        do
            r = tensor_put(c, (struct range){page, MIN(pages, end - page)});
        while ((r == -ENOSPC || r == -ETIMEDOUT || r == -EAGAIN) && ++tries < TRIES_MAX);
    }
    return r;
}

static void tensor_get(struct mix_client *c, struct range range)
{
    int r = spw_get_range(c->spaces[MIX_TENSORS], &c->tensor.name, range.first_page * SECTOR_BYTES, c->buffer,
                          range.n_pages * SECTOR_BYTES, TIMEOUT_MS);

    mix_expect(c, MIX_TENSOR_GET, r, no_room);
    for (uint64_t i = 0; r == 0 && i < range.n_pages; i++)
        check_page(c, c->buffer + i * SECTOR_BYTES, range.first_page + i);
}

/* Through the views of a range, page by page. */
static void each_page(struct mix_client *c, const struct spw_view *views, long n_views, struct range range,
                      uint32_t version)
{
    uint64_t page = range.first_page;

    for (long i = 0; i < n_views; i++) {
        uint8_t *bytes = views[i].data;

        for (uint64_t at = 0; views[i].status == 0 && at < views[i].size_bytes; at += SECTOR_BYTES, page++) {
            check_page(c, bytes + at, page);
            if (version == 0)
                continue;
            fill_page(c, bytes + at, page, version);
            c->tensor.versions[page] = version;
        }
    }
}

/* What could not be released dirty is what it was, or (the wait ended, the copy did not) what it should be. */
static void check_released(struct mix_client *c, const struct spw_view *views, long n_views, struct range range, int r)
{
    uint64_t page = range.first_page;

    for (long i = 0; i < n_views; i++) {
        uint64_t n_pages = views[i].size_bytes / SECTOR_BYTES;

        mix_expect(c, MIX_TENSOR_LEASE, views[i].status, no_room);
        for (uint64_t k = 0; (r < 0 || views[i].status < 0) && k < n_pages; k++)
            c->tensor.versions[page + k] = UNKNOWN;
        page += n_pages;
    }
}

/* A lease on a range: read, or check and overwrite in place. */
static int tensor_lease(struct mix_client *c, struct range range)
{
    struct spw_view views[8];
    spw_space *space = c->spaces[MIX_TENSORS];
    uint64_t kind = mix_random(c, 4);
    unsigned flags = kind ? SPW_WRITE : 0;

    long n = spw_acquire_range(space, &c->tensor.name, range.first_page * SECTOR_BYTES, range.n_pages * SECTOR_BYTES,
                               flags, TIMEOUT_MS, views, ARRAY_LEN(views));
    mix_expect(c, MIX_TENSOR_LEASE, n < 0 ? (int)n : 0, no_room);
    if (n < 0)
        return (int)n;
    bool whole = true;
    for (long i = 0; i < n; i++) {
        mix_expect(c, MIX_TENSOR_LEASE, views[i].status, no_room);
        whole &= views[i].status == 0;
    }
    bool write = whole && kind >= 2, discard = kind == 1;
    if (whole)
        each_page(c, views, n, range, write ? ++c->next_version : 0);
    c->report.bytes_written += write ? range.n_pages * SECTOR_BYTES : 0;
    int r = spw_release(space, views, (size_t)n, write ? SPW_DIRTY : discard ? SPW_DISCARD : 0);
    mix_expect(c, MIX_TENSOR_LEASE, r, no_room);
    if (write)
        check_released(c, views, n, range, r);
    return discard ? tensor_put_pieces(c, range) : r;
}

int mix_tensor_op(struct mix_client *c, enum mix_op op)
{
    struct range range = choose_range(c);

    if (op == MIX_TENSOR_GET)
        tensor_get(c, range);
    else if (op == MIX_TENSOR_PUT)
        (void)tensor_put(c, range);
    else
        (void)tensor_lease(c, range);
    return spw_nop(c->spaces[MIX_TENSORS]); /* whether there still is a daemon */
}
