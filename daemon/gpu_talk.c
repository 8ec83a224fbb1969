/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is said to a helper, and what it says. Its messages are checked here: one that breaks the rules is killed. Questions
 * that its socket has no room for wait, with descriptors of their own; so many are asked as there are lanes, and who is
 * silent is killed. Answers come in the order of the questions, with their numbers. Control thread.
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

void gpu_talk_end(struct gpu *gpu)
{
    while (!list_is_empty(&gpu->out))
        out_free(list_first_entry(&gpu->out, struct gpu_out, link));
    gpu->n_out = 0;
    while (list_pop(&gpu->awaited))
        ;
    gpu->answer_by_ns = 0;
}

/* Later, when there is room for it. */
static void gpu_send_later(struct gpu *gpu, const struct gpu_msg *msg, const int *fds, uint32_t n_fds)
{
    struct gpu_out *out = gpu->n_out < GPU_OUT_MAX ? calloc(1, sizeof(*out)) : NULL;

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
    gpu->n_out++;
    loop_modify(gpu_loop(gpu), &gpu->socket, EPOLLIN | EPOLLOUT);
}

static bool is_listening(const struct gpu *gpu)
{
    return gpu->state == GPU_STARTING || gpu->state == GPU_SERVING;
}

/* What is said to one that has gone is lost: no harm. That it has gone is heard by other ways. */
static void gpu_send_failed(struct gpu *gpu, int r)
{
    if (r != -EPIPE && r != -ECONNRESET)
        gpu_kill(gpu, log_errno(r));
}

static int gpu_transmit(struct gpu *gpu, struct gpu_msg *msg, const int *fds, uint32_t n_fds)
{
    msg->version = GPU_WIRE_VERSION;
    msg->number = ++gpu->next_number;
    return list_is_empty(&gpu->out) ? socket_send(gpu->socket.fd, msg, sizeof(*msg), fds, n_fds, MSG_DONTWAIT)
                                    : -EAGAIN;
}

void gpu_send(struct gpu *gpu, struct gpu_msg *msg, const int *fds, uint32_t n_fds)
{
    if (!is_listening(gpu))
        return;
    int r = gpu_transmit(gpu, msg, fds, n_fds);

    if (r == -EAGAIN || r == -ENOBUFS)
        gpu_send_later(gpu, msg, fds, n_fds);
    else if (r < 0)
        gpu_send_failed(gpu, r);
}

int gpu_send_now(struct gpu *gpu, struct gpu_msg *msg, int fd)
{
    int r = gpu_transmit(gpu, msg, &fd, fd >= 0);

    if (r == -ENOBUFS || r == -ENOMEM || r == -ETOOMANYREFS)
        return -EAGAIN;
    if (r < 0 && r != -EAGAIN)
        gpu_send_failed(gpu, r);
    return r;
}

static void gpu_flush(struct gpu *gpu)
{
    while (!list_is_empty(&gpu->out)) {
        struct gpu_out *out = list_first_entry(&gpu->out, struct gpu_out, link);
        int r = socket_send(gpu->socket.fd, &out->msg, sizeof(out->msg), out->fds, out->n_fds, MSG_DONTWAIT);

        if (r == -EAGAIN)
            return;
        out_free(out);
        gpu->n_out--;
        if (r < 0) {
            gpu_send_failed(gpu, r);
            return;
        }
    }
    loop_modify(gpu_loop(gpu), &gpu->socket, EPOLLIN);
}

/* Sooner if something else is awaited sooner. */
void gpu_ask(struct gpu *gpu, struct gpu_question *question, struct gpu_msg *msg, int fd, uint64_t ns)
{
    question->type = msg->type;
    question->number = gpu->next_number + 1; /* as gpu_transmit() will have it */
    list_push_tail(&gpu->awaited, &question->link);
    if (gpu->answer_by_ns == 0) {
        gpu->answer_by_ns = loop_now_ns() + ns;
        loop_timer_set(gpu_loop(gpu), &gpu->timer, gpu->answer_by_ns);
    }
    gpu_send(gpu, msg, &fd, fd >= 0);
}

static void gpu_answered(struct gpu *gpu, struct gpu_question *question)
{
    list_unlink(&question->link);
    gpu->answer_by_ns = list_is_empty(&gpu->awaited) ? 0 : loop_now_ns() + GPU_ANSWER_NS;
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

    if (list_is_empty(&gpu->stat_question.link))
        gpu_ask(gpu, &gpu->stat_question, &msg, -1, GPU_ANSWER_NS);
}

/* --- Messages from it ------------------------------------------------------------------------------------------------ */

#define ERRNO_MAX 4095 /* the kernel's */

static bool is_errno(int32_t status)
{
    return status < 0 && status >= -ERRNO_MAX;
}

static void take_lane(struct gpu *gpu, struct gpu_lane *lane, const struct gpu_msg *msg, int *fd)
{
    uint64_t wanted = gpu_lane_bytes(lane->slots, lane->slot_bytes, lane->alloc_bytes);
    bool is_sane = msg->bytes >= wanted && msg->bytes - wanted <= GPU_SLOT_BYTES_MAX; /* the pool pays for it */

    if (msg->status == 0 && *fd >= 0 && is_sane)
        session_gpu_lane_made(lane, 0, msg->bytes, steal_fd(fd), "");
    else if (is_errno(msg->status))
        session_gpu_lane_made(lane, msg->status, 0, -1, msg->text);
    else
        gpu_kill(gpu, "an answer that makes no sense");
}

/* The lane's question was the first of those that are awaited, so the lane is there, and in the state that asked. */
static void take_answer(struct gpu *gpu, struct gpu_question *question, const struct gpu_msg *msg, int *fd)
{
    gpu->stat = msg->type == GPU_MSG_STAT || msg->type == GPU_MSG_START ? msg->stat : gpu->stat;
    switch (msg->type) {
    case GPU_MSG_START:
        gpu_started(gpu, msg);
        break;
    case GPU_MSG_LANE:
        take_lane(gpu, container_of(question, struct gpu_lane, question), msg, fd);
        break;
    case GPU_MSG_LANE_GONE:
        if (msg->status == 0)
            session_gpu_lane_left(container_of(question, struct gpu_lane, question));
        else
            gpu_kill(gpu, msg->status < 0 ? msg->text : "an answer that makes no sense");
        break;
    default: /* STAT: nothing else is asked */
        gpu_chunks_tell(gpu);
    }
}

/* It goes to clients, and to an admin's terminal. */
static void text_sanitise(char *text, size_t text_bytes)
{
    text[text_bytes - 1] = 0;
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || *text == 0x7f)
            *text = '?';
}

static void gpu_take(struct gpu *gpu, struct gpu_msg *msg, int *fd)
{
    struct gpu_question *question = list_first_entry(&gpu->awaited, struct gpu_question, link);

    text_sanitise(msg->text, sizeof(msg->text));
    if (msg->type == GPU_MSG_LOST) {
        gpu_kill(gpu, msg->text);
    } else if (!question || msg->version != GPU_WIRE_VERSION || msg->type != question->type ||
               msg->number != question->number) {
        gpu_kill(gpu, "an answer to what it was not asked");
    } else {
        gpu_answered(gpu, question);
        take_answer(gpu, question, msg, fd);
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
    (void)socket_take_fds(&header, &fd, 1);
    if (n != sizeof(msg))
        return -EPIPE;
    gpu_take(gpu, &msg, &fd);
    return 1;
}

int gpu_listen(struct gpu *gpu)
{
    int r = 1;

    while (r == 1 && is_listening(gpu))
        r = gpu_receive(gpu);
    return r;
}

void gpu_socket_ready(struct loop_source *source, uint32_t events)
{
    struct gpu *gpu = container_of(source, struct gpu, socket);

    if (events & EPOLLOUT)
        gpu_flush(gpu);
    if (gpu_listen(gpu) < 0)
        gpu_kill(gpu, "its socket ended");
}
