/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much host memory it takes to stream a model's parameters through a machine in the order in which training needs them:
 * the tensors of three published models, each an eighth of its size, in bf16, on a device. A module is what is computed at
 * once: the embedding, a block, the head. While one is used, all of its tensors are leased, and so are those of the next.
 *
 * Beside it, by arithmetic, what ZeRO-Infinity pins for the same: BUFFERS buffers, each as large as the largest tensor, and
 * the same when the allocator rounds that up to a power of two [MemAscend]. And class pools: a buffer for each tensor of two
 * blocks, and for the embedding and the head.
 *
 * Before there is any tensor the daemon is asked what leases of these sizes take (spw_manifest): no more than the sum over all
 * sizes of slots · (size + 4 KiB), MemAscend's rule.
 *
 * Every tensor's ends carry its number, which is checked at each use.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "client/bench/admin.h"
#include "client/bench/bench.h"
#include "client/bench/micro.h"
#include "client/bench/payload.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define SCALE 8
#define ELEMENT_BYTES 2
#define BUFFERS 16
#define LEASES_PERCENT 80      /* of a pool, the default */
#define SPARE_BYTES (16 * MIB) /* chunks and slabs are whole */
#define ROUNDS 2
#define TIMEOUT_MS 60000
#define TENSORS_MAX 512
#define VIEWS_MAX 64 /* pieces of a tensor */
#define GOAL 0.44

static const struct argp_option rows[] = {ROW_SEED, ROW_KEEP, ROW_QUIET, ROW_QUICK, ROW_OUTPUT, {0}};
static const char doc[] = "Measures the host memory that streaming a model's parameters takes, beside ZeRO-Infinity's.";

/* As published: rows of the embedding and the head, and what a block has. All have an embedding and a head of their own. */
static const struct model {
    const char *name;
    uint64_t hidden, kv, intermediate, vocabulary;
    unsigned n_blocks;
    bool has_biases; /* of q, k, v */
} models[] = {{"Llama-3.1-8B", 4096, 1024, 14336, 128256, 32, false},
              {"Qwen2.5-7B", 3584, 512, 18944, 152064, 28, true},
              {"Llama-2-7B", 4096, 4096, 11008, 32000, 32, false}};

struct tensor {
    uint64_t bytes;
    unsigned module;
};

struct leased {
    struct spw_view views[VIEWS_MAX];
    long n; /* 0: not leased */
};

struct footprint {
    const struct model *model;
    struct micro *micro;
    spw_space *space;
    unsigned n, n_modules;
    struct tensor tensors[TENSORS_MAX];
    struct leased leased[TENSORS_MAX];
    uint64_t leased_bytes, leased_most; /* now, and at most */
    double daemon_leased_most;          /* the daemon's own word for it */
    struct spw_sizing sizing;           /* what it said beforehand */
    uint64_t rule_bytes;
};

/* ── the tensors ────────────────────────────────────────────────────────────────────────────────────────────────── */

static void add(struct footprint *f, uint64_t n_rows, uint64_t n_columns, unsigned module)
{
    assert(f->n < TENSORS_MAX);
    f->tensors[f->n++] = (struct tensor){.bytes = n_rows * n_columns / SCALE * ELEMENT_BYTES, .module = module};
}

static void add_block(struct footprint *f, unsigned module)
{
    const struct model *m = f->model;

    add(f, m->hidden, 1, module); /* norm */
    add(f, m->hidden, m->hidden, module);
    add(f, m->kv, m->hidden, module);
    add(f, m->kv, m->hidden, module);
    if (m->has_biases) {
        add(f, m->hidden, 1, module);
        add(f, m->kv, 1, module);
        add(f, m->kv, 1, module);
    }
    add(f, m->hidden, m->hidden, module);
    add(f, m->hidden, 1, module); /* norm */
    add(f, m->intermediate, m->hidden, module);
    add(f, m->intermediate, m->hidden, module);
    add(f, m->hidden, m->intermediate, module);
}

static void tensors_list(struct footprint *f, const struct model *model)
{
    f->model = model;
    add(f, model->vocabulary, model->hidden, f->n_modules++);
    for (unsigned i = 0; i < model->n_blocks; i++)
        add_block(f, f->n_modules++);
    add(f, model->hidden, 1, f->n_modules); /* norm */
    add(f, model->vocabulary, model->hidden, f->n_modules++);
}

static uint64_t module_bytes(const struct footprint *f, unsigned module)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < f->n; i++)
        bytes += f->tensors[i].module == module ? f->tensors[i].bytes : 0;
    return bytes;
}

static uint64_t all_bytes(const struct footprint *f)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < f->n; i++)
        bytes += f->tensors[i].bytes;
    return bytes;
}

/* ── arithmetic ─────────────────────────────────────────────────────────────────────────────────────────────────── */

static uint64_t infinity_bytes(const struct footprint *f)
{
    uint64_t largest = 0;

    for (unsigned i = 0; i < f->n; i++)
        largest = MAX(largest, f->tensors[i].bytes);
    return BUFFERS * round_up(largest, SECTOR_BYTES);
}

static uint64_t power_of_two(uint64_t bytes)
{
    uint64_t power = 1;

    while (power < bytes)
        power *= 2;
    return power;
}

static uint64_t class_pools_bytes(const struct footprint *f)
{
    return module_bytes(f, 0) + 2 * module_bytes(f, 1) + module_bytes(f, f->n_modules - 1);
}

/* Of two modules, one after the other. */
static uint64_t window_bytes(const struct footprint *f)
{
    uint64_t most = 0;

    for (unsigned i = 0; i + 1 < f->n_modules; i++)
        most = MAX(most, module_bytes(f, i) + module_bytes(f, i + 1));
    return most;
}

/* ── streaming ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static void mark(const struct footprint *f, unsigned tensor, bool is_write, bool *ret_right)
{
    const struct leased *l = &f->leased[tensor];
    const struct spw_view *last = &l->views[l->n - 1];
    uint64_t is = payload_mix(f->micro->options->seed, tensor);
    char *ends[] = {l->views[0].data, (char *)last->data + last->size_bytes - sizeof(is)};

    *ret_right = true;
    for (unsigned i = 0; i < ARRAY_LEN(ends); i++) {
        if (is_write)
            memcpy(ends[i], &is, sizeof(is));
        else
            *ret_right &= memcmp(ends[i], &is, sizeof(is)) == 0;
    }
}

static int tensor_acquire(struct footprint *f, unsigned tensor, unsigned flags)
{
    struct leased *l = &f->leased[tensor];
    struct spw_key key;

    payload_key(f->micro->options->seed, tensor, &key);
    long n = spw_acquire_range(f->space, &key, 0, f->tensors[tensor].bytes, flags, TIMEOUT_MS, l->views, VIEWS_MAX);
    if (n <= 0)
        return micro_say("acquire", (int)n);
    for (long i = 0; i < n; i++) {
        if (l->views[i].status == 0)
            continue;
        fprintf(stderr, "spillbench: acquire: %s, %s\n", strerrordesc_np(-l->views[i].status),
                spw_limit_text(l->views[i].detail));
        return l->views[i].status;
    }
    l->n = n;
    f->leased_bytes += f->tensors[tensor].bytes;
    f->leased_most = MAX(f->leased_most, f->leased_bytes);
    return 0;
}

static int tensor_release(struct footprint *f, unsigned tensor, unsigned flags)
{
    struct leased *l = &f->leased[tensor];
    int r = spw_release(f->space, l->views, (size_t)l->n, flags);

    l->n = 0;
    f->leased_bytes -= f->tensors[tensor].bytes;
    return r < 0 ? micro_say("release", r) : 0;
}

static int create(struct footprint *f)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < f->n; i++) {
        struct spw_key key;
        bool unused;

        payload_key(f->micro->options->seed, i, &key);
        r = spw_tensor_open(f->space, &key, f->tensors[i].bytes);
        if (r < 0)
            return micro_say("tensor", r);
        r = tensor_acquire(f, i, SPW_WRITE);
        if (r < 0)
            return r;
        mark(f, i, true, &unused);
        r = tensor_release(f, i, SPW_DIRTY);
    }
    return r;
}

typedef int (*tensor_fn)(struct footprint *f, unsigned tensor);

static int module_each(struct footprint *f, unsigned module, tensor_fn use)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < f->n; i++)
        if (f->tensors[i].module == module)
            r = use(f, i);
    return r;
}

static int get(struct footprint *f, unsigned tensor)
{
    return tensor_acquire(f, tensor, 0);
}

static int use_and_give(struct footprint *f, unsigned tensor)
{
    bool right;

    mark(f, tensor, false, &right);
    return right ? tensor_release(f, tensor, 0) : micro_say("tensor", 0);
}

static int look(struct footprint *f)
{
    cleanup_json struct json_object *reply = NULL;
    int r = admin_get(f->micro->session, "pools", &reply);

    if (r == 0)
        f->daemon_leased_most = MAX(f->daemon_leased_most, admin_number(reply, "pools.dram.leased_bytes"));
    return r;
}

static int stream(struct footprint *f)
{
    int r = module_each(f, 0, get);

    for (unsigned i = 0; r == 0 && i < f->n_modules; i++) {
        if (i + 1 < f->n_modules)
            r = module_each(f, i + 1, get);
        if (r == 0)
            r = look(f);
        if (r == 0)
            r = module_each(f, i, use_and_give);
    }
    return r;
}

/* ── asked beforehand ───────────────────────────────────────────────────────────────────────────────────────────── */

static uint32_t n_of_size(const struct footprint *f, uint64_t bytes, unsigned first_module, unsigned n_modules)
{
    uint32_t n = 0;

    for (unsigned i = 0; i < f->n; i++)
        n += f->tensors[i].bytes == bytes && f->tensors[i].module - first_module < n_modules;
    return n;
}

/* An entry a size: leased at once is what two modules, one after the other, have of it at most. */
static uint32_t manifest_list(const struct footprint *f, struct spw_manifest_entry entries[static SPW_MANIFEST_MAX])
{
    uint32_t n = 0;

    for (unsigned i = 0; i < f->n; i++) {
        struct spw_manifest_entry e = {.size_bytes = f->tensors[i].bytes, .flags = SPW_MANIFEST_WRITE};
        bool is_known = false;

        for (uint32_t k = 0; k < n; k++)
            is_known |= entries[k].size_bytes == e.size_bytes;
        if (is_known)
            continue;
        e.count = n_of_size(f, e.size_bytes, 0, f->n_modules);
        for (unsigned m = 0; m + 1 < f->n_modules; m++)
            e.slots = MAX(e.slots, n_of_size(f, e.size_bytes, m, 2));
        assert(n < SPW_MANIFEST_MAX);
        entries[n++] = e;
    }
    return n;
}

static int ask(struct footprint *f)
{
    struct spw_manifest_entry entries[SPW_MANIFEST_MAX] = {{0}};
    uint32_t n = manifest_list(f, entries);
    int r = spw_manifest(f->micro->pool, entries, n, &f->sizing);

    for (uint32_t i = 0; i < n; i++)
        f->rule_bytes += entries[i].slots * (entries[i].size_bytes + SECTOR_BYTES);
    return r < 0 ? micro_say("manifest", r) : 0;
}

/* ── figures ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static struct figure *figure_of(const struct footprint *f, double bytes, const char *what, struct figures *figures)
{
    return figure_add(figures, "MB", bytes * 1e-6, "%s, %s", f->model->name, what);
}

static void figure_arithmetic(const struct footprint *f, struct figures *figures)
{
    uint64_t infinity = infinity_bytes(f);

    (void)figure_of(f, (double)all_bytes(f), "parameters", figures);
    (void)figure_of(f, (double)infinity, "ZeRO-Infinity's buffers", figures);
    (void)figure_of(f, (double)power_of_two(infinity), "the same, rounded to a power of two", figures);
    figure_beside(figure_of(f, (double)class_pools_bytes(f), "class pools", figures), "ZeRO-Infinity's buffers",
                  (double)infinity * 1e-6);
}

static int figure_measures(struct footprint *f, struct figures *figures)
{
    double infinity = (double)infinity_bytes(f) * 1e-6;
    struct process_usage daemon, client;
    int r = process_usage(f->micro->daemon_pid, &daemon);

    if (r == 0)
        r = process_usage(0, &client);
    if (r != 0)
        return r;
    struct figure *told = figure_of(f, (double)f->sizing.leased_bytes, "leases, asked beforehand", figures);
    figure_beside(told, "slots x (size + 4 KiB)", (double)f->rule_bytes * 1e-6);
    figure_goal_ratio(told, GOAL_AT_MOST, 1);
    (void)figure_of(f, (double)f->sizing.memory_bytes, "memory for these, asked beforehand", figures);
    (void)figure_of(f, (double)f->leased_most, "leased at most", figures);
    (void)figure_of(f, f->daemon_leased_most, "leased at most, as the daemon says", figures);
    /* What is locked and what io_uring has pinned is the same memory, for the most part. */
    uint64_t pinned_bytes = MIN(daemon.pinned_bytes + daemon.locked_bytes, daemon.rss_bytes);
    struct figure *pinned = figure_of(f, (double)pinned_bytes, "pinned", figures);
    figure_beside(pinned, "ZeRO-Infinity's buffers", infinity);
    figure_goal_ratio(pinned, GOAL_AT_MOST, GOAL);
    struct figure *all = figure_of(f, (double)(daemon.rss_peak_bytes + client.anonymous_bytes),
                                   "all memory at most, daemon and client", figures);
    figure_beside(all, "ZeRO-Infinity's buffers", infinity);
    figure_goal_ratio(all, GOAL_AT_MOST, GOAL);
    return 0;
}

static int measure(struct micro *m)
{
    struct spw_space_options so = {.class_id = SPW_CLASS_WEIGHTS, .durability = SPW_SCRATCH, .digest = "footprint"};
    struct footprint *f = m->ctx;
    int r = spw_space_open(m->pool, &so, &f->space);

    f->micro = m;
    if (r < 0)
        return micro_say("space", r);
    r = ask(f);
    if (r == 0)
        r = create(f);
    f->leased_most = 0;
    for (unsigned i = 0; r == 0 && i < (m->options->quick ? 1 : ROUNDS); i++)
        r = stream(f);
    return r < 0 ? r : figure_measures(f, m->figures);
}

static int measure_model(const struct options *o, const struct model *model, struct figures *figures)
{
    cleanup_free struct footprint *f = calloc(1, sizeof(*f));

    if (!f)
        return -ENOMEM;
    tensors_list(f, model);
    figure_arithmetic(f, figures);
    struct harness_options ho = {.dram_bytes = window_bytes(f) * 100 / LEASES_PERCENT + SPARE_BYTES,
                                 .device_bytes = harness_device_bytes(all_bytes(f)),
                                 .object_bytes = MIB,
                                 .keep = o->keep,
                                 .quiet = o->quiet};
    return micro_daemon(o, &ho, measure, f, figures);
}

int bench_footprint(int argc, char **argv)
{
    static struct figures figures;
    struct options o = {.seed = 1};
    int r = 0;

    options_parse(argc, argv, rows, doc, &o);
    for (size_t i = 0; r == 0 && i < (o.quick ? 1 : ARRAY_LEN(models)); i++)
        r = measure_model(&o, &models[i], &figures);
    return micro_end(&o, &figures, r);
}
