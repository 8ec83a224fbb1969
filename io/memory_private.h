/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the memory module share: the system calls of sys/mman.h and numaif.h, which memory.c alone may
 * make, in words of our own. */
#pragma once

#include "io/memory.h"

/* Touches the pages of [mem, mem + len_bytes). -ENOMEM, -EFAULT, -EHWPOISON, -EINTR, -EOPNOTSUPP (before Linux 5.14). */
int memory_touch(void *mem, uint64_t len_bytes);
/* The same for memory that should be in transparent hugepages, which the kernel does not make by itself: what can be had
 * in them is. */
int memory_touch_huge(void *mem, uint64_t len_bytes);

/* Puts zero pages over a page-aligned range. Async-signal-safe. */
int memory_map_zeros(void *mem, uint64_t len_bytes);

/* memory_populate.c: touches the range with several threads; one of the two above. -ECANCELED if progress() said so. */
typedef int (*memory_touch_fn)(void *mem, uint64_t len_bytes);
must_check int memory_populate(void *mem, uint64_t size_bytes, memory_touch_fn touch, uint32_t threads,
                               memory_progress progress, void *ctx);

/* memory_system.c: what files of the kernel say. */
uint64_t memory_free_huge_bytes(uint32_t node);      /* of 2 MiB; node MEMORY_NODE_ANY: of the machine */
uint64_t memory_huge_bytes(uint32_t node);           /* free or not */
uint64_t memory_node_available_bytes(uint32_t node); /* MemAvailable of one node; UINT64_MAX: not known */
uint64_t memory_total_bytes(uint32_t node);          /* MemTotal; UINT64_MAX: not known */
enum memory_thp {
    MEMORY_THP_DENIED,
    MEMORY_THP_ASKED,   /* not as pages are touched, but by MADV_COLLAPSE */
    MEMORY_THP_TOUCHED, /* as pages are touched */
};
enum memory_thp memory_thp_read(void); /* in memfds */
uint64_t memory_thp_mapped_bytes(const void *mem, uint64_t size_bytes);

/* memory_room.c */
const char *memory_pages_unavailable(const struct memory_chunk_config *config, enum memory_pages pages);
/* -ENOMEM, or -E2BIG: see memory_chunk_create(). */
must_check int memory_check_size(const struct memory_chunk_config *config, enum memory_pages pages);
