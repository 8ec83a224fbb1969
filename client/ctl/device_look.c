/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looks for superblocks of ours, and for anything but zeros at the start and the end: file systems, partition tables and
 * volume managers all leave their mark there. A table of signatures would know fewer of them. No state.
 */
#include "client/ctl/device_look.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "client/ctl/device_backend.h"
#include "include/base/cleanup.h"
#include "include/base/units.h"
#include "io/store.h"

#define LOOK_BYTES MIB
#define LOST "with --force it is formatted anew, and what it holds is lost"

static bool is_zero(const uint8_t *bytes, uint64_t size_bytes)
{
    return size_bytes == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, size_bytes - 1) == 0);
}

static int look_for_data(struct device_backend *be, uint64_t size_bytes, bool *ret_found)
{
    uint64_t len = MIN(size_bytes, LOOK_BYTES), offs[2] = {0, size_bytes - len};
    cleanup_free uint8_t *bytes = aligned_alloc(SECTOR_BYTES, LOOK_BYTES);
    bool found = false;

    if (!bytes)
        return -ENOMEM;
    for (size_t i = 0; i < ARRAY_LEN(offs) && !found; i++) {
        int r = be->backend.ops->blk_now(&be->backend, IO_BLK_READ, 0, offs[i], bytes, len);
        if (r < 0)
            return r;
        found = !is_zero(bytes, len);
    }
    *ret_found = found;
    return 0;
}

int device_look(const struct device *device, char *ret_why, size_t why_bytes)
{
    struct device_backend be;
    struct store_identity id;
    const char *why;
    char size[UNITS_TEXT_BYTES];
    bool found;

    device_backend_init(&be, device->fd);
    int r = store_identify(&be.backend, 0, device->size_bytes, &id, &why);
    if (r == 0) {
        snprintf(ret_why, why_bytes,
                 "it is a Spillway device already: %s, label '%s', %u of %u partitions closed; " LOST,
                 size_print(id.format.device_bytes, size), id.format.label, id.clean, id.format.partitions);
        return -EEXIST;
    }
    if (r == -EPROTONOSUPPORT || r == -EUCLEAN) {
        snprintf(ret_why, why_bytes, "%s; " LOST, why);
        return -EEXIST;
    }
    r = look_for_data(&be, device->size_bytes, &found);
    if (r < 0) {
        snprintf(ret_why, why_bytes, "it cannot be read: %s", strerrordesc_np(-r));
        return r;
    }
    if (!found)
        return 0;
    snprintf(ret_why, why_bytes, "there is something on it that is not Spillway's (file -s may tell what); " LOST);
    return -EEXIST;
}
