/* SPDX-License-Identifier: Apache-2.0 */
/* Attaching, and what the daemon tells of its helper. Any thread with its own session. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <time.h>

#include "client/bench/admin.h"
#include "client/bench/gpu.h"
#include "client/bench/live.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define ATTACH_SECONDS 60 /* a driver takes its time */

int gpu_attach(spw_space *space, spw_gpu **ret_gpu)
{
    uint64_t start_ns = now_ns();
    int r;

    while ((r = spw_gpu_attach(space, NULL, ret_gpu)) == -EAGAIN && !live_interrupted() &&
           seconds_since(start_ns) < ATTACH_SECONDS)
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    return r < 0 ? micro_say("spw_gpu_attach", r) : 0;
}

static double number(struct json_object *reply, const char *path)
{
    double x = admin_number(reply, path);

    return isnan(x) ? 0 : x;
}

int gpu_numbers_get(spw_session *session, struct gpu_numbers *ret_numbers)
{
    cleanup_json struct json_object *reply = NULL;
    int r = admin_get(session, "gpus", &reply);

    if (r < 0)
        return r;
    *ret_numbers = (struct gpu_numbers){
        .helper_pid = (pid_t)number(reply, "gpus.pid"),
        .lanes = number(reply, "gpus.lanes"),
        .staging_bytes = number(reply, "gpus.staging_bytes"),
        .chunk_bytes = number(reply, "gpus.chunk_bytes"),
        .registered_bytes = number(reply, "gpus.registered_bytes"),
        .register_ns = number(reply, "gpus.register_ns"),
        .windows_failed = number(reply, "gpus.windows_failed"),
    };
    return 0;
}
