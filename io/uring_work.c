/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies and checksums on their way to the workers and back. Regions become addresses here, on the engine's thread,
 * which alone may change the table of regions. Jobs of one turn go to the pool in one batch. When all jobs are out,
 * works wait in their order.
 *
 * Small ones the engine does itself, a little in each turn: to wake a worker and be woken by it takes ten times as long
 * as the checksum of 64 KiB. Only when they come faster than that do workers get them, too. The bounds keep what a hit
 * may have to wait for in the size of a wake-up. A large one is hashed here in as small steps, if nothing else is: two
 * workers would be through with it sooner, but not by more than it takes to wake them, and at twice the CPU time.
 */
#include <errno.h>
#include <stdlib.h>

#include "io/uring_private.h"

static_assert((WORK_HERE_TURN_BYTES & (GRANULE_BYTES - 1)) == 0, "steps are whole granules");

static void job_finished(struct engine_msg *msg);

static const uint32_t *poisoned_mark(const struct uring *u, struct io_buf buf)
{
    struct memory_chunk *chunk = uring_region_chunk(u, buf.region);

    return chunk ? &chunk->poisoned : NULL;
}

/* Fills in the job; a negative errno if the work makes no sense. */
static int resolve(const struct uring *u, struct io_work *work, struct workers_job *job)
{
    bool copies = work->op != IO_WORK_HASH, sums = work->op != IO_WORK_COPY;

    if (work->op > IO_WORK_COPY_HASH || (sums && !work->sums))
        return -EINVAL;
    *job = (struct workers_job){
        .msg.run = job_finished,
        .op = work->op,
        .len_bytes = work->len_bytes,
        .seed = work->seed,
        .first_granule = work->first_granule,
        .sums = work->sums,
        .src = uring_address(u, work->src, work->len_bytes),
        .dst = copies ? uring_address(u, work->dst, work->len_bytes) : NULL,
        .src_poisoned = poisoned_mark(u, work->src),
        .dst_poisoned = copies ? poisoned_mark(u, work->dst) : NULL,
    };
    job->dst_is_ours = copies && !uring_region_chunk(u, work->dst.region); /* bounce memory */
    return job->src && (job->dst || !copies) ? 0 : -EINVAL;
}

static void work_refuse(struct uring *u, struct io_work *work, int r)
{
    work->result = r;
    list_push_tail(&u->failed_works, &work->link);
}

static void work_start(struct uring *u, struct io_work *work)
{
    struct uring_job *j = list_entry(u->jobs_free.next, struct uring_job, link);
    int r = resolve(u, work, &j->job);

    if (r < 0) {
        work_refuse(u, work, r);
        return;
    }
    list_unlink(&j->link);
    j->job.home = &u->queue;
    j->work = work;
    list_push_tail(&u->jobs_ready, &j->job.link);
    u->stat.works_in_flight++;
}

static void job_finished(struct engine_msg *msg)
{
    struct uring_job *j = container_of(msg, struct uring_job, job.msg);
    struct uring *u = j->uring;
    struct io_work *work = j->work;

    work->result = j->job.result;
    list_push_head(&u->jobs_free, &j->link); /* the one that is warm in the cache */
    u->stat.works_in_flight--;
    u->stat.works++;
    while (!list_is_empty(&u->works_queued) && !list_is_empty(&u->jobs_free)) {
        struct list *next = list_pop(&u->works_queued);

        u->stat.works_queued--;
        work_start(u, list_entry(next, struct io_work, link));
    }
    work->done(work);
}

/* A checksum that nothing waits behind is made here whatever its size. Copies are made by several workers sooner; if
 * there is only one, here is as good a place. */
static bool work_is_for_here(const struct uring *u, const struct io_work *work)
{
    bool is_copy = work->op == IO_WORK_COPY, lone = u->config.lone_worker;
    uint64_t most_bytes = is_copy && lone ? WORK_HERE_COPY_BYTES_MAX : WORK_HERE_BYTES_MAX;
    uint64_t queue_bytes = is_copy ? (lone ? WORK_HERE_COPY_BYTES_MAX : WORK_HERE_BYTES_MAX) : WORK_HERE_QUEUE_BYTES;

    if (u->works_here_bytes == 0 && work->op == IO_WORK_HASH)
        return true;
    return work->len_bytes <= most_bytes && u->works_here_bytes + work->len_bytes <= queue_bytes;
}

/* A step of it: whole granules. */
static int32_t work_do_part(struct uring *u, const struct io_work *work, uint32_t off_bytes, uint32_t len_bytes)
{
    struct io_work part = *work;
    struct workers_job job;

    part.len_bytes = len_bytes;
    part.src.off += off_bytes;
    part.dst.off += off_bytes;
    part.first_granule += off_bytes / (uint32_t)GRANULE_BYTES;
    if (part.sums)
        part.sums += off_bytes / GRANULE_BYTES;
    int r = resolve(u, &part, &job);
    return r < 0 ? r : workers_do_here(&job, u->granule);
}

static void work_end_here(struct uring *u, struct io_work *work)
{
    list_unlink(&work->link);
    u->works_here_bytes -= work->len_bytes - u->work_here_at;
    u->work_here_at = 0;
    u->stat.works_in_flight--;
    u->stat.works++;
    u->stat.works_here++;
    work->done(work);
}

uint32_t uring_work_here(struct uring *u)
{
    uint32_t n = 0;

    for (uint64_t done_bytes = 0; done_bytes < WORK_HERE_TURN_BYTES && !list_is_empty(&u->works_here); n++) {
        struct io_work *work = list_entry(u->works_here.next, struct io_work, link);
        uint32_t left = work->len_bytes - u->work_here_at;
        bool at_once = work->op != IO_WORK_COPY && work->len_bytes <= WORK_HERE_BYTES_MAX;
        uint32_t len = at_once ? left : MIN(left, (uint32_t)WORK_HERE_TURN_BYTES);

        work->result = work_do_part(u, work, u->work_here_at, len);
        u->work_here_at += len;
        u->works_here_bytes -= len;
        done_bytes += len;
        if (work->result < 0 || u->work_here_at == work->len_bytes)
            work_end_here(u, work);
    }
    return n;
}

int uring_work_init(struct uring *u)
{
    list_init(&u->jobs_free);
    list_init(&u->jobs_ready);
    list_init(&u->works_queued);
    list_init(&u->failed_works);
    list_init(&u->works_here);
    u->granule = aligned_alloc(64, GRANULE_BYTES);
    u->jobs = calloc(u->config.works_max, sizeof(*u->jobs));
    if (!u->jobs || !u->granule)
        return -ENOMEM;
    for (uint32_t i = 0; i < u->config.works_max; i++) {
        u->jobs[i].uring = u;
        list_push_tail(&u->jobs_free, &u->jobs[i].link);
    }
    return 0;
}

void uring_work_submit(struct io_backend *be, struct io_work *work)
{
    struct uring *u = uring_of(be);

    if (!u->config.workers) {
        work_refuse(u, work, -ENOSYS);
    } else if (work_is_for_here(u, work)) {
        list_push_tail(&u->works_here, &work->link);
        u->works_here_bytes += work->len_bytes;
        u->stat.works_in_flight++;
    } else if (list_is_empty(&u->jobs_free) || !list_is_empty(&u->works_queued)) {
        list_push_tail(&u->works_queued, &work->link);
        u->stat.works_queued++;
    } else {
        work_start(u, work);
    }
}

void uring_work_flush(struct uring *u)
{
    if (!list_is_empty(&u->jobs_ready))
        workers_submit(u->config.workers, &u->jobs_ready);
}

uint32_t uring_work_fail(struct uring *u)
{
    struct list failed, *l;
    uint32_t n = 0;

    list_init(&failed);
    list_splice_tail(&failed, &u->failed_works);
    for (; (l = list_pop(&failed)); n++) {
        struct io_work *work = list_entry(l, struct io_work, link);

        work->done(work);
    }
    return n;
}
