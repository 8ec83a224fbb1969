/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes wrong in a run, beyond crashes: which kinds, the seed decides; when, the disk's own random numbers.
 *
 *   flips       a bit of what is stored changes; a write changes one, goes elsewhere, or never comes to be
 *   errors      EIO once; from one device for good, until the next start; a flush that fails
 *   refusals    no memory; a worker that finds the memory gone
 *   always      short counts, a GPU's copy engine that fails, requests that take long
 *
 * A harsh run has nearly all of them, ten times as often, and ends as often again: faults that meet each other.
 */
#include <errno.h>

#include "tests/sim/sim.h"

#define SEGMENT_BYTES MIB

/* One in n; in a harsh run ten times as often. */
static bool faults_once_in(struct sim *sim, uint64_t n)
{
    return sim_below(sim, sim->harsh ? n / 10 : n) == 0;
}

void faults_make(struct sim *sim)
{
    uint32_t percent = sim->harsh ? 80 : 35;

    sim->flips_on = sim_percent(sim, percent);
    sim->errors_on = sim_percent(sim, percent);
    sim->refusals_on = sim_percent(sim, percent);
    for (uint32_t dev = 0; dev < sim->n_devs; dev++)
        sim->bad_writes_on |= sim->partitions[dev] > 1;
    sim->bad_writes_on = sim->flips_on && !sim->bad_writes_on && sim_percent(sim, 40);
}

/* Behind superblock, headers, log and sums of the first partition; half of the device is nothing else. */
static uint64_t payload_from(const struct sim *sim, uint32_t dev)
{
    return sim->device_bytes[dev] / 4;
}

void faults_begin(struct sim *sim)
{
    struct simdisk_faults *faults = simdisk_faults(sim->disk);

    *faults = (struct simdisk_faults){.dma_error = 20000, .short_count = 20000};
    for (uint32_t dev = 0; dev < sim->n_devs; dev++) {
        simdisk_die(sim->disk, dev, false);
        faults->first_byte = MAX(faults->first_byte, payload_from(sim, dev));
    }
    if (sim->errors_on)
        faults->read_error = 2000;
    if (sim->refusals_on)
        faults->no_chunk = 50000;
    if (!sim->bad_writes_on)
        return;
    sim->flipped = true;
    faults->bit_flip = faults->misdirect = faults->lose = 1000;
}

void faults_end(struct sim *sim)
{
    *simdisk_faults(sim->disk) = (struct simdisk_faults){0};
}

/* A bit of what pieces are stored in: not of the log, which has no second copy. */
void world_flip(struct sim *sim)
{
    uint32_t dev = (uint32_t)sim_below(sim, sim->n_devs);
    uint64_t from = payload_from(sim, dev);
    uint64_t to = sim->partitions[dev] == 1 ? sim->device_bytes[dev] - SEGMENT_BYTES : sim->device_bytes[dev] / 2 - MIB;

    sim_log(sim, "flip");
    simdisk_flip(sim->disk, dev, from + sim_below(sim, to - from), (unsigned)sim_below(sim, 8));
    sim->flipped = true;
    sim->counts->flips++;
}

void faults_step(struct sim *sim)
{
    if (!sim->errors_on)
        return;
    if (faults_once_in(sim, 6000))
        simdisk_fail_next(sim->disk, (enum io_blk_op)sim_below(sim, 3), -EIO);
    if (faults_once_in(sim, 12000)) {
        uint32_t dev = (uint32_t)sim_below(sim, sim->n_devs);

        sim_log(sim, "device %u is dead", dev);
        simdisk_die(sim->disk, dev, true);
        sim->counts->dead_devices++;
    }
}
