/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `spillctl device format`: makes a file or block device ready for spillwayd.
 *
 * Careful in this order: open and lock (a daemon's device is refused, a mounted one too), look at what is there (a
 * Spillway device or anything else that is not zeros is refused without --force), fill, and write the superblocks last,
 * so that what was interrupted is not a device. A file that this run created is removed if it fails.
 */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#include "client/ctl/ctl.h"
#include "client/ctl/device_backend.h"
#include "client/ctl/device_look.h"
#include "include/base/units.h"
#include "io/device.h"
#include "io/memory.h"
#include "io/store.h"

#define SEGMENT_BYTES_DEFAULT (4 * MIB)
#define PROGRESS_PLAIN_NS UINT64_C(2000000000)
#define PROGRESS_TERMINAL_NS UINT64_C(200000000)

struct format_options {
    const char *path, *label;
    uint64_t capacity_bytes; /* 0: of what is there */
    uint64_t segment_bytes;
    uint64_t object_bytes; /* 0: the default */
    uint32_t partitions;
    bool force;
    bool sparse;
};

struct progress {
    uint64_t start_ns, last_ns;
    bool is_terminal;
    bool line_open;
};

/* ── options ────────────────────────────────────────────────────────────────────────────────────────────────────── */

enum { OPT_CAPACITY = 256, OPT_SEGMENT, OPT_OBJECT, OPT_PARTITIONS, OPT_LABEL, OPT_FORCE, OPT_SPARSE };

static const struct argp_option rows[] = {
    {"capacity", OPT_CAPACITY, "SIZE", 0, "of the file to create, or to grow to", 0},
    {"segment", OPT_SEGMENT, "SIZE", 0, "unit of writing and reclaim, 1 to 16 MiB (4 MiB)", 0},
    {"object-size", OPT_OBJECT, "SIZE", 0, "mean size of what it will hold, for which the log is made (64 KiB)", 0},
    {"partitions", OPT_PARTITIONS, "N", 0, "parts, one for each engine of the daemon (one a NUMA node with CPUs)", 0},
    {"label", OPT_LABEL, "TEXT", 0, "to tell devices apart", 0},
    {"sparse", OPT_SPARSE, NULL, 0, "a file takes space as it is used (its [device] needs sparse = yes)", 0},
    {"force", OPT_FORCE, NULL, 0, "even if there is something on it: its contents are lost", 0},
    {0}};

static uint64_t parse_size(const char *text, const struct argp_state *state)
{
    uint64_t bytes = 0;
    int r = size_parse(text, &bytes);

    if (r == -EDOM)
        argp_error(state, "'%s': sizes end in B, KiB, MiB, GiB or TiB", text);
    else if (r < 0)
        argp_error(state, "'%s' is no size", text);
    return bytes;
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct format_options *o = state->input;
    char *end;

    switch (key) {
    case OPT_CAPACITY:
        o->capacity_bytes = parse_size(arg, state);
        return 0;
    case OPT_SEGMENT:
        o->segment_bytes = parse_size(arg, state);
        if (!is_pow2(o->segment_bytes) || o->segment_bytes < SEGMENT_BYTES_MIN || o->segment_bytes > SEGMENT_BYTES_MAX)
            argp_error(state, "a segment has 1, 2, 4, 8 or 16 MiB");
        return 0;
    case OPT_OBJECT:
        o->object_bytes = parse_size(arg, state);
        if (o->object_bytes < SECTOR_BYTES || o->object_bytes > PIECE_BYTES_MAX)
            argp_error(state, "objects have 4 KiB to 8 MiB; larger ones are kept in pieces");
        return 0;
    case OPT_PARTITIONS:
        o->partitions = (uint32_t)strtoul(arg, &end, 10);
        if (*end || o->partitions < 1 || o->partitions > PARTITIONS_MAX)
            argp_error(state, "'%s': there can be 1 to %d partitions", arg, PARTITIONS_MAX);
        return 0;
    case OPT_LABEL:
        if (strlen(arg) > NAME_BYTES_MAX)
            argp_error(state, "a label has at most %d characters", NAME_BYTES_MAX);
        o->label = arg;
        return 0;
    case OPT_FORCE:
        o->force = true;
        return 0;
    case OPT_SPARSE:
        o->sparse = true;
        return 0;
    case ARGP_KEY_ARG:
        if (o->path)
            argp_error(state, "one device at a time");
        o->path = arg;
        return 0;
    case ARGP_KEY_END:
        if (!o->path)
            argp_error(state, "which file or block device?");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ── progress ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static volatile sig_atomic_t interrupted;

static void on_signal(int signal)
{
    (void)signal;
    interrupted = 1;
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* Nothing at all if it takes less than two seconds where nobody watches. */
static bool show_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
    struct progress *p = ctx;
    char done[UNITS_TEXT_BYTES], total[UNITS_TEXT_BYTES];
    uint64_t now = now_ns();

    if (now - p->last_ns < (p->is_terminal ? PROGRESS_TERMINAL_NS : PROGRESS_PLAIN_NS))
        return !interrupted;
    double seconds = (double)(now - p->start_ns) * 1e-9, rate = (double)done_bytes / seconds;
    double left_s = rate > 0 ? (double)(total_bytes - done_bytes) / rate : 0;
    fprintf(stderr, "%s%s of %s written, %.0f MiB/s, %.0f s left%s", p->is_terminal ? "\r\033[K" : "",
            size_print(done_bytes, done), size_print(total_bytes, total), rate / (double)MIB, left_s,
            p->is_terminal ? "" : "\n");
    fflush(stderr);
    p->line_open = p->is_terminal;
    p->last_ns = now;
    return !interrupted;
}

static int fill(int fd, uint64_t size_bytes)
{
    struct sigaction sa = {.sa_handler = on_signal};
    struct progress p = {.start_ns = now_ns(), .last_ns = now_ns(), .is_terminal = isatty(STDERR_FILENO) == 1};

    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    int r = device_fill(fd, size_bytes, show_progress, &p);
    if (p.line_open)
        fputs("\r\033[K", stderr);
    return r;
}

static int refuse(const char *path, const char *why, int status)
{
    fprintf(stderr, "spillctl: %s: %s\n", path, why);
    return status;
}

/* ── making it ──────────────────────────────────────────────────────────────────────────────────────────────────── */

/* A file of root's in a folder of the daemon's user could not be opened by the daemon. */
static void give_to_folder_owner(const char *path, int fd)
{
    char folder[PATH_MAX];
    struct stat st;

    if (geteuid() != 0 || snprintf(folder, sizeof(folder), "%s", path) >= (int)sizeof(folder))
        return;
    char *slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder] = '\0';
    if (stat(slash ? folder : ".", &st) == 0 && st.st_uid != 0 && fchown(fd, st.st_uid, st.st_gid) == 0)
        fprintf(stderr, "%s: given to user %u, who owns the folder\n", path, st.st_uid);
}

static int grow(const struct format_options *o, struct device *device)
{
    if (device->is_block && o->capacity_bytes && o->capacity_bytes != device->size_bytes)
        return refuse(o->path,
                      "a block device is formatted as a whole; to use less of it, set capacity in its "
                      "[device] section",
                      EX_USAGE);
    if (device->is_block || o->capacity_bytes == 0 || o->capacity_bytes == device->size_bytes)
        return CTL_OK;
    if (ftruncate(device->fd, (off_t)o->capacity_bytes) < 0)
        return refuse(o->path, strerror(errno), CTL_FAILED);
    int error = o->sparse ? 0 : posix_fallocate(device->fd, 0, (off_t)o->capacity_bytes);
    if (error)
        return refuse(o->path, strerror(error), CTL_FAILED);
    device->size_bytes = o->capacity_bytes;
    return CTL_OK;
}

static int open_or_create(const struct format_options *o, struct device *ret_device, bool *ret_created)
{
    const char *why = "";
    struct stat st;
    int r;

    if (stat(o->path, &st) < 0 && errno == ENOENT) {
        if (o->capacity_bytes == 0)
            return refuse(o->path, "there is no such file: tell with --capacity how large to make it", EX_USAGE);
        r = device_create(o->path, o->capacity_bytes, o->sparse ? DEVICE_SPARSE : 0, ret_device, &why);
        *ret_created = r == 0;
        if (r == 0)
            give_to_folder_owner(o->path, ret_device->fd);
    } else {
        r = device_open(o->path, DEVICE_SPARSE, ret_device, &why);
        if (r == -ENOSPC && o->capacity_bytes > 0) /* an empty file, to be grown */
            return refuse(o->path, "the file is empty: remove it first", CTL_FAILED);
        *ret_created = false;
    }
    if (r == -EACCES || r == -EPERM)
        return refuse(o->path, strerror(-r), EX_NOPERM);
    return r < 0 ? refuse(o->path, why, CTL_FAILED) : CTL_OK;
}

static uint32_t partitions_default(void)
{
    cleanup_free struct memory_nodes *nodes = calloc(1, sizeof(*nodes));
    uint32_t n = 0;

    if (nodes && memory_nodes_read(nodes) == 0)
        for (uint32_t i = 0; i < nodes->n; i++)
            n += nodes->node[i].has_cpus;
    return n < 1 ? 1 : MIN(n, (uint32_t)PARTITIONS_MAX);
}

static int write_format(const struct format_options *o, const struct device *device, struct store_format *ret_format)
{
    struct store_format format = {
        .device_bytes = device->size_bytes,
        .segment_bytes = (uint32_t)o->segment_bytes,
        .partitions = (uint16_t)o->partitions,
        .created_s = (uint64_t)time(NULL),
    };
    struct device_backend be;

    format.log_bytes = store_log_bytes(&format, o->object_bytes);
    if (o->label)
        snprintf(format.label, sizeof(format.label), "%s", o->label);
    if (getrandom(format.uuid, sizeof(format.uuid), 0) != sizeof(format.uuid))
        return -EIO;
    device_backend_init(&be, device->fd);
    int r = store_format_write(&be.backend, 0, &format);
    if (r == 0)
        *ret_format = format;
    return r;
}

static int print_json(const char *path, const struct store_format *format)
{
    cleanup_json struct json_object *o = json_object_new_object();
    char uuid[33];

    snprintf(uuid, sizeof(uuid), "%016llx%016llx", (unsigned long long)format->uuid[0],
             (unsigned long long)format->uuid[1]);
    if (!o)
        return CTL_FAILED;
    json_object_object_add(o, "path", json_object_new_string(path));
    json_object_object_add(o, "label", json_object_new_string(format->label));
    json_object_object_add(o, "uuid", json_object_new_string(uuid));
    json_object_object_add(o, "size_bytes", json_object_new_uint64(format->device_bytes));
    json_object_object_add(o, "segment_bytes", json_object_new_uint64(format->segment_bytes));
    json_object_object_add(o, "log_bytes", json_object_new_uint64(format->log_bytes));
    json_object_object_add(o, "partitions", json_object_new_uint64(format->partitions));
    return ctl_print_json(o);
}

static int print_text(const char *path, const struct store_format *format)
{
    char size[UNITS_TEXT_BYTES], segment[UNITS_TEXT_BYTES], log[UNITS_TEXT_BYTES];

    printf("%s: formatted, %s in %u partition%s, segments of %s, %s of log%s\n", path,
           size_print(format->device_bytes, size), format->partitions, format->partitions == 1 ? "" : "s",
           size_print(format->segment_bytes, segment), size_print(format->log_bytes, log),
           format->partitions == 1 ? "" : " each");
    return CTL_OK;
}

static int format_device(const struct format_options *o, struct device *device, bool created, bool json)
{
    struct store_format format = {0};
    char why[256];

    int r = created || o->force ? 0 : device_look(device, why, sizeof(why));
    if (r < 0)
        return refuse(o->path, why, CTL_FAILED);
    int status = grow(o, device);
    if (status != CTL_OK)
        return status;
    r = device->is_block || o->sparse ? 0 : fill(device->fd, device->size_bytes);
    if (r == 0)
        r = write_format(o, device, &format);
    if (r == -EINVAL)
        return refuse(o->path, "too small for so many partitions, so large segments, and so large a log", CTL_FAILED);
    if (r < 0)
        return refuse(o->path, r == -ECANCELED ? "interrupted" : strerror(-r), CTL_FAILED);
    return json ? print_json(o->path, &format) : print_text(o->path, &format);
}

int ctl_device_format(const struct ctl *ctl, int argc, char **argv)
{
    static char name[] = "spillctl device format";
    const struct argp argp = {.options = rows,
                              .parser = parse_option,
                              .args_doc = "PATH",
                              .doc = "Makes a file or a block device ready for spillwayd."};
    struct format_options o = {.segment_bytes = SEGMENT_BYTES_DEFAULT};
    struct device device = DEVICE_NONE;
    bool created = false;

    argv[0] = name;
    argp_err_exit_status = EX_USAGE;
    (void)argp_parse(&argp, argc, argv, 0, NULL, &o);
    if (o.partitions == 0)
        o.partitions = partitions_default();
    o.capacity_bytes = o.capacity_bytes / SECTOR_BYTES * SECTOR_BYTES;
    int status = open_or_create(&o, &device, &created);
    if (status != CTL_OK)
        return status;
    status = format_device(&o, &device, created, ctl->json);
    if (status != CTL_OK && created)
        (void)unlink(o.path);
    device_close(&device);
    return status;
}
