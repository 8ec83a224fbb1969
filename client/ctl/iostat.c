/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `spillctl iostat`: what the engines' counters say, as rates. The first line is the average since the daemon's start,
 * as iostat(1) has it; with an interval, each further line is about the time since the one before. One session for all
 * of it.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "client/ctl/ctl.h"
#include "include/base/units.h"

#define HEADING_EVERY 20 /* lines */
#define INTERVAL_S_MAX 86400.0

enum counter { READS, WRITES, READ_BYTES, WRITTEN_BYTES, FLUSHES, ITEMS, COUNTERS };

static const char *const counter_names[COUNTERS] = {
    [READS] = "reads",     [WRITES] = "writes", [READ_BYTES] = "read_bytes", [WRITTEN_BYTES] = "written_bytes",
    [FLUSHES] = "flushes", [ITEMS] = "items",
};

struct sample {
    double time_s;
    double counters[COUNTERS];
    double in_flight, queued, errors;
};

static double sum(struct json_object *reply, const char *name)
{
    struct json_object *engines = ctl_find(reply, "engines");
    double total = 0;

    for (size_t i = 0; json_object_is_type(engines, json_type_array) && i < json_object_array_length(engines); i++)
        total += ctl_number(json_object_array_get_idx(engines, i), name);
    return total;
}

static struct sample sample_of(struct json_object *reply)
{
    struct sample s = {.time_s = ctl_number(reply, "time_ns") * 1e-9,
                       .in_flight = sum(reply, "in_flight"),
                       .queued = sum(reply, "queued"),
                       .errors = sum(reply, "errors")};

    for (unsigned i = 0; i < COUNTERS; i++)
        s.counters[i] = sum(reply, counter_names[i]);
    return s;
}

static void print_line(const struct sample *before, const struct sample *now)
{
    double seconds = now->time_s - before->time_s, rates[COUNTERS];
    char read[UNITS_TEXT_BYTES], written[UNITS_TEXT_BYTES];

    for (unsigned i = 0; i < COUNTERS; i++)
        rates[i] = seconds > 0 ? (now->counters[i] - before->counters[i]) / seconds : 0;
    printf("%10.0f %10.0f %12s %12s %8.0f %11.0f %9.0f %7.0f %7.0f\n", rates[READS], rates[WRITES],
           size_print((uint64_t)rates[READ_BYTES], read), size_print((uint64_t)rates[WRITTEN_BYTES], written),
           rates[FLUSHES], rates[ITEMS], now->in_flight, now->queued, now->errors);
    fflush(stdout);
}

static void print_heading(void)
{
    printf("%10s %10s %12s %12s %8s %11s %9s %7s %7s\n", "READS/s", "WRITES/s", "READ/s", "WRITTEN/s", "FLUSH/s",
           "KEYS/s", "IN FLIGHT", "QUEUED", "ERRORS");
}

static int parse_number(const char *text, double least, double most, double *ret)
{
    char *end;
    double x = strtod(text, &end);

    if (*text == '\0' || *end != '\0' || !(x >= least && x <= most)) {
        fprintf(stderr, "spillctl: iostat: '%s' is not a number from %g to %g\n", text, least, most);
        return EX_USAGE;
    }
    *ret = x;
    return CTL_OK;
}

/* Since when the daemon counts, on its own clock. */
static int daemon_start(spw_session *session, double now_s, double *ret_start_s)
{
    cleanup_json struct json_object *reply = NULL;
    int status = ctl_ask(session, "status", &reply);

    if (status == CTL_OK)
        *ret_start_s = now_s - ctl_number(reply, "uptime_s");
    return status;
}

static int one_line(const struct ctl *ctl, spw_session *session, uint64_t number, struct sample *before)
{
    cleanup_json struct json_object *reply = NULL;
    int status = ctl_ask(session, "iostat", &reply);

    if (status != CTL_OK || ctl->json)
        return status == CTL_OK ? ctl_print_json(reply) : status;
    struct sample now = sample_of(reply);
    if (number == 0)
        status = daemon_start(session, now.time_s, &before->time_s);
    if (number % HEADING_EVERY == 0)
        print_heading();
    print_line(before, &now);
    *before = now;
    return status;
}

int ctl_iostat(const struct ctl *ctl, int argc, char **argv)
{
    cleanup_session spw_session *session = NULL;
    double interval_s = 0, count = argc > 1 ? INFINITY : 1;
    struct sample before = {0};
    int status = CTL_OK;

    if (argc > 3) {
        fprintf(stderr, "spillctl: usage: spillctl iostat [INTERVAL [COUNT]]\n");
        return EX_USAGE;
    }
    if (argc > 1)
        status = parse_number(argv[1], 0.1, INTERVAL_S_MAX, &interval_s);
    if (status == CTL_OK && argc > 2)
        status = parse_number(argv[2], 1, 1e9, &count);
    if (status == CTL_OK)
        status = ctl_connect(ctl, &session);
    for (uint64_t i = 0; status == CTL_OK && (double)i < count; i++) {
        if (i > 0)
            nanosleep(&(struct timespec){.tv_sec = (time_t)interval_s,
                                         .tv_nsec = (long)((interval_s - floor(interval_s)) * 1e9)},
                      NULL);
        status = one_line(ctl, session, i, &before);
    }
    return status;
}
