/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is said to a helper, and what it says. Its messages are checked here: one that breaks the rules is killed. Messages
 * that its socket has no room for wait, with descriptors of their own. Control thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/gpu_private.h"
#include "daemon/log.h"
#include "include/base/cleanup.h"
#include "include/base/socket.h"

#define STAT_NS (1 * NS_PER_S) /* between two questions, while there are lanes */

/* --- Messages to it -------------------------------------------------------------------------------------------------- */

static void out_free(struct gpu_out *out)
{
    list_unlink(&out->link);
    for (uint32_t i = 0; i < out->n_fds; i++)
        close(out->fds[i]);
    free(out);
}

void gpu_out_clear(struct gpu *gpu)
{
    while (!list_is_empty(&gpu->out))
        out_free(list_first_entry(&gpu->out, struct gpu_out, link));
}

/* Later, when there is room for it. */
static void gpu_send_later(struct gpu *gpu, const struct gpu_msg *msg, const int *fds, uint32_t n_fds)
{
    struct gpu_out *out = calloc(1, sizeof(*out));

    if (!out) {
        gpu_kill(gpu, "no memory for a message to it");
        return;
    }
    list_init(&out->link);
    out->msg = *msg;
    for (uint32_t i = 0; i < n_fds; i++) {
        int fd = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);

        if (fd < 0) {
            out_free(out);
            gpu_kill(gpu, "no descriptor is left for a message to it");
            return;
        }
        out->fds[out->n_fds++] = fd;
    }
    list_push_tail(&gpu->out, &out->link);
    loop_modify(gpu_loop(gpu), &gpu->socket, EPOLLIN | EPOLLOUT);
}

void gpu_send(struct gpu *gpu, struct gpu_msg *msg, const int *fds, uint32_t n_fds)
{
    msg->version = GPU_WIRE_VERSION;
    msg->number = ++gpu->next_number;
    int r =
        list_is_empty(&gpu->out) ? socket_send(gpu->socket.fd, msg, sizeof(*msg), fds, n_fds, MSG_DONTWAIT) : -EAGAIN;

    if (r == -EAGAIN || r == -ENOBUFS)
        gpu_send_later(gpu, msg, fds, n_fds);
    else if (r < 0)
        gpu_kill(gpu, log_errno(r));
}

static void gpu_flush(struct gpu *gpu)
{
    while (!list_is_empty(&gpu->out)) {
        struct gpu_out *out = list_first_entry(&gpu->out, struct gpu_out, link);
        int r = socket_send(gpu->socket.fd, &out->msg, sizeof(out->msg), out->fds, out->n_fds, MSG_DONTWAIT);

        if (r == -EAGAIN)
            return;
        out_free(out);
        if (r < 0) {
            gpu_kill(gpu, log_errno(r));
            return;
        }
    }
    loop_modify(gpu_loop(gpu), &gpu->socket, EPOLLIN);
}

/* Sooner if something else is awaited sooner. */
void gpu_await(struct gpu *gpu, uint64_t ns)
{
    gpu->n_awaited++;
    if (gpu->answer_by_ns == 0) {
        gpu->answer_by_ns = loop_now_ns() + ns;
        loop_timer_set(gpu_loop(gpu), &gpu->timer, gpu->answer_by_ns);
    }
}

static void gpu_answered(struct gpu *gpu)
{
    gpu->n_awaited--;
    gpu->answer_by_ns = gpu->n_awaited > 0 ? loop_now_ns() + GPU_ANSWER_NS : 0;
    if (gpu->answer_by_ns > 0)
        loop_timer_set(gpu_loop(gpu), &gpu->timer, gpu->answer_by_ns);
    else if (!list_is_empty(&gpu->lanes))
        loop_timer_set(gpu_loop(gpu), &gpu->timer, loop_now_ns() + STAT_NS);
    else
        loop_timer_cancel(&gpu->timer);
}

void gpu_ask_stat(struct gpu *gpu)
{
    struct gpu_msg msg = {.type = GPU_MSG_STAT};

    gpu_await(gpu, GPU_ANSWER_NS);
    gpu_send(gpu, &msg, NULL, 0);
}

void gpu_tell_chunk(struct gpu *gpu, uint32_t engine, uint32_t region)
{
    const struct known_chunk *known = &gpu->gpus->chunks[engine][region];
    const struct memory_chunk *chunk = known->chunk;
    struct gpu_msg msg = {.type = GPU_MSG_CHUNK,
                          .engine = engine,
                          .region = region,
                          .epoch = known->epoch,
                          .bytes = chunk->size_bytes,
                          .page_bytes = chunk->report.pages == MEMORY_PAGES_HUGE ? (uint32_t)MEMORY_HUGE_BYTES
                                                                                 : (uint32_t)MEMORY_PAGE_BYTES};

    gpu_send(gpu, &msg, &chunk->fd, 1);
}

/* --- Messages from it ------------------------------------------------------------------------------------------------ */

static struct gpu_lane *lane_of(struct gpu *gpu, const struct gpu_msg *msg, enum lane_state state)
{
    list_for_each (l, &gpu->lanes) {
        struct gpu_lane *lane = list_entry(l, struct gpu_lane, gpu_link);

        if (lane->engine == msg->engine && lane->number == msg->lane && lane->state == state &&
            lane->incarnation == gpu->incarnation)
            return lane;
    }
    return NULL;
}

static void gpu_take(struct gpu *gpu, struct gpu_msg *msg, int *fd)
{
    struct gpu_lane *lane;

    msg->text[sizeof(msg->text) - 1] = 0;
    if (msg->type == GPU_MSG_LOST) {
        gpu_kill(gpu, msg->text);
        return;
    }
    if (gpu->n_awaited == 0 || msg->version != GPU_WIRE_VERSION) {
        gpu_kill(gpu, "an answer that nobody waits for");
        return;
    }
    gpu_answered(gpu);
    gpu->stat = msg->type == GPU_MSG_STAT || msg->type == GPU_MSG_START ? msg->stat : gpu->stat;
    switch (msg->type) {
    case GPU_MSG_START:
        if (gpu->state == GPU_STARTING)
            gpu_started(gpu, msg);
        break;
    case GPU_MSG_LANE:
        lane = lane_of(gpu, msg, LANE_ASKED);
        if (lane && msg->status == 0 && *fd >= 0 &&
            msg->bytes >= gpu_lane_bytes(lane->slots, lane->slot_bytes, lane->alloc_bytes))
            session_gpu_lane_made(lane, 0, msg->bytes, steal_fd(fd), "");
        else if (lane && msg->status < 0)
            session_gpu_lane_made(lane, msg->status, 0, -1, msg->text);
        else
            gpu_kill(gpu, "an answer that makes no sense");
        break;
    case GPU_MSG_LANE_GONE:
        lane = lane_of(gpu, msg, LANE_LEAVING);
        if (lane && msg->status == 0)
            session_gpu_lane_left(lane);
        else
            gpu_kill(gpu, msg->status < 0 ? msg->text : "an answer that makes no sense");
        break;
    case GPU_MSG_STAT:
        break;
    default:
        gpu_kill(gpu, "a message of an unknown type");
    }
}

/* 1: taken; 0: none is there; else its socket has ended. */
static int gpu_receive(struct gpu *gpu)
{
    struct gpu_msg msg;
    cleanup_close int fd = -1;
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = &msg, .iov_len = sizeof(msg)};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(gpu->socket.fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
    if (cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
    if (n != sizeof(msg))
        return -EPIPE;
    gpu_take(gpu, &msg, &fd);
    return 1;
}

void gpu_socket_ready(struct loop_source *source, uint32_t events)
{
    struct gpu *gpu = container_of(source, struct gpu, socket);
    int r = 1;

    if (events & EPOLLOUT)
        gpu_flush(gpu);
    while (r == 1 && (gpu->state == GPU_STARTING || gpu->state == GPU_SERVING))
        r = gpu_receive(gpu);
    if (r < 0)
        gpu_kill(gpu, "its socket ended");
    if (gpu->state == GPU_ENDING)
        loop_modify(gpu_loop(gpu), &gpu->socket, 0);
}
