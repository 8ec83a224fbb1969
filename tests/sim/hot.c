/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hot crashes: the process dies, its memory does not. A new engine finds what the old one left, sessions come back (or do
 * not), and clients ask again for what they had no answer to. Everything that was committed must be there and right,
 * whether a device has it or not.
 *
 * It dies between two steps, or inside one: at one of the places (hot_point()) where the engine has just done, or is
 * about to do, something that its successor can see. The linker puts a wrapper around the functions that change records
 * and leases (cmake/Tests.cmake), so the engine itself knows nothing of it; a change of a record is cut between any two
 * stores. The stack is left by a jump: the old engine is never used again, only freed.
 */
#include <errno.h>
#include <setjmp.h>
#include <string.h>

#include "tests/sim/sim.h"
#include "tiering/core.h"

/* --- Dying inside a step ----------------------------------------------------------------------------------------- */

static struct sim *armed;
static uint64_t points_left;
static jmp_buf death;

void hot_point(void)
{
    if (armed && --points_left == 0)
        longjmp(death, 1);
}

bool hot_dies_in(struct sim *sim, uint64_t points, void (*step)(struct sim *sim))
{
    bool dead = true;

    if (setjmp(death) == 0) {
        armed = sim;
        points_left = points;
        step(sim);
        dead = false;
    }
    armed = NULL;
    return dead;
}

void __real_record_end(struct record_table *t);
void __wrap_record_end(struct record_table *t);

/* Cuts the copy of the redo slot to its record: some of it is there. */
void __wrap_record_end(struct record_table *t)
{
    struct record_header *h = t->header;
    uint32_t index = h->redo_index;

    hot_point(); /* nothing of it counts */
    if (armed && points_left == 1) {
        const uint8_t *from = (const uint8_t *)&h->redo;
        uint8_t *to = (uint8_t *)&t->objects[index].record;

        h->redo_valid = 1;
        for (size_t i = 0; i < sizeof(h->redo); i++)
            if (sim_below(armed, 2) == 0)
                to[i] = from[i];
        hot_point();
    }
    __real_record_end(t);
    hot_point();
}

#define WRAP_VOID(name, params, args)                                                                                  \
    void __real_##name params;                                                                                         \
    void __wrap_##name params;                                                                                         \
    void __wrap_##name params                                                                                          \
    {                                                                                                                  \
        hot_point();                                                                                                   \
        __real_##name args;                                                                                            \
        hot_point();                                                                                                   \
    }

WRAP_VOID(record_free, (struct record_table * t, uint32_t index), (t, index))
WRAP_VOID(lease_end, (struct tiering * t, struct lease *l), (t, l))
WRAP_VOID(truth_chunk_set,
          (struct tiering * t, const struct arena_chunk *c, uint32_t pool, const struct truth_chunk *what),
          (t, c, pool, what))
WRAP_VOID(truth_space_set, (struct tiering * t, uint32_t space), (t, space))
WRAP_VOID(store_drop, (struct store * s, const struct store_entry *e), (s, e))
WRAP_VOID(store_txn_commit, (struct store * s, uint32_t txn), (s, txn))
WRAP_VOID(chunk_give_back, (struct tiering * t, const struct arena_chunk *c), (t, c))
WRAP_VOID(extent_orphan, (struct tiering * t, uint32_t region, uint32_t sector, uint32_t object, bool admitted),
          (t, region, sector, object, admitted))

/* --- What was there ---------------------------------------------------------------------------------------------- */

static bool block_is_whole(struct sim *sim, const struct object *o)
{
    struct tiering_found found;
    uint32_t n = 0, there = 0;

    for (uint32_t part = 0; part < o->n_parts; part++) {
        for (uint32_t piece = 0; piece < o->n_pieces; piece++) {
            struct tiering_id id = object_piece_id(sim, o, part, piece);

            n++;
            there += tiering_lookup(sim->tiering, &id, &found) == 0;
        }
    }
    if (there != 0 && there != n)
        sim_fail(sim, "object %u is there with %u of %u pieces", (uint32_t)(o - sim->objects), there, n);
    return there == n;
}

void hot_look(struct sim *sim, bool inside)
{
    sim->hot.inside = inside;
    for (uint32_t i = 0; i < sim->n_objects; i++)
        sim->hot.was_there[i] = !inside && block_is_whole(sim, &sim->objects[i]);
    for (uint32_t i = 0; i < SIM_SESSIONS; i++)
        sim->hot.returns[i] = sim->sessions[i].alive && !sim->sessions[i].ending && sim_percent(sim, 80);
}

/* The new engine has not had a turn yet, in which it might drop something. */
void hot_look_again(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->n_objects; i++) {
        if (sim->hot.was_there[i] && !block_is_whole(sim, &sim->objects[i]))
            sim_fail(sim, "object %u of space %u did not survive its process", i, sim->objects[i].space);
    }
}

/* The new engine is not started yet. */
void hot_sessions_return(struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_SESSIONS; i++) {
        if (!sim->hot.returns[i])
            continue;
        tiering_session_init(sim->tiering, &sim->sessions[i].s, sim->sessions[i].number, i + 1, 24);
        tiering_session_user(sim->tiering, &sim->sessions[i].s, SIM_USER(i));
    }
}

/* --- Leases and waits -------------------------------------------------------------------------------------------- */

static bool lease_is_back(struct sim *sim, const struct sim_lease *l)
{
    struct tiering_grant grant;
    uint32_t pool;

    if (!sim->hot.returns[l->session] ||
        tiering_lease_info(sim->tiering, &sim->sessions[l->session].s, l->handle, &grant, &pool) < 0)
        return false;
    if (grant.region != l->grant.region || grant.epoch != l->grant.epoch ||
        grant.offset_bytes != l->grant.offset_bytes || grant.length_bytes != l->grant.length_bytes)
        sim_fail(sim, "a lease on object %u came back elsewhere", l->object);
    return true;
}

/* A dirty release was cut off, and its client is gone: the lease has ended as one that was released, or with its session. */
static bool was_released(struct sim *sim, const struct sim_lease *l)
{
    const struct object *o = &sim->objects[l->object];
    struct tiering_id id = object_piece_id(sim, o, 0, l->piece);
    struct tiering_session s;
    struct tiering_grant grant;

    tiering_session_init(sim->tiering, &s, ++sim->last_session, 999, 1);
    bool seen = tiering_acquire(sim->tiering, &s, &id, 0, 0, TIERING_NO_FETCH, NULL, &grant) == 0 &&
                tensor_cell_seen(world_memory(sim, &grant) + (size_t)l->from * SECTOR_BYTES) > o->pieces[l->piece].n;

    tiering_session_end(sim->tiering, &s);
    return seen;
}

/* The client of a lease that did not come back is gone; or its release was under way, and has been carried out. */
static void lease_is_gone(struct sim *sim, struct sim_lease *l)
{
    struct object *o = &sim->objects[l->object];
    bool is_client_gone = !sim->hot.returns[l->session];
    bool was_ending = sim->hot.inside && sim->doing.lease == l;

    if (!is_client_gone && !was_ending && !(sim->hot.inside && l->kind == HELD_READ))
        sim_fail(sim, "a lease of session %u on object %u was lost", l->session, l->object);
    l->used = false;
    if (l->kind == HELD_RESERVED && o->version == l->version)
        block_unbuilt(sim, o, object_bit(l->part, l->piece));
    if (l->kind != HELD_WRITE)
        return;
    int how = is_client_gone ? 2 : sim->doing.how;
    if (is_client_gone && was_ending && sim->doing.how == 1 && l->version == o->last && was_released(sim, l))
        how = 1;
    tensor_writer_gone(sim, l, how);
}

/* The end of a reservation, or of a commit that failed, was cut off when its piece was gone already: it is asked for again. */
static void reservation_look(struct sim *sim, struct sim_lease *l)
{
    struct object *o = &sim->objects[l->object];
    struct tiering_id id = object_piece_id(sim, o, l->part, l->piece);
    struct tiering_found found;

    if (!sim->hot.inside || l->kind != HELD_RESERVED || tiering_lookup(sim->tiering, &id, &found) != -ENOENT)
        return;
    if (tiering_abort(sim->tiering, &sim->sessions[l->session].s, l->handle) < 0)
        sim_fail(sim, "a reservation cannot be aborted again");
    l->used = false;
    if (o->version == l->version)
        block_unbuilt(sim, o, object_bit(l->part, l->piece));
}

/* A writer's release was cut off and will be asked for again; what a reader learns of it meanwhile was carried out. */
static void release_cut_off(struct sim *sim, const struct sim_lease *l)
{
    struct object *o = &sim->objects[l->object];
    struct tensor_piece *p = &o->pieces[l->piece];

    if (!sim->hot.inside || l->kind != HELD_WRITE || l->version != o->last)
        return;
    if (sim->doing.how == 2)
        p->maybe_torn = true;
    if (sim->doing.how == 1 && p->torn &&
        (uint32_t)(l->to - l->from) * SECTOR_BYTES >= object_piece_bytes(o, l->piece)) {
        p->torn = false; /* all of it was written, so it may be read now */
        p->maybe_torn = true;
    }
}

static void leases_return(struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_LEASES; i++) {
        struct sim_lease *l = &sim->leases[i];

        if (!l->used)
            continue;
        /* A transfer that was cut off has left anything there. */
        if (l->in_dma && l->kind == HELD_RESERVED)
            l->filled = false;
        l->in_dma = false;
        l->transfers = 0;
        if (lease_is_back(sim, l))
            sim->counts->hot_leases++;
        else
            lease_is_gone(sim, l);
        if (l->used && sim->doing.lease == l) {
            release_cut_off(sim, l);
            reservation_look(sim, l);
        }
    }
}

/* The lease that a call was about to end is there again, as it was. */
static bool lease_again(struct sim *sim, const struct sim_wait *w)
{
    if (!w->held.used || !lease_is_back(sim, &w->held))
        return false;
    for (uint32_t i = 0; i < SIM_LEASES; i++) {
        if (sim->leases[i].used)
            continue;
        sim->leases[i] = w->held;
        sim->leases[i].in_dma = false;
        sim->leases[i].transfers = 0;
        sim->leases[i].cut_off |= sim->hot.inside;
        sim->counts->hot_retries++;
        reservation_look(sim, &sim->leases[i]);
        return true;
    }
    sim_fail(sim, "more leases than the sessions may have");
}

static void held_forget(struct sim *sim, const struct sim_wait *w)
{
    for (uint32_t i = 0; i < SIM_LEASES; i++) {
        if (w->held.used && sim->leases[i].used && sim->leases[i].handle == w->held.handle &&
            sim->leases[i].session == w->held.session)
            sim->leases[i].used = false; /* its call had only just begun */
    }
}

static void commit_unanswered(struct sim *sim, const struct sim_wait *w)
{
    struct object *o = &sim->objects[w->object];
    struct tiering_id id = object_piece_id(sim, o, w->part, w->piece);
    struct tiering_found found;

    held_forget(sim, w);
    if (lease_again(sim, w) || o->version != w->version || o->state != BLOCK_BUILDING)
        return;
    bool is_there = tiering_lookup(sim->tiering, &id, &found) != -ENOENT;
    if (!is_there && sim->hot.returns[w->session] && !sim->hot.inside && w->kind == WAIT_COMMIT &&
        object_durability(o) != STORE_CACHE && sim->now_ns < o->built_ns + sim->config.parts_deadline_ns)
        sim_fail(sim, "block %u part %u piece %u: neither its reservation came back nor what was committed", w->object,
                 w->part, w->piece);
    block_commit_result(sim, o, w->part, w->piece, w->version, is_there ? 0 : -ECANCELED);
}

static void release_unanswered(struct sim *sim, const struct sim_wait *w)
{
    struct object *o = &sim->objects[w->object];

    held_forget(sim, w);
    if (lease_again(sim, w)) {
        struct tensor_piece *p = &o->pieces[w->piece];
        /* Inside a step its bytes may be the piece's already: it was about to end. Then it is released once more; and
         * they still may be if that is cut off, too. */
        bool may_be_seen = sim->hot.inside || w->held.cut_off;

        if (w->version == o->last && (p->publishing || may_be_seen)) {
            p->publishing = may_be_seen;
            p->publication = (struct write){.from = w->from, .to = w->to};
        }
        return;
    }
    if (sim->hot.returns[w->session] && !sim->hot.inside)
        tensor_release_ended(sim, w, 0);
    else
        tensor_release_cancelled(sim, w); /* it was published, or has ended with its session: a reader will see */
}

static void wait_unanswered(struct sim *sim, const struct sim_wait *w)
{
    struct object *o = &sim->objects[w->object];

    switch (w->kind) {
    case WAIT_RESERVE:
        if (w->begun && o->version == w->version)
            block_unbuilt(sim, o, object_bit(w->part, w->piece));
        break;
    case WAIT_PUT:
        if (!w->begun)
            break;
        commit_unanswered(sim, w);
        break;
    case WAIT_COMMIT:
        commit_unanswered(sim, w);
        break;
    case WAIT_WRITE:
        if (w->begun)
            tensor_writer_forgotten(o, w->piece, w->version, w->from, w->to);
        break;
    case WAIT_RELEASE:
        if (w->begun || sim->hot.inside)
            release_unanswered(sim, w);
        break;
    case WAIT_ACQUIRE:
    case WAIT_PREFETCH:
    case WAIT_GET:
        break;
    }
}

static void waits_return(struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_WAITS; i++) {
        struct sim_wait w = sim->waits[i];

        if (!w.used)
            continue;
        wait_free(&sim->waits[i]);
        wait_unanswered(sim, &w);
    }
}

/* What was asked for without a wait when it died. */
static void doing_ends(struct sim *sim)
{
    struct object *o = sim->doing.object;

    if (!o || !sim->hot.inside)
        return;
    bool is_there = block_is_whole(sim, o);
    if (sim->doing.kind == DOING_DELETE && !is_there && !object_is_tensor(o))
        block_deleted(o);
    if (sim->doing.kind == DOING_DELETE && !is_there && object_is_tensor(o) && o->exists)
        tensor_reset(o);
    if (sim->doing.kind == DOING_OPEN && is_there)
        o->exists = true;
    if (sim->doing.kind == DOING_ADVISE && !is_there && object_durability(o) != STORE_DURABLE &&
        o->state == BLOCK_PRESENT) {
        o->counted = true;
        block_gone(sim, o, "its uses were counted");
    }
}

static void syncs_return(struct sim *sim)
{
    for (uint32_t n = 0; n < SIM_SYNCS; n++) {
        struct sim_sync *y = &sim->syncs[n];

        if (!y->used || !y->running)
            continue;
        /* Nobody was told; whether it took effect, a power loss will show. */
        y->running = false;
        y->used = y->space == SPACE_TENSOR_DURABLE;
        for (uint32_t i = 0; i < sim->first[SPACE_TENSOR_SCRATCH]; i++) {
            for (uint32_t k = 0; k < sim->objects[i].n_pieces; k++)
                y->hi[i][k] = sim->objects[i].pieces[k].n;
        }
    }
}

/* --- Everything is there ------------------------------------------------------------------------------------------ */

static bool may_be_gone(const struct object *o)
{
    return object_durability(o) == STORE_CACHE ||
           o->counted; /* for other reasons than the restart: see hot_look_again() */
}

/* Its bytes, if they are in memory. */
static void block_look(struct sim *sim, struct tiering_session *s, struct object *o, uint32_t part, uint32_t piece)
{
    struct tiering_id id = object_piece_id(sim, o, part, piece);
    struct tiering_grant grant;
    int r = tiering_acquire(sim->tiering, s, &id, 0, 0, TIERING_NO_FETCH, NULL, &grant);

    if (r == -EAGAIN || r == -ENOSPC || (r == -EBADMSG && object_may_be_bad(sim, o)))
        return;
    if (r < 0)
        sim_fail(sim, "block %u cannot be read after a hot restart: %s", (uint32_t)(o - sim->objects), strerror(-r));
    block_resolve(sim, o, part, piece, world_memory(sim, &grant));
    block_verify(sim, o, part, piece, o->version, world_memory(sim, &grant));
    sim->counts->hot_found++;
    if (tiering_release(sim->tiering, s, grant.lease, 0) < 0)
        sim_fail(sim, "a read lease cannot be released");
}

/* Who holds a reservation of what is gone is told at its commit; another may reserve that piece meanwhile. */
static void reservation_outlived(struct sim *sim, uint32_t i, uint32_t part, uint32_t piece)
{
    for (uint32_t n = 0; n < SIM_LEASES; n++) {
        struct sim_lease *l = &sim->leases[n];

        if (l->used && l->kind == HELD_RESERVED && l->object == i && l->part == part && l->piece == piece)
            l->version = 0;
    }
}

/* A build was being dropped, piece by piece, when the process died: the rest of it is there until its time is over again,
 * and the pieces that went can be built anew. */
static void build_cut_off(struct sim *sim, struct object *o, uint32_t i)
{
    struct tiering_found found;

    for (uint32_t part = 0; part < o->n_parts; part++) {
        for (uint32_t piece = 0; piece < o->n_pieces; piece++) {
            struct tiering_id id = object_piece_id(sim, o, part, piece);
            uint32_t bit = object_bit(part, piece);

            if (!((o->reserved | o->committed) & bit) || tiering_lookup(sim->tiering, &id, &found) != -ENOENT)
                continue;
            block_unbuilt(sim, o, bit);
            reservation_outlived(sim, i, part, piece);
        }
    }
}

static void block_check(struct sim *sim, struct tiering_session *s, uint32_t i)
{
    struct object *o = &sim->objects[i];
    bool is_there = block_is_whole(sim, o);

    if (sim->hot.inside && o->state == BLOCK_BUILDING && block_may_vanish_in_part(sim, o))
        build_cut_off(sim, o, i);
    if (is_there) {
        block_seen(sim, o);
    } else if (o->state == BLOCK_PRESENT || o->state == BLOCK_UNKNOWN) {
        if (!may_be_gone(o))
            sim_fail(sim, "block %u of space %u did not survive its process", i, o->space);
        block_gone(sim, o, "hot restart");
    }
    for (uint32_t part = 0; is_there && part < o->n_parts; part++) {
        for (uint32_t piece = 0; piece < o->n_pieces; piece++)
            block_look(sim, s, o, part, piece);
    }
}

static void tensor_look_piece(struct sim *sim, struct tiering_session *s, struct object *o, uint32_t k)
{
    struct tensor_piece *p = &o->pieces[k];
    struct tiering_id id = object_piece_id(sim, o, 0, k);
    struct tiering_grant grant;
    uint32_t to = (uint32_t)div_round_up(object_piece_bytes(o, k), SECTOR_BYTES), cell[SIM_CELLS];
    int r = tiering_acquire(sim->tiering, s, &id, 0, 0, TIERING_NO_FETCH, NULL, &grant);

    if (r == -EAGAIN || r == -ENOSPC ||
        (r == -EBADMSG && (p->torn || p->maybe_torn || p->n_writers || object_may_be_bad(sim, o))))
        return;
    if (r < 0)
        sim_fail(sim, "tensor %u piece %u cannot be read after a hot restart: %s", (uint32_t)(o - sim->objects), k,
                 strerror(-r));
    sim->counts->hot_found++;
    if (object_is_published(o))
        (void)tensor_look(sim, o, k, 0, to, p->n, world_memory(sim, &grant), cell);
    else if (o->space != SPACE_ARENA && !p->torn && !p->maybe_torn)
        tensor_verify(sim, o, k, 0, to, world_memory(sim, &grant));
    if (tiering_release(sim->tiering, s, grant.lease, 0) < 0)
        sim_fail(sim, "a read lease cannot be released");
}

static void tensor_check(struct sim *sim, struct tiering_session *s, uint32_t i)
{
    struct object *o = &sim->objects[i];
    bool is_there = block_is_whole(sim, o);

    if (o->exists && !is_there) {
        if (!may_be_gone(o))
            sim_fail(sim, "tensor %u of space %u did not survive its process", i, o->space);
        tensor_vanished(sim, o, "hot restart");
    }
    if (!o->exists && is_there)
        sim_fail(sim, "tensor %u of space %u came back", i, o->space);
    for (uint32_t k = 0; is_there && k < o->n_pieces; k++)
        tensor_look_piece(sim, s, o, k);
}

void hot_resolve(struct sim *sim)
{
    struct tiering_session s;

    world_check(sim);
    waits_return(sim);
    leases_return(sim);
    doing_ends(sim);
    syncs_return(sim);
    tiering_session_init(sim->tiering, &s, ++sim->last_session, 999, 64);
    for (uint32_t i = 0; i < sim->n_objects; i++) {
        if (i < sim->first[SPACE_CACHE])
            tensor_check(sim, &s, i);
        else
            block_check(sim, &s, i);
    }
    tiering_session_end(sim->tiering, &s);
    for (uint32_t i = 0; i < SIM_SESSIONS; i++) {
        if (!sim->hot.returns[i])
            session_begin(sim, i);
    }
    sim->doing = (struct doing){0};
    world_check(sim);
}
