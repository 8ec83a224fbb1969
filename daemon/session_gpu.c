/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session's lanes to GPUs: GPU_ATTACH, GPU_DETACH, and what the session's end means for them. Control thread.
 *
 * A lane is made in three steps (the helper makes its memory, the engine gets to know it, the client gets the descriptors)
 * and goes in the reverse order: the engine first, because only it knows when no copy uses the lane any more. While a step is
 * under way the session is busy, so nothing else of it happens meanwhile but its end.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/gpu.h"
#include "daemon/session.h"
#include "daemon/shm.h"
#include "include/base/units.h"

static void lane_free(struct gpu_lane *lane)
{
    gpu_lane_forget(lane);
    list_unlink(&lane->link);
    memory_shared_destroy(&lane->fences);
    if (lane->staging_fd >= 0)
        close(lane->staging_fd);
    free(lane);
}

/* --- GPU_ATTACH ------------------------------------------------------------------------------------------------------ */

static void lane_removed(struct call *base)
{
    gpu_lane_leave(container_of(base, struct gpu_lane, call.call));
}

static void lane_remove(struct gpu_lane *lane)
{
    lane->state = LANE_REMOVING;
    lane->call.call.at_control = lane_removed;
    engine_lane_remove(lane->session->control->engines[lane->engine], &lane->call);
}

/* The engine knows it, or not. */
static void lane_added(struct call *base)
{
    struct gpu_lane *lane = container_of(base, struct gpu_lane, call.call);
    struct session *session = lane->session;
    int result = lane->call.result;

    lane->state = result < 0 ? LANE_LEAVING : LANE_ATTACHED;
    if (result < 0) {
        if (session_call_over(session))
            session_reply_error(session, result == -ENODEV ? -EAGAIN : result,
                                result == -ENOSPC ? SPW_LIMIT_GPU_LANES : SPW_LIMIT_GPU_FAILED,
                                result == -ENOSPC ? "this session has too many lanes at this engine"
                                                  : "the GPU's helper is being started again");
        gpu_lane_leave(lane);
        return;
    }
    if (!session_call_over(session))
        return;
    struct spw_msg_gpu reply = {.lane = lane->number,
                                .slots = lane->slots,
                                .slot_bytes = lane->slot_bytes,
                                .staging_bytes = lane->staging_bytes,
                                .alloc_bytes = lane->alloc_bytes};
    int fds[] = {lane->staging_fd, lane->fences.fd};

    session_reply(session, &reply, sizeof(reply), fds, ARRAY_LEN(fds));
    close(lane->staging_fd);
    lane->staging_fd = -1;
}

void session_gpu_lane_made(struct gpu_lane *lane, int status, uint64_t staging_bytes, int fd, const char *text)
{
    struct session *session = lane->session;

    if (status < 0) {
        lane_free(lane);
        if (session_call_over(session))
            session_reply_error(session, status, status == -ENOMEM ? SPW_LIMIT_NONE : SPW_LIMIT_GPU_FAILED, "%s", text);
        return;
    }
    lane->staging_fd = fd;
    lane->staging_bytes = staging_bytes;
    gpu_charge(lane, staging_bytes);
    lane->state = LANE_ADDING;
    lane->call = (struct lane_call){.peer = &session->seats[lane->engine]->peer,
                                    .lane = lane->number,
                                    .gpu = gpu_number(lane->gpu),
                                    .pool = lane->pool,
                                    .slots = lane->slots,
                                    .slot_bytes = lane->slot_bytes,
                                    .alloc_bytes = lane->alloc_bytes,
                                    .fences = lane->fences.mem};
    lane->call.call.at_control = lane_added;
    engine_lane_add(session->control->engines[lane->engine], &lane->call);
}

/* The smallest number that no lane at this engine has. */
static uint32_t lane_number(const struct control *control, uint32_t engine)
{
    bool taken[GPU_LANES_MAX] = {false};
    uint32_t number = 0;

    list_for_each (s, &control->sessions)
        list_for_each (l, &list_entry(s, struct session, link)->lanes) {
            const struct gpu_lane *lane = list_entry(l, struct gpu_lane, link);

            if (lane->engine == engine)
                taken[lane->number] = true;
        }
    while (number < GPU_LANES_MAX && taken[number])
        number++;
    return number;
}

static bool attach_is_sane(struct session *session, const struct spw_msg_gpu_attach *ask, uint32_t *ret_pool)
{
    static const uint64_t zero[ARRAY_LEN(ask->reserved)];

    if (ask->reserved0 != 0 || memcmp(ask->reserved, zero, sizeof(zero)) != 0) {
        session_end(session, "a reserved field of GPU_ATTACH is not zero", true);
        return false;
    }
    *ret_pool = session_pool(session, ask->pool);
    if (*ret_pool == POOLS_MAX) {
        session_reply_error(session, -EBADF, 0, "this session has not opened that pool");
        return false;
    }
    if (ask->engine >= session->control->n_engines || ask->slots > GPU_SLOTS_MAX ||
        (ask->slot_bytes != 0 && (ask->slot_bytes < GPU_SLOT_BYTES_MIN || ask->slot_bytes > GPU_SLOT_BYTES_MAX))) {
        session_reply_error(session, -EINVAL, 0, "a lane has up to %d slots of %llu to %llu MiB, and one of %u engines",
                            GPU_SLOTS_MAX, (unsigned long long)(GPU_SLOT_BYTES_MIN / MIB),
                            (unsigned long long)(GPU_SLOT_BYTES_MAX / MIB), session->control->n_engines);
        return false;
    }
    if (ask->alloc_bytes > GPU_ALLOC_BYTES_MAX) {
        session_reply_error(session, -EINVAL, 0, "more memory than a GPU can have");
        return false;
    }
    return true;
}

/* What it leaves out, and all of it as the driver can allocate it. */
static void attach_fill(struct spw_msg_gpu_attach *ask)
{
    uint64_t usual = ask->alloc_bytes ? GPU_SLOT_BYTES_MAX : DEFAULT_GPU_SLOT_BYTES;

    ask->slots = ask->slots ? ask->slots : DEFAULT_GPU_SLOTS;
    ask->slot_bytes = round_up(ask->slot_bytes ? ask->slot_bytes : usual, MEMORY_HUGE_BYTES);
    ask->alloc_bytes = round_up(ask->alloc_bytes, MEMORY_HUGE_BYTES);
}

/* Of the pool's budget, for so many bytes more. */
static bool attach_is_paid(struct session *session, uint32_t pool, uint64_t bytes)
{
    const struct control *control = session->control;
    uint64_t budget = gpus_pool_budget(control->config, pool), used = gpus_pool_used(control->gpus, pool);

    if (used <= budget && bytes <= budget - used)
        return true;
    session_reply_error(session, -ENOSPC, SPW_LIMIT_POOL_GPU,
                        "a lane of %llu MiB: pool %s may have %llu MiB of GPU memory, and uses %llu: raise gpu in its "
                        "[pool] section",
                        (unsigned long long)(bytes / MIB), control->config->pools[pool].section.name,
                        (unsigned long long)(budget / MIB), (unsigned long long)(used / MIB));
    return false;
}

/* A number for one more lane of this session at that engine. */
static bool attach_is_numbered(struct session *session, uint32_t engine, uint32_t *ret_number)
{
    uint32_t n = 0;

    list_for_each (l, &session->lanes)
        n += list_entry(l, struct gpu_lane, link)->engine == engine;
    *ret_number = lane_number(session->control, engine);
    if (n < SESSION_GPU_LANES_MAX && *ret_number < GPU_LANES_MAX)
        return true;
    if (n >= SESSION_GPU_LANES_MAX)
        session_reply_error(session, -ENOSPC, SPW_LIMIT_GPU_LANES,
                            "this session has %u lanes at engine %u, and %d at most", n, engine, SESSION_GPU_LANES_MAX);
    else
        session_reply_error(session, -ENOSPC, SPW_LIMIT_GPU_LANES, "all %d lanes of engine %u are in use",
                            GPU_LANES_MAX, engine);
    return false;
}

/* Nothing of it is known to anybody else yet. */
static struct gpu_lane *lane_new(struct session *session, const struct spw_msg_gpu_attach *ask, uint32_t pool,
                                 uint32_t number)
{
    struct gpu_lane *lane = calloc(1, sizeof(*lane));

    if (!lane)
        return NULL;
    *lane = (struct gpu_lane){.session = session,
                              .number = number,
                              .engine = ask->engine,
                              .pool = pool,
                              .slots = ask->slots,
                              .slot_bytes = ask->slot_bytes,
                              .alloc_bytes = ask->alloc_bytes,
                              .fences = MEMORY_SHARED_NONE,
                              .staging_fd = -1};
    list_init(&lane->link);
    list_init(&lane->gpu_link);
    list_init(&lane->question.link);
    if (session_seat(session, ask->engine) &&
        shm_client_new("spillway-gpu-fences", MEMORY_PAGE_BYTES, &lane->fences) == 0)
        return lane;
    free(lane);
    return NULL;
}

/* What may be refused without the GPU is refused before it: to look for a GPU may start a process. */
void session_gpu_attach(struct session *session, const void *message)
{
    struct spw_msg_gpu_attach ask;
    struct gpu *gpu;
    const char *why;
    uint32_t pool, number;

    memcpy(&ask, message, sizeof(ask));
    if (!attach_is_sane(session, &ask, &pool))
        return;
    attach_fill(&ask);
    uint64_t bytes = gpu_lane_bytes(ask.slots, ask.slot_bytes, ask.alloc_bytes);
    if (!attach_is_paid(session, pool, bytes) || !attach_is_numbered(session, ask.engine, &number))
        return;
    const struct gpu_wanted wanted = {.uuid = ask.uuid, .pool = pool, .uid = session->who.uid};
    int r = gpus_find(session->control->gpus, &wanted, &gpu, &why);
    if (r != 0) {
        session_reply_error(session, r == GPUS_FORBIDDEN ? -ENODEV : r,
                            r == -ENODEV ? SPW_LIMIT_GPU_FAILED : SPW_LIMIT_NONE, "this GPU: %s", why);
        return;
    }
    struct gpu_lane *lane = lane_new(session, &ask, pool, number);
    if (!lane) {
        session_reply_error(session, -ENOMEM, SPW_LIMIT_NONE, "no memory for a lane");
        return;
    }
    list_push_tail(&session->lanes, &lane->link);
    session->busy = true;
    r = gpu_lane_ask(gpu, lane);
    if (r < 0) {
        session->busy = false;
        lane_free(lane);
        session_reply_error(session, r, SPW_LIMIT_NONE, "this GPU: its helper is being started");
        return;
    }
    gpu_charge(lane, bytes);
}

/* --- GPU_DETACH, and the end ----------------------------------------------------------------------------------------- */

void session_gpu_lane_left(struct gpu_lane *lane)
{
    struct session *session = lane->session;
    bool is_detached = lane->is_detached;
    struct spw_msg reply = {0};

    lane_free(lane);
    if (is_detached) {
        if (session_call_over(session))
            session_reply(session, &reply, sizeof(reply), NULL, 0);
    } else if (session->lanes_gone && list_is_empty(&session->lanes)) {
        void (*gone)(struct session *) = session->lanes_gone;

        session->lanes_gone = NULL;
        gone(session);
    }
}

void session_gpu_detach(struct session *session, const void *message)
{
    struct spw_msg_gpu_detach ask;

    memcpy(&ask, message, sizeof(ask));
    list_for_each (l, &session->lanes) {
        struct gpu_lane *lane = list_entry(l, struct gpu_lane, link);

        if (lane->engine != ask.engine || lane->number != ask.lane || lane->state != LANE_ATTACHED)
            continue;
        lane->is_detached = true;
        session->busy = true;
        lane_remove(lane);
        return;
    }
    session_reply_error(session, -EBADF, 0, "this session has no such lane");
}

bool session_gpu_end(struct session *session, void (*done)(struct session *session))
{
    if (list_is_empty(&session->lanes))
        return false;
    session->lanes_gone = done;
    list_for_each_safe (l, &session->lanes) {
        struct gpu_lane *lane = list_entry(l, struct gpu_lane, link);

        if (lane->state == LANE_ATTACHED)
            lane_remove(lane);
    }
    return true;
}
