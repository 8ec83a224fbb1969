/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions: what they hold, what they wait for, and how they die: at any moment, with all of it in flight.
 */
#include <errno.h>
#include <string.h>

#include "tests/sim/sim.h"

#define WAIT_NS_MIN UINT64_C(20000000)
#define WAIT_NS_MAX UINT64_C(2000000000)

void session_begin(struct sim *sim, uint32_t i)
{
    struct sim_session *s = &sim->sessions[i];

    s->number = ++sim->last_session;
    tiering_session_init(sim->tiering, &s->s, s->number, i + 1, 24);
    tiering_session_user(sim->tiering, &s->s, SIM_USER(i));
    s->alive = true;
    s->ending = false;
    s->stale = TIERING_LEASE_NONE;
}

void sessions_begin(struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_SESSIONS; i++)
        session_begin(sim, i);
}

/* --- Waits ----------------------------------------------------------------------------------------------------------- */

static void wait_done(struct tiering_wait *wait, int status)
{
    struct sim_wait *w = container_of(wait, struct sim_wait, wait);

    if (!w->used || w->done || w->left)
        sim_fail(w->sim, "a wait ended twice, or after it was cancelled");
    w->done = true;
    w->status = status;
    w->is_damaged = status == -EBADMSG && w->only_copy != 0 &&
                    w->only_copy == world_only_copy(w->sim, &w->sim->objects[w->object], w->part, w->piece);
}

struct sim_wait *wait_new(struct sim *sim, enum wait_kind kind, uint32_t session, struct object *o, uint32_t part,
                          uint32_t piece)
{
    for (uint32_t i = 0; i < SIM_WAITS; i++) {
        struct sim_wait *w = &sim->waits[i];

        if (w->used)
            continue;
        *w = (struct sim_wait){.wait = {.done = wait_done},
                               .sim = sim,
                               .used = true,
                               .kind = kind,
                               .session = (uint8_t)session,
                               .object = (uint16_t)(o - sim->objects),
                               .part = (uint8_t)part,
                               .piece = (uint8_t)piece,
                               .version = o->version,
                               .deaths = o->deaths,
                               .deadline_ns = sim->now_ns + WAIT_NS_MIN + sim_below(sim, WAIT_NS_MAX),
                               .only_copy = world_only_copy(sim, o, part, piece)};
        return w;
    }
    return NULL;
}

void wait_free(struct sim_wait *w)
{
    w->used = false;
}

static struct stamp stamp_of(const uint8_t *bytes)
{
    struct stamp stamp;

    memcpy(&stamp, bytes, sizeof(stamp));
    return stamp;
}

/* A commit was cancelled: it may go on all the same. Waits until it is known. */
static void commit_cancelled(struct sim *sim, struct sim_wait *w)
{
    struct object *o = &sim->objects[w->object];
    struct tiering_id id = object_piece_id(sim, o, w->part, w->piece);
    struct tiering_found found;

    for (int turn = 0; turn < 1000 && simdisk_pending(sim->disk) > 0; turn++)
        world_run(sim, 64, 1000);
    if (o->version != w->version)
        return;
    int r = tiering_lookup(sim->tiering, &id, &found);
    block_commit_result(sim, o, w->part, w->piece, w->version, r == -ENOENT ? -ECANCELED : 0);
}

static void wait_cancelled(struct sim *sim, struct sim_wait *w)
{
    struct object *o = &sim->objects[w->object];

    switch (w->kind) {
    case WAIT_RESERVE:
        if (o->version == w->version)
            block_unbuilt(sim, o, object_bit(w->part, w->piece));
        break;
    case WAIT_COMMIT:
    case WAIT_PUT:
        commit_cancelled(sim, w);
        break;
    case WAIT_WRITE:
        tensor_writer_forgotten(o, w->piece, w->version, w->from, w->to);
        break;
    case WAIT_RELEASE:
        tensor_release_cancelled(sim, w);
        break;
    case WAIT_GET:
        sim->arena_late = true;
        break;
    case WAIT_ACQUIRE:
    case WAIT_PREFETCH:
        break;
    }
}

void wait_cancel(struct sim *sim, struct sim_wait *w, bool timeout)
{
    bool was_done = w->done;

    if (tiering_wait_cancel(sim->tiering, &w->wait)) {
        if (was_done)
            sim_fail(sim, "a wait that had ended was cancelled");
        sim->counts->cancels += !timeout;
        sim->counts->timeouts += timeout;
        sim_event(sim, 3, w->kind);
        sim_log(sim, "session %u: wait %d for object %u part %u piece %u cancelled", w->session, w->kind, w->object,
                w->part, w->piece);
        if (w->kind == WAIT_GET || w->kind == WAIT_PUT)
            sim->leases[w->lease].transfers--;
        wait_cancelled(sim, w);
        wait_free(w);
    } else if (!was_done) {
        sim_fail(sim, "a wait (%d) could not be cancelled, though it had not ended", w->kind);
    }
}

static void wait_ended(struct sim *sim, struct sim_wait w)
{
    struct object *o = &sim->objects[w.object];

    sim_event(sim, 4 + w.kind, (uint64_t)(int64_t)w.status);
    switch (w.kind) {
    case WAIT_RESERVE:
        if (w.status == 0)
            lease_new(sim, w.session, o, w.part, w.piece, HELD_RESERVED, &w.wait.grant)->version = w.version;
        else if (o->version == w.version)
            block_unbuilt(sim, o, object_bit(w.part, w.piece));
        break;
    case WAIT_COMMIT:
        block_commit_result(sim, o, w.part, w.piece, w.version, w.status);
        break;
    case WAIT_ACQUIRE:
        if (object_is_tensor(o))
            tensor_acquire_result(sim, o, w.piece, w.session, false, w.version, w.from, w.to, w.n, w.status,
                                  &w.wait.grant);
        else if (w.deaths == o->deaths)
            block_acquire_ended(sim, o, &w);
        else if (w.status == 0) {
            /* It was deleted after the lease was granted: the lease is on the old one. */
            struct sim_lease *l = lease_new(sim, w.session, o, w.part, w.piece, HELD_READ, &w.wait.grant);

            l->version = w.version ? w.version : stamp_of(world_memory(sim, &w.wait.grant)).version;
            lease_read_verify(sim, l);
        }
        break;
    case WAIT_WRITE:
        tensor_acquire_result(sim, o, w.piece, w.session, true, w.version, w.from, w.to, w.n, w.status, &w.wait.grant);
        break;
    case WAIT_RELEASE:
        tensor_release_ended(sim, &w, w.status);
        break;
    case WAIT_PREFETCH:
        break;
    case WAIT_GET:
    case WAIT_PUT:
        sim->leases[w.lease].transfers--;
        arena_done(sim, &w);
        break;
    }
}

void waits_ended(struct sim *sim)
{
    gpu_ended(sim);
    for (uint32_t i = 0; i < SIM_WAITS; i++) {
        struct sim_wait *w = &sim->waits[i];

        if (!w->used || !w->done)
            continue;
        struct sim_wait copy = *w;
        wait_free(w);
        wait_ended(sim, copy);
    }
}

void waits_expire(struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_WAITS; i++) {
        if (sim->waits[i].used && !sim->waits[i].done && sim->waits[i].deadline_ns < sim->now_ns)
            wait_cancel(sim, &sim->waits[i], true);
    }
}

/* --- Leases ---------------------------------------------------------------------------------------------------------- */

struct sim_lease *lease_new(struct sim *sim, uint32_t session, struct object *o, uint32_t part, uint32_t piece,
                            enum lease_kind kind, const struct tiering_grant *grant)
{
    if (grant->lease == TIERING_LEASE_NONE)
        sim_fail(sim, "a grant without a lease");
    for (uint32_t i = 0; i < SIM_LEASES; i++) {
        struct sim_lease *l = &sim->leases[i];

        if (l->used)
            continue;
        *l = (struct sim_lease){.used = true,
                                .kind = kind,
                                .session = (uint8_t)session,
                                .object = (uint16_t)(o - sim->objects),
                                .part = (uint8_t)part,
                                .piece = (uint8_t)piece,
                                .version = o->version,
                                .grant = *grant,
                                .handle = grant->lease};
        tiering_lease_request(sim->tiering, &sim->sessions[session].s, grant->lease, 1 + i);
        return l;
    }
    sim_fail(sim, "more leases than the sessions may have");
}

struct sim_lease *lease_any(struct sim *sim, uint32_t session)
{
    uint32_t from = (uint32_t)sim_below(sim, SIM_LEASES);

    for (uint32_t i = 0; i < SIM_LEASES; i++) {
        struct sim_lease *l = &sim->leases[(from + i) % SIM_LEASES];

        if (l->used && l->session == session)
            return l;
    }
    return NULL;
}

static void reservation_finish(struct sim *sim, struct sim_lease *l)
{
    struct object *o = &sim->objects[l->object];
    struct tiering_session *s = &sim->sessions[l->session].s;
    struct tiering_grant grant;

    if (!l->filled) {
        block_fill(sim, o, l->part, l->piece, l->version, world_memory(sim, &l->grant));
        l->filled = true;
        if (sim_percent(sim, 50))
            return; /* later */
    }
    if (sim_percent(sim, 8)) {
        sim->doing = (struct doing){.kind = DOING_RELEASE, .lease = l};
        int r = tiering_abort(sim->tiering, s, l->handle);
        sim->doing = (struct doing){0};

        if (r < 0)
            sim_fail(sim, "a reservation cannot be aborted: %s", strerror(-r));
        if (o->version == l->version)
            block_unbuilt(sim, o, object_bit(l->part, l->piece));
        l->used = false;
        return;
    }
    struct sim_wait *w = wait_new(sim, WAIT_COMMIT, l->session, o, l->part, l->piece);
    if (!w)
        return;
    w->version = l->version;
    w->held = *l;
    w->begun = true;
    int r = tiering_commit(sim->tiering, s, l->handle, &w->wait, &grant);
    sim_event(sim, 20, (uint64_t)(int64_t)r);
    sim_log(sim, "session %u: commit block %u part %u piece %u: %d", l->session, l->object, l->part, l->piece, r);
    if (r != TIERING_WAIT)
        wait_free(w);
    else
        commit_may_publish(sim, o, l->version);
    if (r == -EAGAIN)
        return;
    l->used = false;
    if (r != TIERING_WAIT)
        block_commit_result(sim, o, l->part, l->piece, l->version, r);
}

/* A dirty release in the shared pool: it takes a while. */
static void release_begin(struct sim *sim, struct sim_lease *l)
{
    struct object *o = &sim->objects[l->object];
    struct sim_wait *w = wait_new(sim, WAIT_RELEASE, l->session, o, 0, l->piece);
    struct tiering_grant grant;

    if (!w)
        return;
    w->from = l->from;
    w->to = l->to;
    w->version = l->version;
    w->held = *l;
    int r =
        tiering_release_wait(sim->tiering, &sim->sessions[l->session].s, l->handle, TIERING_DIRTY, &w->wait, &grant);
    sim_event(sim, 22, (uint64_t)(int64_t)r);
    if (r != TIERING_WAIT)
        wait_free(w);
    if (r == -EAGAIN)
        return; /* no move is free: later */
    if (r < 0)
        sim_fail(sim, "a write lease cannot be released: %s", strerror(-r));
    l->used = false;
    w->begun = r == TIERING_WAIT;
    if (r == TIERING_WAIT)
        tensor_release_begun(o, l);
    else
        tensor_writer_gone(sim, l, 0); /* it was deleted */
}

static void write_finish(struct sim *sim, struct sim_lease *l)
{
    struct object *o = &sim->objects[l->object];
    struct tiering_session *s = &sim->sessions[l->session].s;
    int how = l->passive ? 0 : sim_percent(sim, 80) ? 1 : 2;
    static const unsigned flags[] = {0, TIERING_DIRTY, TIERING_DISCARD};

    if (l->transfers || (o->space == SPACE_ARENA && sim_percent(sim, 80)))
        return;
    if (!l->passive && !l->filled && o->space != SPACE_ARENA) {
        uint32_t bytes_from = l->from, cells = l->to - l->from;

        /* Half of it now, and perhaps the session dies. */
        tensor_fill(sim, o, l->piece, bytes_from, bytes_from + (cells + 1) / 2, o->pieces[l->piece].n + 1,
                    world_memory(sim, &l->grant));
        l->filled = true;
        return;
    }
    if (how == 1 && o->space != SPACE_ARENA)
        tensor_fill(sim, o, l->piece, l->from, l->to, o->pieces[l->piece].n + 1, world_memory(sim, &l->grant));
    if (o->space == SPACE_ARENA)
        how = (int)sim_below(sim, 2);
    if (how == 1 && object_is_published(o)) {
        release_begin(sim, l);
        return;
    }
    sim->doing = (struct doing){.kind = DOING_RELEASE, .lease = l, .how = how};
    int r = tiering_release(sim->tiering, s, l->handle, flags[how]);
    sim->doing = (struct doing){0};
    sim_event(sim, 21, (uint64_t)(int64_t)r);
    if (r < 0)
        sim_fail(sim, "a write lease cannot be released: %s", strerror(-r));
    l->used = false;
    tensor_writer_gone(sim, l, how);
}

void lease_finish(struct sim *sim, struct sim_lease *l)
{
    struct tiering_session *s = &sim->sessions[l->session].s;

    if (gpu_has(sim, l))
        return;
    switch (l->kind) {
    case HELD_RESERVED:
        reservation_finish(sim, l);
        break;
    case HELD_READ:
        if (l->transfers)
            break;
        lease_read_verify(sim, l);
        if (tiering_release(sim->tiering, s, l->handle, 0) < 0)
            sim_fail(sim, "a read lease cannot be released");
        sim->sessions[l->session].stale = l->handle;
        if (tiering_release(sim->tiering, s, l->handle, 0) != -EBADF)
            sim_fail(sim, "a lease was released twice");
        l->used = false;
        break;
    case HELD_WRITE:
        write_finish(sim, l);
        break;
    }
}

/* --- The end --------------------------------------------------------------------------------------------------------- */

void session_end(struct sim *sim, uint32_t i)
{
    struct sim_session *s = &sim->sessions[i];

    if (!s->alive)
        return;
    s->ending = true;
    if (!sim->dead)
        waits_ended(sim);
    for (uint32_t n = 0; n < SIM_WAITS; n++) {
        struct sim_wait *w = &sim->waits[n];

        if (!w->used || w->session != i)
            continue;
        if (sim->dead) {
            if (!w->done)
                (void)tiering_wait_cancel(sim->tiering, &w->wait);
            wait_free(w);
        } else if (!w->done) {
            wait_cancel(sim, w, false);
        }
    }
    if (!sim->dead)
        waits_ended(sim); /* cancelling let others go on */
    tiering_session_end(sim->tiering, &s->s);
    s->alive = false;
    for (uint32_t n = 0; n < SIM_LEASES; n++) {
        struct sim_lease *l = &sim->leases[n];

        if (!l->used || l->session != i)
            continue;
        l->used = false;
        if (sim->dead)
            continue;
        struct object *o = &sim->objects[l->object];
        if (l->kind == HELD_RESERVED && o->version == l->version)
            block_unbuilt(sim, o, object_bit(l->part, l->piece));
        if (l->kind == HELD_WRITE)
            tensor_writer_gone(sim, l, 2);
    }
}

void session_leave(struct sim *sim, uint32_t i)
{
    tiering_leave(sim->tiering);
    for (uint32_t n = 0; n < SIM_WAITS; n++) {
        struct sim_wait *w = &sim->waits[n];

        if (!w->used || w->session != i || w->done)
            continue;
        if (!tiering_wait_cancel(sim->tiering, &w->wait))
            sim_fail(sim, "a wait (%d) could not be left, though it had not ended", w->kind);
        w->left = true;
        sim->counts->hot_left++;
    }
    waits_ended(sim); /* answers that came with that, or just before */
    tiering_session_leave(sim->tiering, &sim->sessions[i].s);
}
