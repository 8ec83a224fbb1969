/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations on blocks. A block's size and bytes follow from its key, so any client can check what any other wrote. Keys
 * come from a bounded set, with a bias to small numbers: some are hit all the time, others are evicted or deleted
 * between two uses. Lists stay leased for a while, and are checked again before they are released: bytes under a lease
 * must not move.
 */
#include <errno.h>
#include <string.h>

#include "client/bench/mix.h"
#include "include/base/limits.h"

#define VARIABLE_KEYS 3000
#define FIXED_KEYS 6000
#define DURABLE_KEYS 400
#define TIMEOUT_MS 3000

struct list {
    enum mix_space space;
    uint32_t n;
    struct spw_key keys[MIX_LIST_MAX];
    uint64_t sizes[MIX_LIST_MAX];
};

/* ── keys and sizes ─────────────────────────────────────────────────────────────────────────────────────────────── */

/*
 * In the variable space there are n_sizes sizes, in sectors: most of up to 128 KiB, every fifth of up to 2 MiB; what is
 * used of the last sector differs from key to key. One block in 500 is above a piece (8 MiB).
 */
static uint64_t variable_bytes(const struct mix_client *c, const struct spw_key *key)
{
    uint64_t x = payload_mix(payload_stream(key), 0x73697a65), size = x % c->plan->n_sizes;
    uint64_t sectors = 1 + payload_mix(size, 0x736563) % (size % 5 == 4 ? 512 : 32);
    uint64_t bytes = sectors * SECTOR_BYTES - payload_mix(x, 1) % SECTOR_BYTES;

    return payload_mix(x, 2) % 500 == 0 ? PIECE_BYTES_MAX + bytes : bytes;
}

static uint64_t block_bytes(const struct mix_client *c, enum mix_space space, const struct spw_key *key)
{
    return space == MIX_VARIABLE ? variable_bytes(c, key) : space == MIX_FIXED ? 64 * KIB : 16 * KIB;
}

static uint64_t choose_id(struct mix_client *c, uint64_t n)
{
    uint64_t a = mix_random(c, n), b = mix_random(c, n);

    return MIN(a, b);
}

/* Distinct keys, of blocks of one piece unless `large`. */
static void choose_list(struct mix_client *c, enum mix_space space, uint32_t n_max, bool large, struct list *ret)
{
    static const uint64_t n_keys[] = {
        [MIX_VARIABLE] = VARIABLE_KEYS, [MIX_FIXED] = FIXED_KEYS, [MIX_DURABLE] = DURABLE_KEYS};
    uint32_t n = 1 + (uint32_t)mix_random(c, n_max);
    uint64_t own = space == MIX_DURABLE ? UINT64_C(1000003) * (c->plan->client + 1) : 0;
    uint64_t first = choose_id(c, n_keys[space]);

    ret->space = space;
    ret->n = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct spw_key *key = &ret->keys[ret->n];

        payload_key(0x6d6978 + (uint64_t)space, own + (first + i) % n_keys[space], key);
        ret->sizes[ret->n] = block_bytes(c, space, key);
        if (large || ret->sizes[ret->n] <= spw_space_piece_bytes(c->spaces[space]))
            ret->n++;
    }
}

static enum mix_space choose_space(struct mix_client *c)
{
    return mix_random(c, 2) ? MIX_FIXED : MIX_VARIABLE;
}

/* Errors of a whole list that leave the session in order. */
static int list_result(struct mix_client *c, enum mix_op op, int r)
{
    static const int expected[] = {-ENOSPC, -ETIMEDOUT, -EAGAIN, -ECANCELED, -EINPROGRESS, 0};

    if (r == -ENOTCONN || r == -EPROTO || r == -ENOMEM)
        return r;
    if (r < 0)
        mix_expect(c, op, r, expected);
    return 0;
}

/* ── acquire, release ───────────────────────────────────────────────────────────────────────────────────────────── */

static void verify_views(struct mix_client *c, enum mix_space space, const struct spw_key *keys,
                         const struct spw_view *views, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (views[i].status != 0 || !views[i].data)
            continue;
        if (views[i].size_bytes != block_bytes(c, space, &keys[i]))
            mix_expect(c, MIX_ACQUIRE, -EMSGSIZE, (const int[]){0});
        else
            mix_verify(c, &keys[i], views[i].data, views[i].size_bytes, payload_stream(&keys[i]), 0);
    }
}

static int release_held(struct mix_client *c, struct mix_held *h)
{
    if (h->n == 0)
        return 0;
    verify_views(c, h->space, h->keys, h->views, h->n);
    int r = spw_release(c->spaces[h->space], h->views, h->n, 0);
    h->n = 0;
    return list_result(c, MIX_ACQUIRE, r);
}

void mix_release_all(struct mix_client *c)
{
    for (unsigned i = 0; i < MIX_HELD_MAX; i++)
        (void)release_held(c, &c->held[i]);
}

static const int acquire_expected[] = {-ENOENT, -ENOSPC, -EAGAIN, -EINPROGRESS, -ECANCELED, -ETIMEDOUT, 0};

static int acquire(struct mix_client *c)
{
    struct mix_held *h = &c->held[mix_random(c, MIX_HELD_MAX)];
    unsigned flags = mix_random(c, 2) ? SPW_CHAIN : 0;
    struct list list;

    int r = release_held(c, h);
    if (r < 0)
        return r;
    choose_list(c, choose_space(c), MIX_LIST_MAX, false, &list);
    if (mix_random(c, 8) == 0)
        flags |= SPW_NO_WAIT;
    if (mix_random(c, 16) == 0)
        flags |= SPW_ALL;
    r = spw_acquire(c->spaces[list.space], list.keys, list.n, flags, TIMEOUT_MS, h->views);
    if (r < 0)
        return r == -ENOENT && (flags & SPW_ALL) ? 0 : list_result(c, MIX_ACQUIRE, r);
    for (uint32_t i = 0; i < list.n; i++)
        mix_expect(c, MIX_ACQUIRE, h->views[i].status, acquire_expected);
    h->space = list.space;
    h->n = list.n;
    memcpy(h->keys, list.keys, sizeof(h->keys));
    verify_views(c, h->space, h->keys, h->views, h->n);
    return mix_random(c, 3) ? release_held(c, h) : 0;
}

/* An acquire that is cancelled at once, or not: what it got until then is given back. */
static int acquire_and_cancel(struct mix_client *c)
{
    struct spw_view views[MIX_LIST_MAX];
    struct list list;
    spw_job *job;

    choose_list(c, MIX_FIXED, MIX_LIST_MAX, false, &list);
    int r = spw_submit_acquire(c->queue, c->spaces[list.space], list.keys, list.n, 0, TIMEOUT_MS, views, NULL, &job);
    if (r < 0)
        return list_result(c, MIX_CANCEL, r);
    if (mix_random(c, 4)) {
        r = spw_job_cancel(job);
        if (r < 0 && r != -ENOENT && r != -EALREADY)
            mix_expect(c, MIX_CANCEL, r, (const int[]){0});
    }
    r = spw_job_wait(job, 4 * TIMEOUT_MS);
    if (spw_job_status(job) == -EINPROGRESS) { /* -ETIMEDOUT alone may be how it ended */
        mix_expect(c, MIX_CANCEL, r, (const int[]){0});
        return r;
    }
    bool served = r == 0 || r == -ECANCELED;
    spw_job_free(job);
    if (!served)
        return list_result(c, MIX_CANCEL, r);
    for (uint32_t i = 0; i < list.n; i++)
        mix_expect(c, MIX_CANCEL, views[i].status, acquire_expected);
    verify_views(c, list.space, list.keys, views, list.n);
    return list_result(c, MIX_CANCEL, spw_release(c->spaces[list.space], views, list.n, 0));
}

/* ── storing ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static int reserve(struct mix_client *c, const struct list *list, enum mix_op op, struct spw_view *views)
{
    static const int expected[] = {-EEXIST, -EINPROGRESS, -ENOSPC, -ETIMEDOUT, 0};

    int r = spw_reserve(c->spaces[list->space], list->keys, list->space == MIX_VARIABLE ? list->sizes : NULL, list->n,
                        mix_random(c, 2) ? SPW_CHAIN : 0, TIMEOUT_MS, views);
    for (uint32_t i = 0; r == 0 && i < list->n; i++)
        mix_expect(c, op, views[i].status, expected);
    return r;
}

static int store(struct mix_client *c, enum mix_space space, enum mix_op op)
{
    static const int expected[] = {-EEXIST, -EINPROGRESS, -ENOSPC, -ETIMEDOUT, 0};
    struct spw_view views[MIX_LIST_MAX];
    struct list list;

    choose_list(c, space, MIX_LIST_MAX / 2, false, &list);
    int r = reserve(c, &list, op, views);
    if (r < 0)
        return list_result(c, op, r);
    for (uint32_t i = 0; i < list.n; i++) {
        if (views[i].status != 0)
            continue;
        uint64_t bytes = op == MIX_ABORT ? views[i].size_bytes / 2 : views[i].size_bytes;
        payload_fill(views[i].data, bytes, payload_stream(&list.keys[i]), 0);
        c->report.bytes_written += bytes;
    }
    if (op == MIX_ABORT)
        return list_result(c, op, spw_abort(c->spaces[space], views, list.n));
    r = spw_commit(c->spaces[space], views, list.n, 0);
    for (uint32_t i = 0; r == 0 && i < list.n; i++)
        mix_expect(c, op, views[i].status, expected);
    if (r < 0)
        (void)spw_abort(c->spaces[space], views, list.n);
    return list_result(c, op, r);
}

static int store_and_sync(struct mix_client *c)
{
    struct list list;

    int r = store(c, MIX_DURABLE, MIX_STORE);
    if (r < 0)
        return r;
    choose_list(c, MIX_DURABLE, 8, false, &list);
    bool all = mix_random(c, 4) == 0;
    r = spw_sync(c->spaces[MIX_DURABLE], all ? NULL : list.keys, all ? 0 : list.n, 4 * TIMEOUT_MS);
    return r == -ENOENT ? 0 : list_result(c, MIX_SYNC, r);
}

/* ── the caller's own memory ────────────────────────────────────────────────────────────────────────────────────── */

/* Lays the blocks of a list out in the buffer, as many as fit. */
static void lay_out(struct mix_client *c, struct list *list, struct spw_iovec *iov)
{
    uint64_t at = 0;

    for (uint32_t i = 0; i < list->n; i++) {
        if (at + list->sizes[i] > MIX_BUFFER_BYTES) {
            list->n = i;
            return;
        }
        iov[i] = (struct spw_iovec){.data = c->buffer + at, .size_bytes = list->sizes[i]};
        at += round_up(list->sizes[i], 64);
    }
}

static int put(struct mix_client *c)
{
    static const int expected[] = {-EEXIST, -EINPROGRESS, -ENOSPC, -ETIMEDOUT, 0};
    struct spw_iovec iov[MIX_LIST_MAX];
    int32_t status[MIX_LIST_MAX];
    struct list list;

    choose_list(c, choose_space(c), 16, true, &list);
    lay_out(c, &list, iov);
    for (uint32_t i = 0; i < list.n; i++)
        payload_fill(iov[i].data, iov[i].size_bytes, payload_stream(&list.keys[i]), 0);
    int r = spw_put(c->spaces[list.space], list.keys, iov, list.n, 0, TIMEOUT_MS, status);
    for (uint32_t i = 0; r == 0 && i < list.n; i++) {
        mix_expect(c, MIX_PUT, status[i], expected);
        c->report.bytes_written += status[i] == 0 ? list.sizes[i] : 0;
    }
    return list_result(c, MIX_PUT, r);
}

static int get(struct mix_client *c)
{
    struct spw_iovec iov[MIX_LIST_MAX];
    int32_t status[MIX_LIST_MAX];
    struct list list;

    choose_list(c, choose_space(c), 16, true, &list);
    lay_out(c, &list, iov);
    int r = spw_get(c->spaces[list.space], list.keys, iov, list.n, 0, TIMEOUT_MS, status);
    for (uint32_t i = 0; r == 0 && i < list.n; i++) {
        mix_expect(c, MIX_GET, status[i], acquire_expected);
        if (status[i] == 0 && iov[i].size_bytes != list.sizes[i])
            mix_expect(c, MIX_GET, -EMSGSIZE, (const int[]){0});
        else if (status[i] == 0)
            mix_verify(c, &list.keys[i], iov[i].data, list.sizes[i], payload_stream(&list.keys[i]), 0);
    }
    return list_result(c, MIX_GET, r);
}

/* ── the rest ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int lookup(struct mix_client *c)
{
    static const int expected[] = {-ENOENT, -EINPROGRESS, 0};
    struct spw_hit hits[MIX_LIST_MAX];
    struct list list;

    choose_list(c, choose_space(c), MIX_LIST_MAX, true, &list);
    long r = spw_lookup(c->spaces[list.space], list.keys, list.n, mix_random(c, 2) ? SPW_CHAIN : 0, hits);
    for (uint32_t i = 0; r >= 0 && i < list.n; i++) {
        mix_expect(c, MIX_LOOKUP, hits[i].status, expected);
        if (hits[i].status == 0 && hits[i].size_bytes != list.sizes[i])
            mix_expect(c, MIX_LOOKUP, -EMSGSIZE, (const int[]){0});
    }
    return list_result(c, MIX_LOOKUP, r < 0 ? (int)r : 0);
}

/* Operations whose elements have a status and no bytes. */
static int steer(struct mix_client *c, enum mix_op op)
{
    /* -EMSGSIZE: one block in 500 has several pieces. */
    static const int expected[] = {-ENOENT, -EINPROGRESS, -EBUSY, -ENOSPC, -ETIMEDOUT, -EAGAIN, -EMSGSIZE, 0};
    int32_t status[MIX_LIST_MAX] = {0};
    struct list list;
    int r;

    choose_list(c, choose_space(c), op == MIX_DELETE || op == MIX_PIN ? 4 : MIX_LIST_MAX, true, &list);
    spw_space *space = c->spaces[list.space];
    switch (op) {
    case MIX_DELETE:
        r = spw_delete(space, list.keys, list.n, status);
        break;
    case MIX_PREFETCH:
        r = spw_prefetch(space, list.keys, list.n, 0, 1 + (uint32_t)mix_random(c, 200), status);
        break;
    case MIX_PIN:
        r = spw_pin(space, list.keys, list.n, (uint32_t)mix_random(c, 50), status);
        break;
    case MIX_ADVISE:
        r = spw_advise(space, list.keys, list.n, (enum spw_advice)(SPW_ADVICE_NOT_AGAIN + mix_random(c, 4)),
                       1 + mix_random(c, 100));
        break;
    default:
        r = spw_touch(space, list.keys, list.n, 0);
        break;
    }
    for (uint32_t i = 0; r == 0 && i < list.n; i++)
        mix_expect(c, op, status[i], expected);
    return r == -ENOENT ? 0 : list_result(c, op, r);
}

int mix_block_op(struct mix_client *c, enum mix_op op)
{
    struct spw_stat stat;

    switch (op) {
    case MIX_LOOKUP:
        return lookup(c);
    case MIX_ACQUIRE:
        return acquire(c);
    case MIX_STORE:
    case MIX_ABORT:
        return store(c, choose_space(c), op);
    case MIX_PUT:
        return put(c);
    case MIX_GET:
        return get(c);
    case MIX_SYNC:
        return store_and_sync(c);
    case MIX_CANCEL:
        return acquire_and_cancel(c);
    case MIX_STAT:
        return list_result(c, op, spw_stat(c->spaces[MIX_FIXED], &stat));
    default:
        return steer(c, op);
    }
}
