/* SPDX-License-Identifier: Apache-2.0 */
#include "io/copy.h"

#include "include/base/stream.h"

void copy_stream(void *restrict dst, const void *restrict src, size_t len_bytes)
{
    stream_copy(dst, src, len_bytes);
    stream_fence(); /* streamed stores are not ordered by the release with which the result is published */
}
