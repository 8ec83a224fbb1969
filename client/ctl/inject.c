/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `spillctl inject`: orders faults of a device, for drills. The daemon says what may be ordered and by whom; here words become
 * an order.
 */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/table.h"

static const struct column columns[] = {
    {"RULE", "rule", COLUMN_COUNT},
    {"ENGINE", "engine", COLUMN_COUNT},
    {"DEVICE", "device", COLUMN_TEXT},
    {"WHAT", "what", COLUMN_TEXT},
    {"OF A MILLION", "millionths", COLUMN_COUNT},
    {"MS", "latency_ms", COLUMN_COUNT},
    {"LEFT", "left", COLUMN_COUNT},
    {"DONE", "done", COLUMN_COUNT},
};

static int usage(void)
{
    fprintf(stderr, "spillctl: usage: spillctl inject list | clear |\n"
                    "                 device NAME eio|latency|corrupt|flush-fail [--count N] [--probability P] "
                    "[--latency MS]\n");
    return EX_USAGE;
}

/* The whole word is a number, and one that JSON can say. */
static bool add_number(struct json_object *order, const char *name, const char *word, bool whole)
{
    char *end;

    errno = 0;
    double number = strtod(word, &end);

    if (errno != 0 || end == word || *end || !isfinite(number) || (whole && (number < 1 || number > 1e15)))
        return false;
    return json_object_object_add(order, name,
                                  whole ? json_object_new_int64((int64_t)number) : json_object_new_double(number)) == 0;
}

static bool add_options(struct json_object *order, int argc, char **argv)
{
    static const struct option options[] = {{"count", required_argument, NULL, 'c'},
                                            {"probability", required_argument, NULL, 'p'},
                                            {"latency", required_argument, NULL, 'l'},
                                            {0}};
    int c;

    optind = 0; /* argp has been here */
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        bool ok = c == 'c'   ? add_number(order, "count", optarg, true)
                  : c == 'p' ? add_number(order, "probability", optarg, false)
                  : c == 'l' ? add_number(order, "latency_ms", optarg, true)
                             : false;
        if (!ok)
            return false;
    }
    return optind == argc;
}

/* NULL: these words are no order. */
static struct json_object *order_of(int argc, char **argv)
{
    struct json_object *order = json_object_new_object();
    bool is_device = argc >= 4 && strcmp(argv[1], "device") == 0;
    bool ok = is_device || (argc == 2 && (strcmp(argv[1], "list") == 0 || strcmp(argv[1], "clear") == 0));

    if (ok)
        json_object_object_add(order, "inject", json_object_new_string(is_device ? "add" : argv[1]));
    if (ok && is_device) {
        json_object_object_add(order, "device", json_object_new_string(argv[2]));
        json_object_object_add(order, "what", json_object_new_string(argv[3]));
        ok = add_options(order, argc - 3, argv + 3);
    }
    if (ok)
        return order;
    json_object_put(order);
    return NULL;
}

int ctl_inject(const struct ctl *ctl, int argc, char **argv)
{
    cleanup_json struct json_object *order = order_of(argc, argv), *reply = NULL;
    cleanup_session spw_session *session = NULL;

    if (!order)
        return usage();
    int status = ctl_connect(ctl, &session);
    if (status == CTL_OK)
        status = ctl_request(session, json_object_to_json_string(order), &reply);
    if (status != CTL_OK)
        return status;
    if (ctl->json)
        return ctl_print_json(reply);
    table_print(ctl_find(reply, "rules"), columns, ARRAY_LEN(columns), stdout);
    return CTL_OK;
}
