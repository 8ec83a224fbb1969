/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `spillctl fsck`: what is wrong with a device, and with --repair as much of it put right as can be without guessing.
 *
 * The device is locked as the daemon locks it. What is found is what a start of the daemon would find, since it is the
 * daemon's code that looks, and its writes stay in memory. Repairs come last and only where all partitions could be
 * opened: each is one sector that no reader needs (the copy that is bad), or what a start and a stop of the daemon
 * would write; so dying between any two writes leaves no less than there was.
 */
#include "client/ctl/fsck.h"

#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "include/base/limits.h"

#define PROBLEM_BYTES 256
#define LOCK_LOOK_MS 50

enum { OPT_DATA = 256, OPT_REPAIR, OPT_ENTRIES };

static const struct argp_option rows[] = {
    {"data", OPT_DATA, NULL, 0, "read all pieces, too, and check their sums", 0},
    {"repair", OPT_REPAIR, NULL, 0, "write what was found wrong anew, where that can be done", 0},
    {"entries", OPT_ENTRIES, NULL, 0, "print each entry of the logs", 0},
    {0}};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct fsck *f = state->input;

    switch (key) {
    case OPT_DATA:
        f->data = true;
        return 0;
    case OPT_REPAIR:
        f->repair = true;
        return 0;
    case OPT_ENTRIES:
        f->entries = true;
        return 0;
    case ARGP_KEY_ARG:
        if (f->path)
            argp_error(state, "one device at a time");
        f->path = arg;
        return 0;
    case ARGP_KEY_END:
        if (!f->path)
            argp_error(state, "which file or block device?");
        if (f->entries && f->json)
            argp_error(state, "--entries is for people: not with -o json");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ── the report ─────────────────────────────────────────────────────────────────────────────────────────────────── */

void fsck_number(struct json_object *o, const char *name, uint64_t value)
{
    json_object_object_add(o, name, json_object_new_uint64(value));
}

void fsck_problem(struct fsck *f, int partition, bool is_repairable, const char *format, ...)
{
    struct json_object *o = json_object_new_object();
    char text[PROBLEM_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (partition >= 0)
        fsck_number(o, "partition", (uint64_t)partition);
    json_object_object_add(o, "what", json_object_new_string(text));
    json_object_object_add(o, "repairable", json_object_new_boolean(is_repairable));
    json_object_object_add(o, "repaired", json_object_new_boolean(false));
    json_object_array_add(f->problems, o);
}

static int report_init(struct fsck *f)
{
    f->report = json_object_new_object();
    f->problems = json_object_new_array();
    f->damaged = json_object_new_array();
    if (!f->report || !f->problems || !f->damaged)
        return -ENOMEM;
    json_object_object_add(f->report, "path", json_object_new_string(f->path));
    json_object_object_add(f->report, "partitions", json_object_new_array());
    json_object_object_add(f->report, "damaged", f->damaged);
    json_object_object_add(f->report, "problems", f->problems);
    return 0;
}

static void tell_copies(struct fsck *f)
{
    const struct store_format *format = &f->copies.format;
    struct json_object *supers = json_object_new_array();
    char uuid[33];

    snprintf(uuid, sizeof(uuid), "%016" PRIx64 "%016" PRIx64, format->uuid[0], format->uuid[1]);
    json_object_object_add(f->report, "label", json_object_new_string(format->label));
    json_object_object_add(f->report, "uuid", json_object_new_string(uuid));
    fsck_number(f->report, "version", f->copies.version);
    fsck_number(f->report, "created_s", format->created_s);
    fsck_number(f->report, "size_bytes", format->device_bytes);
    fsck_number(f->report, "segment_bytes", format->segment_bytes);
    fsck_number(f->report, "log_bytes", format->log_bytes);
    for (int i = 0; i < 2; i++)
        json_object_array_add(supers, json_object_new_boolean(f->copies.super_whole[i]));
    json_object_object_add(f->report, "superblocks_whole", supers);
}

/* A partition without any header is told of when it is opened. */
static void judge_copies(struct fsck *f)
{
    static const char *const supers[] = {"the first superblock is damaged", "the copy of the superblock is damaged"};
    static const char *const headers[] = {"the first header is damaged", "the second header is damaged"};

    for (int i = 0; i < 2; i++)
        if (!f->copies.super_whole[i])
            fsck_problem(f, -1, true, "%s", supers[i]);
    for (int k = 0; k < f->copies.format.partitions; k++) {
        const bool *whole = f->copies.partition[k].header_whole;

        if (whole[0] != whole[1])
            fsck_problem(f, k, true, "%s", headers[whole[0]]);
    }
}

/* ── looking and repairing ──────────────────────────────────────────────────────────────────────────────────────── */

static int cannot(const struct fsck *f, const char *why)
{
    fprintf(stderr, "spillctl: %s: %s\n", f->path, why);
    return FSCK_CANNOT;
}

/* Sector by sector, on the device itself: without a repair nothing is written. */
static int with_copies(struct fsck *f, bool repair, const char **ret_why)
{
    struct device_backend be;
    int r = 0;

    device_backend_init(&be, f->device.fd);
    *ret_why = "the copies cannot be written";
    if (repair)
        r = store_copies_repair(&be.backend, 0, f->device.size_bytes, &f->copies);
    if (r == 0)
        r = store_copies_read(&be.backend, 0, f->device.size_bytes, &f->copies, ret_why);
    return r;
}

static bool has_drops(const struct fsck *f, uint16_t partition)
{
    for (size_t i = 0; i < f->n_drops; i++)
        if (f->drops[i].partition == partition)
            return true;
    return false;
}

static bool copies_are_whole(const struct store_copies *c)
{
    bool are_whole = c->super_whole[0] && c->super_whole[1];

    for (uint32_t i = 0; i < c->format.partitions; i++)
        are_whole = are_whole && c->partition[i].header_whole[0] && c->partition[i].header_whole[1];
    return are_whole;
}

static int repair(struct fsck *f, const char **ret_why)
{
    int r = with_copies(f, true, ret_why);

    if (r == 0 && !copies_are_whole(&f->copies)) {
        *ret_why = "a copy was written, and is still damaged";
        r = -EIO;
    }
    for (uint16_t i = 0; i < f->copies.format.partitions && r == 0; i++) {
        *ret_why = "the damaged pieces cannot be dropped";
        if (has_drops(f, i))
            r = fsck_partition_drop(f, i);
    }
    return r;
}

static void repair_and_tell(struct fsck *f)
{
    const char *why;
    int r = repair(f, &why);

    for (size_t i = 0; i < json_object_array_length(f->problems) && r == 0; i++) {
        struct json_object *o = json_object_array_get_idx(f->problems, i);

        if (json_object_get_boolean(ctl_find(o, "repairable")))
            json_object_object_add(o, "repaired", json_object_new_boolean(true));
    }
    if (r < 0)
        fsck_problem(f, -1, false, "repairing failed: %s: %s", why, strerrordesc_np(-r));
}

static int check(struct fsck *f, const char **ret_why)
{
    int r = with_copies(f, false, ret_why);

    if (r == -EUCLEAN || r == -EMEDIUMTYPE) {
        f->n_refused++;
        fsck_problem(f, -1, false, "%s", *ret_why);
        return 0;
    }
    if (r < 0)
        return r;
    tell_copies(f);
    judge_copies(f);
    *ret_why = "out of memory, or it cannot be read";
    for (uint16_t i = 0; i < f->copies.format.partitions && r == 0; i++)
        r = fsck_partition(f, i);
    if (r == 0 && f->repair && f->n_refused == 0 && json_object_array_length(f->problems) > 0)
        repair_and_tell(f);
    return r;
}

static int status_of(const struct fsck *f)
{
    size_t n = json_object_array_length(f->problems), n_repaired = 0;

    for (size_t i = 0; i < n; i++)
        n_repaired += (size_t)json_object_get_boolean(ctl_find(json_object_array_get_idx(f->problems, i), "repaired"));
    if (n == 0)
        return CTL_OK;
    return n_repaired == n ? FSCK_REPAIRED : FSCK_LEFT;
}

static int check_and_print(struct fsck *f)
{
    const char *why;

    if (report_init(f) < 0)
        return cannot(f, "out of memory");
    int r = check(f, &why);
    if (r < 0)
        return cannot(f, why);
    fsck_number(f->report, "status", (uint64_t)status_of(f));
    if (f->json)
        (void)ctl_print_json(f->report);
    else
        fsck_print(f);
    return status_of(f);
}

/* ── who has it ─────────────────────────────────────────────────────────────────────────────────────────────────── */

/* 0: not known. A line of /proc/locks: "1: FLOCK  ADVISORY  WRITE 7311 fd:00:2890 0 EOF". */
static int lock_holder(const char *path)
{
    cleanup_fclose FILE *locks = fopen("/proc/locks", "re");
    unsigned major_number, minor_number;
    unsigned long inode;
    char line[256];
    struct stat st;
    int pid;

    if (!locks || stat(path, &st) < 0)
        return 0;
    while (fgets(line, sizeof(line), locks))
        if (sscanf(line, "%*d: FLOCK %*s %*s %d %x:%x:%lu", &pid, &major_number, &minor_number, &inode) == 4 &&
            inode == st.st_ino && makedev(major_number, minor_number) == st.st_dev)
            return pid;
    return 0;
}

/* The last requests of a daemon that has ended keep its lock for a moment: that is waited for. */
static int open_device(struct fsck *f, const char **ret_why)
{
    uint32_t flags = DEVICE_SPARSE | (f->repair ? 0 : DEVICE_READ_ONLY);
    int r = device_open(f->path, flags, &f->device, ret_why);

    for (int waited_ms = 0; r == -EBUSY && waited_ms < DEVICE_LOCK_WAIT_MS; waited_ms += LOCK_LOOK_MS) {
        int pid = lock_holder(f->path);

        if (pid > 0 && (kill(pid, 0) == 0 || errno == EPERM))
            break;
        usleep(LOCK_LOOK_MS * 1000);
        r = device_open(f->path, flags, &f->device, ret_why);
    }
    return r;
}

static int refuse(const struct fsck *f, int r, const char *why)
{
    int pid = r == -EBUSY ? lock_holder(f->path) : 0;

    if (pid > 0)
        fprintf(stderr, "spillctl: %s: %s: stop process %d first (of the service: systemctl stop spillwayd)\n", f->path,
                why, pid);
    else if (r == -EBUSY)
        fprintf(stderr, "spillctl: %s: %s: stop it first (of the service: systemctl stop spillwayd)\n", f->path, why);
    else
        return cannot(f, why);
    return FSCK_CANNOT;
}

int ctl_fsck(const struct ctl *ctl, int argc, char **argv)
{
    static char name[] = "spillctl fsck";
    const struct argp argp = {.options = rows,
                              .parser = parse_option,
                              .args_doc = "PATH",
                              .doc = "Tells what is wrong with a device that no daemon uses. Nothing is written "
                                     "without --repair."};
    struct fsck f = {.json = ctl->json, .device = DEVICE_NONE};
    const char *why = "";

    argv[0] = name;
    argp_err_exit_status = EX_USAGE;
    (void)argp_parse(&argp, argc, argv, 0, NULL, &f);
    int r = open_device(&f, &why);
    if (r < 0)
        return refuse(&f, r, why);
    int status = check_and_print(&f);
    free(f.drops);
    json_object_put(f.report);
    device_close(&f.device);
    return status;
}
