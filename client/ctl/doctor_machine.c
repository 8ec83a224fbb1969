/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looks at the machine with the caller's eyes: what the kernel allows, what is there. Every finding that is not OK names
 * the knob. Reads /proc and /sys only.
 */
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>

#include "client/ctl/ctl.h"
#include "client/ctl/doctor.h"
#include "include/base/limits.h"
#include "include/base/units.h"

#define KERNEL_OLDEST_MAJOR 6
#define KERNEL_OLDEST_MINOR 1
#define MEMLOCK_USEFUL (512 * MIB)

void doctor_add(struct json_object *checks, const char *check, const char *state, const char *fix, const char *fmt, ...)
{
    struct json_object *o = json_object_new_object();
    char text[512];
    va_list args;

    if (!o)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    json_object_object_add(o, "check", json_object_new_string(check));
    json_object_object_add(o, "state", json_object_new_string(state));
    json_object_object_add(o, "text", json_object_new_string(text));
    json_object_object_add(o, "fix", fix ? json_object_new_string(fix) : NULL);
    json_object_array_add(checks, o);
}

/* The first line of a small file; false if there is none. */
static bool read_line(const char *path, char *ret_line, size_t line_bytes)
{
    FILE *f = fopen(path, "re");
    bool got = f && fgets(ret_line, (int)line_bytes, f);

    if (f)
        fclose(f);
    if (got)
        ret_line[strcspn(ret_line, "\n")] = '\0';
    return got;
}

static long read_number(const char *path, long otherwise)
{
    char line[64];

    return read_line(path, line, sizeof(line)) ? strtol(line, NULL, 10) : otherwise;
}

static void check_kernel(struct json_object *checks)
{
    struct utsname name;
    unsigned major = 0, minor = 0;

    if (uname(&name) < 0 || sscanf(name.release, "%u.%u", &major, &minor) != 2)
        return;
    bool good = major > KERNEL_OLDEST_MAJOR || (major == KERNEL_OLDEST_MAJOR && minor >= KERNEL_OLDEST_MINOR);
    doctor_add(checks, "kernel", good ? "OK" : "FAIL", good ? NULL : "upgrade the kernel", "Linux %s%s", name.release,
               good ? "" : ": 6.1 is the oldest that works");
}

static void check_uring(struct json_object *checks)
{
    long disabled = read_number("/proc/sys/kernel/io_uring_disabled", 0);

    if (disabled == 0)
        doctor_add(checks, "io_uring", "OK", NULL, "available");
    else if (disabled == 1)
        doctor_add(checks, "io_uring", geteuid() == 0 ? "OK" : "WARN",
                   "sysctl kernel.io_uring_disabled=0, or add the daemon's user to the group of kernel.io_uring_group",
                   "only for root and one group (kernel.io_uring_disabled = 1)");
    else
        doctor_add(checks, "io_uring", "FAIL", "sysctl kernel.io_uring_disabled=0",
                   "switched off (kernel.io_uring_disabled = %ld)", disabled);
}

static void check_memlock(struct json_object *checks)
{
    struct rlimit limit;
    char text[UNITS_TEXT_BYTES];

    if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0)
        return;
    if (geteuid() == 0 || limit.rlim_cur == RLIM_INFINITY) {
        doctor_add(checks, "memlock", "OK", NULL, "this user may lock memory without limit");
        return;
    }
    bool useful = limit.rlim_cur >= MEMLOCK_USEFUL;
    doctor_add(checks, "memlock", useful ? "OK" : "WARN",
               "LimitMEMLOCK=infinity in the unit; for spillwayd --user: a line `USER - memlock unlimited` in "
               "/etc/security/limits.conf, then log in anew",
               "this user may lock %s of memory%s", size_print(limit.rlim_cur, text),
               useful ? "" : ": a daemon of yours would run degraded (unpinned memory, slower I/O)");
}

static void check_hugepages(struct json_object *checks)
{
    long total = read_number("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", 0);
    long free_pages = read_number("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", 0);
    char mode[128] = "unknown", have[UNITS_TEXT_BYTES];

    (void)read_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled", mode, sizeof(mode));
    bool thp = strstr(mode, "[advise]") || strstr(mode, "[always]") || strstr(mode, "[within_size]");
    if (total > 0)
        doctor_add(checks, "hugepages", "OK", NULL, "%s of 2 MiB pages are free",
                   size_print((uint64_t)free_pages * 2 * MIB, have));
    else
        doctor_add(checks, "hugepages", thp ? "OK" : "WARN",
                   "sysctl vm.nr_hugepages=N (2 MiB each), or echo advise > "
                   "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
                   "no 2 MiB pages are set aside; transparent ones for shared memory are %s", thp ? "on" : "off");
}

static void check_nodes(struct json_object *checks)
{
    unsigned n = 0, n_memory_only = 0;
    char path[96], cpus[256];

    for (unsigned i = 0; i < NODES_MAX; i++) {
        snprintf(path, sizeof(path), "/sys/devices/system/node/node%u/cpulist", i);
        if (access(path, R_OK) < 0)
            continue;
        n++;
        n_memory_only += !read_line(path, cpus, sizeof(cpus)) || cpus[0] == '\0';
    }
    if (n == 0)
        doctor_add(checks, "numa", "OK", NULL, "the kernel tells nothing about nodes: one is assumed");
    else
        doctor_add(checks, "numa", "OK", NULL, "%u node%s%s", n, n == 1 ? "" : "s",
                   n_memory_only ? ", some of them memory only: they can be tier cxl" : "");
}

static void check_descriptors(struct json_object *checks)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        doctor_add(checks, "descriptors", limit.rlim_max >= 65536 ? "OK" : "WARN",
                   "LimitNOFILE=65536 in the unit, or ulimit -n", "a process may have %llu",
                   (unsigned long long)limit.rlim_max);
}

void doctor_check_machine(struct json_object *checks)
{
    check_kernel(checks);
    check_uring(checks);
    check_memlock(checks);
    check_hugepages(checks);
    check_nodes(checks);
    check_descriptors(checks);
    doctor_check_gpus(checks);
}

void doctor_check_devices(struct json_object *checks, struct json_object *devices)
{
    for (size_t i = 0; json_object_is_type(devices, json_type_array) && i < json_object_array_length(devices); i++) {
        struct json_object *d = json_object_array_get_idx(devices, i);
        const char *path = ctl_text(d, "path");
        struct stat st;

        if (stat(path, &st) < 0)
            doctor_add(checks, "device", "FAIL", "put it back, or take it out of the config", "%s: %s", path,
                       strerrordesc_np(errno));
        else if (st.st_mode & (S_IRWXO | S_IWGRP))
            doctor_add(checks, "device", "WARN", "chmod 600", "%s: others than its owner may read or write it", path);
        else
            doctor_add(checks, "device", "OK", NULL, "%s: only its owner may touch it", path);
    }
}
