/* SPDX-License-Identifier: Apache-2.0 */
/* What spillway-gpu does with the bytes: both ways, in turns, and with chunks that come and go. Its failures are in
 * test_gpu_helper_faults.c. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

#include "include/base/limits.h"
#include "include/spillway/abi.h"
#include "tests/unit/support/gpu_rig.h"

#define CHUNK_BYTES (4 * MIB)
#define SLOT GPU_RIG_SLOT_BYTES

static struct gpu_rig rig;
static uint8_t bytes[SLOT], got[SLOT];

START_TEST(test_start)
{
    struct gpu_msg msg = gpu_rig_start_msg(), reply;

    gpu_rig_fork(&rig, SPILLWAY_FAKE_CUDA);
    msg.uuid[15] = 9;
    reply = gpu_rig_call(&rig, msg, -1, NULL);
    ck_assert_int_eq(reply.status, -ENODEV);
    ck_assert_ptr_nonnull(strstr(reply.text, "GPU-fa4ec0da-0000-4000-8000-000000000009"));
    msg = gpu_rig_start_msg();
    msg.version = GPU_WIRE_VERSION + 1;
    ck_assert_int_eq(gpu_rig_call(&rig, msg, -1, NULL).status, -EPROTONOSUPPORT);
    reply = gpu_rig_call(&rig, gpu_rig_start_msg(), -1, NULL);
    ck_assert_int_eq(reply.status, 0);
    ck_assert_str_eq(reply.text, "Fake GPU 0");
    ck_assert_uint_eq(reply.stat.hbm_bytes, GIB);
    ck_assert_uint_eq(reply.stat.hbm_free_bytes, GIB - FAKE_CUDA_CONTEXT_BYTES);
    ck_assert_int_eq(gpu_rig_call(&rig, gpu_rig_start_msg(), -1, NULL).status, -EALREADY);
    cuda_rig_forget_file();
    gpu_rig_deinit(&rig);
}
END_TEST

START_TEST(test_no_driver)
{
    struct gpu_msg reply;

    gpu_rig_fork(&rig, "/nowhere/libcuda.so.1");
    reply = gpu_rig_call(&rig, gpu_rig_start_msg(), -1, NULL);
    ck_assert_int_eq(reply.status, -ENOENT);
    ck_assert_ptr_nonnull(strstr(reply.text, "/nowhere/libcuda.so.1"));
    cuda_rig_forget_file();
    gpu_rig_deinit(&rig);
}
END_TEST

START_TEST(test_old_driver)
{
    struct gpu_msg reply;

    gpu_rig_fork(&rig, "libc.so.6"); /* lacks a function or two */
    reply = gpu_rig_call(&rig, gpu_rig_start_msg(), -1, NULL);
    ck_assert_int_eq(reply.status, -ENOTSUP);
    ck_assert_ptr_nonnull(strstr(reply.text, "too old"));
    cuda_rig_forget_file();
    gpu_rig_deinit(&rig);
}
END_TEST

/* One use each way. Staging memory is zeroed, and the fences say when. */
START_TEST(test_both_ways)
{
    struct gpu_rig_lane lane;
    uint8_t *chunk;

    gpu_rig_init(&rig);
    chunk = gpu_rig_chunk(&rig, 0, 0, CHUNK_BYTES);
    gpu_rig_lane(&rig, 0, 7, 4, &lane);
    for (uint64_t seq = 1; seq <= 4; seq++) {
        memset(got, 1, SLOT);
        gpu_rig_slot_read(&lane, GPU_CMD_FETCH, seq, got, SLOT);
        ck_assert(got[0] == 0 && memcmp(got, got + 1, SLOT - 1) == 0);
    }
    cuda_rig_fill(bytes, SLOT, 1);
    gpu_rig_slot_write(&lane, GPU_CMD_SPILL, 1, bytes, SLOT);
    gpu_rig_use(&lane, GPU_CMD_SPILL, 1, MIB, SLOT);
    (void)gpu_rig_stat(&rig);
    ck_assert(gpu_rig_is_quiet(lane.engine)); /* the client has not said that the slot is full */
    ck_assert_uint_eq(load_acquire(&lane.fences->spill.daemon_seq), 0);
    store_release(&lane.fences->spill.client_seq, 1);
    gpu_rig_expect(&lane, GPU_CMD_SPILL, 1, 0, SLOT);
    ck_assert_uint_eq(load_acquire(&lane.fences->spill.daemon_seq), 1);
    ck_assert_mem_eq(chunk + MIB, bytes, SLOT);

    gpu_rig_use(&lane, GPU_CMD_FETCH, 1, MIB, SLOT);
    gpu_rig_expect(&lane, GPU_CMD_FETCH, 1, 0, SLOT);
    ck_assert_uint_eq(load_acquire(&lane.fences->fetch.daemon_seq), 1);
    gpu_rig_slot_read(&lane, GPU_CMD_FETCH, 1, got, SLOT);
    ck_assert_mem_eq(got, bytes, SLOT);
    struct gpu_stat stat = gpu_rig_stat(&rig);

    ck_assert_uint_eq(stat.spilled_bytes, SLOT);
    ck_assert_uint_eq(stat.fetched_bytes, SLOT);
    ck_assert_uint_eq(stat.lanes, 1);
    ck_assert_uint_eq(stat.staging_bytes, lane.staging_bytes);
    gpu_rig_lane_gone(&lane);
    stat = gpu_rig_stat(&rig);
    ck_assert_uint_eq(stat.lanes, 0);
    ck_assert_uint_eq(stat.staging_bytes, 0);
    gpu_rig_deinit(&rig);
}
END_TEST

/* More runs than one call of the driver takes, backwards in the chunk, of odd sizes, then all of it back. */
START_TEST(test_many_runs)
{
    enum { RUNS = 150 };
    static const int ops[] = {GPU_CMD_SPILL, GPU_CMD_FETCH};
    struct gpu_rig_lane lane;
    uint8_t *chunk;

    gpu_rig_init(&rig);
    chunk = gpu_rig_chunk(&rig, 0, 0, CHUNK_BYTES);
    gpu_rig_lane(&rig, 0, 7, 2, &lane);
    cuda_rig_fill(bytes, SLOT, 2);
    gpu_rig_slot_write(&lane, GPU_CMD_SPILL, 1, bytes, SLOT);
    store_release(&lane.fences->spill.client_seq, 1);
    for (size_t k = 0; k < ARRAY_LEN(ops); k++) {
        uint32_t at = 0;

        for (uint32_t i = 0; i < RUNS; i++) {
            uint32_t len_bytes = 16 + i * 16 % 1024;

            gpu_rig_push(lane.engine, &(struct gpu_cmd){.op = (uint8_t)ops[k],
                                                        .flags = i == RUNS - 1 ? GPU_CMD_LAST : 0,
                                                        .lane = lane.number,
                                                        .epoch = 1,
                                                        .offset_bytes = CHUNK_BYTES - (i + 1) * UINT64_C(2048),
                                                        .seq = 1,
                                                        .gpu_offset_bytes = at,
                                                        .len_bytes = len_bytes,
                                                        .cookie = gpu_rig_cookie(&lane, ops[k], 1),
                                                        .expires_ns = UINT64_MAX});
            at += len_bytes;
        }
        gpu_rig_expect(&lane, ops[k], 1, 0, at);
        if (ops[k] == GPU_CMD_FETCH) {
            gpu_rig_slot_read(&lane, GPU_CMD_FETCH, 1, got, at);
            ck_assert_mem_eq(got, bytes, at);
        } else {
            ck_assert_mem_eq(chunk + CHUNK_BYTES - 2048, bytes, 16);
            ck_assert_mem_eq(chunk + CHUNK_BYTES - 2 * 2048, bytes + 16, 32);
        }
    }
    gpu_rig_lane_gone(&lane);
    gpu_rig_deinit(&rig);
}
END_TEST

/* A direct lane: no slots, but one piece of memory, where the commands alone say what is where. Either direction begins when
 * the client says so, the first use of a fetch as well. */
START_TEST(test_direct)
{
    enum { USES = 5, LEN = 96 * 1024 };
    const uint64_t end = 64 * MIB;
    struct gpu_rig_lane lane;
    uint8_t *chunk;

    gpu_rig_init(&rig);
    chunk = gpu_rig_chunk(&rig, 0, 0, CHUNK_BYTES);
    gpu_rig_direct_lane(&rig, 0, 7, 2, end, &lane);
    memset(got, 1, LEN);
    gpu_rig_memory_read(&lane, end - LEN, got, LEN);
    ck_assert(got[0] == 0 && memcmp(got, got + 1, LEN - 1) == 0);
    for (uint64_t seq = 1; seq <= USES; seq++) { /* from the end backwards; more of them than `slots` */
        cuda_rig_fill(bytes, LEN, (uint32_t)seq);
        gpu_rig_memory_write(&lane, end - seq * LEN, bytes, LEN);
        gpu_rig_use_at(&lane, GPU_CMD_SPILL, seq, end - seq * LEN, seq * LEN, LEN);
    }
    (void)gpu_rig_stat(&rig);
    ck_assert(gpu_rig_is_quiet(lane.engine));
    store_release(&lane.fences->spill.client_seq, USES);
    for (uint64_t seq = 1; seq <= USES; seq++) {
        gpu_rig_expect(&lane, GPU_CMD_SPILL, seq, 0, LEN);
        cuda_rig_fill(bytes, LEN, (uint32_t)seq);
        ck_assert_mem_eq(chunk + seq * LEN, bytes, LEN);
    }
    ck_assert_uint_eq(load_acquire(&lane.fences->spill.daemon_seq), USES);

    for (uint64_t seq = 1; seq <= USES; seq++)
        gpu_rig_use_at(&lane, GPU_CMD_FETCH, seq, seq * (LEN + 16), seq * LEN, LEN);
    for (uint64_t seq = 1; seq <= USES; seq++) {
        (void)gpu_rig_stat(&rig);
        ck_assert(gpu_rig_is_quiet(lane.engine)); /* what is there may not be overwritten yet */
        ck_assert_uint_eq(load_acquire(&lane.fences->fetch.daemon_seq), seq - 1);
        store_release(&lane.fences->fetch.client_seq, seq);
        gpu_rig_expect(&lane, GPU_CMD_FETCH, seq, 0, LEN);
        gpu_rig_memory_read(&lane, seq * (LEN + 16), got, LEN);
        cuda_rig_fill(bytes, LEN, (uint32_t)seq);
        ck_assert_mem_eq(got, bytes, LEN);
    }
    struct gpu_stat stat = gpu_rig_stat(&rig);

    ck_assert_uint_eq(stat.allocated_bytes, end);
    ck_assert_uint_eq(stat.staging_bytes, 0);
    gpu_rig_lane_gone(&lane);
    ck_assert_uint_eq(gpu_rig_stat(&rig).allocated_bytes, 0);
    memset(got, 0, LEN);
    gpu_rig_memory_read(&lane, USES * (LEN + 16), got, LEN); /* the client has it as long as it wants */
    ck_assert_mem_eq(got, bytes, LEN);
    gpu_rig_deinit(&rig);
}
END_TEST

/* Two slots, used seven times each way; all commands are there from the start, and the fences alone tell when. */
START_TEST(test_slots_wrap)
{
    enum { SLOTS = 2, USES = 7, LEN = 4096 };
    struct gpu_rig_lane lane;
    uint8_t *chunk;

    gpu_rig_init(&rig);
    chunk = gpu_rig_chunk(&rig, 1, 0, CHUNK_BYTES);
    gpu_rig_lane(&rig, 1, 1, SLOTS, &lane);
    for (uint64_t seq = 1; seq <= USES; seq++)
        gpu_rig_use(&lane, GPU_CMD_SPILL, seq, seq * LEN, LEN);
    for (uint64_t seq = 1; seq <= USES; seq++) {
        cuda_rig_fill(bytes, LEN, (uint32_t)seq);
        gpu_rig_slot_write(&lane, GPU_CMD_SPILL, seq, bytes, LEN);
        store_release(&lane.fences->spill.client_seq, seq);
        gpu_rig_expect(&lane, GPU_CMD_SPILL, seq, 0, LEN);
        ck_assert_uint_eq(load_acquire(&lane.fences->spill.daemon_seq), seq);
        ck_assert_mem_eq(chunk + seq * LEN, bytes, LEN);
    }
    for (uint64_t seq = 1; seq <= USES; seq++)
        gpu_rig_use(&lane, GPU_CMD_FETCH, seq, seq * LEN, LEN);
    for (uint64_t seq = 1; seq <= USES; seq++) {
        gpu_rig_expect(&lane, GPU_CMD_FETCH, seq, 0, LEN);
        cuda_rig_fill(bytes, LEN, (uint32_t)seq);
        gpu_rig_slot_read(&lane, GPU_CMD_FETCH, seq, got, LEN);
        ck_assert_mem_eq(got, bytes, LEN); /* the next one has not come into this slot yet */
        if (seq == SLOTS) {
            (void)gpu_rig_stat(&rig);
            ck_assert(gpu_rig_is_quiet(lane.engine));
        }
        if (seq >= SLOTS) /* the first two were read in time */
            store_release(&lane.fences->fetch.client_seq, seq - SLOTS + 1);
    }
    gpu_rig_lane_gone(&lane);
    gpu_rig_deinit(&rig);
}
END_TEST

/* A lane whose uses are four times as large gets no more bytes than the other. */
START_TEST(test_turns)
{
    enum { LARGE = 64 * 1024, SMALL = LARGE / 4, USES = 16 };
    struct gpu_rig_lane large, small;
    int64_t ahead = 0;

    gpu_rig_init(&rig);
    (void)gpu_rig_chunk(&rig, 0, 0, CHUNK_BYTES);
    gpu_rig_lane(&rig, 0, 1, 4, &large);
    gpu_rig_lane(&rig, 0, 2, 4, &small);
    large.fences->spill.client_seq = small.fences->spill.client_seq = UINT64_MAX;
    store_release(&rig.role->hang, 1);
    for (uint64_t seq = 1; seq <= USES; seq++)
        gpu_rig_use(&large, GPU_CMD_SPILL, seq, 0, LARGE);
    for (uint64_t seq = 1; seq <= 4 * USES; seq++)
        gpu_rig_use(&small, GPU_CMD_SPILL, seq, MIB, SMALL);
    (void)gpu_rig_stat(&rig);
    store_release(&rig.role->hang, 0);
    for (int i = 0; i < 5 * USES; i++) {
        struct gpu_completion completion = gpu_rig_wait(&rig.engines[0]);

        ck_assert_int_eq(completion.status, 0);
        ahead += completion.lane == large.number ? LARGE : -SMALL;
        /* What went before the other one was there counts once. */
        ck_assert_int_le(ahead, (GPU_AHEAD_SLOTS + 1) * LARGE);
        ck_assert_int_ge(ahead, -(GPU_AHEAD_SLOTS + 1) * LARGE);
    }
    ck_assert_int_eq(ahead, 0);
    gpu_rig_lane_gone(&large);
    gpu_rig_lane_gone(&small);
    gpu_rig_deinit(&rig);
}
END_TEST

/* A fetch does not stand behind a spill, nor a lane behind one whose client does nothing. */
START_TEST(test_nobody_in_front)
{
    struct gpu_rig_lane lazy, lane;

    gpu_rig_init(&rig);
    (void)gpu_rig_chunk(&rig, 0, 0, CHUNK_BYTES);
    gpu_rig_lane(&rig, 0, 1, 4, &lazy);
    gpu_rig_lane(&rig, 0, 2, 4, &lane);
    for (uint64_t seq = 1; seq <= 100; seq++)
        gpu_rig_use(&lazy, GPU_CMD_SPILL, seq, 0, 4096);
    gpu_rig_use(&lazy, GPU_CMD_FETCH, 1, 0, 4096);
    gpu_rig_expect(&lazy, GPU_CMD_FETCH, 1, 0, 4096);
    store_release(&lane.fences->spill.client_seq, 1);
    gpu_rig_use(&lane, GPU_CMD_SPILL, 1, 0, 4096);
    gpu_rig_expect(&lane, GPU_CMD_SPILL, 1, 0, 4096);
    ck_assert_uint_eq(load_acquire(&lazy.fences->spill.daemon_seq), 0);
    gpu_rig_lane_gone(&lane);
    gpu_rig_deinit(&rig); /* with uses that wait */
}
END_TEST

/* A chunk is told of after its commands. What nobody asked for is registered too, and both are gone when they are. */
START_TEST(test_late_chunk)
{
    struct gpu_rig_lane lane;
    struct gpu_stat stat;
    int fd;
    uint8_t *chunk = gpu_rig_chunk_new(CHUNK_BYTES, &fd);

    gpu_rig_init(&rig);
    gpu_rig_lane(&rig, 0, 1, 4, &lane);
    cuda_rig_fill(bytes, SLOT, 3);
    gpu_rig_slot_write(&lane, GPU_CMD_SPILL, 1, bytes, SLOT);
    store_release(&lane.fences->spill.client_seq, 1);
    gpu_rig_use(&lane, GPU_CMD_SPILL, 1, 4096, SLOT);
    ck_assert_uint_eq(gpu_rig_stat(&rig).registered_bytes, 0);
    ck_assert(gpu_rig_is_quiet(lane.engine));
    gpu_rig_chunk_tell(&rig, 0, 0, CHUNK_BYTES, fd);
    gpu_rig_expect(&lane, GPU_CMD_SPILL, 1, 0, SLOT);
    ck_assert_mem_eq(chunk + 4096, bytes, SLOT);
    (void)gpu_rig_chunk(&rig, 1, 5, 2 * CHUNK_BYTES);
    do
        stat = gpu_rig_stat(&rig);
    while (stat.registered_bytes < 3 * CHUNK_BYTES);
    ck_assert_uint_eq(stat.chunk_bytes, 3 * CHUNK_BYTES);
    gpu_rig_send(&rig, &(struct gpu_msg){.type = GPU_MSG_CHUNK_GONE, .engine = 1, .region = 5, .epoch = 1}, NULL, 0);
    stat = gpu_rig_stat(&rig);
    ck_assert_uint_eq(stat.chunk_bytes, CHUNK_BYTES);
    ck_assert_uint_eq(stat.registered_bytes, CHUNK_BYTES);
    gpu_rig_lane_gone(&lane);
    gpu_rig_deinit(&rig);
}
END_TEST

/* The two halves of a run lie in two registrations. */
START_TEST(test_across_windows)
{
    uint64_t size_bytes = GPU_WINDOW_BYTES + 2 * MIB;
    struct gpu_rig_lane lane;
    uint8_t *chunk;

    gpu_rig_init(&rig);
    chunk = gpu_rig_chunk(&rig, 0, 0, size_bytes);
    gpu_rig_lane(&rig, 0, 1, 4, &lane);
    cuda_rig_fill(bytes, SLOT, 4);
    gpu_rig_slot_write(&lane, GPU_CMD_SPILL, 1, bytes, SLOT);
    store_release(&lane.fences->spill.client_seq, 1);
    gpu_rig_use(&lane, GPU_CMD_SPILL, 1, GPU_WINDOW_BYTES - SLOT / 4, SLOT);
    gpu_rig_expect(&lane, GPU_CMD_SPILL, 1, 0, SLOT);
    ck_assert_mem_eq(chunk + GPU_WINDOW_BYTES - SLOT / 4, bytes, SLOT);
    gpu_rig_use(&lane, GPU_CMD_FETCH, 1, GPU_WINDOW_BYTES - SLOT / 4, SLOT);
    gpu_rig_expect(&lane, GPU_CMD_FETCH, 1, 0, SLOT);
    gpu_rig_slot_read(&lane, GPU_CMD_FETCH, 1, got, SLOT);
    ck_assert_mem_eq(got, bytes, SLOT);
    gpu_rig_lane_gone(&lane);
    gpu_rig_deinit(&rig);
}
END_TEST

/* With nothing to do it makes no turn: it was woken by the second question alone. A doorbell wakes it as well. */
START_TEST(test_sleeps)
{
    struct gpu_msg question = {.type = GPU_MSG_STAT};
    struct gpu_rig_lane lane;
    uint64_t n_sleeps;

    gpu_rig_init(&rig);
    (void)gpu_rig_chunk(&rig, 0, 0, CHUNK_BYTES);
    gpu_rig_lane(&rig, 0, 1, 4, &lane);
    while (gpu_rig_stat(&rig).registered_bytes < CHUNK_BYTES)
        ;
    for (int i = 0; i < 3; i++) {
        while (load_acquire(&rig.engines[0].ring->helper.flags) == 0) /* until it sleeps */
            usleep(100);
        n_sleeps = gpu_rig_call(&rig, question, -1, NULL).stat.sleeps;
        usleep(100000);
        ck_assert_uint_eq(gpu_rig_call(&rig, question, -1, NULL).stat.sleeps, n_sleeps + 1);
        gpu_rig_use(&lane, GPU_CMD_FETCH, (uint64_t)i + 1, 0, 4096);
        gpu_rig_expect(&lane, GPU_CMD_FETCH, (uint64_t)i + 1, 0, 4096);
    }
    gpu_rig_lane_gone(&lane);
    gpu_rig_deinit(&rig);
}
END_TEST

/* What takes long: a message that comes meanwhile is answered before more of it. */
START_TEST(test_registers_between_messages)
{
    struct gpu_msg question = {.type = GPU_MSG_STAT};

    gpu_rig_init(&rig);
    store_release(&rig.role->hold, 1);
    (void)gpu_rig_chunk(&rig, 0, 0, 2 * GPU_SOCKET_TURNS * GPU_WINDOW_BYTES);
    while (!load_acquire(&rig.role->is_held))
        (void)usleep(100);
    gpu_rig_send(&rig, &question, NULL, 0);
    store_release(&rig.role->hold, 0);
    ck_assert_uint_eq(gpu_rig_receive(&rig, NULL).stat.registered_bytes, GPU_WINDOW_BYTES);
    gpu_rig_deinit(&rig);
}
END_TEST

/* The program: it is what LD_LIBRARY_PATH's driver serves, has the right name, and keeps nothing open but its socket. */
START_TEST(test_program)
{
    struct gpu_rig_lane lane;
    char path[4096], library_path[] = SPILLWAY_FAKE_CUDA;
    int leaked;

    *strrchr(library_path, '/') = '\0';
    setenv("LD_LIBRARY_PATH", library_path, 1);
    snprintf(path, sizeof(path), "%s/spillway-gpu", getenv("SPILLWAY_BIN") ? getenv("SPILLWAY_BIN") : ".");
    leaked = dup2(STDERR_FILENO, 77);
    ck_assert_int_eq(leaked, 77);
    gpu_rig_exec(&rig, path);
    gpu_rig_begin(&rig);
    snprintf(path, sizeof(path), "/proc/%d/fd/77", (int)rig.pid);
    ck_assert_int_ne(access(path, F_OK), 0);
    kill(rig.pid, SIGTERM); /* meant for the daemon */
    (void)gpu_rig_chunk(&rig, 0, 0, CHUNK_BYTES);
    gpu_rig_lane(&rig, 0, 1, 4, &lane);
    gpu_rig_use(&lane, GPU_CMD_FETCH, 1, 0, 4096);
    gpu_rig_expect(&lane, GPU_CMD_FETCH, 1, 0, 4096);
    ck_assert_uint_eq(load_relaxed(&rig.role->bytes_htod), 4096); /* counted as the helper's: by its name */
    ck_assert_uint_eq(gpu_rig_stat(&rig).context_bytes, FAKE_CUDA_CONTEXT_BYTES); /* NVML is in that folder too */
    gpu_rig_deinit(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gpu_helper");
    TCase *tests = tcase_create("helper");

    tcase_add_test(tests, test_start);
    tcase_add_test(tests, test_no_driver);
    tcase_add_test(tests, test_old_driver);
    tcase_add_test(tests, test_both_ways);
    tcase_add_test(tests, test_many_runs);
    tcase_add_test(tests, test_direct);
    tcase_add_test(tests, test_slots_wrap);
    tcase_add_test(tests, test_turns);
    tcase_add_test(tests, test_nobody_in_front);
    tcase_add_test(tests, test_late_chunk);
    tcase_add_test(tests, test_across_windows);
    tcase_add_test(tests, test_sleeps);
    tcase_add_test(tests, test_registers_between_messages);
    tcase_add_test(tests, test_program);
    suite_add_tcase(suite, tests);
    return cuda_rig_main(suite);
}
