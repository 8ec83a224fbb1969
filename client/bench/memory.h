/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory for what is measured: shared with a child, or in hugepages where there are any, so that a ceiling is not low for
 * want of them. Zeros; NULL if there is none.
 */
#pragma once

#include "include/base/base.h"

enum memory_kind {
    MEMORY_SHARED,      /* with children that are forked later */
    MEMORY_SHARED_HUGE, /* the same, in the pages that a daemon would get: reserved, transparent, or small ones */
    MEMORY_HUGE,        /* ours; huge if transparent hugepages are allowed */
};

void *memory_map(uint64_t size_bytes, enum memory_kind kind);
void memory_unmap(void *mem, uint64_t size_bytes);
