/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which GPUs have a helper: those that the config lists, from the start; without a list those that somebody names, as far as
 * names that are made up let. The helper is this program.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/support/gpus_rig.h"

#define DRAM "[tier.dram]\nsize = 64 MiB\n"
#define POOL DRAM "[pool default]\n"
#define UUID(n) "GPU-00000000-0000-0000-0000-0000000000" n
#define LISTED(list) "[daemon]\ngpus = " list "\n" POOL

static struct gpus_rig rig;

/* --- The helper ---------------------------------------------------------------------------------------------------- */

/* "none": there is no such GPU; "slow": it does not answer; else all is well. */
static _Noreturn void play(const char *role)
{
    for (;;) {
        struct gpu_msg msg;
        int fds[2];

        gpus_rig_receive(&msg, fds);
        if (msg.type == GPU_MSG_START && strcmp(role, "none") == 0)
            gpus_rig_answer(&msg, (struct gpu_msg){.status = -ENODEV, .text = "no such GPU"}, -1);
        else if (msg.type == GPU_MSG_START && strcmp(role, "slow") != 0)
            gpus_rig_answer(&msg, (struct gpu_msg){.text = "a GPU"}, -1);
        else if (msg.type == GPU_MSG_STAT)
            gpus_rig_answer(&msg, (struct gpu_msg){0}, -1);
        for (int i = 0; i < 2; i++)
            if (fds[i] >= 0)
                close(fds[i]);
    }
}

/* Processes that there were so far. */
static uint32_t n_started(void)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < rig.gpus->n; i++)
        n += rig.gpus->gpu[i]->incarnation + (rig.gpus->gpu[i]->pid > 0);
    return n;
}

static enum gpu_state state_of(uint32_t n)
{
    const struct gpu *gpu = gpu_find(rig.gpus, gpus_rig_uuid(n));

    return gpu ? gpu->state : GPU_OFF;
}

static void find_says(uint32_t n, uid_t uid, int status, const char *words)
{
    const char *why = "";

    ck_assert_int_eq(gpus_rig_find(&rig, n, uid, &why), status);
    ck_assert_msg(strstr(why, words), "\"%s\" in: %s", words, why);
}

/* --- Without a list ------------------------------------------------------------------------------------------------ */

START_TEST(made_up_names_cost_little)
{
    gpus_rig_init(&rig, POOL, "none");
    struct gpu_blame *blame = rig.gpus->blames;

    for (uint32_t n = 1; n <= GPU_UID_TRIALS_MAX; n++)
        find_says(n, 1000, -EAGAIN, "is being started");
    for (uint32_t n = 1; n <= GPU_UID_TRIALS_MAX; n++)
        gpus_rig_until(&rig, state_of(n) == GPU_PAUSED);
    ck_assert_uint_eq(blame->uid, 1000);
    ck_assert_uint_eq(blame->n_failed, GPU_UID_TRIALS_MAX);
    ck_assert_uint_ge(blame->until_ns, rig.gpus->gpu[0]->since_ns + 8 * NS_PER_S);
    blame->until_ns += 3600 * NS_PER_S; /* the machine may be slow */
    for (uint32_t n = 1; n <= 100; n++)
        find_says(n, 1000, -ENODEV, n <= GPU_UID_TRIALS_MAX ? "no such GPU" : "no other is tried for this user within");
    ck_assert_uint_eq(n_started(), GPU_UID_TRIALS_MAX);
    ck_assert_uint_eq(rig.gpus->n, GPU_UID_PLACES_MAX);
    gpus_rig_role(&rig, "good"); /* others are not in his way, nor he in theirs */
    find_says(201, 1001, -EAGAIN, "is being started");
    gpus_rig_until(&rig, state_of(201) == GPU_SERVING);
    find_says(201, 1000, 0, "");
    find_says(202, 1000, -ENODEV, "no other is tried for this user within");
    gpus_rig_deinit(&rig);
}
END_TEST

START_TEST(a_user_starts_few_at_a_time)
{
    gpus_rig_init(&rig, POOL, "slow");
    for (uint32_t n = 1; n <= GPU_UID_TRIALS_MAX; n++)
        find_says(n, 1000, -EAGAIN, "its helper is being started");
    find_says(50, 1000, -EAGAIN, "are being started");
    ck_assert_uint_eq(n_started(), GPU_UID_TRIALS_MAX);
    for (uint32_t n = 1; n <= GPU_TRIALS_MAX; n++)
        find_says(100 + n, 1001 + n, -EAGAIN, "being started");
    ck_assert_uint_eq(n_started(), GPU_TRIALS_MAX);
    gpus_rig_deinit(&rig);
}
END_TEST

/* All places are taken by names that failed: they are there for others again after a while, and no sooner. */
START_TEST(places_of_others_are_not_taken)
{
    gpus_rig_init(&rig, POOL, "none");
    for (uint32_t n = 0; n < GPUS_MAX; n++) {
        uid_t uid = 1000 + n / GPU_UID_PLACES_MAX;

        find_says(n, uid, -EAGAIN, "is being started");
        gpus_rig_until(&rig, state_of(n) == GPU_PAUSED);
        memset(rig.gpus->blames, 0, sizeof(rig.gpus->blames)); /* as if a long time had passed */
    }
    ck_assert_uint_eq(rig.gpus->n, GPUS_MAX);
    find_says(100, 2000, -ENODEV, "too many GPUs were asked for");
    find_says(100, 1000, -EAGAIN, "is being started"); /* one of his own goes */
    ck_assert_ptr_null(gpu_find(rig.gpus, gpus_rig_uuid(0)));
    ck_assert_ptr_nonnull(gpu_find(rig.gpus, gpus_rig_uuid(4)));
    rig.gpus->gpu[9]->since_ns -= 2 * GPU_BLAME_MS_MAX * NS_PER_MS;
    find_says(101, 2000, -EAGAIN, "is being started");
    ck_assert_ptr_null(gpu_find(rig.gpus, gpus_rig_uuid(9)));
    gpus_rig_deinit(&rig);
}
END_TEST

START_TEST(a_failure_is_told)
{
    const char *why = "";

    gpus_rig_init(&rig, POOL, "none");
    gpus_rig_until(&rig, gpus_rig_find(&rig, 1, 1000, &why) == -ENODEV);
    ck_assert_msg(strstr(why, "no such GPU"), "%s", why);
    gpus_rig_role(&rig, "good"); /* and it is tried again when he has waited */
    gpus_rig_until(&rig, gpus_rig_find(&rig, 1, 1000, &why) == 0);
    strcpy(rig.gpus->helper_path, "/nowhere/spillway-gpu");
    find_says(2, 1000, -ENODEV, "spillway-gpu cannot be started: No such file");
    gpus_rig_deinit(&rig);
}
END_TEST

/* --- With a list --------------------------------------------------------------------------------------------------- */

START_TEST(what_is_listed_is_started)
{
    gpus_rig_init(&rig, LISTED(UUID("01") ", " UUID("02")), "good");
    gpus_rig_until(&rig, state_of(1) == GPU_SERVING && state_of(2) == GPU_SERVING);
    find_says(1, 1000, 0, "");
    find_says(3, 1000, GPUS_FORBIDDEN, "see gpus in [daemon]");
    ck_assert_uint_eq(rig.gpus->n, 2);
    gpus_rig_deinit(&rig);
}
END_TEST

START_TEST(what_is_listed_is_tried_again)
{
    gpus_rig_init(&rig, LISTED(UUID("01")), "none");
    gpus_rig_until(&rig, n_started() >= 3);
    gpus_rig_until(&rig, state_of(1) == GPU_PAUSED);
    find_says(1, 1000, -ENODEV, "no such GPU"); /* who asks starts nothing */
    gpus_rig_role(&rig, "good");
    gpus_rig_until(&rig, state_of(1) == GPU_SERVING);
    gpus_rig_deinit(&rig);
}
END_TEST

START_TEST(none_starts_nothing)
{
    gpus_rig_init(&rig, LISTED("none"), "good");
    find_says(1, 1000, GPUS_FORBIDDEN, "see gpus in [daemon]");
    ck_assert_uint_eq(rig.gpus->n, 0);
    gpus_rig_deinit(&rig);
}
END_TEST

START_TEST(a_pool_has_its_own)
{
    gpus_rig_init(&rig, DRAM "[pool a]\ngpus = " UUID("01") "\n", "good");
    find_says(2, 1000, GPUS_FORBIDDEN, "pool a may not use it: see gpus in its [pool] section");
    ck_assert_uint_eq(rig.gpus->n, 0);
    find_says(1, 1000, -EAGAIN, "is being started");
    gpus_rig_until(&rig, state_of(1) == GPU_SERVING);
    gpus_rig_reload(&rig, DRAM "[pool a]\ngpus = none\n");
    find_says(1, 1000, GPUS_FORBIDDEN, "pool a may not use it");
    gpus_rig_deinit(&rig);
}
END_TEST

START_TEST(a_reload_starts_and_ends)
{
    struct gpu_lane lane = {.state = LANE_ATTACHED};

    gpus_rig_init(&rig, LISTED(UUID("01")), "good");
    gpus_rig_until(&rig, state_of(1) == GPU_SERVING);
    gpus_rig_reload(&rig, LISTED(UUID("02")));
    gpus_rig_until(&rig, state_of(2) == GPU_SERVING && state_of(1) == GPU_OFF);
    lane.gpu = gpu_find(rig.gpus, gpus_rig_uuid(2)); /* whoever uses it may go on */
    list_init(&lane.question.link);
    list_push_tail(&lane.gpu->lanes, &lane.gpu_link);
    lane.gpu->n_pool_lanes[0]++;
    gpus_rig_reload(&rig, LISTED("none"));
    for (int i = 0; i < 20; i++)
        gpus_rig_turn(&rig);
    ck_assert_int_eq(state_of(2), GPU_SERVING);
    find_says(2, 1000, GPUS_FORBIDDEN, "see gpus in [daemon]");
    gpu_lane_forget(&lane);
    gpus_rig_until(&rig, state_of(2) == GPU_OFF);
    gpus_rig_reload(&rig, POOL);
    find_says(2, 1000, -EAGAIN, "is being started");
    gpus_rig_until(&rig, state_of(2) == GPU_SERVING);
    gpus_rig_deinit(&rig);
}
END_TEST

int main(int argc, char *argv[])
{
    const char *role = gpus_rig_is_helper(argv);

    (void)argc;
    if (role)
        play(role);
    Suite *s = suite_create("gpu_place");
    TCase *tc = tcase_create("place");

    tcase_add_test(tc, made_up_names_cost_little);
    tcase_add_test(tc, a_user_starts_few_at_a_time);
    tcase_add_test(tc, places_of_others_are_not_taken);
    tcase_add_test(tc, a_failure_is_told);
    tcase_add_test(tc, what_is_listed_is_started);
    tcase_add_test(tc, what_is_listed_is_tried_again);
    tcase_add_test(tc, none_starts_nothing);
    tcase_add_test(tc, a_pool_has_its_own);
    tcase_add_test(tc, a_reload_starts_and_ends);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);

    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
