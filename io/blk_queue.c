/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who is next at a device. The engine's thread only; nothing is allocated, and a request costs a step down a heap of
 * the lanes that have something waiting.
 *
 * Between classes: urgent first. But background requests are owed a share: after urgent ones moved URGENT_RUN_MAX times
 * the bytes of the first that waits, that one goes. A write-back that never comes ends in a full memory tier. What a
 * device has can no longer be overtaken, so it never has more than BACKGROUND_BYTES_MAX of background requests (or one,
 * if that is larger), and while there are urgent ones as well no more than BACKGROUND_BESIDE_BYTES: little for a read to
 * stand behind.
 *
 * Writes of any class: as many as keep a device busy, WRITE_BYTES_MAX, and no more. The more a device has, the larger the
 * bunches in which it ends them, and who waits for memory that they free waits from bunch to bunch. Once there are so many,
 * none goes until WRITE_REFILL_BYTES have ended: then several go together, and those that lie one behind the other become
 * one request in the kernel. The daemon's own pass, the log's next step first of all: its owners have few at a time.
 *
 * Between reads and writes: who waits for a read waits for all of it, and a device that has many writes serves it late.
 * So from the moment that an urgent read comes, the device has at most WRITE_BESIDE_BYTES of writes at a time, urgent
 * ones too, and large ones go in parts of DEVICE_PART_BYTES; reads pass those that wait. Reads come in quick succession, with
 * nothing in between: the limit goes away gradually, by a part of each write that ends while no such read is about.
 * Writes that fall behind what their weights say go all the same. Reads above READ_SHORT_BYTES_MAX do not limit writes, nor
 * the background: they take as long themselves, and who streams such pieces through a memory waits for its own writes, since
 * each read needs the room of a piece that is written.
 *
 * Between the lanes of a class: start-time fair queueing. A lane's tag grows by the sectors that it was served, divided
 * by its weight; the lane with the smallest tag is next. So lanes that always have something waiting share by weight to
 * within one request each, without the bursts that whole quanta of a round robin make when weights are 1 to 1000. A
 * read counts as a part of its bytes, so beside writers of the same weight a reader gets READ_FAVOUR times as much. A
 * lane that was idle joins at the tag of what is being served: it neither saves up a claim nor loses its place. Who has
 * a fixed number of requests outstanding has nothing waiting as long as the device takes them all, and then weights mean
 * nothing: so when several pools are at it, the device gets SHARED_BYTES of their class at a time, which keeps it busy,
 * and the rest waits here. One pool alone is not held up.
 *
 * Between the users of a lane, reads that they wait for: the same once more, all of the same weight. Who asks for one thing
 * after the other is gone from here most of the time, and comes back to a device that has all that others have queued: so
 * several are at it from the moment that two were until SHARED_LASTS_BYTES have been moved without a second one.
 *
 * Invariants: a lane is in a heap of its class exactly if it has requests of that way; a request's `queued` is set
 * exactly while it is in a lane; a bit of `waiting` is set exactly if that user's reads wait.
 */
#include "io/blk_queue.h"

static void class_init(struct blk_class *c)
{
    c->served = 0;
    c->n_busy = c->n_users = 0;
    c->shared_bytes = 0;
    c->in_flight = 0;
    c->in_flight_bytes = 0;
    c->heaps[BLK_READS].n = c->heaps[BLK_WRITES].n = 0;
    for (uint32_t i = 0; i < IO_LANES; i++) {
        c->lanes[i] = (struct blk_lane){.places = {BLK_LANE_IDLE, BLK_LANE_IDLE}};
        list_init(&c->lanes[i].blks[BLK_READS]);
        list_init(&c->lanes[i].blks[BLK_WRITES]);
    }
}

void blk_queue_init(struct blk_queue *q)
{
    q->n = 0;
    q->owed = 0;
    q->n_awaited = 0;
    q->n_pressed = 0;
    q->n_writes = 0;
    q->write_bytes = 0;
    q->write_bytes_max = WRITE_BYTES_MAX;
    q->is_full = false;
    class_init(&q->urgent);
    class_init(&q->background);
    for (uint32_t i = 0; i < IO_LANES; i++) {
        q->urgent.lanes[i].users = q->users[i];
        for (uint32_t k = 0; k < IO_USERS; k++) {
            q->users[i][k] = (struct blk_user){0};
            list_init(&q->users[i][k].blks);
        }
    }
}

static uint64_t sectors_of_bytes(uint32_t bytes)
{
    return MAX(bytes / (uint32_t)SECTOR_BYTES, 1U); /* a flush moves nothing, and is not free */
}

static struct blk_class *class_of(struct blk_queue *q, const struct io_blk *blk)
{
    return blk->urgent ? &q->urgent : &q->background;
}

static enum blk_way way_of(const struct io_blk *blk)
{
    return blk->op == IO_BLK_READ ? BLK_READS : BLK_WRITES;
}

static bool is_awaited(const struct io_blk *blk)
{
    return blk->urgent && blk->op == IO_BLK_READ;
}

/* A longer one minds writes less than who waits for their memory does, which may be its own owner. */
static bool is_long_read(const struct io_blk *blk)
{
    return is_awaited(blk) && blk->len_bytes > READ_SHORT_BYTES_MAX;
}

/* +1 or -1 of what is about: it waits or is in flight. */
static void count_about(struct blk_queue *q, const struct io_blk *blk, uint32_t one)
{
    if (!blk->urgent || is_long_read(blk))
        return;
    q->n_awaited += is_awaited(blk) ? one : 0;
    q->n_pressed += blk->lane == IO_LANE_OWN ? 0 : one;
}

/* --- The heaps of lanes ------------------------------------------------------------------------------------------ */

static bool lane_before(const struct blk_class *c, uint16_t a, uint16_t b)
{
    return c->lanes[a].tag != c->lanes[b].tag ? c->lanes[a].tag < c->lanes[b].tag : a < b;
}

static void heap_set(struct blk_class *c, enum blk_way way, uint32_t place, uint16_t lane)
{
    c->heaps[way].lanes[place] = lane;
    c->lanes[lane].places[way] = place;
}

static void heap_up(struct blk_class *c, enum blk_way way, uint32_t place)
{
    const uint16_t *lanes = c->heaps[way].lanes;
    uint16_t lane = lanes[place];

    while (place > 0) {
        uint32_t parent = (place - 1) / 2;

        if (!lane_before(c, lane, lanes[parent]))
            break;
        heap_set(c, way, place, lanes[parent]);
        place = parent;
    }
    heap_set(c, way, place, lane);
}

static void heap_down(struct blk_class *c, enum blk_way way, uint32_t place)
{
    const struct blk_heap *h = &c->heaps[way];
    uint16_t lane = h->lanes[place];

    for (uint32_t child; (child = 2 * place + 1) < h->n; place = child) {
        if (child + 1 < h->n && lane_before(c, h->lanes[child + 1], h->lanes[child]))
            child++;
        if (!lane_before(c, h->lanes[child], lane))
            break;
        heap_set(c, way, place, h->lanes[child]);
    }
    heap_set(c, way, place, lane);
}

static void heap_add(struct blk_class *c, enum blk_way way, uint16_t lane)
{
    heap_set(c, way, c->heaps[way].n++, lane);
    heap_up(c, way, c->lanes[lane].places[way]);
}

static void heap_remove(struct blk_class *c, enum blk_way way, uint16_t lane)
{
    struct blk_heap *h = &c->heaps[way];
    uint32_t place = c->lanes[lane].places[way];
    uint16_t last = h->lanes[--h->n];

    c->lanes[lane].places[way] = BLK_LANE_IDLE;
    if (last == lane)
        return;
    heap_set(c, way, place, last);
    heap_up(c, way, place);
    heap_down(c, way, c->lanes[last].places[way]);
}

/* --- One class --------------------------------------------------------------------------------------------------- */

static bool lane_waits(const struct blk_lane *lane)
{
    return lane->places[BLK_READS] != BLK_LANE_IDLE || lane->places[BLK_WRITES] != BLK_LANE_IDLE;
}

/* Before and after a change to a lane: keeps count of those that have something to do. The daemon's own does not count:
 * it is small, and always there. */
static bool lane_is_busy(const struct blk_class *c, uint16_t lane)
{
    return lane != IO_LANE_OWN && (lane_waits(&c->lanes[lane]) || c->lanes[lane].in_flight > 0);
}

/* The user whose read it is, in a lane that tells them apart; or NULL. */
static struct blk_user *user_of(const struct blk_lane *lane, const struct io_blk *blk)
{
    return lane->users && way_of(blk) == BLK_READS ? &lane->users[blk->user] : NULL;
}

static bool user_is_busy(const struct blk_lane *lane, const struct io_blk *blk)
{
    const struct blk_user *user = user_of(lane, blk);

    return user && blk->user != 0 && (user->in_flight > 0 || !list_is_empty(&user->blks));
}

/* Counts who is busy, before and after a change that is blk's. */
static void count_busy(struct blk_class *c, const struct io_blk *blk, uint32_t one)
{
    c->n_busy += lane_is_busy(c, blk->lane) ? one : 0;
    c->n_users += user_is_busy(&c->lanes[blk->lane], blk) ? one : 0;
}

/* Whose turn it is among the users of a lane. */
static const struct blk_user *lane_turn(const struct blk_lane *lane)
{
    const struct blk_user *first = NULL;

    for (uint32_t left = lane->waiting; left != 0; left &= left - 1) {
        const struct blk_user *user = &lane->users[__builtin_ctz(left)];

        if (!first || user->tag < first->tag)
            first = user;
    }
    return first;
}

static void lane_link(struct blk_lane *lane, struct io_blk *blk)
{
    struct blk_user *user = user_of(lane, blk);

    if (!user) {
        list_push_tail(&lane->blks[way_of(blk)], &blk->link);
        return;
    }
    if (list_is_empty(&user->blks))
        user->tag = MAX(user->tag, lane->users_served);
    list_push_tail(&user->blks, &blk->link);
    lane->waiting |= UINT32_C(1) << blk->user;
}

static void lane_unlink(struct blk_class *c, struct io_blk *blk)
{
    struct blk_lane *lane = &c->lanes[blk->lane];
    struct blk_user *user = user_of(lane, blk);
    enum blk_way way = way_of(blk);

    list_unlink(&blk->link);
    if (user && list_is_empty(&user->blks))
        lane->waiting &= ~(UINT32_C(1) << blk->user);
    if (user ? lane->waiting == 0 : list_is_empty(&lane->blks[way]))
        heap_remove(c, way, blk->lane);
}

static void class_push(struct blk_class *c, struct io_blk *blk)
{
    struct blk_lane *lane = &c->lanes[blk->lane];
    enum blk_way way = way_of(blk);

    count_busy(c, blk, UINT32_MAX);
    lane_link(lane, blk);
    if (lane->places[way] == BLK_LANE_IDLE) {
        if (!lane_waits(lane))
            lane->tag = MAX(lane->tag, c->served);
        heap_add(c, way, blk->lane);
    }
    count_busy(c, blk, 1);
}

static struct io_blk *class_first(const struct blk_class *c, enum blk_way way)
{
    const struct blk_heap *h = &c->heaps[way];

    if (h->n == 0)
        return NULL;
    const struct blk_lane *lane = &c->lanes[h->lanes[0]];
    const struct list *blks = way == BLK_READS && lane->users ? &lane_turn(lane)->blks : &lane->blks[way];
    return list_first_entry(blks, struct io_blk, link);
}

/* Out of its lane, unserved. */
static void class_remove(struct blk_class *c, struct io_blk *blk)
{
    count_busy(c, blk, UINT32_MAX);
    lane_unlink(c, blk);
    count_busy(c, blk, 1);
}

static bool class_is_shared(const struct blk_class *c)
{
    return c->n_busy > 1 || c->n_users > 1;
}

static void class_take(struct blk_class *c, struct io_blk *blk, uint32_t part_bytes, uint32_t weight)
{
    struct blk_lane *lane = &c->lanes[blk->lane];
    struct blk_user *user = user_of(lane, blk);
    uint64_t sectors = sectors_of_bytes(part_bytes);

    c->served = MAX(c->served, lane->tag);
    c->shared_bytes = class_is_shared(c) ? SHARED_LASTS_BYTES : c->shared_bytes - MIN(c->shared_bytes, part_bytes);
    lane->in_flight++;
    c->in_flight++;
    c->in_flight_bytes += part_bytes;
    lane->tag += sectors * WEIGHT_MAX / weight / (blk->op == IO_BLK_READ ? READ_FAVOUR : 1);
    if (user) {
        lane->users_served = MAX(lane->users_served, user->tag);
        user->tag += sectors;
        user->in_flight++;
    }
    lane_unlink(c, blk);
    for (enum blk_way way = BLK_READS; way < BLK_WAYS; way++)
        if (lane->places[way] != BLK_LANE_IDLE)
            heap_down(c, way, lane->places[way]);
}

static void class_done(struct blk_class *c, const struct io_blk *blk, uint32_t part_bytes)
{
    struct blk_lane *lane = &c->lanes[blk->lane];
    struct blk_user *user = user_of(lane, blk);

    count_busy(c, blk, UINT32_MAX);
    lane->in_flight--;
    if (user)
        user->in_flight--;
    c->in_flight--;
    c->in_flight_bytes -= part_bytes;
    count_busy(c, blk, 1);
}

static bool class_has_room(const struct blk_class *c, uint32_t part_bytes, uint64_t bytes_max)
{
    if ((class_is_shared(c) || c->shared_bytes > 0) && c->in_flight >= SHARED_REQUESTS &&
        c->in_flight_bytes + part_bytes > SHARED_BYTES)
        return false;
    return c->in_flight == 0 || c->in_flight_bytes + part_bytes <= bytes_max;
}

/* --- Both -------------------------------------------------------------------------------------------------------- */

static bool reads_are_about(const struct blk_queue *q)
{
    return q->write_bytes_max < WRITE_BYTES_MAX;
}

uint32_t blk_queue_part(const struct blk_queue *q, const struct io_blk *blk)
{
    return reads_are_about(q) && !is_awaited(blk) ? MIN(blk->len_bytes, (uint32_t)DEVICE_PART_BYTES) : blk->len_bytes;
}

/* The limits on writes, or they are so far behind that weights come first. */
static bool write_may_go(const struct blk_queue *q, const struct blk_class *c, const struct io_blk *blk, uint32_t part)
{
    if (!reads_are_about(q))
        return !q->is_full || blk->lane == IO_LANE_OWN;
    if (q->n_writes == 0 || q->write_bytes + part <= q->write_bytes_max)
        return true;
    return q->write_bytes + part <= SHARED_BYTES && c->served > c->lanes[blk->lane].tag + LAG_SECTORS;
}

/* What is next in a class, of what may go now. */
static struct io_blk *class_next(const struct blk_queue *q, const struct blk_class *c, uint64_t bytes_max)
{
    struct io_blk *read = class_first(c, BLK_READS), *write = class_first(c, BLK_WRITES);

    if (read && !class_has_room(c, blk_queue_part(q, read), bytes_max))
        read = NULL;
    if (write) {
        uint32_t part = blk_queue_part(q, write);

        if (!class_has_room(c, part, bytes_max) || !write_may_go(q, c, write, part))
            write = NULL;
    }
    if (!read || !write)
        return read ? read : write;
    return lane_before(c, write->lane, read->lane) ? write : read;
}

void blk_queue_push(struct blk_queue *q, struct io_blk *blk)
{
    class_push(class_of(q, blk), blk);
    blk->queued = 1;
    q->n++;
    count_about(q, blk, 1);
    if (is_awaited(blk) && !is_long_read(blk))
        q->write_bytes_max = WRITE_BESIDE_BYTES;
}

struct io_blk *blk_queue_next(const struct blk_queue *q)
{
    uint64_t bytes_max = q->n_pressed > 0 ? BACKGROUND_BESIDE_BYTES : BACKGROUND_BYTES_MAX;
    struct io_blk *urgent = class_next(q, &q->urgent, UINT64_MAX);
    struct io_blk *background = class_next(q, &q->background, bytes_max);

    if (!urgent || !background)
        return urgent ? urgent : background;
    return q->owed >= URGENT_RUN_MAX * sectors_of_bytes(blk_queue_part(q, background)) ? background : urgent;
}

static bool class_waits(const struct blk_class *c)
{
    return c->heaps[BLK_READS].n + c->heaps[BLK_WRITES].n > 0;
}

void blk_queue_take(struct blk_queue *q, struct io_blk *blk, uint32_t part_bytes, const uint32_t *weights)
{
    class_take(class_of(q, blk), blk, part_bytes, weights[blk->lane]);
    blk->queued = 0;
    q->n--;
    q->owed = blk->urgent && class_waits(&q->background) ? q->owed + sectors_of_bytes(part_bytes) : 0;
    if (blk->op != IO_BLK_READ) {
        q->n_writes++;
        q->write_bytes += part_bytes;
        q->is_full |=
            q->write_bytes >= WRITE_BYTES_MAX && q->n_writes > 1; /* the next of large ones is there in time */
    }
}

void blk_queue_done(struct blk_queue *q, const struct io_blk *blk, uint32_t part_bytes)
{
    class_done(class_of(q, blk), blk, part_bytes);
    count_about(q, blk, UINT32_MAX);
    if (blk->op == IO_BLK_READ)
        return;
    q->n_writes--;
    q->write_bytes -= part_bytes;
    if (q->write_bytes + WRITE_REFILL_BYTES <= WRITE_BYTES_MAX || q->n_writes <= 1)
        q->is_full = false;
    if (q->n_awaited == 0)
        q->write_bytes_max = MIN(q->write_bytes_max + part_bytes / WRITE_GROWTH, (uint64_t)WRITE_BYTES_MAX);
}

void blk_queue_urge(struct blk_queue *q, struct io_blk *blk)
{
    if (!blk->queued || blk->urgent)
        return;
    class_remove(&q->background, blk);
    q->n--;
    blk->urgent = 1;
    blk_queue_push(q, blk);
}
