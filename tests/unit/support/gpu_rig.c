/* SPDX-License-Identifier: Apache-2.0 */
/* See gpu_rig.h. */
#include "tests/unit/support/gpu_rig.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "include/base/limits.h"
#include "include/base/ring.h"
#include "include/spillway/abi.h"
#include "io/gpu/helper.h"

#define WAIT_MS 100000 /* what has not happened by then will not */

uint64_t gpu_rig_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void spawn(struct gpu_rig *rig, const char *library, const char *program)
{
    int sockets[2];

    *rig = (struct gpu_rig){.pid = -1};
    cuda_rig_load(&rig->client);
    rig->role = &rig->client.control->roles[FAKE_CUDA_HELPER];
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
    rig->socket_fd = sockets[0];
    rig->pid = fork();
    ck_assert_int_ge(rig->pid, 0);
    if (rig->pid == 0) {
        close(sockets[0]);
        if (program) {
            if (dup2(sockets[1], GPU_WIRE_FD) == GPU_WIRE_FD)
                execl(program, program, (char *)NULL);
            _exit(127);
        }
        (void)prctl(PR_SET_NAME, FAKE_CUDA_HELPER_COMM);
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that failed says goodbye to nobody */
        cuda_driver_set_library(library);
        _exit(helper_run(sockets[1]) < 0 ? EXIT_FAILURE : EXIT_SUCCESS);
    }
    close(sockets[1]);
}

void gpu_rig_fork(struct gpu_rig *rig, const char *library)
{
    spawn(rig, library, NULL);
}

void gpu_rig_exec(struct gpu_rig *rig, const char *program)
{
    spawn(rig, NULL, program);
}

void gpu_rig_send(struct gpu_rig *rig, struct gpu_msg *msg, const int *fds, size_t n_fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec iov = {.iov_base = msg, .iov_len = sizeof(*msg)};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};

    msg->version = msg->version ? msg->version : GPU_WIRE_VERSION;
    msg->number = ++rig->number;
    if (n_fds > 0) {
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);

        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
    }
    ck_assert_int_eq(sendmsg(rig->socket_fd, &header, MSG_NOSIGNAL), sizeof(*msg));
}

struct gpu_msg gpu_rig_receive(const struct gpu_rig *rig, int *ret_fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    struct gpu_msg msg = {.type = 0};
    struct iovec iov = {.iov_base = &msg, .iov_len = sizeof(msg)};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    struct pollfd poll_fd = {.fd = rig->socket_fd, .events = POLLIN};

    ck_assert_msg(poll(&poll_fd, 1, WAIT_MS) == 1, "the helper says nothing");
    ck_assert_int_eq(recvmsg(rig->socket_fd, &header, MSG_CMSG_CLOEXEC), sizeof(msg));
    ck_assert_uint_eq(msg.version, GPU_WIRE_VERSION);
    const struct cmsghdr *c = CMSG_FIRSTHDR(&header);
    int fd = -1;

    if (c)
        memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    if (ret_fd)
        *ret_fd = fd;
    else
        ck_assert_int_eq(fd, -1);
    return msg;
}

struct gpu_msg gpu_rig_call(struct gpu_rig *rig, struct gpu_msg msg, int fd, int *ret_fd)
{
    gpu_rig_send(rig, &msg, &fd, fd >= 0 ? 1 : 0);
    struct gpu_msg reply = gpu_rig_receive(rig, ret_fd);

    ck_assert_uint_eq(reply.type, msg.type);
    ck_assert_uint_eq(reply.number, msg.number);
    return reply;
}

struct gpu_stat gpu_rig_stat(struct gpu_rig *rig)
{
    struct gpu_stat stat = {.copies = 0};

    /* The first may be answered in the turn that looked at the rings before it. */
    for (int i = 0; i < 2; i++) {
        struct gpu_msg reply = gpu_rig_call(rig, (struct gpu_msg){.type = GPU_MSG_STAT}, -1, NULL);

        ck_assert_int_eq(reply.status, 0);
        stat = reply.stat;
    }
    return stat;
}

int gpu_rig_memfd(uint64_t size_bytes, int seals)
{
    int fd = memfd_create("gpu-rig", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, (off_t)size_bytes), 0);
    ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static void *map(int fd, uint64_t size_bytes)
{
    void *mem = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);

    ck_assert_ptr_ne(mem, MAP_FAILED);
    return mem;
}

static void ring_tell(struct gpu_rig *rig, uint32_t number)
{
    struct gpu_rig_engine *engine = &rig->engines[number];
    uint64_t bytes = round_up(gpu_ring_bytes(GPU_RIG_ENTRIES), SECTOR_BYTES);
    struct gpu_msg msg = {.type = GPU_MSG_RING, .engine = number, .entries = GPU_RIG_ENTRIES};
    int fds[2] = {gpu_rig_memfd(bytes, F_SEAL_SHRINK)}, doorbell[2];

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, doorbell), 0);
    fds[1] = doorbell[1];
    engine->number = number;
    engine->ring = map(fds[0], bytes);
    engine->doorbell_fd = doorbell[0];
    gpu_rig_send(rig, &msg, fds, 2);
    close(fds[0]);
    close(fds[1]);
}

struct gpu_msg gpu_rig_start_msg(void)
{
    return (struct gpu_msg){
        .type = GPU_MSG_START, .spin_us = 20, .uuid = {0xfa, 0x4e, 0xc0, 0xda, 0, 0, 0x40, 0, 0x80}};
}

void gpu_rig_begin(struct gpu_rig *rig)
{
    struct gpu_msg reply = gpu_rig_call(rig, gpu_rig_start_msg(), -1, NULL);

    ck_assert_msg(reply.status == 0, "%s", reply.text);
    ck_assert_str_eq(reply.text, "Fake GPU 0");
    for (uint32_t i = 0; i < GPU_RIG_ENGINES; i++)
        ring_tell(rig, i);
    cuda_rig_begin(&rig->client);
    cuda_rig_forget_file();
}

void gpu_rig_init(struct gpu_rig *rig)
{
    gpu_rig_fork(rig, SPILLWAY_FAKE_CUDA);
    gpu_rig_begin(rig);
}

int gpu_rig_reap(struct gpu_rig *rig)
{
    int status;

    ck_assert_int_eq(waitpid(rig->pid, &status, 0), rig->pid);
    ck_assert_msg(WIFEXITED(status), "ended by signal %d", WTERMSIG(status));
    return WEXITSTATUS(status);
}

#define LEFT(member)                                                                                                   \
    ck_assert_msg(FAKE_CUDA_LIVE(rig->client.control, FAKE_CUDA_HELPER, member) == 0, "left: %s", #member)

void gpu_rig_deinit(struct gpu_rig *rig)
{
    siginfo_t info;

    close(rig->socket_fd);
    /* As long as it is not waited for, the fake driver's counters of it are there. */
    ck_assert_int_eq(waitid(P_PID, (id_t)rig->pid, &info, WEXITED | WNOWAIT), 0);
    LEFT(hbm_bytes[0]);
    LEFT(registered_bytes);
    LEFT(n_registrations);
    LEFT(n_handles);
    LEFT(n_reservations);
    LEFT(n_mappings);
    LEFT(n_streams);
    LEFT(n_events);
    LEFT(n_contexts);
    ck_assert_uint_eq(load_relaxed(&rig->role->n_reclaimed), 0);
    ck_assert_uint_eq(load_relaxed(&rig->role->n_pageable_copies), 0); /* all of it was registered */
    ck_assert_int_eq(gpu_rig_reap(rig), EXIT_SUCCESS);
}

uint8_t *gpu_rig_chunk_new(uint64_t size_bytes, int *ret_fd)
{
    *ret_fd = gpu_rig_memfd(size_bytes, F_SEAL_GROW);
    return map(*ret_fd, size_bytes);
}

void gpu_rig_chunk_tell(struct gpu_rig *rig, uint32_t engine, uint32_t region, uint64_t size_bytes, int fd)
{
    struct gpu_msg msg = {.type = GPU_MSG_CHUNK,
                          .engine = engine,
                          .region = region,
                          .epoch = 1,
                          .bytes = size_bytes,
                          .page_bytes = SECTOR_BYTES};

    gpu_rig_send(rig, &msg, &fd, 1);
    close(fd);
}

uint8_t *gpu_rig_chunk(struct gpu_rig *rig, uint32_t engine, uint32_t region, uint64_t size_bytes)
{
    int fd;
    uint8_t *mem = gpu_rig_chunk_new(size_bytes, &fd);

    gpu_rig_chunk_tell(rig, engine, region, size_bytes, fd);
    return mem;
}

void gpu_rig_direct_lane(struct gpu_rig *rig, uint32_t engine, uint32_t number, uint32_t slots, uint64_t alloc_bytes,
                         struct gpu_rig_lane *ret_lane)
{
    const struct cuda_driver *cu = &rig->client.cu;
    struct cuda_access_desc access = {.location = {.type = NV_LOCATION_TYPE_DEVICE}, .flags = NV_ACCESS_PROT_READWRITE};
    int staging_fd, fences_fd = gpu_rig_memfd(SECTOR_BYTES, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    struct gpu_msg reply = gpu_rig_call(rig,
                                        (struct gpu_msg){.type = GPU_MSG_LANE,
                                                         .engine = engine,
                                                         .lane = number,
                                                         .slots = slots,
                                                         .slot_bytes = GPU_RIG_SLOT_BYTES,
                                                         .bytes = alloc_bytes},
                                        fences_fd, &staging_fd);

    ck_assert_msg(reply.status == 0, "%s", reply.text);
    ck_assert_uint_ge(reply.bytes, alloc_bytes ? alloc_bytes : 2 * slots * GPU_RIG_SLOT_BYTES);
    *ret_lane = (struct gpu_rig_lane){.rig = rig,
                                      .engine = &rig->engines[engine],
                                      .number = number,
                                      .slots = slots,
                                      .slot_bytes = GPU_RIG_SLOT_BYTES,
                                      .staging_bytes = reply.bytes,
                                      .fences = map(fences_fd, SECTOR_BYTES)};
    close(fences_fd);
    OK(cu->MemImportFromShareableHandle(&ret_lane->handle, (void *)(intptr_t)staging_fd,
                                        NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    close(staging_fd);
    OK(cu->MemAddressReserve(&ret_lane->ptr, reply.bytes, 0, 0, 0));
    OK(cu->MemMap(ret_lane->ptr, reply.bytes, 0, ret_lane->handle, 0));
    OK(cu->MemSetAccess(ret_lane->ptr, reply.bytes, &access, 1));
}

void gpu_rig_lane(struct gpu_rig *rig, uint32_t engine, uint32_t number, uint32_t slots, struct gpu_rig_lane *ret_lane)
{
    gpu_rig_direct_lane(rig, engine, number, slots, 0, ret_lane);
}

void gpu_rig_lane_gone(struct gpu_rig_lane *lane)
{
    struct gpu_msg reply = gpu_rig_call(
        lane->rig, (struct gpu_msg){.type = GPU_MSG_LANE_GONE, .engine = lane->engine->number, .lane = lane->number},
        -1, NULL);

    ck_assert_msg(reply.status == 0, "%s", reply.text);
}

static uint64_t slot_ptr(const struct gpu_rig_lane *lane, int op, uint64_t seq)
{
    uint64_t slot = (seq - 1) % lane->slots + (op == GPU_CMD_FETCH ? lane->slots : 0);

    return lane->ptr + slot * lane->slot_bytes;
}

void gpu_rig_slot_write(struct gpu_rig_lane *lane, int op, uint64_t seq, const void *bytes, size_t n)
{
    OK(lane->rig->client.cu.MemcpyHtoD(slot_ptr(lane, op, seq), bytes, n));
}

void gpu_rig_slot_read(struct gpu_rig_lane *lane, int op, uint64_t seq, void *ret_bytes, size_t n)
{
    OK(lane->rig->client.cu.MemcpyDtoH(ret_bytes, slot_ptr(lane, op, seq), n));
}

void gpu_rig_memory_write(struct gpu_rig_lane *lane, uint64_t offset_bytes, const void *bytes, size_t n)
{
    OK(lane->rig->client.cu.MemcpyHtoD(lane->ptr + offset_bytes, bytes, n));
}

void gpu_rig_memory_read(struct gpu_rig_lane *lane, uint64_t offset_bytes, void *ret_bytes, size_t n)
{
    OK(lane->rig->client.cu.MemcpyDtoH(ret_bytes, lane->ptr + offset_bytes, n));
}

void gpu_rig_push(struct gpu_rig_engine *engine, const struct gpu_cmd *cmd)
{
    struct gpu_ring *ring = engine->ring;
    uint32_t word;

    while (engine->cmd_tail - load_acquire(&ring->helper.cmd_head) == GPU_RIG_ENTRIES)
        usleep(10);
    gpu_ring_cmds(ring)[engine->cmd_tail & (GPU_RIG_ENTRIES - 1)] = *cmd;
    word = ring_publish(&ring->engine.cmd_tail, ++engine->cmd_tail, &ring->helper.flags);
    if (ring_must_wake(word, GPU_RING_SLEEPS, &engine->rung))
        (void)!send(engine->doorbell_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

uint64_t gpu_rig_cookie(const struct gpu_rig_lane *lane, int op, uint64_t seq)
{
    return (uint64_t)lane->number << 48 | (uint64_t)op << 40 | seq;
}

void gpu_rig_use_at(struct gpu_rig_lane *lane, int op, uint64_t seq, uint64_t gpu_offset_bytes, uint64_t offset_bytes,
                    uint32_t len_bytes)
{
    gpu_rig_push(lane->engine, &(struct gpu_cmd){.op = (uint8_t)op,
                                                 .flags = GPU_CMD_LAST,
                                                 .lane = lane->number,
                                                 .epoch = 1,
                                                 .offset_bytes = offset_bytes,
                                                 .seq = seq,
                                                 .gpu_offset_bytes = gpu_offset_bytes,
                                                 .len_bytes = len_bytes,
                                                 .cookie = gpu_rig_cookie(lane, op, seq),
                                                 .expires_ns = UINT64_MAX});
}

void gpu_rig_use(struct gpu_rig_lane *lane, int op, uint64_t seq, uint64_t offset_bytes, uint32_t len_bytes)
{
    gpu_rig_use_at(lane, op, seq, 0, offset_bytes, len_bytes);
}

void gpu_rig_cancel(struct gpu_rig_lane *lane)
{
    gpu_rig_push(lane->engine, &(struct gpu_cmd){.op = GPU_CMD_CANCEL,
                                                 .lane = lane->number,
                                                 .cookie = gpu_rig_cookie(lane, GPU_CMD_CANCEL, 0)});
}

bool gpu_rig_is_quiet(const struct gpu_rig_engine *engine)
{
    return load_acquire(&engine->ring->helper.done_tail) == engine->done_head;
}

struct gpu_completion gpu_rig_wait(struct gpu_rig_engine *engine)
{
    struct gpu_ring *ring = engine->ring;
    struct gpu_completion completion;
    char byte[8];

    while (gpu_rig_is_quiet(engine)) {
        struct pollfd poll_fd = {.fd = engine->doorbell_fd, .events = POLLIN};

        ring_sleep_prepare(&ring->engine.flags, ring_sleep_word(GPU_RING_SLEEPS, &engine->n_sleeps));
        if (gpu_rig_is_quiet(engine)) /* S3 */
            ck_assert_msg(poll(&poll_fd, 1, WAIT_MS) == 1, "no completion comes");
        ring_sleep_cancel(&ring->engine.flags);
        while (recv(engine->doorbell_fd, byte, sizeof(byte), MSG_DONTWAIT) > 0)
            ;
    }
    completion = gpu_ring_completions(ring, GPU_RIG_ENTRIES)[engine->done_head & (GPU_RIG_ENTRIES - 1)];
    store_release(&ring->engine.done_head, ++engine->done_head);
    return completion;
}

void gpu_rig_expect(struct gpu_rig_lane *lane, int op, uint64_t seq, int status, uint64_t bytes)
{
    struct gpu_completion completion = gpu_rig_wait(lane->engine);

    ck_assert_uint_eq(completion.lane, lane->number);
    ck_assert_msg(completion.cookie == gpu_rig_cookie(lane, op, seq), "that is of %#lx, not %#lx",
                  (unsigned long)completion.cookie, (unsigned long)gpu_rig_cookie(lane, op, seq));
    ck_assert_int_eq(completion.status, status);
    ck_assert_uint_eq(completion.bytes, bytes);
}

void gpu_rig_expect_over(const struct gpu_rig_lane *lane, int status)
{
    ck_assert_uint_eq(load_acquire(&lane->fences->spill.daemon_seq), SPW_GPU_SEQ_OVER);
    ck_assert_uint_eq(load_acquire(&lane->fences->fetch.daemon_seq), SPW_GPU_SEQ_OVER);
    ck_assert_uint_eq(load_relaxed(&lane->fences->spill.status), (uint64_t)-status);
    ck_assert_uint_eq(load_relaxed(&lane->fences->fetch.status), (uint64_t)-status);
}
