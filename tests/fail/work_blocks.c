/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks: copied in and out, in place, in lists, from another thread. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fail/workload.h"

#define LARGE_BYTES ((size_t)9 << 20) /* more than one piece */

static char buffer[LARGE_BYTES];

static void get_and_compare(struct work *w, spw_space *space, uint32_t number, size_t size_bytes, bool was_stored)
{
    struct spw_key key = work_key(w, number);
    struct spw_iovec to = {buffer, sizeof(buffer)};
    int32_t status = 0;

    memset(buffer, 0, size_bytes);
    int r = spw_get(space, &key, &to, 1, 0, work_timeout_ms(w), &status);

    r = r < 0 ? r : status;
    if (r == 0 && (to.size_bytes != size_bytes || !work_is(buffer, size_bytes, work_seed(w, number))))
        work_broken(w, "get: wrong bytes", number);
    if (r != -ENOENT || was_stored)
        (void)work_answer(w, "get", r);
}

static void put_and_get(struct work *w, spw_space *space, uint32_t number, size_t size_bytes)
{
    struct spw_key key = work_key(w, number);
    struct spw_iovec from = {buffer, size_bytes};
    int32_t status = 0;

    work_fill(buffer, size_bytes, work_seed(w, number));
    int r = spw_put(space, &key, &from, 1, 0, work_timeout_ms(w), &status);

    r = work_answer(w, "put", r < 0 ? r : status);
    get_and_compare(w, space, number, size_bytes, r == 0);
}

static void delete_blocks(struct work *w, spw_space *space, uint32_t first, size_t n)
{
    struct spw_key keys[WORK_BLOCKS];
    int32_t status[WORK_BLOCKS];

    for (size_t i = 0; i < n; i++)
        keys[i] = work_key(w, first + (uint32_t)i);
    (void)work_answer(w, "delete", spw_delete(space, keys, n, status));
}

void work_blocks(struct work *w, spw_space *space)
{
    put_and_get(w, space, 0, WORK_BLOCK_BYTES);
    put_and_get(w, space, 1, 4096);
    put_and_get(w, space, 2, LARGE_BYTES);
    delete_blocks(w, space, 0, 3);
}

/* Reserved, written where they lie, committed; found, leased, compared. */
void work_lists(struct work *w, spw_space *space)
{
    struct spw_key keys[WORK_BLOCKS];
    struct spw_view views[WORK_BLOCKS] = {{0}};
    struct spw_hit hits[WORK_BLOCKS];
    int32_t status[WORK_BLOCKS];
    uint64_t sizes[WORK_BLOCKS];
    struct spw_stat stat;

    for (uint32_t i = 0; i < WORK_BLOCKS; i++) {
        keys[i] = work_key(w, 10 + i);
        sizes[i] = WORK_BLOCK_BYTES;
    }
    int r = spw_reserve(space, keys, sizes, WORK_BLOCKS, SPW_CHAIN, work_timeout_ms(w), views);

    if (work_answer(w, "reserve", r) == 0) {
        for (uint32_t i = 0; i < WORK_BLOCKS; i++)
            if (work_answer(w, "reserve a block", views[i].status) == 0)
                work_fill(views[i].data, WORK_BLOCK_BYTES, work_seed(w, 10 + i));
        (void)work_answer(w, "abort", spw_abort(space, &views[WORK_BLOCKS - 1], 1));
        (void)work_answer(w, "commit", spw_commit(space, views, WORK_BLOCKS - 1, SPW_CHAIN));
        (void)spw_abort(space, views, WORK_BLOCKS);
    }
    (void)work_answer(w, "lookup", (int)spw_lookup(space, keys, WORK_BLOCKS, SPW_CHAIN, hits));
    memset(views, 0, sizeof(views));
    r = spw_acquire(space, keys, WORK_BLOCKS - 1, SPW_CHAIN, work_timeout_ms(w), views);
    if (work_answer(w, "acquire", r) == 0) {
        for (uint32_t i = 0; i < WORK_BLOCKS - 1; i++)
            if (views[i].status == 0 && !work_is(views[i].data, WORK_BLOCK_BYTES, work_seed(w, 10 + i)))
                work_broken(w, "acquire: wrong bytes", 10 + i);
        (void)work_answer(w, "release", spw_release(space, views, WORK_BLOCKS - 1, 0));
    }
    (void)work_answer(w, "touch", spw_touch(space, keys, WORK_BLOCKS, 0));
    (void)work_answer(w, "prefetch", spw_prefetch(space, keys, WORK_BLOCKS, 0, work_timeout_ms(w), status));
    (void)work_answer(w, "advise", spw_advise(space, keys, WORK_BLOCKS, SPW_ADVICE_KEEP_UNTIL, 10));
    (void)work_answer(w, "pin", spw_pin(space, keys, WORK_BLOCKS, 0, status));
    (void)work_answer(w, "stat", spw_stat(space, &stat));
    (void)work_answer(w, "nop", spw_nop(space));
    delete_blocks(w, space, 10, WORK_BLOCKS);
}

struct other {
    struct work *w;
    spw_space *space;
};

static void *other_thread(void *arg)
{
    struct other *other = arg;

    put_and_get(other->w, other->space, 20, WORK_BLOCK_BYTES);
    delete_blocks(other->w, other->space, 20, 1);
    return NULL;
}

void work_thread(struct work *w, spw_space *space)
{
    struct other other = {w, space};
    pthread_t thread;

    if (pthread_create(&thread, NULL, other_thread, &other) == 0)
        pthread_join(thread, NULL);
}
