/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake CUDA driver in more than one process: memory that one makes and another maps, what is left when one is killed,
 * what each is charged, and that nothing survives a fork.
 */
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "tests/unit/support/cuda_rig.h"

#define SLOT_BYTES (4 * MIB)
#define SLOTS 2
#define ALL_BYTES (SLOT_BYTES * SLOTS)

static const struct cuda_allocation_prop PROP = {.type = NV_ALLOCATION_TYPE_PINNED,
                                                 .handle_types = NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                                 .location = {.type = NV_LOCATION_TYPE_DEVICE, .id = 0}};
static const struct cuda_access_desc ACCESS = {.location = {.type = NV_LOCATION_TYPE_DEVICE, .id = 0},
                                               .flags = NV_ACCESS_PROT_READWRITE};

static void send_fd(int socket, int fd)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    char byte = 0;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    ck_assert_int_eq(sendmsg(socket, &message, 0), 1);
}

static int recv_fd(int socket)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    char byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    int fd;

    ck_assert_int_eq(recvmsg(socket, &message, MSG_CMSG_CLOEXEC), 1);
    ck_assert_ptr_nonnull(CMSG_FIRSTHDR(&message));
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
    return fd;
}

static void step(int socket)
{
    char byte = 0;

    ck_assert_int_eq(send(socket, &byte, 1, 0), 1);
}

static void await(int socket)
{
    char byte;

    ck_assert_int_eq(recv(socket, &byte, 1, 0), 1);
}

static uint64_t map_all(struct cuda_driver *cu, uint64_t handle)
{
    uint64_t ptr;

    OK(cu->MemAddressReserve(&ptr, ALL_BYTES, 0, 0, 0));
    OK(cu->MemMap(ptr, ALL_BYTES, 0, handle, 0));
    OK(cu->MemSetAccess(ptr, ALL_BYTES, &ACCESS, 1));
    return ptr;
}

/* The rules of the address space, in one process. */
START_TEST(test_mapping)
{
    uint8_t *in = malloc(ALL_BYTES), *out = malloc(ALL_BYTES);
    uint64_t handles[SLOTS], ptr, other;
    struct cuda_driver *cu;
    struct cuda_rig rig;
    size_t granularity;

    cuda_rig_init(&rig);
    cu = &rig.cu;
    OK(cu->MemGetAllocationGranularity(&granularity, &PROP, NV_GRANULARITY_RECOMMENDED));
    ck_assert_uint_eq(granularity, FAKE_CUDA_GRANULARITY);
    IS(cu->MemCreate(&handles[0], granularity + 4096, &PROP, 0), NV_ERROR_INVALID_VALUE);
    OK(cu->MemAddressReserve(&ptr, ALL_BYTES, 0, 0, 0));
    for (uint64_t i = 0; i < SLOTS; i++) {
        OK(cu->MemCreate(&handles[i], SLOT_BYTES, &PROP, 0));
        OK(cu->MemMap(ptr + i * SLOT_BYTES, SLOT_BYTES, 0, handles[i], 0));
    }
    IS(cu->MemMap(ptr, SLOT_BYTES, 0, handles[0], 0), NV_ERROR_ALREADY_MAPPED);
    IS(cu->MemMap(ptr + ALL_BYTES, SLOT_BYTES, 0, handles[0], 0), NV_ERROR_INVALID_VALUE);
    IS(cu->MemAddressFree(ptr, ALL_BYTES), NV_ERROR_INVALID_VALUE);

    /* Mapped is not accessible; then a copy may cross from one memory to the next. */
    cuda_rig_fill(in, ALL_BYTES, 3);
    IS(cu->MemcpyHtoD(ptr, in, 1), NV_ERROR_INVALID_VALUE);
    OK(cu->MemSetAccess(ptr, SLOT_BYTES, &ACCESS, 1));
    IS(cu->MemcpyHtoD(ptr, in, ALL_BYTES), NV_ERROR_INVALID_VALUE);
    OK(cu->MemSetAccess(ptr, ALL_BYTES, &ACCESS, 1));
    OK(cu->MemcpyHtoD(ptr, in, ALL_BYTES));

    /* The memory lives while it is mapped, somewhere else as well. */
    OK(cu->MemAddressReserve(&other, SLOT_BYTES, 0, 0, 0));
    OK(cu->MemMap(other, SLOT_BYTES, 0, handles[1], 0));
    OK(cu->MemSetAccess(other, SLOT_BYTES, &ACCESS, 1));
    for (int i = 0; i < SLOTS; i++)
        OK(cu->MemRelease(handles[i]));
    IS(cu->MemRelease(handles[0]), NV_ERROR_INVALID_VALUE);
    IS(cu->MemUnmap(ptr, SLOT_BYTES / 2), NV_ERROR_INVALID_VALUE);
    OK(cu->MemUnmap(ptr, ALL_BYTES));
    IS(cu->MemcpyDtoH(out, ptr, 1), NV_ERROR_INVALID_VALUE);
    OK(cu->MemcpyDtoH(out, other, SLOT_BYTES));
    ck_assert(memcmp(out, in + SLOT_BYTES, SLOT_BYTES) == 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(rig.control, FAKE_CUDA_CLIENT, hbm_bytes[0]), SLOT_BYTES + FAKE_CUDA_CONTEXT_BYTES);
    OK(cu->MemUnmap(other, SLOT_BYTES));
    OK(cu->MemAddressFree(ptr, ALL_BYTES));
    OK(cu->MemAddressFree(other, SLOT_BYTES));
    ck_assert_int_eq(FAKE_CUDA_LIVE(rig.control, FAKE_CUDA_CLIENT, n_mappings), 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(rig.control, FAKE_CUDA_CLIENT, n_reservations), 0);
    ck_assert_int_eq(FAKE_CUDA_LIVE(rig.control, FAKE_CUDA_CLIENT, n_handles), 0);
    cuda_rig_deinit(&rig);
    free(in);
    free(out);
}
END_TEST

START_TEST(test_descriptors)
{
    struct cuda_allocation_prop prop = PROP;
    uint64_t handle;
    struct cuda_rig rig;
    int fd;

    cuda_rig_init(&rig);
    prop.handle_types = 0;
    OK(rig.cu.MemCreate(&handle, SLOT_BYTES, &prop, 0));
    IS(rig.cu.MemExportToShareableHandle(&fd, handle, NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0), NV_ERROR_INVALID_VALUE);
    OK(rig.cu.MemRelease(handle));
    fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    IS(rig.cu.MemImportFromShareableHandle(&handle, (void *)(intptr_t)fd, NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
       NV_ERROR_INVALID_VALUE);
    close(fd);
    IS(rig.cu.MemImportFromShareableHandle(&handle, (void *)(intptr_t)fd, NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
       NV_ERROR_INVALID_VALUE);
    cuda_rig_deinit(&rig);
}
END_TEST

/* The helper: makes memory, fills it, hands it over, and sees what the client wrote. Then it waits to be killed. */
static void helper(struct cuda_rig *rig, int socket)
{
    uint8_t *bytes = malloc(ALL_BYTES);
    uint64_t handle, ptr;
    int fd;

    prctl(PR_SET_NAME, FAKE_CUDA_HELPER_COMM);
    cuda_rig_begin(rig);
    OK(rig->cu.MemCreate(&handle, ALL_BYTES, &PROP, 0));
    ptr = map_all(&rig->cu, handle);
    cuda_rig_fill(bytes, ALL_BYTES, 1);
    OK(rig->cu.MemcpyHtoD(ptr, bytes, ALL_BYTES));
    OK(rig->cu.MemExportToShareableHandle(&fd, handle, NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    send_fd(socket, fd);
    await(socket);
    OK(rig->cu.MemcpyDtoH(bytes, ptr, 1));
    ck_assert_uint_eq(bytes[0], 0x99);
    step(socket);
    for (;;)
        pause();
}

START_TEST(test_two_processes)
{
    uint8_t *expected = malloc(ALL_BYTES), *seen = malloc(ALL_BYTES);
    uint64_t handle, ptr;
    int sockets[2], fd, status;
    struct cuda_rig rig;

    cuda_rig_load(&rig);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
    pid_t pid = fork();
    if (pid == 0) {
        helper(&rig, sockets[0]);
        _exit(1);
    }
    close(sockets[0]); /* so that a helper that failed is noticed */
    cuda_rig_begin(&rig);
    fd = recv_fd(sockets[1]);
    OK(rig.cu.MemImportFromShareableHandle(&handle, (void *)(intptr_t)fd, NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    close(fd);
    ptr = map_all(&rig.cu, handle);
    OK(rig.cu.MemcpyDtoH(seen, ptr, ALL_BYTES));
    cuda_rig_fill(expected, ALL_BYTES, 1);
    ck_assert(memcmp(seen, expected, ALL_BYTES) == 0);
    OK(rig.cu.MemsetD8(ptr, 0x99, 1));
    step(sockets[1]);
    await(sockets[1]);

    /* Each is charged for its own, and counted apart. */
    ck_assert_int_eq(FAKE_CUDA_LIVE(rig.control, FAKE_CUDA_HELPER, hbm_bytes[0]), ALL_BYTES + FAKE_CUDA_CONTEXT_BYTES);
    ck_assert_int_eq(FAKE_CUDA_LIVE(rig.control, FAKE_CUDA_CLIENT, hbm_bytes[0]), FAKE_CUDA_CONTEXT_BYTES);
    ck_assert_uint_eq(rig.control->roles[FAKE_CUDA_HELPER].bytes_htod, ALL_BYTES);
    ck_assert_uint_eq(rig.role->bytes_dtoh, ALL_BYTES);
    ck_assert_uint_eq(rig.role->bytes_htod, 0);

    /* The helper is killed: what it had is free again, and what was handed over is still there. */
    kill(pid, SIGKILL);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(FAKE_CUDA_LIVE(rig.control, FAKE_CUDA_HELPER, hbm_bytes[0]), 0);
    memset(seen, 0, ALL_BYTES);
    OK(rig.cu.MemcpyDtoH(seen, ptr, ALL_BYTES));
    expected[0] = 0x99;
    ck_assert(memcmp(seen, expected, ALL_BYTES) == 0);
    OK(rig.cu.MemUnmap(ptr, ALL_BYTES));
    OK(rig.cu.MemAddressFree(ptr, ALL_BYTES));
    OK(rig.cu.MemRelease(handle));
    cuda_rig_deinit(&rig);
    cuda_rig_forget_file();
    free(expected);
    free(seen);
}
END_TEST

/* One process has lost its context by order; the other role goes on. */
START_TEST(test_lost_role)
{
    struct cuda_rig rig;
    uint64_t ptr;
    int status;

    cuda_rig_load(&rig);
    store_release(&rig.control->roles[FAKE_CUDA_HELPER].lost, NV_ERROR_LAUNCH_FAILED);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_NAME, FAKE_CUDA_HELPER_COMM);
        _exit(rig.cu.Init(0) == NV_SUCCESS && rig.cu.DevicePrimaryCtxRetain(&rig.ctx, 0) == NV_ERROR_LAUNCH_FAILED ? 0
                                                                                                                   : 1);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
    cuda_rig_begin(&rig);
    OK(rig.cu.MemAlloc(&ptr, 1));
    OK(rig.cu.MemFree(ptr));
    cuda_rig_deinit(&rig);
    cuda_rig_forget_file();
}
END_TEST

/* Nothing of CUDA works in the child of a process that had begun; the parent does not notice. */
START_TEST(test_fork)
{
    struct cuda_rig rig;
    uint64_t ptr;
    int status, n;

    cuda_rig_init(&rig);
    OK(rig.cu.MemAlloc(&ptr, 1));
    pid_t pid = fork();
    if (pid == 0)
        _exit(rig.cu.Init(0) == NV_ERROR_NOT_INITIALIZED && rig.cu.MemFree(ptr) == NV_ERROR_NOT_INITIALIZED &&
                      rig.cu.DeviceGetCount(&n) == NV_ERROR_NOT_INITIALIZED
                  ? 0
                  : 1);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
    OK(rig.cu.MemFree(ptr));
    cuda_rig_deinit(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fake_cuda_process");
    TCase *tests = tcase_create("processes");

    tcase_add_test(tests, test_mapping);
    tcase_add_test(tests, test_descriptors);
    tcase_add_test(tests, test_two_processes);
    tcase_add_test(tests, test_lost_role);
    tcase_add_test(tests, test_fork);
    suite_add_tcase(suite, tests);
    return cuda_rig_main(suite);
}
