/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tensors may be. Version n of a piece is its content after its n-th write was released; each write covered
 * some cells (sectors) of it, so the content at version n says for each cell which write was the last.
 *
 * While nothing restarts, a piece is its latest version. After a restart a piece of a durable tensor is a version that
 * the last acknowledged SYNC may have written, or one that a SYNC that ran (or failed) since may have written; and for
 * each such SYNC it is either all of its pieces or none.
 */
#include <errno.h>
#include <string.h>

#include "tests/sim/sim.h"

#define NO_VERSION UINT32_MAX

static struct stamp cell_stamp(const struct sim *sim, const struct object *o, uint32_t piece, uint32_t cell,
                               uint32_t version)
{
    return (struct stamp){.object = (uint64_t)(o - sim->objects),
                          .version = version,
                          .piece = (uint16_t)piece,
                          .sector = cell,
                          .magic = 0x7e4502};
}

void tensor_fill(const struct sim *sim, const struct object *o, uint32_t piece, uint32_t from, uint32_t to,
                 uint32_t version, uint8_t *bytes)
{
    for (uint32_t cell = from; cell < to; cell++) {
        struct stamp stamp = cell_stamp(sim, o, piece, cell, version);

        payload_fill(bytes + (size_t)(cell - from) * SECTOR_BYTES, &stamp, SECTOR_BYTES);
    }
}

static bool cell_is(const struct sim *sim, const struct object *o, uint32_t piece, uint32_t cell, uint32_t version,
                    const uint8_t *bytes)
{
    struct stamp stamp = cell_stamp(sim, o, piece, cell, version);

    return version == 0 ? payload_is_zero(bytes, SECTOR_BYTES)
                        : payload_check(bytes, &stamp, SECTOR_BYTES) == PAYLOAD_GOOD;
}

void tensor_verify(struct sim *sim, struct object *o, uint32_t piece, uint32_t from, uint32_t to, const uint8_t *bytes)
{
    struct tensor_piece *p = &o->pieces[piece];

    sim->counts->bytes_verified += (uint64_t)(to - from) * SECTOR_BYTES;
    for (uint32_t cell = from; cell < to; cell++) {
        const uint8_t *at = bytes + (size_t)(cell - from) * SECTOR_BYTES;
        struct stamp seen;

        if (p->busy & (UINT32_C(1) << cell))
            continue; /* somebody writes there now */
        if (cell_is(sim, o, piece, cell, p->cell[cell], at))
            continue;
        memcpy(&seen, at, sizeof(seen));
        sim_fail(
            sim,
            "wrong bytes: tensor %u (space %u) piece %u cell %u should be version %u of %u; the bytes say object %u "
            "piece %u cell %u version %u",
            (uint32_t)(o - sim->objects), o->space, piece, cell, p->cell[cell], p->n, (uint32_t)seen.object, seen.piece,
            seen.sector, seen.version);
    }
}

/* Deleted, or made anew: a write of zeros to all of it, and no SYNC is asked. */
#define WRITE_ZEROS ((struct write){.to = UINT8_MAX})

static bool is_zeros(const struct write *w)
{
    return w->to == UINT8_MAX;
}

void tensor_written(struct tensor_piece *p, uint32_t from, uint32_t to)
{
    p->n++;
    p->history[p->n] = (struct write){.from = (uint8_t)from, .to = (uint8_t)to};
    for (uint32_t cell = from; cell < to; cell++)
        p->cell[cell] = p->n;
}

/* The version of a cell when the piece was at version n. */
static uint32_t cell_at(const struct tensor_piece *p, uint32_t cell, uint32_t n)
{
    // cppcheck-suppress arrayIndexOutOfBoundsCond; n is a version, and p->n < SIM_HISTORY
    while (n > 0 && !(p->history[n].from <= cell && cell < p->history[n].to))
        n--;
    return is_zeros(&p->history[n]) ? 0 : n;
}

/* --- Shared: what a reader sees is one version, and stays that --------------------------------------------------------- */

uint32_t tensor_cell_seen(const uint8_t *bytes)
{
    struct stamp seen = {0};

    if (!payload_is_zero(bytes, SECTOR_BYTES))
        memcpy(&seen, bytes, sizeof(seen));
    return seen.version;
}

/* Is that what the piece was at version n? n + 1 is the one that is being published. */
static bool looks_like(const struct tensor_piece *p, uint32_t from, uint32_t to, uint32_t n, const uint32_t *cell)
{
    for (uint32_t i = from; i < to; i++) {
        bool is_new = n > p->n && p->publication.from <= i && i < p->publication.to;

        if (cell[i] != (is_new ? n : cell_at(p, i, MIN(n, p->n))))
            return false;
    }
    return true;
}

void tensor_look_again(struct sim *sim, const struct object *o, uint32_t piece, uint32_t from, uint32_t to,
                       const uint32_t *cell, const uint8_t *bytes)
{
    sim->counts->bytes_verified += (uint64_t)(to - from) * SECTOR_BYTES;
    for (uint32_t i = from; i < to; i++) {
        if (!cell_is(sim, o, piece, i, cell[i], bytes + (size_t)(i - from) * SECTOR_BYTES))
            sim_fail(sim, "tensor %u piece %u cell %u changed under a reader", (uint32_t)(o - sim->objects), piece, i);
    }
}

uint32_t tensor_look(struct sim *sim, const struct object *o, uint32_t piece, uint32_t from, uint32_t to, uint32_t n,
                     const uint8_t *bytes, uint32_t *ret_cell)
{
    const struct tensor_piece *p = &o->pieces[piece];
    uint32_t last = p->n + p->publishing;

    for (uint32_t i = from; i < to; i++)
        ret_cell[i] = tensor_cell_seen(bytes + (size_t)(i - from) * SECTOR_BYTES);
    tensor_look_again(sim, o, piece, from, to, ret_cell, bytes); /* each cell is whole */
    for (uint32_t k = n; k <= last; k++) {
        if (looks_like(p, from, to, k, ret_cell))
            return k;
    }
    sim_fail(sim, "tensor %u piece %u cells %u-%u: cell %u is of version %u, and the whole of none from %u to %u",
             (uint32_t)(o - sim->objects), piece, from, to, from, ret_cell[from], n, last);
}

static void piece_is_now(struct tensor_piece *p, uint32_t version)
{
    /* Numbers are never used twice: what was lost is remembered as writes of nothing. */
    for (uint32_t k = version + 1; k <= p->n; k++)
        p->history[k] = (struct write){0};
    for (uint32_t cell = 0; cell < SIM_CELLS; cell++)
        p->cell[cell] = cell_at(p, cell, version);
    p->durable_lo = version;
    p->durable_hi = p->n;
}

void tensor_vanished(struct sim *sim, struct object *o, const char *how)
{
    if (!o->exists)
        return;
    if (object_durability(o) != STORE_CACHE)
        sim_fail(sim, "tensor %u of space %u is gone: %s", (uint32_t)(o - sim->objects), o->space, how);
    sim_log(sim, "tensor %u vanished: %s", (uint32_t)(o - sim->objects), how);
    sim->counts->vanished++;
    tensor_reset(o);
}

void tensor_reset(struct object *o)
{
    o->last++; /* leases and waits on it are on something else from now on */
    o->exists = false;
    for (uint32_t i = 0; i < o->n_pieces; i++) {
        struct tensor_piece *p = &o->pieces[i];

        p->history[++p->n] = WRITE_ZEROS;
        memset(p->cell, 0, sizeof(p->cell));
        p->busy = 0;
        p->n_writers = 0;
        p->torn = p->maybe_torn = p->publishing = false;
    }
}

/* --- SYNC --------------------------------------------------------------------------------------------------------- */

void tensor_sync_began(struct sim *sim, struct sim_sync *y)
{
    for (uint32_t i = 0; i < sim->first[SPACE_TENSOR_SCRATCH]; i++) {
        for (uint32_t k = 0; k < sim->objects[i].n_pieces; k++) {
            y->lo[i][k] = sim->objects[i].pieces[k].n;
            y->hi[i][k] = NO_VERSION; /* still open */
        }
    }
}

static bool sync_covers_any(const struct sim *sim, const struct sim_sync *y)
{
    for (uint32_t i = 0; i < sim->first[SPACE_TENSOR_SCRATCH]; i++) {
        for (uint32_t k = 0; k < SIM_PIECES_MAX; k++) {
            if (y->covers_piece[i][k])
                return true;
        }
    }
    return false;
}

void tensor_sync_acked(struct sim *sim, struct sim_sync *y)
{
    if (y->space != SPACE_TENSOR_DURABLE)
        return;
    for (uint32_t i = 0; i < sim->first[SPACE_TENSOR_SCRATCH]; i++) {
        for (uint32_t k = 0; k < sim->objects[i].n_pieces; k++) {
            struct tensor_piece *p = &sim->objects[i].pieces[k];
            uint32_t from = y->lo[i][k];

            if (y->covers_piece[i][k]) {
                p->durable_lo = MAX(p->durable_lo, from);
                p->durable_hi = p->n;
            }
            /* Deletions of before are durable too. */
            while (from > p->durable_lo && !is_zeros(&p->history[from]))
                from--;
            p->durable_lo = MAX(p->durable_lo, from);
            p->durable_hi = MAX(p->durable_hi, p->durable_lo);
        }
    }
    /* One that failed before this one began no longer matters to what this one covers. */
    for (uint32_t s = 0; s < SIM_SYNCS; s++) {
        struct sim_sync *old = &sim->syncs[s];

        if (old == y || !old->used || old->running || old->began > y->began || old->space != SPACE_TENSOR_DURABLE)
            continue;
        for (uint32_t i = 0; i < sim->first[SPACE_TENSOR_SCRATCH]; i++) {
            for (uint32_t k = 0; k < SIM_PIECES_MAX; k++) {
                if (y->covers_piece[i][k])
                    old->covers_piece[i][k] = false;
            }
        }
        old->used = sync_covers_any(sim, old);
    }
}

/* --- Restarts ----------------------------------------------------------------------------------------------------- */

void tensor_restarted(struct sim *sim, struct object *o, bool clean)
{
    bool ends = object_durability(o) == STORE_SCRATCH || (object_durability(o) == STORE_CACHE && !clean);

    (void)sim;
    for (uint32_t k = 0; k < o->n_pieces; k++) {
        struct tensor_piece *p = &o->pieces[k];

        p->busy = 0;
        p->n_writers = 0;
        p->torn = p->maybe_torn = p->publishing = false;
        if (ends)
            piece_is_now(p, 0);
    }
    if (ends)
        o->exists = false;
}

struct got {
    struct tiering_wait wait;
    int status;
};

static void got_done(struct tiering_wait *wait, int status)
{
    container_of(wait, struct got, wait)->status = status;
}

/* A read lease on the whole piece, waited for. */
static int read_now(struct sim *sim, struct tiering_session *s, const struct tiering_id *id,
                    struct tiering_grant *grant)
{
    struct got got = {.wait = {.done = got_done}, .status = 1};
    int r = -EAGAIN;

    for (int tries = 0; r == -EAGAIN && tries < 1000; tries++) {
        r = tiering_acquire(sim->tiering, s, id, 0, 0, 0, &got.wait, grant);
        if (r == -EAGAIN)
            world_run(sim, 4, 1000000);
    }
    if (r != TIERING_WAIT)
        return r;
    for (int turns = 0; got.status == 1 && turns < 200000; turns++)
        world_run(sim, 4, 1000000);
    if (got.status == 1)
        sim_fail(sim, "a read after a restart never ends");
    *grant = got.wait.grant;
    return got.status;
}

/* What a piece was found to be after a restart: each cell's version. */
struct found {
    bool known;
    uint32_t cell[SIM_CELLS];
};

static struct found found[SIM_TENSORS_MAX][SIM_PIECES_MAX];

static bool found_is(const struct sim *sim, uint32_t i, uint32_t k, uint32_t n)
{
    const struct tensor_piece *p = &sim->objects[i].pieces[k];
    uint32_t cells = object_piece_bytes(&sim->objects[i], k) / SECTOR_BYTES;

    for (uint32_t cell = 0; cell < cells; cell++) {
        if (found[i][k].cell[cell] != cell_at(p, cell, n))
            return false;
    }
    return true;
}

static bool found_within(const struct sim *sim, uint32_t i, uint32_t k, uint32_t lo, uint32_t hi)
{
    for (uint32_t n = lo; n <= hi; n++) {
        if (found_is(sim, i, k, n))
            return true;
    }
    return false;
}

/* As a deletion left it that was version `since` or a later one. */
static bool found_deleted(const struct sim *sim, uint32_t i, uint32_t k, uint32_t since)
{
    const struct tensor_piece *p = &sim->objects[i].pieces[k];

    for (uint32_t n = since; n <= p->n; n++) {
        if (is_zeros(&p->history[n]) && found_is(sim, i, k, n))
            return true;
    }
    return false;
}

/* As the last acknowledged SYNC left it, or as a deletion since did. */
static bool found_is_old(const struct sim *sim, uint32_t i, uint32_t k)
{
    const struct tensor_piece *p = &sim->objects[i].pieces[k];

    return found_within(sim, i, k, p->durable_lo, p->durable_hi) || found_deleted(sim, i, k, p->durable_lo);
}

/* The latest version that it can be. */
static uint32_t found_version(const struct sim *sim, uint32_t i, uint32_t k)
{
    uint32_t n = sim->objects[i].pieces[k].n;

    while (n > 0 && !found_is(sim, i, k, n))
        n--;
    return n;
}

/* Reads off the bytes what they are. False: a cell is nothing that was ever written there. */
static bool found_read(const struct sim *sim, uint32_t i, uint32_t k, const uint8_t *bytes)
{
    const struct object *o = &sim->objects[i];
    uint32_t cells = object_piece_bytes(o, k) / SECTOR_BYTES;

    for (uint32_t cell = 0; cell < cells; cell++) {
        const uint8_t *at = bytes + (size_t)cell * SECTOR_BYTES;
        struct stamp seen = {0};

        if (!payload_is_zero(at, SECTOR_BYTES))
            memcpy(&seen, at, sizeof(seen));
        if (!cell_is(sim, o, k, cell, seen.version, at))
            return false;
        found[i][k].cell[cell] = seen.version;
    }
    found[i][k].known = true;
    return true;
}

/* Another SYNC may have written that version too. */
static bool by_another(const struct sim *sim, const struct sim_sync *y, uint32_t i, uint32_t k)
{
    for (uint32_t s = 0; s < SIM_SYNCS; s++) {
        const struct sim_sync *other = &sim->syncs[s];

        if (other != y && other->used && other->space == SPACE_TENSOR_DURABLE && other->covers_piece[i][k] &&
            found_within(sim, i, k, other->lo[i][k], other->hi[i][k]))
            return true;
    }
    return false;
}

/* For one SYNC that may or may not have taken effect: all of its pieces are old, or all are new. */
static void check_atomic(struct sim *sim, const struct sim_sync *y)
{
    uint32_t only_old = 0, only_new = 0, old_i = 0, new_i = 0;
    bool any_new = false;

    for (uint32_t i = 0; i < sim->first[SPACE_TENSOR_SCRATCH]; i++) {
        for (uint32_t k = 0; k < sim->objects[i].n_pieces; k++) {
            if (!y->covers_piece[i][k] || !found[i][k].known)
                continue;
            bool is_old = found_is_old(sim, i, k), is_new = found_within(sim, i, k, y->lo[i][k], y->hi[i][k]);
            any_new |= is_new && !is_old;
            if (is_new && by_another(sim, y, i, k))
                continue; /* it says nothing about this one */
            if (!is_new && found_deleted(sim, i, k, y->hi[i][k] + 1))
                continue; /* nor this: it went later, whatever the SYNC did */
            if (is_old && !is_new) {
                only_old++;
                old_i = i;
            }
            if (is_new && !is_old) {
                only_new++;
                new_i = i;
            }
        }
    }
    if (only_old && only_new)
        sim_fail(sim, "a SYNC took effect in part: tensor %u is old, tensor %u is new", old_i, new_i);
    sim->counts->half_syncs_old += only_old > 0;
    sim->counts->half_syncs_new += any_new;
}

static void check_allowed(struct sim *sim, uint32_t i, uint32_t k)
{
    const struct tensor_piece *p = &sim->objects[i].pieces[k];
    bool ok = found_is_old(sim, i, k);

    for (uint32_t s = 0; s < SIM_SYNCS && !ok; s++) {
        const struct sim_sync *y = &sim->syncs[s];

        ok = y->used && y->space == SPACE_TENSOR_DURABLE && y->covers_piece[i][k] &&
             found_within(sim, i, k, y->lo[i][k], y->hi[i][k]);
    }
    if (!ok)
        sim_fail(sim, "tensor %u piece %u came back with cell 0 of version %u (of %u); the last SYNC wrote %u to %u", i,
                 k, found[i][k].cell[0], p->n, p->durable_lo, p->durable_hi);
    sim->counts->tensors_checked++;
}

static void look_at(struct sim *sim, struct tiering_session *s, uint32_t i, uint32_t k)
{
    struct object *o = &sim->objects[i];
    struct tensor_piece *p = &o->pieces[k];
    struct tiering_id id = object_piece_id(sim, o, 0, k);
    struct tiering_grant grant;
    int r = read_now(sim, s, &id, &grant);

    found[i][k] = (struct found){0};
    if (r == -ENOENT) {
        if (o->space == SPACE_TENSOR_CACHE) {
            tensor_vanished(sim, o, "restart");
            return;
        }
        found[i][k] = (struct found){.known = true}; /* as good as zeros */
        return;
    }
    if (r == -EBADMSG && object_may_be_bad(sim, o)) {
        p->torn = true;
        if (o->space == SPACE_TENSOR_CACHE)
            tensor_vanished(sim, o, "damaged");
        return;
    }
    if (r == -EIO && sim->errors_on)
        sim_fail(sim, "errors must be off while checking");
    if (r < 0)
        sim_fail(sim, "tensor %u piece %u cannot be read after a restart: %s", i, k, strerror(-r));
    const uint8_t *bytes = world_memory(sim, &grant);
    if (o->space == SPACE_TENSOR_CACHE)
        tensor_verify(sim, o, k, 0, object_piece_bytes(o, k) / SECTOR_BYTES, bytes); /* it was a clean stop */
    else if (!found_read(sim, i, k, bytes))
        sim_fail(sim, "tensor %u piece %u came back as bytes that it never was", i, k);
    if (tiering_release(sim->tiering, s, grant.lease, 0) < 0)
        sim_fail(sim, "a read lease cannot be released");
}

void tensors_check_restart(struct sim *sim)
{
    struct tiering_session s;

    tiering_session_init(sim->tiering, &s, ++sim->last_session, 999, 64);
    for (uint32_t n = 0; n < SIM_SYNCS; n++) {
        for (uint32_t i = 0; i < SIM_TENSORS_MAX; i++) {
            for (uint32_t k = 0; k < SIM_PIECES_MAX; k++)
                sim->syncs[n].hi[i][k] = MIN(sim->syncs[n].hi[i][k], sim->objects[i].pieces[k].n);
        }
    }
    for (uint32_t i = 0; i < sim->first[SPACE_ARENA]; i++) {
        const struct object *o = &sim->objects[i];
        struct tiering_id id = object_piece_id(sim, o, 0, 0);
        struct tiering_found f;

        if (object_durability(o) == STORE_SCRATCH) {
            if (tiering_lookup(sim->tiering, &id, &f) != -ENOENT)
                sim_fail(sim, "scratch tensor %u outlived the engine", i);
            continue;
        }
        if (!o->exists && o->space == SPACE_TENSOR_CACHE && tiering_lookup(sim->tiering, &id, &f) == 0)
            sim_fail(sim, "tensor %u (cache) is there again", i);
        for (uint32_t k = 0; k < o->n_pieces && (o->exists || o->space == SPACE_TENSOR_DURABLE); k++)
            look_at(sim, &s, i, k);
    }
    for (uint32_t i = 0; i < sim->first[SPACE_TENSOR_SCRATCH]; i++) {
        for (uint32_t k = 0; k < sim->objects[i].n_pieces; k++) {
            if (found[i][k].known)
                check_allowed(sim, i, k);
        }
    }
    for (uint32_t n = 0; n < SIM_SYNCS; n++) {
        if (sim->syncs[n].used && sim->syncs[n].space == SPACE_TENSOR_DURABLE)
            check_atomic(sim, &sim->syncs[n]);
    }
    for (uint32_t n = 0; n < SIM_SYNCS; n++)
        sim->syncs[n].used = false;
    for (uint32_t i = 0; i < sim->first[SPACE_TENSOR_SCRATCH]; i++) {
        struct object *o = &sim->objects[i];
        struct tiering_id id = object_piece_id(sim, o, 0, 0);
        struct tiering_found f;

        for (uint32_t k = 0; k < o->n_pieces; k++) {
            if (found[i][k].known)
                piece_is_now(&o->pieces[k], found_version(sim, i, k));
        }
        o->exists = tiering_lookup(sim->tiering, &id, &f) == 0;
    }
    tiering_session_end(sim->tiering, &s);
}
