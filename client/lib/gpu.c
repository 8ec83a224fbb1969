/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attaching to a GPU, and the thread that sees to it that nothing hangs.
 *
 * The thread sleeps while there is nothing to do. Else it moves jobs on whenever the daemon rings, looks every 50 us while
 * only a look can tell (a stream's write to memory wakes nobody), and lets a silent daemon's lanes go when a deadline has
 * passed. A wake-up is what costs most here, so it is woken for as little as will do (struct gpu_awaited), and leaves
 * everything to a caller who spins.
 *
 * The context is the caller's: it is made current for each call, and the thread's own is put back after it.
 */
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>

#include "client/lib/gpu.h"

#define THREAD_SLEEP_MS 100 /* at most, while there are jobs: to look at deadlines */

/* --- The lock and the context ---------------------------------------------------------------------------------------- */

int client_gpu_enter(const char *name, struct spw_gpu *gpu)
{
    int r = client_fork_is(gpu->session->fork_mark) ? 0 : client_session_check(gpu->session);

    if (r < 0)
        return r;
    pthread_mutex_lock(&gpu->lock);
    r = gpu->cuda->CtxPushCurrent(gpu->context);
    if (r == NV_SUCCESS)
        return 0;
    pthread_mutex_unlock(&gpu->lock);
    return client_gpu_error(r, name);
}

void client_gpu_leave(struct spw_gpu *gpu)
{
    struct CUctx_st *ours;

    (void)gpu->cuda->CtxPopCurrent(&ours);
    pthread_mutex_unlock(&gpu->lock);
}

int client_gpu_space_check(const char *name, const struct spw_gpu *gpu, const spw_space *space)
{
    if (space->session != gpu->session || space->engine != gpu->space->engine ||
        space->pool->handle != gpu->space->pool->handle)
        return client_error(-EXDEV, 0, "%s: the space is of another pool or engine than the attachment", name);
    return 0;
}

/* --- The thread ------------------------------------------------------------------------------------------------------ */

/* Leases may be with the daemon still after the last job has ended. */
static bool gpu_works(const struct spw_gpu *gpu)
{
    list_for_each (l, &gpu->lanes) {
        const struct gpu_lane *lane = list_entry(l, struct gpu_lane, link);

        if (lane->over == 0 && lane->directions[GPU_SPILL].n_uses + lane->directions[GPU_FETCH].n_uses > 0)
            return true;
    }
    return !list_is_empty(&gpu->jobs);
}

/* What the thread sleeps with. */
struct thread_sleep {
    struct pollfd fds[2 + SESSION_GPU_LANES_MAX]; /* the first is to wake it; the lane with slots has two queues */
    nfds_t n_fds;
    int64_t nap_ns; /* at most so long; 0: it need not sleep; -1: as long as nobody wakes it */
};

static void sleep_on(struct thread_sleep *sleep, spw_queue *queue)
{
    int r = sleep->n_fds < ARRAY_LEN(sleep->fds) ? client_queue_arm(queue) : -EMFILE;

    if (r == 0)
        sleep->fds[sleep->n_fds++] = (struct pollfd){.fd = spw_queue_fd(queue), .events = POLLIN};
    else if (r == 1)
        sleep->nap_ns = 0; /* something has come already */
}

static void sleep_prepare(struct spw_gpu *gpu, const struct gpu_awaited *await, struct thread_sleep *ret_sleep)
{
    ret_sleep->nap_ns = await->look ? GPU_NAP_NS : THREAD_SLEEP_MS * INT64_C(1000000);
    if (!gpu_works(gpu))
        ret_sleep->nap_ns = -1;
    if (ret_sleep->nap_ns < 0)
        return;
    bool is_first = true;

    list_for_each (l, &gpu->lanes) {
        const struct gpu_lane *lane = list_entry(l, struct gpu_lane, link);

        if (lane->memory ? lane->directions[GPU_SPILL].n_uses + lane->directions[GPU_FETCH].n_uses > 0 : is_first)
            sleep_on(ret_sleep, lane->moves);
        if (!lane->memory && is_first && await->leases)
            sleep_on(ret_sleep, lane->leases);
        is_first &= lane->memory != NULL;
    }
}

static void thread_turn(struct spw_gpu *gpu, struct thread_sleep *ret_sleep)
{
    *ret_sleep =
        (struct thread_sleep){.fds = {{.fd = gpu->wake_fd, .events = POLLIN}}, .n_fds = 1, .nap_ns = GPU_NAP_NS};
    list_for_each (l, &gpu->lanes) {
        const struct gpu_lane *lane = list_entry(l, struct gpu_lane, link);

        client_queue_disarm(lane->moves);
        client_queue_disarm(lane->leases);
    }
    if (load_relaxed(&gpu->n_spinning) > 0)
        return;
    struct gpu_awaited await = client_gpu_pump(gpu);

    sleep_prepare(gpu, &await, ret_sleep);
}

static void thread_sleep(const struct spw_gpu *gpu, struct thread_sleep *sleep)
{
    struct timespec nap = {.tv_nsec = sleep->nap_ns};
    eventfd_t value;

    if (sleep->nap_ns == 0)
        return;
    (void)ppoll(sleep->fds, sleep->n_fds, sleep->nap_ns > 0 ? &nap : NULL, NULL);
    if (sleep->fds[0].revents)
        (void)!eventfd_read(gpu->wake_fd, &value);
}

/* Whoever spins has the lock all the time, and would go to sleep if he met us there. */
static void thread_lock(struct spw_gpu *gpu)
{
    while (load_relaxed(&gpu->n_spinning) > 0)
        nanosleep(&(struct timespec){.tv_nsec = GPU_NAP_NS}, NULL);
    pthread_mutex_lock(&gpu->lock);
}

static void *thread_main(void *arg)
{
    struct spw_gpu *gpu = arg;
    struct thread_sleep sleep;

    (void)pthread_setname_np(pthread_self(), "spw-gpu");
    pthread_mutex_lock(&gpu->lock);
    (void)gpu->cuda->CtxSetCurrent(gpu->context);
    while (!gpu->stop) {
        thread_turn(gpu, &sleep);
        pthread_mutex_unlock(&gpu->lock);
        thread_sleep(gpu, &sleep);
        thread_lock(gpu);
    }
    pthread_mutex_unlock(&gpu->lock);
    return NULL;
}

static int thread_start(struct spw_gpu *gpu)
{
    int r = client_thread_start(thread_main, gpu, &gpu->thread);

    gpu->has_thread = r == 0;
    return r == 0 ? 0 : client_error(r, 0, "spw_gpu_attach: cannot start a thread: %s", strerrordesc_np(-r));
}

/* --- Attaching ------------------------------------------------------------------------------------------------------- */

/* The context's device, and whether it is the one that was asked for. */
static int device_find(struct spw_gpu *gpu)
{
    const struct cuda_driver *cuda = gpu->cuda;
    struct cuda_uuid uuid;
    int r = cuda->CtxGetCurrent(&gpu->context);

    if (r == NV_ERROR_NOT_INITIALIZED || (r == NV_SUCCESS && !gpu->context))
        return client_error(-EINVAL, 0, "spw_gpu_attach: this thread has no current context");
    if (r == NV_SUCCESS)
        r = cuda->CtxGetDevice(&gpu->device);
    if (r == NV_SUCCESS)
        r = cuda->DeviceGetUuid(&uuid, gpu->device);
    if (r != NV_SUCCESS)
        return client_gpu_error(r, "spw_gpu_attach");
    if (gpu->options.uuid && memcmp(gpu->options.uuid, uuid.bytes, SPW_UUID_BYTES) != 0)
        return client_error(-ENODEV, 0, "spw_gpu_attach: the current context is of another GPU");
    memcpy(gpu->uuid, uuid.bytes, sizeof(gpu->uuid));
    gpu->options.uuid = gpu->uuid;
    return 0;
}

static int kernels_load(struct spw_gpu *gpu)
{
    const struct cuda_driver *cuda = gpu->cuda;
    int r = cuda->ModuleLoadDataEx(&gpu->module, kernels_ptx, 0, NULL, NULL);

    if (r == NV_SUCCESS)
        r = cuda->ModuleGetFunction(&gpu->kernels[GPU_SPILL], gpu->module, KERNEL_GATHER);
    if (r == NV_SUCCESS)
        r = cuda->ModuleGetFunction(&gpu->kernels[GPU_FETCH], gpu->module, KERNEL_SCATTER);
    return r == NV_SUCCESS ? 0 : client_gpu_error(r, "spw_gpu_attach: the kernels");
}

static void gpu_free(struct spw_gpu *gpu)
{
    if (gpu->wake_fd >= 0)
        close(gpu->wake_fd);
    pthread_cond_destroy(&gpu->changed);
    pthread_mutex_destroy(&gpu->lock);
    free(gpu);
}

/*
 * What runs in a lane's stream when nobody waits for it any more: the clearing of its counts, after an attachment without a
 * job; a moment of the last job. A caller's stream that is waited for in there may take as long as it likes.
 */
static void lanes_wait(const struct spw_gpu *gpu)
{
    uint64_t until_ns = client_now_ns() + GPU_GRACE_MS * UINT64_C(1000000);

    list_for_each (l, &gpu->lanes)
        while (client_gpu_lane_runs(list_entry(l, struct gpu_lane, link)) && client_now_ns() < until_ns)
            nanosleep(&(struct timespec){.tv_nsec = GPU_NAP_NS}, NULL);
}

static void gpu_destroy(struct spw_gpu *gpu)
{
    struct CUctx_st *ours;
    bool runs = false;

    if (gpu->has_thread)
        pthread_join(gpu->thread, NULL);
    client_gpu_map_end(gpu);
    if (gpu->context && gpu->cuda->CtxPushCurrent(gpu->context) == NV_SUCCESS) {
        lanes_wait(gpu);
        for (struct list *l = gpu->lanes.next, *next; l != &gpu->lanes; l = next) {
            struct gpu_lane *lane = list_entry(l, struct gpu_lane, link);

            next = l->next;
            if (client_gpu_lane_is_idle(lane))
                client_gpu_lane_free(lane);
            else if (!client_gpu_lane_runs(lane)) /* the daemon is silent: its answers may come until spw_close() */
                client_gpu_lane_release(lane);
            else
                runs = true;
        }
        while (!list_is_empty(&gpu->layouts))
            client_gpu_layout_destroy(list_first_entry(&gpu->layouts, struct spw_gpu_layout, link));
        if (gpu->counts && !runs)
            (void)gpu->cuda->MemFree(gpu->counts);
        if (gpu->module)
            (void)gpu->cuda->ModuleUnload(gpu->module);
        (void)gpu->cuda->CtxPopCurrent(&ours);
    }
    if (list_is_empty(&gpu->lanes)) {
        gpu_free(gpu);
        return;
    }
    pthread_mutex_lock(&gpu->session->lock);
    list_push_tail(&gpu->session->gpus_left, &gpu->link);
    pthread_mutex_unlock(&gpu->session->lock);
}

void client_gpu_left_free(spw_session *session)
{
    while (!list_is_empty(&session->gpus_left)) {
        struct spw_gpu *gpu = list_entry(list_pop(&session->gpus_left), struct spw_gpu, link);

        while (!list_is_empty(&gpu->lanes))
            client_gpu_lane_forget(list_first_entry(&gpu->lanes, struct gpu_lane, link));
        gpu_free(gpu);
    }
}

/* What it takes to run jobs. */
static int work_begin(struct spw_gpu *gpu)
{
    struct gpu_lane *lane;
    int r = kernels_load(gpu);

    if (r == 0)
        r = client_gpu_lane(gpu, &lane);
    return r == 0 ? thread_start(gpu) : r;
}

static struct spw_gpu *gpu_alloc(spw_space *space, const struct spw_gpu_options *options)
{
    struct spw_gpu *gpu = calloc(1, sizeof(*gpu));

    if (!gpu)
        return NULL;
    gpu->session = space->session;
    gpu->space = space;
    gpu->options = options ? *options : (struct spw_gpu_options){0};
    list_init(&gpu->link);
    list_init(&gpu->mapper);
    list_init(&gpu->lanes);
    list_init(&gpu->layouts);
    list_init(&gpu->jobs);
    list_init(&gpu->all_jobs);
    pthread_mutex_init(&gpu->lock, NULL);
    client_cond_init(&gpu->changed);
    gpu->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return gpu;
}

int spw_gpu_attach(spw_space *space, const struct spw_gpu_options *options, spw_gpu **ret_gpu)
{
    const struct cuda_driver *cuda;

    if (!space || !ret_gpu || (options && options->thread_blocks > GPU_THREAD_BLOCKS_MAX))
        return client_error(-EINVAL, 0, "spw_gpu_attach: an argument is NULL, or more than %d thread blocks",
                            GPU_THREAD_BLOCKS_MAX);
    if (options && (options->flags & ~(uint32_t)SPW_GPU_MAP_ONLY))
        return client_error(-EINVAL, 0, "spw_gpu_attach: unknown flags 0x%x", options->flags);
    int r = client_session_check(space->session);
    if (r < 0)
        return r;
    if (cuda_driver_load(&cuda) < 0)
        return client_error(-ENOSYS, 0, "spw_gpu_attach: %s", cuda_driver_problem());
    struct spw_gpu *gpu = gpu_alloc(space, options);
    if (!gpu)
        return client_error(-ENOMEM, 0, "spw_gpu_attach: out of memory");
    gpu->cuda = cuda;
    r = gpu->wake_fd < 0 ? client_error(-EMFILE, 0, "spw_gpu_attach: no descriptor is left") : 0;
    if (r == 0)
        r = device_find(gpu);
    if (r == 0 && !(gpu->options.flags & SPW_GPU_MAP_ONLY))
        r = work_begin(gpu);
    if (r < 0)
        gpu_destroy(gpu);
    else
        *ret_gpu = gpu;
    return r;
}

void spw_gpu_detach(spw_gpu *gpu)
{
    if (!gpu || !client_fork_is(gpu->session->fork_mark))
        return;
    pthread_mutex_lock(&gpu->lock);
    list_for_each (l, &gpu->jobs)
        list_entry(l, struct spw_gpu_job, link)->cancel = true;
    client_gpu_wake(gpu);
    while (!list_is_empty(&gpu->jobs)) /* each has its deadline */
        pthread_cond_wait(&gpu->changed, &gpu->lock);
    gpu->leaves = true;
    for (uint64_t now_ns, until_ns = client_now_ns() + GPU_GRACE_MS * UINT64_C(1000000);
         gpu_works(gpu) && (now_ns = client_now_ns()) < until_ns;)
        client_cond_wait(&gpu->changed, &gpu->lock, until_ns - now_ns);
    gpu->stop = true;
    client_gpu_wake(gpu);
    while (!list_is_empty(&gpu->all_jobs)) {
        struct spw_gpu_job *job = list_first_entry(&gpu->all_jobs, struct spw_gpu_job, all);

        client_gpu_job_free_locked(job);
    }
    pthread_mutex_unlock(&gpu->lock);
    gpu_destroy(gpu);
}
