/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns what this process has of the GPU: the primary context, two streams, an event, memory on both sides. The ceilings use
 * it, and the blocks lie in it. One thread.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/wait.h>

#include "client/bench/gpu.h"

int gpu_driver_say(const char *what, int result)
{
    fprintf(stderr, "spillbench: %s: %s\n", what, cuda_error_name(result));
    return -EIO;
}

/* ── whether there is one ───────────────────────────────────────────────────────────────────────────────────────── */

static int probe(const struct cuda_driver *cu)
{
    int n = 0, r = cu->Init(0);

    if (r == NV_SUCCESS)
        r = cu->DeviceGetCount(&n);
    if (r != NV_SUCCESS)
        fprintf(stderr, "SKIP: gpu: %s\n", cuda_error_name(r));
    else if (n == 0)
        fprintf(stderr, "SKIP: gpu: the driver shows no GPU\n");
    return r == NV_SUCCESS && n > 0 ? 0 : 1;
}

int gpu_driver_probe(struct gpu_bench *b)
{
    int status = 0, r = cuda_driver_load(&b->cu);

    if (r < 0) {
        fprintf(stderr, "SKIP: gpu: %s\n", cuda_driver_problem());
        return r;
    }
    pid_t pid = fork();
    if (pid < 0)
        return -errno;
    if (pid == 0)
        _exit(probe(b->cu));
    if (waitpid(pid, &status, 0) != pid)
        return -ECHILD;
    return status == 0 ? 0 : -ENODEV;
}

/* ── context and memory ─────────────────────────────────────────────────────────────────────────────────────────── */

int gpu_driver_open(struct gpu_bench *b, bool one_memory)
{
    struct CUctx_st *context;
    int r = CU(b, Init(0));

    if (r == 0)
        r = CU(b, DevicePrimaryCtxRetain(&context, 0));
    if (r == 0)
        r = CU(b, CtxSetCurrent(context));
    for (unsigned i = 0; r == 0 && i < ARRAY_LEN(b->streams); i++)
        r = CU(b, StreamCreateWithPriority(&b->streams[i], NV_STREAM_NON_BLOCKING, 0));
    if (r == 0)
        r = CU(b, EventCreate(&b->event, NV_EVENT_DISABLE_TIMING));
    if (r == 0)
        r = CU(b, MemAlloc(&b->cache, b->set_bytes));
    b->back = b->cache;
    if (r == 0 && !one_memory)
        r = CU(b, MemAlloc(&b->back, b->set_bytes));
    if (r == 0)
        r = CU(b, MemAlloc(&b->dma, b->pinned_bytes));
    return r < 0 ? r : CU(b, MemHostAlloc((void **)&b->pinned, b->pinned_bytes, 0));
}

static inline uint64_t word_at(uint64_t i, uint64_t seed)
{
    return (i + seed) * UINT64_C(0x9e3779b97f4a7c15);
}

int gpu_driver_fill(struct gpu_bench *b, uint64_t memory, uint64_t size_bytes, uint64_t seed)
{
    uint64_t *words = (uint64_t *)(void *)b->pinned;
    int r = 0;

    for (uint64_t at = 0; r == 0 && at < size_bytes; at += b->pinned_bytes) {
        uint64_t len_bytes = MIN(b->pinned_bytes, size_bytes - at);

        for (uint64_t i = 0; i < len_bytes / sizeof(*words); i++)
            words[i] = word_at(at / sizeof(*words) + i, seed);
        r = CU(b, MemcpyHtoD(memory + at, words, len_bytes));
    }
    return r;
}

int gpu_driver_check(struct gpu_bench *b, uint64_t memory, uint64_t size_bytes, uint64_t seed)
{
    const uint64_t *words = (const uint64_t *)(const void *)b->pinned;
    int r = 0;

    for (uint64_t at = 0; r == 0 && at < size_bytes; at += b->pinned_bytes) {
        uint64_t len_bytes = MIN(b->pinned_bytes, size_bytes - at);

        r = CU(b, MemcpyDtoH(b->pinned, memory + at, len_bytes));
        for (uint64_t i = 0; r == 0 && i < len_bytes / sizeof(*words); i++)
            if (words[i] != word_at(at / sizeof(*words) + i, seed)) {
                fprintf(stderr, "spillbench: byte %llu of %llu is another one than was spilled\n",
                        (unsigned long long)(at + i * sizeof(*words)), (unsigned long long)size_bytes);
                r = -EBADMSG;
            }
    }
    return r;
}
