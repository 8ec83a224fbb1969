/* SPDX-License-Identifier: Apache-2.0 */
/* Copies that need not come back through the cache. */
#pragma once

#include "include/base/base.h"

/* Like memcpy; stores go around the cache where the CPU can do that. Worth it for what nobody reads soon. */
void copy_stream(void *restrict dst, const void *restrict src, size_t len_bytes);
