/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A world that each input begins with, made once. What the code under test allocates from snapshot_begin() to snapshot_keep()
 * comes from a file in memory, which is mapped privately then: what an input changes are its own pages, and giving those
 * back brings the world back as it was. So an input costs the pages that it touches, not the tables that there are.
 * One thread, one snapshot in use at a time.
 */
#pragma once

#include "include/base/base.h"

struct snapshot;

void snapshot_begin(void);
/* Is one being made? */
bool snapshot_begun(void);
/* Zeroed whole pages, of the one that is being made; they are not freed. */
void *snapshot_pages(uint64_t size_bytes);
/* A variable that is as it was, too. */
void snapshot_also(void *variable, size_t size_bytes);
struct snapshot *snapshot_keep(void);
/* Everything is as it was when it was kept. */
void snapshot_return(struct snapshot *s);
/* How many of its allocations have not been freed since. */
uint32_t snapshot_leaks(const struct snapshot *s);

/* For alloc.c: of the one that is being made; false: that is of no snapshot. */
void *snapshot_alloc(size_t size_bytes);
bool snapshot_free(const void *ptr);
