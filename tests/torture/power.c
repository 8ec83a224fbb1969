/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `spilltorture power`: a real daemon works on a device that remembers (fuse.c) until it is ended, by SIGKILL or in good
 * order; then every prefix of what it wrote that the flushes allow is opened and checked against what clients had been
 * told by then, and with it samples of what else a loss of power may leave.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "tests/torture/power.h"

#define LOAD_MS 1500
#define LOG_BYTES_MAX (400 * MIB)
#define SKIPPED 77

/* The first state: what was formatted. */
static void look_at_format(struct look *l, const struct t_place *p, int image)
{
    char *bytes = malloc(MIB);

    for (uint64_t at = 0; at < p->disk_bytes; at += MIB) {
        if (pread(image, bytes, MIB, (off_t)at) != (ssize_t)MIB)
            torture_fail("the device: %s", strerror(errno));
        look_write(l, at, bytes, MIB, true);
    }
    free(bytes);
}

static void run_load(struct t_place *p, const struct p_log *log, bool cleanly)
{
    int64_t end = now_ms() + LOAD_MS;
    pid_t pids[T_CLIENTS];
    int status;

    place_start_daemon(p, NULL);
    if (!place_wait_ready(p))
        torture_fail("the daemon does not start: see %s", p->log);
    clients_start(p, pids, p->oracle->seed);
    while (now_ms() < end && load_acquire(&log->data_bytes) < LOG_BYTES_MAX && place_daemon_lives(p, &status))
        pause_ms(1);
    clients_end(p, pids, cleanly);
    if (!cleanly)
        place_kill_daemon(p);
    else if (place_stop_daemon(p) != 0)
        torture_fail("the daemon does not stop cleanly: see %s", p->log);
}

static uint32_t count_flushes(const struct p_log *log)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < log->n; i++)
        n += log->at[i].type == P_FLUSH;
    return n;
}

/* 0, or SKIPPED. */
static int power_run(const struct t_options *options, uint64_t seed, struct p_counts *ret_counts)
{
    char image_path[T_PATH_BYTES + 16], data_path[T_PATH_BYTES + 16];
    struct p_device device = {0};
    struct t_place p = {.disk_bytes = P_DISK_BYTES, .one_engine = true};
    struct p_log *log = mmap(NULL, sizeof(*log), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (log == MAP_FAILED)
        torture_fail("no memory");
    place_open(&p, options->dir, seed, false);
    snprintf(image_path, sizeof(image_path), "%s", p.disk);
    snprintf(data_path, sizeof(data_path), "%s/writes", p.dir);
    snprintf(p.disk, sizeof(p.disk), "%s/device", p.dir);
    place_configure(&p, DRAM_PERCENT);
    int image = open(image_path, O_RDWR | O_CLOEXEC),
        data = open(data_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int r = device_mount(&device, p.disk, image, log, data, p.oracle);

    if (r < 0) {
        printf("SKIP: no FUSE file system can be mounted here: %s\n", strerror(-r));
        place_remove(&p);
        return SKIPPED;
    }
    place_give(&p);
    struct look *l = look_new(&p);

    look_at_format(l, &p, image);
    pid_t pid = fork(); /* another user, for as long as the daemon lives */

    if (pid == 0) {
        place_drop_root();
        run_load(&p, log, seed % 2 == 0);
        (void)fflush(NULL);
        _exit(EXIT_SUCCESS); /* what its parent has is not its to free */
    }
    if (!child_succeeds(pid))
        exit(EXIT_FAILURE);
    device_unmount(&device);
    printf("seed %llu: %u writes and flushes, %u of them flushes, %llu MiB; ended %s\n", (unsigned long long)seed,
           log->n, count_flushes(log), (unsigned long long)(log->data_bytes / MIB),
           seed % 2 ? "by SIGKILL" : "in good order");
    fflush(stdout);
    cut_all(l, log, data, seed, options->n, ret_counts);
    look_free(l);
    close(image);
    close(data);
    (void)unlink(data_path);
    if (!options->keep)
        place_remove(&p);
    (void)munmap(log, sizeof(*log));
    return 0;
}

int torture_power(const struct t_options *options)
{
    struct p_counts all = {0};
    int64_t start = now_ms();

    for (uint64_t run = 0; run < options->runs; run++) {
        struct p_counts counts = {0};
        int r = power_run(options, options->seed + run, &counts);

        if (r)
            return r;
        all.cuts += counts.cuts, all.looked_at += counts.looked_at;
        all.lost += counts.lost, all.torn += counts.torn;
        printf("%llu runs in %lld s: %llu cuts, %llu objects and sets looked at; %llu writes lost, %llu torn\n",
               (unsigned long long)run + 1, (long long)(now_ms() - start) / 1000, (unsigned long long)all.cuts,
               (unsigned long long)all.looked_at, (unsigned long long)all.lost, (unsigned long long)all.torn);
        fflush(stdout);
    }
    return EXIT_SUCCESS;
}
