/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams of SQEs from several sessions (tests/fuzz/support/clients.h), whose memory changes while it is read: between turns as
 * the input says, and between two loads of one turn as changing.h does it.
 */
#include "tests/fuzz/support/changing.h"
#include "tests/fuzz/support/clients.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz f = fuzz_of(data, size);

    changing_reset();
    for (uint32_t i = 0; i < CLIENTS; i++) {
        changing_watch(client_ring(i), CLIENT_RING_BYTES);
        changing_watch(client_scratch(i), CLIENT_SCRATCH_BYTES);
    }
    clients_run(&f);
    changing_reset();
    return 0;
}
