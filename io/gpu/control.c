/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's messages, one after the other. What cannot be answered by a status (RING, CHUNK and CHUNK_GONE have no
 * answer) and still fails leaves daemon and helper of two minds about what there is: then we end, and say why.
 *
 * Descriptors are closed here, whatever becomes of a message: who keeps one has duplicated it.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "include/base/cleanup.h"
#include "include/base/socket.h"
#include "io/gpu/helper.h"

#define HBM_AGE_NS UINT64_C(10000000000) /* what others have taken of its memory may be told so late */
#define DESCRIPTORS_MAX 2

struct received {
    struct gpu_msg msg;
    int fds[DESCRIPTORS_MAX];
    size_t n_fds;
};

static void close_all(struct received *in)
{
    for (size_t i = 0; i < in->n_fds; i++)
        close(in->fds[i]);
    in->n_fds = 0;
}

/* 1: a message. 0: none is there. -EPIPE: the socket has ended. -EBADMSG. */
static int receive(int socket_fd, struct received *in)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(DESCRIPTORS_MAX * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = &in->msg, .iov_len = sizeof(in->msg)};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    ssize_t n = recvmsg(socket_fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    in->n_fds = 0;
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -EPIPE;
    if (n == 0)
        return -EPIPE;
    in->n_fds = socket_take_fds(&header, in->fds, DESCRIPTORS_MAX);
    return n == sizeof(in->msg) && !(header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) ? 1 : -EBADMSG;
}

/* The socket is blocking, so that an answer waits for room rather than get lost. Without the daemon it is lost: no harm. */
static void transmit(int socket_fd, const struct gpu_msg *msg, int fd)
{
    while (socket_send(socket_fd, msg, sizeof(*msg), &fd, fd >= 0 ? 1 : 0, 0) == -EINTR)
        ;
}

static void answer(struct helper *h, const struct gpu_msg *to, struct gpu_msg *msg, int fd)
{
    msg->type = to->type;
    msg->version = GPU_WIRE_VERSION;
    msg->number = to->number;
    msg->engine = to->engine;
    msg->lane = to->lane;
    transmit(h->socket_fd, msg, fd);
}

static void answer_failure(struct helper *h, const struct gpu_msg *to, int status, const char *text)
{
    struct gpu_msg msg = {.status = status};

    snprintf(msg.text, sizeof(msg.text), "%s", text);
    answer(h, to, &msg, -1);
}

void helper_control_tell_lost(const struct helper *h)
{
    struct gpu_msg msg = {.type = GPU_MSG_LOST, .version = GPU_WIRE_VERSION, .status = -EIO, .stat = h->stat};

    snprintf(msg.text, sizeof(msg.text), "%s", h->lost_text);
    transmit(h->socket_fd, &msg, -1);
}

static void measure(struct helper *h, struct gpu_stat *ret_stat)
{
    struct timespec cpu;

    uint64_t now_ns = helper_now_ns();

    /* Of all that an idle helper does this costs most by far. */
    if (now_ns - h->hbm_seen_ns >= HBM_AGE_NS) {
        h->stat.hbm_free_bytes = helper_driver_free_bytes(h);
        h->hbm_seen_ns = now_ns;
    }
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu) == 0)
        h->stat.cpu_ns = (uint64_t)cpu.tv_sec * 1000000000 + (uint64_t)cpu.tv_nsec;
    *ret_stat = h->stat;
}

static void start(struct helper *h, const struct gpu_msg *msg)
{
    struct gpu_msg reply = {.status = 0};
    int r;

    if (msg->version != GPU_WIRE_VERSION) {
        answer_failure(h, msg, -EPROTONOSUPPORT, "the daemon is of another version than spillway-gpu");
        return;
    }
    r = h->cu ? -EALREADY : helper_driver_start(h, msg->uuid);
    if (r < 0) {
        answer_failure(h, msg, r, r == -EALREADY ? "it has started already" : h->text);
        return;
    }
    h->spin_ns = MIN(msg->spin_us, (uint32_t)GPU_SPIN_US_MAX) * UINT64_C(1000);
    memcpy(reply.text, h->text, sizeof(reply.text));
    measure(h, &reply.stat);
    answer(h, msg, &reply, -1);
}

static struct helper_ring *ring_of(struct helper *h, const struct gpu_msg *msg)
{
    return msg->engine < ENGINES_MAX ? h->rings[msg->engine] : NULL;
}

static void lane_new(struct helper *h, const struct received *in)
{
    struct gpu_msg reply = {.slots = in->msg.slots, .slot_bytes = in->msg.slot_bytes};
    struct helper_ring *ring = ring_of(h, &in->msg);
    struct helper_lane *lane;
    cleanup_close int fd = -1;
    int r = -EINVAL;

    snprintf(h->text, sizeof(h->text), "%s", "a lane that cannot be");
    if (ring && in->n_fds == 1)
        r = helper_lane_new(h, ring, &in->msg, in->fds[0], &lane, &fd);
    if (r < 0) {
        answer_failure(h, &in->msg, r, h->text);
        return;
    }
    reply.bytes = lane->memory.size_bytes;
    answer(h, &in->msg, &reply, fd);
}

static void lane_gone(struct helper *h, const struct gpu_msg *msg)
{
    struct helper_ring *ring = ring_of(h, msg);
    struct helper_lane *lane = ring ? helper_ring_lane(ring, msg->lane) : NULL;

    if (!lane) {
        answer_failure(h, msg, -ENOENT, "there is no such lane");
    } else if (!helper_lane_is_idle(lane)) {
        answer_failure(h, msg, -EBUSY, "the lane has commands");
    } else {
        helper_lane_free(h, lane);
        answer(h, msg, &(struct gpu_msg){.status = 0}, -1);
    }
}

static void unanswered(struct helper *h, const char *what, int r)
{
    if (r < 0)
        helper_lose(h, what, strerror(-r));
}

static void serve(struct helper *h, struct received *in)
{
    const struct gpu_msg *msg = &in->msg;
    struct gpu_msg reply = {.status = 0};
    struct helper_ring *ring = ring_of(h, msg);

    if (!h->ctx && msg->type != GPU_MSG_START) {
        helper_lose(h, "socket", "a message before START");
        return;
    }
    switch (msg->type) {
    case GPU_MSG_START:
        start(h, msg);
        break;
    case GPU_MSG_RING:
        unanswered(h, "RING", in->n_fds == 2 ? helper_ring_new(h, msg, in->fds[0], in->fds[1]) : -EINVAL);
        break;
    case GPU_MSG_CHUNK:
        unanswered(h, "CHUNK", ring && in->n_fds == 1 ? helper_chunk_new(h, ring, msg, in->fds[0]) : -EINVAL);
        break;
    case GPU_MSG_CHUNK_GONE:
        unanswered(h, "CHUNK_GONE", ring ? helper_chunk_gone(h, ring, msg->region, msg->epoch) : -EINVAL);
        break;
    case GPU_MSG_LANE:
        lane_new(h, in);
        break;
    case GPU_MSG_LANE_GONE:
        lane_gone(h, msg);
        break;
    case GPU_MSG_STAT:
        measure(h, &reply.stat);
        answer(h, msg, &reply, -1);
        break;
    default:
        helper_lose(h, "socket", "a message that we do not know");
    }
}

bool helper_control_serve(struct helper *h)
{
    struct received in;
    int r = 0;

    for (int i = 0; i < GPU_MESSAGES_MAX && !h->is_lost; i++) {
        r = receive(h->socket_fd, &in);
        if (r == 0)
            break;
        if (r > 0)
            serve(h, &in);
        else if (r == -EBADMSG)
            helper_lose(h, "socket", "a message of a wrong size");
        close_all(&in);
        if (r == -EPIPE)
            break;
    }
    return r != -EPIPE;
}
