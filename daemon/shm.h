/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that the daemon makes for others to see, or for itself to find again: rings and scratch of clients, the table of
 * sessions. Control thread.
 */
#pragma once

#include "include/base/base.h"
#include "io/memory.h"

/* Sealed before anybody sees it: neither side can change its size. Not in core dumps, and not in forked children. */
must_check int shm_client_new(const char *name, uint64_t size_bytes, struct memory_shared *ret_shared);

/* A memfd that no client gets, zeroed: for the next process. Pages come as they are touched. */
must_check int shm_own_new(const char *name, uint64_t size_bytes, struct memory_shared *ret_shared);
/* One that the last process made, if it has exactly that size. Takes the descriptor on success. -EINVAL */
must_check int shm_own_adopt(int fd, uint64_t size_bytes, struct memory_shared *ret_shared);
