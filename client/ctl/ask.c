/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connecting, asking, and picking values out of the answer. The daemon may be newer or older than this program: a value
 * that is not there is no error, it shows as empty.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"

static int explain_no_daemon(const struct ctl *ctl)
{
    fprintf(stderr, "spillctl: %s\n", spw_error_text());
    if (!ctl->socket_path)
        fprintf(stderr,
                "  tried: $SPILLWAY_SOCKET, $XDG_RUNTIME_DIR/spillway/spillwayd.sock (your own daemon's; without that "
                "variable in /run/user/UID/spillway or /tmp/spillway-UID), /run/spillway/spillwayd.sock (the "
                "system's)\n");
    fprintf(stderr, "  to start one:    systemctl start spillwayd      the system's\n"
                    "                   spillwayd --user               your own, until you stop it\n"
                    "  to talk to one:  spillctl --socket PATH …       or SPILLWAY_SOCKET=PATH\n");
    return EX_UNAVAILABLE;
}

int ctl_connect(const struct ctl *ctl, spw_session **ret_session)
{
    struct spw_connect_options options = {.socket_path = ctl->socket_path, .name = "spillctl"};
    int r = spw_connect(&options, ret_session);

    if (r == -ENOENT || r == -ECONNREFUSED)
        return explain_no_daemon(ctl);
    if (r < 0)
        fprintf(stderr, "spillctl: %s\n", spw_error_text());
    return r == 0 ? CTL_OK : r == -EACCES || r == -EPERM ? EX_NOPERM : CTL_FAILED;
}

int ctl_ask(spw_session *session, const char *what, struct json_object **ret_reply)
{
    char request[64];

    snprintf(request, sizeof(request), "{\"get\":\"%s\"}", what);
    return ctl_request(session, request, ret_reply);
}

int ctl_request(spw_session *session, const char *request, struct json_object **ret_reply)
{
    cleanup_free char *text = NULL;
    int r = spw_admin(session, request, &text);
    if (r == -EACCES || r == -EPERM) {
        fprintf(stderr,
                "spillctl: %s\n  root, the daemon's own user, and members of admin_group (spillwayd.conf(5)) may ask\n",
                spw_error_text());
        return EX_NOPERM;
    }
    if (r < 0) {
        fprintf(stderr, "spillctl: %s\n", spw_error_text());
        return r == -ENOTCONN ? EX_UNAVAILABLE : CTL_FAILED;
    }
    struct json_object *reply = json_tokener_parse(text);
    if (!reply) {
        fprintf(stderr, "spillctl: the daemon's answer is no JSON: %.60s\n", text);
        return CTL_FAILED;
    }
    *ret_reply = reply;
    return CTL_OK;
}

int ctl_get(const struct ctl *ctl, const char *what, struct json_object **ret_reply)
{
    cleanup_session spw_session *session = NULL;
    int status = ctl_connect(ctl, &session);

    return status == CTL_OK ? ctl_ask(session, what, ret_reply) : status;
}

int ctl_print_json(struct json_object *reply)
{
    const char *text = json_object_to_json_string_ext(reply, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE);

    return text && printf("%s\n", text) > 0 && fflush(stdout) == 0 ? CTL_OK : CTL_FAILED;
}

struct json_object *ctl_find(struct json_object *from, const char *path)
{
    char step[64];

    while (*path) {
        size_t len = strcspn(path, ".");
        struct json_object *next;

        if (len >= sizeof(step) || !json_object_is_type(from, json_type_object))
            return NULL;
        memcpy(step, path, len);
        step[len] = '\0';
        if (!json_object_object_get_ex(from, step, &next))
            return NULL;
        from = next;
        path += len + (path[len] == '.');
    }
    return from;
}

double ctl_number(struct json_object *from, const char *path)
{
    struct json_object *o = ctl_find(from, path);

    return json_object_is_type(o, json_type_int) || json_object_is_type(o, json_type_double) ? json_object_get_double(o)
                                                                                             : 0;
}

const char *ctl_text(struct json_object *from, const char *path)
{
    struct json_object *o = ctl_find(from, path);

    return o ? json_object_get_string(o) : "";
}
