/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What streams do apart from kernels: copies, memory set, words that are written and waited for, host functions. Addresses
 * are checked twice. The call refuses what nobody knows, as the real driver does; and when the work runs, what has gone
 * meanwhile loses the context.
 */
#include <stdlib.h>

#include "tests/fake/fake.h"

#define WAIT_VALUE_POLL_US 20

/* Where the bytes of one side are, and what keeps them there; NULL if there is nothing. */
static char *side(uint64_t address, size_t len_bytes, bool is_host, bool for_write, struct fake_region **ret_region)
{
    *ret_region = fake_region_get(address, len_bytes, for_write);
    if (*ret_region)
        return fake_region_memory(*ret_region, address);
    return is_host ? (char *)(uintptr_t)address : NULL;
}

static void run_copy(struct fake_op *op)
{
    struct fake_region *from, *to;
    const char *src = side(op->src, op->len_bytes, op->from_host, false, &from);
    char *dst = side(op->dst, op->len_bytes, op->to_host, true, &to);

    if (src && dst) {
        memcpy(dst, src, op->len_bytes);
        COUNT(n_copies, 1);
        if (op->to_host)
            COUNT(bytes_dtoh, op->len_bytes);
        else if (op->from_host)
            COUNT(bytes_htod, op->len_bytes);
        else
            COUNT(bytes_dtod, op->len_bytes);
    } else {
        fake_lose(NV_ERROR_ILLEGAL_ADDRESS);
    }
    fake_region_put(from);
    fake_region_put(to);
}

/* Whether a device (and not only the CPU) can reach it. */
static bool is_known(uint64_t address, size_t len_bytes, bool for_write)
{
    bool known;

    pthread_mutex_lock(&fake.lock);
    known = fake_region_find(address, len_bytes, for_write);
    pthread_mutex_unlock(&fake.lock);
    return known;
}

/* Of memory that is not registered the real driver copies through a buffer of its own, and returns when it is done. */
static int copy(struct CUstream_st *stream, const struct fake_op *what, bool synchronous)
{
    struct fake_op op = *what;
    bool src_known, dst_known;

    if (op.len_bytes == 0)
        return NV_SUCCESS;
    src_known = is_known(op.src, op.len_bytes, false);
    dst_known = is_known(op.dst, op.len_bytes, true);
    if ((!src_known && !op.from_host) || (!dst_known && !op.to_host))
        return NV_ERROR_INVALID_VALUE;
    if (!dst_known && is_known(op.dst, op.len_bytes, false)) /* for reading only */
        return NV_ERROR_INVALID_VALUE;
    op.run = run_copy;
    op.is_dma = true;
    if (!src_known || !dst_known) {
        COUNT(n_pageable_copies, 1);
        synchronous = true;
    }
    return synchronous ? fake_submit_and_wait(stream, &op) : fake_submit(stream, &op);
}

int cuMemcpyDtoH_v2(void *dst, uint64_t src, size_t len_bytes)
{
    ENTER("cuMemcpyDtoH", FAKE_CONTEXT);
    return copy(NULL, &(struct fake_op){.dst = (uintptr_t)dst, .src = src, .len_bytes = len_bytes, .to_host = true},
                true);
}

int cuMemcpyHtoD_v2(uint64_t dst, const void *src, size_t len_bytes)
{
    ENTER("cuMemcpyHtoD", FAKE_CONTEXT);
    return copy(NULL, &(struct fake_op){.dst = dst, .src = (uintptr_t)src, .len_bytes = len_bytes, .from_host = true},
                true);
}

int cuMemcpyDtoHAsync_v2(void *dst, uint64_t src, size_t len_bytes, struct CUstream_st *stream)
{
    ENTER("cuMemcpyDtoHAsync", FAKE_CONTEXT);
    return copy(stream, &(struct fake_op){.dst = (uintptr_t)dst, .src = src, .len_bytes = len_bytes, .to_host = true},
                false);
}

int cuMemcpyHtoDAsync_v2(uint64_t dst, const void *src, size_t len_bytes, struct CUstream_st *stream)
{
    ENTER("cuMemcpyHtoDAsync", FAKE_CONTEXT);
    return copy(stream, &(struct fake_op){.dst = dst, .src = (uintptr_t)src, .len_bytes = len_bytes, .from_host = true},
                false);
}

int cuMemcpyDtoDAsync_v2(uint64_t dst, uint64_t src, size_t len_bytes, struct CUstream_st *stream)
{
    ENTER("cuMemcpyDtoDAsync", FAKE_CONTEXT);
    return copy(stream, &(struct fake_op){.dst = dst, .src = src, .len_bytes = len_bytes}, false);
}

/* Whether an address is the CPU's: what nobody knows is taken for that. */
static bool is_host(uint64_t address, size_t len_bytes)
{
    const struct fake_region *region;
    bool host;

    pthread_mutex_lock(&fake.lock);
    region = fake_region_find(address, len_bytes, false);
    host = !region || !fake_region_is_device(region);
    pthread_mutex_unlock(&fake.lock);
    return host;
}

int cuMemcpyBatchAsync(uint64_t *dsts, uint64_t *srcs, size_t *sizes_bytes, size_t n,
                       struct cuda_memcpy_attributes *attributes, size_t *attribute_starts, size_t n_attributes,
                       size_t *ret_failed, struct CUstream_st *stream)
{
    ENTER("cuMemcpyBatchAsync", FAKE_CONTEXT);
    if (ret_failed)
        *ret_failed = SIZE_MAX; /* none in particular */
    if (n == 0 || n_attributes == 0 || n_attributes > n || !attributes || attribute_starts[0] != 0 || !stream)
        return NV_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < n; i++) {
        int r = copy(stream,
                     &(struct fake_op){.dst = dsts[i],
                                       .src = srcs[i],
                                       .len_bytes = sizes_bytes[i],
                                       .to_host = is_host(dsts[i], sizes_bytes[i]),
                                       .from_host = is_host(srcs[i], sizes_bytes[i])},
                     false);

        if (r != NV_SUCCESS) {
            if (ret_failed)
                *ret_failed = i;
            return r;
        }
    }
    return NV_SUCCESS;
}

static void run_set(struct fake_op *op)
{
    struct fake_region *region;
    char *dst = side(op->dst, op->len_bytes, false, true, &region);

    if (dst)
        memset(dst, (int)op->value, op->len_bytes);
    else
        fake_lose(NV_ERROR_ILLEGAL_ADDRESS);
    fake_region_put(region);
}

static int set(struct CUstream_st *stream, uint64_t dst, unsigned char value, size_t len_bytes, bool synchronous)
{
    struct fake_op op = {.run = run_set, .dst = dst, .value = value, .len_bytes = len_bytes};

    if (len_bytes == 0)
        return NV_SUCCESS;
    if (!is_known(dst, len_bytes, true))
        return NV_ERROR_INVALID_VALUE;
    return synchronous ? fake_submit_and_wait(stream, &op) : fake_submit(stream, &op);
}

int cuMemsetD8_v2(uint64_t dst, unsigned char value, size_t len_bytes)
{
    ENTER("cuMemsetD8", FAKE_CONTEXT);
    return set(NULL, dst, value, len_bytes, true);
}

int cuMemsetD8Async(uint64_t dst, unsigned char value, size_t len_bytes, struct CUstream_st *stream)
{
    ENTER("cuMemsetD8Async", FAKE_CONTEXT);
    return set(stream, dst, value, len_bytes, false);
}

static bool is_reached(uint64_t have, uint64_t wanted, unsigned flags)
{
    switch (flags) {
    case NV_STREAM_WAIT_VALUE_GEQ:
        return (int64_t)(have - wanted) >= 0;
    case NV_STREAM_WAIT_VALUE_EQ:
        return have == wanted;
    case NV_STREAM_WAIT_VALUE_AND:
        return (have & wanted) != 0;
    default:
        return ~(have | wanted) != 0;
    }
}

/* Looks the word up at every look: a stream may outlive what it waits for, and then the context is lost. */
static void run_wait_value(struct fake_op *op)
{
    for (;;) {
        struct fake_region *region = fake_region_get(op->src, sizeof(uint64_t), false);
        uint64_t have;

        if (!region) {
            fake_lose(NV_ERROR_ILLEGAL_ADDRESS);
            return;
        }
        have = load_acquire((const uint64_t *)(void *)fake_region_memory(region, op->src));
        fake_region_put(region);
        if (is_reached(have, op->value, op->flags) || fake_lost() != NV_SUCCESS)
            return;
        usleep(WAIT_VALUE_POLL_US);
    }
}

static void run_write_value(struct fake_op *op)
{
    struct fake_region *region = fake_region_get(op->dst, sizeof(uint64_t), true);

    if (region)
        store_release((uint64_t *)(void *)fake_region_memory(region, op->dst), op->value);
    else
        fake_lose(NV_ERROR_ILLEGAL_ADDRESS);
    fake_region_put(region);
}

int cuStreamWaitValue64_v2(struct CUstream_st *stream, uint64_t ptr, uint64_t value, unsigned flags)
{
    ENTER("cuStreamWaitValue64", FAKE_CONTEXT);
    if (flags > NV_STREAM_WAIT_VALUE_NOR || ptr % sizeof(uint64_t) != 0 || !is_known(ptr, sizeof(uint64_t), false))
        return NV_ERROR_INVALID_VALUE;
    COUNT(n_waits, 1);
    return fake_submit(stream, &(struct fake_op){.run = run_wait_value, .src = ptr, .value = value, .flags = flags});
}

int cuStreamWriteValue64_v2(struct CUstream_st *stream, uint64_t ptr, uint64_t value, unsigned flags)
{
    ENTER("cuStreamWriteValue64", FAKE_CONTEXT);
    if (flags > NV_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER || ptr % sizeof(uint64_t) != 0 ||
        !is_known(ptr, sizeof(uint64_t), true))
        return NV_ERROR_INVALID_VALUE;
    COUNT(n_writes, 1);
    return fake_submit(stream, &(struct fake_op){.run = run_write_value, .dst = ptr, .value = value});
}

static void run_host_fn(struct fake_op *op)
{
    fake_in_host_fn = true;
    op->fn(op->arg);
    fake_in_host_fn = false;
}

int cuLaunchHostFunc(struct CUstream_st *stream, cuda_host_fn *fn, void *arg)
{
    ENTER("cuLaunchHostFunc", FAKE_CONTEXT);
    if (!fn)
        return NV_ERROR_INVALID_VALUE;
    return fake_submit(stream, &(struct fake_op){.run = run_host_fn, .fn = fn, .arg = arg});
}
