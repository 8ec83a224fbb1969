/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands of spillctl, and what they share.
 */
#pragma once

#include <json-c/json.h>
#include <sysexits.h>

#include "include/base/base.h"
#include "include/base/cleanup.h"
#include "include/spillway/spillway.h"

/* Status of the process: 0 done; 1 failed, the reason was said; EX_USAGE (64); EX_UNAVAILABLE (69) no daemon;
 * EX_NOPERM (77) this user may not. `fsck` has its own. docs/man/spillctl.1.scd says the same. */
#define CTL_OK 0
#define CTL_FAILED 1

struct ctl {
    const char *socket_path; /* NULL: as every client finds it */
    bool json;
};

/* Each takes the words after its name. */
int ctl_show(const struct ctl *ctl, int argc, char **argv); /* argv[0]: status, pools, tiers, sessions, config */
int ctl_device(const struct ctl *ctl, int argc, char **argv);
int ctl_device_format(const struct ctl *ctl, int argc, char **argv);
int ctl_iostat(const struct ctl *ctl, int argc, char **argv);
int ctl_inject(const struct ctl *ctl, int argc, char **argv);
int ctl_fsck(const struct ctl *ctl, int argc, char **argv); /* its status is its own, see fsck.h */
int ctl_doctor(const struct ctl *ctl, int argc, char **argv);

/* ── asking the daemon (ask.c) ──────────────────────────────────────────────────────────────────────────────────── */

static inline void json_p(struct json_object **o)
{
    json_object_put(*o);
}
#define cleanup_json cleanup_(json_p)

static inline void session_p(spw_session **session)
{
    spw_close(*session);
}
#define cleanup_session cleanup_(session_p)

/* Both say what went wrong, and return a status of the process. */
must_check int ctl_connect(const struct ctl *ctl, spw_session **ret_session);
must_check int ctl_ask(spw_session *session, const char *what, struct json_object **ret_reply);
/* The same with a request of one's own. */
must_check int ctl_request(spw_session *session, const char *request, struct json_object **ret_reply);
/* Connect and ask. */
must_check int ctl_get(const struct ctl *ctl, const char *what, struct json_object **ret_reply);
/* As it came, indented. */
int ctl_print_json(struct json_object *reply);

/* What stands at a path such as "dram.used_bytes"; NULL if nothing does. Borrowed. */
struct json_object *ctl_find(struct json_object *from, const char *path);
double ctl_number(struct json_object *from, const char *path);    /* 0 if there is none */
const char *ctl_text(struct json_object *from, const char *path); /* "" if there is none */
