/* SPDX-License-Identifier: Apache-2.0 */
/* What an admin should know about this machine and this configuration, each with what to do about it. */
#include <stdarg.h>
#include <stdio.h>
#include <sys/resource.h>

#include "daemon/admin.h"
#include "daemon/control.h"
#include "daemon/json.h"
#include "include/base/units.h"
#include "io/memory.h"
#include "io/sandbox.h"

struct doctor {
    struct json_object *checks;
    unsigned n_bad;
};

static void say(struct doctor *doctor, const char *name, bool ok, const char *advice, const char *fmt, ...)
    printf_like(5, 6);

static void say(struct doctor *doctor, const char *name, bool ok, const char *advice, const char *fmt, ...)
{
    struct json_object *check = json_add_object(doctor->checks);
    char text[256];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    json_put_text(check, "check", name);
    json_put_bool(check, "ok", ok);
    json_put_text(check, "text", text);
    json_put_text(check, "advice", ok ? NULL : advice);
    doctor->n_bad += !ok;
}

/* An engine that was refused memory goes on, and wants no more than it has. */
static void check_memory(struct doctor *doctor, const struct engine_report *r)
{
    char have[UNITS_TEXT_BYTES], want[UNITS_TEXT_BYTES], missing[UNITS_TEXT_BYTES + 64] = "";
    uint64_t want_bytes = 0;

    for (uint32_t i = 0; i < r->n_pools; i++) /* taken by whole MiB */
        want_bytes += r->pools[i].dram_budget / MIB * MIB + r->pools[i].cxl_budget / MIB * MIB;
    if (r->missing_bytes > 0)
        snprintf(missing, sizeof(missing), "; the machine has refused %s, and is asked again",
                 size_print(r->missing_bytes, want));
    say(doctor, "memory", r->is_ready && r->missing_bytes == 0,
        "lower `size` of [tier.dram] or [tier.cxl], or free memory (MemAvailable, or that of its node)",
        "engine %u has %s of %s%s", r->call.engine->config.number, size_print(r->have_bytes, have),
        size_print(want_bytes, want), missing);
    say(doctor, "memlock", !r->caps.degraded_memlock, "raise `ulimit -l` or LimitMEMLOCK=", "engine %u: memory is %s",
        r->call.engine->config.number,
        r->caps.degraded_memlock ? "not locked: I/O is slower, and pages can be swapped out" : "locked and registered");
    say(doctor, "io_uring", r->caps.mode == URING_MODE_DEFER && !r->caps.note, "a newer kernel serves better",
        "engine %u: %s", r->call.engine->config.number, r->caps.note ? r->caps.note : "all that it uses is there");
    say(doctor, "io_uring_restricted", r->caps.restricted, "use Linux 5.10 or later", "engine %u: the ring %s",
        r->call.engine->config.number,
        r->caps.restricted ? "does what the engine needs, and nothing else" : "can do all that io_uring can");
}

static void check_stores(struct doctor *doctor, const struct control *control, const struct engine_report *r)
{
    for (uint32_t i = 0; i < r->n_stores; i++) {
        const struct store_stat *s = &r->stores[i];
        const char *name = control->config->devices[r->store_at[i].device].section.name;

        say(doctor, "device", s->failed == 0, "its bytes can still be read: copy what matters, then replace it",
            "%s, partition %u: %s", name, r->store_at[i].partition,
            s->failed ? "a write or flush failed; it takes no more" : "works");
        say(doctor, "checksums", s->checksum_errors == 0, "look at the drive's health (nvme smart-log)",
            "%s, partition %u: %llu wrong checksums", name, r->store_at[i].partition,
            (unsigned long long)s->checksum_errors);
        say(doctor, "device_log", s->log_live_bytes * 10 < s->log_bytes * 9,
            "format it with a larger log, or keep larger objects",
            "%s, partition %u: %llu %% of its log are live entries", name, r->store_at[i].partition,
            (unsigned long long)(s->log_bytes ? s->log_live_bytes * 100 / s->log_bytes : 0));
    }
}

static void check_sandbox(struct doctor *doctor, const struct control *control)
{
    struct sandbox_stat stat;

    sandbox_stat(&stat);
    say(doctor, "user", control->uid != 0 || control->user_mode, "name a `user` in [daemon], or start it by its unit",
        "it runs as uid %u", control->uid);
    say(doctor, "seccomp", stat.mode == SANDBOX_ON && stat.error == 0,
        "set `seccomp = on` in [daemon]; if it is, the kernel lacks CONFIG_SECCOMP_FILTER",
        "%u threads have a filter of system calls%s", stat.threads,
        stat.mode == SANDBOX_LOG ? ", which lets them all pass" : "");
    say(doctor, "system_calls", stat.refused == 0, "this is an attack or a bug: look at the log, and report it",
        "%llu were not in a thread's list%s%s%s%s", (unsigned long long)stat.refused,
        stat.call ? ", the last one " : "", stat.call ? stat.call : "", stat.call ? " by " : "",
        stat.call ? stat.where : "");
}

static void check_process(struct doctor *doctor, const struct control *control)
{
    struct rlimit files = {0};
    uint64_t wanted = control->config->daemon.max_sessions * UINT64_C(5);

    (void)getrlimit(RLIMIT_NOFILE, &files);
    say(doctor, "descriptors", files.rlim_cur >= wanted, "raise `ulimit -n` or LimitNOFILE=, or lower max_sessions",
        "%llu descriptors; %u sessions with a ring each take %llu", (unsigned long long)files.rlim_cur,
        control->config->daemon.max_sessions, (unsigned long long)wanted);
    say(doctor, "sessions", control->n_sessions * 10 < control->config->daemon.max_sessions * 9,
        "raise max_sessions in [daemon]", "%u of %u connections", control->n_sessions,
        control->config->daemon.max_sessions);
}

struct json_object *admin_doctor(const struct control *control, const struct admin_reports *reports)
{
    struct json_object *o = json_begin();
    struct doctor doctor = {.checks = json_put_array(o, "checks")};

    check_process(&doctor, control);
    check_sandbox(&doctor, control);
    for (uint32_t i = 0; i < reports->n; i++) {
        check_memory(&doctor, reports->at[i]);
        check_stores(&doctor, control, reports->at[i]);
    }
    json_put_u64(o, "problems", doctor.n_bad);
    return o;
}
