/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads /proc. A process that runs under another user hides its descriptors; their number is then 0. Any thread.
 */
#include "client/bench/process.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <time.h>

#include "include/base/cleanup.h"

static inline void closedir_p(DIR **d)
{
    if (*d)
        closedir(*d);
}

static FILE *proc_open(pid_t pid, const char *name)
{
    char path[64];

    if (pid == 0)
        snprintf(path, sizeof(path), "/proc/self/%s", name);
    else
        snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
    return fopen(path, "re");
}

static int read_cpu(pid_t pid, double *ret_s)
{
    cleanup_fclose FILE *f = proc_open(pid, "stat");
    char line[1024];
    unsigned long user, sys;

    if (!f || !fgets(line, sizeof(line), f))
        return -ESRCH;
    const char *after_name = strrchr(line, ')'); /* a name may hold anything */
    if (!after_name || sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &sys) != 2)
        return -EBADMSG;
    *ret_s = (double)(user + sys) / (double)sysconf(_SC_CLK_TCK);
    return 0;
}

static int read_status(pid_t pid, struct process_usage *u)
{
    cleanup_fclose FILE *f = proc_open(pid, "status");
    char line[256];
    unsigned long long value;

    if (!f)
        return -ESRCH;
    while (fgets(line, sizeof(line), f)) {
        if (sscanf(line, "VmRSS: %llu", &value) == 1)
            u->rss_bytes = value * KIB;
        else if (sscanf(line, "VmHWM: %llu", &value) == 1)
            u->rss_peak_bytes = value * KIB;
        else if (sscanf(line, "RssAnon: %llu", &value) == 1)
            u->anonymous_bytes = value * KIB;
        else if (sscanf(line, "VmLck: %llu", &value) == 1)
            u->locked_bytes = value * KIB;
        else if (sscanf(line, "VmPin: %llu", &value) == 1)
            u->pinned_bytes = value * KIB;
        else if (sscanf(line, "Threads: %llu", &value) == 1)
            u->n_threads = (uint32_t)value;
    }
    return 0;
}

static uint32_t count_fds(pid_t pid)
{
    char path[64];
    uint32_t n = 0;

    snprintf(path, sizeof(path), pid == 0 ? "/proc/self/fd" : "/proc/%d/fd", (int)pid);
    cleanup_(closedir_p) DIR *d = opendir(path);
    // cppcheck-suppress readdirCalled; nobody else reads this stream
    for (struct dirent *e; d && (e = readdir(d));)
        n += e->d_name[0] != '.';
    return n;
}

int process_usage(pid_t pid, struct process_usage *ret_usage)
{
    struct process_usage u = {0};
    int r = read_cpu(pid, &u.cpu_s);

    if (r == 0)
        r = read_status(pid, &u);
    if (r < 0)
        return r;
    u.n_fds = count_fds(pid);
    *ret_usage = u;
    return 0;
}

uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

double seconds_since(uint64_t start_ns)
{
    return (double)(now_ns() - start_ns) * 1e-9;
}
