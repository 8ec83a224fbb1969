/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A lane as the client has it: its memory, imported; the page of fences, registered, since streams write and wait there; two
 * streams, of a direct lane four; and for each slot a list of block ids, one of ranges, and a word for errors in host memory
 * that kernels read and write. Nothing else is pinned. With gpu.lock held.
 *
 * A lane that is over is left alone until its streams are idle, then freed: the memory behind its slots must stay as long
 * as a kernel may look at it.
 */
#include <string.h>

#include "client/lib/gpu.h"

int client_gpu_error(int result, const char *what)
{
    return client_error(cuda_errno(result), cuda_is_fatal(result) ? SPW_LIMIT_GPU_FAILED : 0, "%s: %s", what,
                        cuda_error_name(result));
}

/* --- Making ---------------------------------------------------------------------------------------------------------- */

static bool reply_is_sane(const struct spw_msg_gpu_attach *ask, const struct spw_msg_gpu *reply)
{
    uint64_t needed = ask->alloc_bytes ? ask->alloc_bytes : UINT64_C(2) * reply->slots * reply->slot_bytes;

    return reply->slots > 0 && reply->slots <= GPU_SLOTS_MAX && reply->slot_bytes >= GPU_SLOT_BYTES_MIN &&
           reply->slot_bytes <= GPU_SLOT_BYTES_MAX && reply->staging_bytes >= needed &&
           reply->alloc_bytes >= ask->alloc_bytes;
}

static int lane_ask(struct gpu_lane *lane, int ret_fds[static 2])
{
    const struct spw_gpu *gpu = lane->gpu;
    struct spw_msg_gpu_attach ask = {.engine = gpu->space->engine,
                                     .slots = lane->memory ? GPU_DIRECT_SLOTS : gpu->options.slots,
                                     .slot_bytes = lane->memory ? 0 : gpu->options.slot_bytes,
                                     .alloc_bytes = lane->memory ? lane->memory->bytes : 0};
    struct spw_msg_gpu reply = {0};
    int r;

    memcpy(ask.uuid, gpu->uuid, sizeof(ask.uuid));
    do { /* the pool's handle is of one connection */
        r = client_link_wait(gpu->session);
        if (r < 0)
            return r;
        lane->era = load_acquire(&gpu->session->era);
        ask.pool = load_relaxed(&gpu->space->pool->handle);
        r = lane->era % 2 == 0 ? client_control_request_on(gpu->session, &lane->era, SPW_MSG_GPU_ATTACH, &ask.msg,
                                                           sizeof(ask), &reply.msg, sizeof(reply), ret_fds, 2)
                               : -ESTALE;
    } while (r == -ESTALE);
    if (r < 0)
        return r;
    if (!reply_is_sane(&ask, &reply)) {
        close(ret_fds[0]);
        close(ret_fds[1]);
        return client_session_end(gpu->session, "a lane with impossible slots");
    }
    lane->number = reply.lane;
    lane->slots = reply.slots;
    lane->slot_bytes = reply.slot_bytes;
    lane->staging_bytes = reply.staging_bytes;
    lane->leased_bytes_max = gpu->space->pool->info.dram_bytes / GPU_POOL_SHARE;
    lane->use_bytes = MIN(lane->slot_bytes, lane->leased_bytes_max / 2);
    return 0;
}

static int staging_import(struct gpu_lane *lane, int fd)
{
    const struct cuda_driver *cuda = lane->gpu->cuda;
    struct cuda_access_desc access = {.location = {.type = NV_LOCATION_TYPE_DEVICE, .id = lane->gpu->device},
                                      .flags = NV_ACCESS_PROT_READWRITE};
    int r = cuda->MemImportFromShareableHandle(&lane->staging_handle, (void *)(uintptr_t)fd,
                                               NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);

    if (r != NV_SUCCESS)
        return client_gpu_error(r, "memory of the daemon's");
    r = cuda->MemAddressReserve(&lane->staging, lane->staging_bytes, 0, 0, 0);
    if (r == NV_SUCCESS) {
        r = cuda->MemMap(lane->staging, lane->staging_bytes, 0, lane->staging_handle, 0);
        lane->mapped = r == NV_SUCCESS;
    }
    if (r == NV_SUCCESS)
        r = cuda->MemSetAccess(lane->staging, lane->staging_bytes, &access, 1);
    return r == NV_SUCCESS ? 0 : client_gpu_error(r, "mapping memory of the daemon's");
}

static int fences_map(struct gpu_lane *lane, int fd)
{
    const struct cuda_driver *cuda = lane->gpu->cuda;
    uint64_t address;
    int r = client_map_open(fd, GPU_FENCES_BYTES, true, &lane->fences_map);

    if (r < 0)
        return r;
    r = cuda->MemHostRegister(lane->fences_map.base, GPU_FENCES_BYTES, NV_HOST_REGISTER_DEVICEMAP);
    lane->fences_registered = r == NV_SUCCESS;
    if (r == NV_SUCCESS)
        r = cuda->MemHostGetDevicePointer(&address, lane->fences_map.base, 0);
    if (r != NV_SUCCESS)
        return client_gpu_error(r, "registering a page of fences");
    struct spw_gpu_fences *fences = lane->fences_map.base;
    lane->directions[GPU_SPILL].fence = &fences->spill;
    lane->directions[GPU_FETCH].fence = &fences->fetch;
    lane->directions[GPU_SPILL].fence_address = address + offsetof(struct spw_gpu_fences, spill);
    lane->directions[GPU_FETCH].fence_address = address + offsetof(struct spw_gpu_fences, fetch);
    return 0;
}

static int host_alloc(const struct gpu_lane *lane, uint64_t size_bytes, void *ret_memory, uint64_t *ret_address)
{
    const struct cuda_driver *cuda = lane->gpu->cuda;
    void *memory;
    int r = cuda->MemHostAlloc(&memory, size_bytes, NV_HOST_REGISTER_DEVICEMAP | NV_HOST_REGISTER_PORTABLE);

    if (r != NV_SUCCESS)
        return client_gpu_error(r, "memory for lists");
    memset(memory, 0, size_bytes);
    memcpy(ret_memory, &memory, sizeof(memory));
    r = cuda->MemHostGetDevicePointer(ret_address, memory, 0);
    return r == NV_SUCCESS ? 0 : client_gpu_error(r, "memory for lists");
}

static int direction_init(struct gpu_lane *lane, struct gpu_direction_state *d, int priority)
{
    const struct cuda_driver *cuda = lane->gpu->cuda;

    d->slots = calloc(lane->slots, sizeof(struct gpu_use *));
    d->emptied = calloc(lane->slots, sizeof(struct CUevent_st *));
    if (!d->slots || !d->emptied)
        return client_error(-ENOMEM, 0, "out of memory");
    int r = cuda->StreamCreateWithPriority(&d->stream, NV_STREAM_NON_BLOCKING, priority);
    if (r == NV_SUCCESS && lane->memory)
        r = cuda->StreamCreateWithPriority(&d->ends, NV_STREAM_NON_BLOCKING, priority);
    for (uint32_t i = 0; r == NV_SUCCESS && i < lane->slots; i++)
        r = cuda->EventCreate(&d->emptied[i], NV_EVENT_DISABLE_TIMING);
    return r == NV_SUCCESS ? 0 : client_gpu_error(r, "a stream of a lane");
}

/* A place in the attachment's memory that no other lane has: freeing memory of the device waits for all that runs there. */
static int counts_find(struct gpu_lane *lane)
{
    struct spw_gpu *gpu = lane->gpu;
    int r = gpu->counts ? NV_SUCCESS : gpu->cuda->MemAlloc(&gpu->counts, GPU_LANES_LEFT_MAX * GPU_COUNTS_BYTES);

    if (r != NV_SUCCESS)
        return client_gpu_error(r, "memory for counts");
    for (uint32_t i = 0; i < GPU_LANES_LEFT_MAX; i++) {
        bool is_free = true;

        lane->counts = gpu->counts + i * GPU_COUNTS_BYTES;
        list_for_each (l, &gpu->lanes)
            is_free &= list_entry(l, struct gpu_lane, link)->counts != lane->counts;
        if (is_free)
            return 0;
    }
    return client_error(-EAGAIN, 0, "%d lanes that ended are busy on the GPU still", GPU_LANES_LEFT_MAX);
}

/* Of one direction's slots, in its stream. */
static int counts_clear(const struct gpu_lane *lane, unsigned direction)
{
    uint64_t bytes = lane->slots * sizeof(uint32_t);
    int r =
        lane->gpu->cuda->MemsetD8Async(lane->counts + direction * bytes, 0, bytes, lane->directions[direction].stream);

    return r == NV_SUCCESS ? 0 : client_gpu_error(r, "memory for counts");
}

/* What kernels read and write. */
static int tables_init(struct gpu_lane *lane)
{
    int r =
        host_alloc(lane, 2 * (uint64_t)lane->slots * SPW_LIST_MAX * sizeof(*lane->ids), &lane->ids, &lane->ids_address);
    if (r == 0)
        r = host_alloc(lane, 2 * (uint64_t)lane->slots * GPU_USE_RANGES_MAX * sizeof(*lane->ranges), &lane->ranges,
                       &lane->ranges_address);
    if (r == 0)
        r = host_alloc(lane, 2 * (uint64_t)lane->slots * sizeof(*lane->errors), &lane->errors, &lane->errors_address);
    return r == 0 ? counts_find(lane) : r;
}

static int queues_init(struct gpu_lane *lane)
{
    spw_session *session = lane->gpu->session;
    int r = spw_queue_new(session, lane->gpu->space, GPU_DIRECTIONS * GPU_USES(lane->slots), &lane->leases);

    if (lane->memory)
        lane->moves = lane->leases;
    else if (r == 0)
        r = spw_queue_new(session, lane->gpu->space, GPU_DIRECTIONS * lane->slots, &lane->moves);
    return r;
}

static int lane_init(struct gpu_lane *lane, const int fds[static 2])
{
    int least = 0, greatest = 0;
    int r = staging_import(lane, fds[0]);

    if (r == 0)
        r = fences_map(lane, fds[1]);
    if (r == 0 && !lane->memory)
        r = tables_init(lane);
    (void)lane->gpu->cuda->CtxGetStreamPriorityRange(&least, &greatest);
    if (r == 0)
        r = direction_init(lane, &lane->directions[GPU_SPILL], least);
    if (r == 0) /* somebody waits for a fetch */
        r = direction_init(lane, &lane->directions[GPU_FETCH], greatest);
    if (r == 0)
        r = queues_init(lane);
    /* Before its first kernel, and last: of a lane that comes to nothing the next one has the place. */
    for (unsigned i = 0; r == 0 && !lane->memory && i < GPU_DIRECTIONS; i++)
        r = counts_clear(lane, i);
    return r;
}

int client_gpu_lane_new(struct spw_gpu *gpu, struct spw_gpu_memory *memory, struct gpu_lane **ret_lane)
{
    struct gpu_lane *lane = calloc(1, sizeof(*lane));
    int fds[2];

    if (!lane)
        return client_error(-ENOMEM, 0, "out of memory");
    list_init(&lane->link);
    lane->gpu = gpu;
    lane->memory = memory;
    for (unsigned i = 0; i < GPU_DIRECTIONS; i++)
        list_init(&lane->directions[i].uses);
    int r = lane_ask(lane, fds);
    if (r < 0) {
        free(lane);
        return r;
    }
    r = lane_init(lane, fds);
    close(fds[0]);
    close(fds[1]);
    if (r < 0) {
        lane->memory = NULL; /* it is the caller's still */
        client_gpu_lane_free(lane);
        return r;
    }
    if (memory)
        memory->lane = lane;
    *ret_lane = lane;
    return 0;
}

/* --- The end --------------------------------------------------------------------------------------------------------- */

static void direction_deinit(const struct gpu_lane *lane, struct gpu_direction_state *d)
{
    const struct cuda_driver *cuda = lane->gpu->cuda;

    for (uint32_t i = 0; d->emptied && i < lane->slots; i++)
        if (d->emptied[i])
            (void)cuda->EventDestroy(d->emptied[i]);
    if (d->stream)
        (void)cuda->StreamDestroy(d->stream);
    if (d->ends)
        (void)cuda->StreamDestroy(d->ends);
    d->stream = d->ends = NULL;
    free(steal_ptr(d->slots));
    free(steal_ptr(d->emptied));
}

void client_gpu_lane_release(struct gpu_lane *lane)
{
    const struct cuda_driver *cuda = lane->gpu->cuda;

    for (unsigned i = 0; i < GPU_DIRECTIONS; i++)
        direction_deinit(lane, &lane->directions[i]);
    if (lane->ids)
        (void)cuda->MemFreeHost(lane->ids);
    if (lane->ranges)
        (void)cuda->MemFreeHost(lane->ranges);
    if (lane->errors)
        (void)cuda->MemFreeHost(lane->errors);
    if (lane->fences_registered)
        (void)cuda->MemHostUnregister(lane->fences_map.base);
    client_map_close(&lane->fences_map);
    if (lane->mapped)
        (void)cuda->MemUnmap(lane->staging, lane->staging_bytes);
    if (lane->staging)
        (void)cuda->MemAddressFree(lane->staging, lane->staging_bytes);
    if (lane->staging_handle)
        (void)cuda->MemRelease(lane->staging_handle);
}

void client_gpu_lane_free(struct gpu_lane *lane)
{
    if (!lane)
        return;
    struct spw_msg_gpu_detach detach = {.engine = lane->gpu->space->engine, .lane = lane->number};
    uint32_t era = lane->era; /* elsewhere the number may be another lane's */
    struct spw_msg reply;

    client_gpu_lane_release(lane);
    if (lane->moves != lane->leases)
        spw_queue_free(lane->moves);
    spw_queue_free(lane->leases);
    if (client_link_is_of(lane->gpu->session, era))
        (void)!client_control_request_on(lane->gpu->session, &era, SPW_MSG_GPU_DETACH, &detach.msg, sizeof(detach),
                                         &reply, sizeof(reply), NULL, 0);
    list_unlink(&lane->link);
    free(lane->memory);
    free(lane);
}

void client_gpu_lane_over(struct gpu_lane *lane, int error)
{
    if (lane->over != 0)
        return;
    lane->over = error;
    for (unsigned i = 0; i < GPU_DIRECTIONS; i++) {
        struct spw_gpu_fence *fence = lane->directions[i].fence;

        /* The daemon may say something else at the same time: any status will do, as long as it is there first. */
        if (load_relaxed(&fence->status) == 0)
            store_relaxed(&fence->status, (uint64_t)-error);
        store_release(&fence->daemon_seq, SPW_GPU_SEQ_OVER);
    }
}

/* --- Kernels --------------------------------------------------------------------------------------------------------- */

static uint32_t lane_slot(const struct gpu_lane *lane, const struct gpu_use *use)
{
    return (uint32_t)((use->seq - 1) % lane->slots);
}

int client_gpu_lane_launch(struct gpu_lane *lane, struct gpu_use *use)
{
    const struct spw_gpu_job *job = use->job;
    const struct cuda_driver *cuda = lane->gpu->cuda;
    struct gpu_direction_state *d = &lane->directions[job->direction];
    uint32_t slot = lane_slot(lane, use), place = slot + (job->direction == GPU_FETCH ? lane->slots : 0);
    uint32_t blocks = lane->gpu->options.thread_blocks ? lane->gpu->options.thread_blocks : GPU_THREAD_BLOCKS;
    struct kernel_args args = {
        .slot = lane->staging + place * lane->slot_bytes,
        .status = d->fence_address + offsetof(struct spw_gpu_fence, status),
        .error = lane->errors_address + place * sizeof(*lane->errors),
        .done = d->fence_address + offsetof(struct spw_gpu_fence, client_seq),
        .done_value = use->seq,
        .count = lane->counts + place * sizeof(uint32_t),
    };
    void *params[] = {&args};

    if (lane->memory)
        return client_gpu_direct_launch(lane, use);
    client_gpu_elements_place(lane, use, place, &args);
    store_relaxed(&lane->errors[place], UINT64_C(0));
    int r = NV_SUCCESS;
    if (job->direction == GPU_FETCH)
        r = cuda->StreamWaitValue64(d->stream, d->fence_address + offsetof(struct spw_gpu_fence, daemon_seq), use->seq,
                                    NV_STREAM_WAIT_VALUE_GEQ);
    if (r == NV_SUCCESS)
        r = cuda->LaunchKernel(lane->gpu->kernels[job->direction], blocks, 1, 1, KERNEL_THREADS, 1, 1, 0, d->stream,
                               params, NULL);
    if (r == NV_SUCCESS)
        r = cuda->EventRecord(d->emptied[slot], d->stream);
    return r == NV_SUCCESS ? 0 : client_gpu_error(r, "a kernel of a lane");
}

int client_gpu_lane_emptied(const struct gpu_lane *lane, const struct gpu_use *use)
{
    const struct gpu_direction_state *d = &lane->directions[use->job->direction];

    if (lane->over == 0)
        return (int64_t)(load_acquire(lane->memory ? &d->fence->daemon_seq : &d->fence->client_seq) - use->seq) >= 0;
    /* Others may write there now. */
    int r = lane->gpu->cuda->EventQuery(d->emptied[lane_slot(lane, use)]);
    if (r == NV_ERROR_NOT_READY)
        return 0;
    return r == NV_SUCCESS ? 1 : client_gpu_error(r, "a kernel of a lane");
}
