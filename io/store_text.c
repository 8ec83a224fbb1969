/* SPDX-License-Identifier: Apache-2.0 */
/* How people read what a store keeps: the daemon's log and `spillctl fsck` say it in the same words. */
#include <stdio.h>

#include "io/store.h"

const char *store_durability_name(uint8_t durability)
{
    static const char *const names[] = {
        [STORE_CACHE] = "cache", [STORE_SCRATCH] = "scratch", [STORE_DURABLE] = "durable"};

    return durability < ARRAY_LEN(names) ? names[durability] : "?";
}

void store_key_print(const struct store_id *id, char ret_hex[static STORE_KEY_TEXT_BYTES])
{
    ret_hex[0] = '\0';
    for (uint32_t i = 0; i < id->key_len && i < KEY_BYTES_MAX; i++)
        snprintf(ret_hex + (size_t)2 * i, 3, "%02x", id->key[i]);
}
