/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asking for cache lines before they are needed. A line that another core wrote last takes some 100 ns to come; lines
 * that are asked for together come together. So what crosses from a client to the engine, or back, is asked for ahead.
 * Hints: no address is wrong, nothing faults.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define CACHE_LINE_BYTES 64

static inline void cache_warm_line_to_write(const void *line)
{
#if defined(__x86_64__)
    /* The builtin gives this only with -mprfchw. CPUs without it take it for a no-op. */
    __asm__ volatile("prefetchw %0" ::"m"(*(const char *)line));
#else
    __builtin_prefetch(line, 1);
#endif
}

static inline void cache_warm_to_read(const void *from, size_t size_bytes)
{
    uintptr_t line = (uintptr_t)from & ~(uintptr_t)(CACHE_LINE_BYTES - 1);

    for (; line < (uintptr_t)from + size_bytes; line += CACHE_LINE_BYTES)
        __builtin_prefetch((const void *)line);
}

static inline void cache_warm_to_write(const void *from, size_t size_bytes)
{
    uintptr_t line = (uintptr_t)from & ~(uintptr_t)(CACHE_LINE_BYTES - 1);

    for (; line < (uintptr_t)from + size_bytes; line += CACHE_LINE_BYTES)
        cache_warm_line_to_write((const void *)line);
}
