/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of the pools as a device of this process sees it: windows of chunks that were registered with the driver because
 * the application asked for it. This alone makes the client pin what the daemon has pinned already.
 *
 * A window is registered once for all attachments of a session (the driver refuses the same memory twice, and PORTABLE
 * registrations serve every context), read-only where the mapping is. It goes before its mapping does, which chunk.c tells,
 * or when the last attachment that maps anything stops. session.chunk_lock guards all of it, so no mapping goes while a
 * window of it is being registered; of an attachment only what never changes is used, so gpu.lock is not wanted.
 */
#include "client/lib/gpu.h"

#include "include/base/checked.h"

struct gpu_window {
    struct list link; /* session.gpu_windows */
    uint8_t *base;
    size_t size_bytes;
};

static const struct gpu_window *window_find(const spw_session *session, const struct spw_view *view)
{
    list_for_each (l, &session->gpu_windows) {
        const struct gpu_window *window = list_entry(l, struct gpu_window, link);

        if (range_within((uintptr_t)view->data, view->size_bytes, (uintptr_t)window->base, window->size_bytes))
            return window;
    }
    return NULL;
}

/* The window that the view's first byte is in; no view crosses one. */
static int window_new(struct spw_gpu *gpu, const struct spw_view *view, const struct gpu_window **ret_window)
{
    const struct client_map *map = client_chunk_find_locked(gpu->session, view->data, view->size_bytes);

    if (!map)
        return client_error(-EINVAL, 0, "spw_gpu_map: the view is no lease of this session");
    uint64_t at_bytes = (uint64_t)((uint8_t *)view->data - (uint8_t *)map->base);
    uint64_t first_bytes = at_bytes - at_bytes % GPU_WINDOW_BYTES;
    uint64_t size_bytes = MIN(map->size_bytes - first_bytes, (uint64_t)GPU_WINDOW_BYTES);
    if (!range_ok(at_bytes - first_bytes, view->size_bytes, size_bytes))
        return client_error(-EINVAL, 0, "spw_gpu_map: the view is larger than what one lease can be");
    struct gpu_window *window = calloc(1, sizeof(*window));
    if (!window)
        return client_error(-ENOMEM, 0, "spw_gpu_map: out of memory");
    window->base = (uint8_t *)map->base + first_bytes;
    window->size_bytes = size_bytes;
    int r = gpu->cuda->MemHostRegister(window->base, window->size_bytes,
                                       NV_HOST_REGISTER_PORTABLE | NV_HOST_REGISTER_DEVICEMAP |
                                           (map->is_writable ? 0U : NV_HOST_REGISTER_READ_ONLY));
    if (r != NV_SUCCESS) {
        free(window);
        return client_gpu_error(r, "spw_gpu_map: registering memory of the pool");
    }
    list_push_head(&gpu->session->gpu_windows, &window->link);
    *ret_window = window;
    return 0;
}

/* A registration that cannot be undone ended with its context. */
static void window_free(const struct cuda_driver *cuda, struct gpu_window *window)
{
    (void)cuda->MemHostUnregister(window->base);
    list_unlink(&window->link);
    free(window);
}

/* With the context. */
static int map_locked(struct spw_gpu *gpu, const struct spw_view *view, uint64_t *ret_address)
{
    const struct gpu_window *window = window_find(gpu->session, view);
    uint64_t address;
    int r = window ? 0 : window_new(gpu, view, &window);

    if (!window)
        return r;
    if (list_is_empty(&gpu->mapper))
        list_push_tail(&gpu->session->gpu_mappers, &gpu->mapper);
    r = gpu->cuda->MemHostGetDevicePointer(&address, window->base, 0);
    if (r != NV_SUCCESS)
        return client_gpu_error(r, "spw_gpu_map");
    *ret_address = address + (uint64_t)((uint8_t *)view->data - window->base);
    return 0;
}

int spw_gpu_map(spw_gpu *gpu, const struct spw_view *view, uint64_t *ret_address)
{
    struct CUctx_st *ours;

    if (!gpu || !view || !ret_address)
        return client_error(-EINVAL, 0, "spw_gpu_map: an argument is NULL");
    if (!view->data || view->lease == 0 || view->size_bytes == 0)
        return client_error(-EINVAL, 0, "spw_gpu_map: the view has no bytes: it is no lease, or not any more");
    int r = client_session_check(gpu->session);
    if (r < 0)
        return r;
    r = gpu->cuda->CtxPushCurrent(gpu->context);
    if (r != NV_SUCCESS)
        return client_gpu_error(r, "spw_gpu_map");
    pthread_mutex_lock(&gpu->session->chunk_lock);
    r = map_locked(gpu, view, ret_address);
    pthread_mutex_unlock(&gpu->session->chunk_lock);
    (void)gpu->cuda->CtxPopCurrent(&ours);
    return r;
}

/* Those within the mapping; NULL: all. */
static void windows_drop(spw_session *session, const struct spw_gpu *gpu, const struct client_map *map)
{
    struct CUctx_st *ours;
    int r = gpu->cuda->CtxPushCurrent(gpu->context);

    list_for_each_safe (l, &session->gpu_windows) {
        struct gpu_window *window = list_entry(l, struct gpu_window, link);

        if (!map || range_within((uintptr_t)window->base, window->size_bytes, (uintptr_t)map->base, map->size_bytes))
            window_free(gpu->cuda, window);
    }
    if (r == NV_SUCCESS)
        (void)gpu->cuda->CtxPopCurrent(&ours);
}

void client_gpu_map_drop(spw_session *session, const struct client_map *map)
{
    if (!list_is_empty(&session->gpu_windows))
        windows_drop(session, list_first_entry(&session->gpu_mappers, struct spw_gpu, mapper), map);
}

void client_gpu_map_end(struct spw_gpu *gpu)
{
    spw_session *session = gpu->session;

    pthread_mutex_lock(&session->chunk_lock);
    if (!list_is_empty(&gpu->mapper)) {
        list_unlink(&gpu->mapper);
        if (list_is_empty(&session->gpu_mappers))
            windows_drop(session, gpu, NULL);
    }
    pthread_mutex_unlock(&session->chunk_lock);
}

void spw_gpu_unmap(spw_gpu *gpu)
{
    if (gpu && client_fork_is(gpu->session->fork_mark))
        client_gpu_map_end(gpu);
}

uint64_t spw_gpu_mapped_bytes(spw_gpu *gpu)
{
    uint64_t bytes = 0;

    if (!gpu || !client_fork_is(gpu->session->fork_mark))
        return 0;
    pthread_mutex_lock(&gpu->session->chunk_lock);
    list_for_each (l, &gpu->session->gpu_windows)
        bytes += list_entry(l, struct gpu_window, link)->size_bytes;
    pthread_mutex_unlock(&gpu->session->chunk_lock);
    return bytes;
}
