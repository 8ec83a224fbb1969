/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `spillctl fsck`: what is wrong with a device. First step: its log, entry by entry.
 */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/fsck_backend.h"
#include "client/ctl/fsck_pieces.h"
#include "io/device.h"
#include "io/store.h"

int ctl_fsck(const struct ctl *ctl, int argc, char **argv)
{
    struct device device = DEVICE_NONE;
    const char *why = "";
    struct store_identity id;
    int status = 0;

    (void)ctl;
    if (argc != 3 || strcmp(argv[1], "--entries") != 0)
        return EX_USAGE;
    int r = device_open(argv[2], DEVICE_READ_ONLY | DEVICE_SPARSE, &device, &why);
    if (r < 0) {
        fprintf(stderr, "spillctl: %s: %s\n", argv[2], why);
        return 8;
    }
    struct fsck_backend be;
    r = fsck_backend_init(&be, device.fd, device.size_bytes, false);
    if (r < 0)
        return 8;
    r = store_identify(&be.backend, 0, device.size_bytes, &id, &why);
    fsck_backend_deinit(&be);
    for (uint16_t i = 0; r == 0 && i < id.format.partitions; i++) {
        struct fsck_pieces pieces;
        struct store *store = NULL;

        if (fsck_backend_init(&be, device.fd, device.size_bytes, false) < 0 ||
            fsck_pieces_init(&pieces, i, id.format.device_bytes / id.format.segment_bytes, true) < 0)
            return 8;
        struct store_config config = {.backend = &be.backend,
                                      .partition = i,
                                      .device_bytes = device.size_bytes,
                                      .events = &fsck_pieces_events,
                                      .ctx = &pieces,
                                      .n_pools = 1};
        int e = store_open(&config, &store, &why);
        if (e < 0) {
            fprintf(stderr, "spillctl: %s: partition %u: %s\n", argv[2], i, pieces.contradiction ? pieces.contradiction : why);
            status = 4;
        } else {
            printf("partition %u log %llu to %llu, %llu blocks, %llu entries, %u pieces alive\n", i,
                   (unsigned long long)pieces.from_lsn, (unsigned long long)pieces.to_lsn,
                   (unsigned long long)pieces.blocks, (unsigned long long)pieces.entries, pieces.n);
        }
        store_free(store);
        fsck_pieces_deinit(&pieces);
        fsck_backend_deinit(&be);
    }
    if (r < 0) {
        fprintf(stderr, "spillctl: %s: %s\n", argv[2], why);
        status = 4;
    }
    device_close(&device);
    return status;
}
