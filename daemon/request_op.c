/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the operations: for each opcode what its SQE may say, and the call into tiering that one piece of its list is.
 * Leaves: no list, no state of a request is changed here but by the begin functions. Engine thread only.
 *
 * op_find() is a switch over the enum without a default, so an opcode without an entry does not compile.
 */
#include <errno.h>
#include <string.h>

#include "daemon/request_core.h"
#include "include/base/checked.h"

#define NS_PER_MS UINT64_C(1000000)

/* --- Steps ------------------------------------------------------------------------------------------------------- */

static int step_lookup(struct request *req, const struct step *step, struct tiering_wait *wait,
                       struct tiering_grant *ret_grant, struct spw_result *ret_result)
{
    struct tiering_found found = {0};
    int r = tiering_lookup(req->rq->tiering, &step->id, &found);

    (void)wait;
    (void)ret_grant;
    if (r == 0 || r == -EINPROGRESS)
        *ret_result = (struct spw_result){
            .tier = found.tier,
            .flags = found.pending || r < 0 ? SPW_RESULT_PENDING : 0,
            .length_bytes = found.object_bytes,
        };
    return r;
}

static int step_reserve(struct request *req, const struct step *step, struct tiering_wait *wait,
                        struct tiering_grant *ret_grant, struct spw_result *ret_result)
{
    bool may_wait = req->sqe.timeout_ms != 0;
    int r = tiering_reserve(req->rq->tiering, &req->peer->tiering, &step->id, step->object_bytes, step->length_bytes,
                            may_wait ? wait : NULL, ret_grant);

    (void)ret_result;
    if (r == -EAGAIN && !may_wait) { /* there is no room at this moment, and the client does not wait for any */
        if (ret_grant->limit == TIERING_LIMIT_NONE)
            ret_grant->limit = tiering_room_limit(req->rq->tiering, req->space.pool);
        r = -ENOSPC;
    }
    return r;
}

static int step_acquire(struct request *req, const struct step *step, struct tiering_wait *wait,
                        struct tiering_grant *ret_grant, struct spw_result *ret_result)
{
    bool no_wait = (req->sqe.flags & SPW_SQE_NO_WAIT) != 0;
    unsigned flags = (req->sqe.flags & SPW_SQE_WRITE ? TIERING_WRITE : 0) | (no_wait ? TIERING_NO_FETCH : 0);

    (void)ret_result;
    return tiering_acquire(req->rq->tiering, &req->peer->tiering, &step->id, step->offset_bytes, step->length_bytes,
                           flags, no_wait ? NULL : wait, ret_grant);
}

static int step_prefetch(struct request *req, const struct step *step, struct tiering_wait *wait,
                         struct tiering_grant *ret_grant, struct spw_result *ret_result)
{
    (void)ret_result;
    return tiering_prefetch(req->rq->tiering, &step->id, wait, ret_grant);
}

static int step_commit(struct request *req, const struct step *step, struct tiering_wait *wait,
                       struct tiering_grant *ret_grant, struct spw_result *ret_result)
{
    (void)ret_result;
    req->rq->changes++;
    return tiering_commit(req->rq->tiering, &req->peer->tiering, step->handle.lease, wait, ret_grant);
}

static int step_abort(struct request *req, const struct step *step, struct tiering_wait *wait,
                      struct tiering_grant *ret_grant, struct spw_result *ret_result)
{
    (void)wait;
    (void)ret_grant;
    (void)ret_result;
    req->rq->changes++;
    return tiering_abort(req->rq->tiering, &req->peer->tiering, step->handle.lease);
}

static int step_release(struct request *req, const struct step *step, struct tiering_wait *wait,
                        struct tiering_grant *ret_grant, struct spw_result *ret_result)
{
    unsigned flags = (step->handle.flags & SPW_RELEASE_DIRTY ? TIERING_DIRTY : 0) |
                     (step->handle.flags & SPW_RELEASE_DISCARD ? TIERING_DISCARD : 0);

    (void)ret_result;
    if (flags == (TIERING_DIRTY | TIERING_DISCARD))
        return -EINVAL;
    req->rq->changes++;
    return tiering_release_wait(req->rq->tiering, &req->peer->tiering, step->handle.lease, flags, wait, ret_grant);
}

static int step_touch(struct request *req, const struct step *step, struct tiering_wait *wait,
                      struct tiering_grant *ret_grant, struct spw_result *ret_result)
{
    (void)wait;
    (void)ret_grant;
    (void)ret_result;
    return tiering_touch(req->rq->tiering, &step->id);
}

static int step_advise(struct request *req, const struct step *step, struct tiering_wait *wait,
                       struct tiering_grant *ret_grant, struct spw_result *ret_result)
{
    enum tiering_advice advice = (enum tiering_advice)req->sqe.arg[0];
    uint64_t value = advice == TIERING_KEEP_UNTIL ? req->sqe.arg[1] * NS_PER_MS : req->sqe.arg[1];
    int r = tiering_advise(req->rq->tiering, &step->id, advice, value, req->rq->now_ns);

    (void)wait;
    (void)ret_result;
    if (r == -ENOSPC)
        ret_grant->limit = TIERING_LIMIT_HINTS;
    return r;
}

static int step_pin(struct request *req, const struct step *step, struct tiering_wait *wait,
                    struct tiering_grant *ret_grant, struct spw_result *ret_result)
{
    uint64_t until_ns = req->sqe.arg[0] ? req->rq->now_ns + req->sqe.arg[0] * NS_PER_MS : 0;

    int r = tiering_pin(req->rq->tiering, &step->id, until_ns);

    (void)wait;
    (void)ret_result;
    if (r == -ENOSPC)
        ret_grant->limit = TIERING_LIMIT_HINTS;
    return r;
}

static int step_delete(struct request *req, const struct step *step, struct tiering_wait *wait,
                       struct tiering_grant *ret_grant, struct spw_result *ret_result)
{
    (void)wait;
    (void)ret_grant;
    (void)ret_result;
    req->rq->changes++;
    return tiering_delete(req->rq->tiering, &step->id);
}

static int step_tensor(struct request *req, const struct step *step, struct tiering_wait *wait,
                       struct tiering_grant *ret_grant, struct spw_result *ret_result)
{
    (void)wait;
    (void)ret_grant;
    (void)ret_result;
    return tiering_tensor(req->rq->tiering, &req->peer->tiering, &step->id, step->object_bytes);
}

/* The piece's place in the arena: the lease's extent, from arg[1] on, one item behind the other. */
static int arena_place(struct request *req, uint32_t length_bytes, uint64_t *ret_offset)
{
    struct tiering_grant lease;
    uint32_t pool;
    uint64_t offset;
    int r = tiering_lease_info(req->rq->tiering, &req->peer->tiering, req->sqe.arg[0], &lease, &pool);

    if (r < 0)
        return r;
    if (!add_u64(req->sqe.arg[1], req->arena_offset, &offset) || !range_ok(offset, length_bytes, lease.length_bytes))
        return -ERANGE;
    *ret_offset = offset;
    return 0;
}

static int step_get_range(struct request *req, const struct step *step, struct tiering_wait *wait,
                          struct tiering_grant *ret_grant, struct spw_result *ret_result)
{
    uint64_t offset;
    int r = arena_place(req, step->length_bytes, &offset);

    (void)ret_result;
    if (r < 0)
        return r;
    r = tiering_get_to(req->rq->tiering, &req->peer->tiering, &step->id, req->sqe.arg[0], offset, step->length_bytes,
                       wait, ret_grant);
    return r;
}

static int step_put_range(struct request *req, const struct step *step, struct tiering_wait *wait,
                          struct tiering_grant *ret_grant, struct spw_result *ret_result)
{
    uint64_t offset;
    int r = arena_place(req, step->length_bytes, &offset);

    (void)ret_result;
    if (r < 0)
        return r;
    return tiering_put_from(req->rq->tiering, &req->peer->tiering, &step->id, req->sqe.arg[0], offset,
                            step->length_bytes, wait, ret_grant);
}

/* --- All or nothing: what a piece needs, and how it is given back ------------------------------------------------ */

int op_lease_bytes(const struct request *req, const struct step *step, uint64_t *ret_bytes)
{
    struct tiering_found found;
    int r = tiering_lookup(req->rq->tiering, &step->id, &found);

    if (req->sqe.opcode == SPW_OP_RESERVE) {
        if (r == 0 || r == -EINPROGRESS)
            return r == 0 ? -EEXIST : r;
        *ret_bytes = step->length_bytes;
        return 0;
    }
    if (r < 0)
        return r;
    *ret_bytes = found.size_bytes; /* a lease on a part pins the whole piece */
    return 0;
}

static void undo_reserve(struct request *req, uint64_t lease)
{
    (void)tiering_abort(req->rq->tiering, &req->peer->tiering, lease);
}

static void undo_acquire(struct request *req, uint64_t lease)
{
    (void)tiering_release(req->rq->tiering, &req->peer->tiering, lease, TIERING_UNUSED);
}

/* --- Requests as a whole ----------------------------------------------------------------------------------------- */

static int begin_stat(struct request *req)
{
    struct tiering_pool_stat pool;
    struct tiering_stat all;
    uint64_t at = req->sqe.results;

    if (at % 64 != 0)
        return -EINVAL;
    if (!range_ok(at, sizeof(struct spw_stat), req->ring->scratch_bytes))
        return -ERANGE;
    tiering_pool_stat(req->rq->tiering, req->space.pool, &pool);
    tiering_stat(req->rq->tiering, &all);
    uint64_t read_bytes = 0, written_bytes = 0;

    for (uint32_t i = 0; i < all.stores; i++) {
        struct store_stat store;

        tiering_store_stat(req->rq->tiering, i, &store);
        read_bytes += store.got_bytes;
        written_bytes += store.written_bytes;
    }
    const struct pool_gpu_stat *gpu = &req->rq->config.gpus[req->space.pool];
    struct spw_stat stat = {
        .dram_budget = pool.dram_budget,
        .dram_used = pool.dram_used,
        .cxl_budget = pool.cxl_budget,
        .cxl_used = pool.cxl_used,
        .nvme_budget = pool.nvme_budget,
        .nvme_used = pool.nvme_used,
        .gpu_budget = load_relaxed(&gpu->budget_bytes),
        .gpu_used = load_relaxed(&gpu->used_bytes),
        .leased = pool.leased,
        .dirty = pool.dirty,
        .objects = pool.objects,
        .resident = pool.resident,
        .hits_dram = pool.hits_dram,
        .hits_cxl = pool.hits_cxl,
        .hits_nvme = pool.hits_nvme,
        .misses = pool.misses,
        .bytes_read = read_bytes,
        .bytes_written = written_bytes,
    };
    memcpy(req->ring->scratch + at, &stat, sizeof(stat));
    return 0;
}

static int begin_cancel(struct request *req)
{
    list_for_each (l, &req->ring->requests) {
        struct request *other = list_entry(l, struct request, link);

        if (other == req || other->sqe.user_data != req->sqe.arg[0])
            continue;
        req->rq->stat.cancels++;
        return request_stop(other, -ECANCELED, 0) ? 0 : -EALREADY;
    }
    return -ENOENT;
}

static int begin_prefetch(struct request *req)
{
    uint64_t deadline_ms = req->sqe.arg[0];

    if (deadline_ms != 0)
        req->expires_ns = req->rq->now_ns + MIN(deadline_ms, (uint64_t)REQUEST_TIMEOUT_MS_MAX) * NS_PER_MS;
    return 0;
}

static int begin_advise(struct request *req)
{
    bool known = req->sqe.arg[0] >= SPW_ADVICE_NOT_AGAIN && req->sqe.arg[0] <= SPW_ADVICE_SCORE;

    if (known && req->sqe.arg[0] == SPW_ADVICE_KEEP_UNTIL && req->sqe.arg[1] > PIN_MS_MAX)
        return -ERANGE;
    return known ? 0 : -EINVAL;
}

static int begin_pin(struct request *req)
{
    return req->sqe.arg[0] <= PIN_MS_MAX ? 0 : -ERANGE;
}

static int begin_tensor(struct request *req)
{
    return req->sqe.n_items == 1 ? 0 : -EINVAL;
}

static int begin_plan(struct request *req)
{
    uint64_t before = req->sqe.arg[0], all = req->sqe.arg[1], n = req->sqe.n_items;

    if (before > all || n > all - before || (n == 0 && all > 0) || req->sqe.results != 0)
        return -EINVAL;
    return 0;
}

/* --- The table --------------------------------------------------------------------------------------------------- */

static const struct op op_nop = {0};
static const struct op op_cancel = {.n_args = 1, .begin = begin_cancel};
static const struct op op_stat = {.needs_space = true, .begin = begin_stat};
static const struct op op_lookup = {
    .list = OP_LIST_ITEMS,
    .flags = SPW_SQE_CHAIN,
    .needs_space = true,
    .is_request = true,
    .use = POLICY_NAMED,
    .counts_prefix = true,
    .step = step_lookup,
};
static const struct op op_reserve = {
    .list = OP_LIST_ITEMS,
    .span = OP_SPAN_SIZE,
    .flags = SPW_SQE_CHAIN | SPW_SQE_ALL,
    .needs_space = true,
    .is_request = true,
    .use = POLICY_STORED,
    .waits = true,
    .timeout_status = -ENOSPC,
    .timeout_detail = SPW_LIMIT_POOL_DRAM,
    .step = step_reserve,
    .undo = undo_reserve,
};
static const struct op op_commit = {
    .list = OP_LIST_HANDLES,
    .flags = SPW_SQE_CHAIN,
    .waits = true,
    .timeout_status = -ENOSPC,
    .timeout_detail = SPW_LIMIT_POOL_DRAM,
    .step = step_commit,
};
static const struct op op_abort = {.list = OP_LIST_HANDLES, .step = step_abort};
static const struct op op_acquire = {
    .list = OP_LIST_ITEMS,
    .flags = SPW_SQE_CHAIN | SPW_SQE_ALL | SPW_SQE_WRITE | SPW_SQE_NO_WAIT,
    .needs_space = true,
    .is_request = true,
    .use = POLICY_USED,
    .waits = true,
    .timeout_status = -ETIMEDOUT,
    .timeout_detail = SPW_LIMIT_POOL_DRAM,
    .step = step_acquire,
    .undo = undo_acquire,
};
static const struct op op_release = {
    .list = OP_LIST_HANDLES,
    .waits = true,
    .rarely = true,
    .timeout_status = -ENOSPC,
    .timeout_detail = SPW_LIMIT_POOL_DRAM,
    .step = step_release,
};
static const struct op op_touch = {
    .list = OP_LIST_ITEMS,
    .flags = SPW_SQE_CHAIN,
    .needs_space = true,
    .is_request = true,
    .use = POLICY_USED,
    .step = step_touch,
};
static const struct op op_prefetch = {
    .list = OP_LIST_ITEMS,
    .flags = SPW_SQE_CHAIN,
    .n_args = 1,
    .needs_space = true,
    .is_request = true,
    .use = POLICY_NAMED,
    .waits = true,
    .timeout_status = -ETIMEDOUT,
    .begin = begin_prefetch,
    .step = step_prefetch,
};
static const struct op op_advise = {
    .list = OP_LIST_ITEMS,
    .flags = SPW_SQE_CHAIN,
    .n_args = 2,
    .needs_space = true,
    .begin = begin_advise,
    .step = step_advise,
};
static const struct op op_pin = {
    .list = OP_LIST_ITEMS,
    .flags = SPW_SQE_CHAIN,
    .n_args = 1,
    .needs_space = true,
    .begin = begin_pin,
    .step = step_pin,
};
static const struct op op_delete = {
    .list = OP_LIST_ITEMS,
    .span = OP_SPAN_NAME,
    .flags = SPW_SQE_CHAIN,
    .needs_space = true,
    .step = step_delete,
};
static const struct op op_sync = {
    .list = OP_LIST_ITEMS,
    .flags = SPW_SQE_CHAIN,
    .needs_space = true,
    .may_be_empty = true,
    .timeout_status = -ETIMEDOUT,
    .run = sync_run,
    .ended = sync_ended,
    .stop = sync_forget,
};
static const struct op op_tensor = {
    .list = OP_LIST_ITEMS,
    .span = OP_SPAN_TENSOR,
    .needs_space = true,
    .begin = begin_tensor,
    .step = step_tensor,
};
static const struct op op_put_range = {
    .list = OP_LIST_ITEMS,
    .span = OP_SPAN_SIZE,
    .flags = SPW_SQE_CHAIN,
    .n_args = 2,
    .needs_space = true,
    .is_request = true,
    .use = POLICY_STORED,
    .waits = true,
    .timeout_status = -ENOSPC,
    .timeout_detail = SPW_LIMIT_POOL_DRAM,
    .step = step_put_range,
};
static const struct op op_get_range = {
    .list = OP_LIST_ITEMS,
    .span = OP_SPAN_SIZE,
    .flags = SPW_SQE_CHAIN,
    .n_args = 2,
    .needs_space = true,
    .is_request = true,
    .use = POLICY_USED,
    .waits = true,
    .timeout_status = -ETIMEDOUT,
    .step = step_get_range,
};

static const struct op op_gpu = {
    .list = OP_LIST_HANDLES,
    .n_args = 3,
    .no_results = true,
    .run = dma_run,
    .ended = dma_ended,
    .stop = dma_stop,
};

static const struct op op_plan = {
    .list = OP_LIST_ITEMS,
    .n_args = 2,
    .needs_space = true,
    .may_be_empty = true,
    .no_results = true,
    .begin = begin_plan,
    .run = plan_run,
};

const struct op *op_find(uint8_t opcode)
{
    switch ((enum spw_op)opcode) {
    case SPW_OP_NOP:
        return &op_nop;
    case SPW_OP_LOOKUP:
        return &op_lookup;
    case SPW_OP_RESERVE:
        return &op_reserve;
    case SPW_OP_COMMIT:
        return &op_commit;
    case SPW_OP_ABORT:
        return &op_abort;
    case SPW_OP_ACQUIRE:
        return &op_acquire;
    case SPW_OP_RELEASE:
        return &op_release;
    case SPW_OP_TOUCH:
        return &op_touch;
    case SPW_OP_PREFETCH:
        return &op_prefetch;
    case SPW_OP_ADVISE:
        return &op_advise;
    case SPW_OP_PIN:
        return &op_pin;
    case SPW_OP_DELETE:
        return &op_delete;
    case SPW_OP_SYNC:
        return &op_sync;
    case SPW_OP_STAT:
        return &op_stat;
    case SPW_OP_CANCEL:
        return &op_cancel;
    case SPW_OP_TENSOR:
        return &op_tensor;
    case SPW_OP_PUT_RANGE:
        return &op_put_range;
    case SPW_OP_GET_RANGE:
        return &op_get_range;
    case SPW_OP_GPU_SPILL:
    case SPW_OP_GPU_FETCH:
        return &op_gpu;
    case SPW_OP_PLAN:
        return &op_plan;
    case SPW_OPS:
        break;
    }
    return NULL;
}
