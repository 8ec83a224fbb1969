/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counts hugepages before any memory is taken: nothing smaller will do, and then it is better said at once, with a number,
 * than when a part of the memory has been touched. Others may still be faster: control.c looks again when all is taken.
 */
#include "daemon/startup_hugepages.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "daemon/log.h"
#include "daemon/loop.h"
#include "io/memory.h"

void hugepages_add(struct hugepages *h, uint32_t node, uint64_t bytes)
{
    uint32_t i = 0;

    while (i < h->n && h->need[i].node != node)
        i++;
    assert(i < ARRAY_LEN(h->need));
    if (i == h->n) {
        h->need[h->n].node = node;
        h->need[h->n++].bytes = 0;
    }
    h->need[i].bytes += round_up(bytes, MEMORY_HUGE_BYTES);
}

static void huge_bytes(uint32_t node, uint64_t *ret_free_bytes, uint64_t *ret_bytes)
{
    struct memory_nodes nodes;

    *ret_free_bytes = *ret_bytes = 0;
    if (memory_nodes_read(&nodes) < 0)
        return;
    for (uint32_t i = 0; i < nodes.n; i++) {
        if (node != MEMORY_NODE_ANY && nodes.node[i].id != node)
            continue;
        *ret_free_bytes += nodes.node[i].free_huge_bytes;
        *ret_bytes += nodes.node[i].huge_bytes;
    }
}

/* A daemon that has just ended has them until the kernel is through with its io_uring. Returns what is free then. */
static uint64_t free_huge_bytes_patiently(uint32_t node, uint64_t needed_bytes)
{
    uint64_t end_ns = loop_now_ns() + MEMORY_WAIT_MS * UINT64_C(1000000), free_bytes, all_bytes;

    for (bool said = false;; said = true) {
        huge_bytes(node, &free_bytes, &all_bytes);
        if (free_bytes >= needed_bytes || all_bytes < needed_bytes || loop_now_ns() > end_ns)
            return free_bytes;
        if (!said)
            log_info("hugepages are in use: waiting %u ms for their last owner to give them back", MEMORY_WAIT_MS);
        nanosleep(&(struct timespec){.tv_nsec = MEMORY_LOOK_MS * 1000000L}, NULL);
    }
}

static int node_check(uint32_t node, uint64_t bytes)
{
    unsigned long long needed = bytes / MEMORY_HUGE_BYTES,
                       have = free_huge_bytes_patiently(node, bytes) / MEMORY_HUGE_BYTES;
    char knob[96] = "vm.nr_hugepages";

    if (have >= needed)
        return 0;
    if (node != MEMORY_NODE_ANY)
        snprintf(knob, sizeof(knob), "/sys/devices/system/node/node%u/hugepages/hugepages-2048kB/nr_hugepages", node);
    log_error("[tier.dram] hugepages = require: %llu pages of 2 MiB are needed, %llu are free, %llu are missing: raise "
              "%s by that many, or set hugepages = try",
              needed, have, needed - have, knob);
    return -ENOMEM;
}

int hugepages_check(const struct hugepages *h)
{
    int r = 0;

    for (uint32_t i = 0; i < h->n && r == 0; i++)
        r = node_check(h->need[i].node, h->need[i].bytes);
    return r;
}
