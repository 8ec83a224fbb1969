/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client that dies, hangs up or stands still at each step of a transfer. What it had is there for others as soon as it is
 * gone; and while it stands still it is in nobody's way. On the fake driver.
 */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "tests/system/support/hostile.h"

enum step {
    ATTACHED,
    RESERVED,
    SPILL_QUEUED,
    SPILL_FILLED,
    SPILL_COPIED,
    ACQUIRED,
    FETCH_QUEUED,
    FETCH_COPIED,
    FETCH_WAITS,
    DETACHING,
    STEPS,
};

/* As far as that step; the last one is under way when it returns. */
static void go(struct hostile *h, enum step step)
{
    hostile_open(h, (uint8_t)(2 + step)); /* a space for each: what one has reserved is in no other's way */
    if (step == ATTACHED)
        return;
    if (step == DETACHING) {
        struct spw_msg_gpu_detach ask = {.engine = h->s.space.engine, .lane = h->lane.lane};

        hostile_use_begin(h, SPW_OP_GPU_SPILL, 1, hostile_lease(h, SPW_OP_RESERVE, 10, MIB));
        ask.msg = (struct spw_msg){SPW_ABI_MAGIC, SPW_MSG_GPU_DETACH, SPW_ABI_VERSION, sizeof(ask), 99, 0, 0};
        raw_send(h->s.fd, &ask, sizeof(ask), NULL, 0);
        return;
    }
    if (step >= ACQUIRED) {
        ck_assert_int_eq(raw_put(&h->s, 5, MIB, 0x22), 0);
        uint64_t held = hostile_lease(h, SPW_OP_ACQUIRE, 5, 0);

        for (uint64_t seq = 1; step == FETCH_WAITS && seq <= HOSTILE_SLOTS; seq++)
            ck_assert_int_eq(hostile_use(h, SPW_OP_GPU_FETCH, seq, &held, 1), 0);
        if (step == FETCH_QUEUED)
            store_relaxed(&hostile_role()->hang, 1);
        if (step == FETCH_QUEUED || step == FETCH_WAITS)
            hostile_use_begin(h, SPW_OP_GPU_FETCH, step == FETCH_WAITS ? HOSTILE_SLOTS + 1 : 1, held);
        if (step == FETCH_COPIED)
            ck_assert_int_eq(hostile_use(h, SPW_OP_GPU_FETCH, 1, &held, 1), 0);
        return;
    }
    uint64_t lease = hostile_lease(h, SPW_OP_RESERVE, 10, MIB);
    if (step == SPILL_QUEUED)
        hostile_use_begin(h, SPW_OP_GPU_SPILL, 1, lease);
    if (step == SPILL_FILLED) {
        store_relaxed(&hostile_role()->hang, 1);
        store_release(&h->fences->spill.client_seq, UINT64_C(1));
        hostile_use_begin(h, SPW_OP_GPU_SPILL, 1, lease);
    }
    if (step == SPILL_COPIED) {
        store_release(&h->fences->spill.client_seq, UINT64_C(1));
        ck_assert_int_eq(hostile_use(h, SPW_OP_GPU_SPILL, 1, &lease, 1), 0);
    }
}

/* A process that goes so far, and no further. */
static pid_t go_in_a_process(enum step step)
{
    int ready[2];
    char byte;

    ck_assert_int_eq(pipe(ready), 0);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        struct hostile h;

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        go(&h, step);
        (void)!write(ready[1], "", 1);
        for (;;)
            pause();
    }
    close(ready[1]);
    ck_assert_msg(read(ready[0], &byte, 1) == 1, "step %d", step);
    close(ready[0]);
    return pid;
}

static void end_process(pid_t pid)
{
    kill(pid, SIGKILL);
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
}

START_TEST(dies_at_each_step)
{
    hostile_begin();
    for (enum step step = ATTACHED; step < STEPS; step++) {
        end_process(go_in_a_process(step));
        store_relaxed(&hostile_role()->hang, 0);
        others_are_served();
        nothing_is_left();
    }
    hostile_finish();
}
END_TEST

/* The session is ended while the process goes on, and keeps its mappings and descriptors. */
START_TEST(hangs_up_at_each_step)
{
    hostile_begin();
    for (enum step step = ATTACHED; step < STEPS; step++) {
        struct hostile h;

        go(&h, step);
        raw_session_close(&h.s);
        store_relaxed(&hostile_role()->hang, 0);
        nothing_is_left();
        memset(h.fences, 0xff, 4096);
        others_are_served();
        hostile_lane_unmap(&h);
    }
    hostile_finish();
}
END_TEST

/* What it has stays its own, and is in nobody's way. */
START_TEST(stands_still_at_each_step)
{
    pid_t pids[STEPS];

    hostile_begin();
    for (enum step step = ATTACHED; step < STEPS; step++) {
        pids[step] = go_in_a_process(step);
        ck_assert_int_eq(kill(pids[step], SIGSTOP), 0);
        store_relaxed(&hostile_role()->hang, 0);
        others_are_served();
    }
    hostile_becomes("pools", "pools/0/gpu/used_bytes",
                    HOSTILE_GOOD_BYTES + (STEPS - 1) * HOSTILE_LANE_BYTES); /* one has detached */
    for (enum step step = ATTACHED; step < STEPS; step++)
        end_process(pids[step]);
    hostile_finish();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu_steps");
    TCase *tc = tcase_create("steps");

    if (getenv("SPILLWAY_TEST_GPU")) {
        fprintf(stderr, "SKIP: not for a real GPU\n");
        return 77;
    }
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, dies_at_each_step);
    tcase_add_test(tc, hangs_up_at_each_step);
    tcase_add_test(tc, stands_still_at_each_step);
    suite_add_tcase(s, tc);
    return suite_main(s);
}
