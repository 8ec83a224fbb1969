/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's own figures, as spillctl sees them (docs/admin-json.md).
 */
#pragma once

#include <json-c/json.h>
#include <sys/types.h>

#include "include/base/base.h"
#include "include/spillway/spillway.h"

static inline void json_p(struct json_object **o)
{
    json_object_put(*o);
}
#define cleanup_json cleanup_(json_p)

/* Asks for `what` ("status", "pools", …). The caller puts the object. Says what went wrong on standard error. */
must_check int admin_get(spw_session *session, const char *what, struct json_object **ret_reply);

/*
 * A number by its path, "dram.used_bytes"; arrays on the way, and the reply itself where it is one, are summed over; a
 * truth counts as 0 or 1. NaN if nothing is there.
 */
double admin_number(struct json_object *reply, const char *path);
/* The element of an array, anywhere on top of the reply, whose "name" is `name`; NULL if there is none. Borrowed. */
struct json_object *admin_named(struct json_object *reply, const char *array, const char *name);
