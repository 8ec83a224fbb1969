/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's side of the ring to a GPU's helper, alone and in an engine that sleeps; the test plays the helper. */
#include "io/gpu_port.h"

#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "include/base/ring.h"
#include "tests/unit/support/uring_rig.h"

#define ENTRIES 8
#define MS UINT64_C(1000000)

/* --- The helper -------------------------------------------------------------------------------------------------- */

static struct gpu_ring *ring;
static uint32_t entries;
static int doorbell[2]; /* the engine's end, the helper's */

static void helper_open(uint32_t n)
{
    entries = n;
    ring = calloc(1, gpu_ring_bytes(n));
    ck_assert_ptr_nonnull(ring);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, doorbell), 0);
}

static void helper_close(void)
{
    free(ring);
    (void)close(doorbell[0]);
    (void)close(doorbell[1]);
}

static uint32_t helper_waiting(void)
{
    return load_acquire(&ring->engine.cmd_tail) - ring->helper.cmd_head;
}

static struct gpu_cmd helper_take(void)
{
    ck_assert_uint_gt(helper_waiting(), 0);
    struct gpu_cmd cmd = gpu_ring_cmds(ring)[ring->helper.cmd_head & (entries - 1)];

    store_release(&ring->helper.cmd_head, ring->helper.cmd_head + 1);
    return cmd;
}

/* The engine's flags as they were found. */
static uint32_t helper_post(uint64_t cookie, uint32_t lane, int32_t status, uint64_t bytes)
{
    struct gpu_completion *completions = gpu_ring_completions(ring, entries);

    completions[ring->helper.done_tail & (entries - 1)] =
        (struct gpu_completion){.cookie = cookie, .lane = lane, .status = status, .bytes = bytes};
    return ring_publish(&ring->helper.done_tail, ring->helper.done_tail + 1, &ring->engine.flags);
}

static bool doorbell_rang(int end)
{
    char byte;

    return recv(doorbell[end], &byte, 1, MSG_DONTWAIT) == 1;
}

/* --- Uses -------------------------------------------------------------------------------------------------------- */

struct use {
    struct io_dma dma;
    uint32_t n_told;
    int n_done;
};

static uint32_t n_ended;

static void use_first(struct io_dma *dma)
{
    container_of(dma, struct use, dma)->n_told = 0;
}

static void use_next(struct io_dma *dma, struct io_dma_run *ret_run)
{
    uint32_t i = container_of(dma, struct use, dma)->n_told++;

    ck_assert_uint_lt(i, dma->n_runs);
    *ret_run = (struct io_dma_run){
        .region = (uint32_t)dma->seq, .epoch = 5, .off_bytes = UINT64_C(8192) * i, .len_bytes = 100 * (i + 1)};
}

static void use_done(struct io_dma *dma)
{
    container_of(dma, struct use, dma)->n_done++;
    n_ended++;
}

static struct use use_of(uint8_t op, uint64_t seq, uint32_t n_runs)
{
    struct use use = {.dma = {.op = op,
                              .lane = 3,
                              .seq = seq,
                              .n_runs = n_runs,
                              .bytes = UINT64_C(50) * n_runs * (n_runs + 1),
                              .expires_ns = 1000 * MS,
                              .run_first = use_first,
                              .run_next = use_next,
                              .done = use_done}};

    return use;
}

static struct gpu_port *port;

static void setup(void)
{
    n_ended = 0;
    helper_open(ENTRIES);
    ck_assert_int_eq(gpu_port_new(ring, ENTRIES, doorbell[0], &port), 0);
}

static void teardown(void)
{
    gpu_port_free(port);
    helper_close();
}

/* --- The port ---------------------------------------------------------------------------------------------------- */

START_TEST(test_commands)
{
    const uint64_t base = _i * (40 * GIB + 48); /* of a direct lane */
    struct use use = use_of(IO_DMA_SPILL, 7, 3);

    use.dma.base_bytes = base;
    gpu_port_submit(port, &use.dma);
    ck_assert_uint_eq(helper_waiting(), 0);
    gpu_port_fill(port);
    ck_assert_uint_eq(helper_waiting(), 3);
    struct gpu_cmd cmd = {0};

    for (uint32_t i = 0, at = 0; i < 3; i++) {
        cmd = helper_take();
        ck_assert_uint_eq(cmd.op, GPU_CMD_SPILL);
        ck_assert_uint_eq(cmd.flags, i == 2 ? GPU_CMD_LAST : 0);
        ck_assert_uint_eq(cmd.lane, 3);
        ck_assert_uint_eq(cmd.region, 7);
        ck_assert_uint_eq(cmd.epoch, 5);
        ck_assert_uint_eq(cmd.seq, 7);
        ck_assert_uint_eq(cmd.offset_bytes, i * 8192);
        ck_assert_uint_eq(cmd.gpu_offset_bytes, base + at);
        ck_assert_uint_eq(cmd.len_bytes, 100 * (i + 1));
        ck_assert_uint_eq(cmd.expires_ns, 1000 * MS);
        at += cmd.len_bytes;
    }
    ck_assert_uint_eq(gpu_port_take(port), 0);
    ck_assert(!gpu_port_peek(port));
    (void)helper_post(cmd.cookie, 3, 0, 600);
    ck_assert(gpu_port_peek(port));
    ck_assert_uint_eq(gpu_port_take(port), 1);
    ck_assert_uint_eq(ring->engine.done_head, 1);
    ck_assert_int_eq(use.n_done, 1);
    ck_assert_int_eq(use.dma.result, 0);
    ck_assert(gpu_port_is_idle(port));
}
END_TEST

START_TEST(test_full_ring)
{
    struct use uses[4];

    for (uint32_t i = 0; i < 4; i++) {
        uses[i] = use_of(IO_DMA_FETCH, i + 1, 3);
        gpu_port_submit(port, &uses[i].dma);
    }
    gpu_port_fill(port);
    ck_assert_uint_eq(helper_waiting(), 6); /* each as a whole: the third waits */
    uint64_t cookies[4];

    for (int i = 0; i < 3; i++)
        cookies[0] = helper_take().cookie;
    gpu_port_fill(port);
    ck_assert_uint_eq(helper_waiting(), 6); /* the third, around the ring's end */
    for (int i = 0; i < 6; i++)
        cookies[1 + i / 3] = helper_take().cookie;
    (void)helper_post(cookies[0], 3, 0, 600);
    (void)helper_post(cookies[2], 3, -EIO, 0);
    ck_assert_uint_eq(gpu_port_take(port), 2);
    ck_assert_int_eq(uses[2].dma.result, -EIO);
    ck_assert_int_eq(uses[1].n_done, 0);
    gpu_port_fill(port);
    for (int i = 0; i < 3; i++)
        cookies[3] = helper_take().cookie;
    (void)helper_post(cookies[1], 3, 0, 600);
    (void)helper_post(cookies[3], 3, -EPIPE, 0);
    ck_assert_uint_eq(gpu_port_take(port), 2);
    ck_assert_int_eq(uses[3].dma.result, -EPIPE);
    ck_assert(gpu_port_is_idle(port));
}
END_TEST

/* There are no more uses in flight than completions fit into the ring. */
START_TEST(test_full_of_completions)
{
    struct use uses[ENTRIES + 1];
    uint64_t cookies[ENTRIES];

    for (uint32_t i = 0; i <= ENTRIES; i++) {
        uses[i] = use_of(IO_DMA_FETCH, i + 1, 1);
        gpu_port_submit(port, &uses[i].dma);
    }
    gpu_port_fill(port);
    for (uint32_t i = 0; i < ENTRIES; i++)
        cookies[i] = helper_take().cookie;
    gpu_port_fill(port);
    ck_assert_uint_eq(helper_waiting(), 0);
    for (uint32_t i = 0; i < ENTRIES; i++)
        (void)helper_post(cookies[i], 3, 0, 100);
    ck_assert_uint_eq(gpu_port_take(port), ENTRIES);
    gpu_port_fill(port);
    ck_assert_uint_eq(helper_waiting(), 1);
    (void)helper_post(helper_take().cookie, 3, 0, 100);
    ck_assert_uint_eq(gpu_port_take(port), 1);
}
END_TEST

START_TEST(test_cancel_goes_first)
{
    struct use first = use_of(IO_DMA_SPILL, 1, ENTRIES), second = use_of(IO_DMA_SPILL, 2, 1);
    struct use cancel = use_of(IO_DMA_CANCEL, 0, 0);

    gpu_port_submit(port, &first.dma);
    gpu_port_fill(port);
    gpu_port_submit(port, &second.dma);
    gpu_port_submit(port, &cancel.dma);
    gpu_port_fill(port);
    struct gpu_cmd cmd = {0};

    for (int i = 0; i < ENTRIES; i++)
        cmd = helper_take();
    gpu_port_fill(port);
    struct gpu_cmd next = helper_take(), last = helper_take();

    ck_assert_uint_eq(next.op, GPU_CMD_CANCEL);
    ck_assert_uint_eq(next.lane, 3);
    ck_assert_uint_eq(last.op, GPU_CMD_SPILL);
    (void)helper_post(cmd.cookie, 3, -ECANCELED, 0);
    (void)helper_post(last.cookie, 3, -ECANCELED, 0);
    (void)helper_post(next.cookie, 3, 0, 0);
    ck_assert_uint_eq(gpu_port_take(port), 3);
    ck_assert_int_eq(cancel.n_done, 1);
    ck_assert_int_eq(second.dma.result, -ECANCELED);
}
END_TEST

/* A helper that lies is not listened to any more; and nothing ends before its process has. */
START_TEST(test_lies)
{
    struct use use = use_of(IO_DMA_SPILL, 1, 1), later = use_of(IO_DMA_SPILL, 2, 1);

    gpu_port_submit(port, &use.dma);
    gpu_port_fill(port);
    uint64_t cookie = helper_take().cookie;

    ck_assert(!gpu_port_is_bad(port, 0));
    switch (_i) {
    case 0: /* no such seat */
        (void)helper_post(cookie + ENTRIES, 3, 0, 100);
        break;
    case 1: /* a seat that is free */
        (void)helper_post(cookie + 1, 3, 0, 100);
        break;
    case 2: /* of another time */
        (void)helper_post(cookie + (UINT64_C(1) << 32), 3, 0, 100);
        break;
    case 3:
        (void)helper_post(cookie, 4, 0, 100);
        break;
    case 4: /* fewer bytes than were to be moved */
        (void)helper_post(cookie, 3, 0, 99);
        break;
    case 5:
        (void)helper_post(cookie, 3, 1, 100);
        break;
    case 6:
        (void)helper_post(cookie, 3, -5000, 100);
        break;
    case 7: /* more completions than there is room for */
        store_release(&ring->helper.done_tail, ENTRIES + 1);
        break;
    case 8: /* more commands taken than there were */
        store_release(&ring->helper.cmd_head, 2);
        later = use_of(IO_DMA_SPILL, 2, ENTRIES); /* so that it is looked at */
        gpu_port_submit(port, &later.dma);
        gpu_port_fill(port);
        break;
    }
    (void)gpu_port_take(port);
    ck_assert(gpu_port_is_bad(port, 0));
    ck_assert_int_eq(use.n_done, 0);
    (void)helper_post(cookie, 3, 0, 100);
    ck_assert(!gpu_port_peek(port));
    ck_assert_uint_eq(gpu_port_take(port), 0);
    if (_i != 8)
        gpu_port_submit(port, &later.dma);
    gpu_port_fill(port);
    ck_assert_uint_eq(ring->engine.cmd_tail, 1);
    gpu_port_end(port, -EIO);
    ck_assert_int_eq(use.n_done, 1);
    ck_assert_int_eq(use.dma.result, -EIO);
    ck_assert_int_eq(later.dma.result, -EIO);
}
END_TEST

/* The same completion twice. */
START_TEST(test_twice)
{
    struct use use = use_of(IO_DMA_SPILL, 1, 1);

    gpu_port_submit(port, &use.dma);
    gpu_port_fill(port);
    uint64_t cookie = helper_take().cookie;

    (void)helper_post(cookie, 3, 0, 100);
    (void)helper_post(cookie, 3, 0, 100);
    (void)gpu_port_take(port);
    ck_assert_int_eq(use.n_done, 1);
    ck_assert(gpu_port_is_bad(port, 0));
}
END_TEST

START_TEST(test_late)
{
    struct use use = use_of(IO_DMA_SPILL, 1, 1);

    gpu_port_submit(port, &use.dma);
    ck_assert(!gpu_port_is_bad(port, 1000 * MS + GPU_LATE_MS * MS));
    ck_assert(gpu_port_is_bad(port, 1000 * MS + GPU_LATE_MS * MS + 1));
    gpu_port_fill(port);
    ck_assert(gpu_port_is_bad(port, 1000 * MS + GPU_LATE_MS * MS + 1));
    gpu_port_end(port, -EIO);
}
END_TEST

START_TEST(test_wakes_the_helper_once)
{
    struct use use = use_of(IO_DMA_SPILL, 1, 1), second = use_of(IO_DMA_SPILL, 2, 1);
    uint32_t n_sleeps = 0;

    gpu_port_submit(port, &use.dma);
    gpu_port_fill(port);
    ck_assert(!doorbell_rang(1)); /* it is awake */
    ring_sleep_prepare(&ring->helper.flags, ring_sleep_word(GPU_RING_SLEEPS, &n_sleeps));
    gpu_port_fill(port); /* nothing new */
    ck_assert(!doorbell_rang(1));
    gpu_port_submit(port, &second.dma);
    gpu_port_fill(port);
    ck_assert(doorbell_rang(1));
    ck_assert(!doorbell_rang(1));
    gpu_port_end(port, -EIO);
}
END_TEST

START_TEST(test_sleep)
{
    struct use use = use_of(IO_DMA_SPILL, 1, 1);

    gpu_port_submit(port, &use.dma);
    gpu_port_fill(port);
    uint64_t cookie = helper_take().cookie;

    ck_assert(gpu_port_sleep(port));
    uint32_t word = ring->engine.flags;

    ck_assert_uint_eq(word & GPU_RING_SLEEPS, GPU_RING_SLEEPS);
    gpu_port_wake(port);
    ck_assert_uint_eq(ring->engine.flags, 0);
    ck_assert(gpu_port_sleep(port));
    ck_assert_uint_ne(ring->engine.flags, word); /* another sleep, another number */
    ck_assert_uint_eq(helper_post(cookie, 3, 0, 100) & GPU_RING_SLEEPS, GPU_RING_SLEEPS);
    ck_assert(!gpu_port_sleep(port)); /* it came in between */
    gpu_port_wake(port);
    ck_assert_uint_eq(gpu_port_take(port), 1);
    ck_assert_int_eq(send(doorbell[1], "", 1, 0), 1);
    ck_assert(gpu_port_drain(port));
    ck_assert(!doorbell_rang(0));
    ck_assert_int_eq(shutdown(doorbell[1], SHUT_RDWR), 0);
    ck_assert(!gpu_port_drain(port));
}
END_TEST

/* --- In an engine ------------------------------------------------------------------------------------------------ */

#define GPU 5
#define USES 200

/* Answers as it comes; before each answer it waits until the engine sleeps, so every one needs the doorbell. */
static void *helper_main(void *arg)
{
    uint32_t rung = 0;

    (void)arg;
    for (int i = 0; i < USES; i++) {
        while (helper_waiting() == 0)
            (void)usleep(10);
        struct gpu_cmd cmd = helper_take();

        while (load_acquire(&ring->engine.flags) == 0)
            (void)usleep(10);
        if (ring_must_wake(helper_post(cmd.cookie, cmd.lane, 0, 100), GPU_RING_SLEEPS, &rung) & GPU_RING_SLEEPS)
            ck_assert_int_eq(send(doorbell[1], "", 1, 0), 1);
    }
    return NULL;
}

static void engine_submit(struct uring *u, struct use *use)
{
    use->dma.gpu = GPU;
    uring_backend(u)->ops->dma_submit(uring_backend(u), &use->dma);
}

static void engine_setup(void)
{
    rig_setup();
    n_ended = 0;
    helper_open(LIST_ITEMS_MAX);
}

static void engine_teardown(void)
{
    helper_close();
    rig_teardown();
}

START_TEST(test_engine_sleeps)
{
    struct uring *u = rig_make();
    pthread_t thread;

    ck_assert_int_eq(uring_gpu_add(u, GPU, ring, entries, doorbell[0]), 0);
    ck_assert_int_eq(uring_gpu_add(u, GPU, ring, entries, doorbell[0]), -EEXIST);
    ck_assert_int_eq(uring_gpu_add(u, GPUS_MAX, ring, entries, doorbell[0]), -EINVAL);
    ck_assert_int_eq(uring_gpu_add(u, 0, ring, entries / 2, doorbell[0]), -EINVAL);
    ck_assert_int_eq(pthread_create(&thread, NULL, helper_main, NULL), 0);
    for (uint32_t i = 0; i < USES; i++) {
        struct use use = use_of(IO_DMA_FETCH, i + 1, 1);

        engine_submit(u, &use);
        ck_assert(!uring_is_idle(u));
        while (use.n_done == 0)
            ck_assert_int_ge(uring_run(u, URING_SLEEP_FOR_EVER), 0);
        ck_assert_int_eq(use.dma.result, 0);
    }
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert(uring_is_idle(u));
    ck_assert_uint_eq(rig_polled, 0); /* the doorbell is none of the owner's */
    ck_assert_uint_eq(uring_gpus_bad(u, 0), 0);
    uring_gpu_remove(u, GPU);
    uring_free(u);
}
END_TEST

START_TEST(test_engine_loses_the_helper)
{
    struct uring *u = rig_make();
    struct use uses[3];

    ck_assert_int_eq(uring_gpu_add(u, GPU, ring, entries, doorbell[0]), 0);
    for (uint32_t i = 0; i < 3; i++) {
        uses[i] = use_of(IO_DMA_SPILL, i + 1, LIST_ITEMS_MAX / 2);
        engine_submit(u, &uses[i]);
    }
    ck_assert_int_ge(uring_run(u, MS), 0); /* it sleeps, and the doorbell is polled */
    ck_assert_uint_eq(helper_waiting(), LIST_ITEMS_MAX);
    ck_assert_int_eq(shutdown(doorbell[1], SHUT_RDWR), 0);
    for (int i = 0; i < 3; i++) /* hears of it once, and then goes on sleeping */
        ck_assert_int_ge(uring_run(u, MS), 0);
    ck_assert_uint_eq(uring_run(u, MS), 0);
    ck_assert_uint_eq(n_ended, 0); /* its process may still be writing */
    (void)helper_post(77, 3, 0, 0);
    ck_assert_int_ge(uring_run(u, MS), 0);
    ck_assert_uint_eq(uring_gpus_bad(u, 0), UINT64_C(1) << GPU);
    uring_gpu_remove(u, GPU);
    ck_assert_uint_eq(n_ended, 3);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(uses[i].dma.result, -EIO);
    uring_gpu_remove(u, GPU);

    /* Without a helper. */
    struct use late = use_of(IO_DMA_SPILL, 4, 1);

    engine_submit(u, &late);
    ck_assert_int_eq(late.n_done, 0); /* never from within */
    ck_assert(!uring_is_idle(u));
    ck_assert_int_gt(uring_run(u, URING_SLEEP_FOR_EVER), 0);
    ck_assert_int_eq(late.dma.result, -EIO);
    ck_assert(uring_is_idle(u));
    uring_free(u);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gpu_port");
    TCase *tc = tcase_create("port"), *engine = tcase_create("engine");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, test_commands, 0, 2);
    tcase_add_test(tc, test_full_ring);
    tcase_add_test(tc, test_full_of_completions);
    tcase_add_test(tc, test_cancel_goes_first);
    tcase_add_loop_test(tc, test_lies, 0, 9);
    tcase_add_test(tc, test_twice);
    tcase_add_test(tc, test_late);
    tcase_add_test(tc, test_wakes_the_helper_once);
    tcase_add_test(tc, test_sleep);
    suite_add_tcase(suite, tc);
    tcase_add_checked_fixture(engine, engine_setup, engine_teardown);
    tcase_set_timeout(engine, 60);
    tcase_add_test(engine, test_engine_sleeps);
    tcase_add_test(engine, test_engine_loses_the_helper);
    suite_add_tcase(suite, engine);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
