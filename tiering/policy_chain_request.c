/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chain policy's view of requests. Owns nothing: it fills in what is known of blocks, and feeds the tables. One
 * engine's thread.
 *
 * A block by itself says little about when it comes back; its conversation says much: which turn this was, how much was
 * new in it, whether the block is its tail (which is often cut short, and never comes back), whether the conversation
 * went on elsewhere (an abandoned branch), whether the block is a hub that many conversations share. That is its class,
 * and the table learns what each class is worth. Blocks used eight times or more are judged by the gap between their uses.
 *
 * The known prefix of a chain ends at a block d. If d is no hub, the request is a further turn of d's conversation; what
 * followed d before and is not named now is abandoned, and is re-classed at once.
 *
 * One request is one tick of the clock. Engines send several lists for it: LOOKUP names the whole chain, ACQUIRE uses the
 * prefix, RESERVE stores the rest; or they leave LOOKUP out, or ask again while they wait. So a list counts only if it
 * names something new: each block knows that it was named and not used since (FIELD_NAMED), and each session which request
 * it is at. Wrong guesses here cost a tick.
 */
#include "tiering/policy_chain.h"

#define USES_HOT 8
#define FORKS_HUB 6      /* that many different continuations: no conversation's own */
#define SMALL_NEW 7      /* blocks that a normal turn adds at most */
#define WEIGHT_BLOCKS 16 /* of one request count each for one; more share that */
#define OPEN_AGE 1024    /* requests for which a named block waits for its use */
#define LONG_GAP_MIN 4   /* octaves: long conversations that go on within 32 requests are alike */
#define ALONE_PER_TICK 16
#define ABANDONED_MAX 4096

/* What the tables tell apart. Three to ten have one for each range of turns; from HAZARD_LONG and HAZARD_HOT on: gaps. */
enum {
    CLASS_FIRST = 0,         /* first turn: 0 of less than 16 blocks, 1 of less than 128, 2 longer */
    CLASS_OLD = 3,           /* 3 also: used before, but in another conversation, or alone */
    CLASS_NEW = 7,           /* of a normal turn */
    CLASS_OLD_OF_LARGE = 11, /* 12: and was the end of the turn before */
    CLASS_NEW_OF_LARGE = 13,
    CLASS_ABANDONED = 14, /* 15: under a block that several share */
    CLASS_TAIL = 16,
};
static_assert(CLASS_TAIL + 1 == HAZARD_LONG, "every class has a meaning");

struct request {
    uint32_t clock, n, n_old; /* n_old: blocks of its conversation that were there before */
    uint32_t at;              /* where the list begins */
    uint32_t turn, end;       /* end: FIELD_END of the last old block */
    bool is_prefix;           /* it may go on: its last block is no tail */
};

static uint32_t low(uint64_t hash)
{
    return (uint32_t)hash;
}

/* Logarithm in quarters of an octave, rounded. */
static uint32_t gap_of(uint32_t age)
{
    static const uint32_t steps[] = {35734, 42495, 50535, 60097}; /* 2^15 times 2^(1/8), 2^(3/8), 2^(5/8), 2^(7/8) */
    uint32_t octave = 31 - (uint32_t)__builtin_clz(MAX(age, UINT32_C(1)));
    uint32_t mantissa = MAX(age, UINT32_C(1)) << (31 - octave) >> 16, quarter = 0;

    while (quarter < ARRAY_LEN(steps) && mantissa >= steps[quarter])
        quarter++;
    return 4 * octave + quarter;
}

static uint32_t weight_of(uint32_t n_blocks)
{
    uint32_t halvings = 0;

    /* Rounds the logarithm of n / WEIGHT_BLOCKS: the next step is at sqrt(2) times the last. */
    while ((uint64_t)n_blocks * n_blocks > (UINT64_C(2) * WEIGHT_BLOCKS * WEIGHT_BLOCKS) << 2 * halvings)
        halvings++;
    return halvings;
}

static uint32_t turn_class(uint32_t turn)
{
    return turn >= 6 ? 3 : turn >= 3 ? 2 : turn >= 2 ? 1 : 0;
}

/* Used USES_HOT times or more. */
static uint32_t hot_class(const uint32_t *s)
{
    uint32_t octave = state_get(s, FIELD_GAP) / 4;

    if (state_get(s, FIELD_USES) > state_get(s, FIELD_TURN) + 1)
        return HAZARD_HOT + MIN(octave, (uint32_t)(HAZARD_CLASSES - HAZARD_HOT - 1));
    octave = MAX(octave, (uint32_t)LONG_GAP_MIN) - LONG_GAP_MIN;
    return HAZARD_LONG + MIN(octave, (uint32_t)(HAZARD_HOT - HAZARD_LONG - 1));
}

static uint32_t classify(const struct request *q, const uint32_t *s, uint32_t i)
{
    uint32_t n_new = q->n - q->n_old;

    if (state_get(s, FIELD_USES) >= USES_HOT)
        return hot_class(s);
    if (i == q->n - 1 && !q->is_prefix)
        return CLASS_TAIL;
    if (q->turn == 0 && state_get(s, FIELD_USES) > 1)
        return CLASS_OLD;
    if (q->turn == 0)
        return CLASS_FIRST + (q->n < 16 ? 0 : q->n < 128 ? 1 : 2);
    if (n_new <= SMALL_NEW)
        return (i < q->n_old ? CLASS_OLD : CLASS_NEW) + turn_class(q->turn);
    return i < q->n_old ? CLASS_OLD_OF_LARGE + q->end : CLASS_NEW_OF_LARGE;
}

static void tick(struct chain *c)
{
    if (++c->clock == 0)
        c->clock = 1;
    hazard_tick(&c->hazard, c->clock);
    chain_ghosts_limit(&c->ghosts,
                       MAX((uint64_t)c->n_resident * CHAIN_GHOSTS_PER_RESIDENT, (uint64_t)CHAIN_GHOSTS_MIN));
}

/* The block is named once more: what its class foretold has come true. */
static void count_use(struct chain *c, uint32_t *s, uint32_t clock)
{
    uint32_t age = clock - s[STATE_CLOCK], gap = gap_of(age), uses = state_get(s, FIELD_USES);

    hazard_use(&c->hazard, state_class(s), age, state_weight(s));
    state_set(s, FIELD_GAP, uses <= 1 ? gap : (3 * state_get(s, FIELD_GAP) + gap + 2) / 4);
    state_set(s, FIELD_USES, uses + 1);
    s[STATE_CLOCK] = clock;
}

static void set_class(struct chain *c, uint32_t *s, uint32_t class, uint32_t weight)
{
    state_set(s, FIELD_CLASS, class + 1);
    state_set(s, FIELD_WEIGHT, weight);
    hazard_enter(&c->hazard, class, state_weight(s));
}

/* --- Uses that no request named ---------------------------------------------------------------------------------- */

static void alone(struct chain *c)
{
    if (++c->n_alone % ALONE_PER_TICK == 0)
        tick(c);
}

void chain_begin_alone(struct chain *c, uint32_t *s)
{
    alone(c);
    s[STATE_CLOCK] = c->clock;
    state_set(s, FIELD_USES, 1);
    set_class(c, s, CLASS_FIRST, 0);
}

void chain_used(struct chain *c, uint32_t *s, uint32_t obj)
{
    uint32_t age = c->clock - s[STATE_CLOCK];

    /* Part of a request that is known; or of what has just been counted. */
    if (state_get(s, FIELD_NAMED) || age == 0 || (state_get(s, FIELD_CHAINED) && age <= OPEN_AGE)) {
        state_set(s, FIELD_NAMED, 0);
        return;
    }
    alone(c);
    if (obj != POLICY_NONE)
        chain_unlink(c, obj);
    count_use(c, s, c->clock);
    state_set(s, FIELD_CHAINED, 0);
    set_class(c, s, state_get(s, FIELD_USES) >= USES_HOT ? hot_class(s) : CLASS_OLD, 0);
    if (obj == POLICY_NONE)
        return;
    if (state_get(s, FIELD_BYPASSED) && chain_is_worth_more(c, s))
        state_set(s, FIELD_BYPASSED, 0);
    chain_link(c, obj);
}

/* --- Requests ---------------------------------------------------------------------------------------------------- */

/* The list repeats or continues what was named already. */
static bool is_known_request(struct chain *c, const struct policy_chain *open, const struct policy_ref *refs,
                             uint32_t n, enum policy_use use)
{
    const uint32_t *last = chain_state(c, refs[n - 1].hash, refs[n - 1].obj), *first;

    if (!last || c->clock - last[STATE_CLOCK] > OPEN_AGE)
        return false;
    if (use != POLICY_NAMED)
        return state_get(last, FIELD_NAMED) || last[STATE_CLOCK] == open->clock;
    first = chain_state(c, refs[0].hash, refs[0].obj);
    return first && state_get(first, FIELD_NAMED) && state_get(last, FIELD_NAMED);
}

/* What followed the last old block before, in its last request, is not named now. */
static void abandon(struct chain *c, const struct request *q, const uint32_t *d, uint32_t next_named)
{
    uint32_t child = d[STATE_CHILD], clock = d[STATE_CLOCK];
    uint32_t class = CLASS_ABANDONED + (state_get(d, FIELD_USES) > q->turn + 1);

    for (uint32_t n = 0; n < ABANDONED_MAX && c->find && child != 0 && child != next_named; n++) {
        uint32_t obj = c->find(c->ctx, child);
        uint32_t *s = obj != POLICY_NONE ? policy_node_at(c->nodes, obj)->state : NULL;

        if (!s || s[STATE_CLOCK] != clock)
            break;
        child = s[STATE_CHILD];
        if (state_get(s, FIELD_USES) >= USES_HOT)
            continue;
        hazard_leave(&c->hazard, state_class(s), q->clock - clock, state_weight(s));
        chain_unlink(c, obj);
        s[STATE_CLOCK] = q->clock;
        set_class(c, s, class, state_get(s, FIELD_WEIGHT));
        chain_link(c, obj);
    }
}

/* Where the request stands in its conversation: `d` is the last old block, `n_old` of all are old, `next` follows (0: none).
 */
static void place_after(struct chain *c, struct request *q, uint32_t *d, uint32_t n_old, uint32_t next)
{
    if (next != 0 && !state_get(d, FIELD_END) && d[STATE_CHILD] != 0 && d[STATE_CHILD] != next)
        state_set(d, FIELD_FORKS, state_get(d, FIELD_FORKS) + 1);
    if (state_get(d, FIELD_FORKS) >= FORKS_HUB) {
        *q = (struct request){.clock = q->clock, .n = q->n, .at = q->at, .is_prefix = q->is_prefix};
        return;
    }
    q->end = state_get(d, FIELD_END);
    q->turn = MIN(state_get(d, FIELD_TURN) + 1, UINT32_C(15));
    q->n_old = n_old;
    abandon(c, q, d, next);
}

/* How many of the list, from its beginning on, are known; the last of them. */
static uint32_t known_prefix(struct chain *c, const struct policy_ref *refs, uint32_t n, uint32_t **ret_last)
{
    uint32_t m = 0, *s;

    while (m < n && (s = chain_state(c, refs[m].hash, refs[m].obj))) {
        *ret_last = s;
        m++;
    }
    return m;
}

/* Out of its list until all of the request have their class. */
#define LOOSE (POLICY_NONE - 1)

static void name_block(struct chain *c, const struct request *q, const struct policy_ref *ref, uint32_t i,
                       uint32_t child)
{
    uint32_t *s = chain_state(c, ref->hash, ref->obj);

    if (s && s[STATE_CLOCK] == q->clock)
        return; /* named twice in one request */
    if (s && ref->obj != POLICY_NONE) {
        chain_unlink(c, ref->obj);
        policy_node_at(c->nodes, ref->obj)->prev = LOOSE;
    }
    if (s && ref->obj == POLICY_NONE)
        s = chain_ghosts_renew(&c->ghosts, ref->hash, s);
    if (s) {
        count_use(c, s, q->clock);
    } else if ((s = chain_remember(c, ref->hash))) {
        s[STATE_CLOCK] = q->clock;
        state_set(s, FIELD_USES, 1);
    } else {
        return;
    }
    state_set(s, FIELD_TURN, q->turn);
    state_set(s, FIELD_END, i + 2 >= q->n);
    state_set(s, FIELD_NAMED, 1);
    state_set(s, FIELD_CHAINED, 1);
    state_set(s, FIELD_ADMITTED, 0);
    if (ref->obj == POLICY_NONE)
        state_set(s, FIELD_BYPASSED, 0);
    if (child != 0 || !q->is_prefix)
        s[STATE_CHILD] = child;
    uint32_t class = classify(q, s, i);
    set_class(c, s, class, class == CLASS_TAIL ? 0 : weight_of(i < q->n_old ? q->n_old : q->n - q->n_old));
}

static void name_blocks(struct chain *c, const struct request *q, const struct policy_ref *refs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        name_block(c, q, &refs[i], q->at + i, i + 1 < n ? low(refs[i + 1].hash) : 0);
    /* The deepest becomes the coldest: without what comes before it, it is worth nothing. */
    for (uint32_t i = n; i-- > 0;) {
        uint32_t obj = refs[i].obj;

        if (obj == POLICY_NONE || policy_node_at(c->nodes, obj)->prev != LOOSE)
            continue;
        uint32_t *s = policy_node_at(c->nodes, obj)->state;
        if (state_get(s, FIELD_BYPASSED) && chain_is_worth_more(c, s))
            state_set(s, FIELD_BYPASSED, 0);
        chain_link(c, obj);
    }
}

/* The prefix was taken for a turn with little new in it; it is the beginning of one with much. */
static void reclass_prefix(struct chain *c, const struct request *q, const struct policy_chain *open)
{
    uint32_t child = open->head, above = POLICY_NONE;

    for (uint32_t n = 0; n < open->n && child != 0; n++) {
        uint32_t obj = c->find(c->ctx, child);
        uint32_t *s = obj != POLICY_NONE ? policy_node_at(c->nodes, obj)->state : NULL;

        if (!s || s[STATE_CLOCK] != q->clock)
            break;
        child = s[STATE_CHILD];
        if (state_get(s, FIELD_USES) >= USES_HOT)
            continue;
        hazard_leave(&c->hazard, state_class(s), 0, state_weight(s));
        chain_unlink(c, obj);
        set_class(c, s, CLASS_OLD_OF_LARGE + q->end, state_get(s, FIELD_WEIGHT));
        chain_link_below(c, obj, above);
        above = obj;
    }
}

/* The last block of the prefix; it and the one before are no end any more. */
static void join_prefix(struct chain *c, struct request *q, const struct policy_chain *open, uint32_t next)
{
    for (uint32_t i = 0; i < ARRAY_LEN(open->tail) && i < open->n; i++) {
        uint32_t obj = c->find(c->ctx, open->tail[i]);
        uint32_t *s = obj != POLICY_NONE ? policy_node_at(c->nodes, obj)->state : NULL;

        if (!s || s[STATE_CLOCK] != open->clock)
            continue;
        if (i == 0 && s[STATE_CHILD] != 0 && s[STATE_CHILD] != next && !open->was_end)
            state_set(s, FIELD_FORKS, state_get(s, FIELD_FORKS) + 1);
        if (i == 0)
            s[STATE_CHILD] = next;
        state_set(s, FIELD_END, 0);
    }
    q->end = open->was_end;
}

/* What is stored behind a prefix that this session has used: the request turns out to be longer. */
static void prolong(struct chain *c, struct policy_chain *open, const struct policy_ref *refs, uint32_t n)
{
    struct request q = {
        .clock = open->clock, .n = open->n + n, .n_old = open->n_old, .at = open->n, .turn = open->turn};
    uint32_t *d = NULL, m = known_prefix(c, refs, n, &d);

    if (c->find)
        join_prefix(c, &q, open, low(refs[0].hash));
    if (m > 0)
        place_after(c, &q, d, open->n + m, m < n ? low(refs[m].hash) : 0);
    if (c->find && open->n_old > 0 && q.n_old > 0 && q.n - q.n_old > SMALL_NEW)
        reclass_prefix(c, &q, open);
    name_blocks(c, &q, refs, n);
    open->n = q.n;
    open->is_prefix = false;
}

void chain_request(struct policy *p, struct policy_chain *open, const struct policy_ref *refs, uint32_t n,
                   enum policy_use use)
{
    struct chain *c = container_of(p, struct chain, policy);
    uint32_t *d = NULL;

    if (n == 0 || is_known_request(c, open, refs, n, use))
        return;
    if (use == POLICY_STORED && open->is_prefix && c->clock - open->clock <= OPEN_AGE) {
        prolong(c, open, refs, n);
        return;
    }
    tick(c);
    struct request q = {.clock = c->clock, .n = n};
    uint32_t m = known_prefix(c, refs, n, &d);
    q.is_prefix = m == n && use == POLICY_USED;
    if (m > 0)
        place_after(c, &q, d, m, m < n ? low(refs[m].hash) : 0);
    name_blocks(c, &q, refs, n);
    *open = (struct policy_chain){.clock = q.clock,
                                  .n = n,
                                  .n_old = q.n_old,
                                  .head = low(refs[0].hash),
                                  .tail = {low(refs[n - 1].hash), n > 1 ? low(refs[n - 2].hash) : 0},
                                  .turn = (uint8_t)q.turn,
                                  .was_end = q.end != 0,
                                  .is_prefix = q.is_prefix};
}
