/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the helper processes: starting, telling them of engines' rings and chunks, watching, ending, starting again.
 * Control thread.
 *
 * A helper is not trusted with more than its GPU: one that breaks the rules, is silent for GPU_ANSWER_NS, or says that its
 * context is lost is killed, and not listened to any more. Nothing is concluded from its end before it was reaped: until then
 * its copies may go on. While it has lanes it is asked for its numbers each second, which is also how one that is stopped, or
 * hangs in the driver, is found; and engines are asked whether it keeps to the rules of their rings.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/gpu_private.h"
#include "daemon/log.h"
#include "daemon/session_kept.h"
#include "daemon/shm.h"
#include "include/base/cleanup.h"

#define START_NS (60 * NS_PER_S)  /* the driver takes its time on machines with many GPUs */
#define PAUSE_MS_MIN 100          /* before a helper is started again; doubles up to GPU_RESTART_MS_MAX */
#define SERVED_NS (60 * NS_PER_S) /* after so long its end is the first again */

void gpu_set_state(struct gpu *gpu, enum gpu_state state)
{
    gpu->state = state;
    gpu->since_ns = loop_now_ns();
}

void gpu_kill(struct gpu *gpu, const char *why)
{
    if (gpu->state != GPU_STARTING && gpu->state != GPU_SERVING)
        return;
    char text[CUDA_UUID_TEXT_BYTES];
    bool is_news = gpu->state == GPU_SERVING || strcmp(gpu->error, why) != 0; /* it may be tried for ever */

    snprintf(gpu->error, sizeof(gpu->error), "%s", why);
    log_print(is_news ? LOG_LEVEL_WARNING : LOG_LEVEL_DEBUG, "%s: its helper (pid %d) is ended: %s",
              cuda_uuid_print(&gpu->uuid, text), (int)gpu->pid, why);
    gpu_set_state(gpu, GPU_ENDING);
    loop_timer_cancel(&gpu->timer);
    loop_remove(gpu_loop(gpu), &gpu->socket); /* its hang-up would wake us again and again, until it is reaped */
    (void)kill(gpu->pid, SIGKILL);
}

/* --- It serves ------------------------------------------------------------------------------------------------------- */

static void gpu_reap(struct gpu *gpu);

static void gpu_added(struct call *base)
{
    struct gpu_call *call = container_of(base, struct gpu_call, call);
    struct gpu *gpu = base->at_control_ctx;

    gpu->n_calls--;
    if (call->result < 0)
        gpu_kill(gpu, "an engine does not take it");
    if (gpu->has_ended && gpu->n_calls == 0)
        gpu_reap(gpu);
}

static int gpu_ring_new(struct gpu *gpu, uint32_t engine)
{
    int doorbell[2];
    struct gpu_msg msg = {.type = GPU_MSG_RING, .engine = engine, .entries = GPU_RING_ENTRIES};
    int r = memory_shared_create("spillway-gpu-ring", round_up(gpu_ring_bytes(GPU_RING_ENTRIES), MEMORY_PAGE_BYTES),
                                 MEMORY_SHARED_SEAL, &gpu->rings[engine]);

    if (r < 0)
        return r;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, doorbell) < 0)
        return -errno;
    gpu->doorbells[engine] = doorbell[0];
    gpu_send(gpu, &msg, (int[]){gpu->rings[engine].fd, doorbell[1]}, 2);
    close(doorbell[1]);
    gpu->calls[engine] = (struct gpu_call){
        .gpu = gpu->index, .ring_mem = gpu->rings[engine].mem, .entries = GPU_RING_ENTRIES, .doorbell_fd = doorbell[0]};
    gpu->calls[engine].call.at_control = gpu_added;
    gpu->calls[engine].call.at_control_ctx = gpu;
    gpu->n_calls++;
    engine_gpu_add(gpu->gpus->control->engines[engine], &gpu->calls[engine]);
    return 0;
}

static void gpu_serve(struct gpu *gpu)
{
    const struct control *control = gpu->gpus->control;
    char text[CUDA_UUID_TEXT_BYTES];
    int r = 0;

    gpu_set_state(gpu, GPU_SERVING);
    gpu->has_served = true;
    gpu->served_ns = gpu->since_ns;
    for (uint32_t i = 0; r == 0 && i < control->n_engines; i++)
        r = gpu_ring_new(gpu, i);
    if (r < 0) {
        gpu_kill(gpu, log_errno(r));
        return;
    }
    log_notice("%s (%s) is served by pid %d, whose context takes %llu MiB", cuda_uuid_print(&gpu->uuid, text),
               gpu->name, (int)gpu->pid, (unsigned long long)(gpu->stat.context_bytes / MIB));
    gpu_chunks_begin(gpu);
}

void gpu_started(struct gpu *gpu, const struct gpu_msg *msg)
{
    if (msg->status < 0) {
        gpu_kill(gpu, msg->text);
        return;
    }
    memcpy(gpu->name, msg->text, sizeof(gpu->name));
    gpu_serve(gpu);
}

void gpu_timer(struct loop_timer *timer)
{
    struct gpu *gpu = container_of(timer, struct gpu, timer);

    if (gpu->state == GPU_PAUSED) {
        gpu_start(gpu);
    } else if (gpu->answer_by_ns > 0 && loop_now_ns() >= gpu->answer_by_ns) {
        gpu_kill(gpu, "it does not answer");
    } else if (gpu->state == GPU_SERVING) {
        gpu_ask_stat(gpu);
        gpus_ping(gpu->gpus);
    }
}

/* --- Its end --------------------------------------------------------------------------------------------------------- */

void gpu_close(struct gpu *gpu)
{
    loop_remove(gpu_loop(gpu), &gpu->socket);
    close(gpu->socket.fd);
    gpu->socket.fd = -1;
    gpu_talk_end(gpu);
    for (uint32_t i = 0; i < ENGINES_MAX; i++) {
        memory_shared_destroy(&gpu->rings[i]);
        if (gpu->doorbells[i] >= 0)
            close(gpu->doorbells[i]);
        gpu->doorbells[i] = -1;
    }
}

/* Between two processes, or after the last one. */
static void gpu_pause(struct gpu *gpu)
{
    bool is_kept = gpu_is_kept(gpu);

    gpu_set_state(gpu, gpu->has_served && !is_kept ? GPU_OFF : GPU_PAUSED);
    if (gpu->gpus->ending)
        return;
    if (is_kept)
        loop_timer_set(gpu_loop(gpu), &gpu->timer, loop_now_ns() + gpu->pause_ms * NS_PER_MS);
    else if (!gpu->has_served) /* whoever asks for it next starts it */
        gpu_blame(gpu);
}

/* Engines have let go of it: nothing of that process is left. */
static void gpu_over(struct gpu *gpu)
{
    gpu_close(gpu);
    list_for_each_safe (l, &gpu->lanes) {
        struct gpu_lane *lane = list_entry(l, struct gpu_lane, gpu_link);

        if (lane->incarnation != gpu->incarnation)
            continue;
        gpu_charge(lane, 0); /* its memory went with the process */
        if (lane->state == LANE_ASKED)
            session_gpu_lane_made(lane, -EAGAIN, 0, -1, "the GPU's helper has ended, and is started again");
        else if (lane->state == LANE_LEAVING)
            session_gpu_lane_left(lane);
    }
    gpu->incarnation++;
    gpu->restarts += gpu->has_served;
    gpu_pause(gpu);
}

static void gpu_removed(struct call *base)
{
    struct gpu *gpu = base->at_control_ctx;

    if (--gpu->n_calls == 0)
        gpu_over(gpu);
}

static void gpu_reaped(struct gpu *gpu)
{
    const struct control *control = gpu->gpus->control;
    bool served = gpu->doorbells[0] >= 0, lasted = served && loop_now_ns() - gpu->served_ns > SERVED_NS;

    gpu->pause_ms = lasted || gpu->pause_ms == 0 ? PAUSE_MS_MIN : MIN(gpu->pause_ms * 2, (uint32_t)GPU_RESTART_MS_MAX);
    gpu_set_state(gpu, GPU_REMOVING);
    gpu->pid = 0;
    if (!served || gpu->gpus->ending) {
        gpu_over(gpu);
        return;
    }
    /* An engine runs its calls in order: a call that adds it and is still on its way is over before these are. */
    for (uint32_t i = 0; i < control->n_engines; i++) {
        struct engine *engine = control->engines[i];

        if (gpu->doorbells[i] < 0)
            continue;
        gpu->calls[i].call.at_control = gpu_removed;
        gpu->n_calls++;
        engine_gpu_remove(engine, &gpu->calls[i]);
    }
}

static void gpu_reap(struct gpu *gpu)
{
    siginfo_t info = {0};
    char text[CUDA_UUID_TEXT_BYTES];

    (void)waitid(P_PIDFD, (id_t)gpu->pidfd.fd, &info, WEXITED | WNOHANG);
    kept_helper_ended(gpu->gpus->control->kept, gpu->pid);
    gpu->has_ended = false;
    if (gpu->state != GPU_ENDING) {
        snprintf(gpu->error, sizeof(gpu->error), "its helper ended by itself (%s %d)",
                 info.si_code == CLD_EXITED ? "status" : "signal", info.si_status);
        log_warning("%s: %s", cuda_uuid_print(&gpu->uuid, text), gpu->error);
    }
    loop_timer_cancel(&gpu->timer);
    loop_remove(gpu_loop(gpu), &gpu->socket);
    close(gpu->pidfd.fd);
    gpu->pidfd.fd = -1;
    gpu_reaped(gpu);
}

static void gpu_process_ended(struct loop_source *source, uint32_t events)
{
    struct gpu *gpu = container_of(source, struct gpu, pidfd);

    (void)events;
    loop_remove(gpu_loop(gpu), &gpu->pidfd);
    (void)gpu_listen(gpu); /* its last words */
    gpu->has_ended = true;
    if (gpu->n_calls == 0) /* else an engine is still being told of it, for a moment */
        gpu_reap(gpu);
}

/* --- Its beginning --------------------------------------------------------------------------------------------------- */

static int gpu_process_new(struct gpu *gpu)
{
    int sockets[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0)
        return -errno;
    cleanup_close int ours = sockets[0], theirs = sockets[1], pidfd = -1;
    int r = gpu_launcher_spawn(&gpu->gpus->control->launcher, gpu->gpus->helper_path, gpu->gpus->helper_environment,
                               theirs, &gpu->pid);

    if (r < 0)
        return r;
    pidfd = pidfd_open(gpu->pid, 0);
    r = pidfd < 0 ? -errno : 0;
    gpu->pidfd = (struct loop_source){.fd = pidfd, .events = EPOLLIN, .ready = gpu_process_ended};
    gpu->socket = (struct loop_source){.fd = ours, .events = EPOLLIN, .ready = gpu_socket_ready};
    if (r == 0)
        r = loop_add(gpu_loop(gpu), &gpu->pidfd);
    if (r == 0)
        r = loop_add(gpu_loop(gpu), &gpu->socket);
    if (r < 0) {
        loop_remove(gpu_loop(gpu), &gpu->pidfd);
        (void)kill(gpu->pid, SIGKILL);
        (void)waitpid(gpu->pid, NULL, 0);
        gpu->pidfd.fd = gpu->socket.fd = -1;
        return r;
    }
    kept_helper_began(gpu->gpus->control->kept, gpu->pid); /* it has nothing of ours before it is told to start */
    (void)steal_fd(&ours);
    (void)steal_fd(&pidfd);
    return 0;
}

void gpu_start(struct gpu *gpu)
{
    struct gpu_msg msg = {.type = GPU_MSG_START, .spin_us = gpu->gpus->control->config->daemon.spin_us};
    int r = gpu_process_new(gpu);
    char text[CUDA_UUID_TEXT_BYTES];

    if (r < 0) {
        char why[GPU_TEXT_BYTES];

        snprintf(why, sizeof(why), "spillway-gpu cannot be started: %s", log_errno(r));
        if (strcmp(why, gpu->error) != 0)
            log_error("%s: %s", cuda_uuid_print(&gpu->uuid, text), why);
        snprintf(gpu->error, sizeof(gpu->error), "%s", why);
        gpu->pid = 0;
        gpu->pause_ms = MIN(MAX(gpu->pause_ms * 2, (uint32_t)PAUSE_MS_MIN), (uint32_t)GPU_RESTART_MS_MAX);
        gpu_pause(gpu);
        return;
    }
    gpu_set_state(gpu, GPU_STARTING);
    memcpy(msg.uuid, gpu->uuid.bytes, sizeof(msg.uuid));
    gpu_ask(gpu, &gpu->start_question, &msg, -1, START_NS);
}
