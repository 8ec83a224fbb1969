/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams of the fake CUDA driver: in order each, beside each other, joined by events and by words in memory; and what
 * happens to them when the device hangs or is lost. A stream that must not get on is given a chance to: a moment in which
 * others do. If a bug hid behind that moment, the test would pass; it never fails because of it.
 */
#include <pthread.h>
#include <time.h>

#include "tests/unit/support/cuda_rig.h"

struct streams {
    struct cuda_rig rig;
    struct cuda_driver *cu;
    struct CUstream_st *a, *b;
    uint64_t *words; /* host memory that is mapped */
    uint64_t memory; /* of the device, one page */
};

static void streams_init(struct streams *s, unsigned flags)
{
    cuda_rig_init(&s->rig);
    s->cu = &s->rig.cu;
    OK(s->cu->StreamCreateWithPriority(&s->a, flags, 0));
    OK(s->cu->StreamCreateWithPriority(&s->b, flags, -5));
    OK(s->cu->MemHostAlloc((void **)&s->words, 4096, NV_HOST_REGISTER_DEVICEMAP));
    OK(s->cu->MemAlloc(&s->memory, 4096));
}

static void streams_deinit(struct streams *s)
{
    OK(s->cu->CtxSynchronize());
    OK(s->cu->StreamDestroy(s->a));
    OK(s->cu->StreamDestroy(s->b));
    OK(s->cu->MemFreeHost(s->words));
    OK(s->cu->MemFree(s->memory));
    cuda_rig_deinit(&s->rig);
    ck_assert_int_eq(FAKE_CUDA_LIVE(s->rig.control, FAKE_CUDA_CLIENT, n_streams), 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(s->rig.control, FAKE_CUDA_CLIENT, n_events), 0);
}

static uint64_t at(const struct streams *s, int word)
{
    return (uintptr_t)&s->words[word];
}

static void moment(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
}

/* A wait holds up what is behind it, and nothing else. */
START_TEST(test_wait_and_write)
{
    struct streams s;

    streams_init(&s, NV_STREAM_NON_BLOCKING);
    OK(s.cu->StreamWaitValue64(s.a, at(&s, 0), 3, NV_STREAM_WAIT_VALUE_GEQ));
    OK(s.cu->StreamWriteValue64(s.a, at(&s, 1), 11, 0));
    OK(s.cu->StreamWriteValue64(s.b, at(&s, 2), 22, 0));
    OK(s.cu->StreamSynchronize(s.b));
    ck_assert_uint_eq(load_acquire(&s.words[2]), 22);
    store_release(&s.words[0], 2);
    moment();
    IS(s.cu->StreamQuery(s.a), NV_ERROR_NOT_READY);
    ck_assert_uint_eq(load_acquire(&s.words[1]), 0);
    OK(s.cu->StreamWriteValue64(s.b, at(&s, 0), 3, 0)); /* streams wake each other */
    OK(s.cu->StreamSynchronize(s.a));
    OK(s.cu->StreamQuery(s.a));
    ck_assert_uint_eq(load_acquire(&s.words[1]), 11);
    ck_assert_uint_eq(s.rig.role->n_waits, 1);
    ck_assert_uint_eq(s.rig.role->n_writes, 3);
    IS(s.cu->StreamWaitValue64(s.a, at(&s, 0) + 4, 3, 0), NV_ERROR_INVALID_VALUE);
    IS(s.cu->StreamWaitValue64(s.a, (uintptr_t)&s, 3, 0), NV_ERROR_INVALID_VALUE);
    streams_deinit(&s);
}
END_TEST

START_TEST(test_wait_conditions)
{
    static const struct {
        uint64_t have, value;
        unsigned flags;
    } reached[] = {{5, 5, NV_STREAM_WAIT_VALUE_GEQ},          {UINT64_MAX, UINT64_MAX - 1, NV_STREAM_WAIT_VALUE_GEQ},
                   {2, UINT64_MAX, NV_STREAM_WAIT_VALUE_GEQ}, {7, 7, NV_STREAM_WAIT_VALUE_EQ},
                   {6, 2, NV_STREAM_WAIT_VALUE_AND},          {6, 1, NV_STREAM_WAIT_VALUE_NOR}},
      not_reached[] = {{4, 5, NV_STREAM_WAIT_VALUE_GEQ},
                       {UINT64_MAX, 2, NV_STREAM_WAIT_VALUE_GEQ},
                       {8, 7, NV_STREAM_WAIT_VALUE_EQ},
                       {6, 1, NV_STREAM_WAIT_VALUE_AND},
                       {6, ~UINT64_C(6), NV_STREAM_WAIT_VALUE_NOR}};
    struct streams s;

    streams_init(&s, NV_STREAM_NON_BLOCKING);
    for (size_t i = 0; i < ARRAY_LEN(reached); i++) {
        store_release(&s.words[0], reached[i].have);
        OK(s.cu->StreamWaitValue64(s.a, at(&s, 0), reached[i].value, reached[i].flags));
        OK(s.cu->StreamSynchronize(s.a));
    }
    for (size_t i = 0; i < ARRAY_LEN(not_reached); i++) {
        store_release(&s.words[0], not_reached[i].have);
        OK(s.cu->StreamWaitValue64(s.a, at(&s, 0), not_reached[i].value, not_reached[i].flags));
        moment();
        IS(s.cu->StreamQuery(s.a), NV_ERROR_NOT_READY);
        store_release(&s.words[0], not_reached[i].flags == NV_STREAM_WAIT_VALUE_NOR ? 0 : not_reached[i].value);
        OK(s.cu->StreamSynchronize(s.a));
    }
    streams_deinit(&s);
}
END_TEST

START_TEST(test_events)
{
    struct CUevent_st *event, *later, *untimed;
    struct streams s;
    float ms = -1;

    streams_init(&s, NV_STREAM_NON_BLOCKING);
    OK(s.cu->EventCreate(&event, NV_EVENT_DEFAULT));
    OK(s.cu->EventCreate(&later, NV_EVENT_BLOCKING_SYNC));
    OK(s.cu->EventCreate(&untimed, NV_EVENT_DISABLE_TIMING));
    OK(s.cu->EventQuery(event)); /* never recorded */
    OK(s.cu->StreamWaitEvent(s.b, event, 0));
    OK(s.cu->StreamSynchronize(s.b));
    IS(s.cu->EventElapsedTime(&ms, event, later), NV_ERROR_INVALID_HANDLE);

    OK(s.cu->StreamWaitValue64(s.a, at(&s, 0), 1, 0));
    OK(s.cu->EventRecord(event, s.a));
    OK(s.cu->StreamWaitEvent(s.b, event, 0));
    OK(s.cu->StreamWriteValue64(s.b, at(&s, 1), 1, 0));
    OK(s.cu->EventRecord(later, s.b));
    OK(s.cu->EventRecord(untimed, s.b));
    moment();
    IS(s.cu->EventQuery(event), NV_ERROR_NOT_READY);
    IS(s.cu->EventQuery(later), NV_ERROR_NOT_READY);
    IS(s.cu->EventElapsedTime(&ms, event, later), NV_ERROR_NOT_READY);
    ck_assert_uint_eq(load_acquire(&s.words[1]), 0);
    store_release(&s.words[0], 1);
    OK(s.cu->EventSynchronize(later));
    ck_assert_uint_eq(load_acquire(&s.words[1]), 1);
    OK(s.cu->EventQuery(event));
    OK(s.cu->EventElapsedTime(&ms, event, later));
    ck_assert(ms >= 0);
    OK(s.cu->EventSynchronize(untimed));
    IS(s.cu->EventElapsedTime(&ms, event, untimed), NV_ERROR_INVALID_HANDLE);
    OK(s.cu->EventDestroy(event));
    OK(s.cu->EventDestroy(later));
    OK(s.cu->EventDestroy(untimed));
    IS(s.cu->EventDestroy(untimed), NV_ERROR_INVALID_HANDLE);
    streams_deinit(&s);
}
END_TEST

/* One hardware queue: what waits in one stream holds up all others, as it does on a GPU. */
START_TEST(test_one_connection)
{
    struct streams s;

    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1", 1);
    streams_init(&s, NV_STREAM_NON_BLOCKING);
    OK(s.cu->StreamWaitValue64(s.a, at(&s, 0), 1, 0));
    OK(s.cu->MemsetD8Async(s.memory, 7, 4096, s.b));
    moment();
    IS(s.cu->StreamQuery(s.b), NV_ERROR_NOT_READY);
    store_release(&s.words[0], 1);
    OK(s.cu->StreamSynchronize(s.b));
    OK(s.cu->StreamQuery(s.a));
    streams_deinit(&s);
}
END_TEST

/* The stream NULL waits for streams of the default kind, and they for it. */
START_TEST(test_legacy_stream)
{
    struct CUstream_st *free_stream;
    struct streams s;

    streams_init(&s, NV_STREAM_DEFAULT);
    OK(s.cu->StreamCreateWithPriority(&free_stream, NV_STREAM_NON_BLOCKING, 0));
    OK(s.cu->StreamWaitValue64(s.a, at(&s, 0), 1, 0));
    OK(s.cu->StreamWriteValue64(NULL, at(&s, 1), 1, 0));
    OK(s.cu->StreamWriteValue64(s.b, at(&s, 2), 1, 0));
    OK(s.cu->StreamWriteValue64(free_stream, at(&s, 3), 1, 0));
    OK(s.cu->StreamSynchronize(free_stream));
    moment();
    IS(s.cu->StreamQuery(NULL), NV_ERROR_NOT_READY);
    IS(s.cu->StreamQuery(s.b), NV_ERROR_NOT_READY);
    ck_assert_uint_eq(load_acquire(&s.words[1]), 0);
    ck_assert_uint_eq(load_acquire(&s.words[2]), 0);
    store_release(&s.words[0], 1);
    OK(s.cu->StreamSynchronize(NULL));
    ck_assert_uint_eq(load_acquire(&s.words[1]), 1);
    ck_assert_uint_eq(load_acquire(&s.words[2]), 1);
    OK(s.cu->StreamDestroy(free_stream));
    streams_deinit(&s);
}
END_TEST

struct host_call {
    struct cuda_driver *cu;
    uint64_t seen;
    int result;
};

static void host_fn(void *arg)
{
    struct host_call *call = arg;
    struct CUctx_st *ctx;

    call->result = call->cu->CtxGetCurrent(&ctx);
    store_release(&call->seen, 1);
}

START_TEST(test_host_function)
{
    struct host_call call = {0};
    struct streams s;

    streams_init(&s, NV_STREAM_NON_BLOCKING);
    call.cu = s.cu;
    OK(s.cu->StreamWaitValue64(s.a, at(&s, 0), 1, 0));
    OK(s.cu->LaunchHostFunc(s.a, host_fn, &call));
    moment();
    ck_assert_uint_eq(load_acquire(&call.seen), 0);
    store_release(&s.words[0], 1);
    OK(s.cu->StreamSynchronize(s.a));
    ck_assert_uint_eq(load_acquire(&call.seen), 1);
    IS(call.result, NV_ERROR_NOT_PERMITTED);
    streams_deinit(&s);
}
END_TEST

START_TEST(test_capture)
{
    struct streams s;
    int status = -1;

    streams_init(&s, NV_STREAM_NON_BLOCKING);
    OK(s.cu->StreamIsCapturing(s.a, &status));
    ck_assert_int_eq(status, NV_CAPTURE_STATUS_NONE);
    store_release(&s.rig.role->capturing, 1);
    OK(s.cu->StreamIsCapturing(s.a, &status));
    ck_assert_int_eq(status, NV_CAPTURE_STATUS_ACTIVE);
    IS(s.cu->StreamIsCapturing(NULL, &status), NV_ERROR_STREAM_CAPTURE_IMPLICIT);
    streams_deinit(&s);
}
END_TEST

/* A device that hangs: nothing is done until it does not. */
START_TEST(test_hang)
{
    struct streams s;

    streams_init(&s, NV_STREAM_NON_BLOCKING);
    store_release(&s.rig.role->hang, 1);
    OK(s.cu->StreamWriteValue64(s.a, at(&s, 0), 1, 0));
    moment();
    IS(s.cu->StreamQuery(s.a), NV_ERROR_NOT_READY);
    ck_assert_uint_eq(load_acquire(&s.words[0]), 0);
    store_release(&s.rig.role->hang, 0);
    OK(s.cu->StreamSynchronize(s.a));
    ck_assert_uint_eq(load_acquire(&s.words[0]), 1);
    streams_deinit(&s);
}
END_TEST

/* A wait that never ends, and a context that is lost under it: whoever waits hears of it. */
START_TEST(test_lost_while_waiting)
{
    struct CUevent_st *event;
    struct streams s;

    streams_init(&s, NV_STREAM_NON_BLOCKING);
    OK(s.cu->EventCreate(&event, NV_EVENT_DISABLE_TIMING));
    OK(s.cu->StreamWaitValue64(s.a, at(&s, 0), 1, 0));
    OK(s.cu->StreamWriteValue64(s.a, at(&s, 1), 1, 0));
    OK(s.cu->EventRecord(event, s.a));
    store_release(&s.rig.role->lost, NV_ERROR_LAUNCH_FAILED);
    IS(s.cu->StreamSynchronize(s.a), NV_ERROR_LAUNCH_FAILED);
    IS(s.cu->EventSynchronize(event), NV_ERROR_LAUNCH_FAILED);
    IS(s.cu->StreamQuery(s.b), NV_ERROR_LAUNCH_FAILED);
    store_release(&s.words[0], 1);
    moment();
    ck_assert_uint_eq(load_acquire(&s.words[1]), 0); /* what was behind is never done */
}
END_TEST

/* Memory that goes while a stream still wants it costs the context; device memory does not go before. */
START_TEST(test_memory_under_work)
{
    uint64_t memory;
    struct streams s;

    streams_init(&s, NV_STREAM_NON_BLOCKING);
    OK(s.cu->MemAlloc(&memory, 1 * MIB));
    store_release(&s.rig.role->dma_delay_us, 20000);
    OK(s.cu->MemcpyDtoDAsync(memory, memory + 512 * KIB, 512 * KIB, s.a));
    OK(s.cu->MemFree(memory)); /* waits */
    OK(s.cu->StreamQuery(s.a));
    ck_assert_uint_eq(s.rig.role->bytes_dtod, 512 * KIB);

    OK(s.cu->StreamWaitValue64(s.a, at(&s, 0), 1, 0));
    OK(s.cu->MemFreeHost(s.words));
    IS(s.cu->StreamSynchronize(s.a), NV_ERROR_ILLEGAL_ADDRESS);
}
END_TEST

/* A stream that is destroyed still does what it has. */
START_TEST(test_destroy_busy)
{
    struct CUstream_st *stream;
    struct CUevent_st *event;
    struct streams s;

    streams_init(&s, NV_STREAM_NON_BLOCKING);
    OK(s.cu->EventCreate(&event, NV_EVENT_DISABLE_TIMING));
    OK(s.cu->StreamCreateWithPriority(&stream, NV_STREAM_NON_BLOCKING, 0));
    OK(s.cu->StreamWaitValue64(stream, at(&s, 0), 1, 0));
    OK(s.cu->StreamWriteValue64(stream, at(&s, 1), 1, 0));
    OK(s.cu->EventRecord(event, stream));
    OK(s.cu->StreamDestroy(stream));
    IS(s.cu->StreamQuery(stream), NV_ERROR_INVALID_HANDLE);
    store_release(&s.words[0], 1);
    OK(s.cu->EventSynchronize(event));
    ck_assert_uint_eq(load_acquire(&s.words[1]), 1);
    OK(s.cu->EventDestroy(event));
    streams_deinit(&s);
}
END_TEST

#define PLAYERS 4
#define ROUNDS 50
#define BALL_BYTES (64 * KIB)

struct player {
    struct streams *s;
    int me;
    uint64_t ball;
};

/* Waits for its turn, adds one to the ball by way of host memory, and passes it on: all of it in its stream. */
static void *play(void *arg)
{
    struct player *p = arg;
    struct cuda_driver *cu = p->s->cu;
    struct CUstream_st *stream;
    uint8_t *mine;

    OK(cu->CtxSetCurrent(p->s->rig.ctx));
    OK(cu->StreamCreateWithPriority(&stream, NV_STREAM_NON_BLOCKING, 0));
    OK(cu->MemHostAlloc((void **)&mine, BALL_BYTES, 0));
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t turn = (uint64_t)i * PLAYERS + (uint64_t)p->me;

        OK(cu->StreamWaitValue64(stream, at(p->s, 0), turn, NV_STREAM_WAIT_VALUE_GEQ));
        OK(cu->MemcpyDtoHAsync(mine, p->ball, BALL_BYTES, stream));
        OK(cu->StreamSynchronize(stream));
        for (size_t j = 0; j < BALL_BYTES; j++)
            mine[j]++;
        OK(cu->MemcpyHtoDAsync(p->ball, mine, BALL_BYTES, stream));
        OK(cu->StreamWriteValue64(stream, at(p->s, 0), turn + 1, 0));
    }
    OK(cu->StreamSynchronize(stream));
    OK(cu->MemFreeHost(mine));
    OK(cu->StreamDestroy(stream));
    return NULL;
}

/* Threads with streams of their own, that pass one piece of memory round. */
START_TEST(test_many_threads)
{
    struct player players[PLAYERS];
    pthread_t threads[PLAYERS];
    uint8_t *seen = malloc(BALL_BYTES);
    struct streams s;
    uint64_t ball;

    streams_init(&s, NV_STREAM_NON_BLOCKING);
    OK(s.cu->MemAlloc(&ball, BALL_BYTES));
    OK(s.cu->MemsetD8(ball, 0, BALL_BYTES));
    for (int i = 0; i < PLAYERS; i++) {
        players[i] = (struct player){.s = &s, .me = i, .ball = ball};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, play, &players[i]), 0);
    }
    for (int i = 0; i < PLAYERS; i++)
        pthread_join(threads[i], NULL);
    OK(s.cu->MemcpyDtoH(seen, ball, BALL_BYTES));
    for (size_t i = 0; i < BALL_BYTES; i++)
        ck_assert_uint_eq(seen[i], (uint8_t)(PLAYERS * ROUNDS));
    OK(s.cu->MemFree(ball));
    free(seen);
    streams_deinit(&s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fake_cuda_threads");
    TCase *tests = tcase_create("streams");

    tcase_add_test(tests, test_wait_and_write);
    tcase_add_test(tests, test_wait_conditions);
    tcase_add_test(tests, test_events);
    tcase_add_test(tests, test_one_connection);
    tcase_add_test(tests, test_legacy_stream);
    tcase_add_test(tests, test_host_function);
    tcase_add_test(tests, test_capture);
    tcase_add_test(tests, test_hang);
    tcase_add_test(tests, test_lost_while_waiting);
    tcase_add_test(tests, test_memory_under_work);
    tcase_add_test(tests, test_destroy_busy);
    tcase_add_test(tests, test_many_threads);
    suite_add_tcase(suite, tests);
    return cuda_rig_main(suite);
}
