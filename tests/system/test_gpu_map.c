/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of the pools as the client's own device sees it: the bytes behind views, for copies of the application's own; what
 * that pins, and when it ends. On the fake driver, or on a real GPU with SPILLWAY_TEST_GPU=1.
 */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "tests/system/support/gpu.h"

#define ITEM_BYTES (256 * KIB)
#define N_ITEMS 300 /* more than fit */
#define WAIT_MS 20000

static struct gpu_rig rig;
static uint64_t device; /* of ITEM_BYTES */
static uint8_t bytes[ITEM_BYTES];

static void begin(void)
{
    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, 128 * MIB, 0, ITEM_BYTES);
    CU(rig.cu->MemAlloc(&device, ITEM_BYTES));
}

static void finish(void)
{
    CU(rig.cu->MemFree(device));
    gpu_rig_close(&rig);
}

static uint64_t pageable_copies(void)
{
    return rig.control ? load_relaxed(&rig.control->roles[FAKE_CUDA_CLIENT].n_pageable_copies) : 0;
}

/* Beside the pages of fences, one a lane. */
static void driver_has_registered(uint64_t n_bytes, uint64_t n_lanes)
{
    if (rig.control)
        ck_assert_int_eq(FAKE_CUDA_LIVE(rig.control, FAKE_CUDA_CLIENT, registered_bytes),
                         (int64_t)(n_bytes + n_lanes * 4096));
}

static struct spw_view acquire(spw_space *space, uint64_t number)
{
    struct spw_key key = block_key(number);
    struct spw_view view;

    ck_assert_int_eq(spw_acquire(space, &key, 1, 0, WAIT_MS, &view), 0);
    ck_assert_int_eq(view.status, 0);
    return view;
}

/* Has the device those bytes there? */
static void device_reads(uint64_t address, uint64_t number)
{
    memset(bytes, 0, sizeof(bytes));
    CU(rig.cu->MemsetD8(device, 0, ITEM_BYTES));
    CU(rig.cu->MemcpyDtoDAsync(device, address, ITEM_BYTES, NULL));
    CU(rig.cu->StreamSynchronize(NULL));
    CU(rig.cu->MemcpyDtoH(bytes, device, ITEM_BYTES));
    ck_assert(pattern_is(bytes, ITEM_BYTES, number, 0));
}

START_TEST(a_view_has_an_address)
{
    uint64_t address;

    begin();
    ck_assert_int_eq(block_put(rig.space, 7, ITEM_BYTES), 0);
    struct spw_view view = acquire(rig.space, 7);
    driver_has_registered(0, 1);
    ck_assert_uint_eq(spw_gpu_mapped_bytes(rig.gpu), 0);
    SPW(spw_gpu_map(rig.gpu, &view, &address));
    ck_assert_uint_ge(spw_gpu_mapped_bytes(rig.gpu), ITEM_BYTES);
    driver_has_registered(spw_gpu_mapped_bytes(rig.gpu), 1);
    device_reads(address, 7);
    uint64_t before = pageable_copies();
    CU(rig.cu->MemsetD8(device, 0, ITEM_BYTES));
    CU(rig.cu->MemcpyHtoDAsync(device, view.data, ITEM_BYTES, NULL)); /* a framework's own */
    CU(rig.cu->StreamSynchronize(NULL));
    ck_assert_uint_eq(pageable_copies(), before);
    CU(rig.cu->MemcpyDtoH(bytes, device, ITEM_BYTES));
    ck_assert(pattern_is(bytes, ITEM_BYTES, 7, 0));
    SPW(spw_release(rig.space, &view, 1, 0));
    ck_assert_int_eq(spw_gpu_map(rig.gpu, &view, &address), -EINVAL);
    finish();
}
END_TEST

START_TEST(a_reservation_is_filled_by_the_device)
{
    struct spw_key key = block_key(9);
    struct spw_view view;
    uint64_t address, size = ITEM_BYTES;

    begin();
    pattern_fill(bytes, ITEM_BYTES, 9, 0);
    CU(rig.cu->MemcpyHtoD(device, bytes, ITEM_BYTES));
    SPW(spw_reserve(rig.space, &key, &size, 1, 0, WAIT_MS, &view));
    SPW(spw_gpu_map(rig.gpu, &view, &address));
    CU(rig.cu->MemcpyDtoDAsync(address, device, ITEM_BYTES, NULL));
    CU(rig.cu->StreamSynchronize(NULL));
    SPW(spw_commit(rig.space, &view, 1, 0));
    ck_assert_int_eq(block_get(rig.space, 9, ITEM_BYTES), 0);
    finish();
}
END_TEST

START_TEST(attachments_share_what_is_registered)
{
    struct spw_gpu_options map_only = {.flags = SPW_GPU_MAP_ONLY};
    uint64_t first, second, mapped;
    spw_gpu *other;

    begin();
    ck_assert_int_eq(block_put(rig.space, 7, ITEM_BYTES), 0);
    struct spw_view view = acquire(rig.space, 7);
    SPW(spw_gpu_attach(rig.space, &map_only, &other));
    SPW(spw_gpu_map(rig.gpu, &view, &first));
    mapped = spw_gpu_mapped_bytes(rig.gpu);
    SPW(spw_gpu_map(other, &view, &second));
    ck_assert_uint_eq(first, second);
    ck_assert_uint_eq(spw_gpu_mapped_bytes(other), mapped);
    spw_gpu_unmap(rig.gpu); /* the other one's */
    spw_gpu_unmap(rig.gpu);
    device_reads(second, 7);
    SPW(spw_gpu_map(rig.gpu, &view, &first));
    spw_gpu_detach(other);
    device_reads(first, 7);
    driver_has_registered(mapped, 1);
    spw_gpu_unmap(rig.gpu);
    ck_assert_uint_eq(spw_gpu_mapped_bytes(rig.gpu), 0);
    driver_has_registered(0, 1);
    SPW(spw_gpu_map(rig.gpu, &view, &first)); /* until it detaches */
    SPW(spw_release(rig.space, &view, 1, 0));
    finish();
}
END_TEST

/* The daemon is not asked: there may be no helper. */
START_TEST(without_a_lane)
{
    struct spw_gpu_options map_only = {.flags = SPW_GPU_MAP_ONLY}, wrong = {.flags = 1u << 31};
    struct gpu_cache cache;
    static const uint32_t piece = ITEM_BYTES;
    struct spw_key key = block_key(7);
    uint64_t address;
    uint32_t id = 0;
    spw_gpu_job *job;

    gpu_rig_driver(&rig);
    gpu_rig_daemon(&rig, 128 * MIB, 0);
    gpu_rig_context(&rig);
    rig.session = daemon_connect(&rig.daemon);
    rig.space = daemon_space(rig.session, "default", "kv", ITEM_BYTES, SPW_CLASS_KV, SPW_CACHE);
    ck_assert_int_eq(spw_gpu_attach(rig.space, &wrong, &rig.gpu), -EINVAL);
    SPW(spw_gpu_attach(rig.space, &map_only, &rig.gpu));
    CU(rig.cu->MemAlloc(&device, ITEM_BYTES));
    ck_assert_int_eq(block_put(rig.space, 7, ITEM_BYTES), 0);
    struct spw_view view = acquire(rig.space, 7);
    SPW(spw_gpu_map(rig.gpu, &view, &address));
    device_reads(address, 7);
    gpu_cache_new(&rig, &cache, &piece, 1, 0, 1);
    ck_assert_int_eq(spw_spill(cache.layout, &key, &id, 1, NULL, 0, WAIT_MS, NULL, &job), -ENOTSUP);
    ck_assert_int_eq(spw_fetch(cache.layout, &key, &id, 1, NULL, 0, WAIT_MS, NULL, &job), -ENOTSUP);
    gpu_cache_free(&rig, &cache);
    SPW(spw_release(rig.space, &view, 1, 0));
    char *gpus = daemon_admin(rig.session, "gpus");
    ck_assert_msg(strstr(gpus, "uuid") == NULL, "%s", gpus);
    free(gpus);
    finish();
}
END_TEST

static void configure(const char *sections)
{
    daemon_configure(&rig.daemon, "engines = 1\n", sections);
}

/* As that user, of the only pool. */
static void open_with(const char *sections, const char *pool, uid_t uid)
{
    gpu_rig_driver(&rig);
    daemon_init(&rig.daemon);
    configure(sections);
    rig.daemon.system_mode = uid != geteuid();
    daemon_start(&rig.daemon);
    ck_assert_int_eq(chmod(rig.daemon.dir, 0755), 0);
    ck_assert_int_eq(chmod(rig.daemon.socket, 0666), 0);
    ck_assert_int_eq(seteuid(uid), 0);
    rig.session = daemon_connect(&rig.daemon);
    ck_assert_int_eq(seteuid(getuid()), 0);
    rig.space = daemon_space(rig.session, pool, "kv", ITEM_BYTES, SPW_CLASS_KV, SPW_CACHE);
    ck_assert_int_eq(gpu_rig_attach(&rig, &(struct spw_gpu_options){.flags = SPW_GPU_MAP_ONLY}, &rig.gpu), 0);
    CU(rig.cu->MemAlloc(&device, ITEM_BYTES));
}

/* In a pool of several users its memory is for reading, for the device too. */
START_TEST(a_shared_pool_is_for_reading)
{
    uint64_t address;
    uid_t uid = geteuid() == 0 ? 12345 : geteuid(); /* root may not use such a pool */
    char sections[128];

    snprintf(sections, sizeof(sections), "[tier.dram]\nsize = 128 MiB\n[pool shared]\ntrusted = no\nusers = %u\n", uid);
    open_with(sections, "shared", uid);
    ck_assert_int_eq(block_put(rig.space, 3, ITEM_BYTES), 0);
    struct spw_view view = acquire(rig.space, 3);
    SPW(spw_gpu_map(rig.gpu, &view, &address));
    device_reads(address, 3);
    if (rig.control) { /* a real one finds out later, and loses its context */
        ck_assert_int_eq(rig.cu->MemcpyDtoDAsync(address, device, ITEM_BYTES, NULL), NV_ERROR_INVALID_VALUE);
        ck_assert_int_eq(rig.cu->MemcpyDtoHAsync(view.data, device, ITEM_BYTES, NULL), NV_ERROR_INVALID_VALUE);
    }
    SPW(spw_release(rig.space, &view, 1, 0));
    finish();
}
END_TEST

/* Puts them, and maps each; returns how many bytes are registered then. */
static uint64_t put_and_map_all(uint64_t first)
{
    uint64_t address;

    for (uint64_t i = first; i < first + N_ITEMS; i++) {
        ck_assert_int_eq(block_put(rig.space, i, ITEM_BYTES), 0);
        struct spw_view view = acquire(rig.space, i);
        SPW(spw_gpu_map(rig.gpu, &view, &address));
        device_reads(address, i);
        SPW(spw_release(rig.space, &view, 1, 0));
    }
    driver_has_registered(spw_gpu_mapped_bytes(rig.gpu), 0);
    return spw_gpu_mapped_bytes(rig.gpu);
}

static void pool_becomes(const char *sections, int64_t budget_bytes)
{
    configure(sections);
    ck_assert_int_eq(kill(rig.daemon.pid, SIGHUP), 0);
    for (int64_t end = clock_ms() + WAIT_MS; clock_ms() < end; sleep_ms(20))
        if (daemon_admin_number(rig.session, "pools", "pools/0/dram/budget_bytes") == budget_bytes &&
            daemon_admin_number(rig.session, "pools", "pools/0/dram/chunk_bytes") <= budget_bytes)
            return;
    ck_abort_msg("the pool does not get %lld bytes: %s", (long long)budget_bytes, daemon_log(&rig.daemon));
}

/* A chunk of that number comes again, with other memory: nothing may be left of the first one. */
START_TEST(a_chunk_that_goes_is_let_go)
{
    static const char *const all = "[tier.dram]\nsize = 64 MiB\n[pool default]\n",
                             *const less = "[tier.dram]\nsize = 64 MiB\n[pool default]\ndram = 32 MiB\n";

    open_with(all, "default", geteuid());
    uint64_t mapped = put_and_map_all(0);
    ck_assert_uint_le(mapped, 64 * MIB);
    for (uint64_t round = 1; round <= 4; round++) {
        pool_becomes(less, 32 * MIB);
        pool_becomes(all, 64 * MIB);
        ck_assert_uint_le(put_and_map_all(round * 1000), mapped);
    }
    finish();
}
END_TEST

START_TEST(what_cannot_be_registered)
{
    uint64_t address = 1;

    begin();
    ck_assert_int_eq(block_put(rig.space, 7, ITEM_BYTES), 0);
    struct spw_view view = acquire(rig.space, 7), wrong = view;
    ck_assert_int_eq(spw_gpu_map(NULL, &view, &address), -EINVAL);
    ck_assert_int_eq(spw_gpu_map(rig.gpu, NULL, &address), -EINVAL);
    ck_assert_int_eq(spw_gpu_map(rig.gpu, &view, NULL), -EINVAL);
    wrong.data = bytes; /* memory of ours */
    ck_assert_int_eq(spw_gpu_map(rig.gpu, &wrong, &address), -EINVAL);
    wrong = view;
    wrong.size_bytes = SIZE_MAX;
    ck_assert_int_eq(spw_gpu_map(rig.gpu, &wrong, &address), -EINVAL);
    if (rig.control) {
        fake_cuda_fail(&rig.control->roles[FAKE_CUDA_CLIENT], "cuMemHostRegister", 1, 1, NV_ERROR_OUT_OF_MEMORY);
        ck_assert_int_eq(spw_gpu_map(rig.gpu, &view, &address), -ENOMEM);
        ck_assert_msg(strstr(spw_error_text(), "OUT_OF_MEMORY") != NULL, "%s", spw_error_text());
    }
    ck_assert_uint_eq(address, 1);
    ck_assert_uint_eq(spw_gpu_mapped_bytes(rig.gpu), 0);
    SPW(spw_gpu_map(rig.gpu, &view, &address));
    device_reads(address, 7);
    CU(rig.cu->CtxSetCurrent(NULL)); /* calls need no context of the thread's */
    spw_gpu_unmap(rig.gpu);
    CU(rig.cu->CtxSetCurrent(rig.ctx));
    driver_has_registered(0, 1);
    SPW(spw_release(rig.space, &view, 1, 0));
    finish();
}
END_TEST

/* What a killed daemon leaves mapped goes when the client detaches. */
START_TEST(the_daemon_is_killed)
{
    uint64_t address;

    begin();
    ck_assert_int_eq(block_put(rig.space, 7, ITEM_BYTES), 0);
    struct spw_view view = acquire(rig.space, 7);
    SPW(spw_gpu_map(rig.gpu, &view, &address));
    daemon_kill(&rig.daemon);
    device_reads(address, 7);
    CU(rig.cu->MemFree(device));
    gpu_rig_disconnect(&rig);
    gpu_rig_nothing_is_left(&rig);
    daemon_start(&rig.daemon);
    gpu_rig_connect(&rig, ITEM_BYTES);
    CU(rig.cu->MemAlloc(&device, ITEM_BYTES));
    finish();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu_map");
    TCase *tc = tcase_create("map");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_view_has_an_address);
    tcase_add_test(tc, a_reservation_is_filled_by_the_device);
    tcase_add_test(tc, attachments_share_what_is_registered);
    tcase_add_test(tc, without_a_lane);
    tcase_add_test(tc, a_shared_pool_is_for_reading);
    tcase_add_test(tc, a_chunk_that_goes_is_let_go);
    tcase_add_test(tc, what_cannot_be_registered);
    tcase_add_test(tc, the_daemon_is_killed);
    suite_add_tcase(s, tc);
    return suite_main(s);
}
