/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A chat service's requests. A block stands for 512 tokens; a request names all blocks of its prompt, oldest first; the
 * answer to one turn is part of the next turn's prompt. The shape is that of published traces (Mooncake, FAST'25:
 * 24 blocks a request on average with a long tail, two references in five seen before):
 *
 * - Hubs. Every conversation begins with one of 12 system prompts of 1 to 8 blocks, chosen with Zipf's law.
 * - Single shots (50 %): one request, never continued; log-normal lengths, median 10 blocks.
 * - Chats (35 %): a first question (log-normal, median 8 blocks), then more turns (geometric, 1.8 requests on average),
 *   each appending the answer and the next question: 1 to 12 blocks. Log-normal think times (median 45 s) let
 *   conversations interleave.
 * - Documents (15 %): 16 to 180 blocks of text (log-normal), a quarter of them from a library of 64 that many users ask
 *   about, again with Zipf's law; then, for half of them, one more question.
 * - One turn in 20 is asked again in other words: the blocks of the last turn are replaced, and the old ones are never
 *   used again.
 *
 * Conversations arrive at random, five a second.
 *
 * That is GENERATOR_CHATS. The other shapes differ in these shares and times (struct shape): agents are chats of ten turns
 * on average that follow each other within seconds; documents are what four in five ask about, most of them from a larger
 * library.
 *
 * One thread, no state outside the call. A heap orders the conversations by the time of their next turn.
 */
#include "client/bench/generator.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "client/bench/payload.h"
#include "include/base/cleanup.h"

#define HUBS 12
#define LIBRARY_MAX 512
#define ARRIVAL_MS 200.0
#define TURNS_MAX 40
#define CHAIN_MAX 4096 /* blocks: 2 Mi tokens, the end of every conversation */
#define LIVE_MAX 65536 /* conversations at once */

struct shape {
    const char *name;
    double documents, chats; /* shares of conversations; the rest are single shots */
    double one_more;         /* chance of a further turn of a chat */
    double own_document;     /* chance that nobody else asks about it */
    double think_median_ms;
    uint32_t n_library;
};

static const struct shape shapes[GENERATOR_SHAPES] = {
    [GENERATOR_CHATS] = {"chats", 0.15, 0.35, 0.45, 0.75, 45000, 64},
    [GENERATOR_AGENTS] = {"agents", 0.05, 0.85, 0.9, 0.75, 6000, 64},
    [GENERATOR_DOCUMENTS] = {"documents", 0.8, 0.1, 0.45, 0.3, 45000, 512},
};

struct conversation {
    double due_ms;
    uint32_t turns_left;
    uint32_t n, last_turn; /* blocks; where the last turn's blocks begin */
    uint32_t room;
    bool is_document;
    uint64_t *ids;
};

struct generator {
    const struct shape *shape;
    struct trace *trace;
    uint64_t state; /* of the random numbers */
    uint64_t next_id;
    uint64_t hubs[HUBS], hub_blocks[HUBS];
    uint64_t library[LIBRARY_MAX], library_blocks[LIBRARY_MAX]; /* first id (0: not read yet), length */
    struct conversation *heap;                                  /* earliest first */
    uint32_t n_live;
    uint8_t *asked; /* by id: was part of a request */
    uint64_t asked_room, n_asked;
};

/* ── random numbers ─────────────────────────────────────────────────────────────────────────────────────────────── */

static uint64_t random_u64(struct generator *g)
{
    g->state++;
    return payload_mix(g->state, 0x5eed);
}

/* In [0, 1). */
static double uniform(struct generator *g)
{
    return (double)(random_u64(g) >> 11) * 0x1p-53;
}

static bool chance(struct generator *g, double p)
{
    return uniform(g) < p;
}

static double exponential(struct generator *g, double mean)
{
    return -mean * log(1.0 - uniform(g));
}

static double log_normal(struct generator *g, double median, double sigma)
{
    double radius = sqrt(-2.0 * log(1.0 - uniform(g)));

    return median * exp(sigma * radius * cos(2.0 * M_PI * uniform(g)));
}

/* From 0 to n - 1, the k-th with a weight of 1/(k+1). */
static uint32_t zipf(struct generator *g, uint32_t n)
{
    double total = 0;

    for (uint32_t k = 0; k < n; k++)
        total += 1.0 / (k + 1);
    double x = uniform(g) * total;
    for (uint32_t k = 0; k < n; k++) {
        x -= 1.0 / (k + 1);
        if (x < 0)
            return k;
    }
    return n - 1;
}

static uint32_t blocks_between(double blocks, uint32_t least, uint32_t most)
{
    return blocks < least ? least : blocks > most ? most : (uint32_t)blocks;
}

/* ── conversations ──────────────────────────────────────────────────────────────────────────────────────────────── */

static int append(struct conversation *c, uint64_t first, uint32_t n)
{
    if (c->n + n > c->room) {
        uint32_t room = MAX(c->n + n, c->room * 2);
        uint64_t *ids = realloc(c->ids, room * sizeof(*ids));

        if (!ids)
            return -ENOMEM;
        c->ids = ids;
        c->room = room;
    }
    for (uint32_t i = 0; i < n; i++)
        c->ids[c->n++] = first + i;
    return 0;
}

static int append_new(struct generator *g, struct conversation *c, uint32_t n)
{
    uint64_t first = g->next_id;

    g->next_id += n;
    return append(c, first, n);
}

static int append_document(struct generator *g, struct conversation *c)
{
    uint32_t n = blocks_between(log_normal(g, 40, 0.8), 16, 180), k = zipf(g, g->shape->n_library);

    if (chance(g, g->shape->own_document))
        return append_new(g, c, n);
    if (g->library_blocks[k] == 0) {
        g->library[k] = g->next_id;
        g->library_blocks[k] = n;
        g->next_id += n;
    }
    return append(c, g->library[k], (uint32_t)g->library_blocks[k]);
}

static uint32_t question_blocks(struct generator *g)
{
    return blocks_between(1 + exponential(g, 3.5), 1, 12);
}

static int conversation_begin(struct generator *g, double now_ms, struct conversation *c)
{
    double kind = uniform(g), documents = g->shape->documents, chats = g->shape->chats;
    uint32_t hub = zipf(g, HUBS);

    *c = (struct conversation){.due_ms = now_ms, .turns_left = 1};
    int r = append(c, g->hubs[hub], (uint32_t)g->hub_blocks[hub]);
    if (r == 0 && kind < documents) {
        c->is_document = true;
        c->turns_left += (uint32_t)(uniform(g) * 2);
        r = append_document(g, c);
    } else if (kind < documents + chats) {
        while (c->turns_left < TURNS_MAX && chance(g, g->shape->one_more))
            c->turns_left++;
    }
    if (r < 0)
        return r;
    c->last_turn = c->n;
    uint32_t first = blocks_between(log_normal(g, kind < documents + chats ? 8 : 10, 1.0), 1, 160);
    return append_new(g, c, c->is_document ? 1 : first);
}

/* What the conversation says next, after its last request. */
static int conversation_continue(struct generator *g, struct conversation *c)
{
    if (chance(g, 0.05))
        c->n = c->last_turn; /* asked again in other words */
    else
        c->last_turn = c->n;
    c->due_ms += log_normal(g, g->shape->think_median_ms, 1.0);
    return append_new(g, c, c->is_document ? 2 : question_blocks(g));
}

/* ── the heap ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static void heap_swap(struct generator *g, uint32_t a, uint32_t b)
{
    struct conversation c = g->heap[a];

    g->heap[a] = g->heap[b];
    g->heap[b] = c;
}

static void heap_push(struct generator *g, const struct conversation *c)
{
    uint32_t i = g->n_live++;

    for (g->heap[i] = *c; i > 0 && g->heap[i].due_ms < g->heap[(i - 1) / 2].due_ms; i = (i - 1) / 2)
        heap_swap(g, i, (i - 1) / 2);
}

static struct conversation heap_pop(struct generator *g)
{
    struct conversation first = g->heap[0];

    g->heap[0] = g->heap[--g->n_live];
    for (uint32_t i = 0;;) {
        uint32_t least = i;

        for (uint32_t child = 2 * i + 1; child <= 2 * i + 2 && child < g->n_live; child++)
            if (g->heap[child].due_ms < g->heap[least].due_ms)
                least = child;
        if (least == i)
            return first;
        heap_swap(g, i, least);
        i = least;
    }
}

/* ── the run ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static void generator_deinit(struct generator *g)
{
    for (uint32_t i = 0; g->heap && i < g->n_live; i++)
        free(g->heap[i].ids);
    free(g->heap);
    free(g->asked);
}

/* Counts blocks that are asked for the first time. */
static int mark_asked(struct generator *g, const struct conversation *c)
{
    if (g->next_id > g->asked_room) {
        uint64_t room = g->next_id * 2;
        uint8_t *asked = realloc(g->asked, room);

        if (!asked)
            return -ENOMEM;
        memset(asked + g->asked_room, 0, room - g->asked_room);
        g->asked = asked;
        g->asked_room = room;
    }
    for (uint32_t i = 0; i < c->n; i++) {
        g->n_asked += !g->asked[c->ids[i]];
        g->asked[c->ids[i]] = true;
    }
    return 0;
}

static void hubs_make(struct generator *g)
{
    for (uint32_t i = 0; i < HUBS; i++) {
        g->hubs[i] = g->next_id;
        g->hub_blocks[i] = 1 + (uint32_t)(uniform(g) * 8);
        g->next_id += g->hub_blocks[i];
    }
}

/* One request: of the conversation whose turn it is. */
static int step(struct generator *g)
{
    struct conversation c = heap_pop(g);
    int r = trace_add(g->trace, c.due_ms < UINT32_MAX ? (uint32_t)c.due_ms : UINT32_MAX, c.ids, c.n);

    if (r == 0)
        r = mark_asked(g, &c);
    if (r == 0 && --c.turns_left > 0 && c.n < CHAIN_MAX)
        r = conversation_continue(g, &c);
    else
        c.turns_left = 0;
    if (r < 0 || c.turns_left == 0)
        free(c.ids);
    else
        heap_push(g, &c);
    return r;
}

static bool enough(const struct generator_options *o, const struct generator *g)
{
    return o->n_requests ? g->trace->n_requests >= o->n_requests : g->n_asked >= o->n_distinct;
}

const char *generator_shape_name(enum generator_shape shape)
{
    return shapes[shape].name;
}

int generator_run(const struct generator_options *options, struct trace *ret_trace)
{
    cleanup_(trace_deinit) struct trace t = {0};
    cleanup_(generator_deinit) struct generator g = {
        .shape = &shapes[options->shape], .trace = &t, .state = payload_mix(options->seed, 0x6368), .next_id = 1};
    double arrival_ms = 0;
    int r = 0;

    g.heap = calloc(LIVE_MAX, sizeof(*g.heap));
    if (!g.heap)
        return -ENOMEM;
    hubs_make(&g);
    while (r == 0 && !enough(options, &g)) {
        bool arrives = g.n_live == 0 || arrival_ms <= g.heap[0].due_ms;

        if (arrives && g.n_live < LIVE_MAX) {
            struct conversation c;

            r = conversation_begin(&g, arrival_ms, &c);
            if (r < 0)
                free(c.ids);
            else
                heap_push(&g, &c);
            arrival_ms += exponential(&g, ARRIVAL_MS);
        } else {
            r = step(&g);
        }
    }
    if (r == 0)
        r = trace_count(&t);
    if (r < 0)
        return r;
    *ret_trace = t;
    t = (struct trace){0};
    return 0;
}
