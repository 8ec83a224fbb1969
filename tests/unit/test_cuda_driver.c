/* SPDX-License-Identifier: Apache-2.0 */
/* The table of the CUDA driver: machines without one, libraries that are none, and what its answers become. */
#include <check.h>
#include <errno.h>
#include <string.h>

#include "io/cuda_driver.h"

START_TEST(test_no_library)
{
    struct cuda_driver driver = {.Init = NULL};
    char problem[CUDA_PROBLEM_BYTES] = "";

    ck_assert_int_eq(cuda_driver_open("/nowhere/libcuda.so.1", &driver, problem), -ENOENT);
    ck_assert_ptr_nonnull(strstr(problem, "/nowhere/libcuda.so.1"));
    ck_assert_ptr_null(driver.Init);
}
END_TEST

/* The C library is no driver: the first function that it lacks is named. */
START_TEST(test_missing_function)
{
    struct cuda_driver driver = {.Init = NULL};
    char problem[CUDA_PROBLEM_BYTES] = "";

    ck_assert_int_eq(cuda_driver_open("libc.so.6", &driver, problem), -ENOTSUP);
    ck_assert_str_eq(problem, "libc.so.6 lacks cuInit: the driver is too old");
    ck_assert_ptr_null(driver.Init);
}
END_TEST

/* The answer of the first time stays, and so does the reason. */
START_TEST(test_load_once)
{
    const struct cuda_driver *driver = NULL;

    ck_assert_str_eq(cuda_driver_problem(), "");
    cuda_driver_set_library("/nowhere/libcuda.so.1");
    ck_assert_int_eq(cuda_driver_load(&driver), -ENOENT);
    ck_assert_int_eq(cuda_driver_load(&driver), -ENOENT);
    ck_assert_ptr_null(driver);
    ck_assert_ptr_nonnull(strstr(cuda_driver_problem(), "/nowhere/libcuda.so.1"));
}
END_TEST

START_TEST(test_errno)
{
    static const struct {
        int result, expected;
        bool fatal;
    } cases[] = {
        {NV_SUCCESS, 0, false},
        {NV_ERROR_INVALID_VALUE, -EINVAL, false},
        {NV_ERROR_OUT_OF_MEMORY, -ENOMEM, false},
        {NV_ERROR_NOT_READY, -EAGAIN, false},
        {NV_ERROR_NO_DEVICE, -ENODEV, false},
        {NV_ERROR_INVALID_DEVICE, -ENODEV, false},
        {NV_ERROR_NOT_SUPPORTED, -ENOTSUP, false},
        {NV_ERROR_UNSUPPORTED_PTX_VERSION, -ENOTSUP, false},
        {NV_ERROR_STREAM_CAPTURE_UNSUPPORTED, -EPERM, false},
        {NV_ERROR_STREAM_CAPTURE_WRONG_THREAD, -EPERM, false},
        {NV_ERROR_HOST_MEMORY_ALREADY_REGISTERED, -EEXIST, false},
        {NV_ERROR_ILLEGAL_ADDRESS, -ENODEV, true},
        {NV_ERROR_LAUNCH_FAILED, -ENODEV, true},
        {NV_ERROR_ECC_UNCORRECTABLE, -ENODEV, true},
        {NV_ERROR_CONTEXT_IS_DESTROYED, -ENODEV, true},
        {NV_ERROR_HARDWARE_STACK_ERROR, -ENODEV, true},
        {NV_ERROR_SYSTEM_DRIVER_MISMATCH, -ENODEV, true},
        {NV_ERROR_UNKNOWN, -EIO, false},
        {123456, -EIO, false},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        ck_assert_int_eq(cuda_errno(cases[i].result), cases[i].expected);
        ck_assert_msg(cuda_is_fatal(cases[i].result) == cases[i].fatal, "%s", cuda_error_name(cases[i].result));
    }
}
END_TEST

START_TEST(test_error_name)
{
    ck_assert_str_eq(cuda_error_name(NV_SUCCESS), "CUDA_SUCCESS");
    ck_assert_str_eq(cuda_error_name(700), "CUDA_ERROR_ILLEGAL_ADDRESS");
    ck_assert_str_eq(cuda_error_name(123456), "a CUDA error that we do not know");
}
END_TEST

START_TEST(test_uuid)
{
    static const char *const bad[] = {"",
                                      "GPU-",
                                      "GPU-00112233-4455-6677-8899-aabbccddee",
                                      "GPU-00112233-4455-6677-8899-aabbccddeeff0",
                                      "GPU-00112233445566778899aabbccddeeff",
                                      "GPU-00112233-4455-6677-8899-aabbccddeefg"};
    struct cuda_uuid uuid = {{1}}, again;
    char text[CUDA_UUID_TEXT_BYTES];

    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        ck_assert_int_eq(cuda_uuid_parse(bad[i], &uuid), -EINVAL);
    ck_assert_uint_eq(uuid.bytes[0], 1);
    ck_assert_int_eq(cuda_uuid_parse("00112233-4455-6677-8899-AAbbccddeeff", &uuid), 0);
    ck_assert_str_eq(cuda_uuid_print(&uuid, text), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    ck_assert_int_eq(cuda_uuid_parse(text, &again), 0);
    ck_assert_mem_eq(&again, &uuid, sizeof(uuid));
    ck_assert_int_eq(cuda_uuid_parse("MIG-00112233-4455-6677-8899-aabbccddeeff", &again), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cuda_driver");
    TCase *tests = tcase_create("table");

    tcase_add_test(tests, test_no_library);
    tcase_add_test(tests, test_missing_function);
    tcase_add_test(tests, test_load_once);
    tcase_add_test(tests, test_errno);
    tcase_add_test(tests, test_error_name);
    tcase_add_test(tests, test_uuid);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed ? 1 : 0;
}
