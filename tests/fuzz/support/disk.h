/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The backend of fuzzers: one device, memory and a GPU's copy engine, as arrays that cost next to nothing to begin anew
 * with: what was not touched is not cleared. What is submitted ends in its order, one at a time, by disk_step(). Who
 * names bytes that he does not have is aborted. One thread.
 */
#pragma once

#include "include/base/base.h"
#include "io/backend.h"

#define DISK_BYTES (13 * MIB)
#define DISK_MEMORY_BYTES (128 * MIB) /* of all chunks since the last disk_reset() or disk_restart() */
#define DISK_BOUNCE_BYTES (256 * MIB) /* of what processes have beside them: three of them */

/* Everything is zero, nothing is pending, no region is there. */
void disk_reset(void);
/* The same for a snapshot that is being made (snapshot.h): from now on the disk is part of it. */
void disk_snapshot(void);
/* The process has died: the device stays. */
void disk_restart(void);
/* And so do the chunks of memory. */
void disk_restart_hot(void);
struct io_backend *disk_backend(void);
/* What the device holds, to be changed: it is remembered that these bytes were. */
uint8_t *disk_change(uint64_t off_bytes, uint64_t len_bytes);
/* Its start; a region that is not there is a bug. */
uint8_t *disk_memory(uint32_t region);
/* Do these bytes lie in a region that is there? */
bool disk_has(uint32_t region, uint64_t off_bytes, uint64_t len_bytes);
/* Completes the oldest request. False if there is none. */
bool disk_step(void);
uint32_t disk_pending(void);
/* The next request fails with this: each kind of it can. 0: none does. */
void disk_fail_next(int32_t error);
