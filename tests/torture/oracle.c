/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What may be there after a death, from two things: what the last check has found, and what clients began and had
 * acknowledged since. Each client changes keys and tensors of its own, one call at a time, so its journal is their
 * history; only reads cross.
 *
 * A key of a durable space: what the last acknowledged SYNC covered, or anything that was begun after it. A key of a
 * cache: anything that was begun since the check, or nothing. What a check has found stays the oldest that there may be:
 * it was read from the device, and what a key was before that is gone for good. Nothing is found of a cache also where it
 * was forgotten a moment ago, so then all that there may have been stays possible. A version whose call failed was never
 * there.
 *
 * A set of tensors: as at the last acknowledged SYNC of the set, or as at one that was begun later; all stripes alike.
 *
 * Where memory survives, everything that was acknowledged is there, but the journal goes on: a later loss of memory goes back
 * to what SYNCs promised. What a check finds then is an event of its own, after which nothing before it may be there.
 */
#include <string.h>

#include "include/base/atomic.h"
#include "tests/torture/torture.h"

/* --- Keys -------------------------------------------------------------------------------------------------------------- */

struct history {
    uint32_t states[T_STATES_MAX];
    uint32_t n;
    uint32_t acked; /* the last one of which the client was told */
};

static bool event_is_of(const struct t_event *e, enum t_kind kind, uint32_t key)
{
    return e->op <= T_FOUND && e->kind == kind && (e->key == key || e->key == T_KEYS);
}

static bool is_acked(const struct t_event *e, uint64_t cut)
{
    return e->outcome == T_DONE && e->after <= cut;
}

static void history_of(const struct t_client *c, enum t_kind kind, uint32_t key, uint64_t cut, struct history *h)
{
    const struct t_key *k = &c->keys[kind][key];
    uint32_t n_events = load_acquire(&c->n_events);

    *h = (struct history){.n = k->n_forgotten + 1, .acked = k->n_forgotten};
    memcpy(h->states, k->forgotten, k->n_forgotten * sizeof(*h->states));
    h->states[k->n_forgotten] = k->seen;
    for (uint32_t i = 0; i < n_events; i++) {
        const struct t_event *e = &c->events[i];

        if (!event_is_of(e, kind, key) || e->before > cut || e->outcome == T_FAILED)
            continue;
        if (e->op == T_SYNC_KEYS) {
            if (!is_acked(e, cut))
                continue;
            h->states[0] = h->states[h->n - 1];
            h->n = 1;
            h->acked = 0;
            continue;
        }
        if (h->n == T_STATES_MAX)
            torture_fail("more changes between two SYNCs than the oracle remembers");
        h->states[h->n++] = e->op == T_DELETE ? 0 : e->version;
        if (is_acked(e, cut))
            h->acked = h->n - 1;
    }
}

bool oracle_key_may_be(const struct t_client *c, enum t_kind kind, uint32_t key, uint64_t cut, bool all,
                       uint32_t version)
{
    struct history h;

    history_of(c, kind, key, cut, &h);
    if (kind == T_CACHE && version == 0)
        return true;
    for (uint32_t i = all ? h.acked : 0; i < h.n; i++)
        if (h.states[i] == version)
            return true;
    return false;
}

uint32_t oracle_key_last(const struct t_client *c, enum t_kind kind, uint32_t key)
{
    struct history h;

    history_of(c, kind, key, T_NOW, &h);
    return h.states[h.acked];
}

const char *oracle_key_tells(const struct t_client *c, enum t_kind kind, uint32_t key, uint64_t cut)
{
    static char text[1024];
    struct history h;
    size_t at = 0;

    history_of(c, kind, key, cut, &h);
    for (uint32_t i = 0; i < h.n && at < sizeof(text) - 32; i++)
        at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%u", i ? ", " : "", h.states[i]);
    snprintf(text + at, sizeof(text) - at, " (acknowledged: %u)", h.states[h.acked]);
    return text;
}

/* --- Sets -------------------------------------------------------------------------------------------------------------- */

static bool same_set(const uint32_t a[static T_STRIPES], const uint32_t b[static T_STRIPES])
{
    return memcmp(a, b, T_STRIPES * sizeof(*a)) == 0;
}

/* Walks the set's history: `found` is whether it was as asked at a time to which a crash may go back. */
bool oracle_set_may_be(const struct t_client *c, enum t_group group, uint64_t cut, bool all,
                       const uint32_t stripes[static T_STRIPES])
{
    uint32_t now[T_STRIPES], n_events = load_acquire(&c->n_events);
    bool found = same_set(c->sets[group].seen, stripes);

    memcpy(now, c->sets[group].seen, sizeof(now));
    for (uint32_t i = 0; i < n_events; i++) {
        const struct t_event *e = &c->events[i];

        if (e->op < T_WRITE || e->kind != group || e->before > cut || e->outcome == T_FAILED)
            continue;
        if (e->op != T_SYNC_SET) {
            for (uint32_t s = e->stripe; s < e->stripe + e->n_stripes; s++)
                now[s] = e->version;
            if (all && is_acked(e, cut))
                found = same_set(now, stripes);
        } else if (is_acked(e, cut)) {
            found = same_set(now, stripes);
        } else {
            found = found || same_set(now, stripes);
        }
    }
    /* The last write may have been under way: with memory that survives, stripe by stripe. */
    return found || (all && same_set(now, stripes));
}

/* --- The journal ------------------------------------------------------------------------------------------------------- */

struct t_event *oracle_begin(struct t_oracle *o, struct t_client *c, const struct t_event *what)
{
    struct t_event *e = &c->events[c->n_events];

    *e = *what;
    e->outcome = T_BEGUN;
    e->after = UINT64_MAX;
    e->before = load_acquire(&o->log_position);
    store_release(&c->n_events, c->n_events + 1); /* pairs with the acquire of who reads the journal */
    return e;
}

void oracle_end(struct t_oracle *o, struct t_event *event, enum t_outcome outcome)
{
    event->after = load_acquire(&o->log_position);
    store_release(&event->outcome, (uint8_t)outcome);
}

bool oracle_is_full(const struct t_client *c)
{
    return c->n_events + 64 >= T_EVENTS_MAX;
}

static void event_found(struct t_oracle *o, struct t_client *c, const struct t_event *what)
{
    if (c->n_events == T_EVENTS_MAX)
        torture_fail("the journal is full");
    oracle_end(o, oracle_begin(o, c, what), T_DONE);
}

/* After all writes, or after those that were acknowledged. */
static void set_after(const struct t_client *c, uint32_t group, bool acked, uint32_t ret_stripes[T_STRIPES])
{
    memcpy(ret_stripes, c->sets[group].seen, T_STRIPES * sizeof(*ret_stripes));
    for (uint32_t i = 0; i < c->n_events; i++) {
        const struct t_event *e = &c->events[i];
        bool counts = acked ? is_acked(e, T_NOW) : e->outcome != T_FAILED;

        for (uint32_t s = 0; e->op >= T_WRITE && e->kind == group && counts && s < e->n_stripes; s++)
            ret_stripes[e->stripe + s] = e->version;
    }
}

static void found_set(struct t_oracle *o, struct t_client *c, uint32_t group, const uint32_t stripes[T_STRIPES])
{
    uint32_t acked[T_STRIPES], begun[T_STRIPES];

    set_after(c, group, true, acked);
    set_after(c, group, false, begun);
    for (uint32_t s = 0; s < T_STRIPES; s++)
        if (acked[s] != stripes[s] || begun[s] != stripes[s])
            event_found(
                o, c,
                &(struct t_event){
                    .op = T_FOUND_SET, .kind = (uint8_t)group, .stripe = s, .n_stripes = 1, .version = stripes[s]});
    memcpy(c->sets[group].now, stripes, sizeof(c->sets[group].now));
}

static void found_key(struct t_oracle *o, struct t_client *c, uint32_t kind, uint32_t key, uint32_t version)
{
    struct t_key *k = &c->keys[kind][key];
    struct history h;

    history_of(c, (enum t_kind)kind, key, T_NOW, &h);
    if (h.states[h.n - 1] != version || h.acked != h.n - 1)
        event_found(o, c,
                    &(struct t_event){.op = T_FOUND, .kind = (uint8_t)kind, .key = (uint16_t)key, .version = version});
    store_release(&k->live, live_pack(version, version != 0, k->next));
}

void oracle_found(struct t_oracle *o, struct t_client *c, const uint32_t found[T_KINDS][T_KEYS],
                  const uint32_t sets[T_GROUPS][T_STRIPES])
{
    for (uint32_t kind = 0; kind < T_KINDS; kind++)
        for (uint32_t key = 0; key < T_KEYS; key++)
            found_key(o, c, kind, key, found[kind][key]);
    for (uint32_t g = 0; g < T_GROUPS; g++)
        found_set(o, c, g, sets[g]);
    c->was_killed = false;
}

/* What a key of a cache may have been that a check has not found. */
static void key_was_forgotten(struct t_client *c, uint32_t key)
{
    struct t_key *k = &c->keys[T_CACHE][key];
    struct history h;
    uint32_t n = 0;

    history_of(c, T_CACHE, key, T_NOW, &h);
    for (uint32_t i = 0; i < h.n; i++)
        if (h.states[i] != 0)
            h.states[n++] = h.states[i];
    k->n_forgotten = MIN(n, (uint32_t)T_FORGOTTEN_MAX);
    memcpy(k->forgotten, h.states + (n - k->n_forgotten), k->n_forgotten * sizeof(*k->forgotten));
}

void oracle_rebase(struct t_client *c, const uint32_t seen[T_KINDS][T_KEYS], const uint32_t sets[T_GROUPS][T_STRIPES])
{
    for (uint32_t key = 0; key < T_KEYS; key++) {
        if (seen[T_CACHE][key] == 0)
            key_was_forgotten(c, key);
        else
            c->keys[T_CACHE][key].n_forgotten = 0;
    }
    c->n_events = 0;
    for (uint32_t kind = 0; kind < T_KINDS; kind++) {
        for (uint32_t key = 0; key < T_KEYS; key++) {
            struct t_key *k = &c->keys[kind][key];

            k->seen = seen[kind][key];
            store_release(&k->live, live_pack(k->seen, k->seen != 0, k->next));
        }
    }
    for (uint32_t g = 0; g < T_GROUPS; g++) {
        memcpy(c->sets[g].seen, sets[g], sizeof(c->sets[g].seen));
        memcpy(c->sets[g].now, sets[g], sizeof(c->sets[g].now));
    }
    c->was_killed = false;
}
