/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the table of kill points of the process (include/base/kill_point.h). It is set up before main(), and after that
 * only counters change, so points may be passed by any thread. Without SPILLWAY_KILL_POINTS there is nothing here.
 *
 * The table is a file that the parent made: what a process has counted is there after SIGKILL. Errors in the variables
 * end the process: a torture that kills nothing must not look like one that passes.
 */
#include "include/base/kill_point.h"

#ifdef SPILLWAY_KILL_POINTS

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "include/base/cleanup.h"

/* The linker's names for the ends of the section. */
extern struct kill_point *__start_kill_points[], *__stop_kill_points[];

bool kill_points_on;

static void refuse(const char *what)
{
    fprintf(stderr, "kill points: %s\n", what);
    _exit(EXIT_FAILURE);
}

void kill_point_pass(struct kill_point *point)
{
    uint64_t n = __atomic_add_fetch(&point->entry->passed, 1, __ATOMIC_RELAXED);

    if (n != point->deadly)
        return;
    point->entry->fired++;
    (void)kill(getpid(), SIGKILL);
    for (;;)
        pause(); /* until it arrives */
}

static struct kill_table *table_map(const char *path)
{
    cleanup_close int fd = open(path, O_RDWR | O_CLOEXEC);
    void *mem = MAP_FAILED;

    if (fd >= 0)
        mem = mmap(NULL, sizeof(struct kill_table), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mem == MAP_FAILED)
        refuse("SPILLWAY_KILL_TABLE cannot be mapped");
    return mem;
}

/* The same program has the same points at the same places; one of another build begins anew. */
static void table_enter(struct kill_table *table, uint32_t i, struct kill_point *point)
{
    struct kill_entry *entry = &table->at[i];

    if (strncmp(entry->name, point->name, sizeof(entry->name)) != 0) {
        *entry = (struct kill_entry){0};
        memcpy(entry->name, point->name, strlen(point->name));
    }
    entry->total += entry->passed;
    entry->passed = 0;
    point->entry = entry;
}

/* NAME:N */
static void arm(const char *at)
{
    const char *colon = strchr(at, ':');
    size_t len = colon ? (size_t)(colon - at) : 0;
    uint64_t n = colon ? strtoull(colon + 1, NULL, 10) : 0;

    for (struct kill_point **p = __start_kill_points; n > 0 && p < __stop_kill_points; p++) {
        if (strlen((*p)->name) == len && memcmp((*p)->name, at, len) == 0) {
            (*p)->deadly = n;
            return;
        }
    }
    refuse("SPILLWAY_KILL_AT names no point, or no passing");
}

static __attribute__((constructor)) void kill_points_init(void)
{
    const char *path = getenv("SPILLWAY_KILL_TABLE"), *at = getenv("SPILLWAY_KILL_AT");
    ptrdiff_t n = __stop_kill_points - __start_kill_points;

    if (!path)
        return;
    if (n <= 0 || n > KILL_POINTS_MAX)
        refuse("there are none, or more than KILL_POINTS_MAX");
    struct kill_table *table = table_map(path);

    table->n = (uint32_t)n;
    for (uint32_t i = 0; i < table->n; i++)
        table_enter(table, i, __start_kill_points[i]);
    if (at)
        arm(at);
    kill_points_on = true;
}

#endif
