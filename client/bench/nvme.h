/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between nvme.c, which goes through devices, sizes and depths, and nvme_contest.c, which measures one row.
 */
#pragma once

#include <sys/types.h>

#include "client/bench/devices.h"
#include "client/bench/disk_load.h"
#include "client/bench/figure.h"
#include "client/bench/fio.h"
#include "client/bench/options.h"

struct nvme_setup {
    const char *name, *word;
    bool is_loop;
    uint32_t n_devices;
};

struct nvme {
    const struct options *options;
    const struct nvme_setup *setup;
    struct devices devices; /* ours first, then fio's */
    pid_t daemon_pid;
    spw_session *session;
    uint64_t data_bytes, dram_bytes, start_ns;
    double sample_seconds, xxh3_ms_a_gb;
    uint64_t block_bytes_min, block_bytes; /* not equal: many small objects */
    struct disk_load load;
    struct fio_job fio;
};

/* Whether the whole benchmark has taken its time; then it says that this is skipped. */
bool nvme_is_late(const struct nvme *b, const char *what);
/* One depth of one way, as b->load says, beside fio. speed_goal 0: none. What is late is skipped. */
must_check int nvme_contest(struct nvme *b, bool is_spill, double speed_goal, struct figures *figures);
