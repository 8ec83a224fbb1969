/* SPDX-License-Identifier: Apache-2.0 */
/* Tables that are looked up at random: see calloc_touched(). */
#pragma once

#include <stddef.h>
#include <stdlib.h>

/*
 * calloc() whose pages are there when it returns. A table that is looked up at random would else take its memory page by
 * page for as long as the process lives, with a fault on the data path for each. NULL as calloc(); freed by free().
 */
static inline void *calloc_touched(size_t n, size_t size_bytes)
{
    enum { PAGE_BYTES = 4096 };
    char *mem = calloc(n, size_bytes);

    for (size_t at = 0; mem && at < n * size_bytes; at += PAGE_BYTES)
        *(volatile char *)(mem + at) = 0;
    return mem;
}
