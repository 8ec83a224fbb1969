/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What spillctl asks: one JSON object in, one out (docs/admin-json.md). The numbers are the engines' own, collected by
 * a call to each. Control thread.
 */
#pragma once

#include "daemon/engine.h"
#include "include/base/base.h"

struct admin_request;
struct control;
struct json_object;
struct session;

/* The engines' reports, one each. */
struct admin_reports {
    uint32_t n;
    struct engine_report *at[ENGINES_MAX];
};

/* Answers now, or when the engines have; the session is busy until then. */
void admin_begin(struct session *session, const char *text, size_t size);

/* admin_json.c: each makes the object of one `get`. */
struct json_object *admin_status(const struct control *control, const struct admin_reports *reports);
struct json_object *admin_pools(const struct control *control, const struct admin_reports *reports);
struct json_object *admin_tiers(const struct control *control, const struct admin_reports *reports);
struct json_object *admin_sessions(const struct control *control, const struct admin_reports *reports);
struct json_object *admin_devices(const struct control *control, const struct admin_reports *reports);
struct json_object *admin_iostat(const struct control *control, const struct admin_reports *reports);
/* admin_gpu.c */
struct json_object *admin_gpus(const struct control *control, const struct admin_reports *reports);
void admin_put_pool_gpu(struct json_object *pool, const struct control *control, uint32_t number);
/* admin_inject.c: a request with "inject" in it. True: it has been answered, or will be. */
bool admin_inject(struct session *session, const struct admin_request *request);
/* admin_doctor.c */
struct json_object *admin_doctor(const struct control *control, const struct admin_reports *reports);
