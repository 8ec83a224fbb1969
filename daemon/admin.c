/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the way of an ADMIN request: parse, ask every engine, make the object, answer. Control thread.
 *
 * The text comes from a peer with rights, and is parsed all the same as if it did not (daemon/admin_request.h).
 */
#include "daemon/admin.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/admin_request.h"
#include "daemon/control.h"
#include "daemon/json.h"
#include "daemon/session.h"
#include "include/base/cleanup.h"

struct admin_kind {
    const char *name;
    struct json_object *(*make)(const struct control *control, const struct admin_reports *reports);
};

struct admin_question {
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

static void question_free(struct admin_question *question)
{
    for (uint32_t i = 0; i < question->reports.n; i++)
        free(question->reports.at[i]);
    free(question);
}

static void report_came(struct call *call)
{
    struct admin_question *question = call->at_control_ctx;
    struct session *session = question->session;

    if (--question->n_left > 0)
        return;
    if (session_call_over(session)) {
        size_t size = 0;
        char *text = json_end(question->kind->make(session->control, &question->reports), &size);

        reply_json(session, text, size);
    }
    question_free(question);
}

/* A report for each engine; NULL: no memory. */
static struct admin_question *question_new(struct session *session, const struct admin_kind *kind)
{
    struct control *control = session->control;
    struct admin_question *question = calloc(1, sizeof(*question));
    uint32_t max_peers = control->n_sessions + control->n_refused;

    if (!question)
        return NULL;
    question->session = session;
    question->kind = kind;
    question->n_left = control->n_engines;
    for (uint32_t i = 0; i < control->n_engines; i++) {
        struct engine_report *report = calloc(1, sizeof(*report) + max_peers * sizeof(report->peers[0]));

        if (!report) {
            question_free(question);
            return NULL;
        }
        report->max_peers = max_peers;
        report->call.at_control = report_came;
        report->call.at_control_ctx = question;
        question->reports.at[question->reports.n++] = report;
    }
    return question;
}

static void ask_engines(struct session *session, const struct admin_kind *kind)
{
    struct control *control = session->control;
    struct admin_question *question = question_new(session, kind);

    if (!question) {
        session_reply_error(session, -ENOMEM, 0, "out of memory");
        return;
    }
    session->busy = true;
    for (uint32_t i = 0; i < control->n_engines; i++)
        engine_report(control->engines[i], question->reports.at[i]);
}

static void reply_config(struct session *session)
{
    size_t size = 0;
    char *text = config_print_json(session->control->config, session->control->pending, &size);

    reply_json(session, text, size);
}

static void get(struct session *session, const char *name)
{
    const struct admin_kind *kind = NULL;

    for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
        if (strcmp(kinds[i].name, name) == 0)
            kind = &kinds[i];
    if (kind)
        ask_engines(session, kind);
    else if (strcmp(name, "config") == 0)
        reply_config(session);
    else
        session_reply_error(session, -EINVAL, 0,
                            "there is status, pools, tiers, sessions, devices, gpus, iostat, config and doctor");
}

void admin_begin(struct session *session, const char *text, size_t size)
{
    struct admin_request request;
    int r = admin_request_parse(text, size, &request);

    if (r == -E2BIG) {
        session_reply_error(session, r, 0, "a request has at most %d members, names of %d bytes and values of %d",
                            ADMIN_MEMBERS_MAX, ADMIN_NAME_BYTES_MAX, ADMIN_TEXT_BYTES_MAX);
        return;
    }
    if (r == 0 && admin_inject(session, &request))
        return;
    const char *name = r == 0 ? admin_request_text(&request, "get") : NULL;

    if (name)
        get(session, name);
    else
        session_reply_error(session, -EINVAL, 0, "a request is {\"get\": NAME}");
}
