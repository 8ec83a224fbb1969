/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ceilings of moving bytes: copies with one and two threads, through the caches and around them; and of getting
 * memory: the first touch of pages; and XXH3 over what passes.
 */
#pragma once

#include "include/base/base.h"

enum ceiling_copy { CEILING_MEMCPY, CEILING_MEMCPY_2, CEILING_STREAM, CEILING_STREAM_2, CEILING_COPIES };

/* Static. */
const char *ceiling_copy_name(enum ceiling_copy how);
/* Copies size_bytes in blocks of block_bytes; two threads take alternate blocks, or halves if there is only one block.
 * Returns bytes a nanosecond. */
double ceiling_copy_run(enum ceiling_copy how, char *to, const char *from, uint64_t size_bytes, uint64_t block_bytes);

/* Touches every page with n_threads (1 to CEILING_THREADS_MAX) at once; returns the seconds. */
#define CEILING_THREADS_MAX 64
double ceiling_touch_s(char *mem, uint64_t size_bytes, unsigned n_threads);

/* Milliseconds of CPU time for XXH3 of a GB in granules, of blocks here and there in memory that is in no cache, as blocks
 * are that a device has just filled: the least of a few, since it is taken off from what we need, and noise must not be.
 * 0: no memory. */
double ceiling_hash_ms_a_gb(uint64_t block_bytes);
