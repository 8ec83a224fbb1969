/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All GPUs, and what others call: sessions find one and have lanes there, engines tell of their chunks, an admin looks.
 * Owns the table of GPUs, what is known of chunks, and what each pool has staged. A place in the table is kept while its GPU
 * has served once, since engines know it by that number. Control thread.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/gpu_private.h"
#include "daemon/log.h"

/* --- Which there are ------------------------------------------------------------------------------------------------- */

static void gpu_free(struct gpu *gpu)
{
    gpu_chunks_free(gpu);
    free(gpu);
}

static struct gpu *gpu_new(struct gpus *gpus, uint32_t index, const uint8_t *uuid)
{
    struct gpu *gpu = calloc(1, sizeof(*gpu));

    if (!gpu)
        return NULL;
    gpu->gpus = gpus;
    gpu->index = index;
    memcpy(gpu->uuid.bytes, uuid, sizeof(gpu->uuid.bytes));
    gpu->pidfd.fd = gpu->socket.fd = -1;
    loop_timer_init(&gpu->timer, gpu_timer);
    list_init(&gpu->awaited);
    list_init(&gpu->start_question.link);
    list_init(&gpu->stat_question.link);
    list_init(&gpu->out);
    list_init(&gpu->lanes);
    for (uint32_t i = 0; i < ENGINES_MAX; i++) {
        gpu->rings[i] = MEMORY_SHARED_NONE;
        gpu->doorbells[i] = -1;
    }
    if (gpu_chunks_new(gpu) < 0) {
        gpu_free(gpu);
        return NULL;
    }
    gpus->gpu[index] = gpu;
    gpus->n = MAX(gpus->n, index + 1);
    return gpu;
}

/* By its UUID; or a place for it: a new one, or that of one that never served. */
static struct gpu *gpu_place(struct gpus *gpus, const uint8_t *uuid)
{
    for (uint32_t i = 0; i < gpus->n; i++)
        if (memcmp(gpus->gpu[i]->uuid.bytes, uuid, SPW_UUID_BYTES) == 0)
            return gpus->gpu[i];
    if (gpus->n < GPUS_MAX)
        return gpu_new(gpus, gpus->n, uuid);
    for (uint32_t i = 0; i < gpus->n; i++) {
        struct gpu *gpu = gpus->gpu[i];

        if (gpu->has_served || gpu->state != GPU_PAUSED)
            continue;
        memcpy(gpu->uuid.bytes, uuid, sizeof(gpu->uuid.bytes));
        gpu->error[0] = 0;
        gpu_set_state(gpu, GPU_OFF);
        return gpu;
    }
    return NULL;
}

int gpus_find(struct gpus *gpus, const uint8_t uuid[static SPW_UUID_BYTES], struct gpu **ret_gpu, const char **ret_why)
{
    struct gpu *gpu = gpu_place(gpus, uuid);

    *ret_why = "too many GPUs were asked for";
    if (!gpu)
        return -ENODEV;
    *ret_why = "its helper is being started";
    if (gpu->state == GPU_SERVING) {
        *ret_gpu = gpu;
        return 0;
    }
    bool failed = gpu->state == GPU_PAUSED && !gpu->has_served;

    if (failed && loop_now_ns() - gpu->since_ns < NS_PER_S) { /* as it was a moment ago */
        *ret_why = gpu->error;
        return -ENODEV;
    }
    if (failed || gpu->state == GPU_OFF)
        gpu_start(gpu);
    return -EAGAIN;
}

/* --- Lanes ----------------------------------------------------------------------------------------------------------- */

void gpu_charge(struct gpu_lane *lane, uint64_t bytes)
{
    uint64_t *used = &lane->gpu->gpus->used_bytes[lane->pool];

    *used += bytes - lane->charged_bytes;
    lane->charged_bytes = bytes;
}

int gpu_lane_ask(struct gpu *gpu, struct gpu_lane *lane)
{
    struct gpu_msg msg = {.type = GPU_MSG_LANE,
                          .engine = lane->engine,
                          .lane = lane->number,
                          .slots = lane->slots,
                          .slot_bytes = lane->slot_bytes,
                          .bytes = lane->alloc_bytes};

    if (gpu->state != GPU_SERVING)
        return -EAGAIN;
    lane->gpu = gpu;
    lane->incarnation = gpu->incarnation;
    lane->state = LANE_ASKED;
    list_push_tail(&gpu->lanes, &lane->gpu_link);
    gpu->n_pool_lanes[lane->pool]++;
    gpu_ask(gpu, &lane->question, &msg, lane->fences.fd, GPU_ANSWER_NS);
    return 0;
}

void gpu_lane_leave(struct gpu_lane *lane)
{
    struct gpu *gpu = lane->gpu;
    struct gpu_msg msg = {.type = GPU_MSG_LANE_GONE, .engine = lane->engine, .lane = lane->number};

    lane->state = LANE_LEAVING;
    if (lane->incarnation != gpu->incarnation) {
        session_gpu_lane_left(lane);
        return;
    }
    if (gpu->state != GPU_SERVING)
        return; /* gpu_over() will say so */
    gpu_ask(gpu, &lane->question, &msg, -1, GPU_ANSWER_NS);
}

void gpu_lane_forget(struct gpu_lane *lane)
{
    struct gpu *gpu = lane->gpu;

    list_unlink(&lane->question.link);
    list_unlink(&lane->gpu_link);
    if (!gpu)
        return;
    gpu_charge(lane, 0);
    if (--gpu->n_pool_lanes[lane->pool] == 0 && !gpu_pool_may(gpu, lane->pool))
        gpu_chunks_look(gpu, lane->pool); /* a reload has taken it from the pool */
}

uint32_t gpu_number(const struct gpu *gpu)
{
    return gpu->index;
}

/* --- Pools, what is shown -------------------------------------------------------------------------------------------- */

bool gpus_are_served(const struct gpus *gpus)
{
    for (uint32_t i = 0; i < gpus->n; i++)
        if (gpus->gpu[i]->state == GPU_SERVING)
            return true;
    return false;
}

uint64_t gpus_pool_used(const struct gpus *gpus, uint32_t pool)
{
    return gpus->used_bytes[pool];
}

uint64_t gpus_pool_budget(const struct spillway_config *config, uint32_t pool)
{
    const struct config_amount *amount = &config->pools[pool].budgets[CONFIG_TIER_GPU];

    return amount->kind == CONFIG_AMOUNT_BYTES ? amount->bytes : DEFAULT_POOL_GPU_BYTES;
}

bool gpu_pool_may(const struct gpu *gpu, uint32_t pool)
{
    return gpus_pool_budget(gpu->gpus->control->config, pool) > 0;
}

bool gpus_at(const struct gpus *gpus, uint32_t index, struct gpu_info *ret_info)
{
    static const char *const states[] = {"off", "starting", "serving", "ending", "ending", "paused"};

    if (index >= gpus->n)
        return false;
    const struct gpu *gpu = gpus->gpu[index];

    *ret_info = (struct gpu_info){
        .state = states[gpu->state], .pid = (int)gpu->pid, .restarts = gpu->restarts, .stat = gpu->stat};
    (void)cuda_uuid_print(&gpu->uuid, ret_info->uuid);
    memcpy(ret_info->name, gpu->name, sizeof(ret_info->name));
    memcpy(ret_info->error, gpu->error, sizeof(ret_info->error));
    list_for_each (l, &gpu->lanes)
        ret_info->lanes += list_entry(l, struct gpu_lane, gpu_link)->incarnation == gpu->incarnation;
    return true;
}

/* --- Engines look at them -------------------------------------------------------------------------------------------- */

/* An engine runs its calls in order, and is told that a helper is gone by one: so what it finds is of the one that is there. */
static void gpus_pinged(struct call *base)
{
    struct gpu_ping *ping = container_of(base, struct gpu_ping, ping.call);
    struct gpus *gpus = ping->gpus;

    ping->is_on_way = false;
    for (uint32_t i = 0; i < gpus->n; i++)
        if (ping->ping.gpus_bad >> i & 1)
            gpu_kill(gpus->gpu[i], "an engine finds that it breaks the rules of its ring, or hangs");
}

void gpus_ping(struct gpus *gpus)
{
    for (uint32_t i = 0; i < gpus->control->n_engines; i++) {
        struct gpu_ping *ping = &gpus->pings[i];

        if (ping->is_on_way)
            continue;
        *ping = (struct gpu_ping){.gpus = gpus, .is_on_way = true, .ping.call.at_control = gpus_pinged};
        engine_ping(gpus->control->engines[i], &ping->ping);
    }
}

/* --- All of them ----------------------------------------------------------------------------------------------------- */

/* Beside our own program. */
static int helper_find(char ret_path[static PATH_MAX])
{
    ssize_t n = readlink("/proc/self/exe", ret_path, PATH_MAX - sizeof("/spillway-gpu"));

    if (n < 0)
        return -errno;
    ret_path[n] = 0;
    char *slash = strrchr(ret_path, '/');

    memcpy(slash, "/spillway-gpu", sizeof("/spillway-gpu"));
    return 0;
}

int gpus_new(struct control *control, struct gpus **ret_gpus)
{
    struct gpus *gpus = calloc(1, sizeof(*gpus));
    int r = gpus ? helper_find(gpus->helper_path) : -ENOMEM;

    if (r == 0)
        gpus->control = control;
    /* What a unit gave us (CAP_IPC_LOCK) is ours, and no helper's. */
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0L, 0L, 0L);
    for (uint32_t i = 0; r == 0 && i < control->n_engines; i++) {
        gpus->chunks[i] = calloc(CHUNKS_MAX, sizeof(*gpus->chunks[i]));
        r = gpus->chunks[i] ? 0 : -ENOMEM;
    }
    if (r < 0)
        gpus_free(gpus);
    else
        *ret_gpus = gpus;
    return r;
}

/* It was killed. One that hangs in the driver may not end for a long time, and nothing of ours is worth that. */
static void gpu_wait(const struct gpu *gpu, uint64_t until_ns)
{
    struct pollfd end = {.fd = gpu->pidfd.fd, .events = POLLIN};
    uint64_t now_ns = loop_now_ns();
    char text[CUDA_UUID_TEXT_BYTES];
    siginfo_t info;

    while (poll(&end, 1, until_ns > now_ns ? (int)div_round_up(until_ns - now_ns, NS_PER_MS) : 0) < 0 && errno == EINTR)
        now_ns = loop_now_ns();
    if (end.revents == 0)
        log_warning("%s: its helper (pid %d) was killed, and does not end", cuda_uuid_print(&gpu->uuid, text),
                    (int)gpu->pid);
    else
        (void)waitid(P_PIDFD, (id_t)gpu->pidfd.fd, &info, WEXITED | WNOHANG);
}

void gpus_free(struct gpus *gpus)
{
    if (!gpus)
        return;
    uint64_t until_ns = loop_now_ns() + GPU_END_MS * NS_PER_MS;

    gpus->ending = true;
    for (uint32_t i = 0; i < gpus->n; i++)
        if (gpus->gpu[i]->pid > 0)
            (void)kill(gpus->gpu[i]->pid, SIGKILL);
    for (uint32_t i = 0; i < gpus->n; i++) {
        struct gpu *gpu = gpus->gpu[i];

        loop_timer_cancel(&gpu->timer);
        if (gpu->pid > 0) {
            gpu_wait(gpu, until_ns);
            loop_remove(gpu_loop(gpu), &gpu->pidfd);
            close(gpu->pidfd.fd);
        }
        if (gpu->socket.fd >= 0)
            gpu_close(gpu);
        gpu_free(gpu);
    }
    for (uint32_t e = 0; e < ENGINES_MAX; e++) {
        for (uint32_t i = 0; gpus->chunks[e] && i < CHUNKS_MAX; i++)
            memory_chunk_unref(gpus->chunks[e][i].chunk);
        free(gpus->chunks[e]);
    }
    free(gpus);
}
