/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CPU time is read from the scheduler's own count (/proc/PID/task/TID/schedstat, nanoseconds), because the ticks of
 * /proc/PID/stat are too coarse for "none at all". One thread.
 */
#include "client/bench/cpus.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "include/base/cleanup.h"

static cpu_set_t all;

static inline void closedir_p(DIR **d)
{
    if (*d)
        closedir(*d);
}

static void all_read(void)
{
    if (CPU_COUNT(&all) == 0 && sched_getaffinity(0, sizeof(all), &all) < 0)
        CPU_SET(0, &all);
}

unsigned cpus_nth(unsigned n)
{
    all_read();
    n %= (unsigned)CPU_COUNT(&all);
    for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all) && n-- == 0)
            return cpu;
    return 0;
}

static void pin(pid_t tid, unsigned cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    (void)sched_setaffinity(tid, sizeof(set), &set);
}

void cpus_pin(unsigned cpu)
{
    all_read();
    pin(0, cpu);
}

void cpus_unpin(void)
{
    all_read();
    (void)sched_setaffinity(0, sizeof(all), &all);
}

/* Calls fn for each thread; returns how many there are. */
static unsigned each_thread(pid_t pid, void (*fn)(pid_t pid, pid_t tid, void *ctx), void *ctx)
{
    char path[64];
    unsigned n = 0;

    snprintf(path, sizeof(path), pid == 0 ? "/proc/self/task" : "/proc/%d/task", (int)pid);
    cleanup_(closedir_p) DIR *d = opendir(path);
    // cppcheck-suppress readdirCalled; nobody else reads this stream
    for (struct dirent *e; d && (e = readdir(d));) {
        if (e->d_name[0] == '.')
            continue;
        fn(pid, (pid_t)strtol(e->d_name, NULL, 10), ctx);
        n++;
    }
    return n;
}

static FILE *thread_file(pid_t pid, pid_t tid, const char *name)
{
    char path[96];

    if (pid == 0)
        snprintf(path, sizeof(path), "/proc/self/task/%d/%s", (int)tid, name);
    else
        snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", (int)pid, (int)tid, name);
    return fopen(path, "re");
}

struct pin_wish {
    const char *name;
    unsigned cpu, n_found;
};

static bool is_named(pid_t pid, pid_t tid, const char *begin)
{
    cleanup_fclose FILE *f = thread_file(pid, tid, "comm");
    char name[32];

    return f && fgets(name, sizeof(name), f) && strncmp(name, begin, strlen(begin)) == 0;
}

static void pin_if_named(pid_t pid, pid_t tid, void *ctx)
{
    struct pin_wish *wish = ctx;

    if (!is_named(pid, tid, wish->name))
        return;
    pin(tid, wish->cpu);
    wish->n_found++;
}

int cpus_pin_threads(pid_t pid, const char *name, unsigned cpu)
{
    struct pin_wish wish = {.name = name, .cpu = cpu};

    (void)each_thread(pid, pin_if_named, &wish);
    return wish.n_found > 0 ? 0 : -ENOENT;
}

struct used {
    const char *but; /* NULL: all */
    double sum_ns;
};

static void used_add(pid_t pid, pid_t tid, void *ctx)
{
    struct used *used = ctx;
    cleanup_fclose FILE *f = thread_file(pid, tid, "schedstat");
    unsigned long long ns;

    if (f && fscanf(f, "%llu", &ns) == 1 && !(used->but && is_named(pid, tid, used->but)))
        used->sum_ns += (double)ns;
}

double cpus_used_but_ns(pid_t pid, const char *name)
{
    struct used used = {.but = name};

    return each_thread(pid, used_add, &used) > 0 ? used.sum_ns : NAN;
}

double cpus_used_ns(pid_t pid)
{
    return cpus_used_but_ns(pid, NULL);
}
