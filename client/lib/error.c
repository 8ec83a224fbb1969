/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors in words: one text a thread, the last failed call's. Each limit has its words and its knob here, once; the
 * daemon's own words, when it sends some, are taken as they are.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "client/lib/client.h"

struct error_state {
    unsigned limit;
    char text[2 * SPW_TEXT_BYTES];
};

static __thread struct error_state error_last;

static const char *const limit_texts[] = {
    [SPW_LIMIT_NONE] = "no limit",
    [SPW_LIMIT_POOL_DRAM] = "the pool's memory is full (raise `dram` in its [pool] section)",
    [SPW_LIMIT_POOL_NVME] = "the pool's share of the devices is full (raise `nvme` in its [pool] section)",
    [SPW_LIMIT_POOL_LEASES] = "too much of the pool is leased (raise `max_leases_percent` or `dram` in its [pool])",
    [SPW_LIMIT_SESSION_LEASES] = "this session holds too many leases (raise `session_leases` in [daemon])",
    [SPW_LIMIT_SESSION_BYTES] = "this session holds too many bytes (raise `session_bytes` in the [pool] section)",
    [SPW_LIMIT_OBJECTS] = "the daemon has no object records left (raise `max_objects` in [daemon])",
    [SPW_LIMIT_REQUESTS] = "the engine has too many requests in flight (submit fewer at a time)",
    [SPW_LIMIT_UID_SESSIONS] = "this user has too many sessions (raise `uid_sessions` in [daemon])",
    [SPW_LIMIT_SESSIONS] = "the daemon has too many sessions (raise `max_sessions` in [daemon])",
    [SPW_LIMIT_SESSION_RINGS] =
        "this session has too many rings, one a thread or queue (raise `session_rings` in [daemon])",
    [SPW_LIMIT_SPACES] = "the daemon has too many spaces",
    [SPW_LIMIT_OWNERS] = "the daemon has too many owners",
    [SPW_LIMIT_OBJECT_BYTES] = "the object is larger than allowed, or of another size than its space",
    [SPW_LIMIT_DESCRIPTORS] = "the daemon has no descriptors left (raise LimitNOFILE of its service)",
    [SPW_LIMIT_MEMLOCK] = "the daemon may lock no more memory (raise LimitMEMLOCK of its service)",
    [SPW_LIMIT_DEVICE_FAILED] = "a device has failed (see `spillctl device`)",
    [SPW_LIMIT_PIECES] =
        "one request touches too many pieces (ask for smaller ranges; SYNC a whole space, not by keys)",
    [SPW_LIMIT_HINTS] = "too many objects are pinned, or have their uses counted, at once",
    [SPW_LIMIT_POOL_GPU] = "the pool's share of GPU memory is full (raise `gpu` in its [pool] section)",
    [SPW_LIMIT_GPU_LANES] = "too many lanes to GPUs are open (detach what is not used)",
    [SPW_LIMIT_GPU_FAILED] = "the GPU or its helper has failed (see `spillctl gpus`)",
    [SPW_LIMIT_DEVICE_BYTES] = "a device is full of what must stay (delete some, or add or enlarge a device)",
    [SPW_LIMIT_UID_LEASES] = "this user has too much of the pool leased (raise `uid_leases_percent` in its [pool])",
    [SPW_LIMIT_UID_FDS] = "this user takes too many descriptors in the daemon (raise `uid_descriptors` in [daemon])",
    [SPW_LIMIT_PLAN] = "a plan has at most 65536 accesses, or as many as its pool may have pieces in memory",
    [SPW_LIMIT_PLANS] = "16 other spaces of the pool have a plan (an empty list takes one back)",
    [SPW_LIMIT_DEVICE_LOG] = "a device's log has no room for more objects (format it with a smaller `--object-size`)",
};

const char *spw_limit_text(unsigned limit)
{
    if (limit >= ARRAY_LEN(limit_texts) || !limit_texts[limit])
        return "a limit that this version of the library does not know";
    return limit_texts[limit];
}

const char *spw_error_text(void)
{
    return error_last.text;
}

unsigned spw_error_limit(void)
{
    return error_last.limit;
}

void client_error_set_limit(unsigned limit)
{
    error_last.limit = limit;
}

void client_error_set(unsigned limit, const char *format, ...)
{
    char text[sizeof(error_last.text)];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args); /* aside first: an argument may be the last text */
    va_end(args);
    if (limit != SPW_LIMIT_NONE) {
        size_t len = strlen(text);
        snprintf(text + len, sizeof(text) - len, ": %s", spw_limit_text(limit));
    }
    memcpy(error_last.text, text, sizeof(text));
    error_last.limit = limit;
}
