/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the rules, and those requests that one of them has hit: each has a row in which its owner's done() waits, so nothing is
 * kept in the request itself. The request goes to the backend behind in any case: a write that fails may well be on the device,
 * as with a real one. Without a free row it goes through unharmed. Engine thread only.
 */
#include "io/inject.h"

#include <errno.h>
#include <stdlib.h>

#include "include/base/mix.h"

const char *const inject_names[INJECT_WHATS] = {"eio", "latency", "corrupt", "flush-fail"};

struct victim {
    struct io_blk *blk; /* NULL: the row is free */
    void (*done)(struct io_blk *blk);
    uint8_t what;
    bool is_held; /* it has ended, and waits for its time */
    uint64_t latency_ns, ends_ns;
};

struct inject {
    struct io_backend be;
    struct io_backend *behind;
    void *(*address)(void *ctx, struct io_buf buf, uint64_t len_bytes);
    void *ctx;
    uint64_t random, now_ns;
    uint32_t n_rules, n_victims;
    struct inject_rule rules[INJECT_RULES_MAX];
    struct victim victims[INJECT_VICTIMS_MAX];
};

static struct inject *inject_of(struct io_backend *be)
{
    return container_of(be, struct inject, be);
}

/* done() has no other way to find us: an engine has one of these, and is a thread. */
static _Thread_local struct inject *mine;

/* --- Hit or not ------------------------------------------------------------------------------------------------------- */

static bool is_about(const struct inject_rule *rule, const struct io_blk *blk)
{
    if (rule->dev != blk->dev)
        return false;
    switch ((enum inject_what)rule->what) {
    case INJECT_EIO:
        return blk->op != IO_BLK_FLUSH;
    case INJECT_LATENCY:
        return true;
    case INJECT_CORRUPT:
        return blk->op == IO_BLK_READ;
    case INJECT_FLUSH_FAIL:
        return blk->op == IO_BLK_FLUSH;
    case INJECT_WHATS:
        break;
    }
    return false;
}

static void rule_remove(struct inject *inject, uint32_t i)
{
    inject->n_rules--;
    for (; i < inject->n_rules; i++)
        inject->rules[i] = inject->rules[i + 1];
}

/* The first rule that hits it, which then counts. */
static bool rules_hit(struct inject *inject, const struct io_blk *blk, struct inject_rule *ret_rule)
{
    for (uint32_t i = 0; i < inject->n_rules; i++) {
        struct inject_rule *rule = &inject->rules[i];

        if (!is_about(rule, blk) || splitmix64_next(&inject->random) % INJECT_MILLION >= rule->millionths)
            continue;
        rule->n_done++;
        *ret_rule = *rule;
        if (rule->count > 0 && --rule->count == 0)
            rule_remove(inject, i);
        return true;
    }
    return false;
}

/* --- Victims ---------------------------------------------------------------------------------------------------------- */

static void corrupt(struct inject *inject, const struct io_blk *blk)
{
    uint8_t *bytes = blk->result > 0 ? inject->address(inject->ctx, blk->buf, (uint64_t)blk->result) : NULL;
    uint64_t r = splitmix64_next(&inject->random);

    if (bytes)
        bytes[r % (uint64_t)blk->result] ^= (uint8_t)(1U << (r >> 61));
}

static void victim_end(struct inject *inject, struct victim *v)
{
    struct io_blk *blk = v->blk;

    blk->done = v->done; /* its owner may submit it again from there */
    v->blk = NULL;
    inject->n_victims--;
    blk->done(blk);
}

static void victim_done(struct io_blk *blk)
{
    struct inject *inject = mine;
    struct victim *v = inject->victims;

    while (v->blk != blk)
        v++;
    switch ((enum inject_what)v->what) {
    case INJECT_EIO:
    case INJECT_FLUSH_FAIL:
        blk->result = -EIO;
        break;
    case INJECT_CORRUPT:
        corrupt(inject, blk);
        break;
    case INJECT_LATENCY:
        v->is_held = true;
        v->ends_ns = inject->now_ns + v->latency_ns;
        return;
    case INJECT_WHATS:
        break;
    }
    victim_end(inject, v);
}

static void victim_begin(struct inject *inject, struct io_blk *blk, const struct inject_rule *rule)
{
    struct victim *v = inject->victims;

    while (v->blk)
        v++;
    *v = (struct victim){.blk = blk, .done = blk->done, .what = rule->what, .latency_ns = rule->latency_ns};
    inject->n_victims++;
    blk->done = victim_done;
    mine = inject;
}

uint64_t inject_tick(struct inject *inject, uint64_t now_ns)
{
    uint64_t next_ns = UINT64_MAX;

    inject->now_ns = now_ns;
    if (inject->n_victims == 0)
        return next_ns;
    for (uint32_t i = 0; i < INJECT_VICTIMS_MAX; i++) {
        struct victim *v = &inject->victims[i];

        if (!v->blk || !v->is_held)
            continue;
        if (v->ends_ns <= now_ns)
            victim_end(inject, v);
        else
            next_ns = MIN(next_ns, v->ends_ns);
    }
    return next_ns;
}

/* --- The backend ------------------------------------------------------------------------------------------------------ */

static void inject_blk_submit(struct io_backend *be, struct io_blk *blk)
{
    struct inject *inject = inject_of(be);
    struct inject_rule rule;

    if (inject->n_rules > 0 && inject->n_victims < INJECT_VICTIMS_MAX && rules_hit(inject, blk, &rule))
        victim_begin(inject, blk, &rule);
    inject->behind->ops->blk_submit(inject->behind, blk);
}

static void inject_blk_urge(struct io_backend *be, struct io_blk *blk)
{
    inject_of(be)->behind->ops->blk_urge(inject_of(be)->behind, blk);
}

static void inject_work_submit(struct io_backend *be, struct io_work *work)
{
    inject_of(be)->behind->ops->work_submit(inject_of(be)->behind, work);
}

static void inject_chunk_request(struct io_backend *be, struct io_chunk *chunk)
{
    inject_of(be)->behind->ops->chunk_request(inject_of(be)->behind, chunk);
}

static uint64_t inject_chunk_survived(struct io_backend *be, uint32_t region)
{
    return inject_of(be)->behind->ops->chunk_survived(inject_of(be)->behind, region);
}

static void inject_chunk_close(struct io_backend *be, uint32_t region)
{
    inject_of(be)->behind->ops->chunk_close(inject_of(be)->behind, region);
}

static void inject_dma_submit(struct io_backend *be, struct io_dma *dma)
{
    inject_of(be)->behind->ops->dma_submit(inject_of(be)->behind, dma);
}

static int inject_bounce_alloc(struct io_backend *be, uint64_t size_bytes, struct io_buf *ret_buf, void **ret_mem)
{
    return inject_of(be)->behind->ops->bounce_alloc(inject_of(be)->behind, size_bytes, ret_buf, ret_mem);
}

static void inject_records_touch(struct io_backend *be, void *mem, uint64_t size_bytes)
{
    inject_of(be)->behind->ops->records_touch(inject_of(be)->behind, mem, size_bytes);
}

static int inject_blk_now(struct io_backend *be, enum io_blk_op op, uint32_t dev, uint64_t off_bytes, void *mem,
                          uint64_t len_bytes)
{
    return inject_of(be)->behind->ops->blk_now(inject_of(be)->behind, op, dev, off_bytes, mem, len_bytes);
}

static const struct io_backend_ops inject_ops = {
    .blk_submit = inject_blk_submit,
    .blk_urge = inject_blk_urge,
    .work_submit = inject_work_submit,
    .chunk_request = inject_chunk_request,
    .chunk_survived = inject_chunk_survived,
    .chunk_close = inject_chunk_close,
    .dma_submit = inject_dma_submit,
    .bounce_alloc = inject_bounce_alloc,
    .records_touch = inject_records_touch,
    .blk_now = inject_blk_now,
};

/* --- Rules ------------------------------------------------------------------------------------------------------------ */

int inject_new(struct io_backend *behind, void *(*address)(void *ctx, struct io_buf buf, uint64_t len_bytes), void *ctx,
               uint64_t seed, struct inject **ret_inject)
{
    struct inject *inject = calloc(1, sizeof(*inject));

    if (!inject)
        return -ENOMEM;
    inject->be.ops = &inject_ops;
    inject->behind = behind;
    inject->address = address;
    inject->ctx = ctx;
    inject->random = seed;
    *ret_inject = inject;
    return 0;
}

struct inject *inject_free(struct inject *inject)
{
    free(inject);
    return NULL;
}

struct io_backend *inject_backend(struct inject *inject)
{
    return &inject->be;
}

int inject_add(struct inject *inject, const struct inject_rule *rule)
{
    assert(rule->what < INJECT_WHATS);
    if (inject->n_rules == INJECT_RULES_MAX)
        return -ENOSPC;
    inject->rules[inject->n_rules++] = *rule;
    return 0;
}

void inject_clear(struct inject *inject)
{
    inject->n_rules = 0;
    for (uint32_t i = 0; i < INJECT_VICTIMS_MAX; i++)
        inject->victims[i].latency_ns = inject->victims[i].ends_ns = 0;
}

uint32_t inject_list(const struct inject *inject, struct inject_rule *ret_rules)
{
    for (uint32_t i = 0; i < inject->n_rules; i++)
        ret_rules[i] = inject->rules[i];
    return inject->n_rules;
}
