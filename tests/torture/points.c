/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which kill point comes next, from what the daemons before have passed: half of the time one that has not fired yet, if
 * there is any, else one of those that were tried least. Of how many passings a point usually has in a run, one is taken,
 * half of the time an early one. What comes only in a stop, a reload or on a fresh device is tried where that is.
 */
#include <string.h>

#include "tests/torture/torture.h"

#define EARLY 20

/* What a load does not reach, with the reason. */
struct excuse {
    const char *name, *reason;
    enum { OF_BOTH, OF_HOT, OF_COLD } of;
};

static const struct excuse excused[] = {
    {"get.sums_load", ": only who reads a part of a piece from a segment that was found at the start needs its sums",
     OF_BOTH},
    {"get.sums_there", ": the same", OF_BOTH},
    {"listener.path", ": the socket is the service manager's", OF_HOT},
    {"listener.socket", ": the same", OF_HOT},
    {"move.undone", ": only a session that leaves for the next process gives its COMMIT up so", OF_COLD},
    {"release.torn",
     ": a client must die within a write to a piece that no device has; passed in --hot, never here in 8,500 cycles",
     OF_COLD},
};

static uint64_t passings(const struct kill_entry *e)
{
    return e->total + e->passed;
}

/* By how their names begin. */
static bool begins_with_any(const char *name, const char *const *parts)
{
    for (; *parts; parts++)
        if (strncmp(name, *parts, strlen(*parts)) == 0)
            return true;
    return false;
}

static enum point_needs needs_of(const char *name)
{
    static const char *const stops[] = {"stop.",        "store.close", "control.stop",  "control.engine_",
                                        "engine.drain", "engine.stop", "engine.closed", NULL};
    static const char *const reloads[] = {"control.reload", "engine.budget", "chunk.give_back", "grower.discarded",
                                          NULL};
    static const char *const fresh[] = {"space.new", "store.space", "log.space", NULL};
    static const char *const orphans[] = {"request.drop", "release.torn", NULL};

    return begins_with_any(name, stops)     ? POINT_NEEDS_STOP
           : begins_with_any(name, reloads) ? POINT_NEEDS_RELOAD
           : begins_with_any(name, fresh)   ? POINT_NEEDS_FRESH
           : begins_with_any(name, orphans) ? POINT_NEEDS_ORPHAN
                                            : POINT_NEEDS_NOTHING;
}

/* NULL: there is none of that kind. */
static struct kill_entry *choose(const struct t_place *p, struct t_random *random, bool unfired, bool is_fresh)
{
    uint64_t least = UINT64_MAX, n_least = 0;
    struct kill_entry *chosen = NULL;

    for (uint32_t i = 0; i < p->table->n; i++) {
        struct kill_entry *e = &p->table->at[i];
        uint64_t rank = unfired ? 0 : e->tried;

        if ((unfired && e->fired > 0) || (needs_of(e->name) == POINT_NEEDS_FRESH) != is_fresh || rank > least)
            continue;
        n_least = rank < least ? 0 : n_least;
        least = rank;
        if (random_below(random, ++n_least) == 0)
            chosen = e;
    }
    return chosen;
}

bool points_choose(const struct t_place *p, struct t_random *random, bool is_fresh, struct t_point *ret_point)
{
    struct kill_entry *e = random_percent(random, 50) ? choose(p, random, true, is_fresh) : NULL;

    if (!e)
        e = choose(p, random, false, is_fresh);
    if (!e)
        return false;
    uint64_t usual = MAX(passings(e) / (p->oracle->counts.starts + 1), UINT64_C(1));

    ret_point->needs = needs_of(e->name);
    ret_point->is_rare = passings(e) < p->oracle->counts.starts;
    if (random_percent(random, 50))
        usual = MIN(usual, (uint64_t)EARLY);
    e->tried++;
    snprintf(ret_point->at, sizeof(ret_point->at), "%s:%llu", e->name,
             (unsigned long long)(1 + random_below(random, usual)));
    return true;
}

uint32_t points_fired(const struct t_place *p, uint32_t *ret_n)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < p->table->n; i++)
        n += p->table->at[i].fired > 0;
    *ret_n = p->table->n;
    return n;
}

static const struct excuse *excuse_of(const struct t_place *p, const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(excused); i++)
        if (strcmp(excused[i].name, name) == 0 && excused[i].of != (p->hot ? OF_COLD : OF_HOT))
            return &excused[i];
    return NULL;
}

uint32_t points_missed(const struct t_place *p, FILE *to)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < p->table->n; i++) {
        const struct kill_entry *e = &p->table->at[i];

        if (e->fired > 0 || excuse_of(p, e->name))
            continue;
        fprintf(to, "FAILED: no daemon has died at %s (passed %llu times)\n", e->name, (unsigned long long)passings(e));
        n++;
    }
    return n;
}

void points_print(const struct t_place *p, FILE *to, bool all)
{
    for (uint32_t i = 0; i < p->table->n; i++) {
        const struct kill_entry *e = &p->table->at[i];
        const struct excuse *excuse = e->fired > 0 ? NULL : excuse_of(p, e->name);

        if (all || e->fired == 0)
            fprintf(to, "  %-28s fired %6llu, passed %10llu%s%s\n", e->name, (unsigned long long)e->fired,
                    (unsigned long long)passings(e), e->fired > 0 ? "" : "  NEVER FIRED", excuse ? excuse->reason : "");
    }
}
