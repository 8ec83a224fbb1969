/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What becomes of a job, one slot's worth of keys at a time: leases, a slot, a kernel and a copy, and the leases' end.
 *
 * Uses get their slots in the order in which their leases are there, not in the order of the calls: so blocks in memory
 * do not wait for blocks on a device. A slot is given only when it is free as far as the host can see; so what a stream
 * waits for is a copy that the daemon has been told of, and never more than the slots of a lane.
 *
 * Requests to the daemon have what is left of the job's time. A daemon that does not answer even so is taken for stopped:
 * the lane is over, streams go on, and the use is an orphan until the answer comes, or the session ends: its job has ended
 * without it, but stays in memory. A use of a fetch is one as soon as its blocks are there: the leases' end is nothing that
 * its job waits for.
 *
 * Lanes are lost when the daemon is restarted, leases are not. A use that was on its way there gives its leases back, and
 * begins again on the next lane, as long as the caller has not been told that it is on its stream (which goes on without it)
 * or that its source is free. With gpu.lock and the context.
 */
#include <string.h>

#include "client/lib/gpu.h"

static void use_set_state(struct gpu_use *use, enum gpu_use_state state)
{
    use->state = state;
}

static uint32_t left_ms(const struct spw_gpu_job *job, uint64_t now_ns)
{
    return job->deadline_ns > now_ns ? (uint32_t)((job->deadline_ns - now_ns) / 1000000) + 1 : 1;
}

/* --- The beginning --------------------------------------------------------------------------------------------------- */

static int use_begin(struct gpu_lane *lane, struct gpu_use *use, uint64_t now_ns)
{
    struct gpu_direction_state *d = &lane->directions[use->job->direction];
    int r = client_gpu_elements_lease(lane, use, left_ms(use->job, now_ns));

    if (r < 0)
        return r;
    use_set_state(use, GPU_USE_LEASING);
    list_push_tail(&d->uses, &use->link);
    d->n_ahead++;
    d->n_uses++;
    lane->leased_bytes += use->leased_bytes;
    lane->n_leased += use->n;
    return 0;
}

/* As many elements of the job as fit a slot. */
static int use_new(struct gpu_lane *lane, struct spw_gpu_job *job, uint64_t now_ns)
{
    uint64_t bytes, leased_bytes;
    uint32_t n = client_gpu_elements_fit(lane, job, &bytes, &leased_bytes);
    struct gpu_use *use = calloc(1, sizeof(*use) + n * sizeof(use->views[0]));

    if (!use)
        return client_error(-ENOMEM, 0, "out of memory");
    list_init(&use->link);
    use->job = job;
    use->first = job->next;
    use->n = n;
    use->bytes = bytes;
    use->leased_bytes = leased_bytes;
    int r = use_begin(lane, use, now_ns);
    if (r < 0) {
        free(use);
        return r;
    }
    job->next += n;
    job->n_begun++;
    job->left_bytes -= bytes;
    job->n_uses++;
    job->n_waiting++;
    job->n_sources++;
    return 0;
}

/* The first of those that were put aside. */
static int use_begin_again(struct gpu_lane *lane, struct spw_gpu_job *job, uint64_t now_ns)
{
    struct gpu_use *use = list_first_entry(&job->again, struct gpu_use, link);

    if (use->bytes > lane->use_bytes)
        return -EPIPE; /* the next daemon has smaller slots */
    list_unlink(&use->link);
    int r = use_begin(lane, use, now_ns);
    if (r < 0)
        list_push_head(&job->again, &use->link);
    return r;
}

/* --- The end --------------------------------------------------------------------------------------------------------- */

static void use_on_stream(struct gpu_use *use)
{
    if (!use->on_stream && !use->orphan)
        use->job->n_waiting--;
    use->on_stream = true;
}

static void use_source_free(struct gpu_use *use)
{
    if (!use->source_free && !use->orphan)
        use->job->n_sources--;
    use->source_free = true;
}

/* Of a fetch that is known when the bytes are there; of a spill when they are committed. */
static void use_tell(struct gpu_use *use)
{
    if (!use->told)
        client_gpu_elements_tell(use);
    use->told = true;
}

/* The job has all that it needs of it, and no kernel of it runs. */
static void use_orphan(struct gpu_use *use)
{
    use_tell(use);
    use_on_stream(use);
    use_source_free(use);
    use->orphan = true;
    use->job->n_uses--;
    use->job->n_orphans++;
}

/* Nothing of it can be used, and nobody has seen anything of it. */
static bool use_goes_again(const struct gpu_lane *lane, const struct gpu_use *use)
{
    const struct spw_gpu_job *job = use->job;

    return lane->lost && use->error == -EPIPE && !use->orphan && !use->told && !job->observed && !job->memory &&
           !job->cancel && job->error == 0;
}

/* As it was at first, on no lane. */
static void use_put_aside(struct gpu_use *use)
{
    struct spw_gpu_job *job = use->job;

    job->n_waiting += use->on_stream;
    job->n_sources += use->source_free;
    use->on_stream = use->source_free = use->again = false;
    use->n_moved = use->run = use->run_end = 0;
    use->moved_bytes = use->seq = 0;
    use->error = 0;
    memset(use->views, 0, use->n * sizeof(use->views[0]));
    list_push_tail(&job->again, &use->link);
}

/* The job has ended, or will: what was put aside does not begin again. */
static void again_drop(struct spw_gpu_job *job)
{
    while (!list_is_empty(&job->again)) {
        struct gpu_use *use = list_entry(list_pop(&job->again), struct gpu_use, link);

        use->error = job->error < 0 ? job->error : -ECANCELED;
        use_tell(use);
        use_on_stream(use);
        use_source_free(use);
        job->n_uses--;
        free(use);
    }
}

static void use_end(struct gpu_lane *lane, struct gpu_use *use)
{
    struct spw_gpu_job *job = use->job;

    lane->directions[job->direction].n_uses--;
    lane->leased_bytes -= use->leased_bytes;
    lane->n_leased -= use->n;
    list_unlink(&use->link);
    if (use->again && !use->orphan) {
        use_put_aside(use);
        return;
    }
    use_source_free(use);
    use_tell(use);
    if (!use->orphan)
        job->n_uses--;
    else if (--job->n_orphans == 0 && job->freed)
        client_gpu_job_destroy(job);
    free(use);
    if (lane->gpu->leaves)
        pthread_cond_broadcast(&lane->gpu->changed);
}

void client_gpu_lane_forget(struct gpu_lane *lane)
{
    for (unsigned i = 0; i < GPU_DIRECTIONS; i++)
        list_for_each_safe (l, &lane->directions[i].uses) {
            struct gpu_use *use = list_entry(l, struct gpu_use, link);

            list_unlink(&use->link);
            if (--use->job->n_orphans == 0) /* freed jobs are in no list any more */
                client_gpu_job_destroy(use->job);
            free(use);
        }
    list_unlink(&lane->link);
    free(lane->memory);
    free(lane);
}

/* The answer to the request under way, if it has come; it is taken. Calls of a queue end in turns of it, which are ours. */
static bool use_answered(struct gpu_use *use, int *ret_status)
{
    *ret_status = 0;
    if (!use->call)
        return true;
    if (!client_job_is_over(use->call))
        return false;
    *ret_status = spw_job_status(use->call);
    spw_job_free(use->call);
    use->call = NULL;
    return true;
}

/* The slot, if it had one, is free. Leases that cannot be given back go with the session. */
static void use_ending(struct gpu_lane *lane, struct gpu_use *use)
{
    struct gpu_direction_state *d = &lane->directions[use->job->direction];

    if (use->state == GPU_USE_MOVING)
        d->slots[(use->seq - 1) % lane->slots] = NULL;
    else
        d->n_ahead--;
    use->again = use_goes_again(lane, use);
    if (use->job->direction == GPU_FETCH && !use->orphan && !use->again)
        use_orphan(use); /* its blocks are there: what becomes of the leases is ours */
    use_on_stream(use);
    int r = use->n_moved > 0 ? client_gpu_elements_give(lane, use) : 0;
    if (r < 0 && use->error == 0)
        use->error = r;
    use_set_state(use, GPU_USE_ENDING);
}

/* --- Steps ----------------------------------------------------------------------------------------------------------- */

/* The first kernel of a job comes after what the caller's stream had. */
static int job_begin(struct gpu_direction_state *d, struct spw_gpu_job *job)
{
    if (job->begun)
        return 0;
    int r = job->gpu->cuda->StreamWaitEvent(d->stream, job->begin, 0);
    job->begun = r == NV_SUCCESS;
    return job->begun ? 0 : client_gpu_error(r, "waiting for the caller's stream");
}

static bool is_last_run(const struct gpu_lane *lane, const struct gpu_use *use)
{
    return !lane->memory || client_gpu_elements_run_is_last(use);
}

static int use_submit(struct gpu_lane *lane, struct gpu_use *use, uint64_t now_ns)
{
    const struct spw_gpu_job *job = use->job;
    struct client_call call = {
        .space = job->space,
        .handles = lane->memory ? use->views + use->run : use->views,
        .n = lane->memory ? use->run_end - use->run : use->n,
        .opcode = job->direction == GPU_SPILL ? SPW_OP_GPU_SPILL : SPW_OP_GPU_FETCH,
        .arg = {lane->number, use->seq, lane->memory ? client_gpu_elements_run_offset(lane, use) : 0},
        .timeout_ms = left_ms(job, now_ns),
        .era = lane->era,
        .whole = true,
        .no_results = true,
    };

    /* Who is alone has nothing to be woken for but this, and a ring that the engine looks at already. */
    bool is_alone = lane->directions[GPU_SPILL].n_uses + lane->directions[GPU_FETCH].n_uses == 1;

    return client_queue_submit("spw_gpu", is_alone ? lane->leases : lane->moves, 0, &call, NULL, &use->call);
}

/* A slot is free. The request goes first, so that a stream waits for nothing that the daemon has not heard of. */
static void use_move(struct gpu_lane *lane, struct gpu_use *use, uint64_t now_ns)
{
    struct spw_gpu_job *job = use->job;
    struct gpu_direction_state *d = &lane->directions[job->direction];
    uint32_t slot = (uint32_t)(d->seq % lane->slots);

    use->seq = d->seq + 1;
    int r = use_submit(lane, use, now_ns);
    if (r < 0) {
        use->error = r;
        use_ending(lane, use);
        return;
    }
    d->seq++;
    d->n_ahead--;
    d->slots[slot] = use;
    if (is_last_run(lane, use))
        use_on_stream(use);
    use_set_state(use, GPU_USE_MOVING);
    r = job_begin(d, job);
    if (r == 0)
        r = client_gpu_lane_launch(lane, use);
    if (r < 0) { /* the daemon would wait for the slot */
        use->error = r;
        client_gpu_lane_over(lane, r);
        (void)spw_job_cancel(use->call);
        return;
    }
    job->last = d->emptied[slot];
}

/* Why it is not to go on, or 0. */
static int use_stopped(const struct gpu_lane *lane, const struct gpu_use *use)
{
    if (use->error < 0)
        return use->error;
    if (lane->over < 0)
        return -EPIPE;
    return use->orphan || use->job->cancel ? -ECANCELED : 0;
}

static void use_leased(struct gpu_lane *lane, struct gpu_use *use)
{
    int r;

    if (!use_answered(use, &r))
        return;
    client_gpu_elements_count(use);
    use_set_state(use, GPU_USE_LEASED);
    if (lane->memory)
        (void)client_gpu_elements_next_run(use);
    if (use->n_moved > 0)
        return;
    if (r < 0)
        use->error = r;
    use_ending(lane, use);
}

/* A run of it was copied, and there is another. */
static void use_next_run(struct gpu_lane *lane, struct gpu_use *use)
{
    struct gpu_direction_state *d = &lane->directions[use->job->direction];

    d->slots[(use->seq - 1) % lane->slots] = NULL;
    d->n_ahead++;
    use_set_state(use, GPU_USE_LEASED);
}

static void use_moving(struct gpu_lane *lane, struct gpu_use *use)
{
    int emptied = client_gpu_lane_emptied(lane, use);
    bool is_fetch = use->job->direction == GPU_FETCH;
    uint64_t place = (use->seq - 1) % lane->slots + (is_fetch ? lane->slots : 0);
    int r = 0;

    if (emptied < 0 && use->error == 0)
        use->error = emptied;
    if (emptied != 0 && !is_fetch && is_last_run(lane, use))
        use_source_free(use);
    if (use->call && use_answered(use, &r) && r < 0) {
        use->error = use->error < 0 ? use->error : r;
        client_gpu_lane_over(lane, r);
    }
    if (use->call || emptied == 0) /* its leases are the daemon's until it answers, and the slot until it is emptied */
        return;
    if (use->error == 0 && !lane->memory && load_relaxed(&lane->errors[place]) != 0)
        use->error = -EPIPE; /* the lane was over before the kernel began */
    if (use->error == 0 && lane->memory && client_gpu_elements_next_run(use))
        use_next_run(lane, use);
    else
        use_ending(lane, use);
}

static void use_ended(struct gpu_lane *lane, struct gpu_use *use)
{
    int r;

    if (!use_answered(use, &r))
        return;
    if (r < 0 && use->error == 0)
        use->error = r;
    use_end(lane, use);
}

/* --- Lanes ----------------------------------------------------------------------------------------------------------- */

/* Slots come free first, then they are given away. */
static void direction_step(struct gpu_lane *lane, struct gpu_direction_state *d, uint64_t now_ns)
{
    for (struct list *l = d->uses.next, *next; l != &d->uses; l = next) {
        struct gpu_use *use = list_entry(l, struct gpu_use, link);

        next = l->next;
        if (use->state == GPU_USE_MOVING)
            use_moving(lane, use);
        if (use->state == GPU_USE_ENDING)
            use_ended(lane, use);
    }
    for (struct list *l = d->uses.next, *next; l != &d->uses; l = next) {
        struct gpu_use *use = list_entry(l, struct gpu_use, link);

        next = l->next;
        if (use->state == GPU_USE_LEASING)
            use_leased(lane, use);
        if (use->state == GPU_USE_LEASED && (use->error = use_stopped(lane, use)) < 0)
            use_ending(lane, use);
        if (use->state == GPU_USE_LEASED && !d->slots[d->seq % lane->slots])
            use_move(lane, use, now_ns);
    }
}

/*
 * While copies are on their way, their ends are enough to wake for, as long as there is something to put into the slots
 * that come free: what else has been answered meanwhile is taken along. A kernel of a fetch that has just begun when its
 * copy has ended is over when the next copy has, so only of the last one somebody has to look.
 */
static void direction_await(const struct gpu_lane *lane, const struct gpu_direction_state *d, struct gpu_awaited *await)
{
    uint32_t n_copies = 0, n_kernels = 0, n_ready = 0;

    if (list_is_empty(&d->uses))
        return;
    await->look |= lane->lost; /* nobody sleeps on its queues */
    if (lane->memory) {        /* answers ring, and copies have no kernels behind them */
        await->look |= lane->over < 0;
        return;
    }
    list_for_each (l, &d->uses) {
        const struct gpu_use *use = list_entry(l, struct gpu_use, link);

        n_copies += use->state == GPU_USE_MOVING && use->call;
        n_kernels += use->state == GPU_USE_MOVING && (!use->call || lane->over < 0);
        n_ready += use->state == GPU_USE_LEASED;
        await->leases |= use->state == GPU_USE_MOVING && use->call && use->call->queue == lane->leases;
    }
    await->look |= n_kernels > 0 && (n_copies == 0 || lane->over < 0);
    await->leases |= n_copies == 0 || n_ready == 0;
}

/* For one more use. A pool that is small is left to others as well, and so are a session's leases. */
static bool lane_has_room(const struct gpu_lane *lane, const struct gpu_direction_state *d,
                          const struct spw_gpu_job *job)
{
    uint64_t leased_bytes = client_gpu_elements_leased_max(lane, job);

    list_for_each (l, &lane->gpu->lanes)
        leased_bytes += list_entry(l, struct gpu_lane, link)->leased_bytes;

    return d->n_ahead < GPU_LEASED_AHEAD * lane->slots && d->n_uses < GPU_USES(lane->slots) &&
           lane->n_leased + SPW_LIST_MAX <= GPU_LEASES_MAX &&
           (lane->leased_bytes == 0 || leased_bytes <= lane->leased_bytes_max);
}

/* Of its jobs in the order of their calls. */
static void lane_feed(struct gpu_lane *lane, uint64_t now_ns)
{
    list_for_each (l, &lane->gpu->jobs) {
        struct spw_gpu_job *job = list_entry(l, struct spw_gpu_job, link);
        struct gpu_direction_state *d = &lane->directions[job->direction];

        if (job->memory != lane->memory)
            continue;
        while (!list_is_empty(&job->again) && job->error == 0 && !job->cancel && lane_has_room(lane, d, job))
            job->error = use_begin_again(lane, job, now_ns);
        while (job->next < job->n && job->error == 0 && !job->cancel && lane_has_room(lane, d, job)) {
            int r = use_new(lane, job, now_ns);

            if (r < 0)
                job->error = r;
        }
    }
}

/* --- Jobs ------------------------------------------------------------------------------------------------------------ */

static void job_done(struct spw_gpu_job *job)
{
    if (job->error == 0 && job->cancel && job->next < job->n)
        job->error = -ECANCELED;
    client_gpu_elements_result(job);
    job->n_waiting = job->n_sources = 0;
    if (job->layout)
        job->layout->n_jobs--;
    if (job->memory)
        job->memory->n_jobs--;
    list_unlink(&job->link);
    store_release(&job->done, true);
    pthread_cond_broadcast(&job->gpu->changed);
}

/* The daemon is silent: nothing more is waited for but what runs on the GPU. */
static void job_expire(struct spw_gpu_job *job)
{
    if (job->error == 0)
        job->error = -ETIMEDOUT;
    list_for_each (l, &job->gpu->lanes) {
        struct gpu_lane *lane = list_entry(l, struct gpu_lane, link);

        if (lane->memory != job->memory)
            continue;
        client_gpu_lane_over(lane, -ETIMEDOUT);
        list_for_each (u, &lane->directions[job->direction].uses) {
            struct gpu_use *use = list_entry(u, struct gpu_use, link);

            if (use->job != job || use->orphan ||
                (use->state == GPU_USE_MOVING && client_gpu_lane_emptied(lane, use) == 0))
                continue;
            if (use->error == 0)
                use->error = -ETIMEDOUT;
            use_orphan(use);
        }
    }
}

struct gpu_awaited client_gpu_pump(struct spw_gpu *gpu)
{
    uint64_t now_ns = client_now_ns();
    struct gpu_awaited await = {false, false};
    bool is_first = true, is_over = true;

    list_for_each (l, &gpu->lanes) {
        struct gpu_lane *lane = list_entry(l, struct gpu_lane, link);

        client_queue_turn(lane->moves);
        client_queue_turn(lane->leases);
    }
    client_gpu_lanes_look(gpu, now_ns);
    for (struct list *l = gpu->lanes.next, *next; l != &gpu->lanes; l = next) {
        struct gpu_lane *lane = list_entry(l, struct gpu_lane, link);

        next = l->next;
        for (unsigned i = 0; i < GPU_DIRECTIONS; i++)
            direction_step(lane, &lane->directions[i], now_ns);
        if ((lane->memory || is_first) && lane->over == 0)
            lane_feed(lane, now_ns); /* at once with what the steps have sent: one wake-up of the engine for all */
        if (!lane->memory && is_first)
            is_over = lane->over < 0;
        is_first &= lane->memory != NULL;
        for (unsigned i = 0; i < GPU_DIRECTIONS; i++)
            direction_await(lane, &lane->directions[i], &await);
    }
    for (struct list *l = gpu->jobs.next, *next; l != &gpu->jobs; l = next) {
        struct spw_gpu_job *job = list_entry(l, struct spw_gpu_job, link);

        next = l->next;
        if ((job->memory ? job->memory->lane->over < 0 : is_over && !gpu->awaits_lane) && job->error == 0 &&
            client_gpu_job_has_more(job))
            job->error = -EPIPE; /* it began on that lane */
        if (now_ns > job->deadline_ns + GPU_GRACE_MS * UINT64_C(1000000))
            job_expire(job);
        if (job->error < 0 || job->cancel)
            again_drop(job);
        if (job->n_uses == 0 && (job->next == job->n || job->error < 0 || job->cancel))
            job_done(job);
    }
    await.look |= gpu->awaits_lane && !list_is_empty(&gpu->jobs);
    return await;
}
