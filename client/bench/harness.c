/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the private daemon: one child process, one folder. The child is in a process group of its own (Ctrl-C is for us:
 * we stop it in order), and dies with us if we are killed. Its output goes to a log file, whose end is shown when
 * something goes wrong. One thread.
 */
#include "client/bench/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <time.h>

#include "client/bench/bench.h"
#include "client/bench/child.h"
#include "client/bench/live.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"
#include "include/base/units.h"

#define READY_SECONDS 120
#define READY_POLL_NS 5000000L
#define STOP_SECONDS 60
#define STOP_POLL_NS 5000000L
#define LOG_TAIL_LINES 30
#define TMPFS_MAGIC_NUMBER 0x01021994

static const char *const folder_files[] = {"config", "spillwayd.log", "disk0.spill", "disk1.spill", "spillwayd.sock"};

/* ── paths ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

static const char *path_in(const struct harness *h, const char *name, char ret_path[static PATH_MAX])
{
    snprintf(ret_path, PATH_MAX, "%s/%s", h->folder, name);
    return ret_path;
}

const char *harness_program(const char *name, char ret_path[static PATH_MAX])
{
    ssize_t n = readlink("/proc/self/exe", ret_path, PATH_MAX - 1);

    if (n > 0) {
        ret_path[n] = '\0';
        char *slash = strrchr(ret_path, '/');
        if (slash && (size_t)(slash + 1 - ret_path) + strlen(name) < PATH_MAX) {
            memcpy(slash + 1, name, strlen(name) + 1);
            if (access(ret_path, X_OK) == 0)
                return ret_path;
        }
    }
    snprintf(ret_path, PATH_MAX, "%s", name);
    return ret_path;
}

/* A device file in memory would measure nothing, so /var/tmp goes before a /tmp that is a tmpfs. */
const char *harness_temporary(void)
{
    const char *chosen = getenv("TMPDIR");
    struct statfs fs;

    if (chosen && *chosen)
        return chosen;
    return statfs("/tmp", &fs) == 0 && fs.f_type != TMPFS_MAGIC_NUMBER ? "/tmp" : "/var/tmp";
}

int harness_room(uint64_t *ret_bytes)
{
    struct statfs fs;

    if (statfs(harness_temporary(), &fs) < 0) {
        int r = -errno;
        fprintf(stderr, "spillbench: %s: %s\n", harness_temporary(), strerror(-r));
        return r;
    }
    *ret_bytes = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
    return 0;
}

uint64_t harness_device_bytes(uint64_t blocks_bytes)
{
    return round_up(blocks_bytes + blocks_bytes / 4 + 512 * MIB, 64 * MIB);
}

static int folder_make(struct harness *h)
{
    int len = snprintf(h->folder, sizeof(h->folder), "%s/spillbench-XXXXXX", harness_temporary());

    if (len >= (int)sizeof(h->folder)) {
        h->folder[0] = '\0';
        fprintf(stderr, "spillbench: TMPDIR is too long a path for a socket: %s\n", harness_temporary());
        return -ENAMETOOLONG;
    }
    if (!mkdtemp(h->folder)) {
        int r = -errno;
        fprintf(stderr, "spillbench: %s: %s\n", h->folder, strerror(-r));
        h->folder[0] = '\0';
        return r;
    }
    snprintf(h->socket_path, sizeof(h->socket_path), "%s/spillwayd.sock", h->folder);
    return 0;
}

/* ── the child ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static void log_show(struct harness *h)
{
    char path[PATH_MAX], *lines[LOG_TAIL_LINES] = {NULL}, *line = NULL;
    size_t line_bytes = 0, n = 0;
    cleanup_fclose FILE *f = fopen(path_in(h, "spillwayd.log", path), "re");

    h->keep_log = true;
    while (f && getline(&line, &line_bytes, f) >= 0) {
        free(lines[n % LOG_TAIL_LINES]);
        lines[n++ % LOG_TAIL_LINES] = strdup(line);
    }
    free(line);
    fprintf(stderr, "spillbench: the end of the daemon's log (%s):\n", path);
    for (size_t i = n > LOG_TAIL_LINES ? n - LOG_TAIL_LINES : 0; i < n; i++)
        fprintf(stderr, "  %s", lines[i % LOG_TAIL_LINES] ? lines[i % LOG_TAIL_LINES] : "\n");
    for (size_t i = 0; i < LOG_TAIL_LINES; i++)
        free(lines[i]);
}

/* ── starting ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static const char *device_path(const struct harness *h, const struct harness_options *o, uint32_t i,
                               char ret_path[static PATH_MAX])
{
    return o->device_paths[i] ? o->device_paths[i] : path_in(h, i == 0 ? "disk0.spill" : "disk1.spill", ret_path);
}

static int device_format(const struct harness *h, const char *path, uint64_t object_bytes)
{
    char program[PATH_MAX], capacity[32], object[32];
    const char *argv[] = {harness_program("spillctl", program),
                          "device",
                          "format",
                          path,
                          "--force",
                          "--capacity",
                          capacity,
                          "--partitions",
                          "1",
                          "--label",
                          "spillbench",
                          object_bytes ? "--object-size" : NULL,
                          object,
                          NULL};
    int status;

    snprintf(object, sizeof(object), "%llu", (unsigned long long)object_bytes);
    snprintf(capacity, sizeof(capacity), "%llu", (unsigned long long)h->device_bytes);
    pid_t pid = child_spawn(argv, -1);
    if (pid < 0)
        return pid;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -errno;
    if (status != 0) {
        char text[CHILD_STATUS_BYTES];
        fprintf(stderr, "spillbench: spillctl device format %s\n", child_status_print(status, text));
        return -EIO;
    }
    return 0;
}

static int config_write(const struct harness *h, const struct harness_options *o)
{
    char path[PATH_MAX];
    cleanup_fclose FILE *f = fopen(path_in(h, "config", path), "we");

    if (!f)
        return -errno;
    fprintf(f, "[daemon]\nsocket = %s\nengines = 1\n%s\n", h->socket_path, o->daemon_lines ? o->daemon_lines : "");
    fprintf(f, "[tier.dram]\nsize = %llu B\n\n", (unsigned long long)o->dram_bytes);
    for (uint32_t i = 0; i < h->n_devices; i++)
        fprintf(f, "[device disk%u]\npath = %s\n\n", i, device_path(h, o, i, path));
    if (o->policy)
        fprintf(f, "[class kv]\npolicy = %s\n\n", o->policy);
    fputs(o->pools ? o->pools : "[pool bench]\n", f);
    return fflush(f) == 0 ? 0 : -EIO;
}

static int daemon_start(struct harness *h)
{
    char program[PATH_MAX], config[PATH_MAX], log[PATH_MAX];
    const char *argv[] = {harness_program("spillwayd", program),
                          "--user",
                          "--config",
                          path_in(h, "config", config),
                          "--socket",
                          h->socket_path,
                          NULL};
    cleanup_close int fd = open(path_in(h, "spillwayd.log", log), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    if (fd < 0)
        return -errno;
    pid_t pid = child_spawn(argv, fd);
    if (pid < 0)
        return pid;
    h->pid = pid;
    return 0;
}

static int daemon_wait_ready(struct harness *h)
{
    struct live live;
    uint64_t start_ns = now_ns();
    int status;

    live_init(&live, h->quiet);
    for (;;) {
        spw_session *session;

        if (spw_connect(&(struct spw_connect_options){.socket_path = h->socket_path, .name = "spillbench"}, &session) ==
            0) {
            spw_close(session);
            live_end(&live);
            return 0;
        }
        if (child_ended(h->pid, &status)) {
            char text[CHILD_STATUS_BYTES];
            live_end(&live);
            fprintf(stderr, "spillbench: spillwayd %s while starting\n", child_status_print(status, text));
            h->pid = 0;
            return -ECHILD;
        }
        if (live_interrupted())
            return -EINTR;
        if (seconds_since(start_ns) > READY_SECONDS) {
            live_end(&live);
            fprintf(stderr, "spillbench: spillwayd is not ready after %d s: %s\n", READY_SECONDS, spw_error_text());
            return -ETIMEDOUT;
        }
        if (live_due(&live))
            live_print(&live, "waiting for spillwayd: %.0f s", seconds_since(start_ns));
        nanosleep(&(struct timespec){.tv_nsec = READY_POLL_NS}, NULL);
    }
}

int harness_again(struct harness *h)
{
    int r = daemon_start(h);

    if (r < 0) {
        fprintf(stderr, "spillbench: cannot start a daemon in %s: %s\n", h->folder, strerror(-r));
        return r;
    }
    r = daemon_wait_ready(h);
    if (r < 0 && r != -EINTR)
        log_show(h);
    return r;
}

int harness_start(const struct harness_options *options, struct harness *ret_harness)
{
    cleanup_(harness_deinit) struct harness h = HARNESS_NONE;
    char path[PATH_MAX];

    h.keep = options->keep;
    h.quiet = options->quiet;
    h.dram_bytes = options->dram_bytes;
    h.device_bytes = options->device_bytes;
    h.n_devices = options->n_devices || !options->device_bytes ? options->n_devices : 1;
    assert(h.n_devices <= HARNESS_DEVICES_MAX);
    int r = folder_make(&h);
    if (r < 0)
        return r;
    for (uint32_t i = 0; r == 0 && i < h.n_devices && !options->is_formatted; i++)
        r = device_format(&h, device_path(&h, options, i, path), options->object_bytes);
    if (r == 0)
        r = config_write(&h, options);
    if (r < 0) {
        fprintf(stderr, "spillbench: cannot make a device or a config in %s: %s\n", h.folder, strerror(-r));
        return r;
    }
    r = harness_again(&h);
    if (r < 0)
        return r;
    if (options->any_user && (chmod(h.folder, 0711) < 0 || chmod(h.socket_path, 0666) < 0))
        return -errno;
    if (h.keep)
        fprintf(stderr, "spillbench: the daemon's folder is %s\n", h.folder);
    *ret_harness = h;
    h = HARNESS_NONE;
    return 0;
}

int harness_connect(const struct harness *harness, const char *name, spw_session **ret_session)
{
    int r = spw_connect(&(struct spw_connect_options){.socket_path = harness->socket_path, .name = name}, ret_session);

    if (r < 0)
        fprintf(stderr, "spillbench: cannot connect to %s: %s\n", harness->socket_path, spw_error_text());
    return r;
}

/* ── ending ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Returns false if it had to be killed. */
static bool daemon_end(struct harness *h, int *ret_status)
{
    uint64_t start_ns = now_ns();

    kill(h->pid, SIGTERM);
    while (!child_ended(h->pid, ret_status)) {
        if (seconds_since(start_ns) > STOP_SECONDS) {
            kill(h->pid, SIGKILL);
            (void)waitpid(h->pid, ret_status, 0);
            h->pid = 0;
            return false;
        }
        nanosleep(&(struct timespec){.tv_nsec = STOP_POLL_NS}, NULL);
    }
    h->pid = 0;
    return true;
}

void harness_kill(struct harness *harness)
{
    int status;

    kill(harness->pid, SIGKILL);
    (void)waitpid(harness->pid, &status, 0);
    harness->pid = 0;
}

int harness_stop(struct harness *harness)
{
    char text[CHILD_STATUS_BYTES];
    int status = 0;

    if (harness->pid == 0)
        return 0;
    if (child_ended(harness->pid, &status)) {
        fprintf(stderr, "spillbench: spillwayd %s in the middle of the run\n", child_status_print(status, text));
        harness->pid = 0;
    } else if (!daemon_end(harness, &status)) {
        fprintf(stderr, "spillbench: spillwayd did not stop within %d s of SIGTERM, and was killed\n", STOP_SECONDS);
    } else if (status == 0) {
        return 0;
    } else {
        fprintf(stderr, "spillbench: spillwayd %s on SIGTERM\n", child_status_print(status, text));
    }
    log_show(harness);
    return -ECHILD;
}

int harness_finish(struct harness *harness, int status)
{
    int r = harness_stop(harness);

    if (status != BENCH_OK && r == 0 && !live_interrupted())
        log_show(harness);
    return status == BENCH_OK && r < 0 ? BENCH_WRONG : status;
}

void harness_deinit(struct harness *harness)
{
    char path[PATH_MAX];
    int status;

    if (harness->pid != 0)
        (void)daemon_end(harness, &status);
    if (harness->folder[0] == '\0' || harness->keep)
        return;
    for (size_t i = 0; i < ARRAY_LEN(folder_files); i++)
        if (!harness->keep_log || i > 1)
            (void)unlink(path_in(harness, folder_files[i], path));
    /* What else the daemon left there, it should not have; a folder that stays behind shows it. */
    if (rmdir(harness->folder) < 0 && !harness->keep_log)
        fprintf(stderr, "spillbench: %s could not be removed: %s\n", harness->folder, strerror(errno));
}
