/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An engine's side of the ring to one helper (io/gpu_wire.h): uses of lanes become commands, completions become results.
 * The engine's thread only; ring memory and doorbell are borrowed.
 *
 * The helper has fewer rights than we do, so what it writes is checked. One that breaks the rules is not believed any more,
 * and not listened to: it may still be writing to memory, so nothing that it was given ends until somebody has seen to it
 * that its process is gone, and says so (gpu_port_end()).
 */
#pragma once

#include "include/base/base.h"
#include "include/base/list.h"
#include "io/backend.h"
#include "io/gpu_wire.h"

struct gpu_port;

/* entries: a power of two, at most GPU_RING_ENTRIES. -EINVAL, -ENOMEM. */
must_check int gpu_port_new(void *ring_mem, uint32_t entries, int doorbell_fd, struct gpu_port **ret_port);
/* Nothing is queued or in flight. Takes NULL. */
void gpu_port_free(struct gpu_port *port);

/* Queues it; gpu_port_fill() takes it to the ring. A CANCEL goes before what is queued. At most as many runs as entries. */
void gpu_port_submit(struct gpu_port *port, struct io_dma *dma);
/* As many of the queued uses as the ring has room for, in order and each as a whole; wakes the helper if it sleeps. */
void gpu_port_fill(struct gpu_port *port);
/* What has ended, at most as many as a ring has entries: how many. Their done() is called. */
uint32_t gpu_port_take(struct gpu_port *port);
/* The helper's process is gone: whatever is queued or in flight ends with this. */
void gpu_port_end(struct gpu_port *port, int status);

/* Nothing is queued or in flight. */
bool gpu_port_is_idle(const struct gpu_port *port);
/* A hint, for the price of a load: gpu_port_take() would find something. */
bool gpu_port_peek(const struct gpu_port *port);
/* It broke the rules, or has not ended a use a good while (GPU_LATE_MS) after its time. */
bool gpu_port_is_bad(const struct gpu_port *port, uint64_t now_ns);

/* Before the engine sleeps: from now on the helper rings. False: do not, a completion is there. Then, or after the sleep,
 * gpu_port_wake(). */
bool gpu_port_sleep(struct gpu_port *port);
void gpu_port_wake(struct gpu_port *port);
int gpu_port_doorbell(const struct gpu_port *port);
/* Empties the doorbell. False: the other end is closed, it will not ring again. */
bool gpu_port_drain(const struct gpu_port *port);
