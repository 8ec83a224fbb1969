/* SPDX-License-Identifier: Apache-2.0 */
/* See hotload.h. Each thread has keys of its own, and knows what must be there. */
#include "tests/system/support/hotload.h"

#include <check.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/atomic.h"

#define BLOCK (64 * 1024)
#define N_KEYS 32 /* of one thread */
#define LIST 4
#define N_HELD 16
#define TENSOR_BYTES (9 * DAEMON_MIB) /* two pieces */
#define TENSOR_STEP (64 * 1024)
#define N_STEPS (TENSOR_BYTES / TENSOR_STEP)
#define CALL_MS 20000
#define N_JOBS 8

static uint64_t next(struct hot_worker *w, uint64_t below)
{
    w->seed = w->seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (w->seed >> 33) % below;
}

__attribute__((format(printf, 2, 3))) static void failed(struct hot_worker *w, const char *format, ...)
{
    va_list args;

    if (__atomic_fetch_add(&w->n_errors, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    va_start(args, format);
    int n = vsnprintf(w->error, sizeof(w->error), format, args);
    va_end(args);
    snprintf(w->error + n, sizeof(w->error) - (size_t)n, ": %s", spw_error_text());
}

static bool goes_on(struct hot_worker *w)
{
    __atomic_fetch_add(&w->n_done, 1, __ATOMIC_RELEASE);
    return load_acquire(&w->load->stop) == 0 && load_relaxed(&w->n_errors) == 0;
}

static uint64_t number_of(const struct hot_worker *w, uint64_t i)
{
    return (uint64_t)w->kind * 1000000 + i;
}

static struct spw_key key_of(const struct hot_worker *w, uint64_t i)
{
    return block_key(number_of(w, i));
}

/* --- Copies ---------------------------------------------------------------------------------------------------------- */

static void copy_put(struct hot_worker *w, char *buffer, uint64_t i)
{
    struct spw_key key = key_of(w, i);
    struct spw_iovec from = {.data = buffer, .size_bytes = BLOCK};
    int32_t status = 1;

    pattern_fill(buffer, BLOCK, number_of(w, i), 0);
    int r = spw_put(w->load->blocks, &key, &from, 1, 0, CALL_MS, &status);

    if (r != 0 || status != 0)
        failed(w, "put %llu: %d, %d", (unsigned long long)i, r, status);
}

static void copy_get(struct hot_worker *w, char *buffer, uint64_t i, int wanted)
{
    struct spw_key key = key_of(w, i);
    struct spw_iovec to = {.data = buffer, .size_bytes = BLOCK};
    int32_t status = 1;

    memset(buffer, 0, BLOCK);
    int r = spw_get(w->load->blocks, &key, &to, 1, 0, CALL_MS, &status);

    if (r != 0 || status != wanted)
        failed(w, "get %llu: %d, %d, not %d", (unsigned long long)i, r, status, wanted);
    else if (wanted == 0 && !pattern_is(buffer, BLOCK, number_of(w, i), 0))
        failed(w, "get %llu: wrong bytes", (unsigned long long)i);
}

static void run_copy(struct hot_worker *w)
{
    bool there[N_KEYS] = {false};
    char *buffer = malloc(BLOCK);

    while (goes_on(w)) {
        uint64_t i = next(w, N_KEYS);
        struct spw_key key = key_of(w, i);

        if (!there[i] && next(w, 4) > 0) {
            copy_put(w, buffer, i);
            there[i] = true;
        } else if (!there[i] || next(w, 4) > 0) {
            copy_get(w, buffer, i, there[i] ? 0 : -ENOENT);
        } else {
            int32_t status = 1;
            int r = spw_delete(w->load->blocks, &key, 1, &status);

            if (r != 0 || status != 0)
                failed(w, "delete %llu: %d, %d", (unsigned long long)i, r, status);
            there[i] = false;
        }
    }
    for (uint64_t i = 0; i < N_KEYS && load_relaxed(&w->n_errors) == 0; i++)
        copy_get(w, buffer, i, there[i] ? 0 : -ENOENT);
    free(buffer);
}

/* --- Leases ---------------------------------------------------------------------------------------------------------- */

static bool views_ok(struct hot_worker *w, const char *what, int r, const struct spw_view *views)
{
    for (unsigned i = 0; i < LIST && r == 0; i++)
        r = views[i].status;
    if (r != 0)
        failed(w, "%s: %d", what, r);
    return r == 0;
}

static void lease_check(struct hot_worker *w, const struct spw_view *views, uint64_t first)
{
    for (unsigned i = 0; i < LIST; i++)
        if (!pattern_is(views[i].data, BLOCK, number_of(w, first + i), 0))
            failed(w, "a leased block has wrong bytes");
}

static void lease_make(struct hot_worker *w, const struct spw_key *keys, uint64_t first)
{
    uint64_t sizes[LIST] = {BLOCK, BLOCK, BLOCK, BLOCK};
    struct spw_view views[LIST];
    int r = spw_reserve(w->load->blocks, keys, sizes, LIST, next(w, 2) ? SPW_ALL : 0, CALL_MS, views);

    if (!views_ok(w, "reserve", r, views))
        return;
    for (unsigned i = 0; i < LIST; i++)
        pattern_fill(views[i].data, BLOCK, number_of(w, first + i), 0);
    if (next(w, 4) == 0)
        sleep_ms((int)next(w, 30));
    (void)views_ok(w, "commit", spw_commit(w->load->blocks, views, LIST, 0), views);
}

static void lease_use(struct hot_worker *w, const struct spw_key *keys, uint64_t first)
{
    struct spw_view views[LIST];
    int r = spw_acquire(w->load->blocks, keys, LIST, next(w, 2) ? SPW_ALL : 0, CALL_MS, views);

    if (!views_ok(w, "acquire", r, views))
        return;
    lease_check(w, views, first);
    if (next(w, 4) == 0)
        sleep_ms((int)next(w, 30));
    lease_check(w, views, first);
    (void)views_ok(w, "release", spw_release(w->load->blocks, views, LIST, 0), views);
}

static void run_lease(struct hot_worker *w)
{
    bool there[N_KEYS / LIST] = {false};

    while (goes_on(w)) {
        uint64_t list = next(w, N_KEYS / LIST), first = list * LIST;
        struct spw_key keys[LIST];
        int32_t status[LIST] = {0};

        for (unsigned i = 0; i < LIST; i++)
            keys[i] = key_of(w, first + i);
        if (!there[list]) {
            lease_make(w, keys, first);
            there[list] = true;
        } else if (next(w, 4) > 0) {
            lease_use(w, keys, first);
        } else {
            int r = spw_delete(w->load->blocks, keys, LIST, status);

            for (unsigned i = 0; i < LIST && r == 0; i++)
                r = status[i];
            if (r != 0)
                failed(w, "delete of a list: %d", r);
            there[list] = false;
        }
    }
}

static void run_hold(struct hot_worker *w)
{
    struct spw_key keys[N_HELD];
    struct spw_view views[N_HELD] = {0};
    int r = 0;

    for (uint64_t i = 0; i < N_HELD && r == 0; i++) {
        keys[i] = key_of(w, i);
        r = block_put(w->load->blocks, number_of(w, i), BLOCK);
    }
    if (r == 0)
        r = spw_acquire(w->load->blocks, keys, N_HELD, SPW_ALL, CALL_MS, views);
    if (r != 0)
        failed(w, "cannot begin to hold: %d", r);
    while (goes_on(w)) {
        for (uint64_t i = 0; i < N_HELD; i++)
            if (!pattern_is(views[i].data, BLOCK, number_of(w, i), 0))
                failed(w, "a block that is held has wrong bytes");
        sleep_ms(5);
    }
    if (load_relaxed(&w->n_errors) > 0)
        return;
    r = spw_release(w->load->blocks, views, N_HELD, 0);
    for (uint64_t i = 0; i < N_HELD && r == 0; i++)
        r = views[i].status;
    if (r != 0)
        failed(w, "release of what was held: %d", r);
}

/* --- Tensors --------------------------------------------------------------------------------------------------------- */

static void tensor_write(struct hot_worker *w, const struct spw_key *name, char *bytes, uint64_t *versions)
{
    uint64_t first = next(w, N_STEPS), n = 1 + next(w, N_STEPS - first < 8 ? N_STEPS - first : 8);

    for (uint64_t i = 0; i < n; i++)
        pattern_fill(bytes + i * TENSOR_STEP, TENSOR_STEP, first + i, ++versions[first + i]);
    int r = spw_put_range(w->load->tensors, name, first * TENSOR_STEP, bytes, n * TENSOR_STEP, CALL_MS);

    if (r != 0)
        failed(w, "put_range: %d", r);
}

static void tensor_read(struct hot_worker *w, const struct spw_key *name, char *bytes, const uint64_t *versions)
{
    int r = spw_get_range(w->load->tensors, name, 0, bytes, TENSOR_BYTES, CALL_MS);

    if (r != 0)
        failed(w, "get_range: %d", r);
    for (uint64_t i = 0; i < N_STEPS && r == 0; i++)
        if (versions[i] > 0 && !pattern_is(bytes + i * TENSOR_STEP, TENSOR_STEP, i, versions[i]))
            failed(w, "step %llu of a tensor is not version %llu", (unsigned long long)i,
                   (unsigned long long)versions[i]);
}

static void run_tensor(struct hot_worker *w)
{
    struct spw_key name = key_of(w, 0);
    uint64_t versions[N_STEPS] = {0};
    char *bytes = malloc(TENSOR_BYTES);
    int r = spw_tensor_open(w->load->tensors, &name, TENSOR_BYTES);

    if (r != 0)
        failed(w, "tensor_open: %d", r);
    while (goes_on(w)) {
        uint64_t what = next(w, 8);

        if (what == 0)
            tensor_read(w, &name, bytes, versions);
        else if (what == 1 && w->load->has_device && (r = spw_sync(w->load->tensors, NULL, 0, CALL_MS)) != 0)
            failed(w, "sync: %d", r);
        else
            tensor_write(w, &name, bytes, versions);
    }
    if (load_relaxed(&w->n_errors) == 0)
        tensor_read(w, &name, bytes, versions);
    free(bytes);
}

/* --- Jobs ------------------------------------------------------------------------------------------------------------ */

struct hot_job {
    uint64_t i;
    bool is_put;
    struct spw_key key;
    struct spw_iovec memory;
    int32_t status;
    char *buffer;
};

static void job_submit(struct hot_worker *w, spw_queue *queue, struct hot_job *job, bool there)
{
    spw_job *unused;
    int r;

    job->is_put = !there;
    job->key = key_of(w, job->i);
    job->memory = (struct spw_iovec){.data = job->buffer, .size_bytes = BLOCK};
    job->status = 1;
    if (job->is_put)
        pattern_fill(job->buffer, BLOCK, number_of(w, job->i), 0);
    if (job->is_put)
        r = spw_submit_put(queue, w->load->blocks, &job->key, &job->memory, 1, 0, CALL_MS, &job->status, job, &unused);
    else
        r = spw_submit_get(queue, w->load->blocks, &job->key, &job->memory, 1, 0, CALL_MS, &job->status, job, &unused);
    if (r != 0)
        failed(w, "submit: %d", r);
}

static void job_ended(struct hot_worker *w, spw_job *ended, bool *there)
{
    struct hot_job *job = spw_job_user(ended);
    int r = spw_job_status(ended);

    if (r != 0 || job->status != 0)
        failed(w, "a job to %s: %d, %d", job->is_put ? "put" : "get", r, job->status);
    else if (!job->is_put && !pattern_is(job->buffer, BLOCK, number_of(w, job->i), 0))
        failed(w, "a job to get: wrong bytes");
    there[job->i] = true;
    spw_job_free(ended);
}

/* Takes what has ended; how many are left. */
static unsigned jobs_wait(struct hot_worker *w, spw_queue *queue, unsigned n_running, bool *there)
{
    spw_job *ended;
    int r = spw_queue_arm(queue);

    if (r < 0)
        failed(w, "arm: %d", r);
    if (r == 0) {
        struct pollfd pfd = {.fd = spw_queue_fd(queue), .events = POLLIN};

        if (poll(&pfd, 1, 2 * CALL_MS) == 0)
            failed(w, "nobody rings: %u jobs run", n_running);
    }
    while ((r = spw_queue_next(queue, &ended)) == 0) {
        job_ended(w, ended, there);
        n_running--;
    }
    if (r != -EAGAIN)
        failed(w, "next: %d", r);
    return n_running;
}

static void run_queue(struct hot_worker *w)
{
    struct hot_job jobs[N_JOBS] = {0};
    bool there[N_KEYS] = {false};
    spw_queue *queue = NULL;
    int r = spw_queue_new(w->load->session, w->load->blocks, N_JOBS, &queue);

    if (r != 0)
        failed(w, "queue_new: %d", r);
    for (unsigned i = 0; i < N_JOBS; i++)
        jobs[i].buffer = malloc(BLOCK);
    while (goes_on(w)) {
        unsigned n_running = 0;
        uint64_t first = next(w, N_KEYS - N_JOBS + 1);

        for (unsigned i = 0; i < N_JOBS; i++, n_running++) {
            jobs[i].i = first + i;
            job_submit(w, queue, &jobs[i], there[first + i]);
        }
        while (n_running > 0 && load_relaxed(&w->n_errors) == 0)
            n_running = jobs_wait(w, queue, n_running, there);
    }
    spw_queue_free(queue);
    for (unsigned i = 0; i < N_JOBS; i++)
        free(jobs[i].buffer);
}

/* --- Looking --------------------------------------------------------------------------------------------------------- */

static void run_look(struct hot_worker *w)
{
    struct spw_key keys[N_KEYS];
    struct spw_hit hits[N_KEYS];
    struct spw_stat stat;

    for (uint64_t i = 0; i < N_KEYS; i++) {
        keys[i] = key_of(w, i);
        if (i < N_KEYS / 2 && block_put(w->load->blocks, number_of(w, i), BLOCK) != 0)
            failed(w, "put");
    }
    while (goes_on(w)) {
        long n = spw_lookup(w->load->blocks, keys, N_KEYS, 0, hits);

        if (n != N_KEYS / 2)
            failed(w, "lookup: %ld, not %d", n, N_KEYS / 2);
        int r = spw_touch(w->load->blocks, keys, N_KEYS / 2, 0);

        if (r == 0)
            r = spw_pin(w->load->blocks, keys, 2, 100, NULL);
        if (r == 0)
            r = spw_stat(w->load->blocks, &stat);
        if (r == 0)
            r = spw_nop(w->load->blocks);
        if (r != 0)
            failed(w, "touch, pin, stat or nop: %d", r);
    }
}

/* --- All of it ------------------------------------------------------------------------------------------------------- */

static void *worker_main(void *arg)
{
    static void (*const runs[HOT_KINDS])(struct hot_worker * w) = {
        [HOT_COPY] = run_copy,     [HOT_LEASE] = run_lease, [HOT_HOLD] = run_hold,
        [HOT_TENSOR] = run_tensor, [HOT_QUEUE] = run_queue, [HOT_LOOK] = run_look,
    };
    struct hot_worker *w = arg;

    runs[w->kind](w);
    return NULL;
}

void hotload_start(struct hotload *load, const struct daemon *d, uint64_t seed)
{
    *load = (struct hotload){.session = daemon_connect(d), .has_device = d->disk_bytes > 0};
    load->blocks = daemon_space(load->session, "default", "blocks", 0, SPW_CLASS_KV, SPW_CACHE);
    load->tensors = daemon_space(load->session, "default", "tensors", 0, SPW_CLASS_GENERIC,
                                 load->has_device ? SPW_DURABLE : SPW_SCRATCH);
    for (unsigned i = 0; i < HOT_KINDS; i++) {
        struct hot_worker *w = &load->workers[i];

        *w = (struct hot_worker){.load = load, .kind = (enum hot_kind)i, .seed = seed + i};
        ck_assert_int_eq(pthread_create(&w->thread, NULL, worker_main, w), 0);
    }
}

bool hotload_progress(struct hotload *load)
{
    uint64_t before[HOT_KINDS];

    for (unsigned i = 0; i < HOT_KINDS; i++)
        before[i] = load_acquire(&load->workers[i].n_done);
    for (int64_t end = clock_ms() + 60000; clock_ms() < end; sleep_ms(1)) {
        bool all = true;

        for (unsigned i = 0; i < HOT_KINDS; i++)
            all &=
                load_acquire(&load->workers[i].n_done) > before[i] + 1 || load_acquire(&load->workers[i].n_errors) > 0;
        if (all)
            return true;
    }
    return false;
}

const char *hotload_error(const struct hotload *load)
{
    for (unsigned i = 0; i < HOT_KINDS; i++)
        if (load_acquire(&load->workers[i].n_errors) > 0)
            return load->workers[i].error;
    return NULL;
}

uint64_t hotload_stop(struct hotload *load)
{
    uint64_t n = 0;

    store_release(&load->stop, 1);
    for (unsigned i = 0; i < HOT_KINDS; i++) {
        pthread_join(load->workers[i].thread, NULL);
        n += load->workers[i].n_done;
    }
    spw_close(load->session);
    return n;
}
