/* SPDX-License-Identifier: Apache-2.0 */
/* A client that has something when the daemon's place is taken: leases that it reads through, and calls after it. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "tests/fail/workload.h"

#define FIRST 80

static char bytes[WORK_BLOCK_BYTES];

static bool put_all(struct work *w, spw_space *space, const struct spw_key *keys)
{
    for (uint32_t i = 0; i < WORK_BLOCKS; i++) {
        struct spw_iovec from = {bytes, sizeof(bytes)};
        int32_t status = 0;

        work_fill(bytes, sizeof(bytes), work_seed(w, FIRST + i));
        int r = spw_put(space, &keys[i], &from, 1, 0, work_timeout_ms(w), &status);

        if (work_answer(w, "put to hold", r < 0 ? r : status) < 0)
            return false;
    }
    return true;
}

static void compare(const struct work *w, const struct spw_view *views, const char *what)
{
    for (uint32_t i = 0; i < WORK_BLOCKS; i++)
        if (views[i].status == 0 && !work_is(views[i].data, WORK_BLOCK_BYTES, work_seed(w, FIRST + i)))
            work_broken(w, what, FIRST + i);
}

static void wait_for_driver(void)
{
    char c;

    printf("held\n");
    while (read(STDIN_FILENO, &c, 1) < 0 && errno == EINTR)
        ;
}

void work_hold(struct work *w, spw_space *space)
{
    struct spw_view views[WORK_BLOCKS] = {{0}};
    struct spw_key keys[WORK_BLOCKS];
    int32_t status[WORK_BLOCKS];

    for (uint32_t i = 0; i < WORK_BLOCKS; i++)
        keys[i] = work_key(w, FIRST + i);
    bool has_leases =
        put_all(w, space, keys) &&
        work_answer(w, "acquire", spw_acquire(space, keys, WORK_BLOCKS, 0, work_timeout_ms(w), views)) == 0;

    wait_for_driver();
    if (has_leases) {
        compare(w, views, "a leased block is not what it was");
        (void)work_answer(w, "release", spw_release(space, views, WORK_BLOCKS, 0));
    }
    memset(views, 0, sizeof(views));
    if (work_answer(w, "acquire", spw_acquire(space, keys, WORK_BLOCKS, 0, work_timeout_ms(w), views)) == 0) {
        compare(w, views, "a block is not what it was");
        (void)work_answer(w, "release", spw_release(space, views, WORK_BLOCKS, 0));
    }
    (void)work_answer(w, "delete", spw_delete(space, keys, WORK_BLOCKS, status));
}
