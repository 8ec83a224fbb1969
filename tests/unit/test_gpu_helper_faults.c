/* SPDX-License-Identifier: Apache-2.0 */
/* How lanes, and spillway-gpu as a whole, end: clients that do nothing or lie, a driver that refuses, hangs or is lost, and
 * a daemon that goes. After each of them the fake driver counts what was left. */
#include <errno.h>
#include <string.h>

#include "include/base/limits.h"
#include "include/spillway/abi.h"
#include "tests/unit/support/gpu_rig.h"

#define CHUNK_BYTES (4 * MIB)
#define LEN 4096

static struct gpu_rig rig;
static struct gpu_rig_lane lane, other;
static uint8_t bytes[LEN], got[LEN];

/* Two lanes of one engine. */
static void begin(void)
{
    gpu_rig_init(&rig);
    (void)gpu_rig_chunk(&rig, 0, 0, CHUNK_BYTES);
    gpu_rig_lane(&rig, 0, 1, 4, &lane);
    gpu_rig_lane(&rig, 0, 2, 4, &other);
}

/* Whatever happened, the other lane works both ways; and then everything is freed. */
static void finish(void)
{
    cuda_rig_fill(bytes, LEN, 5);
    gpu_rig_slot_write(&other, GPU_CMD_SPILL, 1, bytes, LEN);
    store_release(&other.fences->spill.client_seq, 1);
    gpu_rig_use(&other, GPU_CMD_SPILL, 1, MIB, LEN);
    gpu_rig_expect(&other, GPU_CMD_SPILL, 1, 0, LEN);
    gpu_rig_use(&other, GPU_CMD_FETCH, 1, MIB, LEN);
    gpu_rig_expect(&other, GPU_CMD_FETCH, 1, 0, LEN);
    gpu_rig_slot_read(&other, GPU_CMD_FETCH, 1, got, LEN);
    ck_assert_mem_eq(got, bytes, LEN);
    gpu_rig_lane_gone(&lane);
    gpu_rig_lane_gone(&other);
    gpu_rig_deinit(&rig);
}

static void use_until(int op, uint64_t seq, uint64_t expires_ns)
{
    gpu_rig_push(lane.engine, &(struct gpu_cmd){.op = (uint8_t)op,
                                                .flags = GPU_CMD_LAST,
                                                .lane = lane.number,
                                                .epoch = 1,
                                                .seq = seq,
                                                .len_bytes = LEN,
                                                .cookie = gpu_rig_cookie(&lane, op, seq),
                                                .expires_ns = expires_ns});
}

static void wait_for_copies(uint64_t n)
{
    while (gpu_rig_stat(&rig).copies < n)
        ;
}

/* The second of three spills expires, of which no slot was ever filled: it alone timed out. */
START_TEST(test_expires)
{
    begin();
    gpu_rig_use(&lane, GPU_CMD_SPILL, 1, 0, LEN);
    for (uint64_t seq = 1; seq <= 4; seq++)
        gpu_rig_use(&lane, GPU_CMD_FETCH, seq, 0, LEN);
    for (uint64_t seq = 1; seq <= 4; seq++)
        gpu_rig_expect(&lane, GPU_CMD_FETCH, seq, 0, LEN);
    gpu_rig_use(&lane, GPU_CMD_FETCH, 5, 0, LEN); /* its slot was never emptied */
    use_until(GPU_CMD_SPILL, 2, gpu_rig_now_ns() + 1000000);
    gpu_rig_use(&lane, GPU_CMD_SPILL, 3, 0, LEN);
    gpu_rig_expect(&lane, GPU_CMD_FETCH, 5, -EPIPE, 0);
    gpu_rig_expect_over(&lane, -ETIMEDOUT);
    gpu_rig_expect(&lane, GPU_CMD_SPILL, 1, -EPIPE, 0);
    gpu_rig_expect(&lane, GPU_CMD_SPILL, 2, -ETIMEDOUT, 0);
    gpu_rig_expect(&lane, GPU_CMD_SPILL, 3, -EPIPE, 0);
    gpu_rig_use(&lane, GPU_CMD_SPILL, 4, 0, LEN);
    gpu_rig_expect(&lane, GPU_CMD_SPILL, 4, -EPIPE, 0);
    gpu_rig_cancel(&lane);
    gpu_rig_expect(&lane, GPU_CMD_CANCEL, 0, 0, 0);
    gpu_rig_expect_over(&lane, -ETIMEDOUT);
    finish();
}
END_TEST

/* Its time may be over while it is at the copy engine: then it is not too late. */
START_TEST(test_expires_under_way)
{
    begin();
    store_release(&rig.role->hang, 1);
    uint64_t expires_ns = gpu_rig_now_ns() + 50000000;

    use_until(GPU_CMD_FETCH, 1, expires_ns);
    wait_for_copies(1);
    while (gpu_rig_now_ns() < expires_ns)
        usleep(1000);
    (void)gpu_rig_stat(&rig);
    ck_assert(gpu_rig_is_quiet(lane.engine));
    store_release(&rig.role->hang, 0);
    gpu_rig_expect(&lane, GPU_CMD_FETCH, 1, 0, LEN);
    finish();
}
END_TEST

/* What is at the copy engine comes first, and only then anybody learns of the end. */
START_TEST(test_cancel_under_way)
{
    begin();
    store_release(&lane.fences->spill.client_seq, 1);
    store_release(&rig.role->hang, 1);
    gpu_rig_use(&lane, GPU_CMD_SPILL, 1, 0, LEN);
    wait_for_copies(1);
    gpu_rig_use(&lane, GPU_CMD_SPILL, 2, 0, LEN);
    gpu_rig_push(lane.engine, &(struct gpu_cmd){.op = GPU_CMD_FETCH, .lane = 1, .epoch = 1, .seq = 1, .len_bytes = 16});
    gpu_rig_cancel(&lane);
    (void)gpu_rig_stat(&rig);
    ck_assert(gpu_rig_is_quiet(lane.engine));
    ck_assert_uint_eq(load_acquire(&lane.fences->spill.daemon_seq), 0);
    ck_assert_uint_eq(load_acquire(&lane.fences->fetch.daemon_seq), 0);
    ck_assert_uint_eq(load_acquire(&lane.fences->fetch.status), 0);
    struct gpu_msg gone = {.type = GPU_MSG_LANE_GONE, .engine = 0, .lane = 1};

    ck_assert_int_eq(gpu_rig_call(&rig, gone, -1, NULL).status, -EBUSY);
    store_release(&rig.role->hang, 0);
    gpu_rig_expect(&lane, GPU_CMD_SPILL, 1, 0, LEN);
    gpu_rig_expect(&lane, GPU_CMD_SPILL, 2, -ECANCELED, 0);
    gpu_rig_expect_over(&lane, -ECANCELED);
    gpu_rig_expect(&lane, GPU_CMD_CANCEL, 0, 0, 0);
    gpu_rig_use(&lane, GPU_CMD_FETCH, 1, 0, LEN); /* the LAST of the use that had begun */
    gpu_rig_expect(&lane, GPU_CMD_FETCH, 1, -ECANCELED, 0);
    finish();
}
END_TEST

/* A driver that refuses one copy, of one run and of many, and goes on. */
START_TEST(test_copy_fails)
{
    begin();
    fake_cuda_fail(rig.role, _i == 0 ? "cuMemcpyDtoHAsync" : "cuMemcpyBatchAsync", 1, 1, NV_ERROR_INVALID_VALUE);
    store_release(&lane.fences->spill.client_seq, 2);
    if (_i == 1)
        gpu_rig_push(lane.engine,
                     &(struct gpu_cmd){.op = GPU_CMD_SPILL, .lane = 1, .epoch = 1, .seq = 1, .len_bytes = 16});
    gpu_rig_use(&lane, GPU_CMD_SPILL, 1, 0, LEN);
    gpu_rig_expect(&lane, GPU_CMD_SPILL, 1, -EIO, 0);
    gpu_rig_expect_over(&lane, -EIO);
    gpu_rig_use(&lane, GPU_CMD_SPILL, 2, 0, LEN);
    gpu_rig_expect(&lane, GPU_CMD_SPILL, 2, -EPIPE, 0);
    ck_assert_uint_eq(gpu_rig_stat(&rig).lanes_over, 1);
    finish();
}
END_TEST

/* A copy whose end the client's stream would never be told of is one that failed. */
START_TEST(test_telling_fails)
{
    begin();
    fake_cuda_fail(rig.role, "cuStreamWriteValue64", 1, 1, NV_ERROR_INVALID_VALUE);
    gpu_rig_use(&lane, GPU_CMD_FETCH, 1, 0, LEN);
    gpu_rig_expect(&lane, GPU_CMD_FETCH, 1, -EIO, 0);
    gpu_rig_expect_over(&lane, -EIO);
    finish();
}
END_TEST

/* Of a spill that fails nobody is told while a fetch of the lane is under way: its slot is still written to. */
START_TEST(test_failure_waits)
{
    begin();
    store_release(&rig.role->dma_delay_us, 100000);
    gpu_rig_use(&lane, GPU_CMD_FETCH, 1, 0, LEN);
    wait_for_copies(1);
    fake_cuda_fail(rig.role, "cuMemcpyDtoHAsync", 1, 1, NV_ERROR_INVALID_VALUE);
    store_release(&lane.fences->spill.client_seq, 1);
    gpu_rig_use(&lane, GPU_CMD_SPILL, 1, 0, LEN);
    gpu_rig_expect(&lane, GPU_CMD_FETCH, 1, 0, LEN);
    gpu_rig_expect(&lane, GPU_CMD_SPILL, 1, -EIO, 0);
    gpu_rig_expect_over(&lane, -EIO);
    store_release(&rig.role->dma_delay_us, 0);
    finish();
}
END_TEST

/* Memory that the driver refuses to register fails who needs it, and is tried again for the next one. */
START_TEST(test_register_fails)
{
    struct gpu_stat stat;
    int fd;

    begin();
    (void)gpu_rig_chunk_new(CHUNK_BYTES, &fd);
    while (gpu_rig_stat(&rig).registered_bytes < CHUNK_BYTES)
        ;
    struct gpu_cmd cmd = {.op = GPU_CMD_FETCH,
                          .flags = GPU_CMD_LAST,
                          .lane = 1,
                          .region = 3,
                          .epoch = 1,
                          .seq = 1,
                          .len_bytes = LEN,
                          .cookie = gpu_rig_cookie(&lane, GPU_CMD_FETCH, 1),
                          .expires_ns = UINT64_MAX};

    gpu_rig_push(lane.engine, &cmd);
    (void)gpu_rig_stat(&rig); /* it waits for its chunk */
    fake_cuda_fail(rig.role, "cuMemHostRegister", 1, 1, NV_ERROR_OUT_OF_MEMORY);
    gpu_rig_chunk_tell(&rig, 0, 3, CHUNK_BYTES, fd);
    gpu_rig_expect(&lane, GPU_CMD_FETCH, 1, -EIO, 0);
    gpu_rig_expect_over(&lane, -EIO);
    stat = gpu_rig_stat(&rig);
    ck_assert_uint_eq(stat.windows_failed, 1);
    ck_assert_uint_eq(stat.registered_bytes, CHUNK_BYTES);
    gpu_rig_lane_gone(&other);
    gpu_rig_lane(&rig, 0, 2, 4, &other);
    cmd.lane = 2;
    cmd.cookie = gpu_rig_cookie(&other, GPU_CMD_FETCH, 1);
    gpu_rig_push(other.engine, &cmd);
    gpu_rig_expect(&other, GPU_CMD_FETCH, 1, 0, LEN);
    ck_assert_uint_eq(gpu_rig_stat(&rig).registered_bytes, 2 * CHUNK_BYTES);
    gpu_rig_lane_gone(&other);
    gpu_rig_lane(&rig, 0, 2, 4, &other);
    finish();
}
END_TEST

/* The helper says so and ends; the fences are the engine's to close. */
START_TEST(test_lost)
{
    struct gpu_msg msg;

    begin();
    gpu_rig_use(&lane, GPU_CMD_SPILL, 1, 0, LEN);
    fake_cuda_fail(rig.role, "cuMemcpyHtoDAsync", 1, 1, NV_ERROR_ECC_UNCORRECTABLE);
    gpu_rig_use(&lane, GPU_CMD_FETCH, 1, 0, LEN);
    msg = gpu_rig_receive(&rig, NULL);
    ck_assert_uint_eq(msg.type, GPU_MSG_LOST);
    ck_assert_str_eq(msg.text, "cuMemcpyHtoDAsync: CUDA_ERROR_ECC_UNCORRECTABLE");
    ck_assert_int_eq(gpu_rig_reap(&rig), EXIT_FAILURE);
    ck_assert(gpu_rig_is_quiet(lane.engine));
    ck_assert_uint_eq(load_acquire(&lane.fences->fetch.daemon_seq), 0);
}
END_TEST

/* As it is lost while a copy is under way. */
START_TEST(test_lost_under_way)
{
    struct gpu_msg msg;

    begin();
    store_release(&rig.role->hang, 1);
    gpu_rig_use(&lane, GPU_CMD_FETCH, 1, 0, LEN);
    wait_for_copies(1);
    store_release(&rig.role->lost, NV_ERROR_ILLEGAL_ADDRESS);
    msg = gpu_rig_receive(&rig, NULL);
    ck_assert_uint_eq(msg.type, GPU_MSG_LOST);
    ck_assert_str_eq(msg.text, "cuEventQuery: CUDA_ERROR_ILLEGAL_ADDRESS");
    ck_assert_int_eq(gpu_rig_reap(&rig), EXIT_FAILURE);
}
END_TEST

/* A copy that never ends (GPU_HANG_MS, which this test takes) is as good as a context that is lost. */
START_TEST(test_hangs)
{
    struct gpu_msg msg;

    begin();
    store_release(&rig.role->hang, 1);
    gpu_rig_use(&lane, GPU_CMD_FETCH, 1, 0, LEN);
    msg = gpu_rig_receive(&rig, NULL);
    ck_assert_uint_eq(msg.type, GPU_MSG_LOST);
    ck_assert_str_eq(msg.text, "copy engine: a copy does not end");
    ck_assert_int_eq(gpu_rig_reap(&rig), EXIT_FAILURE);
}
END_TEST

/* Too much for the GPU, and memory that cannot be passed on: in words, and nothing stays behind. */
START_TEST(test_no_staging)
{
    static const char *const functions[] = {"cuMemHostRegister",
                                            "cuMemHostGetDevicePointer",
                                            "cuMemCreate",
                                            "cuMemAddressReserve",
                                            "cuMemMap",
                                            "cuMemSetAccess",
                                            "cuMemsetD8",
                                            "cuStreamSynchronize",
                                            "cuMemExportToShareableHandle"};
    struct gpu_msg msg = {.type = GPU_MSG_LANE, .lane = 3, .slots = 64, .slot_bytes = 16 * MIB}, reply;
    int fences_fd = gpu_rig_memfd(SECTOR_BYTES, F_SEAL_SHRINK), fd;

    begin();
    reply = gpu_rig_call(&rig, msg, fences_fd, &fd);
    ck_assert_int_eq(reply.status, -ENOMEM);
    ck_assert_int_eq(fd, -1);
    ck_assert_str_eq(reply.text, "cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY");
    msg.slots = 1;
    for (size_t i = 0; i < ARRAY_LEN(functions); i++) {
        fake_cuda_fail(rig.role, functions[i], 1, 1, NV_ERROR_UNKNOWN);
        reply = gpu_rig_call(&rig, msg, fences_fd, &fd);
        ck_assert_int_eq(reply.status, -EIO);
        ck_assert_ptr_eq(strstr(reply.text, functions[i]), reply.text);
    }
    msg.bytes = GIB; /* a direct lane's */
    reply = gpu_rig_call(&rig, msg, fences_fd, &fd);
    ck_assert_int_eq(reply.status, -ENOMEM);
    ck_assert_str_eq(reply.text, "cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY");
    msg.bytes = GPU_ALLOC_BYTES_MAX + 1;
    ck_assert_int_eq(gpu_rig_call(&rig, msg, fences_fd, &fd).status, -EINVAL);
    ck_assert_uint_eq(gpu_rig_stat(&rig).lanes, 2);
    ck_assert_uint_eq(gpu_rig_stat(&rig).staging_bytes, lane.staging_bytes + other.staging_bytes);
    ck_assert_uint_eq(gpu_rig_stat(&rig).allocated_bytes, 0);
    finish();
}
END_TEST

/* Fences that a client could make smaller under us, or that are too small. */
START_TEST(test_bad_fences)
{
    struct gpu_msg msg = {.type = GPU_MSG_LANE, .lane = 3, .slots = 1, .slot_bytes = MIB};
    int fd;

    begin();
    ck_assert_int_eq(gpu_rig_call(&rig, msg, gpu_rig_memfd(SECTOR_BYTES, F_SEAL_GROW), &fd).status, -EPERM);
    ck_assert_int_eq(gpu_rig_call(&rig, msg, gpu_rig_memfd(256, F_SEAL_SHRINK), &fd).status, -EINVAL);
    ck_assert_int_eq(gpu_rig_call(&rig, msg, -1, &fd).status, -EINVAL);
    msg.lane = 1;
    ck_assert_int_eq(gpu_rig_call(&rig, msg, gpu_rig_memfd(SECTOR_BYTES, F_SEAL_SHRINK), &fd).status, -EINVAL);
    finish();
}
END_TEST

/* Whatever the client says in its fences is about when. */
START_TEST(test_hostile_fences)
{
    static const uint64_t words[] = {UINT64_MAX, 0, UINT64_C(1) << 63, SPW_GPU_SEQ_OVER, 1, UINT64_MAX - 3};

    begin();
    for (uint64_t seq = 1; seq <= 60; seq++) {
        uint64_t word = words[seq % ARRAY_LEN(words)];

        store_release(&lane.fences->spill.client_seq, word);
        store_release(&lane.fences->spill.daemon_seq, word);
        store_release(&lane.fences->spill.status, word);
        gpu_rig_use(&lane, GPU_CMD_SPILL, seq, 0, LEN);
        (void)gpu_rig_stat(&rig);
        store_release(&lane.fences->spill.client_seq, UINT64_MAX);
        gpu_rig_expect(&lane, GPU_CMD_SPILL, seq, 0, LEN);
    }
    finish();
}
END_TEST

/* Commands that make no sense end their lane, or concern none. */
START_TEST(test_bad_commands)
{
    const struct gpu_cmd good = {.op = GPU_CMD_SPILL,
                                 .flags = GPU_CMD_LAST,
                                 .lane = 1,
                                 .epoch = 1,
                                 .seq = 1,
                                 .len_bytes = LEN,
                                 .cookie = 77,
                                 .expires_ns = UINT64_MAX};
    struct gpu_cmd bad = good;
    struct gpu_completion completion;

    begin();
    store_release(&lane.fences->spill.client_seq, 1);
    switch (_i) {
    case 0:
        bad.seq = 2;
        break;
    case 1:
        bad.len_bytes = 0;
        break;
    case 2:
        bad.gpu_offset_bytes = GPU_RIG_SLOT_BYTES - LEN + 1;
        break;
    case 3:
        bad.gpu_offset_bytes = UINT64_MAX;
        break;
    case 4:
        bad.offset_bytes = CHUNK_BYTES - LEN + 1;
        break;
    case 5:
        bad.offset_bytes = UINT64_MAX - 100;
        break;
    case 6:
        bad.region = CHUNKS_MAX;
        break;
    default:
        bad.lane = 99;
    }
    gpu_rig_push(lane.engine, &bad);
    completion = gpu_rig_wait(lane.engine);
    ck_assert_uint_eq(completion.cookie, 77);
    ck_assert_int_eq(completion.status, bad.lane == 99 ? -EBADF : -EINVAL);
    if (bad.lane == 99) {
        gpu_rig_push(lane.engine, &good);
        ck_assert_int_eq(gpu_rig_wait(lane.engine).status, 0);
    } else {
        gpu_rig_expect_over(&lane, -EINVAL);
    }
    finish();
}
END_TEST

/* An allocation is the whole of what its commands may name. */
START_TEST(test_bad_commands_direct)
{
    const uint64_t end = 4 * MIB;
    struct gpu_rig_lane direct;
    struct gpu_cmd cmd = {.op = _i % 2 ? GPU_CMD_FETCH : GPU_CMD_SPILL,
                          .flags = GPU_CMD_LAST,
                          .lane = 5,
                          .epoch = 1,
                          .seq = 1,
                          .gpu_offset_bytes = end - LEN,
                          .len_bytes = LEN,
                          .cookie = 77,
                          .expires_ns = UINT64_MAX};

    begin();
    gpu_rig_direct_lane(&rig, 0, 5, 2, end, &direct);
    direct.fences->spill.client_seq = UINT64_MAX;
    store_release(&direct.fences->fetch.client_seq, UINT64_MAX);
    gpu_rig_push(lane.engine, &cmd);
    ck_assert_int_eq(gpu_rig_wait(lane.engine).status, 0);
    cmd.seq = 2;
    switch (_i / 2) {
    case 0:
        cmd.gpu_offset_bytes++;
        break;
    case 1:
        cmd.gpu_offset_bytes = UINT64_MAX - LEN + 1;
        break;
    case 2:
        cmd.gpu_offset_bytes = end;
        break;
    case 3: /* within the allocation, but more than a use may have */
        cmd.gpu_offset_bytes = 0;
        cmd.len_bytes = (uint32_t)GPU_RIG_SLOT_BYTES + 1;
        break;
    default: /* likewise, in two */
        cmd.gpu_offset_bytes = 0;
        cmd.len_bytes = (uint32_t)GPU_RIG_SLOT_BYTES - LEN + 1;
        cmd.flags = 0;
        gpu_rig_push(lane.engine, &cmd);
        cmd.len_bytes = LEN;
        cmd.flags = GPU_CMD_LAST;
    }
    gpu_rig_push(lane.engine, &cmd);
    ck_assert_int_eq(gpu_rig_wait(lane.engine).status, -EINVAL);
    gpu_rig_expect_over(&direct, -EINVAL);
    gpu_rig_lane_gone(&direct);
    finish();
}
END_TEST

/* The daemon goes while copies are under way, and others wait: they end, clients' streams go on, and nothing is left. */
START_TEST(test_daemon_goes)
{
    begin();
    store_release(&lane.fences->spill.client_seq, 100);
    store_release(&rig.role->dma_delay_us, 2000);
    for (uint64_t seq = 1; seq <= 20; seq++)
        gpu_rig_use(&lane, GPU_CMD_SPILL, seq, 0, LEN);
    gpu_rig_use(&other, GPU_CMD_SPILL, 1, 0, LEN);
    wait_for_copies(1);
    gpu_rig_deinit(&rig);
    gpu_rig_expect_over(&lane, -EIO);
    gpu_rig_expect_over(&other, -EIO);
}
END_TEST

/* The same with a copy that never ends: only the end of the process helps, and it comes. */
START_TEST(test_daemon_goes_copy_hangs)
{
    begin();
    store_release(&rig.role->hang, 1);
    gpu_rig_use(&lane, GPU_CMD_FETCH, 1, 0, LEN);
    wait_for_copies(1);
    close(rig.socket_fd);
    ck_assert_int_eq(gpu_rig_reap(&rig), EXIT_FAILURE);
    ck_assert_uint_eq(load_acquire(&lane.fences->fetch.daemon_seq), 0); /* its slot may still be written to */
}
END_TEST

/* More completions than the ring holds: the engine takes none, and then finds them all. */
START_TEST(test_engine_takes_nothing)
{
    enum { USES = GPU_RIG_ENTRIES + 40 };

    begin();
    store_release(&lane.fences->fetch.client_seq, USES);
    store_release(&other.fences->fetch.client_seq, USES);
    for (uint64_t seq = 1; seq <= USES / 2; seq++) {
        gpu_rig_use(&lane, GPU_CMD_FETCH, seq, 0, LEN);
        gpu_rig_use(&other, GPU_CMD_FETCH, seq, 0, LEN);
    }
    while (gpu_rig_stat(&rig).fetched_bytes < USES * LEN)
        ;
    uint64_t next[3] = {0, 1, 1};

    for (int i = 0; i < USES; i++) {
        struct gpu_completion completion = gpu_rig_wait(lane.engine);

        ck_assert_int_eq(completion.status, 0);
        ck_assert_uint_le(completion.lane, 2);
        ck_assert_uint_eq(completion.cookie & 0xffff, next[completion.lane]++);
    }
    ck_assert_uint_eq(next[1], next[2]);
    gpu_rig_lane_gone(&other);
    gpu_rig_lane(&rig, 0, 2, 4, &other);
    finish();
}
END_TEST

/* A daemon that breaks the protocol is told so. */
START_TEST(test_protocol)
{
    struct gpu_msg msg = {.type = _i == 0 ? 99 : GPU_MSG_CHUNK_GONE}, reply;

    if (_i == 2) {
        gpu_rig_fork(&rig, SPILLWAY_FAKE_CUDA);
        msg.type = GPU_MSG_STAT; /* before START */
    } else {
        begin();
    }
    gpu_rig_send(&rig, &msg, NULL, 0);
    reply = gpu_rig_receive(&rig, NULL);
    ck_assert_uint_eq(reply.type, GPU_MSG_LOST);
    ck_assert_uint_gt(strlen(reply.text), 10);
    ck_assert_int_eq(gpu_rig_reap(&rig), EXIT_FAILURE);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gpu_helper_faults");
    TCase *tests = tcase_create("faults");

    tcase_add_test(tests, test_expires);
    tcase_add_test(tests, test_expires_under_way);
    tcase_add_test(tests, test_cancel_under_way);
    tcase_add_loop_test(tests, test_copy_fails, 0, 2);
    tcase_add_test(tests, test_telling_fails);
    tcase_add_test(tests, test_failure_waits);
    tcase_add_test(tests, test_register_fails);
    tcase_add_test(tests, test_lost);
    tcase_add_test(tests, test_lost_under_way);
    tcase_add_test(tests, test_hangs);
    tcase_add_test(tests, test_no_staging);
    tcase_add_test(tests, test_bad_fences);
    tcase_add_test(tests, test_hostile_fences);
    tcase_add_loop_test(tests, test_bad_commands, 0, 8);
    tcase_add_loop_test(tests, test_bad_commands_direct, 0, 10);
    tcase_add_test(tests, test_daemon_goes);
    tcase_add_test(tests, test_daemon_goes_copy_hangs);
    tcase_add_test(tests, test_engine_takes_nothing);
    tcase_add_loop_test(tests, test_protocol, 0, 3);
    suite_add_tcase(suite, tests);
    return cuda_rig_main(suite);
}
