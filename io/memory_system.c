/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel tells in files about memory and its limits. Stateless. A file that is missing or that cannot be
 * understood means "none": the caller then takes the slower road, and says so.
 */
#include <inttypes.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io/memory_private.h"

static uint64_t read_number(const char *path)
{
    cleanup_fclose FILE *f = fopen(path, "re");
    uint64_t value;

    return f && fscanf(f, "%" SCNu64, &value) == 1 ? value : 0;
}

static uint64_t huge_bytes(uint32_t node, const char *which)
{
    char path[128];

    if (node != MEMORY_NODE_ANY) {
        snprintf(path, sizeof(path), "/sys/devices/system/node/node%u", node);
        if (access(path, F_OK) != 0)
            node = MEMORY_NODE_ANY;
    }
    if (node == MEMORY_NODE_ANY)
        snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-2048kB/%s", which);
    else
        snprintf(path, sizeof(path), "/sys/devices/system/node/node%u/hugepages/hugepages-2048kB/%s", node, which);
    return read_number(path) * MEMORY_HUGE_BYTES;
}

uint64_t memory_free_huge_bytes(uint32_t node)
{
    return huge_bytes(node, "free_hugepages");
}

uint64_t memory_huge_bytes(uint32_t node)
{
    return huge_bytes(node, "nr_hugepages");
}

enum memory_thp memory_thp_read(void)
{
    cleanup_fclose FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "re");
    char line[128];

    bool is_read = f && fgets(line, sizeof(line), f);
    // cppcheck-suppress resourceLeak; cleanup_fclose
    if (!is_read || strstr(line, "[deny]"))
        return MEMORY_THP_DENIED;
    return strstr(line, "[never]") ? MEMORY_THP_ASKED : MEMORY_THP_TOUCHED;
}

/* Adds up the ShmemPmdMapped lines of the mappings that start within the range. */
uint64_t memory_thp_mapped_bytes(const void *mem, uint64_t size_bytes)
{
    cleanup_fclose FILE *f = fopen("/proc/self/smaps", "re");
    uint64_t start, end, kib, sum_kib = 0, from = (uintptr_t)mem;
    bool is_ours = false;
    char line[512];

    while (f && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &start, &end) == 2)
            is_ours = start >= from && start < from + size_bytes;
        else if (is_ours && sscanf(line, "ShmemPmdMapped: %" SCNu64, &kib) == 1)
            sum_kib += kib;
    }
    return sum_kib * KIB;
}

static uint64_t available_bytes(void)
{
    cleanup_fclose FILE *f = fopen("/proc/meminfo", "re");
    char line[256];
    uint64_t kib;

    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
            return kib * KIB;
    return UINT64_MAX;
}

/* Sums one kind of number over the zones of a node. False: the kernel tells nothing about that node. */
static bool read_zones(uint32_t node, uint64_t *ret_free_pages, uint64_t *ret_high_pages)
{
    cleanup_fclose FILE *f = fopen("/proc/zoneinfo", "re");
    uint64_t pages, n_free = 0, n_high = 0;
    bool is_ours = false, found = false;
    char line[256];
    uint32_t id;

    while (f && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "Node %" SCNu32 ", zone", &id) == 1) {
            is_ours = id == node;
            found |= is_ours;
        } else if (is_ours && sscanf(line, " pages free %" SCNu64, &pages) == 1) {
            n_free += pages;
        } else if (is_ours && sscanf(line, " high %" SCNu64, &pages) == 1) {
            n_high += pages;
        }
    }
    *ret_free_pages = n_free;
    *ret_high_pages = n_high;
    return found;
}

/* As the kernel counts MemAvailable: what is free above the high watermarks, and file pages that it would give up. */
uint64_t memory_node_available_bytes(uint32_t node)
{
    uint64_t n_free, n_high, kib, file_kib = 0;
    char path[64], line[256];

    if (node == MEMORY_NODE_ANY || !read_zones(node, &n_free, &n_high))
        return UINT64_MAX;
    snprintf(path, sizeof(path), "/sys/devices/system/node/node%u/meminfo", node);
    cleanup_fclose FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "Node %*u Active(file): %" SCNu64, &kib) == 1 ||
            sscanf(line, "Node %*u Inactive(file): %" SCNu64, &kib) == 1)
            file_kib += kib;
    uint64_t have_bytes = n_free * MEMORY_PAGE_BYTES + file_kib * KIB, high_bytes = n_high * MEMORY_PAGE_BYTES;

    return have_bytes > high_bytes ? have_bytes - high_bytes : 0;
}

uint64_t memory_total_bytes(uint32_t node)
{
    char path[64] = "/proc/meminfo", line[256];
    uint64_t kib;

    if (node != MEMORY_NODE_ANY)
        snprintf(path, sizeof(path), "/sys/devices/system/node/node%u/meminfo", node);
    cleanup_fclose FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "MemTotal: %" SCNu64, &kib) == 1 || sscanf(line, "Node %*u MemTotal: %" SCNu64, &kib) == 1)
            return kib * KIB;
    return UINT64_MAX;
}

/* libcap would be a library for one bit. */
static bool has_ipc_lock(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};

    if (syscall(SYS_capget, &header, data) < 0)
        return false;
    return data[CAP_TO_INDEX(CAP_IPC_LOCK)].effective & CAP_TO_MASK(CAP_IPC_LOCK);
}

void memory_limits_read(struct memory_limits *ret_limits)
{
    struct rlimit limit = {0};

    (void)getrlimit(RLIMIT_MEMLOCK, &limit);
    *ret_limits = (struct memory_limits){
        .memlock_bytes = limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : limit.rlim_cur,
        .can_lock_all = has_ipc_lock() || limit.rlim_cur == RLIM_INFINITY,
        .available_bytes = available_bytes(),
    };
}
