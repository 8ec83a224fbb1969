/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Places in the table of GPUs, and who may have a helper started. Control thread.
 *
 * Without a list in the config anybody may name any UUID, and only a helper can tell whether there is such a GPU: a process,
 * and seconds of the driver's time. So what a name costs is bounded for each user and for all: places, starts at a time, and
 * after one that failed a pause that doubles. A GPU that the config lists, or that has served, is known to be there, and has
 * its place and its restarts whatever anybody names.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/gpu_private.h"

bool gpu_is_listed(const struct gpu *gpu)
{
    const struct config_gpus *served = &gpu->gpus->control->config->daemon.gpus;

    return served->kind == CONFIG_GPUS_LIST && config_gpus_have(served, gpu->uuid.bytes);
}

bool gpu_is_kept(const struct gpu *gpu)
{
    const struct config_gpus *served = &gpu->gpus->control->config->daemon.gpus;

    return served->kind == CONFIG_GPUS_ALL ? gpu->has_served : gpu_is_listed(gpu);
}

/* --- Users that name what is not there ------------------------------------------------------------------------------- */

static struct gpu_blame *blame_of(struct gpus *gpus, uid_t uid)
{
    for (size_t i = 0; i < ARRAY_LEN(gpus->blames); i++)
        if (gpus->blames[i].n_failed > 0 && gpus->blames[i].uid == uid)
            return &gpus->blames[i];
    return NULL;
}

/* One that is not in use (its time is 0), or the one whose time is over first. */
static struct gpu_blame *blame_new(struct gpus *gpus, uid_t uid)
{
    struct gpu_blame *first = &gpus->blames[0];

    for (size_t i = 1; i < ARRAY_LEN(gpus->blames); i++)
        if (gpus->blames[i].until_ns < first->until_ns)
            first = &gpus->blames[i];
    *first = (struct gpu_blame){.uid = uid};
    return first;
}

void gpu_blame(struct gpu *gpu)
{
    struct gpu_blame *blame = blame_of(gpu->gpus, gpu->uid);
    uint64_t now_ns = loop_now_ns();

    if (!blame)
        blame = blame_new(gpu->gpus, gpu->uid);
    if (now_ns > blame->until_ns + GPU_BLAME_MS_MAX * NS_PER_MS)
        blame->n_failed = 0;
    uint64_t pause_ns = NS_PER_S << MIN(blame->n_failed, 6U);

    blame->until_ns = now_ns + MIN(pause_ns, GPU_BLAME_MS_MAX * NS_PER_MS);
    blame->n_failed++;
}

/* --- Starts ---------------------------------------------------------------------------------------------------------- */

static bool is_on_trial(const struct gpu *gpu)
{
    return !gpu_is_kept(gpu) && gpu->state != GPU_OFF && gpu->state != GPU_PAUSED && !gpu->has_served;
}

int gpu_try(struct gpu *gpu, uid_t uid, const char **ret_why)
{
    struct gpus *gpus = gpu->gpus;
    const struct gpu_blame *blame = blame_of(gpus, uid);
    uint64_t now_ns = loop_now_ns();
    uint32_t n = 0, n_uid = 0;

    if (!gpu->has_served && blame && blame->until_ns > now_ns) {
        snprintf(gpus->why, sizeof(gpus->why),
                 "%s%sno other is tried for this user within %llu s: it has named %u that failed", gpu->error,
                 gpu->error[0] ? "; " : "", (unsigned long long)div_round_up(blame->until_ns - now_ns, NS_PER_S),
                 blame->n_failed);
        *ret_why = gpus->why;
        return -ENODEV;
    }
    for (uint32_t i = 0; i < gpus->n; i++) {
        n += is_on_trial(gpus->gpu[i]);
        n_uid += is_on_trial(gpus->gpu[i]) && gpus->gpu[i]->uid == uid;
    }
    if (n >= GPU_TRIALS_MAX || n_uid >= GPU_UID_TRIALS_MAX) {
        *ret_why = "others are being started";
        return -EAGAIN;
    }
    gpu->uid = uid;
    gpu_start(gpu);
    *ret_why = gpu->state == GPU_STARTING ? "its helper is being started" : gpu->error;
    return gpu->state == GPU_STARTING ? -EAGAIN : -ENODEV;
}

/* --- Places ---------------------------------------------------------------------------------------------------------- */

struct gpu *gpu_find(const struct gpus *gpus, const uint8_t uuid[static SPW_UUID_BYTES])
{
    for (uint32_t i = 0; i < gpus->n; i++)
        if (memcmp(gpus->gpu[i]->uuid.bytes, uuid, SPW_UUID_BYTES) == 0)
            return gpus->gpu[i];
    return NULL;
}

/* Nobody has anything to do with it. */
static bool is_idle(const struct gpu *gpu)
{
    return !gpu_is_kept(gpu) && (gpu->state == GPU_OFF || gpu->state == GPU_PAUSED) && list_is_empty(&gpu->lanes);
}

/* The one that has been idle for the longest: of this user, or of all, but then for so long that nobody asks for it. */
static struct gpu *place_reuse(struct gpus *gpus, uid_t uid, bool of_all)
{
    struct gpu *oldest = NULL;

    for (uint32_t i = 0; i < gpus->n; i++) {
        struct gpu *gpu = gpus->gpu[i];
        bool may = of_all ? gpu->state == GPU_OFF || loop_now_ns() - gpu->since_ns > GPU_BLAME_MS_MAX * NS_PER_MS
                          : gpu->uid == uid && !gpu->has_served;

        if (is_idle(gpu) && may && (!oldest || gpu->since_ns < oldest->since_ns))
            oldest = gpu;
    }
    return oldest;
}

static struct gpu *place_taken(struct gpu *gpu, const uint8_t *uuid)
{
    loop_timer_cancel(&gpu->timer);
    memcpy(gpu->uuid.bytes, uuid, sizeof(gpu->uuid.bytes));
    gpu->name[0] = gpu->error[0] = 0;
    gpu->has_served = false;
    gpu->restarts = gpu->pause_ms = 0;
    gpu_set_state(gpu, GPU_OFF);
    return gpu;
}

struct gpu *gpu_place(struct gpus *gpus, const uint8_t uuid[static SPW_UUID_BYTES])
{
    struct gpu *gpu = gpu_find(gpus, uuid);

    if (gpu)
        return gpu;
    if (gpus->n < GPUS_MAX)
        return gpu_new(gpus, uuid);
    gpu = place_reuse(gpus, 0, true);
    return gpu ? place_taken(gpu, uuid) : NULL;
}

int gpu_place_for(struct gpus *gpus, const uint8_t uuid[static SPW_UUID_BYTES], uid_t uid, struct gpu **ret_gpu)
{
    struct gpu *gpu = gpu_find(gpus, uuid);
    uint32_t n = 0;

    if (gpu) {
        *ret_gpu = gpu;
        return 0;
    }
    for (uint32_t i = 0; i < gpus->n; i++)
        n += !gpu_is_kept(gpus->gpu[i]) && !gpus->gpu[i]->has_served && gpus->gpu[i]->uid == uid;
    if (n < GPU_UID_PLACES_MAX) {
        gpu = gpu_place(gpus, uuid);
        if (!gpu)
            return -ENODEV;
    } else {
        gpu = place_reuse(gpus, uid, false);
        if (!gpu)
            return -EAGAIN;
        place_taken(gpu, uuid);
    }
    gpu->uid = uid;
    *ret_gpu = gpu;
    return 0;
}
