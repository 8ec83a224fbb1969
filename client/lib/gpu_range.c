/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranges of objects to and from memory of a GPU: tensors, parts of a block, whole sets of weights. What the caller names is cut
 * where his objects have pieces, since a lease is on one. Parts that follow each other closely in the list and in a piece make
 * one element: for a put without any gap, as what lies there must not be written. No state; any thread.
 */
#include <string.h>

#include "client/lib/gpu.h"
#include "include/base/checked.h"

/* What the caller said. */
struct range_list {
    const char *name;
    spw_gpu *gpu;
    spw_space *space;
    const struct spw_gpu_range *ranges;
    size_t n;
    struct spw_gpu_memory *memory; /* found by the check: to whose direct lane it is left; NULL: slots */
};

static uint64_t range_parts(const spw_space *space, const struct spw_gpu_range *range)
{
    return (range->offset_bytes + range->bytes - 1) / space->piece_bytes - range->offset_bytes / space->piece_bytes + 1;
}

static int range_check(const struct range_list *list, size_t i)
{
    const struct spw_gpu_range *range = &list->ranges[i];

    if (!range_ok(range->offset_bytes, range->bytes, OBJECT_BYTES_MAX))
        return client_error(-EINVAL, 0, "%s: range %zu is empty, or ends past the largest object", list->name, i);
    if (range->address == 0 || (range->address | range->bytes) % KERNEL_VECTOR_BYTES != 0)
        return client_error(-EINVAL, 0, "%s: range %zu: address and bytes are multiples of %d", list->name, i,
                            KERNEL_VECTOR_BYTES);
    if (range->address + range->bytes < range->address)
        return client_error(-EINVAL, 0, "%s: range %zu ends beyond all memory", list->name, i);
    return 0;
}

/* With the lock. All of it lies in one allocation, and not in too many places there. */
static struct spw_gpu_memory *direct_memory(const struct range_list *list)
{
    struct spw_gpu_memory *memory = NULL;
    uint64_t bytes = 0, n_runs = 0, end = 0;

    for (size_t i = 0; i < list->n; i++) {
        const struct spw_gpu_range *range = &list->ranges[i];
        struct spw_gpu_memory *at = client_gpu_memory_find(list->gpu, range->address, range->bytes);

        if (!at || (memory && at != memory))
            return NULL;
        memory = at;
        n_runs += range->address != end;
        end = range->address + range->bytes;
        bytes += range->bytes;
    }
    bool is_lost = memory && client_gpu_lane_is_lost(memory->lane); /* then it is memory like any other */

    return !is_lost && bytes >= n_runs * GPU_DIRECT_RUN_BYTES ? memory : NULL;
}

static int memory_check(struct range_list *list)
{
    struct gpu_memory known = {0, 0};
    char what[64];
    int r = client_gpu_enter(list->name, list->gpu);

    if (r < 0)
        return r;
    snprintf(what, sizeof(what), "%s: range", list->name);
    for (size_t i = 0; r == 0 && i < list->n; i++)
        r = client_gpu_memory_check(list->gpu, what, i, list->ranges[i].address,
                                    list->ranges[i].address + list->ranges[i].bytes, &known);
    list->memory = r == 0 ? direct_memory(list) : NULL;
    client_gpu_leave(list->gpu);
    return r;
}

/* And how many parts there are. */
static int list_check(struct range_list *list, unsigned flags, unsigned allowed, size_t *ret_n_parts)
{
    uint64_t n_parts = 0;

    if (!list->gpu || !list->space || (list->n > 0 && !list->ranges))
        return client_error(-EINVAL, 0, "%s: an argument is NULL", list->name);
    if (flags & ~allowed)
        return client_error(-EINVAL, 0, "%s: flags 0x%x are not for this call", list->name, flags & ~allowed);
    int r = client_gpu_space_check(list->name, list->gpu, list->space);
    for (size_t i = 0; r == 0 && i < list->n; i++) {
        r = range_check(list, i);
        n_parts += r == 0 ? range_parts(list->space, &list->ranges[i]) : 0;
    }
    if (r == 0 && n_parts > GPU_PARTS_MAX)
        r = client_error(-E2BIG, 0, "%s: the ranges touch %llu pieces of objects; at most %d at a time", list->name,
                         (unsigned long long)n_parts, GPU_PARTS_MAX);
    *ret_n_parts = (size_t)n_parts;
    return r < 0 ? r : memory_check(list);
}

/* The last element, if the bytes at that offset of that object can be a part of it; else a new one. */
static size_t element_for(struct spw_gpu_job *job, const struct spw_key *key, uint64_t offset_bytes, uint64_t bytes,
                          bool follows)
{
    uint64_t gap_max = job->direction == GPU_FETCH && !job->memory ? GPU_RANGES_GAP_BYTES : 0;
    uint64_t piece_bytes = job->space->piece_bytes;

    if (job->n > 0 && (follows || !job->memory)) {
        size_t last = job->n - 1;
        uint64_t end = job->offsets[last] + job->sizes[last];
        uint32_t n_parts = job->parts_end[last] - (last > 0 ? job->parts_end[last - 1] : 0);

        if (offset_bytes >= end && offset_bytes - end <= gap_max && (offset_bytes - end) % KERNEL_VECTOR_BYTES == 0 &&
            offset_bytes / piece_bytes == job->offsets[last] / piece_bytes && n_parts < GPU_USE_RANGES_MAX / 2 &&
            memcmp(&job->keys[last], key, sizeof(*key)) == 0) {
            job->left_bytes += offset_bytes + bytes - end;
            job->sizes[last] = offset_bytes + bytes - job->offsets[last];
            return last;
        }
    }
    job->keys[job->n] = *key;
    job->offsets[job->n] = offset_bytes;
    job->sizes[job->n] = bytes;
    job->left_bytes += bytes;
    return job->n++;
}

/* -EINVAL where a piece ends at an offset at which kernels cannot cut. */
static int job_fill(struct spw_gpu_job *job, const struct range_list *list)
{
    uint64_t piece_bytes = list->space->piece_bytes;
    uint32_t n_parts = 0;

    job->n = 0;
    for (size_t i = 0; i < list->n; i++) {
        const struct spw_gpu_range *range = &list->ranges[i];

        for (uint64_t done = 0, bytes; done < range->bytes; done += bytes) {
            uint64_t offset_bytes = range->offset_bytes + done;

            bytes = MIN(range->bytes - done, piece_bytes - offset_bytes % piece_bytes);
            if (bytes % KERNEL_VECTOR_BYTES != 0)
                return client_error(
                    -EINVAL, 0,
                    "%s: range %zu crosses the end of its object's piece at an offset that is no multiple of %d",
                    list->name, i, KERNEL_VECTOR_BYTES);
            bool follows =
                n_parts > 0 && job->parts[n_parts - 1].address + job->parts[n_parts - 1].bytes == range->address + done;
            size_t element = element_for(job, &range->key, offset_bytes, bytes, follows);
            job->parts[n_parts++] = (struct gpu_part){.address = range->address + done,
                                                      .offset_bytes = (uint32_t)(offset_bytes - job->offsets[element]),
                                                      .bytes = (uint32_t)bytes,
                                                      .caller = (uint32_t)i};
            job->parts_end[element] = n_parts;
        }
        job->total_bytes += range->bytes;
    }
    struct client_call call = {.space = job->space, .keys = job->keys, .n = job->n};
    return client_call_check(list->name, &call);
}

/* All of them are there, and as large as was asked for. */
static int set_check(const struct range_list *list)
{
    cleanup_free struct spw_key *keys = calloc(MAX(list->n, (size_t)1), sizeof(*keys));
    cleanup_free struct spw_hit *hits = calloc(MAX(list->n, (size_t)1), sizeof(*hits));

    if (!keys || !hits)
        return client_error(-ENOMEM, 0, "%s: out of memory", list->name);
    for (size_t i = 0; i < list->n; i++)
        keys[i] = list->ranges[i].key;
    long r = spw_lookup(list->space, keys, list->n, 0, hits);
    for (size_t i = 0; r >= 0 && i < list->n; i++) {
        if (hits[i].status < 0)
            return client_error(hits[i].status, 0, "%s: object %zu of the set is not there: %s", list->name, i,
                                strerrordesc_np(-hits[i].status));
        if (!range_ok(list->ranges[i].offset_bytes, list->ranges[i].bytes, hits[i].size_bytes))
            return client_error(-ERANGE, 0, "%s: range %zu ends past its object, which has %llu bytes", list->name, i,
                                (unsigned long long)hits[i].size_bytes);
    }
    return r < 0 ? (int)r : 0;
}

static int start(struct range_list *list, enum gpu_direction direction, struct CUstream_st *stream, unsigned flags,
                 unsigned allowed, bool all_or_none, uint32_t timeout_ms, int32_t *ret_status, spw_gpu_job **ret_job)
{
    size_t n_parts;
    int r = ret_job ? list_check(list, flags, allowed, &n_parts)
                    : client_error(-EINVAL, 0, "%s: an argument is NULL", list->name);

    if (r == 0 && all_or_none)
        r = set_check(list);
    if (r < 0)
        return r;
    struct spw_gpu_job *job = client_gpu_job_new(list->gpu, direction, list->space, n_parts, n_parts, list->n);
    if (!job)
        return client_error(-ENOMEM, 0, "%s: out of memory", list->name);
    job->memory = list->memory;
    job->flags = flags;
    job->all_or_none = all_or_none;
    job->ret_status = ret_status;
    r = job_fill(job, list);
    if (r < 0) {
        free(job);
        return r;
    }
    return client_gpu_job_start(list->name, job, stream, timeout_ms, ret_job);
}

int spw_gpu_put_ranges(spw_gpu *gpu, spw_space *space, const struct spw_gpu_range *ranges, size_t n,
                       struct CUstream_st *stream, uint32_t timeout_ms, int32_t *ret_status, spw_gpu_job **ret_job)
{
    struct range_list list = {"spw_gpu_put_ranges", gpu, space, ranges, n, NULL};

    return start(&list, GPU_SPILL, stream, 0, 0, false, timeout_ms, ret_status, ret_job);
}

int spw_gpu_get_ranges(spw_gpu *gpu, spw_space *space, const struct spw_gpu_range *ranges, size_t n,
                       struct CUstream_st *stream, unsigned flags, uint32_t timeout_ms, int32_t *ret_status,
                       spw_gpu_job **ret_job)
{
    struct range_list list = {"spw_gpu_get_ranges", gpu, space, ranges, n, NULL};

    return start(&list, GPU_FETCH, stream, flags, SPW_NO_WAIT, false, timeout_ms, ret_status, ret_job);
}

int spw_gpu_activate(spw_gpu *gpu, spw_space *space, const struct spw_gpu_range *ranges, size_t n,
                     struct CUstream_st *stream, uint32_t timeout_ms, spw_gpu_job **ret_job)
{
    struct range_list list = {"spw_gpu_activate", gpu, space, ranges, n, NULL};

    return start(&list, GPU_FETCH, stream, 0, 0, true, timeout_ms, NULL, ret_job);
}
