/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kill_point("store.sealed"): a place where a test may end the process, by SIGKILL, at the n-th passing. What is built
 * without SPILLWAY_KILL_POINTS has nothing there. With it (the presets `asan` and `torture`) and without the variables
 * below a passing is one look at a flag.
 *
 *   SPILLWAY_KILL_TABLE=FILE   a struct kill_table, mapped shared: the process enters its points and counts what it
 *                              passes, and its parent can read that after its death
 *   SPILLWAY_KILL_AT=NAME:N    die at the N-th passing of that point
 *
 * Names are unique. tests/torture/ is who uses them; docs/reliability.md says how.
 */
#pragma once

#include "include/base/base.h"

#define KILL_POINTS_MAX 1024
#define KILL_NAME_BYTES 40 /* with the final NUL */

struct kill_entry {
    char name[KILL_NAME_BYTES];
    uint64_t passed; /* by the process that has the table now */
    uint64_t total;  /* by those before it */
    uint64_t fired;  /* processes that died here */
    uint64_t tried;  /* the parent's */
};

/* The file. It begins as zeros; what is read is what a process wrote before it died, store by store. */
struct kill_table {
    uint32_t n; /* entries; 0: no process with points has had it */
    uint32_t reserved;
    struct kill_entry at[KILL_POINTS_MAX];
};

#ifdef SPILLWAY_KILL_POINTS

struct kill_point {
    const char *name;
    struct kill_entry *entry;
    uint64_t deadly; /* passing; 0: none */
};

extern bool kill_points_on;
void kill_point_pass(struct kill_point *point);

/* The section holds a pointer to each: the linker joins those of all files into one array. */
#define kill_point(text)                                                                                               \
    do {                                                                                                               \
        static_assert(sizeof(text) <= KILL_NAME_BYTES, "the name is too long");                                        \
        static struct kill_point kill_point_ = {.name = (text)};                                                       \
        static struct kill_point *kill_point_entry_ __attribute__((section("kill_points"), used)) = &kill_point_;      \
        if (unlikely(kill_points_on))                                                                                  \
            kill_point_pass(&kill_point_);                                                                             \
    } while (0)

#else

#define kill_point(text)                                                                                               \
    do {                                                                                                               \
    } while (0)

#endif
