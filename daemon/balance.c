/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the arithmetic of budgets that change hands. Control thread.
 *
 * Every engine has a share by right. It is under pressure if room was wanted and there was none while it held all that
 * it was granted. Then, in steps of an eighth of a share:
 * - below its share, it gets back what another has above its own, whether that one likes it or not;
 * - at its share or above, it gets what another does not use: what is free there, or what nobody has used for a while.
 * One trade at a time, and not too soon after the last. It is over when the giver holds no more than it is granted and
 * the taker was granted the rest; a giver that cannot let go (leases, say) keeps it, and is left alone for a while.
 */
#include "daemon/balance.h"

#define NS_PER_S UINT64_C(1000000000)
#define IDLE_NS (60 * NS_PER_S)
#define TRADE_NS_MAX (10 * NS_PER_S)
#define PAUSE_NS (30 * NS_PER_S)
#define TRADE_EVERY_NS (NS_PER_S / 20) /* a look that changes something is followed by another at once */
#define ALIGN_BYTES (2 * MIB)          /* whole hugepages */
#define DEVICE_SLACK_BYTES (2 * SEGMENT_BYTES_MAX)

static uint64_t aligned(uint64_t bytes)
{
    return bytes / ALIGN_BYTES * ALIGN_BYTES;
}

static uint64_t step_bytes(const struct balance_engine *e)
{
    return MAX(aligned(e->share / 8), BUDGET_STEP_BYTES_MIN);
}

/* What a giver keeps, so that it can begin again. */
static uint64_t least_bytes(const struct balance_engine *e)
{
    return MIN(step_bytes(e), e->share / 2);
}

uint64_t balance_most_bytes(uint64_t total_bytes, uint32_t n_engines)
{
    const struct balance_engine other = {.share = total_bytes / n_engines};

    return total_bytes - (n_engines - 1) * least_bytes(&other);
}

/* On a device segments are taken as they are needed: pressed is who has no more left. */
static bool device_is_pressed(uint64_t used, uint64_t granted)
{
    return used + MAX(granted / 16, DEVICE_SLACK_BYTES) > granted;
}

void balance_set(struct balance *b, const uint64_t *shares, const uint64_t *most)
{
    b->total = 0;
    b->trade.is_on = false;
    for (uint32_t i = 0; i < b->n_engines; i++) {
        b->engines[i].share = b->engines[i].target = shares[i];
        b->engines[i].most = most[i];
        b->total += shares[i];
    }
}

static void balance_observe(struct balance *b, const struct balance_view *views, uint64_t now_ns)
{
    for (uint32_t i = 0; i < b->n_engines; i++) {
        struct balance_engine *e = &b->engines[i];
        const struct balance_view *v = &views[i];
        bool is_full = v->held + ALIGN_BYTES > e->granted;

        if (b->is_device)
            e->is_pressed = device_is_pressed(v->used, e->granted);
        else
            e->is_pressed = is_full && (v->pressure != e->pressure || v->is_waiting);
        if (v->uses != e->uses || e->used_ns == 0)
            e->used_ns = now_ns;
        /* What lies on a device lies there until it is overwritten: not using it gives nothing away. */
        e->is_idle = !b->is_device && now_ns - e->used_ns >= IDLE_NS;
        e->pressure = v->pressure;
        e->uses = v->uses;
    }
}

/* Towards the targets: less at once, more as it becomes free. */
static bool balance_grant(struct balance *b, const struct balance_view *views)
{
    uint64_t taken = 0;
    bool changed = false;

    for (uint32_t i = 0; i < b->n_engines; i++) {
        struct balance_engine *e = &b->engines[i];

        changed |= e->target < e->granted;
        e->granted = MIN(e->granted, e->target);
        taken += MAX(e->granted, views[i].held);
    }
    for (uint32_t i = 0; i < b->n_engines; i++) {
        struct balance_engine *e = &b->engines[i];
        uint64_t others = taken - MAX(e->granted, views[i].held);
        uint64_t room = b->total > others ? b->total - others : 0;
        uint64_t granted = room >= e->target ? e->target : aligned(room);

        if (granted <= e->granted)
            continue;
        e->granted = granted;
        taken = others + MAX(granted, views[i].held);
        changed = true;
    }
    return changed;
}

bool balance_is_settled(const struct balance *b, const struct balance_view *views)
{
    for (uint32_t i = 0; i < b->n_engines; i++) {
        const struct balance_engine *e = &b->engines[i];

        if (e->granted != e->target || views[i].held > e->granted)
            return false;
    }
    return true;
}

/* --- Trades ------------------------------------------------------------------------------------------------------ */

static void trade_watch(struct balance *b, const struct balance_view *views, uint64_t now_ns)
{
    struct balance_trade *trade = &b->trade;

    if (!trade->is_on)
        return;
    if (balance_is_settled(b, views)) {
        trade->is_on = false;
        return;
    }
    if (now_ns - trade->since_ns < TRADE_NS_MAX || views[trade->from].held <= b->engines[trade->from].granted)
        return;
    b->engines[trade->from].target += trade->bytes;
    b->engines[trade->to].target -= trade->bytes;
    b->trade_ns = now_ns + PAUSE_NS;
    trade->is_on = false;
}

/* Of those under pressure the one that has least for its share. UINT32_MAX: nobody. */
static uint32_t trade_taker(const struct balance *b)
{
    uint32_t best = UINT32_MAX;
    double best_part = 0;

    for (uint32_t i = 0; i < b->n_engines; i++) {
        const struct balance_engine *e = &b->engines[i];
        double part = (double)e->target / (double)MAX(e->share, UINT64_C(1));

        if (!e->is_pressed || e->target >= e->most || (best != UINT32_MAX && part >= best_part))
            continue;
        best = i;
        best_part = part;
    }
    return best;
}

/* What this engine can give to one that is, or is not, below its share. Never so much that it would want it back. */
static uint64_t trade_offer(const struct balance *b, const struct balance_engine *e, const struct balance_view *v,
                            bool is_below)
{
    uint64_t step = step_bytes(e), least = least_bytes(e);

    if (is_below)
        return e->target > e->share ? MIN(e->target - e->share, step) : 0;
    if (e->is_pressed || e->target <= least)
        return 0;
    /* Two steps free, so that what is left is not full at once. */
    if (!e->is_idle && v->used + 2 * MIN(step, e->share / 4) > e->target)
        return 0;
    uint64_t offer = MIN(e->target - least, step);

    return b->is_device && device_is_pressed(v->used, e->target - offer) ? 0 : offer;
}

static bool trade_begin(struct balance *b, const struct balance_view *views, uint64_t now_ns)
{
    uint32_t to = trade_taker(b), from = UINT32_MAX;
    uint64_t best = 0;

    if (to == UINT32_MAX)
        return false;
    struct balance_engine *taker = &b->engines[to];
    bool is_below = taker->target < taker->share;
    uint64_t want = MIN(step_bytes(taker), (is_below ? taker->share : taker->most) - taker->target);

    for (uint32_t i = 0; i < b->n_engines; i++) {
        uint64_t offer = i == to ? 0 : aligned(MIN(trade_offer(b, &b->engines[i], &views[i], is_below), want));

        if (offer > best) {
            best = offer;
            from = i;
        }
    }
    if (from == UINT32_MAX)
        return false;
    b->engines[from].target -= best;
    taker->target += best;
    b->trade = (struct balance_trade){.is_on = true, .from = from, .to = to, .bytes = best, .since_ns = now_ns};
    b->trade_ns = now_ns + TRADE_EVERY_NS;
    return true;
}

void balance_begin(struct balance *b, const uint64_t *held)
{
    uint64_t held_sum = 0, excess = 0;

    for (uint32_t i = 0; i < b->n_engines; i++)
        held_sum += held[i];
    for (uint32_t i = 0; i < b->n_engines; i++) {
        struct balance_engine *e = &b->engines[i];

        e->target = held_sum <= b->total ? MAX(e->share, held[i]) : e->share;
        excess += e->target - e->share;
    }
    for (uint32_t i = 0; i < b->n_engines; i++) {
        struct balance_engine *e = &b->engines[i];
        uint64_t less = e->target > held[i] ? MIN(excess, e->target - held[i]) : 0;

        excess -= less;
        e->target -= less;
        e->granted = e->target;
    }
}

bool balance_look(struct balance *b, const struct balance_view *views, uint64_t now_ns)
{
    balance_observe(b, views, now_ns);
    trade_watch(b, views, now_ns);
    if (!b->trade.is_on && now_ns >= b->trade_ns && balance_is_settled(b, views))
        (void)trade_begin(b, views, now_ns);
    return balance_grant(b, views);
}
