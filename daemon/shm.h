/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that the daemon makes for others to see, or for itself to find again: rings and scratch of clients, object
 * records. Control thread.
 */
#pragma once

#include "include/base/base.h"
#include "io/memory.h"

/* Sealed before anybody sees it: neither side can change its size. Not in core dumps, and not in forked children. */
must_check int shm_client_new(const char *name, uint64_t size_bytes, struct memory_shared *ret_shared);

/* Zeroed, never passed to anybody; pages come as they are touched. */
must_check int shm_records_new(uint64_t size_bytes, void **ret_mem);
/* Takes NULL. */
void shm_records_free(void *mem, uint64_t size_bytes);
