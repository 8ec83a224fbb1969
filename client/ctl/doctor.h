/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What spillctl doctor looks at on this machine, daemon or not.
 */
#pragma once

#include <json-c/json.h>

/* Appends {"check","state","text","fix"} objects: state is OK, WARN or FAIL; fix is what an admin can do. */
void doctor_check_machine(struct json_object *checks);
/* The GPUs: part of doctor_check_machine(). */
void doctor_check_gpus(struct json_object *checks);
/* Whether these, the daemon's devices, could be opened by their owner and have room. */
void doctor_check_devices(struct json_object *checks, struct json_object *devices);
void doctor_add(struct json_object *checks, const char *check, const char *state, const char *fix, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
