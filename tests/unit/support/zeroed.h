/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that is zero when it is taken, and zero again when that is asked for, at next to no cost for pages that nobody
 * touched: a simulated process starts some thirty times a run, with tables and buffers of which it uses a little. Under
 * AddressSanitizer it is the heap's, in whole pages, with red zones around it.
 */
#pragma once

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "include/base/base.h"

#define ZEROED_PAGES_BYTES (64 * KIB) /* from so many on only pages that were touched are written */
#define ZEROED_LOOK_PAGES 512         /* at a time */

#ifdef __SANITIZE_ADDRESS__
#define ZEROED_ON_HEAP 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ZEROED_ON_HEAP 1
#endif
#endif
#ifndef ZEROED_ON_HEAP
#define ZEROED_ON_HEAP 0
#endif

/* Fresh pages would cost a fault each, which is more than to write zeros to them. */
static inline void zeroed_again(void *mem, size_t size_bytes)
{
    unsigned char touched[ZEROED_LOOK_PAGES];
    uint8_t *at = mem, *end = at + size_bytes;

    while ((size_t)(end - at) >= ZEROED_PAGES_BYTES) {
        size_t n = MIN((size_t)(end - at) / SECTOR_BYTES, (size_t)ZEROED_LOOK_PAGES);

        if (mincore(at, n * SECTOR_BYTES, touched) < 0)
            break;
        for (size_t i = 0; i < n; i++, at += SECTOR_BYTES)
            if (touched[i] & 1)
                memset(at, 0, SECTOR_BYTES);
    }
    memset(at, 0, (size_t)(end - at));
}

/* Aligned to a page; NULL: there is none. */
static inline void *zeroed_alloc(size_t size_bytes)
{
    if (!ZEROED_ON_HEAP) {
        void *mem = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        return mem == MAP_FAILED ? NULL : mem;
    }
    void *mem = aligned_alloc(SECTOR_BYTES, round_up(size_bytes, SECTOR_BYTES));

    if (mem)
        zeroed_again(mem, size_bytes);
    return mem;
}

static inline void zeroed_free(void *mem, size_t size_bytes)
{
    if (ZEROED_ON_HEAP)
        free(mem);
    else if (mem)
        munmap(mem, size_bytes);
}
