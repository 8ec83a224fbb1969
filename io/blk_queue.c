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
 * Between the lanes of a class: start-time fair queueing. A lane's tag grows by the sectors that it was served, divided
 * by its weight; the lane with the smallest tag is next. So lanes that always have something waiting share by weight to
 * within one request each, without the bursts that whole quanta of a round robin make when weights are 1 to 1000. A
 * lane that was idle joins at the tag of what is being served: it neither saves up a claim nor loses its place. Who has
 * a fixed number of requests outstanding has nothing waiting as long as the device takes them all, and then weights mean
 * nothing: so when several pools are at it, the device gets SHARED_BYTES of their class at a time, which keeps it busy,
 * and the rest waits here. One pool alone is not held up.
 *
 * Invariants: a lane is in its class's heap exactly if it has requests; a request's `queued` is set exactly while it is
 * in a lane.
 */
#include "io/blk_queue.h"

static void class_init(struct blk_class *c)
{
    c->served = 0;
    c->n_busy = 0;
    c->in_flight = 0;
    c->in_flight_bytes = 0;
    c->n_heap = 0;
    for (uint32_t i = 0; i < IO_LANES; i++) {
        c->lanes[i] = (struct blk_lane){.place = BLK_LANE_IDLE};
        list_init(&c->lanes[i].blks);
    }
}

void blk_queue_init(struct blk_queue *q)
{
    q->n = 0;
    q->owed = 0;
    class_init(&q->urgent);
    class_init(&q->background);
}

static uint64_t blk_sectors(const struct io_blk *blk)
{
    return MAX(blk->len_bytes / (uint32_t)SECTOR_BYTES, 1U); /* a flush moves nothing, and is not free */
}

static struct blk_class *class_of(struct blk_queue *q, const struct io_blk *blk)
{
    return blk->urgent ? &q->urgent : &q->background;
}

/* --- The heap of lanes ------------------------------------------------------------------------------------------- */

static bool lane_before(const struct blk_class *c, uint16_t a, uint16_t b)
{
    return c->lanes[a].tag != c->lanes[b].tag ? c->lanes[a].tag < c->lanes[b].tag : a < b;
}

static void heap_set(struct blk_class *c, uint32_t place, uint16_t lane)
{
    c->heap[place] = lane;
    c->lanes[lane].place = place;
}

static void heap_up(struct blk_class *c, uint32_t place)
{
    uint16_t lane = c->heap[place];

    while (place > 0) {
        uint32_t parent = (place - 1) / 2;

        if (!lane_before(c, lane, c->heap[parent]))
            break;
        heap_set(c, place, c->heap[parent]);
        place = parent;
    }
    heap_set(c, place, lane);
}

static void heap_down(struct blk_class *c, uint32_t place)
{
    uint16_t lane = c->heap[place];

    for (uint32_t child; (child = 2 * place + 1) < c->n_heap; place = child) {
        if (child + 1 < c->n_heap && lane_before(c, c->heap[child + 1], c->heap[child]))
            child++;
        if (!lane_before(c, c->heap[child], lane))
            break;
        heap_set(c, place, c->heap[child]);
    }
    heap_set(c, place, lane);
}

static void heap_add(struct blk_class *c, uint16_t lane)
{
    heap_set(c, c->n_heap++, lane);
    heap_up(c, c->lanes[lane].place);
}

static void heap_remove(struct blk_class *c, uint16_t lane)
{
    uint32_t place = c->lanes[lane].place;
    uint16_t last = c->heap[--c->n_heap];

    c->lanes[lane].place = BLK_LANE_IDLE;
    if (last == lane)
        return;
    heap_set(c, place, last);
    heap_up(c, place);
    heap_down(c, c->lanes[last].place);
}

/* --- One class --------------------------------------------------------------------------------------------------- */

/* Before and after a change to a lane: keeps count of those that have something to do. The daemon's own does not count:
 * it is small, and always there. */
static bool lane_is_busy(const struct blk_class *c, uint16_t lane)
{
    return lane != IO_LANE_OWN && (c->lanes[lane].place != BLK_LANE_IDLE || c->lanes[lane].in_flight > 0);
}

static void class_push(struct blk_class *c, struct io_blk *blk)
{
    struct blk_lane *lane = &c->lanes[blk->lane];
    bool was_busy = lane_is_busy(c, blk->lane);

    list_push_tail(&lane->blks, &blk->link);
    if (lane->place != BLK_LANE_IDLE)
        return;
    lane->tag = MAX(lane->tag, c->served);
    heap_add(c, blk->lane);
    c->n_busy += !was_busy && blk->lane != IO_LANE_OWN;
}

static struct io_blk *class_first(const struct blk_class *c)
{
    return c->n_heap ? list_first_entry(&c->lanes[c->heap[0]].blks, struct io_blk, link) : NULL;
}

/* Out of its lane, unserved. */
static void class_remove(struct blk_class *c, struct io_blk *blk)
{
    bool was_busy = lane_is_busy(c, blk->lane);

    list_unlink(&blk->link);
    if (list_is_empty(&c->lanes[blk->lane].blks))
        heap_remove(c, blk->lane);
    c->n_busy -= was_busy && !lane_is_busy(c, blk->lane);
}

static void class_take(struct blk_class *c, struct io_blk *blk, uint32_t weight)
{
    struct blk_lane *lane = &c->lanes[blk->lane];

    c->served = lane->tag;
    lane->in_flight++;
    c->in_flight++;
    c->in_flight_bytes += blk->len_bytes;
    lane->tag += blk_sectors(blk) * WEIGHT_MAX / weight;
    list_unlink(&blk->link);
    if (list_is_empty(&lane->blks))
        heap_remove(c, blk->lane);
    else
        heap_down(c, lane->place);
}

static void class_done(struct blk_class *c, const struct io_blk *blk)
{
    bool was_busy = lane_is_busy(c, blk->lane);

    c->lanes[blk->lane].in_flight--;
    c->in_flight--;
    c->in_flight_bytes -= blk->len_bytes;
    c->n_busy -= was_busy && !lane_is_busy(c, blk->lane);
}

static bool class_has_room(const struct blk_class *c, const struct io_blk *blk, uint64_t bytes_max)
{
    if (c->n_busy > 1 && c->in_flight >= SHARED_REQUESTS && c->in_flight_bytes + blk->len_bytes > SHARED_BYTES)
        return false;
    return c->in_flight == 0 || c->in_flight_bytes + blk->len_bytes <= bytes_max;
}

/* --- Both -------------------------------------------------------------------------------------------------------- */

void blk_queue_push(struct blk_queue *q, struct io_blk *blk)
{
    class_push(class_of(q, blk), blk);
    blk->queued = 1;
    q->n++;
}

struct io_blk *blk_queue_next(const struct blk_queue *q)
{
    struct io_blk *urgent = class_first(&q->urgent), *background = class_first(&q->background);

    uint64_t bytes_max = q->urgent.n_busy > 0 ? BACKGROUND_BESIDE_BYTES : BACKGROUND_BYTES_MAX;
    if (urgent && !class_has_room(&q->urgent, urgent, UINT64_MAX))
        urgent = NULL;
    if (background && !class_has_room(&q->background, background, bytes_max))
        background = NULL;
    if (!urgent || !background)
        return urgent ? urgent : background;
    return q->owed >= URGENT_RUN_MAX * blk_sectors(background) ? background : urgent;
}

void blk_queue_take(struct blk_queue *q, struct io_blk *blk, const uint32_t *weights)
{
    class_take(class_of(q, blk), blk, weights[blk->lane]);
    blk->queued = 0;
    q->n--;
    q->owed = blk->urgent && q->background.n_heap > 0 ? q->owed + blk_sectors(blk) : 0;
}

void blk_queue_done(struct blk_queue *q, const struct io_blk *blk)
{
    class_done(blk->urgent ? &q->urgent : &q->background, blk);
}

void blk_queue_urge(struct blk_queue *q, struct io_blk *blk)
{
    if (!blk->queued || blk->urgent)
        return;
    class_remove(&q->background, blk);
    blk->urgent = 1;
    class_push(&q->urgent, blk);
}
