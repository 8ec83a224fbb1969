/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vocabulary for memory that another thread or process changes. Four words, no more:
 *
 *   load_relaxed / store_relaxed   the value is ours, or a hint
 *   load_acquire / store_release   publishes what was written before it
 *   fence_full                     orders "my store, then my load of what you store": the sleeper's and the waker's
 *                                  half of a wake-up (see ring.h)
 *   copy_once                      copies a record out of shared memory; checks are made on the copy only
 *
 * A use of a barrier names the barrier that it pairs with.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)

#if defined(__SANITIZE_THREAD__)
#define BASE_TSAN
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BASE_TSAN
#endif
#endif

/* A sequentially consistent fence. TSan does not model fences: under it, an exchange on a dummy does the same. */
static inline void fence_full(void)
{
#if defined(BASE_TSAN)
    static uint32_t tsan_dummy_;
    (void)__atomic_fetch_add(&tsan_dummy_, 1, __ATOMIC_SEQ_CST);
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

/* Keeps the compiler from moving stores across: enough where only a SIGKILL, not another CPU, can look in between. */
static inline void fence_compiler(void)
{
    __asm__ volatile("" ::: "memory");
}

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

/*
 * Copies size_bytes (a multiple of 8, both sides 8-byte aligned) out of memory that a hostile peer may change while we
 * read. Each word is loaded exactly once; the compiler cannot come back for a second look.
 */
static inline void copy_once(void *restrict dst, const void *restrict src, size_t size_bytes)
{
    typedef uint64_t __attribute__((may_alias)) word; /* records have other types than the words they are copied as */
    word *d = dst;
    const word *s = src;

    for (size_t i = 0; i < size_bytes / sizeof(*d); i++)
        d[i] = load_relaxed(&s[i]);
}
