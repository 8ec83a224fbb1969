/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asks, parses, picks numbers. Any thread.
 */
#include "client/bench/admin.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "include/base/cleanup.h"

int admin_get(spw_session *session, const char *what, struct json_object **ret_reply)
{
    char request[64];
    cleanup_free char *text = NULL;

    snprintf(request, sizeof(request), "{\"get\":\"%s\"}", what);
    int r = spw_admin(session, request, &text);
    if (r < 0) {
        fprintf(stderr, "spillbench: the daemon's %s: %s\n", what, spw_error_text());
        return r;
    }
    struct json_object *reply = json_tokener_parse(text);
    if (!reply) {
        fprintf(stderr, "spillbench: the daemon's %s is no JSON: %.60s\n", what, text);
        return -EBADMSG;
    }
    *ret_reply = reply;
    return 0;
}

double admin_number(struct json_object *reply, const char *path)
{
    char step[64];
    struct json_object *next;
    double sum = NAN;

    if (json_object_is_type(reply, json_type_array)) {
        for (size_t i = 0; i < json_object_array_length(reply); i++) {
            double x = admin_number(json_object_array_get_idx(reply, i), path);
            if (!isnan(x))
                sum = isnan(sum) ? x : sum + x;
        }
        return sum;
    }
    if (path[0] == '\0')
        return json_object_is_type(reply, json_type_int) || json_object_is_type(reply, json_type_double) ||
                       json_object_is_type(reply, json_type_boolean)
                   ? json_object_get_double(reply)
                   : NAN;
    size_t len = strcspn(path, ".");
    if (len >= sizeof(step) || !json_object_is_type(reply, json_type_object))
        return NAN;
    memcpy(step, path, len);
    step[len] = '\0';
    if (!json_object_object_get_ex(reply, step, &next))
        return NAN;
    return admin_number(next, path[len] == '.' ? path + len + 1 : path + len);
}

struct json_object *admin_named(struct json_object *reply, const char *array, const char *name)
{
    struct json_object *list, *is;

    if (!json_object_is_type(reply, json_type_object) || !json_object_object_get_ex(reply, array, &list) ||
        !json_object_is_type(list, json_type_array))
        return NULL;
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        struct json_object *o = json_object_array_get_idx(list, i);

        if (json_object_is_type(o, json_type_object) && json_object_object_get_ex(o, "name", &is) &&
            strcmp(json_object_get_string(is), name) == 0)
            return o;
    }
    return NULL;
}
