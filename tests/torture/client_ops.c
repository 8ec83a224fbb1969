/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a client does: puts, lists of puts, deletions, SYNCs and reads of blocks; ranges of tensors, and SYNCs of a set.
 * Each change is in the journal before the call that makes it, and gets its outcome after it. A read of its own things
 * must find what was acknowledged; one of somebody else's something that was there while it went on.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "tests/torture/torture.h"

#define WAIT_MS 3000
#define WRITE_TRIES 40
#define LIST_MAX 6
#define SCRATCH_BYTES (96 * 1024)
#define SCRATCH_PERCENT 8

/* No room for as long as it would wait: nothing has happened. docs/reliability.md, "Not covered". */
static bool found_no_room(struct t_worker *w, int status)
{
    bool is_full = status == -ENOSPC || status == -ETIMEDOUT;

    w->me->n_full += is_full;
    return is_full;
}

static spw_space *blocks_of(const struct t_worker *w, enum t_kind kind)
{
    return w->spaces.blocks[kind];
}

static uint32_t new_version(struct t_key *key)
{
    uint64_t live = load_acquire(&key->live);

    key->next++;
    store_release(&key->live, live_pack(live_acked(live), live_present(live), key->next));
    return key->next;
}

static void now_is(struct t_key *key, bool present, uint32_t version)
{
    uint64_t live = load_acquire(&key->live);

    store_release(&key->live, live_pack(present ? version : live_acked(live), present, live_begun(live)));
}

/* --- Blocks ------------------------------------------------------------------------------------------------------------ */

/* What an element's status of a put means. */
static void put_ended(struct t_worker *w, struct t_event *e, int status)
{
    struct t_key *key = &w->me->keys[e->kind][e->key];

    if (is_gone(status))
        client_gone(w, status);
    if (status == -EEXIST && e->kind != T_CACHE)
        torture_fail("client %u: key %u of kind %u is there, though its end was acknowledged", w->number, e->key,
                     e->kind);
    if (status != 0 && status != -EEXIST && !found_no_room(w, status))
        client_must(w, status, "put");
    oracle_end(w->oracle, e, status == 0 ? T_DONE : T_FAILED);
    if (status == 0)
        now_is(key, true, e->version);
}

static void put_keys(struct t_worker *w, enum t_kind kind, const uint32_t *keys, uint32_t n)
{
    struct t_event *events[LIST_MAX];
    struct spw_key names[LIST_MAX];
    struct spw_iovec from[LIST_MAX];
    int32_t status[LIST_MAX];
    uint32_t at = 0, n_put = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t version = new_version(&w->me->keys[kind][keys[i]]);
        uint32_t size = payload_bytes(w->number, kind, keys[i], version);

        if (at + size > T_PAYLOAD_MAX)
            break;
        payload_fill(w->bytes + at, size, payload_of_key(w->number, kind, keys[i]), version);
        names[i] = key_of(w->number, keys[i]);
        from[i] = (struct spw_iovec){w->bytes + at, size};
        at += (uint32_t)round_up(size, 64);
        events[i] = oracle_begin(
            w->oracle, w->me,
            &(struct t_event){.op = T_PUT, .kind = (uint8_t)kind, .key = (uint16_t)keys[i], .version = version});
        n_put++;
    }
    if (n_put == 0)
        return;
    int r = spw_put(blocks_of(w, kind), names, from, n_put, random_percent(&w->random, 30) ? SPW_CHAIN : 0, WAIT_MS,
                    status);

    if (is_gone(r))
        client_gone(w, r);
    for (uint32_t i = 0; i < n_put; i++)
        put_ended(w, events[i], r < 0 ? r : status[i]);
}

/* Keys that are not there, as far as this client was told. */
static uint32_t absent_keys(struct t_worker *w, enum t_kind kind, uint32_t *ret_keys, uint32_t max)
{
    uint32_t n = 0, at = (uint32_t)random_below(&w->random, T_KEYS);

    for (uint32_t i = 0; i < T_KEYS && n < max; i++, at = (at + 1) % T_KEYS)
        if (!live_present(load_acquire(&w->me->keys[kind][at].live)))
            ret_keys[n++] = at;
    return n;
}

static void do_put(struct t_worker *w, enum t_kind kind)
{
    uint32_t keys[LIST_MAX],
        wanted = random_percent(&w->random, 60) ? 1 : 1 + (uint32_t)random_below(&w->random, LIST_MAX);
    uint32_t n = absent_keys(w, kind, keys, wanted);

    if (n > 0)
        put_keys(w, kind, keys, n);
}

/* Room, and given back: what is written there must never be seen. */
static void do_abort(struct t_worker *w, enum t_kind kind)
{
    struct spw_view view;
    uint32_t key;

    if (absent_keys(w, kind, &key, 1) == 0)
        return;
    uint32_t version = new_version(&w->me->keys[kind][key]);
    uint64_t size = payload_bytes(w->number, kind, key, version);
    struct spw_key name = key_of(w->number, key);

    if (size > MIB)
        return;
    int r = spw_reserve(blocks_of(w, kind), &name, &size, 1, 0, WAIT_MS, &view);

    if (r == 0 && view.status == 0) {
        payload_fill(view.data, (uint32_t)size, payload_of_key(w->number, kind, key), version);
        r = spw_abort(blocks_of(w, kind), &view, 1);
    }
    if (!found_no_room(w, r))
        client_must(w, r, "reserve and abort");
}

static void do_delete(struct t_worker *w, enum t_kind kind)
{
    uint32_t key = (uint32_t)random_below(&w->random, T_KEYS);
    struct t_key *k = &w->me->keys[kind][key];
    struct spw_key name = key_of(w->number, key);
    int32_t status = 0;

    if (!live_present(load_acquire(&k->live)))
        return;
    (void)new_version(k);
    struct t_event *e =
        oracle_begin(w->oracle, w->me, &(struct t_event){.op = T_DELETE, .kind = (uint8_t)kind, .key = (uint16_t)key});
    int r = spw_delete(blocks_of(w, kind), &name, 1, &status);

    if (r == 0 && status == -ENOENT) {
        if (kind != T_CACHE)
            torture_fail("client %u: key %u of kind %u is lost while the daemon lives", w->number, key, kind);
        status = 0;
    }
    client_must(w, r < 0 ? r : status, "delete");
    oracle_end(w->oracle, e, T_DONE);
    now_is(k, false, 0);
}

/* Where a device is full for the moment it has promised nothing, but may have done it all the same. */
static void sync_ended(struct t_worker *w, struct t_event *e, int status)
{
    if (found_no_room(w, status))
        return;
    client_must(w, status, "sync");
    oracle_end(w->oracle, e, T_DONE);
}

static void do_sync(struct t_worker *w, enum t_kind kind)
{
    uint32_t key = random_percent(&w->random, 50) ? T_KEYS : (uint32_t)random_below(&w->random, T_KEYS);
    struct spw_key name = key_of(w->number, key);

    if (key < T_KEYS && !live_present(load_acquire(&w->me->keys[kind][key].live)))
        return;
    struct t_event *e = oracle_begin(w->oracle, w->me,
                                     &(struct t_event){.op = T_SYNC_KEYS, .kind = (uint8_t)kind, .key = (uint16_t)key});
    int r = spw_sync(blocks_of(w, kind), key < T_KEYS ? &name : NULL, key < T_KEYS ? 1 : 0, WAIT_MS);

    sync_ended(w, e, r);
}

/* Is that one of those that were there between the two looks? */
static bool read_fits(uint64_t before, uint64_t after, enum t_kind kind, bool mine, uint32_t version)
{
    if (mine)
        return version == 0 ? kind == T_CACHE || !live_present(before)
                            : live_present(before) && version == live_acked(before);
    if (version == 0)
        return kind == T_CACHE || !live_present(before) || live_begun(after) != live_acked(before);
    /* Aborted versions are among those that fit here; what a check finds is looked at more closely. */
    return version >= live_acked(before) && version <= live_begun(after) &&
           (live_present(before) || version > live_acked(before));
}

static void do_get(struct t_worker *w, enum t_kind kind)
{
    uint32_t owner = random_percent(&w->random, 60) ? w->number : (uint32_t)random_below(&w->random, T_CLIENTS);
    uint32_t key = (uint32_t)random_below(&w->random, T_KEYS), version = 0;
    const struct t_key *k = &w->oracle->clients[owner].keys[kind][key];
    struct spw_key name = key_of(owner, key);
    struct spw_iovec to = {w->bytes, T_PAYLOAD_MAX};
    int32_t status = 0;
    uint64_t before = load_acquire(&k->live);
    int r = spw_get(blocks_of(w, kind), &name, &to, 1, 0, WAIT_MS, &status);

    if (is_gone(r) || (is_gone(status) && status != -ENOENT))
        client_gone(w, r < 0 ? r : status);
    status = r < 0 ? r : status;
    if (status == -EINPROGRESS || found_no_room(w, status))
        return;
    if (status == 0)
        version = payload_version(w->bytes, (uint32_t)to.size_bytes, payload_of_key(owner, kind, key));
    else if (status != -ENOENT && !(status == -EBADMSG && kind == T_CACHE))
        client_must(w, status, "get");
    uint64_t after = load_acquire(&k->live);

    if (status == 0 &&
        (version == UINT32_MAX || version == 0 || to.size_bytes != payload_bytes(owner, kind, key, version)))
        torture_fail("client %u: key %u of kind %u of client %u: %llu wrong bytes", w->number, key, kind, owner,
                     (unsigned long long)to.size_bytes);
    if (!read_fits(before, after, kind, owner == w->number, version))
        torture_fail(
            "client %u: key %u of kind %u of client %u reads as version %u; %u (%s) was acknowledged, %u begun",
            w->number, key, kind, owner, version, live_acked(before), live_present(before) ? "there" : "deleted",
            live_begun(after));
    if (version == 0 && owner == w->number && kind == T_CACHE)
        now_is(&w->me->keys[kind][key], false, 0); /* evicted: it can be put again */
}

static void do_prefetch(struct t_worker *w, enum t_kind kind)
{
    struct spw_key name = key_of(w->number, (uint32_t)random_below(&w->random, T_KEYS));
    int32_t status;
    struct spw_hit hit;

    int r = spw_prefetch(blocks_of(w, kind), &name, 1, 0, WAIT_MS, &status);

    if (!found_no_room(w, r))
        client_must(w, r, "prefetch");
    client_must(w, (int)spw_lookup(blocks_of(w, kind), &name, 1, 0, &hit), "lookup");
}

/* --- Tensors ----------------------------------------------------------------------------------------------------------- */

static void set_open(struct t_worker *w, enum t_group g)
{
    for (uint32_t i = 0; i < T_TENSORS && !w->set_known[g]; i++) {
        struct spw_key name = tensor_of(i);

        client_must(
            w, spw_tensor_open(w->spaces.tensors[w->number][g], &name, (uint64_t)tensor_stripes(i) * T_STRIPE_BYTES),
            "tensor");
    }
    w->set_known[g] = true;
}

/* Within one piece, so that it is written as a whole. False: no room. */
static bool write_stripes(struct t_worker *w, enum t_group g, uint32_t tensor, uint32_t first, uint32_t count)
{
    struct spw_key name = tensor_of(tensor);
    uint32_t version = ++w->me->sets[g].next;

    set_open(w, g);
    for (uint32_t i = 0; i < count; i++)
        payload_fill(w->bytes + (size_t)i * T_STRIPE_BYTES, T_STRIPE_BYTES,
                     payload_of_stripe(w->number, g, tensor_first_stripe(tensor) + first + i), version);
    struct t_event *e = oracle_begin(w->oracle, w->me,
                                     &(struct t_event){.op = T_WRITE,
                                                       .kind = (uint8_t)g,
                                                       .stripe = tensor_first_stripe(tensor) + first,
                                                       .n_stripes = (uint16_t)count,
                                                       .version = version});
    int r = spw_put_range(w->spaces.tensors[w->number][g], &name, (uint64_t)first * T_STRIPE_BYTES, w->bytes,
                          (uint64_t)count * T_STRIPE_BYTES, WAIT_MS);

    if (found_no_room(w, r)) {
        oracle_end(w->oracle, e, T_FAILED);
        return false;
    }
    client_must(w, r, "write");
    oracle_end(w->oracle, e, T_DONE);
    for (uint32_t i = 0; i < count; i++)
        w->set_version[g][tensor_first_stripe(tensor) + first + i] = version;
    return true;
}

static void do_write(struct t_worker *w, enum t_group g)
{
    uint32_t tensor = (uint32_t)random_below(&w->random, T_TENSORS), n = tensor_stripes(tensor);
    uint32_t first = (uint32_t)random_below(&w->random, n);

    uint32_t end = first < T_PIECE_STRIPES ? MIN(n, (uint32_t)T_PIECE_STRIPES) : n;

    (void)write_stripes(w, g, tensor, first, 1 + (uint32_t)random_below(&w->random, MIN(end - first, 40U)));
}

static bool do_sync_set(struct t_worker *w, enum t_group g)
{
    struct spw_key names[T_TENSORS];
    bool whole = random_percent(&w->random, 40);

    set_open(w, g);
    for (uint32_t i = 0; i < T_TENSORS; i++)
        names[i] = tensor_of(i);
    struct t_event *e = oracle_begin(w->oracle, w->me, &(struct t_event){.op = T_SYNC_SET, .kind = (uint8_t)g});
    int r = spw_sync(w->spaces.tensors[w->number][g], whole ? NULL : names, whole ? 0 : T_TENSORS, WAIT_MS);

    sync_ended(w, e, r);
    return r == 0;
}

static void do_read(struct t_worker *w, enum t_group g)
{
    uint32_t tensor = (uint32_t)random_below(&w->random, T_TENSORS), n = tensor_stripes(tensor);
    uint32_t first = (uint32_t)random_below(&w->random, n);
    uint32_t count = 1 + (uint32_t)random_below(&w->random, MIN(n - first, 16U));
    struct spw_key name = tensor_of(tensor);

    set_open(w, g);
    int r = spw_get_range(w->spaces.tensors[w->number][g], &name, (uint64_t)first * T_STRIPE_BYTES, w->bytes,
                          (uint64_t)count * T_STRIPE_BYTES, WAIT_MS);

    if (found_no_room(w, r))
        return;
    client_must(w, r, "read");
    for (uint32_t i = 0; i < count; i++) {
        uint32_t stripe = tensor_first_stripe(tensor) + first + i;
        uint32_t found = payload_version(w->bytes + (size_t)i * T_STRIPE_BYTES, T_STRIPE_BYTES,
                                         payload_of_stripe(w->number, g, stripe));

        if (found != w->set_version[g][stripe])
            torture_fail("client %u: stripe %u of set %u reads as version %u, not %u", w->number, stripe, g, found,
                         w->set_version[g][stripe]);
    }
}

/* A writer that changes its mind, right after a SYNC: then the device has what it discards the change for. */
static void do_discard(struct t_worker *w, enum t_group g)
{
    struct spw_key name = tensor_of(1);
    struct spw_view view;

    if (!do_sync_set(w, g))
        return;
    long n =
        spw_acquire_range(w->spaces.tensors[w->number][g], &name, 0, 2 * T_STRIPE_BYTES, SPW_WRITE, WAIT_MS, &view, 1);

    if (found_no_room(w, n < 0 ? (int)n : view.status))
        return;
    client_must(w, n < 0 ? (int)n : view.status, "acquire for writing");
    if (random_percent(&w->random, 70)) {
        memset(view.data, 0xa5, 2 * T_STRIPE_BYTES);
        client_must(w, spw_release(w->spaces.tensors[w->number][g], &view, 1, SPW_DISCARD), "discard");
    } else {
        client_must(w, spw_release(w->spaces.tensors[w->number][g], &view, 1, 0), "release");
    }
    /* Where somebody else holds the piece at that moment (a SYNC of who died a moment ago, say) it is torn instead. */
    int r = spw_get_range(w->spaces.tensors[w->number][g], &name, 0, w->bytes, T_STRIPE_BYTES, WAIT_MS);

    for (int i = 0; r == -EBADMSG && i < WRITE_TRIES; i++)
        if (write_stripes(w, g, 1, 0, tensor_stripes(1)))
            return;
    if (!found_no_room(w, r))
        client_must(w, r, "read");
}

/* --- Scratch ----------------------------------------------------------------------------------------------------------- */

/* Put, read or deleted: it is never evicted, so as long as its owner lives it is there. A key is a process's own. */
static void do_scratch(struct t_worker *w)
{
    uint32_t at = (uint32_t)random_below(&w->random, T_SCRATCH_KEYS), *version = &w->scratch[at];
    uint64_t identity = payload_of_scratch(w->number, at);
    struct spw_key name = key_of((uint32_t)getpid(), at);
    struct spw_iovec memory = {w->bytes, SCRATCH_BYTES};
    int32_t status = 0;
    int r;

    if (*version == 0) {
        uint32_t fresh = 1 + (uint32_t)random_below(&w->random, UINT32_MAX - 1);

        payload_fill(w->bytes, SCRATCH_BYTES, identity, fresh);
        r = spw_put(w->spaces.scratch, &name, &memory, 1, 0, WAIT_MS, &status);
        if (found_no_room(w, r < 0 ? r : status))
            return;
        client_must(w, r < 0 ? r : status, "put of scratch");
        *version = fresh;
    } else if (random_percent(&w->random, 30)) {
        r = spw_delete(w->spaces.scratch, &name, 1, &status);
        client_must(w, r < 0 ? r : status, "delete of scratch");
        *version = 0;
    } else {
        r = spw_get(w->spaces.scratch, &name, &memory, 1, 0, WAIT_MS, &status);
        if (found_no_room(w, r < 0 ? r : status))
            return;
        client_must(w, r < 0 ? r : status, "get of scratch");
        if (memory.size_bytes != SCRATCH_BYTES || payload_version(w->bytes, SCRATCH_BYTES, identity) != *version)
            torture_fail("client %u: scratch key %u: wrong bytes", w->number, at);
    }
}

/* --- All --------------------------------------------------------------------------------------------------------------- */

void client_do(struct t_worker *w)
{
    static const enum t_kind kinds[] = {T_DURABLE, T_DURABLE, T_DURABLE, T_CACHE, T_CACHE, T_CACHE, T_CACHE, T_SHARED};
    enum t_kind kind = kinds[random_below(&w->random, ARRAY_LEN(kinds))];
    enum t_group group = random_percent(&w->random, 70) ? T_GROUP_DEFAULT : T_GROUP_SHARED;
    uint64_t x = random_below(&w->random, 100);

    if (w->place->hot && random_percent(&w->random, SCRATCH_PERCENT)) {
        do_scratch(w);
        return;
    }
    if (x < 34)
        do_put(w, kind);
    else if (x < 48)
        do_delete(w, kind);
    else if (x < 54)
        do_sync(w, kind == T_CACHE ? T_DURABLE : kind);
    else if (x < 72)
        do_get(w, kind);
    else if (x < 75)
        do_abort(w, kind);
    else if (x < 77)
        do_prefetch(w, kind);
    else if (x < 88)
        do_write(w, group);
    else if (x < 93)
        (void)do_sync_set(w, group);
    else if (x < 98)
        do_read(w, group);
    else
        do_discard(w, group);
}
