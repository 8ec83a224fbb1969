/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the process's SIGBUS handler and the table of mappings that it may repair.
 *
 * Whoever holds a memfd for writing can punch holes in it, whatever its seals; a hugepage that went this way may not
 * come back, and then our next access is a SIGBUS. It must cost the one client its chunk, not everyone their daemon.
 * So the handler maps zeros over the page, marks the chunk as poisoned, and the access goes on. Whoever then uses the
 * bytes looks at the mark first.
 *
 * The table is read by a signal handler on any thread while others add and remove: slots are claimed by an exchange,
 * filled in, and published by storing start_ last (release, pairs with the acquire in guard_find()). A mapping is
 * removed by its last user, so no handler is looking at a slot that is being removed.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "io/memory_private.h"

struct guard_slot {
    uintptr_t start_; /* atomic; 0: nothing here */
    uint64_t size_bytes;
    uint64_t page_bytes;
    uint32_t *poisoned;
    uint32_t is_claimed; /* atomic */
};

static struct guard_slot slots[GUARDED_MAPPINGS_MAX];
static uint32_t n_slots_used; /* atomic: no slot from here on was ever used */
static uint32_t is_installed; /* atomic */

static const struct guard_slot *guard_find(uintptr_t addr)
{
    uint32_t n = load_acquire(&n_slots_used);

    for (uint32_t i = 0; i < n; i++) {
        uintptr_t start = load_acquire(&slots[i].start_);

        if (start != 0 && addr >= start && addr - start < slots[i].size_bytes)
            return &slots[i];
    }
    return NULL;
}

/* Ends the process as if there were no handler; the access is tried again on return, and that is the core's address. */
static void give_up(void)
{
    struct sigaction action = {.sa_handler = SIG_DFL};

    sigaction(SIGBUS, &action, NULL);
}

static void on_sigbus(int signal, siginfo_t *info, void *context)
{
    uintptr_t addr = (uintptr_t)info->si_addr;
    int saved_errno = errno;
    (void)context;

    /* Only faults; a SIGBUS that somebody sent (si_code <= 0) has no address, and was meant to kill. */
    const struct guard_slot *slot = info->si_code > 0 ? guard_find(addr) : NULL;
    if (slot && memory_map_zeros((void *)(addr & ~(slot->page_bytes - 1)), slot->page_bytes) == 0) {
        __atomic_store_n(slot->poisoned, 1, __ATOMIC_RELEASE);
    } else {
        give_up();
        if (info->si_code <= 0)
            raise(signal);
    }
    errno = saved_errno;
}

int memory_guard_install(void)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_RESTART};

    if (__atomic_exchange_n(&is_installed, 1, __ATOMIC_ACQ_REL))
        return 0;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, &action, NULL) < 0) {
        int r = -errno;

        store_release(&is_installed, 0);
        return r;
    }
    return 0;
}

int memory_guard_add(void *mem, uint64_t size_bytes, uint64_t page_bytes, uint32_t *poisoned, uint32_t *ret_guard)
{
    for (uint32_t i = 0; i < GUARDED_MAPPINGS_MAX; i++) {
        struct guard_slot *slot = &slots[i];

        if (load_relaxed(&slot->is_claimed) || __atomic_exchange_n(&slot->is_claimed, 1, __ATOMIC_ACQUIRE))
            continue;
        slot->size_bytes = size_bytes;
        slot->page_bytes = page_bytes;
        slot->poisoned = poisoned;
        store_release(&slot->start_, (uintptr_t)mem);
        for (uint32_t n = load_relaxed(&n_slots_used); n < i + 1;)
            if (__atomic_compare_exchange_n(&n_slots_used, &n, i + 1, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
                break;
        *ret_guard = i;
        return 0;
    }
    return -ENOSPC;
}

void memory_guard_remove(uint32_t guard)
{
    store_release(&slots[guard].start_, (uintptr_t)0);
    store_release(&slots[guard].is_claimed, 0);
}
