/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making a JSON answer where any allocation may fail: members go on being put into what is not there, and the end tells. An
 * answer is whole, or there is none. Control thread: one answer at a time.
 */
#pragma once

#include "include/base/base.h"

struct json_object;

/* A new answer; NULL is as good as any other object for what follows. */
struct json_object *json_begin(void);
/* Its text, for the caller to free; NULL: something found no memory. The object is freed. */
char *json_end(struct json_object *root, size_t *ret_size);

void json_put_u64(struct json_object *o, const char *name, uint64_t value);
void json_put_int(struct json_object *o, const char *name, int value);
void json_put_bool(struct json_object *o, const char *name, bool value);
/* NULL: the member is null. */
void json_put_text(struct json_object *o, const char *name, const char *value);
struct json_object *json_put_object(struct json_object *o, const char *name);
struct json_object *json_put_array(struct json_object *o, const char *name);
void json_add_text(struct json_object *array, const char *value);
struct json_object *json_add_object(struct json_object *array);
