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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

struct gpu *gpu_new(struct gpus *gpus, const uint8_t uuid[static SPW_UUID_BYTES])
{
    struct gpu *gpu = calloc(1, sizeof(*gpu));

    if (!gpu)
        return NULL;
    gpu->gpus = gpus;
    gpu->index = gpus->n;
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
    gpus->gpu[gpus->n++] = gpu;
    return gpu;
}

/* Whether the config has it for that pool; else words that name the key. */
static bool is_configured(struct gpus *gpus, const struct gpu_wanted *wanted, const char **ret_why)
{
    const struct spillway_config *config = gpus->control->config;

    if (config_gpus_have(&config->daemon.gpus, wanted->uuid) &&
        config_gpus_have(&config->pools[wanted->pool].gpus, wanted->uuid))
        return true;
    if (config_gpus_have(&config->daemon.gpus, wanted->uuid))
        snprintf(gpus->why, sizeof(gpus->why), "pool %s may not use it: see gpus in its [pool] section",
                 config->pools[wanted->pool].section.name);
    else
        snprintf(gpus->why, sizeof(gpus->why), "it is not served here: see gpus in [daemon]");
    *ret_why = gpus->why;
    return false;
}

int gpus_find(struct gpus *gpus, const struct gpu_wanted *wanted, struct gpu **ret_gpu, const char **ret_why)
{
    struct gpu *gpu = NULL;

    if (!is_configured(gpus, wanted, ret_why))
        return GPUS_FORBIDDEN;
    int r = gpu_place_for(gpus, wanted->uuid, wanted->uid, &gpu);

    *ret_why = r == -EAGAIN ? "others that this user has named are being started" : "too many GPUs were asked for";
    if (r < 0)
        return r;
    if (gpu->state == GPU_SERVING) {
        *ret_gpu = gpu;
        return 0;
    }
    bool has_failed = gpu->state == GPU_PAUSED && !gpu->has_served;

    *ret_why = gpu->error;
    if (has_failed && (gpu_is_listed(gpu) || loop_now_ns() - gpu->since_ns < NS_PER_S)) /* as it was a moment ago */
        return -ENODEV;
    if (has_failed || gpu->state == GPU_OFF)
        return gpu_try(gpu, wanted->uid, ret_why);
    *ret_why = "its helper is being started";
    return -EAGAIN;
}

/* The config does not have it any more: its helper goes when nobody uses it. */
static void gpu_retire(struct gpu *gpu)
{
    if (config_gpus_have(&gpu->gpus->control->config->daemon.gpus, gpu->uuid.bytes) || !list_is_empty(&gpu->lanes))
        return;
    if (gpu->state == GPU_PAUSED) {
        loop_timer_cancel(&gpu->timer);
        gpu_set_state(gpu, GPU_OFF);
    } else {
        gpu_kill(gpu, "it is not in gpus of [daemon] any more");
    }
}

void gpus_configured(struct gpus *gpus)
{
    const struct config_gpus *served = &gpus->control->config->daemon.gpus;
    char text[CUDA_UUID_TEXT_BYTES];

    for (uint32_t i = 0; i < gpus->n; i++) {
        gpu_retire(gpus->gpu[i]);
        gpu_chunks_look_all(gpus->gpu[i]);
    }
    for (uint32_t i = 0; i < served->n; i++) { /* of a list; else there is none */
        struct gpu *gpu = gpu_place(gpus, served->at[i].uuid);

        if (!gpu) {
            struct cuda_uuid uuid;

            memcpy(uuid.bytes, served->at[i].uuid, sizeof(uuid.bytes));
            log_error("%s: no place is left for it until others have gone", cuda_uuid_print(&uuid, text));
        } else if (gpu->state == GPU_OFF || (gpu->state == GPU_PAUSED && !gpu->has_served)) {
            loop_timer_cancel(&gpu->timer);
            gpu_start(gpu);
        }
    }
}

/* --- Lanes ----------------------------------------------------------------------------------------------------------- */

void gpu_charge(struct gpu_lane *lane, uint64_t bytes)
{
    uint64_t *used = &lane->gpu->gpus->used_bytes[lane->pool];

    *used += bytes - lane->charged_bytes;
    store_relaxed(&lane->gpu->gpus->control->pool_gpus[lane->pool].used_bytes, *used);
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
    gpu_retire(gpu);
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
    const struct spillway_config *config = gpu->gpus->control->config;

    return gpus_pool_budget(config, pool) > 0 && config_gpus_have(&config->pools[pool].gpus, gpu->uuid.bytes);
}

bool gpus_at(const struct gpus *gpus, uint32_t index, struct gpu_info *ret_info)
{
    static const char *const states[] = {"off", "starting", "serving", "ending", "ending", "paused"};

    if (index >= gpus->n)
        return false;
    const struct gpu *gpu = gpus->gpu[index];

    *ret_info = (struct gpu_info){.state = states[gpu->state],
                                  .pid = (int)gpu->pid,
                                  .restarts = gpu->restarts,
                                  .is_listed = gpu_is_listed(gpu),
                                  .stat = gpu->stat};
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
    if (r == 0 && control->config->daemon.gpu_seccomp != CONFIG_SECCOMP_OFF)
        snprintf(gpus->helper_environment, sizeof(gpus->helper_environment), "SPILLWAY_GPU_SECCOMP=%s",
                 control->config->daemon.gpu_seccomp == CONFIG_SECCOMP_LOG ? "log" : "on");
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
