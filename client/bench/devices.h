/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices for a while: files in a temporary folder, or loop devices on such files, with direct I/O (root only). A loop
 * device goes with its last descriptor, so also if we are killed.
 */
#pragma once

#include "include/base/base.h"

#define DEVICES_FOR_A_WHILE_MAX 4

struct devices {
    char folder[64];
    char paths[DEVICES_FOR_A_WHILE_MAX][96]; /* to use: of the file, or of the loop device */
    char files[DEVICES_FOR_A_WHILE_MAX][96]; /* to remove */
    int fds[DEVICES_FOR_A_WHILE_MAX];        /* that hold loop devices; 0: none */
    uint32_t n;
};

enum devices_kind {
    DEVICES_FILES,
    DEVICES_LOOPS,
    DEVICES_LOOPS_SPARSE, /* on files that take no more space than what is written */
};

/* n devices of size_bytes, whose space is taken but not written. -ENOTSUP: no loop devices here. What was made is removed
 * by devices_deinit() on failure too. */
must_check int devices_init(struct devices *devices, enum devices_kind kind, uint32_t n, uint64_t size_bytes);
void devices_deinit(struct devices *devices);
