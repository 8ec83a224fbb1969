/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What sessions do to blocks. Every answer of the engine is checked against the model; those that only say "not now"
 * are counted.
 */
#include <errno.h>
#include <string.h>

#include "tests/sim/sim.h"

static struct object *random_block(struct sim *sim)
{
    uint32_t from = sim->first[SPACE_CACHE], n = sim->n_objects - from;

    /* Some are asked for more often than others. */
    if (sim_percent(sim, 50))
        return &sim->objects[from + sim_below(sim, n)];
    uint32_t space = SPACE_CACHE + (uint32_t)sim_below(sim, SIM_SPACES - SPACE_CACHE);
    uint32_t in_space = sim->first[space + 1] - sim->first[space];
    return &sim->objects[sim->first[space] + sim_pick(sim, (in_space + 3) / 4)];
}

static bool is_expired(const struct sim *sim, const struct object *o)
{
    return sim->now_ns >= o->built_ns + sim->config.parts_deadline_ns;
}

bool block_may_vanish_in_part(const struct sim *sim, const struct object *o)
{
    return object_durability(o) == STORE_CACHE || is_expired(sim, o);
}

static void count_refusal(struct sim *sim, int status, const struct tiering_grant *grant)
{
    if (status == -ENOSPC && grant && grant->limit == TIERING_LIMIT_NONE)
        sim_fail(sim, "ENOSPC without the name of a limit");
    sim->counts->limits++;
}

/* --- Reserve, commit -------------------------------------------------------------------------------------------------- */

/* Under pressure a cache block goes with all that was reserved of it, before it is whole, and any other when its time is
 * over, and nobody is told: what is reserved from then on belongs to another build. */
static bool build_was_dropped(const struct sim *sim, const struct object *o, uint32_t but_bit)
{
    struct tiering_found found;

    for (uint32_t part = 0; part < o->n_parts && block_may_vanish_in_part(sim, o); part++) {
        for (uint32_t piece = 0; piece < o->n_pieces; piece++) {
            struct tiering_id id = object_piece_id(sim, o, part, piece);
            uint32_t bit = object_bit(part, piece);

            if (bit != but_bit && (o->reserved & bit) && tiering_lookup(sim->tiering, &id, &found) == -ENOENT)
                return true;
        }
    }
    return false;
}

void block_reserve_result(struct sim *sim, struct object *o, uint32_t part, uint32_t piece, uint32_t session,
                          int status, const struct tiering_grant *grant)
{
    uint32_t bit = object_bit(part, piece), number = (uint32_t)(o - sim->objects);

    sim_log(sim, "session %u: reserve block %u part %u piece %u: %d", session, number, part, piece, status);
    switch (status) {
    case -EEXIST:
        block_seen(sim, o);
        return;
    case -EINPROGRESS:
        if (o->state != BLOCK_BUILDING || !((o->reserved | o->committed) & bit))
            sim_fail(sim, "block %u part %u piece %u: EINPROGRESS, though nobody builds it", number, part, piece);
        return;
    case -ENOSPC:
    case -EAGAIN:
        count_refusal(sim, status, grant);
        return;
    case 0:
    case TIERING_WAIT:
        break;
    default:
        sim_fail(sim, "block %u cannot be reserved: %s", number, strerror(-status));
    }
    if (o->state == BLOCK_PRESENT || o->state == BLOCK_UNKNOWN)
        block_gone(sim, o, "it can be reserved again");
    if (o->state == BLOCK_BUILDING && ((o->reserved & bit) || build_was_dropped(sim, o, bit))) {
        if (!block_may_vanish_in_part(sim, o))
            sim_fail(sim, "block %u part %u piece %u was reserved twice", number, part, piece);
        o->state = BLOCK_ABSENT; /* all of it was dropped */
        o->reserved = o->committed = 0;
    }
    if (o->state == BLOCK_BUILDING && (o->committed & bit)) {
        if (!block_may_vanish_in_part(sim, o))
            sim_fail(sim, "block %u part %u piece %u was committed and is gone", number, part, piece);
        sim->counts->parts_expired++;
        block_unbuilt(sim, o, bit);
    }
    if (o->state == BLOCK_ABSENT) {
        o->state = BLOCK_BUILDING;
        o->version = ++o->last;
        o->built_ns = sim->now_ns;
        o->reserved = o->committed = 0;
    }
    o->reserved |= bit;
    if (status == 0)
        lease_new(sim, session, o, part, piece, HELD_RESERVED, grant);
}

static void op_reserve(struct sim *sim, uint32_t session)
{
    struct object *o = random_block(sim);
    uint32_t part = (uint32_t)sim_below(sim, o->n_parts), piece = (uint32_t)sim_below(sim, o->n_pieces);
    struct tiering_id id = object_piece_id(sim, o, part, piece);
    struct sim_wait *w = sim_percent(sim, 90) ? wait_new(sim, WAIT_RESERVE, session, o, part, piece) : NULL;
    struct tiering_grant grant;

    int r = tiering_reserve(sim->tiering, &sim->sessions[session].s, &id, o->object_bytes, object_piece_bytes(o, piece),
                            w ? &w->wait : NULL, &grant);
    sim_event(sim, 30 + (uint64_t)(o - sim->objects), (uint64_t)(int64_t)r);
    block_reserve_result(sim, o, part, piece, session, r, &grant);
    if (w && r == TIERING_WAIT) {
        w->version = o->version;
        w->begun = true;
    } else if (w) {
        wait_free(w);
    }
}

/* Which committed pieces of a build that does not become visible are still there? */
static void build_look(struct sim *sim, struct object *o)
{
    struct tiering_found found;
    uint32_t before = o->committed;

    for (uint32_t part = 0; part < o->n_parts; part++) {
        for (uint32_t piece = 0; piece < o->n_pieces; piece++) {
            struct tiering_id id = object_piece_id(sim, o, part, piece);

            if ((o->committed & object_bit(part, piece)) && tiering_lookup(sim->tiering, &id, &found) == -ENOENT)
                block_unbuilt(sim, o, object_bit(part, piece));
        }
    }
    if (o->committed == before)
        sim_fail(sim, "block %u: all parts are committed, and it is not visible", (uint32_t)(o - sim->objects));
    if (!block_may_vanish_in_part(sim, o))
        sim_fail(sim, "block %u: committed parts are gone", (uint32_t)(o - sim->objects));
    sim->counts->parts_expired++;
}

/* All that it lacks is under way: a SYNC may make it durable before its last commit is heard of, and a crash finds it then. */
void commit_may_publish(const struct sim *sim, struct object *o, uint32_t version)
{
    uint32_t bits = o->committed;

    if (o->version != version || o->state != BLOCK_BUILDING)
        return;
    for (uint32_t i = 0; i < SIM_WAITS; i++) {
        const struct sim_wait *w = &sim->waits[i];

        if (w->used && (w->kind == WAIT_COMMIT || w->kind == WAIT_PUT) && &sim->objects[w->object] == o &&
            w->version == version)
            bits |= object_bit(w->part, w->piece);
    }
    if (bits == object_all_bits(o))
        o->published = version;
}

void block_commit_result(struct sim *sim, struct object *o, uint32_t part, uint32_t piece, uint32_t version, int status)
{
    uint32_t bit = object_bit(part, piece), number = (uint32_t)(o - sim->objects);
    struct tiering_id id = object_piece_id(sim, o, 0, 0);
    struct tiering_found found;

    sim_log(sim, "block %u part %u piece %u version %u committed: %d", number, part, piece, version, status);
    if (o->version != version || o->state != BLOCK_BUILDING) {
        if (status == 0)
            sim_fail(sim, "block %u: a commit of a dead build succeeded", number);
        return;
    }
    if (status == -ESTALE && !block_may_vanish_in_part(sim, o))
        sim_fail(sim, "block %u: its reservation was lost", number);
    if (status < 0) {
        if (status != -ESTALE && status != -ECANCELED && status != -ENOSPC && status != -EFAULT)
            sim_fail(sim, "block %u: commit: %s", number, strerror(-status));
        block_unbuilt(sim, o, bit);
        return;
    }
    o->reserved &= ~bit;
    o->committed |= bit;
    if (o->committed != object_all_bits(o))
        return;
    if (tiering_lookup(sim->tiering, &id, &found) == 0) {
        block_published(sim, o);
        return;
    }
    o->published =
        o->version; /* it can have been visible, spilled and evicted before we hear of it: then a crash finds it */
    build_look(sim, o);
}

/* --- Acquire ---------------------------------------------------------------------------------------------------------- */

void lease_read_verify(struct sim *sim, const struct sim_lease *l)
{
    struct object *o = &sim->objects[l->object];

    if (object_is_tensor(o)) {
        if (object_is_published(o))
            tensor_look_again(sim, o, l->piece, l->from, l->to, l->cell, world_memory(sim, &l->grant));
        else if (o->space != SPACE_ARENA && l->version == o->last)
            tensor_verify(sim, o, l->piece, l->from, l->to, world_memory(sim, &l->grant));
        return;
    }
    block_verify(sim, o, l->part, l->piece, l->version, world_memory(sim, &l->grant));
}

static void block_unreadable(struct sim *sim, struct object *o, uint32_t bit, int status)
{
    uint32_t number = (uint32_t)(o - sim->objects);

    switch (status) {
    case -ENOENT:
        if (o->state == BLOCK_BUILDING)
            return;
        if (o->damaged && object_durability(o) != STORE_CACHE && !o->counted)
            sim_fail(sim, "block %u is damaged, and now it is gone", number);
        block_gone(sim, o, "ENOENT");
        return;
    case -EINPROGRESS:
        if (o->state != BLOCK_BUILDING)
            sim_fail(sim, "block %u: EINPROGRESS, though nobody builds it", number);
        return;
    case -EBADMSG:
        if (!object_may_be_bad(sim, o))
            sim_fail(sim, "block %u (space %u): EBADMSG, though no bit was flipped", number, o->space);
        if (object_durability(o) == STORE_CACHE)
            block_gone(sim, o, "damaged");
        else
            o->damaged |= bit;
        return;
    case -EIO:
        if (!sim->errors_on)
            sim_fail(sim, "block %u: EIO, though no request failed", number);
        sim->counts->io_errors++;
        return;
    case -ENOSPC:
    case -EAGAIN:
        return;
    default:
        sim_fail(sim, "block %u cannot be acquired: %s", number, strerror(-status));
    }
}

void block_acquire_result(struct sim *sim, struct object *o, uint32_t part, uint32_t piece, uint32_t session,
                          int status, const struct tiering_grant *grant)
{
    sim_log(sim, "session %u: acquire block %u part %u piece %u: %d%s", session, (uint32_t)(o - sim->objects), part,
            piece, status, status == 0 && grant->fetched ? " (fetched)" : "");
    if (status < 0) {
        if (status == -ENOSPC || status == -EAGAIN)
            count_refusal(sim, status, grant);
        block_unreadable(sim, o, object_bit(part, piece), status);
        return;
    }
    block_seen(sim, o);
    if ((o->damaged & object_bit(part, piece)) && grant->fetched)
        sim_fail(sim, "block %u was damaged, and now can be read", (uint32_t)(o - sim->objects));
    if (grant->length_bytes != object_piece_bytes(o, piece))
        sim_fail(sim, "block %u piece %u: %u bytes", (uint32_t)(o - sim->objects), piece, grant->length_bytes);
    block_resolve(sim, o, part, piece, world_memory(sim, grant));
    struct sim_lease *l = lease_new(sim, session, o, part, piece, HELD_READ, grant);
    lease_read_verify(sim, l);
    sim->counts->hits++;
    if (sim_percent(sim, 60))
        lease_finish(sim, l);
}

void block_acquire_ended(struct sim *sim, struct object *o, const struct sim_wait *w)
{
    uint32_t damaged = o->damaged;

    block_acquire_result(sim, o, w->part, w->piece, w->session, w->status, &w->wait.grant);
    if (!w->is_damaged)
        o->damaged &= damaged;
}

void ops_acquire(struct sim *sim, uint32_t session, struct object *o, uint32_t part, uint32_t piece, bool patient)
{
    struct tiering_id id = object_piece_id(sim, o, part, piece);
    bool waits = patient || sim_percent(sim, 90);
    struct sim_wait *w = waits ? wait_new(sim, WAIT_ACQUIRE, session, o, part, piece) : NULL;
    unsigned flags = !patient && sim_percent(sim, 5) ? TIERING_NO_FETCH : 0;
    struct tiering_grant grant;

    int r = tiering_acquire(sim->tiering, &sim->sessions[session].s, &id, 0, 0, flags, w ? &w->wait : NULL, &grant);
    sim_event(sim, 30 + (uint64_t)(o - sim->objects), (uint64_t)(int64_t)r);
    if (w && o->state == BLOCK_UNKNOWN)
        w->version = 0;
    if (w && r != TIERING_WAIT)
        wait_free(w);
    if (r == TIERING_WAIT)
        block_seen(sim, o);
    else
        block_acquire_result(sim, o, part, piece, session, r, &grant);
}

static void op_acquire(struct sim *sim, uint32_t session)
{
    struct object *o = random_block(sim);
    uint32_t part = (uint32_t)sim_below(sim, o->n_parts), piece = (uint32_t)sim_below(sim, o->n_pieces);

    ops_acquire(sim, session, o, part, piece, false);
}

/* --- The rest --------------------------------------------------------------------------------------------------------- */

static void op_delete(struct sim *sim)
{
    struct object *o = random_block(sim);
    struct tiering_id id = object_piece_id(sim, o, 0, 0);

    if (object_durability(o) == STORE_CACHE && sim_percent(sim, 70))
        return;
    sim->doing = (struct doing){.kind = DOING_DELETE, .object = o};
    int r = tiering_delete(sim->tiering, &id);
    sim->doing.kind = DOING_NOTHING;
    sim_log(sim, "delete block %u: %d", (uint32_t)(o - sim->objects), r);
    sim_event(sim, 31, (uint64_t)(int64_t)r);
    if (r < 0) {
        block_unreadable(sim, o, 0, r);
        return;
    }
    block_seen(sim, o);
    block_deleted(o);
}

static void op_lookup(struct sim *sim)
{
    struct object *o = random_block(sim);
    struct tiering_id id =
        object_piece_id(sim, o, (uint32_t)sim_below(sim, o->n_parts), (uint32_t)sim_below(sim, o->n_pieces));
    struct tiering_found found;
    int r = tiering_lookup(sim->tiering, &id, &found);

    if (r < 0) {
        block_unreadable(sim, o, 0, r);
        return;
    }
    block_seen(sim, o);
    if (found.object_bytes != o->object_bytes || found.kind != TIERING_BLOCK)
        sim_fail(sim, "block %u: wrong size or kind", (uint32_t)(o - sim->objects));
}

static void op_hint(struct sim *sim, uint32_t session)
{
    struct object *o = random_block(sim);
    uint32_t piece = (uint32_t)sim_below(sim, o->n_pieces);
    struct tiering_id id = object_piece_id(sim, o, 0, piece);
    struct tiering_grant grant;
    struct sim_wait *w;
    int r;

    switch (sim_below(sim, 7)) {
    case 0:
        r = tiering_touch(sim->tiering, &id);
        break;
    case 1:
        r = tiering_advise(sim->tiering, &id, TIERING_NOT_AGAIN, 0, sim->now_ns);
        break;
    case 2:
        if (object_durability(o) == STORE_SCRATCH && sim_percent(sim, 70))
            return;
        sim->doing = (struct doing){.kind = DOING_ADVISE, .object = o};
        r = tiering_advise(sim->tiering, &id, TIERING_USES_LEFT, sim_below(sim, 4), sim->now_ns);
        sim->doing.kind = DOING_NOTHING;
        o->counted = o->counted || (r == 0 && object_durability(o) != STORE_DURABLE);
        sim->counts->counted += r == 0;
        break;
    case 4:
        r = tiering_advise(sim->tiering, &id, TIERING_SCORE, sim_below(sim, 64), sim->now_ns);
        break;
    case 3:
        if (sim_percent(sim, 70))
            return;
        r = tiering_pin(sim->tiering, &id, sim->now_ns + sim_below(sim, 50000000));
        sim->counts->pins += r == 0;
        break;
    default:
        w = wait_new(sim, WAIT_PREFETCH, session, o, 0, piece);
        if (!w)
            return;
        r = tiering_prefetch(sim->tiering, &id, &w->wait, &grant);
        if (r != TIERING_WAIT)
            wait_free(w);
        break;
    }
    sim_event(sim, 32, (uint64_t)(int64_t)r);
    if (r < 0)
        block_unreadable(sim, o, 0, r);
    else
        block_seen(sim, o);
}

/* Of a handle that is made up: it ends nothing. Once in millions of times it is one that the session has. */
static int lease_guess(struct sim *sim, struct tiering_session *s, bool release)
{
    uint64_t handle = sim_random(sim) & 0xffff000000ffULL;
    struct tiering_grant grant;
    uint32_t pool;

    if (tiering_lease_info(sim->tiering, s, handle, &grant, &pool) == 0)
        return -EBADF;
    return release ? tiering_release(sim->tiering, s, handle, 0)
                   : tiering_commit(sim->tiering, s, handle, NULL, &grant);
}

/* What must be refused. */
static void op_wrong(struct sim *sim, uint32_t session)
{
    struct object *o = random_block(sim);
    struct tiering_id id = object_piece_id(sim, o, 0, 0);
    struct tiering_grant grant;
    struct tiering_session *s = &sim->sessions[session].s;

    if (lease_guess(sim, s, true) == 0 || lease_guess(sim, s, false) == 0)
        sim_fail(sim, "a lease was guessed");
    if (tiering_release(sim->tiering, s, sim->sessions[session].stale, 0) != -EBADF)
        sim_fail(sim, "a lease that had ended was released again");
    if (tiering_acquire(sim->tiering, s, &id, 0, object_piece_bytes(o, 0) + 1, 0, NULL, &grant) >= 0)
        sim_fail(sim, "more bytes were leased than there are");
    if (tiering_acquire(sim->tiering, s, &id, 0, 0, TIERING_WRITE, NULL, &grant) >= 0)
        sim_fail(sim, "a block was leased for writing");
    id.n_parts = (uint16_t)(o->n_parts + 1);
    id.part = o->n_parts;
    if (o->state == BLOCK_PRESENT || o->state == BLOCK_BUILDING) {
        int r = tiering_reserve(sim->tiering, s, &id, o->object_bytes, object_piece_bytes(o, 0), NULL, &grant);
        bool gone = object_durability(o) == STORE_CACHE || (o->state == BLOCK_PRESENT && o->counted) ||
                    (o->state == BLOCK_BUILDING && is_expired(sim, o));

        if (r == 0 && gone && tiering_abort(sim->tiering, s, grant.lease) == 0)
            return;
        if (r >= 0)
            sim_fail(sim, "block %u was reserved in another number of parts", (uint32_t)(o - sim->objects));
    }
}

/* Of a crowded run: what meets in tensors, whose bytes change. */
static void ops_crowded(struct sim *sim, uint32_t session)
{
    uint64_t dice = sim_below(sim, 100);

    if (dice < 60)
        ops_tensor(sim, session);
    else if (dice < 80)
        ops_sync_tensors(sim);
    else if (dice < 92)
        ops_delete_tensor(sim);
    else
        op_delete(sim);
}

void ops_client(struct sim *sim)
{
    uint32_t session = (uint32_t)sim_below(sim, SIM_SESSIONS);

    if (!sim->sessions[session].alive) {
        session_begin(sim, session);
        return;
    }
    if (sim->crowded && sim_percent(sim, 30)) {
        ops_crowded(sim, session);
        return;
    }
    uint64_t dice = sim_below(sim, 1000);
    struct sim_lease *l = lease_any(sim, session);
    if (l && dice < 30)
        ops_gpu(sim, session);
    else if (l && dice < 330)
        lease_finish(sim, l);
    else if (dice < 530)
        op_reserve(sim, session);
    else if (dice < 760)
        op_acquire(sim, session);
    else if (dice < 840)
        ops_tensor(sim, session);
    else if (dice < 885)
        ops_arena(sim, session);
    else if (dice < 905)
        op_delete(sim);
    else if (dice < 920)
        op_lookup(sim);
    else if (dice < 945)
        op_hint(sim, session);
    else if (dice < 978)
        ops_sync(sim);
    else if (dice < 985)
        op_wrong(sim, session);
    else if (dice < 994) {
        struct sim_wait *w = &sim->waits[sim_below(sim, SIM_WAITS)];

        if (w->used && !w->done)
            wait_cancel(sim, w, false);
    } else if (dice < 997) {
        session_end(sim, session);
        sim->counts->session_deaths++;
    } else if (sim->flips_on) {
        world_flip(sim);
    }
}
