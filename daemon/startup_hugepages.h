/* SPDX-License-Identifier: Apache-2.0 */
/* `hugepages = require`: what the configuration needs, node by node, against what is free. Control thread, at start. */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"

struct hugepages {
    uint32_t n;
    struct {
        uint32_t node; /* MEMORY_NODE_ANY: whichever */
        uint64_t bytes;
    } need[NODES_MAX + 1];
};

/* One chunk of memory, or several of which all but the last are whole pages. */
void hugepages_add(struct hugepages *h, uint32_t node, uint64_t bytes);
/* -ENOMEM: fewer are free; how many are missing, and which knob gives them, has been logged. */
must_check int hugepages_check(const struct hugepages *h);
