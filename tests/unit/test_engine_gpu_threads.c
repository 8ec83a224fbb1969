/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One engine as it is in the daemon, a GPU's helper on a thread, and the test as the control thread and the client: bytes go
 * to the pool's memory and back, and everything ends when the helper is gone.
 */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/engine.h"
#include "include/base/ring.h"
#include "io/gpu_wire.h"
#include "io/grower.h"
#include "io/workers.h"

#define GPU 3
#define LANE 17
#define SLOT_BYTES MIB
#define SLOTS 2
#define BLOCKS 8
#define BLOCK_BYTES 20000
#define SCRATCH_BYTES 65536
#define RESULTS 32768
#define ENTRIES 16

/* --- The helper -------------------------------------------------------------------------------------------------- */

static struct gpu_ring *gpu_ring;
static int gpu_doorbell[2];
static char *slots[2]; /* by direction */
static char *chunks[CHUNKS_MAX];
static uint32_t epochs[CHUNKS_MAX];
static uint32_t helper_stops, helper_stalls;
static pthread_t helper;

static void helper_copy(const struct gpu_cmd *cmd)
{
    bool is_spill = cmd->op == GPU_CMD_SPILL;
    char *slot = slots[!is_spill] + (cmd->seq - 1) % SLOTS * SLOT_BYTES + cmd->gpu_offset_bytes;
    char *mem = load_acquire(&chunks[cmd->region]) + cmd->offset_bytes;

    ck_assert_uint_eq(cmd->epoch, epochs[cmd->region]);
    memcpy(is_spill ? mem : slot, is_spill ? slot : mem, cmd->len_bytes);
}

static void *helper_main(void *arg)
{
    uint32_t head = 0, tail = 0, rung = 0;
    uint64_t bytes = 0;

    (void)arg;
    while (!load_acquire(&helper_stops)) {
        if (load_acquire(&helper_stalls) || load_acquire(&gpu_ring->engine.cmd_tail) == head) {
            (void)usleep(50);
            continue;
        }
        struct gpu_cmd cmd = gpu_ring_cmds(gpu_ring)[head & (GPU_RING_ENTRIES - 1)];

        store_release(&gpu_ring->helper.cmd_head, ++head);
        if (cmd.op != GPU_CMD_CANCEL) {
            helper_copy(&cmd);
            bytes += cmd.len_bytes;
        }
        if (cmd.op != GPU_CMD_CANCEL && !(cmd.flags & GPU_CMD_LAST))
            continue;
        gpu_ring_completions(gpu_ring, GPU_RING_ENTRIES)[tail & (GPU_RING_ENTRIES - 1)] =
            (struct gpu_completion){.cookie = cmd.cookie, .lane = cmd.lane, .bytes = bytes};
        bytes = 0;
        uint32_t word = ring_publish(&gpu_ring->helper.done_tail, ++tail, &gpu_ring->engine.flags);

        if (ring_must_wake(word, GPU_RING_SLEEPS, &rung) & GPU_RING_SLEEPS)
            ck_assert_int_eq(send(gpu_doorbell[1], "", 1, 0), 1);
    }
    return NULL;
}

/* --- The control thread ------------------------------------------------------------------------------------------ */

static struct engine *engine;
static struct engine_queue control;
static struct workers *workers;
static struct grower *grower;
static uint32_t n_answers, n_new, n_gone;
static struct memory_chunk *held[CHUNKS_MAX];

static void answered(struct call *call)
{
    (void)call;
    n_answers++;
}

static void control_wait(uint32_t n)
{
    while (n_answers < n) {
        (void)engine_queue_run(&control);
        (void)usleep(50);
    }
}

/* Has it run, and waits for the answer. */
#define CALL(function, c)                                                                                              \
    do {                                                                                                               \
        uint32_t before_ = n_answers;                                                                                  \
        (c)->call.at_control = answered;                                                                               \
        function(engine, c);                                                                                           \
        control_wait(before_ + 1);                                                                                     \
    } while (0)

static void chunk_note(void *ctx, struct engine_chunk_note *note)
{
    ck_assert_ptr_eq(ctx, &control);
    ck_assert_uint_eq(note->engine, 1);
    ck_assert_uint_eq(note->pool, 0);
    if (note->is_new) {
        ck_assert_ptr_nonnull(note->chunk);
        ck_assert_ptr_null(held[note->region]);
        held[note->region] = note->chunk;
        epochs[note->region] = note->epoch;
        store_release(&chunks[note->region], (char *)note->chunk->mem);
        n_new++;
        return;
    }
    ck_assert_ptr_null(note->chunk);
    ck_assert_uint_eq(epochs[note->region], note->epoch);
    memory_chunk_unref(held[note->region]);
    held[note->region] = NULL;
    n_gone++;
}

static void engine_start(void)
{
    struct tiering_pool_config pool = {.name = "p",
                                       .trusted = true,
                                       .dram_bytes = 16 * MIB,
                                       .session_bytes = MIB,
                                       .weight = 1,
                                       .max_leases_percent = 80};
    struct workers_config workers_config = {.threads = 1};
    static const struct pool_gpu_stat gpus[1];
    struct engine_config config = {.number = 1,
                                   .spin_ns = 1000,
                                   .gpus = gpus,
                                   .max_requests = 64,
                                   .max_waits = 64,
                                   .control = &control,
                                   .chunk_note = chunk_note,
                                   .chunk_note_ctx = &control,
                                   .tiering = {.pools = &pool,
                                               .n_pools = 1,
                                               .node = MEMORY_NODE_ANY,
                                               .max_objects = 1000,
                                               .max_leases = 1000,
                                               .parts_deadline_ns = UINT64_C(1000000000)}};
    const char *why = "";

    for (int i = 0; i < TIERING_CLASSES; i++)
        config.tiering.classes[i] = (struct tiering_class_config){.policy = &policy_lru, .weight = 1};
    config.uring.chunk.node = MEMORY_NODE_ANY;
    ck_assert_int_eq(engine_queue_init(&control), 0);
    ck_assert_int_eq(workers_new(&workers_config, &workers), 0);
    ck_assert_int_eq(grower_new(&grower), 0);
    config.uring.workers = workers;
    config.uring.grower = grower;
    ck_assert_msg(engine_new(&config, &engine, &why) == 0, "%s", why);
    ck_assert_int_eq(engine_begin(engine), 0);
    ck_assert_int_eq(engine_run(engine), 0);
    for (struct ping_call ping = {.is_ready = false}; !ping.is_ready;)
        CALL(engine_ping, &ping);
}

static void engine_stops(void)
{
    struct stop_call stop = {.result = 1};

    CALL(engine_stop, &stop);
    ck_assert_int_eq(stop.result, 0);
    engine = engine_free(engine);
    for (uint32_t i = 0; i < CHUNKS_MAX; i++)
        memory_chunk_unref(held[i]);
    grower_free(grower);
    workers_free(workers);
    (void)engine_queue_run(&control);
    engine_queue_deinit(&control);
}

/* --- The client -------------------------------------------------------------------------------------------------- */

static struct engine_peer peer;
static struct ring ring;
static struct ring_geometry geometry;
static char *ring_mem, *scratch;
static int doorbell[2];
static uint32_t sq_tail, cq_head, space;
static struct spw_gpu_fences fences;

static void client_open(void)
{
    struct peer_add_call add = {.peer = &peer, .session = 5, .owner = 5, .max_leases = 100};
    struct space_call open = {.peer = &peer, .weight = 1, .spec = {.digest = {1}, .durability = STORE_CACHE + 1}};
    struct ring_call ring_call = {.peer = &peer, .ring = &ring};

    ck_assert_int_eq(ring_geometry(ENTRIES, ENTRIES, &geometry), 0);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, doorbell), 0);
    ring_mem = calloc(1, geometry.ring_bytes);
    scratch = calloc(1, SCRATCH_BYTES);
    ring_init(&ring, 1, &geometry, ring_mem, scratch, SCRATCH_BYTES, doorbell[0]);
    CALL(engine_peer_add, &add);
    CALL(engine_space_open, &open);
    ck_assert_int_eq(open.result, 0);
    space = open.handle;
    CALL(engine_ring_add, &ring_call);
    ck_assert_int_eq(ring_call.result, 0);
}

static void client_close(void)
{
    uint32_t before = n_answers;

    peer.end_call.at_control = answered;
    engine_peer_end(&peer);
    control_wait(before + 1);
    free(ring_mem);
    free(scratch);
    (void)close(doorbell[0]);
    (void)close(doorbell[1]);
}

static void submit(const struct spw_sqe *sqe)
{
    struct spw_ring *shared = (void *)ring_mem;

    ((struct spw_sqe *)(void *)(ring_mem + geometry.sq_offset))[sq_tail % ENTRIES] = *sqe;
    store_release(&shared->client.sq_tail, ++sq_tail);
    fence_full(); /* pairs with the engine's S2 */
    if (load_relaxed(&shared->daemon.sq_flags) & SPW_RING_NEED_WAKEUP)
        ck_assert_int_eq(send(doorbell[1], "", 1, 0), 1);
}

static struct spw_cqe take(void)
{
    struct spw_ring *shared = (void *)ring_mem;

    while (load_acquire(&shared->daemon.cq_tail) == cq_head) {
        (void)engine_queue_run(&control);
        (void)usleep(50);
    }
    struct spw_cqe cqe = ((struct spw_cqe *)(void *)(ring_mem + geometry.cq_offset))[cq_head % ENTRIES];

    store_release(&shared->client.cq_head, ++cq_head);
    return cqe;
}

static struct spw_cqe do_sqe(const struct spw_sqe *sqe)
{
    submit(sqe);
    return take();
}

/* RESERVE or ACQUIRE of all blocks: the leases lie as handles at the beginning of scratch then. */
static void client_lease(uint8_t opcode)
{
    struct spw_item *items = (void *)scratch;
    struct spw_handle handles[BLOCKS];
    const struct spw_result *results = (void *)(scratch + RESULTS);

    for (uint8_t i = 0; i < BLOCKS; i++)
        items[i] =
            (struct spw_item){.key = {1, i}, .key_len = 2, .length_bytes = opcode == SPW_OP_RESERVE ? BLOCK_BYTES : 0};
    struct spw_cqe cqe = do_sqe(
        &(struct spw_sqe){.opcode = opcode, .space = space, .n_items = BLOCKS, .results = RESULTS, .timeout_ms = 5000});

    ck_assert_uint_eq(cqe.value, BLOCKS);
    for (uint32_t i = 0; i < BLOCKS; i++)
        handles[i] = (struct spw_handle){.lease = results[i].lease};
    memcpy(scratch, handles, sizeof(handles));
}

static struct spw_sqe gpu_sqe(uint8_t opcode, uint64_t seq)
{
    return (struct spw_sqe){.opcode = opcode, .n_items = BLOCKS, .timeout_ms = 5000, .arg = {LANE, seq}};
}

static struct spw_cqe handles_sqe(uint8_t opcode)
{
    return do_sqe(&(struct spw_sqe){.opcode = opcode, .n_items = BLOCKS, .results = RESULTS, .timeout_ms = 5000});
}

/* --- Together ---------------------------------------------------------------------------------------------------- */

static struct lane_call lane_of(uint32_t lane)
{
    return (struct lane_call){.peer = &peer,
                              .lane = lane,
                              .gpu = GPU,
                              .slots = SLOTS,
                              .slot_bytes = SLOT_BYTES,
                              .fences = &fences,
                              .result = 1};
}

static void gpu_add(struct gpu_call *call)
{
    gpu_ring = calloc(1, gpu_ring_bytes(GPU_RING_ENTRIES));
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, gpu_doorbell), 0);
    for (int d = 0; d < 2; d++)
        slots[d] = calloc(SLOTS, SLOT_BYTES);
    helper_stops = helper_stalls = 0;
    ck_assert_int_eq(pthread_create(&helper, NULL, helper_main, NULL), 0);
    *call = (struct gpu_call){
        .gpu = GPU, .ring_mem = gpu_ring, .entries = GPU_RING_ENTRIES, .doorbell_fd = gpu_doorbell[0], .result = 1};
    CALL(engine_gpu_add, call);
    ck_assert_int_eq(call->result, 0);
}

static void helper_end(void)
{
    store_release(&helper_stops, 1);
    ck_assert_int_eq(pthread_join(helper, NULL), 0);
}

static void gpu_free(void)
{
    free(gpu_ring);
    for (int d = 0; d < 2; d++)
        free(slots[d]);
    (void)close(gpu_doorbell[0]);
    (void)close(gpu_doorbell[1]);
}

static void setup(void)
{
    n_answers = n_new = n_gone = sq_tail = cq_head = 0;
    memset(&fences, 0, sizeof(fences));
    memset(&peer, 0, sizeof(peer));
    engine_start();
    client_open();
}

static void teardown(void)
{
    client_close();
    engine_stops();
}

START_TEST(test_there_and_back)
{
    struct lane_call lane = lane_of(LANE);
    struct gpu_call gpu;

    CALL(engine_lane_add, &lane);
    ck_assert_int_eq(lane.result, -ENODEV);
    ck_assert_uint_gt(n_new, 0); /* chunks that were there before the GPU */
    gpu_add(&gpu);
    CALL(engine_gpu_add, &gpu);
    ck_assert_int_eq(gpu.result, -EEXIST);
    CALL(engine_lane_add, &lane);
    ck_assert_int_eq(lane.result, 0);
    for (uint32_t i = 0; i < BLOCKS * BLOCK_BYTES; i++)
        slots[0][i] = (char)(i * 7 + i / 1000);

    client_lease(SPW_OP_RESERVE);
    struct spw_sqe sqe = gpu_sqe(SPW_OP_GPU_SPILL, 1);
    struct spw_cqe cqe = do_sqe(&sqe);

    ck_assert_int_eq(cqe.status, 0);
    ck_assert_uint_eq(cqe.value, BLOCKS * BLOCK_BYTES);
    ck_assert_uint_eq(handles_sqe(SPW_OP_COMMIT).value, BLOCKS);
    for (uint64_t seq = 1; seq <= 20; seq++) {
        client_lease(SPW_OP_ACQUIRE);
        memset(slots[1], 0, SLOTS * SLOT_BYTES);
        sqe = gpu_sqe(SPW_OP_GPU_FETCH, seq);
        (void)usleep(seq % 2 * 2000); /* awake, or asleep */
        ck_assert_int_eq(do_sqe(&sqe).status, 0);
        ck_assert_mem_eq(slots[1] + (seq - 1) % SLOTS * SLOT_BYTES, slots[0], BLOCKS * BLOCK_BYTES);
        ck_assert_uint_eq(handles_sqe(SPW_OP_RELEASE).value, BLOCKS);
    }
    CALL(engine_lane_remove, &lane);
    helper_end();
    CALL(engine_gpu_remove, &gpu);
    gpu_free();
}
END_TEST

START_TEST(test_helper_dies)
{
    struct lane_call lane = lane_of(LANE), other = lane_of(LANE + 1);
    struct spw_gpu_fences other_fences = {0};
    struct ping_call ping = {.gpus_bad = 1};
    struct spw_sqe sqe = gpu_sqe(SPW_OP_GPU_SPILL, 1);
    struct gpu_call gpu;

    gpu_add(&gpu);
    other.fences = &other_fences;
    CALL(engine_lane_add, &lane);
    CALL(engine_lane_add, &other);
    client_lease(SPW_OP_RESERVE);
    store_release(&helper_stalls, 1);
    submit(&sqe);
    while (load_acquire(&gpu_ring->engine.cmd_tail) == 0)
        (void)usleep(50);
    ck_assert_uint_eq(handles_sqe(SPW_OP_COMMIT).value, 0); /* they are busy */
    ck_assert_int_eq(((struct spw_result *)(void *)(scratch + RESULTS))->status, -EBUSY);
    CALL(engine_ping, &ping);
    ck_assert_uint_eq(ping.gpus_bad, 0);
    store_release(&gpu_ring->helper.done_tail, GPU_RING_ENTRIES + 1); /* nonsense */
    while (ping.gpus_bad != UINT64_C(1) << GPU)
        CALL(engine_ping, &ping);
    helper_end();
    CALL(engine_gpu_remove, &gpu);
    ck_assert_uint_eq(load_acquire(&fences.spill.daemon_seq), SPW_GPU_SEQ_OVER);
    ck_assert_uint_eq(fences.spill.status, EIO);
    ck_assert_uint_eq(load_acquire(&other_fences.fetch.daemon_seq), SPW_GPU_SEQ_OVER);
    gpu_free(); /* nothing of it is used any more */
    struct spw_cqe cqe = take();

    ck_assert_int_eq(cqe.status, -EIO);
    ck_assert_uint_eq(cqe.detail, SPW_LIMIT_GPU_FAILED);
    ck_assert_uint_eq(handles_sqe(SPW_OP_ABORT).value, BLOCKS);
    sqe = gpu_sqe(SPW_OP_GPU_FETCH, 1);
    ck_assert_int_eq(do_sqe(&sqe).status, -EPIPE);
    CALL(engine_lane_remove, &lane);

    /* The next one, and a session that ends with a use on its way. */
    gpu_add(&gpu);
    memset(&fences, 0, sizeof(fences));
    CALL(engine_lane_add, &lane);
    ck_assert_int_eq(lane.result, 0);
    CALL(engine_lane_remove, &other);
    client_lease(SPW_OP_RESERVE);
    store_release(&helper_stalls, 1);
    sqe = gpu_sqe(SPW_OP_GPU_SPILL, 1);
    submit(&sqe);
    while (load_acquire(&gpu_ring->engine.cmd_tail) == 0)
        (void)usleep(50);
    uint32_t before = n_answers;

    lane.call.at_control = answered;
    engine_lane_remove(engine, &lane);
    CALL(engine_ping, &ping);
    ck_assert_uint_eq(n_answers, before + 1); /* the lane's is still to come */
    store_release(&helper_stalls, 0);
    control_wait(before + 2);
    helper_end();
    CALL(engine_gpu_remove, &gpu);
    gpu_free();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("engine_gpu");
    TCase *tc = tcase_create("gpu");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, test_there_and_back);
    tcase_add_test(tc, test_helper_dies);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
