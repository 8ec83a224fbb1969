/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chain hazard: the residents of one class in one list, in the order of their last naming; the victim is the least of the
 * lists' cold ends by the index that the tables give to their class and age. Owns the lists' heads, the ghosts and the
 * tables. One engine's thread. What a class is, and what a request says, is in policy_chain_request.c.
 *
 * Admission. A newcomer that is worth no more than the victim is *bypassed*: in theory it is never taken in. Here memory
 * was promised to whoever writes it or reads it from a device, so it does come in, but into a list of its own, which gives
 * the next victim whatever the others are worth. So the bypassed take as much memory as is in flight at once, and no more.
 * The decision is made once, when room is wanted for it; what is deeper in the same request is bypassed with it.
 *
 * Invariants: an object is in the list that its state names (its class's, or of the bypassed); a hash is a ghost or that
 * of a resident, not both.
 */
#include "tiering/policy_chain.h"

#include <errno.h>
#include <stdlib.h>

#include "include/base/limits.h"

#define HOPELESS 0.05F /* a class that is used again less often is not worth a write */

static struct chain *chain_of(struct policy *p)
{
    return container_of(p, struct chain, policy);
}

static const struct chain *chain_of_const(const struct policy *p)
{
    return (const struct chain *)(const void *)p; /* policy is the first member */
}

/* --- Lists ------------------------------------------------------------------------------------------------------- */

static uint32_t list_of(const uint32_t *s)
{
    return state_get(s, FIELD_BYPASSED) ? CHAIN_LIST_BYPASSED : state_class(s);
}

/* Between two neighbours, POLICY_NONE being an end. */
static void list_insert(struct chain *c, struct chain_list *l, uint32_t obj, uint32_t colder, uint32_t warmer)
{
    policy_node_at(c->nodes, obj)->prev = colder;
    policy_node_at(c->nodes, obj)->next = warmer;
    *(colder == POLICY_NONE ? &l->cold : &policy_node_at(c->nodes, colder)->next) = obj;
    *(warmer == POLICY_NONE ? &l->warm : &policy_node_at(c->nodes, warmer)->prev) = obj;
    l->len++;
    if (colder == POLICY_NONE)
        l->index_clock = 0;
    c->lists_used |= UINT64_C(1) << (l - c->lists);
}

void chain_link(struct chain *c, uint32_t obj)
{
    struct chain_list *l = &c->lists[list_of(policy_node_at(c->nodes, obj)->state)];

    list_insert(c, l, obj, l->warm, POLICY_NONE);
}

void chain_link_below(struct chain *c, uint32_t obj, uint32_t above)
{
    uint32_t list = list_of(policy_node_at(c->nodes, obj)->state);

    if (above == POLICY_NONE || list_of(policy_node_at(c->nodes, above)->state) != list)
        chain_link(c, obj);
    else
        list_insert(c, &c->lists[list], obj, policy_node_at(c->nodes, above)->prev, above);
}

void chain_unlink(struct chain *c, uint32_t obj)
{
    const struct policy_node *node = policy_node_at(c->nodes, obj);
    struct chain_list *l = &c->lists[list_of(node->state)];

    assert(state_is_known(node->state));
    *(node->prev == POLICY_NONE ? &l->cold : &policy_node_at(c->nodes, node->prev)->next) = node->next;
    *(node->next == POLICY_NONE ? &l->warm : &policy_node_at(c->nodes, node->next)->prev) = node->prev;
    l->len--;
    if (node->prev == POLICY_NONE)
        l->index_clock = 0;
    if (l->len == 0)
        c->lists_used &= ~(UINT64_C(1) << (l - c->lists));
}

uint32_t *chain_state(struct chain *c, uint64_t hash, uint32_t obj)
{
    if (obj != POLICY_NONE)
        return policy_node_at(c->nodes, obj)->state;
    return chain_ghosts_find(&c->ghosts, hash);
}

uint32_t *chain_remember(struct chain *c, uint64_t hash)
{
    return chain_ghosts_push(&c->ghosts, hash);
}

/* --- Birth ------------------------------------------------------------------------------------------------------- */

static int chain_new(const struct policy_config *config, struct policy **ret_policy)
{
    struct chain *c = calloc(1, sizeof(*c));

    if (!c)
        return -ENOMEM;
    int r = chain_ghosts_init(&c->ghosts, config->max_ghosts, CHAIN_GHOSTS_MIN);
    if (r < 0) {
        free(c);
        return r;
    }
    c->policy.ops = &policy_chain_hazard;
    c->nodes = config->nodes;
    c->find = config->find;
    c->ctx = config->ctx;
    c->clock = 1;
    c->placed = POLICY_NONE;
    for (uint32_t i = 0; i < CHAIN_LISTS; i++)
        c->lists[i] = (struct chain_list){.cold = POLICY_NONE, .warm = POLICY_NONE};
    hazard_init(&c->hazard);
    *ret_policy = &c->policy;
    return 0;
}

static void chain_free(struct policy *p)
{
    if (!p)
        return;
    chain_ghosts_deinit(&chain_of(p)->ghosts);
    free(chain_of(p));
}

static void chain_resize(struct policy *p, uint64_t capacity_sectors)
{
    (void)p;
    (void)capacity_sectors; /* the order is the same at any capacity */
}

/* --- Who goes ---------------------------------------------------------------------------------------------------- */

/* What a list gives is worth that much; the bypassed are worth less than anything. */
static float index_of(const struct chain *c, uint32_t list, uint32_t obj)
{
    if (list == CHAIN_LIST_BYPASSED)
        return -1;
    return hazard_index(&c->hazard, list, c->clock - policy_node_at(c->nodes, obj)->state[STATE_CLOCK]);
}

/* Of two in different lists; of equals, the one that was named longer ago. */
static bool is_less(const struct chain *c, float index, uint32_t obj, float other_index, uint32_t other)
{
    if (index != other_index)
        return index < other_index;
    return c->clock - policy_node_at(c->nodes, obj)->state[STATE_CLOCK] >
           c->clock - policy_node_at(c->nodes, other)->state[STATE_CLOCK];
}

/*
 * Of these lists the one whose cold end is least. CHAIN_LISTS: none. What a cold end is worth changes with the clock and
 * when another becomes it, which is seldom beside the evictions of one request.
 */
static uint32_t least_end(struct chain *c, uint64_t lists)
{
    uint32_t best = CHAIN_LISTS;

    for (lists &= c->lists_used; lists; lists &= lists - 1) {
        uint32_t i = (uint32_t)__builtin_ctzll(lists);
        struct chain_list *l = &c->lists[i];

        if (l->index_clock != c->clock) {
            l->index = index_of(c, i, l->cold);
            l->index_clock = c->clock;
        }
        if (best == CHAIN_LISTS || is_less(c, l->index, l->cold, c->lists[best].index, c->lists[best].cold))
            best = i;
    }
    return best;
}

bool chain_is_worth_more(struct chain *c, const uint32_t *state)
{
    uint32_t least = least_end(c, ~(UINT64_C(1) << CHAIN_LIST_BYPASSED));

    return least == CHAIN_LISTS || c->lists[least].index < hazard_index(&c->hazard, state_class(state), 0);
}

/* Room is wanted for a ghost: should it be let in? Once; deeper blocks of its request follow the first that is not. */
static void admit(struct chain *c, uint32_t *state)
{
    uint32_t *stop = &c->stops[state[STATE_CLOCK] % CHAIN_STOPS];
    bool chained = state_get(state, FIELD_CHAINED);

    if (state_get(state, FIELD_ADMITTED) || state_get(state, FIELD_BYPASSED))
        return;
    if ((chained && *stop == state[STATE_CLOCK]) || !chain_is_worth_more(c, state)) {
        state_set(state, FIELD_BYPASSED, 1);
        if (chained)
            *stop = state[STATE_CLOCK];
    } else {
        state_set(state, FIELD_ADMITTED, 1);
    }
}

/* A cursor in each list, from its cold end on: for who looks further than that. */
struct search {
    uint32_t objs[CHAIN_LISTS];
    uint32_t left[CHAIN_LISTS]; /* not yet passed over */
    float index[CHAIN_LISTS];
};

static void search_set(const struct chain *c, struct search *s, uint32_t list, uint32_t obj)
{
    s->objs[list] = s->left[list] > 0 ? obj : POLICY_NONE;
    if (s->objs[list] != POLICY_NONE)
        s->index[list] = index_of(c, list, obj);
}

static void search_begin(const struct chain *c, struct search *s)
{
    for (uint32_t i = 0; i < CHAIN_LISTS; i++) {
        s->left[i] = c->lists[i].len;
        search_set(c, s, i, c->lists[i].cold);
    }
}

/* The list whose cursor is at the least. CHAIN_LISTS: none. */
static uint32_t search_least(const struct chain *c, const struct search *s)
{
    uint32_t best = CHAIN_LISTS;

    for (uint32_t i = 0; i < CHAIN_LISTS; i++) {
        if (s->objs[i] == POLICY_NONE)
            continue;
        if (best == CHAIN_LISTS || is_less(c, s->index[i], s->objs[i], s->index[best], s->objs[best]))
            best = i;
    }
    return best;
}

/* The least of all cannot go, for this reason: the least that can. */
static uint32_t victim_beyond(struct chain *c, enum policy_pin state, policy_pin_fn pin, void *ctx)
{
    struct search s;
    uint32_t list;

    search_begin(c, &s);
    for (uint32_t i = 0; i <= POLICY_SCAN_MAX && (list = search_least(c, &s)) < CHAIN_LISTS; i++) {
        uint32_t obj = s.objs[list], next = policy_node_at(c->nodes, obj)->next;

        if (i > 0)
            state = pin(ctx, obj); /* the first was asked: it may count how often */
        if (state == POLICY_FREE)
            return obj;
        s.left[list]--;
        if (state == POLICY_HELD && next != POLICY_NONE) {
            chain_unlink(c, obj);
            chain_link(c, obj);
        }
        search_set(c, &s, list, next);
    }
    return POLICY_NONE;
}

static uint32_t chain_victim(struct policy *p, uint64_t incoming, policy_pin_fn pin, void *ctx)
{
    struct chain *c = chain_of(p);
    uint32_t *ghost = incoming ? chain_ghosts_find(&c->ghosts, incoming) : NULL;

    if (ghost)
        admit(c, ghost);
    uint32_t list = least_end(c, UINT64_MAX);
    if (list == CHAIN_LISTS)
        return POLICY_NONE;
    uint32_t obj = c->lists[list].cold;
    enum policy_pin state = pin(ctx, obj);
    return state == POLICY_FREE ? obj : victim_beyond(c, state, pin, ctx);
}

static uint32_t chain_coldest(const struct policy *p, uint32_t *ret_objs, uint32_t n, policy_pin_fn pin, void *ctx)
{
    const struct chain *c = chain_of_const(p);
    uint64_t left = (uint64_t)n + POLICY_SCAN_MAX;
    uint32_t found = 0, list;
    struct search s;

    search_begin(c, &s);
    for (; found < n && left > 0 && (list = search_least(c, &s)) < CHAIN_LISTS; left--) {
        uint32_t obj = s.objs[list];

        if (pin(ctx, obj) == POLICY_FREE)
            ret_objs[found++] = obj;
        s.left[list]--;
        search_set(c, &s, list, policy_node_at(c->nodes, obj)->next);
    }
    return found;
}

/* Judged by its class alone: uses that come later than ghosts last are never seen, so age would mislead. */
static bool chain_is_hopeless(const struct policy *p, uint32_t obj)
{
    const struct chain *c = chain_of_const(p);

    return hazard_ever(&c->hazard, state_class(policy_node_at(c->nodes, obj)->state)) < HOPELESS;
}

/* --- Comings and goings ------------------------------------------------------------------------------------------ */

static void chain_miss(struct policy *p, uint32_t owner, uint64_t hash, uint32_t sectors)
{
    struct chain *c = chain_of(p);
    uint32_t *s = chain_state(c, hash, POLICY_NONE);

    (void)owner;
    (void)sectors;
    if (s)
        chain_used(c, s, POLICY_NONE);
    else if ((s = chain_remember(c, hash)))
        chain_begin_alone(c, s);
}

static void chain_insert(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors)
{
    struct chain *c = chain_of(p);
    const uint32_t *ghost = chain_ghosts_find(&c->ghosts, hash);
    uint32_t *s = policy_node_at(c->nodes, obj)->state, above = c->placed;

    assert(!state_is_known(s));
    if (ghost) {
        for (uint32_t i = 0; i < STATE_WORDS; i++)
            s[i] = ghost[i];
        chain_ghosts_drop(&c->ghosts, hash, ghost);
    } else {
        chain_begin_alone(c, s);
    }
    c->resident_sectors += sectors;
    c->n_resident++;
    c->placed = obj;
    /* Blocks of a request arrive shallow first, but the deepest should be the coldest. */
    if (above != POLICY_NONE &&
        (!state_get(s, FIELD_CHAINED) || policy_node_at(c->nodes, above)->state[STATE_CLOCK] != s[STATE_CLOCK]))
        above = POLICY_NONE;
    chain_link_below(c, obj, above);
}

static void chain_hit(struct policy *p, uint32_t obj)
{
    chain_used(chain_of(p), policy_node_at(chain_of(p)->nodes, obj)->state, obj);
}

static void chain_leave(struct chain *c, uint32_t obj, uint32_t sectors)
{
    chain_unlink(c, obj);
    if (c->placed == obj)
        c->placed = POLICY_NONE;
    *policy_node_at(c->nodes, obj) = (struct policy_node){0};
    c->resident_sectors -= sectors;
    c->n_resident--;
}

static void chain_remove(struct policy *p, uint32_t obj, uint32_t sectors)
{
    struct chain *c = chain_of(p);
    const uint32_t *s = policy_node_at(c->nodes, obj)->state;

    hazard_leave(&c->hazard, state_class(s), c->clock - s[STATE_CLOCK], state_weight(s));
    chain_leave(c, obj, sectors);
}

static void chain_evict(struct policy *p, uint32_t obj, uint64_t hash, uint32_t sectors)
{
    struct chain *c = chain_of(p);
    const uint32_t *from = policy_node_at(c->nodes, obj)->state;
    uint32_t *to = chain_state(c, hash, POLICY_NONE);

    if (!to)
        to = chain_remember(c, hash);
    for (uint32_t i = 0; to && i < STATE_WORDS; i++)
        to[i] = from[i];
    if (to) {
        state_set(to, FIELD_BYPASSED, 0);
        state_set(to, FIELD_ADMITTED, 0);
    }
    chain_leave(c, obj, sectors);
}

/* --- Numbers ----------------------------------------------------------------------------------------------------- */

static void chain_stat(const struct policy *p, struct policy_stat *ret_stat)
{
    const struct chain *c = chain_of_const(p);

    *ret_stat = (struct policy_stat){
        .resident = c->n_resident,
        .resident_sectors = c->resident_sectors,
        .ghosts = c->ghosts.n,
        .ghost_bytes = sizeof(*c) + chain_ghosts_bytes(&c->ghosts),
    };
}

static bool list_check(const struct chain *c, uint32_t list)
{
    const struct chain_list *l = &c->lists[list];
    uint32_t prev = POLICY_NONE, len = 0;

    for (uint32_t obj = l->cold; obj != POLICY_NONE; prev = obj, obj = policy_node_at(c->nodes, obj)->next) {
        const struct policy_node *node = policy_node_at(c->nodes, obj);

        if (len++ == l->len || node->prev != prev || !state_is_known(node->state) || list_of(node->state) != list)
            return false;
    }
    if (l->index_clock == c->clock && l->len > 0 && l->index != index_of(c, list, l->cold))
        return false;
    return len == l->len && prev == l->warm && (len > 0) == (c->lists_used >> list & 1);
}

static int chain_check(const struct policy *p)
{
    const struct chain *c = chain_of_const(p);

    uint64_t len = 0;

    for (uint32_t i = 0; i < CHAIN_LISTS; i++) {
        if (!list_check(c, i))
            return -EUCLEAN;
        len += c->lists[i].len;
    }
    if (len != c->n_resident)
        return -EUCLEAN;
    return chain_ghosts_check(&c->ghosts) ? 0 : -EUCLEAN;
}

const struct policy_ops policy_chain_hazard = {
    .name = "chain",
    .ghosts_min = CHAIN_GHOSTS_MIN,
    .dram_only = true,
    .new = chain_new,
    .free = chain_free,
    .miss = chain_miss,
    .insert = chain_insert,
    .hit = chain_hit,
    .chain = chain_request,
    .victim = chain_victim,
    .evict = chain_evict,
    .remove = chain_remove,
    .coldest = chain_coldest,
    .is_hopeless = chain_is_hopeless,
    .resize = chain_resize,
    .stat = chain_stat,
    .check = chain_check,
};
