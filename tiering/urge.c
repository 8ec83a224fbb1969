/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Priority that is inherited: a transfer was begun ahead of need, and now a client waits for it. Then it must not stand
 * behind others of its kind at the device, or the client waits for what nobody needs. Engine thread only.
 *
 * It happens in three places: a wait attaches to a load or a spill that is under way (move_attach), a SYNC finds its
 * piece being written, and somebody wants room that only spills under way will give.
 */
#include "tiering/core.h"

void move_urge(struct move *m)
{
    switch ((enum move_io)m->io) {
    case MOVE_IO_NONE:
        break;
    case MOVE_IO_GET:
        store_get_urge(&m->get, move_user(m));
        break;
    case MOVE_IO_PUT:
        store_put_urge(&m->put);
        break;
    }
}

void spills_urge(struct tpool *p, uint64_t sectors)
{
    uint64_t coming = 0;

    list_for_each (l, &p->spills) {
        struct move *m = list_entry(l, struct move, link);

        if (coming >= sectors)
            break;
        move_urge(m);
        coming += sectors_of(m->put.size_bytes);
    }
}
