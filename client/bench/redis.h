/* SPDX-License-Identifier: Apache-2.0 */
/*
 * redis beside us, where redis-server is installed: a private server on a Unix socket, no persistence, and the least of a
 * client that can ask it.
 */
#pragma once

#include "include/base/base.h"

struct redis;

/* Starts one. -ENOENT: it is not installed. */
must_check int redis_new(struct redis **ret_redis);
void redis_free(struct redis *redis);
must_check int redis_set(struct redis *redis, const char *key, const void *bytes, uint64_t size_bytes);
/* Reads the whole value; -EBADMSG if it has another size. */
must_check int redis_get(struct redis *redis, const char *key, void *ret_bytes, uint64_t size_bytes);
