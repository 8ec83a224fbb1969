/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Helpers that do what they should not, and what becomes of the control thread: it neither waits for one nor spins because of
 * it, believes nothing that it did not ask for, and keeps no more of what one does not take than there is to say.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/session.h"
#include "include/base/socket.h"
#include "tests/unit/support/gpus_rig.h"

#define POOL "[tier.dram]\nsize = 64 MiB\n[pool default]\n"

static struct gpus_rig rig;

/* --- The helper ---------------------------------------------------------------------------------------------------- */

static const char *role;
static struct gpu_stat said; /* copies: CHUNKs; lanes_over: CHUNK_GONEs; chunk_bytes: what is known */
static uint64_t chunk_bytes[CHUNKS_MAX];

static bool is(const char *name)
{
    return strcmp(role, name) == 0;
}

static void break_ring(int ring_fd)
{
    struct gpu_ring *ring = mmap(NULL, sizeof(*ring), PROT_READ | PROT_WRITE, MAP_SHARED, ring_fd, 0);

    store_release(&ring->helper.done_tail, GPU_RING_ENTRIES + 1);
}

static void answer_stat(const struct gpu_msg *msg)
{
    struct gpu_msg reply = {.stat = said};

    if (is("other number"))
        reply.number = msg->number - 1;
    else if (is("other version"))
        reply.version = GPU_WIRE_VERSION + 1;
    else if (is("other type"))
        reply.type = GPU_MSG_LANE_GONE;
    else if (is("unknown type"))
        reply.type = 99;
    else if (is("lost"))
        reply = (struct gpu_msg){.type = GPU_MSG_LOST, .text = "a \033[31mcontext\n"};
    if (is("two descriptors")) {
        const int fds[] = {GPU_WIRE_FD, GPU_WIRE_FD};

        reply.type = msg->type;
        reply.version = GPU_WIRE_VERSION;
        reply.number = msg->number;
        (void)socket_send(GPU_WIRE_FD, &reply, sizeof(reply), fds, ARRAY_LEN(fds), 0);
    } else if (is("short"))
        (void)send(GPU_WIRE_FD, "", 1, 0);
    else if (!is("silent"))
        gpus_rig_answer(msg, reply, -1);
    if (is("twice"))
        gpus_rig_answer(msg, reply, -1);
}

static void answer_lane(const struct gpu_msg *msg)
{
    struct gpu_msg reply = {.bytes = UINT64_C(2) * msg->slots * msg->slot_bytes};

    if (is("a status"))
        reply.status = INT32_MIN;
    else if (is("too many bytes"))
        reply.bytes = UINT64_MAX;
    else if (is("too few bytes"))
        reply.bytes--;
    gpus_rig_answer(msg, reply, is("no descriptor") ? -1 : GPU_WIRE_FD);
}

static void chunk(const struct gpu_msg *msg)
{
    if (msg->type == GPU_MSG_CHUNK) {
        if (chunk_bytes[msg->region] != 0) /* it was not gone */
            _exit(3);
        chunk_bytes[msg->region] = msg->bytes;
        said.copies++;
        said.chunk_bytes += msg->bytes;
    } else {
        said.chunk_bytes -= chunk_bytes[msg->region];
        chunk_bytes[msg->region] = 0;
        said.lanes_over++;
    }
}

static _Noreturn void play(void)
{
    for (;;) {
        struct gpu_msg msg;
        int fds[2];

        gpus_rig_receive(&msg, fds);
        if (msg.type == GPU_MSG_START) {
            gpus_rig_answer(&msg, (struct gpu_msg){.text = "a GPU"}, -1);
            if (is("hangs up"))
                (void)shutdown(GPU_WIRE_FD, SHUT_RDWR);
            if (is("hangs up"))
                (void)pause();
        } else if (msg.type == GPU_MSG_RING && is("ring")) {
            break_ring(fds[0]);
        } else if (msg.type == GPU_MSG_CHUNK || msg.type == GPU_MSG_CHUNK_GONE) {
            chunk(&msg);
        } else if (msg.type == GPU_MSG_STAT) {
            answer_stat(&msg);
        } else if (msg.type == GPU_MSG_LANE) {
            answer_lane(&msg);
        }
        for (int i = 0; i < 2; i++)
            if (fds[i] >= 0)
                close(fds[i]);
    }
}

/* --- What it says -------------------------------------------------------------------------------------------------- */

static const struct {
    const char *role, *error;
} lies[] = {
    {"other number", "an answer to what it was not asked"},
    {"other version", "an answer to what it was not asked"},
    {"other type", "an answer to what it was not asked"},
    {"unknown type", "an answer to what it was not asked"},
    {"twice", "an answer to what it was not asked"},
    {"short", "its socket ended"},
    {"lost", "a ?[31mcontext?"}, /* for an admin's terminal, too */
    {"silent", "it does not answer"},
};

START_TEST(who_lies_is_ended)
{
    const char *why;

    gpus_rig_init(&rig, POOL, lies[_i].role);
    ck_assert_int_eq(gpus_rig_find(&rig, 1, 0, &why), -EAGAIN);
    struct gpu *gpu = gpu_find(rig.gpus, gpus_rig_uuid(1));

    gpus_rig_until(&rig, gpu->restarts > 0); /* it was told of memory, and asked a question */
    ck_assert_str_eq(gpu->error, lies[_i].error);
    gpus_rig_deinit(&rig);
}
END_TEST

static const char *const lane_lies[] = {"a status", "too many bytes", "too few bytes", "no descriptor"};

/* The client is told to come back; nothing of what was said is believed, nor paid for. */
START_TEST(who_lies_of_a_lane_is_ended)
{
    struct gpu_lane *lane = calloc(1, sizeof(*lane));
    struct session session = {.control = &rig.control, .state = SESSION_OPEN, .busy = true};
    struct spw_msg_error error = {0};
    int sockets[2];

    gpus_rig_init(&rig, POOL, lane_lies[_i]);
    struct gpu *gpu = gpus_rig_served(&rig, 1);

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
    session.socket.fd = sockets[0];
    list_init(&session.lanes);
    *lane = (struct gpu_lane){.session = &session, .slots = 1, .slot_bytes = 8 * MIB, .staging_fd = -1};
    lane->fences = MEMORY_SHARED_NONE;
    list_init(&lane->gpu_link);
    list_init(&lane->question.link);
    list_push_tail(&session.lanes, &lane->link);
    ck_assert_int_eq(gpu_lane_ask(gpu, lane), 0);
    gpu_charge(lane, 16 * MIB);
    gpus_rig_until(&rig, gpu->restarts > 0);
    ck_assert_str_eq(gpu->error, "an answer that makes no sense");
    ck_assert_int_gt(recv(sockets[1], &error, sizeof(error), MSG_DONTWAIT), 0);
    ck_assert_int_eq(error.msg.status, -EAGAIN);
    ck_assert(!session.busy && list_is_empty(&session.lanes) && list_is_empty(&gpu->lanes));
    ck_assert_uint_eq(gpus_pool_used(rig.gpus, 0), 0);
    close(sockets[0]);
    close(sockets[1]);
    gpus_rig_deinit(&rig);
}
END_TEST

START_TEST(what_engines_find_ends_it)
{
    struct gpu_lane lane = {.state = LANE_ATTACHED, .pool = 0};

    gpus_rig_init(&rig, POOL, "ring");
    struct gpu *gpu = gpus_rig_served(&rig, 1);

    lane.gpu = gpu;
    lane.incarnation = gpu->incarnation;
    list_push_tail(&gpu->lanes, &lane.gpu_link);
    gpu_ask_stat(gpu); /* from now on every second */
    gpus_rig_until(&rig, gpu->state != GPU_SERVING);
    ck_assert_str_eq(gpu->error, "an engine finds that it breaks the rules of its ring, or hangs");
    gpus_rig_until(&rig, gpu->state == GPU_PAUSED);
    list_unlink(&lane.gpu_link);
    gpus_rig_deinit(&rig);
}
END_TEST

/* --- What it does not do ------------------------------------------------------------------------------------------- */

static pid_t decoy_new(void)
{
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0)
        for (;;)
            (void)pause();
    return pid;
}

/* Killed, but not ended yet, as one that hangs in the driver: our signal goes to a decoy. */
START_TEST(who_hangs_up_wakes_nobody)
{
    struct epoll_event event;
    const char *why;

    gpus_rig_init(&rig, POOL, "hangs up");
    ck_assert_int_eq(gpus_rig_find(&rig, 1, 0, &why), -EAGAIN);
    struct gpu *gpu = gpu_find(rig.gpus, gpus_rig_uuid(1));
    pid_t pid = gpu->pid, decoy = decoy_new();

    gpu->pid = decoy;
    gpus_rig_until(&rig, gpu->state == GPU_ENDING);
    gpus_rig_until(&rig, gpu->n_calls == 0);
    for (int i = 0; i < 10; i++)
        gpus_rig_turn(&rig);
    ck_assert_int_eq(gpu->state, GPU_ENDING);
    ck_assert_int_eq(epoll_wait(rig.control.loop.epoll_fd, &event, 1, 0), 0);
    kill(pid, SIGKILL);
    gpus_rig_until(&rig, gpu->state == GPU_PAUSED);
    ck_assert_int_eq(waitpid(decoy, NULL, 0), decoy);
    gpus_rig_deinit(&rig);
}
END_TEST

/* The daemon ends, and a helper does not. */
START_TEST(who_does_not_end_is_left_behind)
{
    gpus_rig_init(&rig, POOL, "good");
    struct gpu *gpu = gpus_rig_served(&rig, 1);
    pid_t pid = gpu->pid;

    loop_remove(&rig.control.loop, &gpu->pidfd);
    close(gpu->pidfd.fd);
    gpu->pidfd.fd = pidfd_open(getpid(), 0); /* as if it never ended */
    gpus_rig_deinit(&rig);
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid); /* it was killed all the same */
}
END_TEST

/* spillway-gpu is missing for a while, as when it is replaced. */
START_TEST(who_cannot_be_started_is_tried_again)
{
    char path[PATH_MAX];

    gpus_rig_init(&rig, POOL, "good");
    struct gpu *gpu = gpus_rig_served(&rig, 1);

    memcpy(path, rig.gpus->helper_path, sizeof(path));
    strcpy(rig.gpus->helper_path, "/nowhere/spillway-gpu");
    kill(gpu->pid, SIGKILL);
    gpus_rig_until(&rig, strstr(gpu->error, "spillway-gpu cannot be started: No such file"));
    ck_assert_int_eq(gpu->state, GPU_PAUSED);
    for (uint32_t before = gpu->pause_ms; gpu->pause_ms < before * 4;) /* each time it waits longer */
        gpus_rig_turn(&rig);
    memcpy(rig.gpus->helper_path, path, sizeof(path));
    gpus_rig_until(&rig, gpu->state == GPU_SERVING);
    gpus_rig_deinit(&rig);
}
END_TEST

/* --- Chunks -------------------------------------------------------------------------------------------------------- */

#define REGION (CHUNKS_MAX - 1) /* that the engine does not have */

static struct memory_chunk *some_chunk(uint32_t pool)
{
    for (uint32_t i = 0; i < CHUNKS_MAX; i++)
        if (rig.gpus->chunks[0][i].chunk && rig.gpus->chunks[0][i].pool == pool)
            return rig.gpus->chunks[0][i].chunk;
    ck_abort_msg("pool %u has no memory", pool);
}

static void note(uint32_t pool, uint32_t epoch, bool is_new)
{
    struct engine_chunk_note n = {.region = REGION,
                                  .epoch = epoch,
                                  .pool = pool,
                                  .is_new = is_new,
                                  .chunk = is_new ? memory_chunk_ref(some_chunk(pool)) : NULL};

    gpus_chunk_note(rig.gpus, &n);
}

static size_t waiting(const struct gpu *gpu)
{
    size_t n = 0;

    list_for_each (l, &gpu->out)
        n++;
    return n;
}

static uint64_t pool_bytes(uint32_t pool)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < CHUNKS_MAX; i++)
        if (rig.gpus->chunks[0][i].chunk && rig.gpus->chunks[0][i].pool == pool)
            bytes += rig.gpus->chunks[0][i].chunk->size_bytes;
    return bytes;
}

/* It has heard of all there is, and of nothing else. */
static void wait_told(struct gpu *gpu, uint64_t bytes)
{
    gpus_rig_until(&rig, gpu->n_due == 0 && list_is_empty(&gpu->awaited));
    gpu_ask_stat(gpu);
    gpus_rig_until(&rig, list_is_empty(&gpu->awaited));
    ck_assert_uint_eq(gpu->stat.chunk_bytes, bytes);
}

START_TEST(who_does_not_listen_costs_nothing)
{
    gpus_rig_init(&rig, POOL, "good");
    struct gpu *gpu = gpus_rig_served(&rig, 1);

    wait_told(gpu, pool_bytes(0));
    kill(gpu->pid, SIGSTOP);
    for (uint32_t epoch = 1; epoch <= 10000; epoch++) {
        note(0, epoch, true);
        ck_assert_uint_le(waiting(gpu), 1);
        note(0, epoch, false);
    }
    gpus_rig_until(&rig, gpu->state != GPU_SERVING); /* it has no lanes, and is found out all the same */
    ck_assert_str_eq(gpu->error, "it does not answer");
    gpus_rig_until(&rig, gpu->restarts == 1 && gpu->state == GPU_SERVING);
    wait_told(gpu, pool_bytes(0));
    gpus_rig_deinit(&rig);
}
END_TEST

START_TEST(who_listens_late_hears_what_is_true)
{
    gpus_rig_init(&rig, POOL, "good");
    struct gpu *gpu = gpus_rig_served(&rig, 1);

    wait_told(gpu, pool_bytes(0));
    note(0, 1, true);
    kill(gpu->pid, SIGSTOP);
    for (uint32_t epoch = 1; epoch < 100; epoch++) { /* another one each time, in the same place */
        note(0, epoch, false);
        note(0, epoch + 1, true);
    }
    kill(gpu->pid, SIGCONT);
    wait_told(gpu, pool_bytes(0));
    ck_assert_int_eq(gpu->state, GPU_SERVING);
    ck_assert_uint_eq(gpu->chunks[0]->at[REGION].epoch, 100);
    note(0, 100, false);
    wait_told(gpu, pool_bytes(0));
    gpus_rig_deinit(&rig);
}
END_TEST

#define FDS_LOOKED_AT 256

static uint32_t fds_open(void)
{
    uint32_t n = 0;

    for (int fd = 0; fd < FDS_LOOKED_AT; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

/* Ancillary data comes in words, so there is room for two where one is expected. */
START_TEST(what_it_sends_along_is_closed)
{
    gpus_rig_init(&rig, POOL, "two descriptors");
    struct gpu *gpu = gpus_rig_served(&rig, 1);

    wait_told(gpu, pool_bytes(0));
    uint32_t before = fds_open();

    for (int i = 0; i < 5; i++) {
        gpu_ask_stat(gpu);
        gpus_rig_until(&rig, list_is_empty(&gpu->stat_question.link));
    }
    ck_assert_int_eq(gpu->state, GPU_SERVING);
    ck_assert_uint_eq(fds_open(), before);
    gpus_rig_deinit(&rig);
}
END_TEST

#define POOLS(gpu_a, gpu_b) "[tier.dram]\nsize = 64 MiB\n[pool a]\ngpu = " gpu_a "\n[pool b]\ngpu = " gpu_b "\n"

/* A helper is not told of memory that nobody may use with its GPU. */
START_TEST(memory_of_other_pools_is_not_told)
{
    struct gpu_lane lane = {.state = LANE_ATTACHED, .pool = 1};

    gpus_rig_init(&rig, POOLS("64 MiB", "0"), "good");
    struct gpu *gpu = gpus_rig_served(&rig, 1);

    wait_told(gpu, pool_bytes(0));
    gpus_rig_reload(&rig, POOLS("64 MiB", "64 MiB"));
    wait_told(gpu, pool_bytes(0) + pool_bytes(1));
    lane.gpu = gpu;
    list_init(&lane.question.link);
    list_push_tail(&gpu->lanes, &lane.gpu_link);
    gpu->n_pool_lanes[1]++;
    gpus_rig_reload(&rig, POOLS("0", "0"));
    wait_told(gpu, pool_bytes(1)); /* it is still used */
    gpu_lane_forget(&lane);
    wait_told(gpu, 0);
    gpus_rig_deinit(&rig);
}
END_TEST

int main(int argc, char *argv[])
{
    (void)argc;
    role = gpus_rig_is_helper(argv);
    if (role)
        play();
    Suite *s = suite_create("gpu_bad_helper");
    TCase *tc = tcase_create("bad_helper");

    tcase_add_loop_test(tc, who_lies_is_ended, 0, ARRAY_LEN(lies));
    tcase_add_loop_test(tc, who_lies_of_a_lane_is_ended, 0, ARRAY_LEN(lane_lies));
    tcase_add_test(tc, what_it_sends_along_is_closed);
    tcase_add_test(tc, what_engines_find_ends_it);
    tcase_add_test(tc, who_hangs_up_wakes_nobody);
    tcase_add_test(tc, who_does_not_end_is_left_behind);
    tcase_add_test(tc, who_cannot_be_started_is_tried_again);
    tcase_add_test(tc, who_does_not_listen_costs_nothing);
    tcase_add_test(tc, who_listens_late_hears_what_is_true);
    tcase_add_test(tc, memory_of_other_pools_is_not_told);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);

    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
