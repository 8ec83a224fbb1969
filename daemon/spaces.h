/* SPDX-License-Identifier: Apache-2.0 */
/* Which engine serves which space. Filled from what the devices bring back, then as spaces are made. Control thread. */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"
#include "include/spillway/abi.h"

struct spaces;

must_check int spaces_new(struct spaces **ret_spaces);
struct spaces *spaces_free(struct spaces *spaces);

/* -ENOENT. */
int spaces_find(const struct spaces *spaces, uint32_t pool, const uint8_t *digest, uint32_t *ret_engine);
/* -ENOSPC: SPACES_MAX, or the pool has its part of them (n_pools share them alike). -ENOMEM. Known ones stay. */
must_check int spaces_add(struct spaces *spaces, uint32_t n_pools, uint32_t pool, const uint8_t *digest,
                          uint32_t engine);
/* How many spaces that engine has. */
uint32_t spaces_of_engine(const struct spaces *spaces, uint32_t engine);
uint32_t spaces_count(const struct spaces *spaces);
