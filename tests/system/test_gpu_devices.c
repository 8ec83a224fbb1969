/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which device a helper finds for a client: one of several GPUs, a MIG instance, and what CUDA_VISIBLE_DEVICES of the daemon's
 * environment lets it find. The client has its own, as in another container. On the fake driver.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "tests/system/support/gpu.h"

#define UUID "fa4ec0da-0000-4000-8000-00000000000"
#define BLOCK_BYTES (64 * KIB)
#define N_BLOCKS 32
#define LONG_MS 20000

static struct gpu_rig rig;

/* Three devices. What the daemon may see (NULL: all that it can), and the client. */
static void begin(bool is_mig, const char *daemons, const char *clients)
{
    setenv("FAKE_CUDA_DEVICES", "3", 1);
    if (is_mig)
        setenv("FAKE_CUDA_MIG", "1", 1);
    if (daemons)
        setenv("CUDA_VISIBLE_DEVICES", daemons, 1);
    gpu_rig_driver(&rig);
    gpu_rig_daemon(&rig, 128 * MIB, 0);
    setenv("CUDA_VISIBLE_DEVICES", clients, 1);
    gpu_rig_context(&rig);
    rig.session = daemon_connect(&rig.daemon);
    rig.space = daemon_space(rig.session, "default", "kv", BLOCK_BYTES, SPW_CLASS_KV, SPW_CACHE);
}

static void finish(void)
{
    const char *control = getenv("FAKE_CUDA_CONTROL");

    spw_close(rig.session);
    daemon_deinit(&rig.daemon);
    if (control)
        unlink(control);
}

static int64_t helpers_bytes(unsigned device)
{
    return fake_cuda_sum(rig.control, FAKE_CUDA_HELPER,
                         offsetof(struct fake_cuda_process, hbm_bytes) + device * sizeof(int64_t));
}

/* By a helper that has touched no other device, or only seen it. */
static void is_served_on(unsigned device)
{
    static const uint32_t piece = BLOCK_BYTES;
    struct gpu_cache cache;
    struct spw_key keys[N_BLOCKS];
    uint32_t ids[N_BLOCKS];
    spw_gpu_job *job;
    int r = gpu_rig_attach(&rig, NULL, &rig.gpu);

    ck_assert_msg(r == 0, "%d: %s", r, spw_error_text());
    for (unsigned i = 0; i < 3; i++)
        ck_assert_int_eq(helpers_bytes(i) > 0, i == device);
    gpu_cache_new(&rig, &cache, &piece, 1, 0, N_BLOCKS);
    for (uint32_t i = 0; i < N_BLOCKS; i++) {
        keys[i] = gpu_key(i);
        ids[i] = i;
    }
    gpu_cache_fill(&rig, &cache, 1);
    SPW(spw_spill(cache.layout, keys, ids, N_BLOCKS, NULL, 0, LONG_MS, NULL, &job));
    SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, LONG_MS));
    spw_gpu_job_free(job);
    gpu_cache_fill(&rig, &cache, 0);
    SPW(spw_fetch(cache.layout, keys, ids, N_BLOCKS, NULL, 0, LONG_MS, NULL, &job));
    SPW(spw_gpu_job_wait(job, SPW_GPU_DONE, LONG_MS));
    spw_gpu_job_free(job);
    gpu_cache_check(&rig, &cache, 1, ids, ids, N_BLOCKS);
    gpu_cache_free(&rig, &cache);
    spw_gpu_detach(rig.gpu);
    finish();
}

static void is_not_served(void)
{
    ck_assert_int_eq(gpu_rig_attach(&rig, NULL, &rig.gpu), -ENODEV);
    ck_assert_msg(strstr(spw_error_text(), UUID) != NULL, "%s", spw_error_text());
    for (unsigned i = 0; i < 3; i++)
        ck_assert_int_eq(helpers_bytes(i), 0);
    finish();
}

START_TEST(one_of_several)
{
    static const char *const clients[] = {"GPU-" UUID "0", "GPU-" UUID "1", "2"};

    begin(false, NULL, clients[_i]);
    is_served_on((unsigned)_i);
}
END_TEST

START_TEST(a_mig_instance)
{
    static const char *const clients[] = {"MIG-" UUID "0", "MIG-" UUID "1", "MIG-" UUID "2"};

    begin(true, NULL, clients[_i]);
    is_served_on((unsigned)_i);
}
END_TEST

/* The daemon's environment has a list. */
START_TEST(one_that_is_listed)
{
    static const struct {
        bool is_mig;
        const char *daemons;
    } lists[] = {
        {false, "GPU-" UUID "0,GPU-" UUID "1"}, {false, "0,1"},          {false, "2,1,0"}, {false, "gpu-" UUID "1"},
        {true, "MIG-" UUID "0,MIG-" UUID "1"},  {true, "MIG-" UUID "1"},
    };

    begin(lists[_i].is_mig, lists[_i].daemons, lists[_i].is_mig ? "MIG-" UUID "1" : "1");
    is_served_on(1);
}
END_TEST

START_TEST(one_that_is_hidden)
{
    static const struct {
        bool is_mig;
        const char *daemons;
    } lists[] = {
        {false, ""},
        {false, "0,2"},
        {false, "GPU-" UUID "0,GPU-" UUID "2"},
        {false, "7,1"},
        {false, "MIG-" UUID "1"},
        {true, "MIG-" UUID "0"},
        {true, "MIG-" UUID "2,MIG-" UUID "0"},
    };

    begin(lists[_i].is_mig, lists[_i].daemons, lists[_i].is_mig ? "MIG-" UUID "1" : "1");
    is_not_served();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu_devices");
    TCase *tc = tcase_create("devices");

    if (getenv("SPILLWAY_TEST_GPU")) {
        fprintf(stderr, "SKIP: not for a real GPU\n");
        return 77;
    }
    unsetenv("CUDA_VISIBLE_DEVICES");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, one_of_several, 0, 3);
    tcase_add_loop_test(tc, a_mig_instance, 0, 3);
    tcase_add_loop_test(tc, one_that_is_listed, 0, 6);
    tcase_add_loop_test(tc, one_that_is_hidden, 0, 7);
    suite_add_tcase(s, tc);
    return suite_main(s);
}
