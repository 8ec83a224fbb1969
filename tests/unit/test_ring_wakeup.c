/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The wake-up of include/base/ring.h in every interleaving.
 *
 * The memory accesses of the real ring_sleep_prepare(), ring_sleep_cancel() and ring_publish() are recorded, by hooks in
 * place of the words of atomic.h, and become the programs of a model: a waker that publishes a few entries one after the
 * other, and a sleeper that takes them, and sleeps and arms itself anew whenever there is none. So a fence that is taken
 * out of ring.h is taken out of the model too, and the test fails.
 *
 * Memory is TSO: each side has a buffer of stores that drains, oldest first, at any later time; a fence waits for that.
 * (Each side stores to one place here, so buffers that drain out of order would make no difference.) All reachable
 * states are visited. A lost wake-up is a state in which nothing can move and entries are left.
 *
 * Three ways to sleep: poll() on the doorbell, whose bytes last until they are drained, by a client when it is woken, by
 * the engine before it sleeps again; and a futex, which wakes only who sleeps already, but compares cq_tail once more,
 * with a fence of the kernel's own.
 */
#include <check.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/atomic.h"
#include "include/base/base.h"

/* --- Recording ring.h ------------------------------------------------------------------------------------------------ */

enum kind { LOAD, STORE, FENCE };
enum place { TAIL, FLAG, PLACES };

struct op {
    enum kind kind;
    enum place place;
    uint8_t value;
};

struct trace {
    struct op ops[8];
    unsigned n;
};

static struct trace *recording;
static uint32_t cells[PLACES];

static enum place place_of(const uint32_t *p)
{
    ck_assert(p == &cells[TAIL] || p == &cells[FLAG]);
    return p == &cells[TAIL] ? TAIL : FLAG;
}

static void record(enum kind kind, const uint32_t *p, uint32_t value)
{
    ck_assert_uint_lt(recording->n, ARRAY_LEN(recording->ops));
    recording->ops[recording->n++] = (struct op){kind, p ? place_of(p) : TAIL, (uint8_t)value};
}

static uint32_t record_load(const uint32_t *p)
{
    record(LOAD, p, 0);
    return 0;
}

#undef load_relaxed
#undef load_acquire
#undef store_relaxed
#undef store_release
#define load_relaxed(p) record_load(p)
#define load_acquire(p) record_load(p)
#define store_relaxed(p, v) record(STORE, (p), (v))
#define store_release(p, v) record(STORE, (p), (v))
#define fence_full() record(FENCE, NULL, 0)
#include "include/base/ring.h"

enum mutation {
    AS_IT_IS,
    WITHOUT_SLEEPERS_FENCE,
    WITHOUT_WAKERS_FENCE,
    SLEEPS_HAVE_ONE_NUMBER,
    FUTEX_WAKES_ONCE,
};

static struct trace without_fences(struct trace from)
{
    struct trace to = {.n = 0};

    for (unsigned i = 0; i < from.n; i++)
        if (from.ops[i].kind != FENCE)
            to.ops[to.n++] = from.ops[i];
    return to;
}

/* --- The model -------------------------------------------------------------------------------------------------------- */

#define ENTRIES 8 /* that the waker publishes: the sleeper arms itself up to nine times */
#define BUFFER 4
#define BYTES_MAX 2 /* that the doorbell holds; one more is dropped, as send() with EAGAIN */

enum sleep { BY_DOORBELL, BY_DOORBELL_DRAINED_LATE, BY_FUTEX, SLEEPS };

/* Waker: publish[0..n), then maybe WAKE, once for each sleep; again for each entry. Sleeper: LOOK, DRAIN, prepare[0..n), LOOK_AGAIN,
 * SLEEP, ASLEEP, cancel[0..n). */
struct model {
    enum sleep sleep;
    struct trace prepare, cancel, publish;
    bool one_number, wakes_once; /* wrongly */
};

struct side {
    uint8_t pc, n_buffered;
    struct {
        uint8_t place, value;
    } buffer[BUFFER];
};

struct state {
    uint8_t memory[PLACES];
    uint8_t bytes;     /* on the doorbell */
    uint8_t published; /* waker: entries so far */
    uint8_t seen_flag; /* waker: what W3 read: the number of a sleep, or 0 */
    uint8_t rung;      /* waker: the sleep that it was woken from last */
    uint8_t n_sleeps;  /* sleeper */
    uint8_t head;      /* sleeper: entries taken */
    uint8_t woken;     /* sleeper: the futex woke it */
    uint8_t rang;      /* sleeper: the doorbell did, and was not drained */
    struct side waker, sleeper;
};

#define STATES_MAX (1 << 20)

struct search {
    const struct model *model;
    struct state *states; /* visited, in order; those past `at` are to be expanded */
    uint32_t *table;      /* open addressing: index + 1 */
    uint32_t n, at;
    uint32_t lost, slept, done;
};

static void state_add(struct search *s, const struct state *state)
{
    uint32_t hash = 2166136261;

    for (size_t i = 0; i < sizeof(*state); i++)
        hash = (hash ^ ((const uint8_t *)state)[i]) * 16777619;
    for (uint32_t i = hash;; i++) {
        uint32_t *slot = &s->table[i % (2 * STATES_MAX)];
        if (*slot == 0) {
            ck_assert_uint_lt(s->n, STATES_MAX);
            s->states[s->n++] = *state;
            *slot = s->n;
            return;
        }
        if (memcmp(&s->states[*slot - 1], state, sizeof(*state)) == 0)
            return;
    }
}

static uint8_t side_load(const struct state *state, const struct side *side, enum place place)
{
    for (unsigned i = side->n_buffered; i > 0; i--)
        if (side->buffer[i - 1].place == place)
            return side->buffer[i - 1].value;
    return state->memory[place];
}

/* The oldest store reaches memory. Returns false if there is none. */
static bool side_drain(struct state *state, struct side *side)
{
    if (side->n_buffered == 0)
        return false;
    state->memory[side->buffer[0].place] = side->buffer[0].value;
    side->n_buffered--;
    memmove(&side->buffer[0], &side->buffer[1], sizeof(side->buffer) - sizeof(side->buffer[0]));
    memset(&side->buffer[side->n_buffered], 0, sizeof(side->buffer[0]));
    return true;
}

/* A recorded step. Returns false if it cannot be taken now. */
static bool side_step(struct state *state, struct side *side, const struct op *op, uint8_t value, uint8_t *ret_loaded)
{
    switch (op->kind) {
    case LOAD:
        *ret_loaded = side_load(state, side, op->place);
        break;
    case STORE:
        if (side->n_buffered == BUFFER)
            return false;
        side->buffer[side->n_buffered].place = (uint8_t)op->place;
        side->buffer[side->n_buffered++].value = value;
        break;
    case FENCE:
        if (side->n_buffered > 0)
            return false;
        break;
    }
    side->pc++;
    return true;
}

static unsigned asleep_pc(const struct model *m)
{
    return 4 + m->prepare.n;
}

/* The real decision; in the model a flag is the number alone. */
static bool must_wake(const struct model *m, uint8_t number, uint8_t rung_number)
{
    uint32_t word = number ? (uint32_t)number << RING_FLAG_BITS | 1 : 0;
    uint32_t rung = rung_number ? (uint32_t)rung_number << RING_FLAG_BITS | 1 : 0;

    return ring_must_wake(word, m->sleep != BY_FUTEX || m->wakes_once, &rung) != 0;
}

static bool waker_step(const struct model *m, struct state *state)
{
    struct side *w = &state->waker;

    if (state->published == ENTRIES)
        return false;
    if (w->pc < m->publish.n) {
        uint8_t value = m->publish.ops[w->pc].place == TAIL ? state->published + 1 : m->publish.ops[w->pc].value;
        return side_step(state, w, &m->publish.ops[w->pc], value, &state->seen_flag);
    }
    if (must_wake(m, state->seen_flag, state->rung)) { /* a system call: its locks are fences */
        if (w->n_buffered > 0)
            return false;
        if (m->sleep != BY_FUTEX && state->bytes < BYTES_MAX)
            state->bytes++;
        if (m->sleep == BY_FUTEX) /* of those who sleep now */
            state->woken = state->sleeper.pc == asleep_pc(m);
    }
    state->rung = state->seen_flag;
    state->seen_flag = 0;
    state->published++;
    w->pc = 0;
    return true;
}

static bool sleeper_step(const struct model *m, struct state *state)
{
    struct side *s = &state->sleeper;
    unsigned look = 0, drain = 1, prepare = 2, again = prepare + m->prepare.n, sleep = again + 1, asleep = sleep + 1,
             cancel = asleep + 1;
    uint8_t tail = side_load(state, s, TAIL), none;

    if (s->pc == look) {
        if (state->head == ENTRIES)
            return false;
        s->pc = tail == state->head ? drain : look;
        state->head = tail;
        return true;
    }
    if (s->pc == drain) { /* a system call, if at all */
        if (state->rang && s->n_buffered > 0)
            return false;
        state->bytes = state->rang ? 0 : state->bytes;
        state->rang = 0;
        s->pc = prepare;
        return true;
    }
    if (s->pc < again) {
        const struct op *op = &m->prepare.ops[s->pc - prepare];
        uint8_t number = m->one_number ? 1 : state->n_sleeps + 1;
        bool stepped = side_step(state, s, op, number, &none);

        state->n_sleeps += stepped && op->kind == STORE && !m->one_number;
        return stepped;
    }
    if (s->pc == again) {
        s->pc = (uint8_t)(tail == state->head ? sleep : cancel);
        return true;
    }
    if (s->pc == sleep) { /* a system call */
        if (m->sleep == BY_FUTEX && s->n_buffered > 0)
            return false;
        state->woken = m->sleep == BY_FUTEX && state->memory[TAIL] != state->head; /* EAGAIN */
        s->pc = (uint8_t)asleep;
        return true;
    }
    if (s->pc == asleep) {
        if (state->bytes == 0 && !state->woken)
            return false;
        state->rang = m->sleep == BY_DOORBELL_DRAINED_LATE;
        state->bytes = state->rang ? state->bytes : 0; /* drained */
        state->woken = 0;
        s->pc = (uint8_t)cancel;
        return true;
    }
    if (!side_step(state, s, &m->cancel.ops[s->pc - cancel], m->cancel.ops[s->pc - cancel].value, &none))
        return false;
    if (s->pc == cancel + m->cancel.n)
        s->pc = (uint8_t)look;
    return true;
}

static void state_expand(struct search *s, const struct state *from)
{
    bool moved = false;
    struct state to;

    for (unsigned choice = 0; choice < 4; choice++) {
        to = *from;
        bool can = choice == 0   ? waker_step(s->model, &to)
                   : choice == 1 ? sleeper_step(s->model, &to)
                   : choice == 2 ? side_drain(&to, &to.waker)
                                 : side_drain(&to, &to.sleeper);
        if (can)
            state_add(s, &to);
        moved |= can;
    }
    s->slept += from->sleeper.pc == asleep_pc(s->model);
    if (!moved && from->head == ENTRIES)
        s->done++;
    else if (!moved)
        s->lost++;
}

static struct search explore(struct model model)
{
    struct search s = {.model = &model};
    struct state first;

    memset(&first, 0, sizeof(first));
    s.states = calloc(STATES_MAX, sizeof(*s.states));
    s.table = calloc((size_t)2 * STATES_MAX, sizeof(*s.table));
    ck_assert(s.states && s.table);
    state_add(&s, &first);
    while (s.at < s.n) {
        struct state from = s.states[s.at++];
        state_expand(&s, &from);
    }
    free(s.table);
    free(s.states);
    s.model = NULL;
    return s;
}

static struct model model_of_ring(enum sleep sleep, enum mutation mutation)
{
    struct model m = {
        .sleep = sleep, .one_number = mutation == SLEEPS_HAVE_ONE_NUMBER, .wakes_once = mutation == FUTEX_WAKES_ONCE};

    recording = &m.prepare;
    ring_sleep_prepare(&cells[FLAG], 1);
    recording = &m.cancel;
    ring_sleep_cancel(&cells[FLAG]);
    recording = &m.publish;
    (void)ring_publish(&cells[TAIL], 1, &cells[FLAG]);
    recording = NULL;
    if (mutation == WITHOUT_SLEEPERS_FENCE)
        m.prepare = without_fences(m.prepare);
    if (mutation == WITHOUT_WAKERS_FENCE)
        m.publish = without_fences(m.publish);
    return m;
}

/* --- Tests ------------------------------------------------------------------------------------------------------------ */

START_TEST(test_no_wakeup_is_lost)
{
    struct search s = explore(model_of_ring((enum sleep)_i, AS_IT_IS));

    ck_assert_uint_eq(s.lost, 0);
    ck_assert_uint_gt(s.done, 0);
    ck_assert_uint_gt(s.slept, 100); /* it did sleep, and more than once */
    ck_assert_uint_gt(s.n, 1000);
}
END_TEST

START_TEST(test_the_wakers_fence_is_needed)
{
    ck_assert_uint_gt(explore(model_of_ring((enum sleep)_i, WITHOUT_WAKERS_FENCE)).lost, 0);
}
END_TEST

START_TEST(test_the_sleepers_fence_is_needed)
{
    ck_assert_uint_gt(explore(model_of_ring(BY_DOORBELL, WITHOUT_SLEEPERS_FENCE)).lost, 0);
    /* The futex has a fence and a look of its own; we do not rely on it. */
    ck_assert_uint_eq(explore(model_of_ring(BY_FUTEX, WITHOUT_SLEEPERS_FENCE)).lost, 0);
}
END_TEST

START_TEST(test_each_sleep_needs_its_number)
{
    ck_assert_uint_gt(explore(model_of_ring((enum sleep)_i, SLEEPS_HAVE_ONE_NUMBER)).lost, 0);
    ck_assert_uint_gt(explore(model_of_ring(BY_FUTEX, FUTEX_WAKES_ONCE)).lost, 0);
}
END_TEST

START_TEST(test_a_sleep_is_ended_once)
{
    uint32_t n_sleeps = 0, rung = 0, word = ring_sleep_word(3, &n_sleeps);

    ck_assert_uint_eq(ring_must_wake(word, 2, &rung), 3);
    ck_assert_uint_eq(ring_must_wake(word, 2, &rung), 1); /* what lasts is on its way */
    ck_assert_uint_eq(ring_must_wake(ring_sleep_word(3, &n_sleeps), 2, &rung), 3);
    ck_assert_uint_eq(ring_must_wake(0, 2, &rung), 0);
    ck_assert_uint_eq(ring_must_wake(word, 2, &rung), 3); /* it was awake in between */
    for (unsigned i = 0; i < 2; i++)
        ck_assert_uint_eq(ring_must_wake(2, 2, &rung), 2); /* a sleeper that does not count */
    n_sleeps = UINT32_MAX >> RING_FLAG_BITS;
    ck_assert_uint_eq(ring_sleep_word(1, &n_sleeps), 1U << RING_FLAG_BITS | 1); /* never number 0 */
}
END_TEST

/* The order of the steps matters as well: look at the flag before the tail is published, and wake-ups are lost. */
START_TEST(test_the_order_is_needed)
{
    struct model m = model_of_ring(BY_DOORBELL, AS_IT_IS);
    struct op publish_first = m.publish.ops[0];

    ck_assert_int_eq(publish_first.kind, STORE);
    ck_assert_int_eq(publish_first.place, TAIL);
    m.publish.ops[0] = m.publish.ops[m.publish.n - 1];
    m.publish.ops[m.publish.n - 1] = publish_first;
    ck_assert_uint_gt(explore(m).lost, 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("ring_wakeup");
    TCase *tc = tcase_create("interleavings");

    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, test_no_wakeup_is_lost, BY_DOORBELL, SLEEPS);
    tcase_add_loop_test(tc, test_the_wakers_fence_is_needed, BY_DOORBELL, SLEEPS);
    tcase_add_test(tc, test_the_sleepers_fence_is_needed);
    tcase_add_loop_test(tc, test_each_sleep_needs_its_number, BY_DOORBELL, BY_FUTEX);
    tcase_add_test(tc, test_a_sleep_is_ended_once);
    tcase_add_test(tc, test_the_order_is_needed);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
