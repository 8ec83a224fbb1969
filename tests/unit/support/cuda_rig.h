/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process with the fake CUDA driver, its control file and a current context. What a test wants of the environment it sets
 * before. Every test of libcheck is a process of its own, so nothing is left of one for the next.
 */
#pragma once

#include <check.h>
#include <stdlib.h>

#include "io/cuda_driver.h"
#include "tests/fake/fake_cuda.h"

#ifndef SPILLWAY_FAKE_CUDA /* the build says where it is */
#define SPILLWAY_FAKE_CUDA CUDA_LIBRARY
#endif

struct cuda_rig {
    struct cuda_driver cu;
    struct fake_cuda_control *control;
    struct fake_cuda_role *role; /* the client's: a test is one */
    struct CUctx_st *ctx;
};

/* Compare by name: a failure then says what it was. */
#define IS(call, result)                                                                                               \
    do {                                                                                                               \
        int got_ = (call);                                                                                             \
        ck_assert_msg(got_ == (result), "%s is %s, not %s", #call, cuda_error_name(got_), cuda_error_name(result));    \
    } while (0)
#define OK(call) IS(call, NV_SUCCESS)

/* Loads the driver. Nothing of it is called yet, so the process may still fork. */
static inline void cuda_rig_load(struct cuda_rig *rig)
{
    char path[] = "/tmp/spillway-fake-cuda-XXXXXX", problem[CUDA_PROBLEM_BYTES];
    int fd = mkstemp(path);

    ck_assert_int_ge(fd, 0);
    close(fd);
    rig->control = fake_cuda_control_map(path);
    ck_assert_ptr_nonnull(rig->control);
    rig->role = &rig->control->roles[FAKE_CUDA_CLIENT];
    rig->ctx = NULL;
    ck_assert_int_eq(setenv("FAKE_CUDA_CONTROL", path, 1), 0);
    ck_assert_msg(cuda_driver_open(SPILLWAY_FAKE_CUDA, &rig->cu, problem) == 0, "%s", problem);
}

/* The control file has no name any more: whoever wants it has it mapped. */
static inline void cuda_rig_forget_file(void)
{
    const char *path = getenv("FAKE_CUDA_CONTROL");

    if (path)
        unlink(path);
}

static inline void cuda_rig_begin(struct cuda_rig *rig)
{
    OK(rig->cu.Init(0));
    OK(rig->cu.DevicePrimaryCtxRetain(&rig->ctx, 0));
    OK(rig->cu.CtxSetCurrent(rig->ctx));
}

static inline void cuda_rig_init(struct cuda_rig *rig)
{
    cuda_rig_load(rig);
    cuda_rig_begin(rig);
    cuda_rig_forget_file();
}

/* The machine's own driver, for what is true of every one: there is no control file, and nothing is counted. */
static inline void cuda_rig_real(struct cuda_rig *rig)
{
    char problem[CUDA_PROBLEM_BYTES];

    *rig = (struct cuda_rig){.control = NULL};
    ck_assert_msg(cuda_driver_open(CUDA_LIBRARY, &rig->cu, problem) == 0, "%s", problem);
    cuda_rig_begin(rig);
}

/* Ends the context. A test that lost nothing must have nothing left in it. */
static inline void cuda_rig_deinit(struct cuda_rig *rig)
{
    OK(rig->cu.DevicePrimaryCtxRelease(0));
    if (!rig->control)
        return;
    ck_assert_uint_eq(load_relaxed(&rig->role->n_reclaimed), 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(rig->control, FAKE_CUDA_CLIENT, hbm_bytes[0]), 0);
}

/* Bytes that differ from place to place, and from seed to seed. */
static inline void cuda_rig_fill(uint8_t *bytes, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)((i * 2654435761u ^ seed * 40503u) >> 13);
}

static inline int cuda_rig_main(Suite *suite)
{
    SRunner *runner = srunner_create(suite);

    srunner_run_all(runner, CK_ENV);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
