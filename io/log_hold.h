/* SPDX-License-Identifier: Apache-2.0 */
/*
 * While the log is replayed: puts of a transaction wait here for its commit, which is where they took effect. Those of
 * one that a crash cut off wait in vain to the log's end. What any step costs does not grow with what waits.
 */
#pragma once

#include "include/base/base.h"
#include "io/log.h"

struct log_held;

struct log_hold {
    struct log_held *held; /* `room` of them: the first n are in use, or in the list of free ones */
    uint32_t n, room, free;
    uint32_t *by_txn, *by_generation; /* `room` chains each */
};

void log_hold_init(struct log_hold *h);
void log_hold_deinit(struct log_hold *h);

/* A put with a transaction. -ENOMEM. */
must_check int log_hold_add(struct log_hold *h, const struct log_record *put);
/* What is deleted before its commit must not come back with it. Generations are unique in the partition. */
void log_hold_drop(struct log_hold *h, uint64_t generation);
/* Gives its puts to fn() in the order in which they came, until that fails, and forgets all of them. Returns what fn()
 * returned last, or 0. fn() holds nothing. */
must_check int log_hold_commit(struct log_hold *h, uint64_t txn, int (*fn)(void *ctx, const struct log_record *put),
                               void *ctx);
