/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Judges whether a chunk fits into what there is. Stateless: each call looks anew, since others take and give back
 * memory all the time. What a process that has ended had registered with io_uring comes back only when the kernel has
 * taken its ring down, a while after anybody could see the process: so "not now" and "never" are two answers.
 */
#include <errno.h>

#include "io/memory_private.h"

static struct memory_room room_of(const struct memory_chunk_config *config, enum memory_pages pages)
{
    struct memory_limits limits;
    struct memory_room room;

    if (config->room) {
        config->room(config->node, pages, &room);
    } else if (pages == MEMORY_PAGES_HUGE) {
        room.available_bytes = memory_free_huge_bytes(config->node);
        room.total_bytes = memory_huge_bytes(config->node);
    } else {
        memory_limits_read(&limits);
        room.available_bytes = MIN(limits.available_bytes, memory_node_available_bytes(config->node));
        room.total_bytes = MIN(memory_total_bytes(MEMORY_NODE_ANY), memory_total_bytes(config->node));
    }
    return room;
}

static uint64_t bytes_of(const struct memory_chunk_config *config, enum memory_pages pages)
{
    return pages == MEMORY_PAGES_HUGE ? round_up(config->size_bytes, MEMORY_HUGE_BYTES) : config->size_bytes;
}

/* Is it worth trying this kind? NULL if so, else why not. */
const char *memory_pages_unavailable(const struct memory_chunk_config *config, enum memory_pages pages)
{
    if (pages == MEMORY_PAGES_HUGE && room_of(config, pages).available_bytes < bytes_of(config, pages))
        return "not enough free 2 MiB hugepages on the node (nr_hugepages)";
    if (pages == MEMORY_PAGES_THP && memory_thp_read() == MEMORY_THP_DENIED)
        return "no transparent hugepages in memfds (/sys/kernel/mm/transparent_hugepage/shmem_enabled is `deny`)";
    if (pages == MEMORY_PAGES_THP && config->size_bytes < MEMORY_HUGE_BYTES)
        return "less than a hugepage is asked for";
    return NULL;
}

/* The pages must come from somewhere: asking for more than there is ends in the OOM killer, not in ENOMEM. A node that
 * is bound to runs out by itself, however empty the others are. */
int memory_check_size(const struct memory_chunk_config *config, enum memory_pages pages)
{
    if (pages == MEMORY_PAGES_HUGE) /* set aside already, and not part of MemAvailable */
        return 0;
    if (config->size_bytes > room_of(config, pages).available_bytes)
        return -ENOMEM;
    if (pages == MEMORY_PAGES_SMALL && config->size_bytes > SMALL_PAGES_BYTES_MAX && !config->force_small_pages)
        return -E2BIG;
    return 0;
}

bool memory_chunk_is_early(const struct memory_chunk_config *config)
{
    bool is_auto = config->pages == MEMORY_PAGES_AUTO;
    enum memory_pages first = is_auto ? MEMORY_PAGES_HUGE : config->pages;
    struct memory_room room = room_of(config, first);
    uint64_t bytes = bytes_of(config, first);

    if (bytes > room.available_bytes && first == MEMORY_PAGES_HUGE && !config->no_fallback) {
        room = room_of(config, MEMORY_PAGES_SMALL);
        bytes = config->size_bytes;
    }
    return bytes > room.available_bytes && bytes <= room.total_bytes;
}
