/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a job's elements are, and nobody else need know: blocks of a layout, which are objects of one size, or ranges of
 * objects of any size, each within one piece. A spilled block is new (RESERVE, COMMIT); a range that is spilled to is of a
 * tensor (ACQUIRE for writing, RELEASE). For a kernel, a slot of blocks is as many packed objects; a slot of ranges is one
 * object, whose pieces are their parts. A lease, and a copy, are on all of an element, so that parts of a few bytes that lie
 * near each other come in one; what lies between them the kernel "brings back" to where it is in the slot.
 *
 * A pool counts a lease as all of the piece that it is on, whose size we do not know: as the largest.
 */
#include <string.h>

#include "client/lib/gpu.h"

static bool job_has_ranges(const struct spw_gpu_job *job)
{
    return job->item_bytes == 0;
}

static uint32_t parts_begin(const struct spw_gpu_job *job, size_t element)
{
    return element == 0 ? 0 : job->parts_end[element - 1];
}

static uint64_t element_bytes(const struct spw_gpu_job *job, size_t i)
{
    return job_has_ranges(job) ? job->sizes[i] : job->item_bytes;
}

/* Kernels, copies and requests of a job overlap only between its uses: so the first ones are small, for the link to begin
 * soon, and the last ones, for little to be left behind it. */
static uint64_t use_bytes_max(const struct gpu_lane *lane, const struct spw_gpu_job *job)
{
    uint64_t first = GPU_USE_BYTES_MIN << MIN(job->n_begun, 16U);
    uint64_t last = MAX(job->left_bytes / 2, GPU_USE_BYTES_MIN);
    uint64_t bytes = MIN(first, last);

    return MIN(bytes, lane->use_bytes);
}

uint64_t client_gpu_elements_leased_max(const struct gpu_lane *lane, const struct spw_gpu_job *job)
{
    return job_has_ranges(job) ? MAX(lane->leased_bytes_max / 4, (uint64_t)job->space->piece_bytes) : lane->use_bytes;
}

/* An element of a job that goes straight into an allocation is one part of it, or several without a gap. */
static uint64_t element_address(const struct spw_gpu_job *job, size_t i)
{
    return job->parts[parts_begin(job, i)].address;
}

/* Can a use have both it and the one before? A copy of a direct lane is of bytes that lie together. */
static bool element_follows(const struct spw_gpu_job *job, size_t i)
{
    return !job->memory || element_address(job, i) == element_address(job, i - 1) + job->sizes[i - 1];
}

/* Of the tables that a kernel reads. */
static bool parts_fit(const struct spw_gpu_job *job, size_t end)
{
    return !job_has_ranges(job) || 2 * (job->parts_end[end - 1] - parts_begin(job, job->next)) <= GPU_USE_RANGES_MAX;
}

uint32_t client_gpu_elements_fit(const struct gpu_lane *lane, const struct spw_gpu_job *job, uint64_t *ret_bytes,
                                 uint64_t *ret_leased_bytes)
{
    size_t n_max = MIN(job->n - job->next, (size_t)SPW_LIST_MAX);
    uint64_t bytes = element_bytes(job, job->next), bytes_max = use_bytes_max(lane, job);
    uint64_t leased_max = client_gpu_elements_leased_max(lane, job);
    uint64_t each = job_has_ranges(job) ? job->space->piece_bytes : job->item_bytes;
    uint32_t n = 1;

    while (n < n_max && bytes + element_bytes(job, job->next + n) <= bytes_max && (n + 1) * each <= leased_max &&
           parts_fit(job, job->next + n + 1) && element_follows(job, job->next + n))
        bytes += element_bytes(job, job->next + n++);
    *ret_bytes = bytes;
    *ret_leased_bytes = n * each;
    return n;
}

/* --- Leases ---------------------------------------------------------------------------------------------------------- */

int client_gpu_elements_lease(struct gpu_lane *lane, struct gpu_use *use, uint32_t timeout_ms)
{
    const struct spw_gpu_job *job = use->job;
    const struct spw_key *keys = &job->keys[use->first];
    unsigned flags = job->flags;
    struct client_call call;
    int r;

    if (job->direction == GPU_SPILL && !job_has_ranges(job)) {
        r = client_build_reserve("spw_spill", &call, job->space, keys, NULL, use->n, flags, timeout_ms, use->views);
    } else {
        flags |= job->direction == GPU_SPILL ? SPW_WRITE : 0;
        r = client_build_acquire("spw_gpu", &call, job->space, keys, use->n, flags, timeout_ms, use->views);
    }
    if (job_has_ranges(job)) {
        call.offsets = &job->offsets[use->first];
        call.sizes = &job->sizes[use->first];
    }
    call.no_data = true;
    return client_queue_submit("spw_gpu", lane->leases, r, &call, NULL, &use->call);
}

int client_gpu_elements_give(struct gpu_lane *lane, struct gpu_use *use)
{
    const struct spw_gpu_job *job = use->job;
    struct client_call call;
    enum spw_op op = SPW_OP_RELEASE;
    unsigned flags = 0;

    if (job->direction == GPU_SPILL && job_has_ranges(job)) {
        flags = use->error < 0 ? SPW_DISCARD : SPW_DIRTY;
    } else if (job->direction == GPU_SPILL) {
        op = use->error < 0 ? SPW_OP_ABORT : SPW_OP_COMMIT;
        flags = op == SPW_OP_COMMIT ? job->flags : 0;
    }
    int r = client_build_handles("spw_gpu", &call, op, job->space, use->views, use->n, flags,
                                 SPW_CHAIN | SPW_DIRTY | SPW_DISCARD);
    return client_queue_submit("spw_gpu", lane->leases, r, &call, NULL, &use->call);
}

void client_gpu_elements_count(struct gpu_use *use)
{
    for (uint32_t i = 0; i < use->n; i++) {
        if (use->views[i].lease == 0)
            continue;
        use->n_moved++;
        use->moved_bytes += element_bytes(use->job, use->first + i);
    }
}

/* --- Runs of a direct lane ------------------------------------------------------------------------------------------- */

static uint32_t skip(const struct gpu_use *use, uint32_t i, bool leased)
{
    while (i < use->n && (use->views[i].lease != 0) == leased)
        i++;
    return i;
}

bool client_gpu_elements_next_run(struct gpu_use *use)
{
    use->run = skip(use, use->run_end, false);
    use->run_end = skip(use, use->run, true);
    return use->run < use->n;
}

bool client_gpu_elements_run_is_last(const struct gpu_use *use)
{
    return skip(use, use->run_end, false) == use->n;
}

uint64_t client_gpu_elements_run_offset(const struct gpu_lane *lane, const struct gpu_use *use)
{
    return element_address(use->job, use->first + use->run) - lane->staging;
}

/* --- Kernels --------------------------------------------------------------------------------------------------------- */

static void place_blocks(const struct gpu_use *use, uint32_t *ids)
{
    for (uint32_t i = 0; i < use->n; i++)
        if (use->views[i].lease != 0)
            *ids++ = use->job->ids[use->first + i];
}

static struct kernel_piece *place_piece(struct kernel_piece *piece, uint64_t address, uint32_t offset_bytes,
                                        uint32_t bytes)
{
    *piece = (struct kernel_piece){.base = address, .offset_bytes = offset_bytes, .bytes = bytes};
    return piece + 1;
}

/* How many pieces that makes. */
static uint32_t place_ranges(const struct gpu_use *use, uint64_t slot, struct kernel_piece *pieces)
{
    const struct spw_gpu_job *job = use->job;
    struct kernel_piece *piece = pieces;
    uint32_t at_bytes = 0; /* so far, in the slot */

    for (size_t i = use->first; i < use->first + use->n; i++) {
        uint32_t begin_bytes = at_bytes;

        if (use->views[i - use->first].lease == 0)
            continue;
        for (uint32_t k = parts_begin(job, i); k < job->parts_end[i]; k++) {
            const struct gpu_part *part = &job->parts[k];
            uint32_t part_at = begin_bytes + part->offset_bytes;

            if (at_bytes < part_at)
                piece = place_piece(piece, slot + at_bytes, at_bytes, part_at - at_bytes);
            piece = place_piece(piece, part->address, part_at, part->bytes);
            at_bytes = part_at + part->bytes;
        }
    }
    return (uint32_t)(piece - pieces);
}

void client_gpu_elements_place(struct gpu_lane *lane, const struct gpu_use *use, uint32_t place,
                               struct kernel_args *args)
{
    const struct spw_gpu_job *job = use->job;
    uint32_t *ids = args->inline_ids;

    if (use->n_moved > KERNEL_IDS_INLINE) {
        ids = &lane->ids[(size_t)place * SPW_LIST_MAX];
        args->ids = lane->ids_address + (uint64_t)place * SPW_LIST_MAX * sizeof(*lane->ids);
    }
    args->window_bytes = (uint32_t)use->moved_bytes;
    if (!job_has_ranges(job)) {
        args->pieces = job->layout->pieces;
        args->n_pieces = job->layout->n_pieces;
        args->item_bytes = job->item_bytes;
        place_blocks(use, ids);
        return;
    }
    args->pieces = lane->ranges_address + (uint64_t)place * GPU_USE_RANGES_MAX * sizeof(*lane->ranges);
    args->n_pieces = place_ranges(use, args->slot, &lane->ranges[(size_t)place * GPU_USE_RANGES_MAX]);
    args->item_bytes = (uint32_t)use->moved_bytes;
    args->ids = 0; /* object 0 is all there is */
}

/* --- The end --------------------------------------------------------------------------------------------------------- */

/* Of the caller's, in an element. */
static uint64_t caller_bytes(const struct spw_gpu_job *job, size_t element)
{
    uint64_t bytes = 0;

    if (!job_has_ranges(job))
        return job->item_bytes;
    for (uint32_t k = parts_begin(job, element); k < job->parts_end[element]; k++)
        bytes += job->parts[k].bytes;
    return bytes;
}

void client_gpu_elements_tell(const struct gpu_use *use)
{
    struct spw_gpu_job *job = use->job;

    for (uint32_t i = 0; i < use->n; i++) {
        const struct spw_view *view = &use->views[i];
        int32_t status = use->error < 0 && (view->status == 0 || view->lease != 0) ? use->error : view->status;

        job->statuses[use->first + i] = status;
        if (status == 0)
            job->done_bytes += caller_bytes(job, use->first + i);
        else if (job->all_or_none && job->error == 0)
            job->error = status;
    }
    if (use->error < 0 && job->error == 0)
        job->error = use->error;
}

/* Of ranges, which one may have been cut into several. */
static void ranges_result(struct spw_gpu_job *job)
{
    size_t n_bad = 0;
    uint32_t seen = UINT32_MAX, bad = UINT32_MAX; /* callers */

    for (size_t i = 0; i < job->n; i++)
        for (uint32_t k = parts_begin(job, i); k < job->parts_end[i]; k++) {
            uint32_t caller = job->parts[k].caller;

            if (job->ret_status && (caller != seen || job->ret_status[caller] == 0))
                job->ret_status[caller] = job->statuses[i];
            n_bad += job->statuses[i] != 0 && caller != bad;
            bad = job->statuses[i] != 0 ? caller : bad;
            seen = caller;
        }
    job->value = job->n_callers - n_bad;
}

void client_gpu_elements_result(struct spw_gpu_job *job)
{
    for (size_t i = job->next; i < job->n; i++)
        job->statuses[i] = job->error < 0 ? job->error : -ECANCELED;
    if (job_has_ranges(job)) {
        ranges_result(job);
        return;
    }
    if (job->ret_status)
        memcpy(job->ret_status, job->statuses, job->n * sizeof(*job->statuses));
    job->value = job->done_bytes / job->item_bytes;
}
