/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The smallest backend, all that formatting needs: blocking reads, writes and flushes of one open device.
 */
#pragma once

#include "io/backend.h"

struct device_backend {
    struct io_backend backend;
    int fd;
};

void device_backend_init(struct device_backend *backend, int fd);
