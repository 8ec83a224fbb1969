/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Users and jobs. An account counts what one uid has; an owner is a job: its objects outlive its processes by a linger
 * time. Control thread.
 */
#pragma once

#include <sys/types.h>

#include "daemon/engine.h"
#include "daemon/loop.h"
#include "include/base/list.h"
#include "include/spillway/abi.h"

struct control;
struct kept_owner;

struct account {
    struct list link;
    uid_t uid;
    uint32_t n_sessions, n_owners;
    uint32_t n_refused; /* sessions that do not count, and are told so */
    uint64_t scratch_bytes;
    uint32_t n_descriptors; /* of its sessions and their rings */
};

struct owner {
    struct list link;
    struct control *control;
    struct account *account;
    uint64_t number; /* fits 32 bits: records keep it so */
    uint8_t token[SPW_TOKEN_BYTES];
    struct kept_owner *kept; /* what the next process is to know; NULL: nothing */
    uint32_t n_sessions;
    uint64_t linger_ns; /* the longest of the pools that it used */
    struct loop_timer linger;
    bool ending;
    bool is_kept; /* a session of it is on its way to the next process, and joins it there */
    uint32_t n_calls;
    struct owner_call calls[]; /* one an engine */
};

/* Found or made; NULL: no memory. */
struct account *account_get(struct control *control, uid_t uid);
/* Frees it when nothing is counted any more. */
void account_put(struct control *control, struct account *account);

/* So many descriptors more. */
bool account_may_open(const struct control *control, const struct account *account, uint32_t n);

/* 0; -ENOENT: no job of this user has that token. An all-zero token makes a new one: -ENOSPC, -ENOMEM. Counts as a
 * session of it. */
must_check int owner_join(struct control *control, struct account *account, const uint8_t *token,
                          struct owner **ret_owner);
/* A session of it ended, or went to the next process (is_kept): then it does not end in this one. Else the linger time begins
 * with the last one. */
void owner_leave(struct owner *owner, bool is_kept);
/* It lingers at least so long. */
void owner_linger(struct owner *owner, uint64_t linger_ns);
/* The daemon ends: at once, without asking the engines. What is kept of them stays. */
void owners_free(struct control *control);

/* One that the last process left; it lingers until a session joins. -ENOMEM. */
must_check int owner_restore(struct control *control, struct kept_owner *kept);
/* One more session of an owner that is known by its number, as its sessions are; NULL: there is none. */
struct owner *owner_rejoin(struct control *control, const struct account *account, uint64_t number);

bool token_equal(const uint8_t *a, const uint8_t *b);
must_check int token_new(uint8_t *ret_token);
