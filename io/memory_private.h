/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the memory module share: the system calls of sys/mman.h and numaif.h, which memory.c alone may
 * make, in words of our own. */
#pragma once

#include "io/memory.h"

/* Touches the pages of [mem, mem + len_bytes). -ENOMEM, -EFAULT, -EHWPOISON, -EINTR, -EOPNOTSUPP (before Linux 5.14). */
int memory_touch(void *mem, uint64_t len_bytes);

/* Puts zero pages over a page-aligned range. Async-signal-safe. */
int memory_map_zeros(void *mem, uint64_t len_bytes);

/* memory_populate.c: touches the range with several threads. -ECANCELED if progress() said so. */
must_check int memory_populate(void *mem, uint64_t size_bytes, uint32_t threads, memory_progress progress, void *ctx);

/* memory_system.c: what files of the kernel say. */
uint64_t memory_free_huge_bytes(uint32_t node);      /* of 2 MiB; node MEMORY_NODE_ANY: of the machine */
uint64_t memory_node_available_bytes(uint32_t node); /* MemAvailable of one node; UINT64_MAX: not known */
bool memory_thp_allowed(void);                       /* transparent hugepages in memfds */
uint64_t memory_thp_mapped_bytes(const void *mem, uint64_t size_bytes);
