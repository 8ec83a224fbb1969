/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One loop for both directions: wait for the queue, take what ended, check it, ask for the next. A fetch goes through the
 * blocks in a fixed pseudo-random order, all of them before any again: with LRU and a memory that is smaller, each one is
 * then on the device when its turn comes. Leases are given back right before the next request, but nobody waits for it:
 * a slot asks again once its leases are back, and meanwhile another one does. One thread.
 */
#include "client/bench/disk_load.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "client/bench/live.h"
#include "client/bench/micro.h"
#include "client/bench/payload.h"
#include "client/bench/process.h"
#include "include/base/atomic.h"

#define TIMEOUT_MS 30000
#define STUCK_MS 40000
#define DELETE_LIST 1024

/* A loop's way to ask, and what it does with an answer. *ret_ended: the request is over, and may be followed by one. */
struct direction {
    int (*ask)(struct disk_load *load, struct disk_slot *slot);
    int (*take)(struct disk_load *load, struct disk_slot *slot, bool *ret_ended);
};

static uint64_t size_of(const struct disk_load *l, uint64_t id)
{
    uint64_t n = l->block_bytes / l->block_bytes_min;

    return (n == 1 ? 1 : payload_mix(l->seed + 1, id) % n + 1) * l->block_bytes_min;
}

static void slot_set(const struct disk_load *l, struct disk_slot *slot, unsigned i, uint64_t id)
{
    slot->ids[i] = id;
    slot->sizes[i] = size_of(l, id);
    slot->bytes += slot->sizes[i];
    payload_key(l->seed, id, &slot->keys[i]);
}

static void stamp(const struct disk_load *l, void *data, uint64_t size_bytes, uint64_t id)
{
    uint64_t mark = payload_mix(l->seed, id);

    memcpy(data, &mark, sizeof(mark));
    memcpy((char *)data + size_bytes - sizeof(mark), &mark, sizeof(mark));
}

static bool stamp_is_right(const struct disk_load *l, const void *data, uint64_t size_bytes, uint64_t id)
{
    uint64_t mark = payload_mix(l->seed, id);

    return memcmp(data, &mark, sizeof(mark)) == 0 &&
           memcmp((const char *)data + size_bytes - sizeof(mark), &mark, sizeof(mark)) == 0;
}

/* ── fetching ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static uint64_t gcd(uint64_t a, uint64_t b)
{
    return b == 0 ? a : gcd(b, a % b);
}

void disk_load_stored(struct disk_load *l, uint64_t n)
{
    uint64_t n_lists = n / l->list;

    l->n_stored = n_lists * l->list;
    l->next = 0;
    l->stride = (uint64_t)((double)n_lists * 0.618) | 1; /* far from the last, and from the one before */
    while (gcd(l->stride, n_lists) != 1)
        l->stride += 2;
}

static int fetch_ask(struct disk_load *l, struct disk_slot *slot)
{
    uint64_t n_lists = l->n_stored / l->list, first = l->next++ % n_lists * l->stride % n_lists * l->list;
    spw_job *job;

    slot->bytes = 0;
    for (unsigned i = 0; i < l->list; i++)
        slot_set(l, slot, i, first + i);
    slot->start_ns = now_ns();
    int r = spw_submit_acquire(l->queue, l->space, slot->keys, l->list, 0, TIMEOUT_MS, slot->views, slot, &job);
    return r < 0 ? micro_say("acquire", r) : 0;
}

static void slot_free(struct disk_load *l, struct disk_slot *slot)
{
    l->free[l->n_free++] = slot;
}

static int fetch_take(struct disk_load *l, struct disk_slot *slot, bool *ret_ended)
{
    spw_job *job;

    *ret_ended = !slot->is_releasing;
    if (slot->is_releasing) {
        slot->is_releasing = false;
        l->n_releasing--;
        slot_free(l, slot);
        return 0;
    }
    hist_add(l->hist, now_ns() - slot->start_ns);
    for (unsigned i = 0; i < l->list; i++) {
        const struct spw_view *v = &slot->views[i];
        if (v->status < 0) {
            fprintf(stderr, "spillbench: acquire: %s, %s\n", strerrordesc_np(-v->status), spw_limit_text(v->detail));
            return v->status;
        }
        if (v->size_bytes != slot->sizes[i] || !stamp_is_right(l, v->data, v->size_bytes, slot->ids[i]))
            return micro_say("acquire", 0);
        l->n_fetched += v->flags & SPW_RESULT_FETCHED ? v->size_bytes : 0;
    }
    l->bytes += slot->bytes;
    store_relaxed(&l->total, l->total + slot->bytes);
    slot->is_releasing = true;
    l->n_releasing++;
    int r = spw_submit_release(l->queue, l->space, slot->views, l->list, 0, slot, &job);
    return r < 0 ? micro_say("release", r) : 0;
}

/* ── spilling ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int spill_ask(struct disk_load *l, struct disk_slot *slot)
{
    spw_job *job;

    slot->bytes = 0;
    slot->is_reserved = false;
    for (unsigned i = 0; i < l->list; i++)
        slot_set(l, slot, i, l->next++);
    slot->start_ns = now_ns();
    int r = spw_submit_reserve(l->queue, l->space, slot->keys, slot->sizes, l->list, 0, TIMEOUT_MS, slot->views, slot,
                               &job);
    return r < 0 ? micro_say("reserve", r) : 0;
}

static int spill_take(struct disk_load *l, struct disk_slot *slot, bool *ret_ended)
{
    spw_job *job;

    *ret_ended = slot->is_reserved;
    for (unsigned i = 0; i < l->list; i++) {
        const struct spw_view *v = &slot->views[i];
        if (v->status == 0) {
            if (!slot->is_reserved)
                stamp(l, v->data, slot->sizes[i], slot->ids[i]);
            continue;
        }
        fprintf(stderr, "spillbench: %s: %s, %s\n", slot->is_reserved ? "commit" : "reserve",
                strerrordesc_np(-v->status), spw_limit_text(v->detail));
        return v->status;
    }
    if (!slot->is_reserved) {
        slot->is_reserved = true;
        int r = spw_submit_commit(l->queue, l->space, slot->views, l->list, 0, slot, &job);
        return r < 0 ? micro_say("commit", r) : 0;
    }
    hist_add(l->hist, now_ns() - slot->start_ns);
    l->bytes += slot->bytes;
    store_relaxed(&l->total, l->total + slot->bytes);
    slot_free(l, slot);
    return 0;
}

/* ── the loop ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int queue_wait(spw_queue *queue)
{
    struct pollfd pfd = {.fd = spw_queue_fd(queue), .events = POLLIN};
    int r = spw_queue_arm(queue);

    if (r == 0 && poll(&pfd, 1, STUCK_MS) == 0) {
        fprintf(stderr, "spillbench: no answer for %d s\n", STUCK_MS / 1000);
        return -ETIMEDOUT;
    }
    return r < 0 ? micro_say("queue", r) : 0;
}

static int job_take(struct disk_load *l, const struct direction *way, spw_job *job)
{
    struct disk_slot *slot = spw_job_user(job);
    bool ended = true;
    int r = spw_job_status(job);

    spw_job_free(job);
    if (r < 0) {
        fprintf(stderr, "spillbench: a job ended with: %s\n", strerrordesc_np(-r));
        return r;
    }
    r = way->take(l, slot, &ended);
    l->n_asked -= ended;
    return r;
}

/* As many requests as the depth asks for and slots are free for. */
static int ask(struct disk_load *l, const struct direction *way)
{
    int r = 0;

    while (r == 0 && l->n_asked < l->depth && l->n_free > 0) {
        l->n_asked++;
        r = way->ask(l, l->free[--l->n_free]);
    }
    return r;
}

static int loop(struct disk_load *l, const struct direction *way, uint64_t bytes, double seconds)
{
    uint64_t start_ns = now_ns();
    spw_job *job;

    memset(l->hist, 0, sizeof(*l->hist));
    l->bytes = l->n_fetched = 0;
    l->n_free = l->n_asked = l->n_releasing = 0;
    for (unsigned i = 0; i < DISK_SLOTS; i++)
        slot_free(l, &l->slots[i]);
    int r = ask(l, way);
    while (r == 0 && l->n_asked + l->n_releasing > 0) {
        bool go_on = (bytes == 0 || l->bytes < bytes) && (seconds == 0 || seconds_since(start_ns) < seconds) &&
                     !live_interrupted();
        r = spw_queue_next(l->queue, &job);
        if (r == -EAGAIN)
            r = queue_wait(l->queue);
        else if (r == 0)
            r = job_take(l, way, job);
        if (r == 0 && go_on)
            r = ask(l, way);
    }
    return r < 0 ? r : live_interrupted() ? -EINTR : 0;
}

int disk_load_fetch(struct disk_load *load, uint64_t bytes, double seconds)
{
    return loop(load, &(const struct direction){fetch_ask, fetch_take}, bytes, seconds);
}

int disk_load_spill(struct disk_load *load, uint64_t bytes, double seconds)
{
    return loop(load, &(const struct direction){spill_ask, spill_take}, bytes, seconds);
}

int disk_load_delete(struct disk_load *l, uint64_t first, uint64_t end)
{
    static struct spw_key keys[DELETE_LIST];
    int r = 0;

    for (uint64_t at = first; r == 0 && at < end; at += DELETE_LIST) {
        uint64_t n = MIN((uint64_t)DELETE_LIST, end - at);
        for (uint64_t i = 0; i < n; i++)
            payload_key(l->seed, at + i, &keys[i]);
        r = spw_delete(l->space, keys, n, NULL); /* what was dropped meanwhile is not there: no matter */
    }
    return r < 0 ? micro_say("delete", r) : 0;
}
