/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `spillctl device`: the daemon's devices; `spillctl device format` is in device_format.c.
 */
#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/table.h"

static const struct column columns[] = {
    {"DEVICE", "name", COLUMN_TEXT},
    {"STATE", "state", COLUMN_TEXT},
    {"SIZE", "size", COLUMN_SIZE},
    {"LIVE", "live", COLUMN_SIZE},
    {"FREE", "free", COLUMN_SIZE},
    {"WRITTEN", "written", COLUMN_SIZE},
    {"READ", "read", COLUMN_SIZE},
    {"PATH", "path", COLUMN_TEXT},
};

int ctl_device(const struct ctl *ctl, int argc, char **argv)
{
    cleanup_json struct json_object *reply = NULL;

    if (argc >= 2 && strcmp(argv[1], "format") == 0)
        return ctl_device_format(ctl, argc - 1, argv + 1);
    if (argc > 2 || (argc == 2 && strcmp(argv[1], "list") != 0)) {
        fprintf(stderr, "spillctl: usage: spillctl device [list], or spillctl device format PATH …\n");
        return EX_USAGE;
    }
    int status = ctl_get(ctl, "devices", &reply);
    if (status != CTL_OK)
        return status;
    if (ctl->json)
        return ctl_print_json(reply);
    table_print(ctl_find(reply, "devices"), columns, ARRAY_LEN(columns), stdout);
    return CTL_OK;
}
