/* SPDX-License-Identifier: Apache-2.0 */
/* See owner.h: reading back and comparing. */
#include <errno.h>

#include "tests/unit/support/owner.h"

/* --- Checking --- */

static void get_done(struct store_get *get, int status)
{
    struct owner_slot *slot = container_of(get, struct owner_slot, get);
    struct owner *o = slot->owner;

    o->last_put_status = status;
    if (status == 0 &&
        !owner_bytes_same(simdisk_memory(o->disk, o->region) + slot->buf.off, get->len_bytes, slot->id, slot->version))
        o->n_wrong++;
    o->n_badmsg += status == -EBADMSG;
    owner_slot_give(slot);
}

int owner_check(struct owner *o, uint32_t id)
{
    struct owner_object *x = &o->objects[id];
    struct owner_slot *slot = owner_slot_take(o);

    if (!slot)
        return -EBUSY;
    slot->id = id;
    slot->version = x->version;
    slot->get =
        (struct store_get){.entry = x->entry, .len_bytes = x->entry.size_bytes, .buf = slot->buf, .done = get_done};
    store_get(o->store, &slot->get);
    while (slot->busy && slot->get.done == get_done)
        if (!simdisk_step(o->disk))
            owner_turn(o);
    return o->last_put_status;
}

void owner_check_all(struct owner *o, bool after_crash)
{
    for (uint32_t i = 0; i < o->n_ids; i++) {
        struct owner_object *x = &o->objects[i];
        if (!x->version)
            continue;
        bool promised = !after_crash || !x->history[0].unpromised;
        int r = owner_check(o, i);
        if (r < 0 && promised)
            o->n_lost++;
        if (r < 0 && x->version) {
            x->version = 0;
            owner_history_add(x, 0);
            store_drop(o->store, &x->entry);
        }
        if (after_crash && x->version)
            x->history[0].unpromised = false;
    }
}

/* --- Raw access for tests of sizes --- */

static void raw_put_done(struct store_put *put, int status)
{
    struct owner_slot *slot = container_of(put, struct owner_slot, put);

    slot->owner->last_put_status = status;
    owner_slot_give(slot);
}

static void raw_get_done(struct store_get *get, int status)
{
    struct owner_slot *slot = container_of(get, struct owner_slot, get);

    slot->owner->last_put_status = status;
    owner_slot_give(slot);
}

int owner_raw_put(struct owner *o, struct owner_slot *slot)
{
    slot->put.done = raw_put_done;
    slot->busy = true;
    o->n_busy++;
    int r = store_put(o->store, &slot->put);
    if (r < 0) {
        owner_slot_give(slot);
        return r;
    }
    while (slot->busy)
        owner_turn(o);
    return o->last_put_status;
}

int owner_raw_get(struct owner *o, struct owner_slot *slot)
{
    slot->get.done = raw_get_done;
    slot->busy = true;
    o->n_busy++;
    store_get(o->store, &slot->get);
    while (slot->busy)
        owner_turn(o);
    return o->last_put_status;
}
