/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What sessions do to tensors, blocks put from and got to a tensor that is used as an arena, and SYNC.
 *
 * One writer at a time on a piece (and sometimes one beside it that writes nothing): so the model knows what each write
 * covered, and which came first.
 */
#include <errno.h>
#include <string.h>

#include "tests/sim/sim.h"

static struct object *random_tensor(struct sim *sim)
{
    return &sim->objects[sim_pick(sim, sim->first[SPACE_ARENA])];
}

static bool tensor_open(struct sim *sim, struct object *o, uint32_t session)
{
    struct tiering_id id = object_piece_id(sim, o, 0, 0);
    struct tiering_found found;

    if (tiering_lookup(sim->tiering, &id, &found) == -ENOENT)
        tensor_vanished(sim, o, "ENOENT");
    sim->doing = (struct doing){.kind = DOING_OPEN, .object = o};
    int r = tiering_tensor(sim->tiering, &sim->sessions[session].s, &id, o->object_bytes);
    sim->doing.kind = DOING_NOTHING;
    sim_event(sim, 40, (uint64_t)(int64_t)r);
    if (r == -ENOSPC)
        return false;
    if (r < 0)
        sim_fail(sim, "tensor %u cannot be opened: %s", (uint32_t)(o - sim->objects), strerror(-r));
    if (tiering_tensor(sim->tiering, &sim->sessions[session].s, &id, o->object_bytes + 1) != -EINVAL)
        sim_fail(sim, "tensor %u can be opened with another size", (uint32_t)(o - sim->objects));
    o->exists = true;
    return true;
}

/* --- Leases ----------------------------------------------------------------------------------------------------------- */

void tensor_writer_gone(struct sim *sim, struct sim_lease *l, int how)
{
    struct object *o = &sim->objects[l->object];
    struct tensor_piece *p = &o->pieces[l->piece];
    uint32_t cells = (uint32_t)div_round_up(object_piece_bytes(o, l->piece), SECTOR_BYTES);

    sim_log(sim, "session %u: wrote tensor %u piece %u cells %u-%u: %s%s", l->session, l->object, l->piece, l->from,
            l->to,
            how == 0   ? "clean"
            : how == 1 ? "dirty"
                       : "discarded",
            l->version != o->last ? " (deleted)" : "");
    if (l->version != o->last)
        return; /* the tensor was deleted meanwhile */
    p->n_writers--;
    if (object_is_published(o) && how == 2)
        how = 0; /* nobody has seen anything of it */
    for (uint32_t cell = l->from; cell < l->to && !l->passive; cell++)
        p->busy &= ~(UINT32_C(1) << cell);
    if (how == 1) {
        if (o->space != SPACE_ARENA)
            tensor_written(p, l->from, l->to);
        if ((uint32_t)(l->to - l->from) == cells)
            p->torn = p->maybe_torn = false;
    } else if (how == 2) {
        p->maybe_torn = true;
        for (uint32_t i = 0; i < SIM_LEASES; i++) {
            struct sim_lease *other = &sim->leases[i];

            if (other->used && other->kind == HELD_READ && other->object == l->object && other->piece == l->piece)
                other->version = UINT32_MAX; /* what the writer left there is what it sees */
        }
    }
}

/* --- Dirty releases in the shared pool ----------------------------------------------------------------------------------- */

void tensor_release_begun(struct object *o, const struct sim_lease *l)
{
    struct tensor_piece *p = &o->pieces[l->piece];

    if (l->version != o->last)
        return;
    p->publishing = true;
    p->publication = (struct write){.from = l->from, .to = l->to};
}

static struct sim_lease lease_of_release(const struct sim_wait *w)
{
    return (struct sim_lease){.session = w->session,
                              .object = w->object,
                              .piece = w->piece,
                              .from = w->from,
                              .to = w->to,
                              .version = w->version};
}

void tensor_release_ended(struct sim *sim, const struct sim_wait *w, int status)
{
    struct object *o = &sim->objects[w->object];
    struct sim_lease lease = lease_of_release(w);

    if (status < 0 && status != -ECANCELED)
        sim_fail(sim, "a release of tensor %u failed: %s", w->object, strerror(-status));
    if (w->version == o->last)
        o->pieces[w->piece].publishing = false;
    sim->counts->published += status == 0;
    tensor_writer_gone(sim, &lease, status == 0 ? 1 : 0);
}

/* It waited for room, and is undone; or it was being copied, and that goes on: waits until the copy is over. Which it was
 * is known to whoever reads it next. Until then nobody else writes it. */
void tensor_release_cancelled(struct sim *sim, const struct sim_wait *w)
{
    struct sim_lease lease = lease_of_release(w);

    for (int turn = 0; turn < 1000 && simdisk_pending(sim->disk) > 0; turn++)
        world_run(sim, 64, 1000);
    tensor_writer_gone(sim, &lease, 0); /* still `publishing`, if it was not deleted */
}

/* What has become of a release that was cancelled? */
static void publication_settle(struct sim *sim, struct object *o, uint32_t session, uint32_t piece)
{
    struct tensor_piece *p = &o->pieces[piece];
    struct tiering_session *s = &sim->sessions[session].s;
    struct tiering_id id = object_piece_id(sim, o, 0, piece);
    uint32_t to = (uint32_t)div_round_up(object_piece_bytes(o, piece), SECTOR_BYTES), cell[SIM_CELLS];
    struct tiering_grant grant;

    if (!p->publishing || p->n_writers || tiering_acquire(sim->tiering, s, &id, 0, 0, 0, NULL, &grant) < 0)
        return;
    if (tensor_look(sim, o, piece, 0, to, p->n, world_memory(sim, &grant), cell) > p->n) {
        tensor_written(p, p->publication.from, p->publication.to);
        sim->counts->published++;
    }
    p->publishing = false;
    if (tiering_release(sim->tiering, s, grant.lease, 0) < 0)
        sim_fail(sim, "a read lease cannot be released");
}

static void tensor_unreadable(struct sim *sim, struct object *o, uint32_t piece, int status)
{
    struct tensor_piece *p = &o->pieces[piece];

    switch (status) {
    case -ENOENT:
        tensor_vanished(sim, o, "ENOENT");
        return;
    case -EBADMSG:
        if (!p->torn && !p->maybe_torn && !object_may_be_bad(sim, o))
            sim_fail(sim, "tensor %u piece %u: EBADMSG, though it was not torn", (uint32_t)(o - sim->objects), piece);
        sim->counts->torn += !p->torn;
        p->torn = true;
        return;
    case -EIO:
        if (!sim->errors_on)
            sim_fail(sim, "tensor %u: EIO, though no request failed", (uint32_t)(o - sim->objects));
        sim->counts->io_errors++;
        return;
    case -ENOSPC:
    case -EAGAIN:
    case -EBUSY:
        sim->counts->limits++;
        return;
    default:
        sim_fail(sim, "tensor %u cannot be acquired: %s", (uint32_t)(o - sim->objects), strerror(-status));
    }
}

static void writer_begun(struct object *o, uint32_t piece, uint32_t from, uint32_t to)
{
    struct tensor_piece *p = &o->pieces[piece];

    p->n_writers++;
    for (uint32_t cell = from; cell < to; cell++)
        p->busy |= UINT32_C(1) << cell;
}

void tensor_writer_forgotten(struct object *o, uint32_t piece, uint32_t version, uint32_t from, uint32_t to)
{
    struct tensor_piece *p = &o->pieces[piece];

    if (version != o->last)
        return;
    p->n_writers--;
    for (uint32_t cell = from; cell < to; cell++)
        p->busy &= ~(UINT32_C(1) << cell);
}

void tensor_acquire_result(struct sim *sim, struct object *o, uint32_t piece, uint32_t session, bool write,
                           uint32_t version, uint32_t from, uint32_t to, uint32_t n, int status,
                           const struct tiering_grant *grant)
{
    struct tensor_piece *p = &o->pieces[piece];
    uint32_t cells = (uint32_t)div_round_up(object_piece_bytes(o, piece), SECTOR_BYTES);
    bool whole = from == 0 && to == cells;

    if (version != o->last) {
        /* It was deleted meanwhile: if it was granted before, it is a lease on what nobody else can see. */
        if (status == 0) {
            struct sim_lease *l = lease_new(sim, session, o, 0, piece, write ? HELD_WRITE : HELD_READ, grant);

            l->from = (uint8_t)from;
            l->to = (uint8_t)to;
            l->version = version;
        }
        return;
    }
    if (status < 0) {
        if (write)
            tensor_writer_forgotten(o, piece, version, from, to);
        tensor_unreadable(sim, o, piece, status);
        return;
    }
    if (p->torn && !(write && whole) && !object_may_be_bad(sim, o))
        sim_fail(sim, "tensor %u piece %u was torn, and now can be read", (uint32_t)(o - sim->objects), piece);
    if (!write && p->maybe_torn && !p->torn) {
        p->maybe_torn = false;
        sim->counts->reverts++;
    }
    struct sim_lease *l = lease_new(sim, session, o, 0, piece, write ? HELD_WRITE : HELD_READ, grant);
    l->from = (uint8_t)from;
    l->to = (uint8_t)to;
    l->version = o->last;
    /* Of what is damaged nothing is left, and who writes all of it need not know. */
    if (object_is_published(o) && !(write && (p->torn || (whole && object_may_be_bad(sim, o)))))
        (void)tensor_look(sim, o, piece, from, to, n, world_memory(sim, grant), l->cell);
    if (!write) {
        lease_read_verify(sim, l);
        if (sim_percent(sim, 50))
            lease_finish(sim, l);
    } else if (!object_is_published(o) && !p->torn && !p->maybe_torn && o->space != SPACE_ARENA &&
               !(whole && object_may_be_bad(sim, o))) {
        uint32_t busy = p->busy;

        p->busy = 0; /* nobody has written yet */
        tensor_verify(sim, o, piece, from, to, world_memory(sim, grant));
        p->busy = busy;
    }
}

static void tensor_acquire(struct sim *sim, struct object *o, uint32_t session, bool write)
{
    uint32_t piece = (uint32_t)sim_below(sim, o->n_pieces);
    uint32_t cells = (uint32_t)div_round_up(object_piece_bytes(o, piece), SECTOR_BYTES), from = 0, to = cells;
    struct tensor_piece *p = &o->pieces[piece];
    struct tiering_id id = object_piece_id(sim, o, 0, piece);
    struct tiering_grant grant;

    publication_settle(sim, o, session, piece);
    if (write && (p->n_writers || p->publishing || p->n + 2 >= SIM_HISTORY))
        return;
    if (sim_percent(sim, 40) && cells > 1 && o->space != SPACE_ARENA) {
        from = (uint32_t)sim_below(sim, cells);
        to = from + 1 + (uint32_t)sim_below(sim, cells - from);
    }
    struct sim_wait *w = wait_new(sim, write ? WAIT_WRITE : WAIT_ACQUIRE, session, o, 0, piece);
    if (!w)
        return;
    w->from = (uint8_t)from;
    w->to = (uint8_t)to;
    w->version = o->last;
    w->n = p->n;
    int r = tiering_acquire(sim->tiering, &sim->sessions[session].s, &id, from * SECTOR_BYTES,
                            (to - from) * SECTOR_BYTES, write ? TIERING_WRITE : 0, &w->wait, &grant);
    sim_event(sim, 41, (uint64_t)(int64_t)r);
    sim_log(sim, "session %u: %s tensor %u piece %u cells %u-%u: %d", session, write ? "write" : "read",
            (uint32_t)(o - sim->objects), piece, from, to, r);
    if (write)
        writer_begun(o, piece, from, to);
    w->begun = true;
    if (r == TIERING_WAIT)
        return;
    wait_free(w);
    tensor_acquire_result(sim, o, piece, session, write, o->last, from, to, p->n, r, &grant);
}

static void tensor_delete(struct sim *sim, struct object *o)
{
    struct tiering_id id = object_piece_id(sim, o, 0, 0);

    if (!o->exists || o->pieces[0].n + 2 >= SIM_HISTORY)
        return;
    sim->doing = (struct doing){.kind = DOING_DELETE, .object = o};
    int r = tiering_delete(sim->tiering, &id);
    sim->doing.kind = DOING_NOTHING;
    if (r < 0 && r != -ENOENT)
        sim_fail(sim, "tensor %u cannot be deleted: %s", (uint32_t)(o - sim->objects), strerror(-r));
    sim_log(sim, "tensor %u deleted", (uint32_t)(o - sim->objects));
    tensor_reset(o);
}

void ops_tensor(struct sim *sim, uint32_t session)
{
    struct object *o = random_tensor(sim);

    if (!o->exists || sim_percent(sim, 5)) {
        (void)tensor_open(sim, o, session);
        return;
    }
    uint64_t dice = sim_below(sim, 100);
    if (dice < 3)
        tensor_delete(sim, o);
    else
        tensor_acquire(sim, o, session, dice < 60);
}

/* --- Blocks put from and got to a tensor ------------------------------------------------------------------------------- */

static struct sim_lease *arena_lease(struct sim *sim, uint32_t session)
{
    for (uint32_t i = 0; i < SIM_LEASES; i++) {
        struct sim_lease *l = &sim->leases[i];

        if (l->used && l->session == session && l->kind == HELD_WRITE && sim->objects[l->object].space == SPACE_ARENA)
            return l;
    }
    return NULL;
}

static void arena_put(struct sim *sim, uint32_t session, struct sim_lease *l, struct object *o)
{
    struct tiering_id id = object_piece_id(sim, o, 0, 0);
    struct tiering_grant grant;
    uint32_t bytes = object_piece_bytes(o, 0);

    if (o->state == BLOCK_BUILDING || o->state == BLOCK_UNKNOWN)
        return;
    struct sim_wait *w = wait_new(sim, WAIT_PUT, session, o, 0, 0);
    if (!w)
        return;
    block_fill(sim, o, 0, 0, o->last + 1, world_memory(sim, &l->grant));
    int r = tiering_put_from(sim->tiering, &sim->sessions[session].s, &id, l->handle, 0, bytes, &w->wait, &grant);
    sim_event(sim, 42, (uint64_t)(int64_t)r);
    if (r != TIERING_WAIT) {
        wait_free(w);
        block_reserve_result(sim, o, 0, 0, session, r, &grant);
        return;
    }
    block_reserve_result(sim, o, 0, 0, session, r, &grant);
    w->version = o->version;
    w->lease = (uint16_t)(l - sim->leases);
    w->begun = true;
    l->transfers++;
    commit_may_publish(sim, o, w->version);
}

static void arena_get(struct sim *sim, uint32_t session, struct sim_lease *l, struct object *o)
{
    struct tiering_id id = object_piece_id(sim, o, 0, 0);
    struct tiering_grant grant;

    if (o->state != BLOCK_PRESENT)
        return;
    struct sim_wait *w = wait_new(sim, WAIT_GET, session, o, 0, 0);
    if (!w)
        return;
    int r = tiering_get_to(sim->tiering, &sim->sessions[session].s, &id, l->handle, 0, object_piece_bytes(o, 0),
                           &w->wait, &grant);
    sim_event(sim, 43, (uint64_t)(int64_t)r);
    if (r == TIERING_WAIT) {
        w->lease = (uint16_t)(l - sim->leases);
        l->transfers++;
        return;
    }
    wait_free(w);
    block_acquire_result(sim, o, 0, 0, session, r, &grant);
}

void arena_done(struct sim *sim, struct sim_wait *w)
{
    struct object *o = &sim->objects[w->object];
    struct sim_lease *l = &sim->leases[w->lease];

    if (w->kind == WAIT_PUT) {
        block_commit_result(sim, o, 0, 0, w->version, w->status);
        sim->counts->arena_puts += w->status == 0;
        return;
    }
    if (w->status == 0) {
        block_verify(sim, o, 0, 0, w->version, world_memory(sim, &l->grant));
        sim->counts->arena_gets++;
    } else if (o->state == BLOCK_PRESENT && o->version == w->version) {
        block_acquire_ended(sim, o, w);
    }
}

void ops_arena(struct sim *sim, uint32_t session)
{
    struct object *arena = &sim->objects[sim->first[SPACE_ARENA] + sim_below(sim, 2)];
    struct sim_lease *l = arena_lease(sim, session);

    if (sim->arena_late && !world_is_quiet(sim))
        return;
    sim->arena_late = false;
    if (!arena->exists) {
        (void)tensor_open(sim, arena, session);
        return;
    }
    if (!l) {
        tensor_acquire(sim, arena, session, true);
        return;
    }
    uint32_t space = SPACE_CACHE + (uint32_t)sim_below(sim, 3);
    uint32_t n = sim->first[space + 1] - sim->first[space];
    struct object *o = &sim->objects[sim->first[space] + sim_below(sim, n)];
    if (l->transfers || o->n_pieces > 1 || o->n_parts > 1 || o->object_bytes % SECTOR_BYTES || l->from ||
        (uint32_t)(l->to - l->from) * SECTOR_BYTES < o->object_bytes)
        return;
    if (sim_percent(sim, 50))
        arena_put(sim, session, l, o);
    else
        arena_get(sim, session, l, o);
}

/* --- SYNC --------------------------------------------------------------------------------------------------------------- */

static void sync_done(struct tiering_sync *sync, int status)
{
    struct sim_sync *y = container_of(sync, struct sim_sync, sync);
    struct sim *sim = y->sim;

    if (!y->running)
        sim_fail(sim, "a SYNC ended twice");
    sim_event(sim, 50, (uint64_t)(int64_t)status);
    y->running = false;
    y->status = status;
    sim_log(sim, "sync of space %u: %s", y->space, strerror(-status));
    if (status == 0) {
        sim->counts->syncs++;
        model_sync_acked(sim, y);
        y->used = false;
        return;
    }
    sim->counts->syncs_failed++;
    switch (status) {
    case -EIO:
        if (!sim->errors_on)
            sim_fail(sim, "a SYNC failed with EIO, though no request failed");
        break;
    case -EBADMSG:
    case -EBUSY:
    case -ENOSPC:
    case -ECANCELED: /* the engine stops */
        break;
    default:
        sim_fail(sim, "a SYNC failed: %s", strerror(-status));
    }
    if (!sim->degraded) {
        y->used = false; /* it has no effect, now or ever */
        return;
    }
    for (uint32_t i = 0; i < sim->first[SPACE_TENSOR_SCRATCH]; i++) {
        for (uint32_t k = 0; k < sim->objects[i].n_pieces; k++)
            y->hi[i][k] = sim->objects[i].pieces[k].n;
    }
}

static void sync_add_object(struct sim *sim, struct sim_sync *y, struct object *o)
{
    uint32_t number = (uint32_t)(o - sim->objects);

    for (uint32_t part = 0; part < o->n_parts; part++) {
        for (uint32_t piece = 0; piece < o->n_pieces; piece++) {
            struct tiering_id id = object_piece_id(sim, o, part, piece);
            int r = tiering_sync_add(sim->tiering, &y->sync, &id);

            sim_event(sim, 51, (uint64_t)(int64_t)r);
            sim_log(sim, "sync adds object %u piece %u: %d", number, piece, r);
            if (r < 0)
                return;
            if (number < SIM_TENSORS_MAX)
                y->covers_piece[number][piece] = true;
        }
    }
    y->covers[number] = true;
}

static void sync_begin(struct sim *sim, uint8_t space)
{
    struct sim_sync *y = NULL;

    for (uint32_t i = 0; i < SIM_SYNCS && !y; i++)
        y = sim->syncs[i].used ? NULL : &sim->syncs[i];
    if (!y)
        return;
    memset(y, 0, sizeof(*y));
    y->sim = sim;
    y->used = y->running = true;
    y->space = space;
    y->sync.done = sync_done;
    model_sync_began(sim, y);
    sim_log(sim, "sync of space %u begins", space);
    tiering_sync_begin(sim->tiering, &y->sync, sim->spaces[space].index);
    if (sim_percent(sim, 50)) {
        if (tiering_sync_add_space(sim->tiering, &y->sync) < 0)
            sim_fail(sim, "a space cannot be synced");
        for (uint32_t i = sim->first[space]; i < sim->first[space + 1]; i++) {
            y->covers[i] = true;
            for (uint32_t k = 0; k < SIM_PIECES_MAX && i < SIM_TENSORS_MAX; k++)
                y->covers_piece[i][k] = true;
        }
    } else {
        uint32_t n = sim->first[space + 1] - sim->first[space];

        for (uint64_t k = 1 + sim_below(sim, 5); k > 0; k--)
            sync_add_object(sim, y, &sim->objects[sim->first[space] + sim_pick(sim, n)]);
    }
    tiering_sync_run(sim->tiering, &y->sync);
}

void ops_sync(struct sim *sim)
{
    static const uint8_t spaces[] = {SPACE_TENSOR_DURABLE, SPACE_TENSOR_DURABLE, SPACE_DURABLE, SPACE_SHARED_DURABLE};

    sync_begin(sim, spaces[sim_below(sim, ARRAY_LEN(spaces))]);
}

void ops_sync_tensors(struct sim *sim)
{
    sync_begin(sim, SPACE_TENSOR_DURABLE);
}

void ops_delete_tensor(struct sim *sim)
{
    tensor_delete(sim, &sim->objects[sim_pick(sim, sim->first[SPACE_TENSOR_SCRATCH])]);
}
