/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the way of an ADMIN request: parse, ask every engine, make the object, answer. Control thread.
 *
 * The text comes from a peer with rights, and is parsed all the same as if it did not: bounded in size and depth.
 */
#include "daemon/admin.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/control.h"
#include "daemon/json.h"
#include "daemon/session.h"
#include "include/base/cleanup.h"

#define ADMIN_DEPTH_MAX 8

struct admin_kind {
    const char *name;
    struct json_object *(*make)(const struct control *control, const struct admin_reports *reports);
};

struct admin_request {
    struct session *session;
    const struct admin_kind *kind;
    uint32_t n_left;
    struct admin_reports reports;
};

static const struct admin_kind kinds[] = {
    {"status", admin_status},   {"pools", admin_pools}, {"tiers", admin_tiers},   {"sessions", admin_sessions},
    {"devices", admin_devices}, {"gpus", admin_gpus},   {"iostat", admin_iostat}, {"doctor", admin_doctor},
};

/* NULL: something found no memory. */
static void reply_json(struct session *session, char *text, size_t size)
{
    if (text)
        session_reply_text(session, text, size);
    else
        session_reply_error(session, -ENOMEM, 0, "out of memory");
}

static void request_free(struct admin_request *request)
{
    for (uint32_t i = 0; i < request->reports.n; i++)
        free(request->reports.at[i]);
    free(request);
}

static void report_came(struct call *call)
{
    struct admin_request *request = call->at_control_ctx;
    struct session *session = request->session;

    if (--request->n_left > 0)
        return;
    if (session_call_over(session)) {
        size_t size = 0;
        char *text = json_end(request->kind->make(session->control, &request->reports), &size);

        reply_json(session, text, size);
    }
    request_free(request);
}

/* A report for each engine; NULL: no memory. */
static struct admin_request *request_new(struct session *session, const struct admin_kind *kind)
{
    struct control *control = session->control;
    struct admin_request *request = calloc(1, sizeof(*request));
    uint32_t max_peers = control->n_sessions + control->n_refused;

    if (!request)
        return NULL;
    request->session = session;
    request->kind = kind;
    request->n_left = control->n_engines;
    for (uint32_t i = 0; i < control->n_engines; i++) {
        struct engine_report *report = calloc(1, sizeof(*report) + max_peers * sizeof(report->peers[0]));

        if (!report) {
            request_free(request);
            return NULL;
        }
        report->max_peers = max_peers;
        report->call.at_control = report_came;
        report->call.at_control_ctx = request;
        request->reports.at[request->reports.n++] = report;
    }
    return request;
}

static void ask_engines(struct session *session, const struct admin_kind *kind)
{
    struct control *control = session->control;
    struct admin_request *request = request_new(session, kind);

    if (!request) {
        session_reply_error(session, -ENOMEM, 0, "out of memory");
        return;
    }
    session->busy = true;
    for (uint32_t i = 0; i < control->n_engines; i++)
        engine_report(control->engines[i], request->reports.at[i]);
}

static void reply_config(struct session *session)
{
    size_t size = 0;
    char *text = config_print_json(session->control->config, session->control->pending, &size);

    reply_json(session, text, size);
}

/* The value of "get"; NULL with an answer sent. */
static struct json_object *parse(struct session *session, const char *text, size_t size, const char **ret_get)
{
    struct json_tokener *tokener = json_tokener_new_ex(ADMIN_DEPTH_MAX);
    struct json_object *object = tokener ? json_tokener_parse_ex(tokener, text, (int)size) : NULL;
    struct json_object *get = NULL;

    if (tokener)
        json_tokener_free(tokener);
    if (object && admin_inject(session, object)) {
        json_object_put(object);
        return NULL;
    }
    if (!object || !json_object_object_get_ex(object, "get", &get) || !json_object_is_type(get, json_type_string)) {
        json_object_put(object);
        session_reply_error(session, -EINVAL, 0, "a request is {\"get\": NAME}");
        return NULL;
    }
    *ret_get = json_object_get_string(get);
    return object;
}

void admin_begin(struct session *session, const char *text, size_t size)
{
    const char *get;
    struct json_object *object = parse(session, text, size, &get);

    if (!object)
        return;
    const struct admin_kind *kind = NULL;

    for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
        if (strcmp(kinds[i].name, get) == 0)
            kind = &kinds[i];
    if (kind)
        ask_engines(session, kind);
    else if (strcmp(get, "config") == 0)
        reply_config(session);
    else
        session_reply_error(session, -EINVAL, 0,
                            "there is status, pools, tiers, sessions, devices, gpus, iostat, config and doctor");
    json_object_put(object);
}
