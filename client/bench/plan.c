/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How often what training asks for is in memory already, in a running daemon whose pool has memory for 75, 50 and 25 % of the
 * states: tensors on a file device, asked for, changed and given back one at a time, in the order of an optimizer's groups (each
 * once in a step) and of a model's layers (forward, then backward). The daemon counts; each row is a daemon of its own.
 *
 *   stay       the pool reads nothing ahead: what is there has stayed, so this is what eviction is worth, declared or learned.
 *              Beside it Belady's optimum in as many places
 *   LRU        the same with the policy lru; and LRU offline, in as many places
 *   found      the pool reads ahead, while so much is computed on each tensor as a disk can keep up with: how much is there
 *              by either, beside the optimum without reading ahead; and how much of that has stayed
 *
 * Steps that are counted come after those in which an order can be learned. Every tensor's ends carry its number and how often
 * it was used, which is checked at each use. One thread.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "client/bench/admin.h"
#include "client/bench/bench.h"
#include "client/bench/live.h"
#include "client/bench/micro.h"
#include "client/bench/order.h"
#include "client/bench/payload.h"
#include "include/base/cleanup.h"

#define TENSORS 256
#define TENSOR_BYTES (1 * MIB)
#define STEPS_BEFORE 6
#define STEPS 4
#define STEPS_QUICK 1
#define TENSORS_QUICK 64
#define TENSOR_BYTES_QUICK (2 * MIB) /* a pool has 64 MiB at least */
#define PERCENT_QUICK 50
#define COMPUTE_NS 4000000 /* on a tensor, where the daemon reads ahead: 260 MB/s each way */
#define TIMEOUT_MS 30000
#define GOAL 0.98

static const struct argp_option rows[] = {
    ROW_ONLY("groups, layers"), ROW_SEED, ROW_KEEP, ROW_QUIET, ROW_QUICK, ROW_OUTPUT, {0}};
static const char doc[] = "Measures how often what training asks for is in the daemon's memory already.";

static const unsigned percents[] = {75, 50, 25};

static const struct pattern {
    const char *word, *name;
    bool is_there_and_back;
} patterns[] = {{"groups", "groups in turn", false}, {"layers", "layers forward and backward", true}};
static const char *const words[] = {"groups", "layers", NULL};

static const struct mode {
    const char *name, *policy;
    bool declares, reads_ahead;
} modes[] = {{"stay, declared", "plan", true, false},
             {"stay, learned", "plan", false, false},
             {"stay, LRU", "lru", false, false},
             {"found, declared", "plan", true, true},
             {"found, learned", "plan", false, true}};

/* What the daemon has counted. */
struct counts {
    double dram, nvme, loading, early_used;
};

struct bench {
    const struct options *options;
    const struct pattern *pattern;
    const struct mode *mode;
    unsigned percent;
    spw_space *space;
    uint32_t n_tensors, n_places, n_steps;
    uint64_t tensor_bytes;
    uint32_t at[2 * TENSORS];
    struct order order;
    struct spw_key keys[TENSORS];
    uint64_t n_uses[TENSORS];
};

static_assert(TENSORS <= ORDER_OBJECTS_MAX, "an order has room for them");

static void order_make(struct bench *b)
{
    for (uint32_t i = 0; i < b->n_tensors; i++)
        b->at[i] = b->at[2 * b->n_tensors - 1 - i] = i;
    b->order = (struct order){.at = b->at, .n = b->pattern->is_there_and_back ? 2 * b->n_tensors : b->n_tensors};
}

/* ── a step ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static uint64_t mark_of(const struct bench *b, uint32_t tensor)
{
    return payload_mix(payload_mix(b->options->seed, tensor), b->n_uses[tensor]);
}

/* Checks both ends if it was used before, and writes them anew. */
static bool tensor_use(struct bench *b, uint32_t tensor, const struct spw_view *view)
{
    uint64_t is = mark_of(b, tensor);
    char *ends[] = {view->data, (char *)view->data + b->tensor_bytes - sizeof(is)};
    bool right = true;

    for (unsigned i = 0; i < ARRAY_LEN(ends) && b->n_uses[tensor] > 0; i++)
        right &= memcmp(ends[i], &is, sizeof(is)) == 0;
    b->n_uses[tensor]++;
    is = mark_of(b, tensor);
    for (unsigned i = 0; i < ARRAY_LEN(ends); i++)
        memcpy(ends[i], &is, sizeof(is));
    return right;
}

static int access_one(struct bench *b, uint32_t tensor)
{
    struct spw_view view;
    int r = spw_acquire(b->space, &b->keys[tensor], 1, SPW_WRITE, TIMEOUT_MS, &view);

    if (r < 0)
        return micro_say("acquire", r);
    if (view.status < 0) {
        fprintf(stderr, "spillbench: acquire: %s, %s\n", strerrordesc_np(-view.status), spw_limit_text(view.detail));
        return view.status;
    }
    bool right = tensor_use(b, tensor, &view);

    if (b->mode->reads_ahead)
        nanosleep(&(struct timespec){.tv_nsec = COMPUTE_NS}, NULL);
    r = spw_release(b->space, &view, 1, SPW_DIRTY);
    return r < 0 || !right ? micro_say("tensor", r) : 0;
}

static int steps_run(struct bench *b, uint32_t n)
{
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < (uint64_t)n * b->order.n; i++)
        r = live_interrupted() ? -EINTR : access_one(b, b->at[i % b->order.n]);
    return r;
}

/* ── a row ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

static int states_begin(struct bench *b, spw_pool *pool)
{
    const struct spw_space_options so = {.class_id = SPW_CLASS_OPTIMIZER, .durability = SPW_SCRATCH, .digest = "plan"};
    int r = spw_space_open(pool, &so, &b->space);

    if (r < 0)
        return micro_say("space", r);
    for (uint32_t i = 0; r == 0 && i < b->n_tensors; i++) {
        payload_key(b->options->seed, i, &b->keys[i]);
        r = spw_tensor_open(b->space, &b->keys[i], b->tensor_bytes);
    }
    memset(b->n_uses, 0, sizeof(b->n_uses));
    return r < 0 ? micro_say("tensor", r) : 0;
}

static int declare(const struct bench *b)
{
    cleanup_free struct spw_key *keys = calloc(b->order.n, sizeof(*keys));

    if (!keys)
        return -ENOMEM;
    for (uint32_t i = 0; i < b->order.n; i++)
        keys[i] = b->keys[b->at[i]];
    long n = spw_plan(b->space, keys, b->order.n);
    return n == b->order.n ? 0 : micro_say("plan", n < 0 ? (int)n : 0);
}

static int count(spw_session *session, struct counts *ret_counts)
{
    cleanup_json struct json_object *reply = NULL;
    int r = admin_get(session, "pools", &reply);

    if (r < 0)
        return r;
    *ret_counts = (struct counts){.dram = admin_number(reply, "pools.hits_dram"),
                                  .nvme = admin_number(reply, "pools.hits_nvme"),
                                  .loading = admin_number(reply, "pools.hits_loading"),
                                  .early_used = admin_number(reply, "pools.prefetched_used")};
    return 0;
}

static struct figure *figure_share(const struct bench *b, struct figures *figures, double n, const char *what)
{
    return figure_add(figures, "%", 100 * n / (b->n_steps * b->order.n), "%s, %u %%, %s", b->pattern->name, b->percent,
                      what);
}

static double offline(const struct bench *b, enum order_policy policy)
{
    return (double)order_hits(&b->order, policy, b->n_places, STEPS_BEFORE, b->n_steps);
}

static void figure_row(const struct bench *b, const struct counts *n, struct figures *figures)
{
    bool is_lru = strcmp(b->mode->policy, "lru") == 0;
    double optimum = 100 * offline(b, ORDER_OPTIMUM) / (b->n_steps * b->order.n);
    struct figure *f = figure_share(b, figures, n->dram, b->mode->name);

    figure_beside(f, "the optimum", optimum);
    if (is_lru)
        (void)figure_share(b, figures, offline(b, ORDER_LRU), "LRU offline");
    else if (!b->mode->reads_ahead) /* else it is a matter of time as well */
        figure_goal_ratio(f, GOAL_AT_LEAST, GOAL);
    if (!b->mode->reads_ahead)
        return;
    /* Read ahead and there in time, or asked for while it was read: all others that are there have stayed. */
    (void)figure_share(b, figures, n->dram - (n->early_used - n->loading),
                       b->mode->declares ? "found, declared, of these stayed" : "found, learned, of these stayed");
    (void)figure_share(b, figures, n->loading,
                       b->mode->declares ? "not found, declared, but being read"
                                         : "not found, learned, but being read");
}

static int measure(struct micro *m)
{
    struct bench *b = m->ctx;
    struct counts before = {0}, after = {0};
    int r = states_begin(b, m->pool);

    if (r == 0 && b->mode->declares)
        r = declare(b);
    if (r == 0)
        r = steps_run(b, STEPS_BEFORE);
    if (r == 0)
        r = count(m->session, &before);
    if (r == 0)
        r = steps_run(b, b->n_steps);
    if (r == 0)
        r = count(m->session, &after);
    if (r < 0)
        return r;
    after.dram -= before.dram;
    after.nvme -= before.nvme;
    after.loading -= before.loading;
    after.early_used -= before.early_used;
    if (after.dram + after.nvme != (double)b->n_steps * b->order.n) {
        fprintf(stderr, "spillbench: the daemon counted %g accesses\n", after.dram + after.nvme);
        return -EBADMSG;
    }
    figure_row(b, &after, m->figures);
    return 0;
}

static int measure_row(struct bench *b, struct figures *figures)
{
    char pools[128];
    struct harness_options ho = {.pools = pools,
                                 .dram_bytes = b->n_places * b->tensor_bytes,
                                 .device_bytes = harness_device_bytes(2 * b->tensor_bytes * b->n_tensors),
                                 .object_bytes = b->tensor_bytes,
                                 .keep = b->options->keep,
                                 .quiet = b->options->quiet};

    snprintf(pools, sizeof(pools), "[class optimizer]\npolicy = %s\n\n[pool bench]\n%s", b->mode->policy,
             b->mode->reads_ahead ? "" : "prefetch_ahead = 0\n");
    return micro_daemon(b->options, &ho, measure, b, figures);
}

static int measure_pattern(struct bench *b, struct figures *figures)
{
    int r = 0;

    order_make(b);
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(percents); i++) {
        b->percent = percents[i];
        if (b->options->quick && b->percent != PERCENT_QUICK)
            continue;
        b->n_places = b->n_tensors * b->percent / 100;
        for (size_t k = 0; r == 0 && k < ARRAY_LEN(modes); k++) {
            b->mode = &modes[k];
            r = measure_row(b, figures);
        }
    }
    return r;
}

int bench_plan(int argc, char **argv)
{
    static struct figures figures;
    static struct options o = {.seed = 1};
    static struct bench b = {.options = &o};
    int r = 0;

    options_parse(argc, argv, rows, doc, &o);
    options_check_choice("only", o.only, words);
    b.n_steps = o.quick ? STEPS_QUICK : STEPS;
    b.n_tensors = o.quick ? TENSORS_QUICK : TENSORS;
    b.tensor_bytes = o.quick ? TENSOR_BYTES_QUICK : TENSOR_BYTES;
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(patterns); i++) {
        b.pattern = &patterns[i];
        if (options_choose(o.only, b.pattern->word))
            r = measure_pattern(&b, &figures);
    }
    return micro_end(&o, &figures, r);
}
