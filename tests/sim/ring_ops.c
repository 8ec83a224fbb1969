/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What well-behaved clients ask for through their rings, and what the answers may be. Several clients ask for the same
 * blocks at once and do not know in which order they are served: so what a read may return is a range of versions, from
 * what was known when it was asked for to what had been begun when it is answered.
 */
#include <errno.h>
#include <string.h>

#include "tests/sim/ring.h"

#define OBJECT_STAMP (UINT64_C(1) << 20) /* apart from the other sessions' */

static bool is_durable(const struct ring_object *o)
{
    return o->space % 2 == 1;
}

static uint32_t number_of(const struct sim *sim, const struct ring_object *o)
{
    return (uint32_t)(o - sim->rings->objects);
}

static uint32_t piece_bytes(const struct ring_object *o, uint32_t piece)
{
    return (uint32_t)MIN(o->bytes - (uint64_t)piece * SIM_PIECE_BYTES, (uint64_t)SIM_PIECE_BYTES);
}

void ring_objects_make(struct sim *sim)
{
    static const uint32_t kib[] = {64, 64, 16, 4, 128, 100};

    for (uint32_t i = 0; i < RING_OBJECTS; i++) {
        struct ring_object *o = &sim->rings->objects[i];

        *o = (struct ring_object){.space = (uint8_t)(i % RING_SPACES), .key_len = (uint8_t)(4 + sim_below(sim, 28))};
        o->owner = (uint8_t)sim_below(sim, RING_HOSTILE);
        o->bytes = sim_percent(sim, 15) ? SIM_PIECE_BYTES + 1 + sim_below(sim, 2 * SIM_PIECE_BYTES - 1)
                                        : kib[sim_below(sim, ARRAY_LEN(kib))] * KIB;
        o->n_pieces = (uint8_t)div_round_up(o->bytes, SIM_PIECE_BYTES);
    }
}

/* --- Bytes ---------------------------------------------------------------------------------------------------------- */

static struct stamp stamp_of(const struct sim *sim, const struct ring_object *o, uint32_t piece, uint32_t version)
{
    return (struct stamp){
        .object = OBJECT_STAMP + number_of(sim, o), .version = version, .piece = (uint16_t)piece, .magic = 0x5f10c6};
}

static uint8_t *lease_memory(const struct sim *sim, const struct ring_lease *l)
{
    return simdisk_memory(sim->disk, l->region) + l->offset_bytes;
}

static void lease_verify(struct sim *sim, const struct ring_lease *l)
{
    const struct ring_object *o = &sim->rings->objects[l->object];
    struct stamp stamp = stamp_of(sim, o, l->piece, l->version);
    uint32_t bad = payload_check(lease_memory(sim, l), &stamp, piece_bytes(o, l->piece));

    sim->counts->bytes_verified += piece_bytes(o, l->piece);
    if (bad != PAYLOAD_GOOD)
        sim_fail(sim, "wrong bytes: a client's block %u piece %u version %u, sector %u", l->object, l->piece,
                 l->version, bad);
}

/* A lease to read: which version is it, and may it be that one? */
static void lease_look(struct sim *sim, struct ring_lease *l, uint32_t floor)
{
    const struct ring_object *o = &sim->rings->objects[l->object];
    struct stamp seen = stamp_of(sim, o, l->piece, floor); /* a last piece of few bytes does not tell its version */

    memcpy(&seen, lease_memory(sim, l), MIN(sizeof(seen), (size_t)piece_bytes(o, l->piece)));
    l->version = seen.version;
    if (seen.object != OBJECT_STAMP + l->object || seen.version < floor || seen.version > o->top)
        sim_fail(sim, "a client's block %u (space %u) is block %lu version %u; %u to %u may be", l->object, o->space,
                 (unsigned long)seen.object, seen.version, floor, o->top);
    lease_verify(sim, l);
}

/* --- Asking --------------------------------------------------------------------------------------------------------- */

static struct spw_item item_of(const struct sim *sim, const struct ring_object *o)
{
    struct spw_item item = {.key_len = o->key_len};
    uint32_t number = number_of(sim, o);

    memcpy(item.key, &number, sizeof(number));
    for (uint32_t i = 4; i < o->key_len; i++)
        item.key[i] = (uint8_t)(number * 7 + i);
    return item;
}

static uint32_t timeout_any(struct sim *sim)
{
    return sim_percent(sim, 30) ? 0 : (uint32_t)(1 + sim_below(sim, 1500));
}

/* A few of one space, none of them twice. Those that are reserved: only what this client may build. */
static void call_choose(struct sim *sim, const struct ring_client *c, struct ring_call *call, uint32_t space)
{
    uint32_t want = 1 + (uint32_t)sim_below(sim, RING_ITEMS), from = (uint32_t)sim_below(sim, RING_OBJECTS);

    for (uint32_t i = 0; i < RING_OBJECTS && call->n < want; i++) {
        uint32_t number = (from + i) % RING_OBJECTS;
        const struct ring_object *o = &sim->rings->objects[number];
        bool may_build = o->n_pieces == 1 || (&sim->rings->clients[o->owner] == c && !o->building);

        if (o->space == space && (call->opcode != SPW_OP_RESERVE || may_build))
            call->object[call->n++] = (uint16_t)number;
    }
}

static void call_items(struct sim *sim, struct ring_client *c, const struct ring_call *call)
{
    struct spw_item *items = ring_call_items(c, call);

    for (uint32_t i = 0; i < call->n; i++) {
        const struct ring_object *o = &sim->rings->objects[call->object[i]];

        items[i] = item_of(sim, o);
        if (call->opcode == SPW_OP_RESERVE || (call->opcode == SPW_OP_ACQUIRE && o->n_pieces > 1))
            items[i].length_bytes = o->bytes;
    }
}

static void op_items(struct sim *sim, struct ring_client *c, uint8_t opcode)
{
    uint32_t space = (uint32_t)sim_below(sim, RING_SPACES);
    struct ring_call *call = ring_call_new(sim, c, opcode);

    if (!call)
        return;
    call->timeout_ms = timeout_any(sim);
    call_choose(sim, c, call, space);
    if (opcode == SPW_OP_DELETE)
        call->n = (uint8_t)MIN(call->n, 2);
    if (call->n == 0) {
        call->used = false;
        return;
    }
    call_items(sim, c, call);
    struct spw_sqe sqe = ring_call_sqe(c, call, c->spaces[space]);

    if (opcode != SPW_OP_SYNC && sim_percent(sim, 30))
        sqe.flags |= SPW_SQE_CHAIN;
    if ((opcode == SPW_OP_RESERVE || opcode == SPW_OP_ACQUIRE) && sim_percent(sim, 25))
        sqe.flags |= SPW_SQE_ALL;
    else if (opcode == SPW_OP_ACQUIRE && sim_percent(sim, 10))
        sqe.flags |= SPW_SQE_NO_WAIT;
    if (opcode == SPW_OP_ADVISE) {
        sqe.arg[0] = sim_percent(sim, 50) ? SPW_ADVICE_NOT_AGAIN : SPW_ADVICE_SCORE;
        sqe.arg[1] = sim_below(sim, 64);
    }
    if (opcode == SPW_OP_PIN)
        sqe.arg[0] = sim_below(sim, 50);
    for (uint32_t i = 0; i < call->n && opcode == SPW_OP_DELETE; i++) {
        struct ring_object *o = &sim->rings->objects[call->object[i]];

        o->deletes++;
        o->deleting++;
        o->present = o->must = 0;
    }
    if (opcode == SPW_OP_RESERVE)
        for (uint32_t i = 0; i < call->n; i++)
            sim->rings->objects[call->object[i]].building += sim->rings->objects[call->object[i]].n_pieces > 1;
    ring_submit(sim, c, &sqe);
}

static void op_sync(struct sim *sim, struct ring_client *c)
{
    uint32_t space = 1 + 2 * (uint32_t)sim_below(sim, 2);

    if (sim_percent(sim, 50)) {
        struct ring_call *call = ring_call_new(sim, c, SPW_OP_SYNC);

        if (!call)
            return;
        call->all_space = true;
        call->timeout_ms = timeout_any(sim);
        struct spw_sqe sqe = ring_call_sqe(c, call, c->spaces[space]);
        sqe.results = 0;
        call->object[0] = (uint16_t)space;
        ring_submit(sim, c, &sqe);
        return;
    }
    op_items(sim, c, SPW_OP_SYNC);
}

static void op_plain(struct sim *sim, struct ring_client *c, uint8_t opcode)
{
    struct ring_call *call = ring_call_new(sim, c, opcode);

    if (!call)
        return;
    struct spw_sqe sqe = ring_call_sqe(c, call, opcode == SPW_OP_STAT ? c->spaces[0] : 0);

    if (opcode != SPW_OP_STAT)
        sqe.results = 0;
    if (opcode == SPW_OP_CANCEL) {
        const struct ring_call *other = &c->calls[sim_below(sim, RING_CALLS)];

        sqe.arg[0] = other->used && other != call ? other->user_data : sim_random(sim);
    }
    ring_submit(sim, c, &sqe);
}

void ring_drain(struct sim *sim, struct ring_client *c)
{
    for (uint32_t i = 0; i < RING_CALLS; i++) {
        struct ring_call *call = &c->calls[i];

        if (!call->used || call->opcode == SPW_OP_CANCEL || call->is_cancelled)
            continue;
        struct ring_call *cancel = ring_call_new(sim, c, SPW_OP_CANCEL);
        if (!cancel)
            return;
        struct spw_sqe sqe = ring_call_sqe(c, cancel, 0);
        sqe.results = 0;
        sqe.arg[0] = call->user_data;
        call->is_cancelled = true;
        ring_submit(sim, c, &sqe);
    }
}

static void lease_fill(struct sim *sim, struct ring_lease *l)
{
    const struct ring_object *o = &sim->rings->objects[l->object];
    struct stamp stamp = stamp_of(sim, o, l->piece, l->version);

    payload_fill(lease_memory(sim, l), &stamp, piece_bytes(o, l->piece));
    l->filled = true;
}

/* Leases that are to end: all pieces of a block are committed by one call. */
static void op_handles(struct sim *sim, struct ring_client *c, const struct ring_lease *first)
{
    uint8_t opcode = !first->writing                               ? SPW_OP_RELEASE
                     : first->version == 0 || sim_percent(sim, 10) ? SPW_OP_ABORT
                                                                   : SPW_OP_COMMIT;
    struct ring_call *call = ring_call_new(sim, c, opcode);
    struct spw_handle *handles;

    if (!call)
        return;
    call->timeout_ms = timeout_any(sim);
    handles = ring_call_items(c, call);
    for (uint32_t i = 0; i < RING_LEASES && call->n < RING_ITEMS; i++) {
        struct ring_lease *l = &c->leases[i];

        if (!l->used || l->busy || l->writing != first->writing || l->object != first->object)
            continue;
        struct ring_object *o = &sim->rings->objects[l->object];
        if (opcode == SPW_OP_RELEASE)
            lease_verify(sim, l);
        if (opcode == SPW_OP_COMMIT) {
            lease_fill(sim, l);
            o->top = MAX(o->top, l->version);
        }
        l->busy = true;
        handles[call->n] = (struct spw_handle){.lease = l->handle};
        call->lease[call->n++] = (uint16_t)i;
    }
    struct spw_sqe sqe = ring_call_sqe(c, call, 0);
    ring_submit(sim, c, &sqe);
}

static const struct ring_lease *ring_lease_any(struct sim *sim, const struct ring_client *c)
{
    uint32_t from = (uint32_t)sim_below(sim, RING_LEASES);

    for (uint32_t i = 0; i < RING_LEASES; i++) {
        const struct ring_lease *l = &c->leases[(from + i) % RING_LEASES];

        if (l->used && !l->busy)
            return l;
    }
    return NULL;
}

void ring_op(struct sim *sim, struct ring_client *c)
{
    static const uint8_t others[] = {SPW_OP_TOUCH, SPW_OP_PREFETCH, SPW_OP_PREFETCH, SPW_OP_ADVISE, SPW_OP_PIN};
    uint64_t dice = sim_below(sim, 100);
    const struct ring_lease *l = ring_lease_any(sim, c);

    if (l && dice < 40)
        op_handles(sim, c, l);
    else if (dice < 55)
        op_items(sim, c, SPW_OP_RESERVE);
    else if (dice < 75)
        op_items(sim, c, SPW_OP_ACQUIRE);
    else if (dice < 80)
        op_items(sim, c, SPW_OP_LOOKUP);
    else if (dice < 85)
        op_items(sim, c, others[sim_below(sim, ARRAY_LEN(others))]);
    else if (dice < 89)
        op_items(sim, c, SPW_OP_DELETE);
    else if (dice < 94)
        op_sync(sim, c);
    else if (dice < 97)
        op_plain(sim, c, SPW_OP_CANCEL);
    else
        op_plain(sim, c, dice < 98 ? SPW_OP_STAT : SPW_OP_NOP);
}

/* --- Answers: leases -------------------------------------------------------------------------------------------------- */

static struct ring_lease *lease_granted(struct sim *sim, struct ring_client *c, uint32_t object, uint32_t piece,
                                        const struct spw_result *result)
{
    struct ring_lease *l = ring_lease_new(sim, c);
    const struct ring_object *o = &sim->rings->objects[object];

    if (result->lease == 0 || result->length_bytes != piece_bytes(o, piece))
        sim_fail(sim, "a client's block %u piece %u: lease %lx on %lu bytes", object, piece,
                 (unsigned long)result->lease, (unsigned long)result->length_bytes);
    l->object = (uint16_t)object;
    l->piece = (uint8_t)piece;
    l->handle = result->lease;
    l->region = result->chunk;
    l->offset_bytes = result->offset_bytes;
    return l;
}

/* Not there, though it must be? */
static void object_missed(struct sim *sim, struct ring_object *o, const struct ring_call *call, int status)
{
    uint32_t number = number_of(sim, o);

    switch (status) {
    case -ENOENT:
    case -EINPROGRESS:
        /* Present before it was asked for, and nobody has begun to delete it since. */
        if (is_durable(o) && call->present[number] && o->present == call->present[number] &&
            o->deletes == call->deletes[number])
            sim_fail(sim, "a client's durable block %u version %u is gone: %s", number, o->present, strerror(-status));
        break;
    case -EBADMSG:
        if (!sim->flipped && (is_durable(o) || !sim->unclean))
            sim_fail(sim, "a client's block %u: EBADMSG, though no bit was flipped", number);
        break;
    case -EIO:
        if (!sim->errors_on)
            sim_fail(sim, "a client's block %u: EIO, though no request failed", number);
        break;
    default:
        break;
    }
}

static void answer_reserve(struct sim *sim, struct ring_client *c, const struct ring_call *call, bool looked)
{
    const struct spw_result *result = ring_call_results(c, call);

    for (uint32_t i = 0; i < call->n; i++) {
        struct ring_object *o = &sim->rings->objects[call->object[i]];
        struct ring_lease *got[SIM_PIECES_MAX];
        uint32_t n = 0;

        for (uint32_t p = 0; p < o->n_pieces && looked; p++, result++) {
            if (result->status == 0) {
                got[n] = lease_granted(sim, c, call->object[i], p, result);
                got[n]->asked_ns = call->asked_ns;
                got[n++]->writing = true;
            } else if (result->status == -ENOSPC && result->detail == SPW_LIMIT_NONE) {
                sim_fail(sim, "RESERVE: ENOSPC without the name of a limit");
            }
        }
        bool whole = n == o->n_pieces;
        if (whole)
            o->last++;
        for (uint32_t p = 0; p < n; p++)
            got[p]->version = whole ? o->last : 0;
        if (o->n_pieces > 1)
            o->building = (uint8_t)(o->building - 1 + n);
    }
}

static void answer_acquire(struct sim *sim, struct ring_client *c, const struct ring_call *call)
{
    const struct spw_result *result = ring_call_results(c, call);

    for (uint32_t i = 0; i < call->n; i++) {
        struct ring_object *o = &sim->rings->objects[call->object[i]];

        for (uint32_t p = 0; p < o->n_pieces; p++, result++) {
            if (result->status == 0)
                lease_look(sim, lease_granted(sim, c, call->object[i], p, result), call->floor[call->object[i]]);
            else
                object_missed(sim, o, call, result->status);
            sim->counts->ring_hits += result->status == 0;
        }
    }
}

static void lease_over(struct sim *sim, struct ring_lease *l)
{
    struct ring_object *o = &sim->rings->objects[l->object];

    if (l->writing && o->n_pieces > 1)
        o->building--;
    l->used = false;
}

static void answer_commit(struct sim *sim, struct ring_client *c, const struct ring_call *call,
                          const struct spw_result *results)
{
    struct ring_object *o = &sim->rings->objects[c->leases[call->lease[0]].object];
    uint32_t version = c->leases[call->lease[0]].version, n = 0;
    uint64_t over_ns = c->leases[call->lease[0]].asked_ns + sim->config.parts_deadline_ns;
    bool may_be_lost = !is_durable(o) || (o->n_pieces > 1 && sim->now_ns >= over_ns);

    for (uint32_t i = 0; i < call->n; i++) {
        int status = results[i].status;

        if (status != 0 && status != -ESTALE && status != -ENOSPC && status != -ECANCELED && status != -EFAULT)
            sim_fail(sim, "a client's block %u cannot be committed: %s", number_of(sim, o), strerror(-status));
        if (status == -ESTALE && !may_be_lost)
            sim_fail(sim, "a client's durable block %u: its reservation was lost", number_of(sim, o));
        n += status == 0;
    }
    sim->counts->ring_commits += n;
    if (n != o->n_pieces)
        return;
    o->floor = MAX(o->floor, version);
    if (o->deletes == call->deletes[number_of(sim, o)] && o->floor == version)
        o->present = version;
}

/* CANCEL and time: a request that fails has done nothing; else each result says whether its lease is still one. */
static void answer_handles(struct sim *sim, struct ring_client *c, const struct ring_call *call,
                           const struct spw_cqe *cqe)
{
    const struct spw_result *results = ring_call_results(c, call);

    if (cqe->status < 0 && cqe->status != -ECANCELED && cqe->status != -ENOSPC)
        sim_fail(sim, "operation %u on %u handles: %s", call->opcode, call->n, strerror(-cqe->status));
    if (call->opcode == SPW_OP_COMMIT && cqe->status == 0)
        answer_commit(sim, c, call, results);
    for (uint32_t i = 0; i < call->n; i++) {
        struct ring_lease *l = &c->leases[call->lease[i]];

        l->busy = false;
        if (cqe->status < 0)
            continue;
        if (call->opcode != SPW_OP_COMMIT && results[i].status != 0 && results[i].status != -ECANCELED)
            sim_fail(sim, "operation %u on the lease of block %u: %s", call->opcode, l->object,
                     strerror(-results[i].status));
        if (results[i].lease == 0)
            lease_over(sim, l);
        else if (results[i].status == 0 || results[i].lease != l->handle)
            sim_fail(sim, "operation %u on the lease of block %u: %d, and lease %lx", call->opcode, l->object,
                     results[i].status, (unsigned long)results[i].lease);
    }
}

/* --- Answers: the rest ------------------------------------------------------------------------------------------------ */

static void answer_lookup(struct sim *sim, struct ring_client *c, const struct ring_call *call,
                          const struct spw_cqe *cqe)
{
    const struct spw_result *results = ring_call_results(c, call);
    uint32_t prefix = 0;

    while (prefix < call->n && results[prefix].status == 0)
        prefix++;
    if (cqe->value != prefix)
        sim_fail(sim, "LOOKUP: a prefix of %lu, and %u results", (unsigned long)cqe->value, prefix);
    for (uint32_t i = 0; i < call->n; i++) {
        struct ring_object *o = &sim->rings->objects[call->object[i]];

        if (results[i].status < 0)
            object_missed(sim, o, call, results[i].status);
        else if (results[i].length_bytes != o->bytes)
            sim_fail(sim, "LOOKUP: a client's block %u has %lu bytes", call->object[i],
                     (unsigned long)results[i].length_bytes);
    }
}

static void answer_delete(struct sim *sim, struct ring_client *c, const struct ring_call *call)
{
    const struct spw_result *results = ring_call_results(c, call);

    for (uint32_t i = 0; i < call->n; i++) {
        struct ring_object *o = &sim->rings->objects[call->object[i]];

        /* Whether it was there or not: what was known of before is no more. */
        if (results[i].status == 0 || results[i].status == -ENOENT)
            o->floor = MAX(o->floor, MIN(call->floor[call->object[i]], call->last[call->object[i]]) + 1);
        sim->counts->ring_deletes += results[i].status == 0;
    }
}

static void object_synced(struct ring_object *o, const struct ring_call *call, uint32_t number)
{
    o->kept = MAX(o->kept, call->floor[number]);
    if (call->present[number] && o->present == call->present[number] && o->deletes == call->deletes[number])
        o->must = o->present;
}

static void answer_sync(struct sim *sim, const struct ring_call *call, const struct spw_cqe *cqe)
{
    if (cqe->status < 0)
        return;
    sim->counts->ring_syncs++;
    for (uint32_t i = 0; i < RING_OBJECTS && call->all_space; i++)
        if (sim->rings->objects[i].space == call->object[0])
            object_synced(&sim->rings->objects[i], call, i);
    for (uint32_t i = 0; i < call->n; i++)
        object_synced(&sim->rings->objects[call->object[i]], call, call->object[i]);
}

/* May the whole request fail with this? */
static void check_status(struct sim *sim, const struct ring_call *call, int status)
{
    switch (status) {
    case 0:
    case -ECANCELED:
    case -ENOSPC:
    case -ETIMEDOUT:
    case -E2BIG:
        return;
    case -ENOENT:
    case -EALREADY:
        if (call->opcode == SPW_OP_CANCEL)
            return;
        break;
    default:
        break;
    }
    /* All or nothing, and SYNC: what is said of one item. */
    if (call->opcode == SPW_OP_RESERVE || call->opcode == SPW_OP_ACQUIRE || call->opcode == SPW_OP_SYNC)
        return;
    sim_fail(sim, "operation %u: %s", call->opcode, strerror(-status));
}

static void call_log(struct sim *sim, const struct ring_client *c, const struct ring_call *call, int status)
{
    bool handles = call->opcode == SPW_OP_COMMIT || call->opcode == SPW_OP_ABORT || call->opcode == SPW_OP_RELEASE;
    const struct spw_result *results = ring_call_results(c, call);

    sim_log(sim, "client %u: operation %u: %d", (uint32_t)(c - sim->rings->clients), call->opcode, status);
    for (uint32_t i = 0; i < call->n && sim->verbose; i++) {
        const struct ring_lease *l = handles ? &c->leases[call->lease[i]] : NULL;
        uint32_t number = l ? l->object : call->object[i];
        const struct ring_object *o = &sim->rings->objects[number];
        uint32_t n = !handles && (call->opcode == SPW_OP_RESERVE || call->opcode == SPW_OP_ACQUIRE) ? o->n_pieces : 1;

        for (uint32_t p = 0; p < n && status == 0; p++, results++)
            sim_log(sim, "  its block %u piece %u version %u: %d", number, l ? l->piece : p, l ? l->version : 0,
                    results->status);
    }
}

void ring_answer(struct sim *sim, struct ring_client *c, struct ring_call *call, const struct spw_cqe *cqe)
{
    call_log(sim, c, call, cqe->status);
    check_status(sim, call, cqe->status);
    sim->counts->ring_calls++;
    switch (call->opcode) {
    case SPW_OP_RESERVE:
        answer_reserve(sim, c, call, cqe->status == 0);
        break;
    case SPW_OP_ACQUIRE:
        if (cqe->status == 0)
            answer_acquire(sim, c, call);
        break;
    case SPW_OP_COMMIT:
    case SPW_OP_ABORT:
    case SPW_OP_RELEASE:
        answer_handles(sim, c, call, cqe);
        break;
    case SPW_OP_LOOKUP:
        if (cqe->status == 0)
            answer_lookup(sim, c, call, cqe);
        break;
    case SPW_OP_DELETE:
        for (uint32_t i = 0; i < call->n; i++)
            sim->rings->objects[call->object[i]].deleting--;
        if (cqe->status == 0)
            answer_delete(sim, c, call);
        break;
    case SPW_OP_SYNC:
        answer_sync(sim, call, cqe);
        break;
    default:
        break;
    }
}

/* --- Ends ------------------------------------------------------------------------------------------------------------- */

void ring_client_died(struct sim *sim, struct ring_client *c)
{
    for (uint32_t i = 0; i < RING_CALLS && c != &sim->rings->clients[RING_HOSTILE]; i++) {
        const struct ring_call *call = &c->calls[i];

        for (uint32_t n = 0; n < call->n && call->used; n++) {
            struct ring_object *o = &sim->rings->objects[call->object[n]];

            o->building -= call->opcode == SPW_OP_RESERVE && o->n_pieces > 1;
            o->deleting -= call->opcode == SPW_OP_DELETE;
        }
    }
    for (uint32_t i = 0; i < RING_LEASES; i++)
        if (c->leases[i].used)
            lease_over(sim, &c->leases[i]);
    memset(c->calls, 0, sizeof(c->calls));
}

void ring_objects_restarted(struct sim *sim, bool clean)
{
    for (uint32_t i = 0; i < RING_OBJECTS; i++) {
        struct ring_object *o = &sim->rings->objects[i];

        if (clean) /* what no device had room for is gone, and only a SYNC forbids that; but nothing older is there */
            o->kept = o->floor;
        o->floor = is_durable(o) || clean ? o->kept : 0;
        o->present = o->must;
    }
}
