/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the looks at the engines: each is one message to every engine, which brings it what it may have and takes back
 * what it has. The answers go through balance.c, and what comes out goes along with the next look.
 *
 * With one engine there is nothing to trade: then there are looks only while a reload's smaller budget takes effect.
 * Engines answer from their own turns, so looks never hold anybody up; and what a report shows fits together: a budget
 * is raised only after the look that saw the other one's memory gone.
 */
#include "daemon/control_budget.h"

#include <errno.h>
#include <stdlib.h>

#include "daemon/balance.h"
#include "daemon/control.h"
#include "daemon/log.h"
#include "include/base/units.h"

#define NS_PER_S UINT64_C(1000000000)
#define LOOK_NS (NS_PER_S / 4)
#define LOOK_IDLE_NS (4 * NS_PER_S) /* at most, when nothing has been used since the last look */
#define SAY_FIRST_NS (5 * NS_PER_S)
#define SAY_NEXT_NS (30 * NS_PER_S)

/* A reload has made it smaller; ends when nobody holds more than that. */
struct shrink {
    bool is_on;
    uint64_t say_ns; /* not before: a word about what holds it up */
};

struct budgets {
    struct control *control;
    struct loop_timer timer;
    uint32_t n_pools, n_answers;
    bool is_looking;
    uint64_t seen, period_ns;              /* the sum of what the last look counted; until the next one */
    struct balance (*of)[TIERING_BUDGETS]; /* by pool */
    struct shrink (*shrinks)[TIERING_BUDGETS];
    struct balance_engine *engines;
    struct budget_call *calls; /* by engine */
};

static const char *const tier_names[TIERING_BUDGETS] = {"dram", "cxl", "nvme"};

static struct balance *budget_at(const struct budgets *b, uint32_t pool, uint32_t tier)
{
    return &b->of[pool][tier];
}

static void budgets_granted(const struct budgets *b, uint32_t engine, uint32_t pool, uint64_t *ret_bytes)
{
    for (uint32_t tier = 0; tier < TIERING_BUDGETS; tier++)
        ret_bytes[tier] = budget_at(b, pool, tier)->engines[engine].granted;
}

static void view_of(const struct budgets *b, uint32_t engine, uint32_t pool, uint32_t tier,
                    struct balance_view *ret_view)
{
    const struct tiering_pool_memory *m = &b->calls[engine].memory[pool];

    *ret_view = (struct balance_view){.held = m->held[tier],
                                      .used = m->used[tier],
                                      .pressure = m->pressure[tier],
                                      .uses = m->uses,
                                      .is_waiting = tier == TIERING_BUDGET_DRAM && m->waiting > 0};
}

/* --- What a reload has begun ------------------------------------------------------------------------------------- */

static void shrink_watch(struct budgets *b, uint32_t pool, uint32_t tier, const struct balance_view *views)
{
    struct shrink *shrink = &b->shrinks[pool][tier];
    const struct balance *budget = budget_at(b, pool, tier);
    const char *name = b->control->config->pools[pool].section.name;
    char text[3][UNITS_TEXT_BYTES];
    uint64_t held = 0, leased = 0, now_ns = loop_now_ns();

    if (!shrink->is_on)
        return;
    for (uint32_t e = 0; e < b->control->n_engines; e++) {
        held += views[e].held;
        leased += b->calls[e].memory[pool].leased;
    }
    if (held <= budget->total) {
        shrink->is_on = false;
        log_notice("[pool %s] %s: has %s now", name, tier_names[tier], size_print(budget->total, text[0]));
    } else if (now_ns >= shrink->say_ns) {
        shrink->say_ns = now_ns + SAY_NEXT_NS;
        log_notice("[pool %s] %s: still holds %s, %s more than it has; %s of the pool are leased", name,
                   tier_names[tier], size_print(held, text[0]), size_print(held - budget->total, text[1]),
                   size_print(leased, text[2]));
    }
}

static bool is_shrinking(const struct budgets *b)
{
    for (uint32_t pool = 0; pool < b->n_pools; pool++)
        for (uint32_t tier = 0; tier < TIERING_BUDGETS; tier++)
            if (b->shrinks[pool][tier].is_on)
                return true;
    return false;
}

static bool budgets_are_busy(const struct budgets *b)
{
    return b->control->n_engines > 1 || is_shrinking(b);
}

/* --- Looks ------------------------------------------------------------------------------------------------------- */

static void budgets_look(struct budgets *b);

/* Where nobody uses anything there is nothing to trade: looks become rare, so that an idle daemon is idle. */
static uint64_t look_period_ns(struct budgets *b)
{
    uint64_t sum = 0;

    for (uint32_t e = 0; e < b->control->n_engines; e++)
        for (uint32_t pool = 0; pool < b->n_pools; pool++)
            sum += b->calls[e].memory[pool].uses + b->calls[e].memory[pool].waiting;
    b->period_ns = sum == b->seen && !is_shrinking(b) ? MIN(2 * b->period_ns, LOOK_IDLE_NS) : LOOK_NS;
    b->seen = sum;
    return b->period_ns;
}

static void look_ended(struct budgets *b)
{
    struct balance_view views[ENGINES_MAX];
    bool changed = false;

    for (uint32_t pool = 0; pool < b->n_pools; pool++) {
        for (uint32_t tier = 0; tier < TIERING_BUDGETS; tier++) {
            for (uint32_t e = 0; e < b->control->n_engines; e++)
                view_of(b, e, pool, tier, &views[e]);
            changed |= balance_look(budget_at(b, pool, tier), views, loop_now_ns());
            shrink_watch(b, pool, tier, views);
        }
    }
    if (b->control->state != CONTROL_READY)
        return;
    if (changed)
        budgets_look(b);
    else if (budgets_are_busy(b))
        loop_timer_set(&b->control->loop, &b->timer, loop_now_ns() + look_period_ns(b));
}

static void look_answered(struct call *call)
{
    struct budgets *b = call->at_control_ctx;

    if (++b->n_answers < b->control->n_engines)
        return;
    b->is_looking = false;
    look_ended(b);
}

static void budgets_look(struct budgets *b)
{
    if (b->is_looking)
        return;
    b->is_looking = true;
    b->n_answers = 0;
    for (uint32_t e = 0; e < b->control->n_engines; e++) {
        struct budget_call *call = &b->calls[e];

        call->call.at_control = look_answered;
        call->call.at_control_ctx = b;
        call->n_pools = b->n_pools;
        for (uint32_t pool = 0; pool < b->n_pools; pool++)
            budgets_granted(b, e, pool, call->bytes[pool]);
        engine_budget(b->control->engines[e], call);
    }
}

static void budgets_timer(struct loop_timer *timer)
{
    budgets_look(container_of(timer, struct budgets, timer));
}

/* --- Beginning, changes ------------------------------------------------------------------------------------------ */

void budgets_apply(const struct control *control, uint32_t engine, uint32_t pool,
                   struct tiering_pool_config *pool_config)
{
    uint64_t granted[TIERING_BUDGETS];

    budgets_granted(control->budgets, engine, pool, granted);
    pool_config->dram_bytes = granted[TIERING_BUDGET_DRAM];
    pool_config->cxl_bytes = granted[TIERING_BUDGET_CXL];
    pool_config->nvme_bytes = granted[TIERING_BUDGET_NVME];
}

/* What the configuration gives; returns the sum of it. */
static uint64_t budget_share(struct budgets *b, uint32_t pool, uint32_t tier)
{
    struct control *control = b->control;
    uint64_t shares[ENGINES_MAX], most[ENGINES_MAX], total = 0;

    for (uint32_t e = 0; e < control->n_engines; e++) {
        struct tiering_pool_config config;

        control_pool_config(control, e, pool, &config);
        shares[e] = tier == TIERING_BUDGET_DRAM  ? config.dram_bytes
                    : tier == TIERING_BUDGET_CXL ? config.cxl_bytes
                                                 : config.nvme_bytes;
        most[e] =
            tier == TIERING_BUDGET_NVME ? control_nvme_of_engine(control, e, control_nvme_bytes(control)) : UINT64_MAX;
        total += shares[e];
    }
    balance_set(budget_at(b, pool, tier), shares, most);
    return total;
}

void budgets_reload(struct control *control)
{
    struct budgets *b = control->budgets;

    for (uint32_t pool = 0; pool < b->n_pools; pool++) {
        for (uint32_t tier = 0; tier < TIERING_BUDGETS; tier++) {
            uint64_t was = budget_at(b, pool, tier)->total, now = budget_share(b, pool, tier);

            if (now < was && tier != TIERING_BUDGET_NVME)
                b->shrinks[pool][tier] = (struct shrink){.is_on = true, .say_ns = loop_now_ns() + SAY_FIRST_NS};
        }
    }
    loop_timer_set(&control->loop, &b->timer, loop_now_ns());
}

DEFINE_CLEANUP(struct budgets *, budgets_free)

/* What the last process left there counts, too. */
static void budget_begin(struct budgets *b, uint32_t pool, uint32_t tier)
{
    uint64_t held[ENGINES_MAX];

    for (uint32_t e = 0; e < b->control->n_engines; e++) {
        struct tiering_pool_memory memory;

        tiering_pool_memory(b->control->engines[e]->tiering, pool, &memory);
        held[e] = tier == TIERING_BUDGET_NVME ? 0 : memory.held[tier];
    }
    balance_begin(budget_at(b, pool, tier), held);
}

int budgets_new(struct control *control)
{
    cleanup_(budgets_freep) struct budgets *b = calloc(1, sizeof(*b));
    uint32_t n_pools = control->config->n_pools, n = control->n_engines;

    if (!b)
        return -ENOMEM;
    b->control = control;
    b->n_pools = n_pools;
    loop_timer_init(&b->timer, budgets_timer);
    b->of = calloc(n_pools, sizeof(*b->of));
    b->shrinks = calloc(n_pools, sizeof(*b->shrinks));
    b->engines = calloc((size_t)n_pools * TIERING_BUDGETS * n, sizeof(*b->engines));
    b->calls = calloc(n, sizeof(*b->calls));
    if (!b->of || !b->shrinks || !b->engines || !b->calls)
        return -ENOMEM;
    for (uint32_t pool = 0; pool < n_pools; pool++) {
        for (uint32_t tier = 0; tier < TIERING_BUDGETS; tier++) {
            struct balance_engine *engines = &b->engines[((size_t)pool * TIERING_BUDGETS + tier) * n];

            *budget_at(b, pool, tier) =
                (struct balance){.engines = engines, .n_engines = n, .is_device = tier == TIERING_BUDGET_NVME};
            (void)budget_share(b, pool, tier);
            budget_begin(b, pool, tier);
        }
    }
    control->budgets = steal_ptr(b);
    return 0;
}

void budgets_start(struct control *control)
{
    if (budgets_are_busy(control->budgets))
        loop_timer_set(&control->loop, &control->budgets->timer, loop_now_ns() + LOOK_NS);
}

struct budgets *budgets_free(struct budgets *b)
{
    if (!b)
        return NULL;
    loop_timer_cancel(&b->timer);
    free(b->of);
    free(b->shrinks);
    free(b->engines);
    free(b->calls);
    free(b);
    return NULL;
}
