/* SPDX-License-Identifier: Apache-2.0 */
/* GPU_ATTACH that is refused: in words, with the limit's number, and before anybody has looked for the GPU. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/session.h"
#include "tests/unit/support/gpus_rig.h"

#define CONFIG(gpu) "[tier.dram]\nsize = 64 MiB\n[pool default]\ngpu = " gpu "\n"

static struct gpus_rig rig;
static struct session session, others;
static struct gpu_lane lanes[GPU_LANES_MAX];
static int client;

static void session_new(struct session *s)
{
    *s = (struct session){.control = &rig.control, .state = SESSION_OPEN, .pool_generation = 1};
    s->pools[0] = true;
    s->socket.fd = -1;
    list_init(&s->lanes);
    list_push_tail(&rig.control.sessions, &s->link);
}

static void begin(const char *config)
{
    int sockets[2];

    gpus_rig_init(&rig, config, "none");
    strcpy(rig.gpus->helper_path, "/nowhere/spillway-gpu");
    session_new(&session);
    session_new(&others);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
    session.socket.fd = sockets[0];
    client = sockets[1];
}

static void end(void)
{
    close(client);
    close(session.socket.fd);
    gpus_rig_deinit(&rig);
}

/* So many lanes of that session, with numbers from `first` on. */
static void lanes_taken(struct session *s, uint32_t first, uint32_t n)
{
    for (uint32_t i = first; i < first + n; i++) {
        lanes[i] = (struct gpu_lane){.session = s, .number = i};
        list_push_tail(&s->lanes, &lanes[i].link);
    }
}

static void attach(struct spw_msg_gpu_attach ask, int status, uint32_t detail, const char *words)
{
    struct spw_msg_error error = {0};

    ask.pool = 1 << 16;
    session_gpu_attach(&session, &ask);
    ck_assert_int_ge(recv(client, &error, sizeof(error), MSG_DONTWAIT), (ssize_t)sizeof(error.msg));
    ck_assert_msg(error.msg.status == status && error.msg.detail == detail, "%d, %u: %s", error.msg.status,
                  error.msg.detail, error.text);
    ck_assert_msg(strstr(error.text, words), "\"%s\" in: %s", words, error.text);
}

static const struct spw_msg_gpu_attach usual, small = {.slots = 1, .slot_bytes = GPU_SLOT_BYTES_MIN};

START_TEST(a_pool_without_a_budget_starts_nothing)
{
    begin(CONFIG("0"));
    attach(usual, -ENOSPC, SPW_LIMIT_POOL_GPU, "pool default may have 0 MiB of GPU memory");
    attach(small, -ENOSPC, SPW_LIMIT_POOL_GPU, "raise gpu in its [pool] section");
    ck_assert_uint_eq(rig.gpus->n, 0);
    end();
}
END_TEST

START_TEST(bounds_are_checked_first)
{
    struct spw_msg_gpu_attach ask = {.slots = GPU_SLOTS_MAX + 1};

    begin(CONFIG("64 MiB"));
    attach(ask, -EINVAL, SPW_LIMIT_NONE, "up to 64 slots of");
    ask = (struct spw_msg_gpu_attach){.slot_bytes = GPU_SLOT_BYTES_MIN - 1};
    attach(ask, -EINVAL, SPW_LIMIT_NONE, "slots of");
    ask = (struct spw_msg_gpu_attach){.slot_bytes = UINT64_MAX};
    attach(ask, -EINVAL, SPW_LIMIT_NONE, "slots of");
    ask = (struct spw_msg_gpu_attach){.engine = 1};
    attach(ask, -EINVAL, SPW_LIMIT_NONE, "one of 1 engines");
    attach(usual, -ENOSPC, SPW_LIMIT_POOL_GPU, "a lane of 120 MiB: pool default may have 64 MiB");
    ck_assert_uint_eq(rig.gpus->n, 0);
    attach(small, -ENODEV, SPW_LIMIT_GPU_FAILED, "spillway-gpu cannot be started");
    ck_assert_uint_eq(rig.gpus->n, 1);
    ck_assert_uint_eq(gpus_pool_used(rig.gpus, 0), 0);
    ck_assert(list_is_empty(&session.lanes));
    end();
}
END_TEST

START_TEST(a_session_has_few_lanes)
{
    begin(CONFIG("64 MiB"));
    lanes_taken(&session, 0, SESSION_GPU_LANES_MAX);
    attach(small, -ENOSPC, SPW_LIMIT_GPU_LANES, "this session has 16 lanes at engine 0");
    ck_assert_uint_eq(rig.gpus->n, 0);
    list_unlink(&lanes[3].link);
    attach(small, -ENODEV, SPW_LIMIT_GPU_FAILED, "");
    end();
}
END_TEST

START_TEST(an_engine_has_so_many)
{
    begin(CONFIG("64 MiB"));
    lanes_taken(&others, 0, GPU_LANES_MAX);
    attach(small, -ENOSPC, SPW_LIMIT_GPU_LANES, "all 1024 lanes of engine 0 are in use");
    ck_assert_uint_eq(rig.gpus->n, 0);
    list_unlink(&lanes[GPU_LANES_MAX - 1].link);
    attach(small, -ENODEV, SPW_LIMIT_GPU_FAILED, "");
    end();
}
END_TEST

START_TEST(what_the_config_forbids_is_told)
{
    begin("[daemon]\ngpus = none\n" CONFIG("64 MiB"));
    attach(small, -ENODEV, SPW_LIMIT_NONE, "this GPU: it is not served here: see gpus in [daemon]");
    gpus_rig_reload(&rig, CONFIG("64 MiB") "gpus = none\n");
    attach(small, -ENODEV, SPW_LIMIT_NONE, "this GPU: pool default may not use it: see gpus in its [pool] section");
    ck_assert_uint_eq(rig.gpus->n, 0);
    end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("session_gpu");
    TCase *tc = tcase_create("attach");

    tcase_add_test(tc, a_pool_without_a_budget_starts_nothing);
    tcase_add_test(tc, bounds_are_checked_first);
    tcase_add_test(tc, a_session_has_few_lanes);
    tcase_add_test(tc, an_engine_has_so_many);
    tcase_add_test(tc, what_the_config_forbids_is_told);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);

    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
