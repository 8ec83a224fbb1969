/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake CUDA driver (libcuda.so.1 in tests/fake/ of a build folder), as a test steers and reads it.
 *
 * Environment, read once by each process:
 *   FAKE_CUDA_CONTROL         a file for struct fake_cuda_control, shared by all processes and the test; made if missing
 *   FAKE_CUDA_DEVICES         how many there are, 1 if unset; 0: cuInit says that there is none
 *   FAKE_CUDA_MIG             set: they are MIG instances; without CUDA_VISIBLE_DEVICES only the first is shown
 *   CUDA_VISIBLE_DEVICES      read by cuInit, as in reality: numbers, or UUIDs, or their first letters after GPU- or MIG-; the
 *                             first that is not there ends the list, and of MIG instances there is never more than one
 *   FAKE_CUDA_HBM             bytes of each device, 1 GiB if unset
 *   FAKE_CUDA_DRIVER_VERSION  13000 if unset; what is newer is not there
 *   FAKE_CUDA_WITHOUT         a function that cuGetProcAddress does not know
 *   CUDA_DEVICE_MAX_CONNECTIONS  hardware queues that the process's streams share, as in reality; unset: one a stream
 *
 * Device memory is not for the CPU: its addresses fault when they are read or written directly.
 */
#pragma once

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "include/base/base.h"

#define FAKE_CUDA_DEVICES_MAX 8
#define FAKE_CUDA_PROCESSES_MAX 64
#define FAKE_CUDA_FAULTS_MAX 8
#define FAKE_CUDA_HELPER_COMM "spillway-gpu"
#define FAKE_CUDA_GRANULARITY (2 * MIB)
#define FAKE_CUDA_CONTEXT_BYTES (16 * MIB) /* of HBM, that a process's context takes */

/* By the name of the process (its comm). */
enum fake_cuda_role_index { FAKE_CUDA_CLIENT, FAKE_CUDA_HELPER, FAKE_CUDA_ROLES };

/* Armed while result is not 0: calls of that function are counted, and from the nth on fail, so many times. */
struct fake_cuda_fault {
    char function[44]; /* as in NVIDIA's manual: cuMemAlloc, not cuMemAlloc_v2 */
    uint32_t nth;      /* calls until the first that fails; 1: the next */
    uint32_t times;
    uint32_t result;
    uint32_t n_fired;
    uint32_t reserved;
};

struct fake_cuda_role {
    /* Switches: a test sets them, at any time. */
    uint32_t lost;         /* a CUresult: processes of this role lose their context, for good */
    uint32_t hang;         /* work in streams is not finished while this is set */
    uint32_t capturing;    /* cuStreamIsCapturing says so */
    uint32_t dma_delay_us; /* of each copy */
    uint32_t hold;         /* cuMemHostRegister does not come back while this is set */
    uint32_t is_held;      /* a call has come to that */
    uint32_t residue; /* a byte: what memory of a device is full of when it is new; a real driver promises nothing */
    struct fake_cuda_fault faults[FAKE_CUDA_FAULTS_MAX];
    /* Counters: they only grow. */
    uint64_t bytes_dtoh, bytes_htod, bytes_dtod;
    uint64_t n_copies;
    uint64_t n_pageable_copies; /* of host memory that is not registered: slow, and synchronous */
    uint64_t n_gathers, n_scatters;
    uint64_t n_skipped; /* of those, that copied nothing because of their status word */
    uint64_t n_waits, n_writes;
    uint64_t n_reclaimed; /* what the end of a context found alive: leaked by its owner */
};

/* What one process has now. Of a process that was killed the slot is free for the next one. */
struct fake_cuda_process {
    int32_t pid;
    uint32_t role;
    int64_t hbm_bytes[FAKE_CUDA_DEVICES_MAX]; /* not what it imported */
    int64_t registered_bytes;
    int64_t n_registrations, n_host_allocations;
    int64_t n_allocations; /* cuMemAlloc */
    int64_t n_handles;     /* cuMemCreate and imports */
    int64_t n_reservations, n_mappings;
    int64_t n_streams, n_events, n_modules, n_contexts;
};

struct fake_cuda_control {
    struct fake_cuda_role roles[FAKE_CUDA_ROLES];
    struct fake_cuda_process processes[FAKE_CUDA_PROCESSES_MAX];
};

/* Maps the file, made and sized if need be; NULL and errno. It stays mapped: there is one a process. */
static inline struct fake_cuda_control *fake_cuda_control_map(const char *path)
{
    struct fake_cuda_control *control = MAP_FAILED;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    if (fd < 0)
        return NULL;
    if (ftruncate(fd, sizeof(*control)) == 0)
        control = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return control == MAP_FAILED ? NULL : control;
}

/* Makes calls of a function fail, from the nth from now on, so many times. */
static inline void fake_cuda_fail(struct fake_cuda_role *role, const char *function, uint32_t nth, uint32_t times,
                                  int result)
{
    for (size_t i = 0; i < FAKE_CUDA_FAULTS_MAX; i++) {
        struct fake_cuda_fault *fault = &role->faults[i];

        if (load_acquire(&fault->result) != 0)
            continue;
        snprintf(fault->function, sizeof(fault->function), "%s", function);
        fault->nth = nth;
        fault->times = times;
        store_release(&fault->result, (uint32_t)result); /* pairs with fault_for() in control.c */
        return;
    }
    assert(!"too many faults at once");
}

/* Whether the process of that slot is there. One that has ended but was not waited for still counts. */
static inline bool fake_cuda_is_alive(const struct fake_cuda_process *process)
{
    int32_t pid = load_acquire(&process->pid);

    return pid != 0 && (kill(pid, 0) == 0 || errno == EPERM);
}

static inline int64_t fake_cuda_sum(const struct fake_cuda_control *control, uint32_t role, size_t offset)
{
    int64_t sum = 0;

    for (size_t i = 0; i < FAKE_CUDA_PROCESSES_MAX; i++) {
        const struct fake_cuda_process *process = &control->processes[i];

        if ((role == FAKE_CUDA_ROLES || load_relaxed(&process->role) == role) && fake_cuda_is_alive(process))
            sum += load_relaxed((const int64_t *)(const void *)((const char *)process + offset));
    }
    return sum;
}

/* What all live processes of a role (FAKE_CUDA_ROLES: all) have of a member of struct fake_cuda_process. */
#define FAKE_CUDA_LIVE(control, role, member) fake_cuda_sum(control, role, offsetof(struct fake_cuda_process, member))
