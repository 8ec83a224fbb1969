/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies by workers: ranges are one sequence, of which each thread takes the next CLIENT_COPY_SLICE_BYTES under a lock that
 * is held a thousandth of the time that these take. What is copied is larger than the caches: it goes past them.
 */
#include "client/lib/train.h"

struct ranges {
    pthread_mutex_t lock; /* guards at and at_bytes */
    const struct spw_copy *copies;
    size_t n, at;
    uint64_t at_bytes; /* of the one that it is at */
};

/* Returns false if nothing is left. */
static bool slice_take(struct ranges *ranges, struct spw_copy *ret_slice)
{
    pthread_mutex_lock(&ranges->lock);
    while (ranges->at < ranges->n && ranges->at_bytes == ranges->copies[ranges->at].size_bytes) {
        ranges->at++;
        ranges->at_bytes = 0;
    }
    bool found = ranges->at < ranges->n;
    if (found) {
        const struct spw_copy *copy = &ranges->copies[ranges->at];
        *ret_slice = (struct spw_copy){
            .to = (uint8_t *)copy->to + ranges->at_bytes,
            .from = (const uint8_t *)copy->from + ranges->at_bytes,
            .size_bytes = MIN(copy->size_bytes - ranges->at_bytes, (uint64_t)CLIENT_COPY_SLICE_BYTES),
        };
        ranges->at_bytes += ret_slice->size_bytes;
    }
    pthread_mutex_unlock(&ranges->lock);
    return found;
}

static void slices_copy(void *arg)
{
    struct spw_copy slice;

    while (slice_take(arg, &slice))
        client_stream_copy(slice.to, slice.from, slice.size_bytes);
    client_stream_fence();
}

static unsigned threads_for(const struct spw_copy *copies, size_t n)
{
    uint64_t n_slices = 0;

    for (size_t i = 0; i < n && n_slices < CLIENT_WORKERS_MAX; i++)
        n_slices += MIN(div_round_up(copies[i].size_bytes, CLIENT_COPY_SLICE_BYTES), (uint64_t)CLIENT_WORKERS_MAX);
    return (unsigned)n_slices;
}

static int check_copies(const spw_workers *workers, const struct spw_copy *copies, size_t n)
{
    int r = client_workers_check("spw_copy", workers);

    if (r == 0 && !copies && n > 0)
        r = client_error(-EINVAL, 0, "spw_copy: the list is NULL");
    for (size_t i = 0; r == 0 && i < n; i++)
        if (copies[i].size_bytes > 0 && (!copies[i].to || !copies[i].from))
            r = client_error(-EINVAL, 0, "spw_copy: copy %zu: an address is NULL", i);
    return r;
}

int spw_copy(spw_workers *workers, const struct spw_copy *copies, size_t n)
{
    int r = check_copies(workers, copies, n);

    if (r < 0)
        return r;
    struct ranges ranges = {.copies = copies, .n = n};
    pthread_mutex_init(&ranges.lock, NULL);
    if (workers) {
        (void)client_workers_hold(workers);
        client_workers_run(workers, threads_for(copies, n), slices_copy, &ranges);
        client_workers_release(workers);
    } else {
        slices_copy(&ranges);
    }
    pthread_mutex_destroy(&ranges.lock);
    return 0;
}
