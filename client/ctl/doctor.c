/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `spillctl doctor`: what is wrong with this machine, and with the daemon on it, and which knob cures it. Without a
 * daemon it looks at the machine alone. Status 1 if anything is FAIL.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/doctor.h"

/* The daemon's own findings. What it cannot work without is FAIL. */
static void adopt(struct json_object *checks, struct json_object *from)
{
    for (size_t i = 0; json_object_is_type(from, json_type_array) && i < json_object_array_length(from); i++) {
        struct json_object *o = json_object_array_get_idx(from, i);
        const char *check = ctl_text(o, "check");
        bool ok = json_object_get_boolean(ctl_find(o, "ok"));
        bool vital = strcmp(check, "device") == 0 || strcmp(check, "checksums") == 0 || strcmp(check, "memory") == 0;

        doctor_add(checks, check,
                   ok      ? "OK"
                   : vital ? "FAIL"
                           : "WARN",
                   ok ? NULL : ctl_text(o, "advice"), "%s", ctl_text(o, "text"));
    }
}

static void check_daemon(const struct ctl *ctl, struct json_object *checks)
{
    struct spw_connect_options options = {.socket_path = ctl->socket_path, .name = "spillctl"};
    cleanup_session spw_session *session = NULL;
    cleanup_json struct json_object *findings = NULL, *devices = NULL;

    int r = spw_connect(&options, &session);
    if (r < 0) {
        doctor_add(checks, "daemon", r == -ENOENT || r == -ECONNREFUSED ? "WARN" : "FAIL",
                   "systemctl start spillwayd, or spillwayd --user", "%s", spw_error_text());
        return;
    }
    doctor_add(checks, "daemon", "OK", NULL, "answers");
    if (ctl_ask(session, "doctor", &findings) == CTL_OK)
        adopt(checks, ctl_find(findings, "checks"));
    if (ctl_ask(session, "devices", &devices) == CTL_OK)
        doctor_check_devices(checks, ctl_find(devices, "devices"));
}

static int print_text(struct json_object *checks)
{
    static const char *const colours[] = {"\033[32m", "\033[33m", "\033[31m"};
    bool is_terminal = isatty(STDOUT_FILENO) == 1;
    int status = CTL_OK;

    for (size_t i = 0; i < json_object_array_length(checks); i++) {
        struct json_object *o = json_object_array_get_idx(checks, i);
        const char *state = ctl_text(o, "state"), *fix = ctl_text(o, "fix");
        bool ok = strcmp(state, "OK") == 0, fail = strcmp(state, "FAIL") == 0;

        printf("%s%-4s%s  %-12s %s\n",
               is_terminal ? colours[ok     ? 0
                                     : fail ? 2
                                            : 1]
                           : "",
               state, is_terminal ? "\033[0m" : "", ctl_text(o, "check"), ctl_text(o, "text"));
        if (!ok && *fix)
            printf("      %-12s → %s\n", "", fix);
        if (fail)
            status = CTL_FAILED;
    }
    return status;
}

int ctl_doctor(const struct ctl *ctl, int argc, char **argv)
{
    cleanup_json struct json_object *reply = json_object_new_object();
    struct json_object *checks = json_object_new_array();
    int status = CTL_OK;

    if (argc > 1) {
        fprintf(stderr, "spillctl: doctor takes no arguments: %s\n", argv[1]);
        return EX_USAGE;
    }
    if (!reply || !checks)
        return CTL_FAILED;
    json_object_object_add(reply, "checks", checks);
    doctor_check_machine(checks);
    check_daemon(ctl, checks);
    if (!ctl->json)
        return print_text(checks);
    for (size_t i = 0; i < json_object_array_length(checks); i++)
        if (strcmp(ctl_text(json_object_array_get_idx(checks, i), "state"), "FAIL") == 0)
            status = CTL_FAILED;
    return ctl_print_json(reply) == CTL_OK ? status : CTL_FAILED;
}
