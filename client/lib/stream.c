/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memcpy that goes past the caches. What is copied into or out of the store is larger than the caches and is next read
 * by someone else, often a device: ordinary stores would throw out what the caller was working on. Below
 * CLIENT_STREAM_BYTES memcpy is better.
 */
#include "client/lib/client.h"

#include "include/base/stream.h"

void client_stream_copy(void *to, const void *from, size_t size_bytes)
{
    if (size_bytes < CLIENT_STREAM_BYTES)
        memcpy(to, from, size_bytes);
    else
        stream_copy(to, from, size_bytes);
}

void client_stream_fence(void)
{
    stream_fence();
}
