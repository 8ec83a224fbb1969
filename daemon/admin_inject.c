/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Faults of devices that an administrator orders, for drills: {"inject": "list" | "clear" | "add"}, the last with "device",
 * "what" and, as one likes, "count", "probability" and "latency_ms". Only where [daemon] inject says so, and only for root (with
 * --user: the daemon's own user). Rules live in the engines, and go with the process. Control thread.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/admin.h"
#include "daemon/admin_request.h"
#include "daemon/control.h"
#include "daemon/json.h"
#include "daemon/log.h"
#include "daemon/session.h"

#define LATENCY_MS_MAX 60000
#define NS_PER_MS UINT64_C(1000000)

struct inject_request {
    struct session *session;
    uint32_t n, n_left;
    struct inject_call calls[]; /* one an engine */
};

/* --- The answer: the rules afterwards --------------------------------------------------------------------------------- */

static void put_rule(struct json_object *o, const struct control *control, uint32_t engine,
                     const struct inject_rule *rule)
{
    json_put_u64(o, "rule", rule->number);
    json_put_u64(o, "engine", engine);
    json_put_text(o, "device", control->config->devices[rule->device].section.name);
    json_put_text(o, "what", inject_names[rule->what]);
    json_put_u64(o, "left", rule->count);
    json_put_u64(o, "millionths", rule->millionths);
    json_put_u64(o, "latency_ms", rule->latency_ns / NS_PER_MS);
    json_put_u64(o, "done", rule->n_done);
}

static void inject_answer(struct session *session, const struct inject_request *request)
{
    struct json_object *o = json_begin(), *rules = json_put_array(o, "rules");
    size_t size = 0;

    for (uint32_t i = 0; i < request->n; i++)
        for (uint32_t k = 0; k < request->calls[i].n; k++)
            put_rule(json_add_object(rules), session->control, request->calls[i].call.engine->config.number,
                     &request->calls[i].rules[k]);
    char *text = json_end(o, &size);

    if (text)
        session_reply_text(session, text, size);
    else
        session_reply_error(session, -ENOMEM, 0, "out of memory");
}

static void inject_done(struct call *base)
{
    struct inject_request *request = base->at_control_ctx;
    struct session *session = request->session;
    int r = 0;

    if (--request->n_left > 0)
        return;
    for (uint32_t i = 0; i < request->n; i++)
        r = r < 0 ? r : request->calls[i].result;
    if (session_call_over(session)) {
        if (r < 0)
            session_reply_error(session, r, 0, "an engine has %d rules, and takes no more: clear them",
                                INJECT_RULES_MAX);
        else
            inject_answer(session, request);
    }
    free(request);
}

/* --- The order -------------------------------------------------------------------------------------------------------- */

static const char *text_of(const struct admin_request *request, const char *name)
{
    const char *text = admin_request_text(request, name);

    return text ? text : "";
}

/* A number in its bounds; what it is without one. False: it is something else. */
static bool number_of(const struct admin_request *request, const char *name, double min, double max, double without,
                      double *ret_number)
{
    const struct admin_member *member = admin_request_find(request, name);

    *ret_number = member ? member->number : without;
    if (!member)
        return true;
    return member->kind == ADMIN_NUMBER && member->number >= min && member->number <= max;
}

/* NULL, or what is wrong with it. */
static const char *rule_parse(const struct admin_request *request, struct inject_rule *ret_rule)
{
    const char *what = text_of(request, "what");
    double count, probability, latency_ms;
    uint8_t n = 0;

    while (n < INJECT_WHATS && strcmp(inject_names[n], what) != 0)
        n++;
    if (n == INJECT_WHATS)
        return "what can be ordered is eio, latency, corrupt and flush-fail";
    if (!number_of(request, "count", 1, 1e15, 0, &count) ||
        !number_of(request, "probability", 1e-6, 1, 1, &probability) ||
        !number_of(request, "latency_ms", 1, LATENCY_MS_MAX, 100, &latency_ms))
        return "a count is at least 1, a probability within 0.000001 and 1, a latency within 1 and 60000 ms";
    *ret_rule = (struct inject_rule){.what = n,
                                     .count = (uint64_t)count,
                                     .millionths = (uint32_t)lround(probability * INJECT_MILLION),
                                     .latency_ns = n == INJECT_LATENCY ? (uint64_t)latency_ms * NS_PER_MS : 0};
    return NULL;
}

static uint32_t device_find(const struct control *control, const char *name)
{
    uint32_t i = 0;

    while (i < control->config->n_devices && strcmp(control->config->devices[i].section.name, name) != 0)
        i++;
    return i;
}

/* All engines are asked; of a rule, each knows whether it has some of the device. */
static void inject_begin(struct session *session, enum inject_order order, const struct inject_rule *rule)
{
    static uint64_t last_rule;
    struct control *control = session->control;
    struct inject_request *request = calloc(1, sizeof(*request) + control->n_engines * sizeof(request->calls[0]));

    if (!request) {
        session_reply_error(session, -ENOMEM, 0, "out of memory");
        return;
    }
    last_rule += order == INJECT_ADD;
    request->session = session;
    request->n = request->n_left = control->n_engines;
    session->busy = true;
    for (uint32_t i = 0; i < control->n_engines; i++) {
        struct inject_call *call = &request->calls[i];

        call->order = order;
        if (order == INJECT_ADD) {
            call->rule = *rule;
            call->rule.number = last_rule;
        }
        call->call.at_control = inject_done;
        call->call.at_control_ctx = request;
    }
    for (uint32_t i = 0; i < control->n_engines; i++)
        engine_inject(control->engines[i], &request->calls[i]);
}

static void inject_add_asked(struct session *session, const struct admin_request *request)
{
    const char *name = text_of(request, "device");
    uint32_t device = device_find(session->control, name);
    struct inject_rule rule;
    const char *wrong = rule_parse(request, &rule);

    if (device == session->control->config->n_devices) {
        session_reply_error(session, -ENOENT, 0, "there is no [device %.60s] in the configuration", name);
        return;
    }
    if (wrong) {
        session_reply_error(session, -EINVAL, 0, "%s", wrong);
        return;
    }
    log_warning("[device %s] %s ordered by uid %u (spillctl inject)", name, inject_names[rule.what], session->who.uid);
    rule.device = device;
    inject_begin(session, INJECT_ADD, &rule);
}

static bool inject_is_allowed(struct session *session)
{
    const struct control *control = session->control;

    if (session->who.uid != 0 && !(control->user_mode && session->who.uid == control->uid)) {
        session_reply_error(session, -EACCES, 0, "this takes root");
        return false;
    }
    if (!control->config->daemon.inject) {
        session_reply_error(session, -EPERM, 0,
                            "faults cannot be ordered here: inject = yes in [daemon], and a restart");
        return false;
    }
    return true;
}

bool admin_inject(struct session *session, const struct admin_request *request)
{
    const char *order = text_of(request, "inject");

    if (!*order)
        return false;
    if (!inject_is_allowed(session))
        return true;
    if (strcmp(order, "add") == 0) {
        inject_add_asked(session, request);
    } else if (strcmp(order, "clear") == 0) {
        log_warning("no faults are ordered any more (uid %u)", session->who.uid);
        inject_begin(session, INJECT_CLEAR, NULL);
    } else if (strcmp(order, "list") == 0) {
        inject_begin(session, INJECT_LIST, NULL);
    } else {
        session_reply_error(session, -EINVAL, 0, "an order is list, clear or add");
    }
    return true;
}
