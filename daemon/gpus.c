/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All GPUs, and what others call: sessions find one and have lanes there, engines tell of their chunks, an admin looks.
 * Owns the table of GPUs, what is known of chunks, and what each pool has staged. A place in the table is kept while its GPU
 * has served once, since engines know it by that number. Control thread.
 */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/gpu_private.h"

/* --- Which there are ------------------------------------------------------------------------------------------------- */

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
    list_init(&gpu->out);
    list_init(&gpu->lanes);
    for (uint32_t i = 0; i < ENGINES_MAX; i++) {
        gpu->rings[i] = MEMORY_SHARED_NONE;
        gpu->doorbells[i] = -1;
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
    gpu_await(gpu, GPU_ANSWER_NS);
    gpu_send(gpu, &msg, &lane->fences.fd, 1);
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
    gpu_await(gpu, GPU_ANSWER_NS);
    gpu_send(gpu, &msg, NULL, 0);
}

uint32_t gpu_number(const struct gpu *gpu)
{
    return gpu->index;
}

/* --- Chunks, pools, what is shown ------------------------------------------------------------------------------------ */

void gpus_chunk_note(void *ctx, struct engine_chunk_note *note)
{
    struct gpus *gpus = ctx;
    struct known_chunk *known = &gpus->chunks[note->engine][note->region];

    if (note->is_new) {
        *known = (struct known_chunk){.chunk = note->chunk, .epoch = note->epoch};
    } else {
        memory_chunk_unref(known->chunk);
        known->chunk = NULL;
    }
    for (uint32_t i = 0; i < gpus->n; i++) {
        struct gpu *gpu = gpus->gpu[i];
        struct gpu_msg gone = {
            .type = GPU_MSG_CHUNK_GONE, .engine = note->engine, .region = note->region, .epoch = note->epoch};

        if (gpu->state != GPU_SERVING)
            continue;
        if (note->is_new)
            gpu_tell_chunk(gpu, note->engine, note->region);
        else
            gpu_send(gpu, &gone, NULL, 0);
    }
}

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

void gpus_free(struct gpus *gpus)
{
    if (!gpus)
        return;
    gpus->ending = true;
    for (uint32_t i = 0; i < gpus->n; i++) {
        struct gpu *gpu = gpus->gpu[i];

        loop_timer_cancel(&gpu->timer);
        if (gpu->pid > 0) {
            (void)kill(gpu->pid, SIGKILL);
            (void)waitpid(gpu->pid, NULL, 0);
            loop_remove(gpu_loop(gpu), &gpu->pidfd);
            close(gpu->pidfd.fd);
        }
        if (gpu->socket.fd >= 0)
            gpu_close(gpu);
        free(gpu);
    }
    for (uint32_t e = 0; e < ENGINES_MAX; e++) {
        for (uint32_t i = 0; gpus->chunks[e] && i < CHUNKS_MAX; i++)
            memory_chunk_unref(gpus->chunks[e][i].chunk);
        free(gpus->chunks[e]);
    }
    free(gpus);
}
