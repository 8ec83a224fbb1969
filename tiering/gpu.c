/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases whose bytes a GPU's copy engine reads or writes. Engine thread only.
 *
 * A use has up to LIST_ITEMS_MAX leases, so a move each would be too dear, and needless: a lease pins its piece,
 * and holds its extent where the piece may get another one. So the transfer keeps the leases: they are marked, form a list
 * through the lease table, and cannot end before it does. A session that ends leaves such a lease behind; it goes on
 * without one, counted and admitted as before, and ends with the transfer.
 *
 * The backend asks for the runs (contiguous leases are one) when it takes the transfer: they are told from the same list,
 * and need no memory.
 */
#include <errno.h>

#include "tiering/core.h"

static struct lease *lease_at(struct tiering *t, uint32_t index)
{
    return &t->leases[index];
}

static uint32_t lease_index(const struct tiering *t, const struct lease *l)
{
    return (uint32_t)(l - t->leases);
}

/* --- Runs -------------------------------------------------------------------------------------------------------- */

static struct io_dma_run lease_run(const struct tiering *t, const struct lease *l)
{
    struct io_buf at = lease_buf(l);

    return (struct io_dma_run){
        .region = at.region, .epoch = t->chunk_of[l->region]->epoch, .off_bytes = at.off, .len_bytes = l->len_bytes};
}

/* Are `next` bytes the very next after `run`? No run crosses a window: each is registered by itself. */
static bool run_goes_on(const struct io_dma_run *run, const struct io_dma_run *next)
{
    return run->region == next->region && run->off_bytes + run->len_bytes == next->off_bytes &&
           run->off_bytes / WINDOW_BYTES == (next->off_bytes + next->len_bytes - 1) / WINDOW_BYTES;
}

static void dma_run_first(struct io_dma *io)
{
    struct tiering_dma *dma = container_of(io, struct tiering_dma, io_);

    dma->next_lease_ = dma->first_lease_;
}

static void dma_run_next(struct io_dma *io, struct io_dma_run *ret_run)
{
    struct tiering_dma *dma = container_of(io, struct tiering_dma, io_);
    struct tiering *t = dma->t_;
    const struct lease *l = lease_at(t, dma->next_lease_);

    *ret_run = lease_run(t, l);
    for (dma->next_lease_ = l->next_dma; dma->next_lease_ != RECORD_NONE; dma->next_lease_ = l->next_dma) {
        l = lease_at(t, dma->next_lease_);
        struct io_dma_run next = lease_run(t, l);

        if (!run_goes_on(ret_run, &next))
            break;
        ret_run->len_bytes += next.len_bytes;
    }
}

/* --- The end ----------------------------------------------------------------------------------------------------- */

/* The transfer has no more to do with it. */
static struct lease *dma_pop(struct tiering *t, struct tiering_dma *dma)
{
    if (dma->first_lease_ == RECORD_NONE)
        return NULL;
    struct lease *l = lease_at(t, dma->first_lease_);

    dma->first_lease_ = l->next_dma;
    l->next_dma = 0;
    l->in_dma = l->in_spill = false;
    return l;
}

/* As at the end of its session, which was before. */
static void lease_end_late(struct tiering *t, struct lease *l)
{
    if (l->mode == LEASE_RESERVE)
        lease_end(t, l); /* the piece was killed then */
    else
        release_end(t, l, l->mode == LEASE_WRITE ? TIERING_DISCARD : 0);
}

static void dma_done(struct io_dma *io)
{
    struct tiering_dma *dma = container_of(io, struct tiering_dma, io_);
    struct tiering *t = dma->t_;
    struct tiering_pool_stat *stat = &t->pools[dma->pool_].stat;
    struct lease *l;

    t->n_dmas--;
    if (io->result == 0 && io->op != IO_DMA_CANCEL)
        *(io->op == IO_DMA_SPILL ? &stat->gpu_spilled_bytes : &stat->gpu_fetched_bytes) += dma->bytes;
    while ((l = dma_pop(t, dma))) {
        if (io->op == IO_DMA_SPILL) {
            l->spilled = true;
            l->torn = io->result < 0;
        }
        if (!l->session)
            lease_end_late(t, l);
    }
    dma->done(dma, io->result);
}

void dma_session_end(struct tiering *t, struct lease *l)
{
    lease_leave_session(t, l);
    if (l->mode == LEASE_RESERVE)
        object_kill(t, l->object);
}

/* --- The beginning ----------------------------------------------------------------------------------------------- */

void tiering_dma_begin(struct tiering *t, struct tiering_dma *dma, const struct tiering_dma_spec *spec)
{
    *dma = (struct tiering_dma){.done = dma->done,
                                .io_ = {.op = spec->op,
                                        .gpu = spec->gpu,
                                        .lane = spec->lane,
                                        .seq = spec->seq,
                                        .base_bytes = spec->base_bytes,
                                        .expires_ns = spec->expires_ns,
                                        .run_first = dma_run_first,
                                        .run_next = dma_run_next,
                                        .done = dma_done},
                                .t_ = t,
                                .slot_bytes_ = spec->slot_bytes,
                                .pool_ = spec->pool,
                                .first_lease_ = RECORD_NONE,
                                .last_lease_ = RECORD_NONE};
}

int tiering_dma_add(struct tiering *t, struct tiering_dma *dma, const struct tiering_session *s, uint64_t lease)
{
    struct lease *l = lease_get(t, s, lease);

    assert(dma->n_leases < LIST_ITEMS_MAX);
    if (!l)
        return -EBADF;
    if (t->spaces[record_at(&t->records, l->object)->space].info.pool != dma->pool_)
        return -EXDEV;
    if (l->in_dma)
        return -EBUSY;
    if (dma->io_.op == IO_DMA_SPILL && l->mode == LEASE_READ)
        return -EROFS;
    if (l->len_bytes > dma->slot_bytes_ - dma->bytes)
        return -EINVAL;
    struct io_dma_run run = lease_run(t, l);

    if (dma->n_leases > 0 && run_goes_on(&dma->last_, &run)) {
        dma->last_.len_bytes += run.len_bytes;
    } else {
        dma->last_ = run;
        dma->io_.n_runs++;
    }
    l->in_dma = true;
    l->in_spill = dma->io_.op == IO_DMA_SPILL;
    l->next_dma = RECORD_NONE;
    if (dma->n_leases++ > 0)
        lease_at(t, dma->last_lease_)->next_dma = lease_index(t, l);
    else
        dma->first_lease_ = lease_index(t, l);
    dma->last_lease_ = lease_index(t, l);
    dma->bytes += l->len_bytes;
    return 0;
}

void tiering_dma_abandon(struct tiering *t, struct tiering_dma *dma)
{
    while (dma_pop(t, dma))
        ;
}

void tiering_dma_run(struct tiering *t, struct tiering_dma *dma)
{
    assert((dma->n_leases > 0) == (dma->io_.op != IO_DMA_CANCEL));
    dma->io_.bytes = dma->bytes;
    t->n_dmas++;
    t->config.backend->ops->dma_submit(t->config.backend, &dma->io_);
}

const char *dma_check(const struct tiering *t)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < t->config.max_leases; i++) {
        const struct lease *l = &t->leases[i];

        n += l->mode != LEASE_FREE;
        if (l->mode != LEASE_FREE && !l->session && !l->in_dma && !l->in_move && !t->leaving)
            return "a lease without a session";
    }
    return n == t->n_leases ? NULL : "the number of leases";
}
