/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies as a program would make them that has nothing else to do. The second thread is started for each run: runs are of
 * tens of megabytes, beside which that is nothing. The calling thread and helpers that end before it returns.
 */
#include "client/bench/ceiling_copy.h"

#include <pthread.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>
#if defined(__x86_64__)
#include <immintrin.h>
/* Renames XXH3_ calls to those that pick AVX2 or AVX-512 as they start: what the daemon uses. */
#include <xxh_x86dispatch.h>
#endif

#include "client/bench/memory.h"
#include "client/bench/process.h"
#include "include/base/limits.h"

#define HASH_BYTES (512 * MIB) /* much more than caches hold */
#define HASH_STRIDE 7919       /* blocks; a prime, so that no block is left out */
#define HASH_TRIES 3

/* ── copies ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

#if defined(__x86_64__)
/* Both sides are aligned to 32 bytes, the size is a multiple of 64. */
__attribute__((target("avx"))) static void stream_avx(char *to, const char *from, uint64_t size_bytes)
{
    for (uint64_t i = 0; i < size_bytes; i += 64) {
        __m256i a = _mm256_load_si256((const __m256i *)(const void *)(from + i));
        __m256i b = _mm256_load_si256((const __m256i *)(const void *)(from + i + 32));

        _mm256_stream_si256((__m256i *)(void *)(to + i), a);
        _mm256_stream_si256((__m256i *)(void *)(to + i + 32), b);
    }
    _mm_sfence();
}

static void stream(char *to, const char *from, uint64_t size_bytes)
{
    if (__builtin_cpu_supports("avx"))
        stream_avx(to, from, size_bytes);
    else
        memcpy(to, from, size_bytes);
}
#else
static void stream(char *to, const char *from, uint64_t size_bytes)
{
    memcpy(to, from, size_bytes);
}
#endif

const char *ceiling_copy_name(enum ceiling_copy how)
{
    static const char *const names[] = {[CEILING_MEMCPY] = "memcpy",
                                        [CEILING_MEMCPY_2] = "memcpy, 2 threads",
                                        [CEILING_STREAM] = "non-temporal",
                                        [CEILING_STREAM_2] = "non-temporal, 2 threads"};
    return names[how];
}

struct share {
    char *to;
    const char *from;
    uint64_t size_bytes, block_bytes, first, step; /* blocks first, first + step, … */
    bool is_stream;
};

static void *share_run(void *arg)
{
    const struct share *s = arg;

    for (uint64_t at = s->first * s->block_bytes; at < s->size_bytes; at += s->step * s->block_bytes) {
        uint64_t n = MIN(s->block_bytes, s->size_bytes - at);
        if (s->is_stream)
            stream(s->to + at, s->from + at, n);
        else
            memcpy(s->to + at, s->from + at, n);
        __asm__ volatile("" ::"r"(s->to) : "memory");
    }
    return NULL;
}

double ceiling_copy_run(enum ceiling_copy how, char *to, const char *from, uint64_t size_bytes, uint64_t block_bytes)
{
    bool two = how == CEILING_MEMCPY_2 || how == CEILING_STREAM_2;
    struct share mine = {to, from, size_bytes, block_bytes, 0, 1, how == CEILING_STREAM || how == CEILING_STREAM_2};
    pthread_t helper;

    if (two && size_bytes == block_bytes)
        mine.block_bytes = block_bytes / 2;
    struct share other = mine;
    uint64_t start_ns = now_ns();
    mine.step = other.step = two ? 2 : 1;
    other.first = 1;
    two = two && pthread_create(&helper, NULL, share_run, &other) == 0;
    (void)share_run(&mine);
    if (two)
        pthread_join(helper, NULL);
    return (double)size_bytes / (double)(now_ns() - start_ns);
}

/* ── first touch ────────────────────────────────────────────────────────────────────────────────────────────────── */

struct touch {
    char *mem;
    uint64_t size_bytes;
};

static void *touch_run(void *arg)
{
    const struct touch *t = arg;

    for (uint64_t at = 0; at < t->size_bytes; at += SECTOR_BYTES)
        *(volatile char *)(t->mem + at) = 0;
    return NULL;
}

double ceiling_touch_s(char *mem, uint64_t size_bytes, unsigned n_threads)
{
    struct touch shares[CEILING_THREADS_MAX];
    pthread_t threads[CEILING_THREADS_MAX];
    bool started[CEILING_THREADS_MAX];
    uint64_t each = round_up(size_bytes / n_threads, 2 * MIB), at = 0, start_ns = now_ns();

    for (unsigned i = 0; i < n_threads; i++) {
        shares[i] = (struct touch){mem + at, MIN(each, size_bytes - at)};
        at += shares[i].size_bytes;
        started[i] = i > 0 && pthread_create(&threads[i], NULL, touch_run, &shares[i]) == 0;
    }
    for (unsigned i = 0; i < n_threads; i++)
        if (!started[i])
            (void)touch_run(&shares[i]);
    for (unsigned i = 0; i < n_threads; i++)
        if (started[i])
            pthread_join(threads[i], NULL);
    return seconds_since(start_ns);
}

/* ── checksums ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static uint64_t cpu_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

double ceiling_hash_ms_a_gb(uint64_t block_bytes)
{
    uint64_t n = HASH_BYTES / block_bytes;
    char *mem = memory_map(HASH_BYTES, MEMORY_HUGE);
    volatile uint64_t sum = 0;
    uint64_t least_ns = UINT64_MAX;

    if (!mem)
        return 0;
    memset(mem, 1, HASH_BYTES);
    for (unsigned i = 0; i < HASH_TRIES; i++) {
        uint64_t start_ns = cpu_ns();
        for (uint64_t block = 0; block < n; block++) {
            const char *from = mem + block * HASH_STRIDE % n * block_bytes;
            for (uint64_t at = 0; at < block_bytes; at += GRANULE_BYTES)
                sum = sum + XXH3_64bits_withSeed(from + at, MIN(block_bytes - at, (uint64_t)GRANULE_BYTES), at);
        }
        least_ns = MIN(least_ns, cpu_ns() - start_ns);
    }
    memory_unmap(mem, HASH_BYTES);
    return (double)least_ns / 1e6 / ((double)(n * block_bytes) * 1e-9);
}
