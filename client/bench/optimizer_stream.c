/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads ahead, steps in order, and gives back at once, so that reads, the step and writes overlap as far as the window and
 * the daemon let them:
 *
 *     daemon      read 3 │ read 4 │ read 5         a request a chunk, all on one queue
 *     here        step 1 │ step 2 │ step 3
 *     daemon             │ write 1│ write 2        when it wants the room, ahead of need
 *
 * One thread; nothing is allocated in a step.
 */
#include "client/bench/optimizer.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/bench/live.h"
#include "client/bench/micro.h"
#include "client/bench/payload.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define TIMEOUT_MS 30000
#define STUCK_MS 40000

/* AWAY ──ask──▶ ASKED ──answer──▶ LEASED ──step──▶ RETURNED ──answer──▶ AWAY */
enum chunk_state { AWAY, ASKED, LEASED, RETURNED };

struct chunk {
    struct spw_key key;
    struct spw_view view;
    size_t first, n; /* elements of the model */
    enum chunk_state state;
};

struct optimizer_stream {
    const struct optimizer_model *model;
    spw_space *space;
    spw_queue *queue;
    unsigned window, n_out; /* chunks that are not AWAY */
    uint64_t step;          /* 0: they are filled */
    size_t n_chunks;
    struct chunk chunks[];
};

size_t optimizer_chunk_elements(uint64_t piece_bytes)
{
    return piece_bytes / STATE_BYTES / SPW_TRAIN_BLOCK * SPW_TRAIN_BLOCK;
}

struct spw_adam_options optimizer_numbers(uint64_t step)
{
    return (struct spw_adam_options){
        .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01, .grad_scale = 1, .step = step};
}

float optimizer_first(const struct optimizer_model *model, size_t i)
{
    return (float)(int32_t)payload_mix(model->seed, i) * 0x1p-31f;
}

/* ── chunks ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static struct spw_adam_slice slice_of(const struct optimizer_stream *s, const struct chunk *c)
{
    float *master = c->view.data;

    return (struct spw_adam_slice){.n = c->n,
                                   .grad = s->model->grad + c->first,
                                   .master = master,
                                   .m = master + c->n,
                                   .v = master + 2 * c->n,
                                   .param = s->model->param + c->first,
                                   .grad_dtype = SPW_DTYPE_BF16,
                                   .param_dtype = SPW_DTYPE_BF16};
}

static void chunk_begin(const struct optimizer_stream *s, const struct chunk *c)
{
    struct spw_adam_slice slice = slice_of(s, c);

    for (size_t i = 0; i < c->n; i++)
        slice.master[i] = optimizer_first(s->model, c->first + i);
    memset(slice.m, 0, 2 * c->n * sizeof(float));
}

static int chunk_step(struct optimizer_stream *s, struct chunk *c)
{
    struct spw_adam_options numbers = optimizer_numbers(s->step);
    struct spw_adam_slice slice = slice_of(s, c);

    if (s->step == 0) {
        chunk_begin(s, c);
        return 0;
    }
    int r = spw_adam(s->model->workers, &numbers, &slice, 1, NULL);
    return r < 0 ? micro_say("step", r) : 0;
}

static int chunk_ask(struct optimizer_stream *s, struct chunk *c)
{
    spw_job *job;
    int r = spw_submit_acquire(s->queue, s->space, &c->key, 1, SPW_WRITE, TIMEOUT_MS, &c->view, c, &job);

    if (r < 0)
        return micro_say("acquire", r);
    c->state = ASKED;
    s->n_out++;
    return 0;
}

static int chunk_return(struct optimizer_stream *s, struct chunk *c)
{
    spw_job *job;
    int r = spw_submit_release(s->queue, s->space, &c->view, 1, SPW_DIRTY, c, &job);

    c->state = RETURNED;
    return r < 0 ? micro_say("release", r) : 0;
}

static int chunk_answered(struct optimizer_stream *s, struct chunk *c)
{
    if (c->view.status < 0) {
        fprintf(stderr, "spillbench: states: %s, %s\n", strerrordesc_np(-c->view.status),
                spw_limit_text(c->view.detail));
        return c->view.status;
    }
    if (c->state == ASKED) {
        c->state = LEASED;
        return c->view.size_bytes == c->n * STATE_BYTES ? 0 : micro_say("states", 0);
    }
    c->state = AWAY;
    s->n_out--;
    return 0;
}

/* ── the step ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int queue_sleep(struct optimizer_stream *s)
{
    struct pollfd pfd = {.fd = spw_queue_fd(s->queue), .events = POLLIN};
    int r = spw_queue_arm(s->queue);

    if (r == 0 && poll(&pfd, 1, STUCK_MS) == 0) {
        fprintf(stderr, "spillbench: no answer for %d s\n", STUCK_MS / 1000);
        return -ETIMEDOUT;
    }
    return r < 0 ? micro_say("queue", r) : 0;
}

/* One answer; -EAGAIN: there is none yet. */
static int answer_take(struct optimizer_stream *s)
{
    spw_job *job;
    int r = spw_queue_next(s->queue, &job);

    if (r < 0)
        return r == -EAGAIN ? r : micro_say("queue", r);
    struct chunk *c = spw_job_user(job);
    r = spw_job_status(job);
    spw_job_free(job);
    return r < 0 ? micro_say("states", r) : chunk_answered(s, c);
}

static int answer_wait(struct optimizer_stream *s, uint64_t *waited_ns)
{
    uint64_t start_ns = now_ns();
    int r = answer_take(s);

    while (r == -EAGAIN && (r = queue_sleep(s)) == 0)
        r = answer_take(s);
    *waited_ns += now_ns() - start_ns;
    return r;
}

/* As many as the window has room for. */
static int ask(struct optimizer_stream *s, size_t *next)
{
    int r = 0;

    while (r == 0 && s->n_out < s->window && *next < s->n_chunks)
        r = chunk_ask(s, &s->chunks[(*next)++]);
    return r;
}

/* All chunks once. */
static int pass(struct optimizer_stream *s, uint64_t *ret_waited_ns)
{
    uint64_t waited_ns = 0;
    size_t asked = 0, stepped = 0;
    int r = 0;

    while (r == 0 && (stepped < s->n_chunks || s->n_out > 0)) {
        r = ask(s, &asked);
        if (r == 0 && stepped < s->n_chunks && s->chunks[stepped].state == LEASED) {
            r = chunk_step(s, &s->chunks[stepped]);
            if (r == 0)
                r = chunk_return(s, &s->chunks[stepped++]);
            while (r == 0 && (r = answer_take(s)) == 0)
                ;
            r = r == -EAGAIN ? 0 : r;
        } else if (r == 0) {
            r = answer_wait(s, &waited_ns);
        }
        if (r == 0 && live_interrupted())
            r = -EINTR;
    }
    *ret_waited_ns = waited_ns;
    return r;
}

int optimizer_stream_step(struct optimizer_stream *s, uint64_t *ret_waited_ns)
{
    s->step++;
    return pass(s, ret_waited_ns);
}

/* ── birth ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

static int chunks_create(struct optimizer_stream *s, size_t each)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < s->n_chunks; i++) {
        struct chunk *c = &s->chunks[i];
        c->first = i * each;
        c->n = MIN(each, s->model->n - c->first);
        payload_key(s->model->seed, i, &c->key);
        r = spw_tensor_open(s->space, &c->key, c->n * STATE_BYTES);
    }
    return r < 0 ? micro_say("states", r) : 0;
}

static inline void stream_p(struct optimizer_stream **stream)
{
    optimizer_stream_free(*stream);
}

int optimizer_stream_new(spw_session *session, spw_pool *pool, const struct optimizer_model *model, unsigned window,
                         struct optimizer_stream **ret_stream)
{
    struct spw_space_options so = {.class_id = SPW_CLASS_OPTIMIZER, .durability = SPW_SCRATCH, .digest = "optimizer"};
    spw_space *space;
    uint64_t waited_ns;
    int r = spw_space_open(pool, &so, &space);

    if (r < 0)
        return micro_say("space", r);
    size_t each = optimizer_chunk_elements(spw_space_piece_bytes(space)), n = div_round_up(model->n, each);
    cleanup_(stream_p) struct optimizer_stream *s = calloc(1, sizeof(*s) + n * sizeof(s->chunks[0]));
    if (!s)
        return -ENOMEM;
    s->model = model;
    s->space = space;
    s->window = window;
    s->n_chunks = n;
    r = spw_queue_new(session, space, 2 * window, &s->queue);
    if (r < 0)
        return micro_say("queue", r);
    r = chunks_create(s, each);
    if (r == 0)
        r = pass(s, &waited_ns);
    if (r == 0)
        *ret_stream = steal_ptr(s);
    return r;
}

void optimizer_stream_free(struct optimizer_stream *s)
{
    if (!s)
        return;
    spw_queue_free(s->queue);
    free(s);
}
