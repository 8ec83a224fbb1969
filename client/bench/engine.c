/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns one engine's buffers and figures. One thread. What is measured is the call alone: filling and checking lie
 * outside. A list never holds more than an eighth of the pool's memory, so that a small pool is not full of leases.
 */
#include "client/bench/engine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "client/bench/payload.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define TIMEOUT_MS 30000
#define PRINTED_MAX 20 /* mistakes that are shown one by one */
#define STORE_MAX 16   /* blocks that are stored at once: a prompt is computed in steps of 8 Ki tokens, say */

int engine_init(struct engine *engine, spw_pool *pool, enum engine_mode mode, uint64_t seed, uint64_t block_bytes,
                uint64_t dram_bytes, uint32_t longest_chain)
{
    struct spw_space_options options = {.item_bytes = block_bytes, .class_id = SPW_CLASS_KV};
    uint64_t list_max = dram_bytes / 8 / block_bytes, digest[2] = {payload_mix(seed, block_bytes), block_bytes};

    *engine = (struct engine){.mode = mode, .seed = seed, .block_bytes = block_bytes, .timeout_ms = TIMEOUT_MS};
    engine->list_max = (uint32_t)(list_max < 1 ? 1 : MIN(list_max, (uint64_t)SPW_LIST_MAX));
    engine->stats = calloc(1, sizeof(*engine->stats));
    engine->keys = calloc(longest_chain, sizeof(*engine->keys));
    engine->missing = calloc(longest_chain, sizeof(*engine->missing));
    engine->hits = calloc(longest_chain, sizeof(*engine->hits));
    engine->views = calloc(longest_chain, sizeof(*engine->views));
    int r = -ENOMEM;
    if (engine->stats && engine->keys && engine->missing && engine->hits && engine->views) {
        memcpy(options.digest, digest, sizeof(digest));
        r = spw_space_open(pool, &options, &engine->space);
        if (r < 0)
            fprintf(stderr, "spillbench: cannot open the space: %s\n", spw_error_text());
    }
    if (r < 0)
        engine_deinit(engine);
    return r;
}

void engine_deinit(struct engine *engine)
{
    free(engine->stats);
    free(engine->keys);
    free(engine->missing);
    free(engine->hits);
    free(engine->views);
    *engine = (struct engine){0};
}

static int call_failed(const char *what, int r)
{
    fprintf(stderr, "spillbench: %s: %s (%s)\n", what, spw_error_text(), strerrorname_np(-r));
    return r;
}

static void block_failed(struct engine *e, const char *what, const struct spw_view *v)
{
    if (e->stats->errors++ < PRINTED_MAX)
        fprintf(stderr, "spillbench: %s of a block: %s (%s)\n", what, strerrorname_np(-v->status),
                spw_limit_text(v->detail));
}

static void verify(struct engine *e, const struct spw_key *key, const struct spw_view *v)
{
    uint64_t stream = payload_stream(key);
    uint64_t wrong = v->size_bytes == e->block_bytes ? payload_check(v->data, v->size_bytes, stream, 0) : 0;

    e->stats->bytes_verified += v->size_bytes;
    if (likely(wrong == PAYLOAD_OK))
        return;
    if (e->stats->wrong_blocks++ >= PRINTED_MAX)
        return;
    if (v->size_bytes != e->block_bytes)
        fprintf(stderr, "WRONG SIZE: %zu bytes instead of %llu\n", v->size_bytes, (unsigned long long)e->block_bytes);
    else
        payload_report(key, v->data, v->size_bytes, stream, 0, wrong);
}

/* What came of one acquired view. True if we have its bytes. */
static bool account(struct engine *e, const struct spw_key *key, const struct spw_view *v, bool promised)
{
    struct engine_stats *s = e->stats;

    if (v->status == 0) {
        bool fetched = v->flags & SPW_RESULT_FETCHED;

        *(fetched ? &s->hits_nvme : &s->hits_dram) += 1;
        *(fetched ? &s->bytes_nvme : &s->bytes_dram) += v->size_bytes;
        verify(e, key, v);
        return true;
    }
    s->vanished += promised && v->status == -ENOENT;
    if (v->status != -ENOENT && v->status != -ENOSPC)
        block_failed(e, "acquire", v);
    return false;
}

/* Acquires, checks and releases keys[0..n); those that were not there are appended to `missing`. */
static int acquire_list(struct engine *e, const struct spw_key *keys, const struct spw_hit *hits, uint32_t n,
                        uint32_t *n_missing)
{
    bool fetched = false;
    uint64_t start_ns = now_ns();
    int r = spw_acquire(e->space, keys, n, SPW_CHAIN, e->timeout_ms, e->views);

    if (r < 0)
        return call_failed("acquire", r);
    uint64_t took_ns = now_ns() - start_ns;
    uint32_t n_got = 0;
    for (uint32_t i = 0; i < n; i++) {
        fetched |= e->views[i].status == 0 && (e->views[i].flags & SPW_RESULT_FETCHED);
        if (account(e, &keys[i], &e->views[i], hits[i].status == 0))
            n_got++;
        else
            e->missing[(*n_missing)++] = keys[i];
    }
    if (n_got == 0)
        return 0;
    hist_add(fetched ? &e->stats->acquire_nvme : &e->stats->acquire_dram, took_ns);
    start_ns = now_ns();
    r = spw_release(e->space, e->views, n, 0);
    if (r < 0)
        return call_failed("release", r);
    hist_add(&e->stats->release, now_ns() - start_ns);
    return 0;
}

/* Fills what was reserved, and moves those views to the front; the others are there already, or have no room. */
static uint32_t fill_reserved(struct engine *e, const struct spw_key *keys, uint32_t n)
{
    struct engine_stats *s = e->stats;
    uint32_t n_reserved = 0;

    for (uint32_t i = 0; i < n; i++) {
        const struct spw_view v = e->views[i];

        if (v.status == 0) {
            payload_fill(v.data, v.size_bytes, payload_stream(&keys[i]), 0);
            e->views[n_reserved++] = v;
        } else if (v.status == -EEXIST || v.status == -EINPROGRESS) {
            s->computed++;
            s->behind_gap++;
        } else {
            s->not_stored++;
            if (v.status != -ENOSPC)
                block_failed(e, "reserve", &v);
        }
    }
    return n_reserved;
}

/* Computes keys[0..n) and stores them, one step's worth. */
static int store_step(struct engine *e, const struct spw_key *keys, uint32_t n)
{
    struct engine_stats *s = e->stats;
    uint64_t start_ns = now_ns();
    int r = spw_reserve(e->space, keys, NULL, n, SPW_CHAIN, e->timeout_ms, e->views);

    if (r < 0)
        return call_failed("reserve", r);
    hist_add(&s->reserve, now_ns() - start_ns);
    uint32_t n_reserved = fill_reserved(e, keys, n);
    if (n_reserved == 0)
        return 0;
    start_ns = now_ns();
    r = spw_commit(e->space, e->views, n_reserved, SPW_CHAIN);
    if (r < 0)
        return call_failed("commit", r);
    hist_add(&s->commit, now_ns() - start_ns);
    for (uint32_t i = 0; i < n_reserved; i++) {
        const struct spw_view *v = &e->views[i];

        if (v->status == 0 || v->status == -EEXIST) {
            s->computed++;
            s->bytes_committed += e->block_bytes;
        } else {
            s->not_stored++;
            block_failed(e, "commit", v);
        }
    }
    return 0;
}

static int store_list(struct engine *e, const struct spw_key *keys, uint32_t n)
{
    uint32_t step = MIN(e->list_max, (uint32_t)STORE_MAX);
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < n; i += step)
        r = store_step(e, keys + i, MIN(n - i, step));
    return r;
}

/* In references' order, list by list: what is there is used, what is not there is stored. */
static int request_each(struct engine *e, uint32_t n)
{
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < n; i += e->list_max) {
        uint32_t n_missing = 0;

        r = acquire_list(e, e->keys + i, e->hits + i, MIN(n - i, e->list_max), &n_missing);
        if (r == 0 && n_missing > 0)
            r = store_list(e, e->missing, n_missing);
    }
    return r;
}

static int request_prefix(struct engine *e, uint32_t prefix, uint32_t n)
{
    uint32_t n_missing = 0;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < prefix; i += e->list_max)
        r = acquire_list(e, e->keys + i, e->hits + i, MIN(prefix - i, e->list_max), &n_missing);
    for (uint32_t i = prefix; i < n; i++)
        e->missing[n_missing++] = e->keys[i];
    return r == 0 ? store_list(e, e->missing, n_missing) : r;
}

int engine_request(struct engine *e, const uint64_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        payload_key(e->seed, ids[i], &e->keys[i]);
    e->stats->requests++;
    e->stats->blocks += n;
    if (e->mode == ENGINE_BLIND) {
        for (uint32_t i = 0; i < n; i++)
            e->hits[i] = (struct spw_hit){.status = -ENOENT};
        return request_each(e, n);
    }
    uint64_t start_ns = now_ns();
    long prefix = spw_lookup(e->space, e->keys, n, SPW_CHAIN, e->hits);
    if (prefix < 0)
        return call_failed("lookup", (int)prefix);
    hist_add(&e->stats->lookup, now_ns() - start_ns);
    return e->mode == ENGINE_EACH ? request_each(e, n) : request_prefix(e, (uint32_t)prefix, n);
}
