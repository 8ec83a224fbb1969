/* SPDX-License-Identifier: Apache-2.0 */
/*
 * As fuzz_request, but a thread writes to all of the clients' memory the whole time: so indices, SQEs, lists and results
 * change at any moment, also in the middle of a copy. What it finds is seldom found a second time by the same input: what an
 * input can repeat is fuzz_request's to find.
 */
#include <pthread.h>

#include "include/base/atomic.h"
#include "include/spillway/abi.h"
#include "tests/fuzz/support/changing.h"
#include "tests/fuzz/support/clients.h"

static uint32_t is_racing, seed; /* atomic */

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Lengths, places and numbers more than anything else: words, and what they go wrong with. */
static void write_somewhere(uint64_t r)
{
    static const uint32_t values[] = {0, 1, 64, 4096, 8192, UINT32_MAX, UINT32_C(1) << 31, 16};
    uint32_t i = (uint32_t)(r >> 60) % CLIENTS, value = values[(r >> 40) % ARRAY_LEN(values)];
    bool in_ring = (r >> 59) & 1;
    uint32_t words = (in_ring ? CLIENT_RING_BYTES : CLIENT_SCRATCH_BYTES) / sizeof(uint32_t);
    uint32_t *at = (uint32_t *)(void *)(in_ring ? client_ring(i) : client_scratch(i)) + (uint32_t)r % words;

    if (in_ring && at < (uint32_t *)(void *)(client_ring(i) + sizeof(struct spw_ring)) && (r >> 32) % 64 != 0)
        return; /* an index that cannot be ends the session: not all the time */
    if ((r >> 48) & 1)
        store_relaxed(at, value);
    else
        store_relaxed(at, load_relaxed(at) ^ UINT32_C(1) << (r >> 35) % 32);
}

static void *race(void *arg)
{
    uint64_t state = 0;

    (void)arg;
    for (;;) {
        if (!load_acquire(&is_racing)) {
            cpu_relax();
            continue;
        }
        state ^= load_relaxed(&seed);
        for (int i = 0; i < 64; i++)
            write_somewhere(next_random(&state));
    }
    return NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static pthread_t thread;
    struct fuzz f = fuzz_of(data, size);

    if (!thread) {
        for (uint32_t i = 0; i < CLIENTS; i++) /* they are made here */
            (void)client_ring(i), (void)client_scratch(i);
        fuzz_check(pthread_create(&thread, NULL, race, NULL) == 0);
    }
    changing_reset();
    store_relaxed(&seed, fuzz_u32(&f));
    store_release(&is_racing, 1);
    clients_run(&f);
    store_release(&is_racing, 0);
    return 0;
}
