/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of sessions and owners outlives the process: a table in memory that is never passed to a client, kept by the
 * descriptor store. Control thread.
 */
#pragma once

#include <sys/types.h>

#include "include/base/base.h"
#include "include/base/limits.h"
#include "include/spillway/abi.h"

struct fdstore;
struct kept;

/* A row is in use while `number` is not 0: that is stored last, and cleared first. */
struct kept_session {
    uint64_t number;
    uint64_t owner;   /* its number */
    uint64_t engines; /* bit mask: where it had a seat */
    uint32_t uid, gid;
    int32_t pid; /* 0: not known */
    uint32_t reserved0;
    uint8_t token[SPW_TOKEN_BYTES];
    char name[SPW_NAME_BYTES];
    uint64_t reserved[2];
};
static_assert(sizeof(struct kept_session) == 136 && ENGINES_MAX <= 64, "the layout that the next process finds");

struct kept_owner {
    uint64_t number;
    uint64_t linger_ns;
    uint32_t uid;
    uint32_t reserved0;
    uint8_t token[SPW_TOKEN_BYTES];
    uint64_t reserved;
};
static_assert(sizeof(struct kept_owner) == 48, "the layout that the next process finds");

/* Takes what the last process left, if it is of this layout and of so many engines; else an empty one. *ret_why: why what was
 * left is of no use, or NULL. */
must_check int kept_new(struct fdstore *store, uint32_t n_engines, struct kept **ret_kept, const char **ret_why);
/* The memory stays with whoever keeps it. Takes NULL. */
struct kept *kept_free(struct kept *kept);
/* It was left by another process. */
bool kept_is_old(const struct kept *kept);
/* Nothing of the last process's memory is left: what clients map or lease is gone, and so are its sessions. */
void kept_set_cold(struct kept *kept);
/* Another one after that. */
uint64_t kept_memory_id(const struct kept *kept);

/* Numbers that no session, no owner had before. */
uint64_t kept_next_session(struct kept *kept);
uint64_t kept_next_owner(struct kept *kept);
uint64_t kept_sessions_ever(const struct kept *kept);

/* Helpers of GPUs, which have chunks mapped and may be writing there: so the next process waits until they have ended. */
void kept_helper_began(struct kept *kept, pid_t pid);
void kept_helper_ended(struct kept *kept, pid_t pid);
/* Of the last process: ends what is left of them, and waits for that. */
void kept_helpers_end(struct kept *kept);

/* A row to be filled in, and then put to use with its number; NULL: all are in use. */
struct kept_session *kept_session_new(struct kept *kept);
void kept_session_use(struct kept_session *row, uint64_t number);
struct kept_session *kept_session_free(struct kept *kept, struct kept_session *row);
struct kept_owner *kept_owner_new(struct kept *kept);
void kept_owner_use(struct kept_owner *row, uint64_t number);
struct kept_owner *kept_owner_free(struct kept *kept, struct kept_owner *row);
/* Those in use from *at on, which is 0 at first. NULL: no more. */
struct kept_session *kept_session_next(struct kept *kept, uint32_t *at);
struct kept_owner *kept_owner_next(struct kept *kept, uint32_t *at);
