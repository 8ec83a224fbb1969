/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a piece: sums of its granules if they are needed and not in memory yet, the bytes, a worker's hash of them, comparison.
 * On the engine's thread; hashes are made by workers.
 *
 * LOAD -> READ -> HASH -> done. While a get runs it counts as a reader of its segment, which therefore is not reused
 * under it even if the piece is dropped meanwhile.
 *
 * All of a piece is checked against its entry alone. For a part of it the sums of its granules are needed, and these are
 * themselves checked against the entry each time: the table they lie in was perhaps read from the device, and nothing that
 * was read from there is believed.
 */
#include <errno.h>
#include <string.h>

#include "include/base/atomic.h"
#include "include/base/checked.h"
#include "include/base/kill_point.h"
#include "io/checksum.h"
#include "io/store_private.h"

enum get_phase { GET_LOAD, GET_READ, GET_HASH };

static void get_finish(struct store_get *get, int status)
{
    struct store *s = get->store_;

    if (status == 0)
        s->stat.got_bytes += get->len_bytes;
    else if (status == -EBADMSG) {
        s->stat.checksum_errors++;
        if (s->events->damaged)
            s->events->damaged(s->ctx, &get->entry);
    }
    s->n_gets--;
    store_segment(s, get->entry.loc.segment)->readers--;
    store_segment_check(s, get->entry.loc.segment);
    kill_point("get.done");
    get->done(get, status);
}

static bool get_matches(struct store_get *get)
{
    const struct store_entry *e = &get->entry;
    uint32_t first = get->off_bytes / (uint32_t)GRANULE_BYTES, n = checksum_granule_count(get->len_bytes);
    uint32_t all = checksum_granule_count(e->size_bytes);

    if (all == 1)
        return get->sums_[0] == e->sum;
    if (n == all)
        return checksum_of_sums(store_seed(e), get->sums_, all) == e->sum;
    const uint64_t *sums = segment_sums(&get->store_->table, e->loc);
    return checksum_of_sums(store_seed(e), sums, all) == e->sum &&
           memcmp(sums + first, get->sums_, sizeof(*sums) * n) == 0;
}

static void get_hashed(struct io_work *work)
{
    struct store_get *get = container_of(work, struct store_get, work_);

    kill_point("get.hashed");
    if (work->result < 0)
        get_finish(get, work->result);
    else
        get_finish(get, get_matches(get) ? 0 : -EBADMSG);
}

static void get_read(struct io_blk *blk)
{
    struct store_get *get = container_of(blk, struct store_get, blk_);
    struct store *s = get->store_;

    int r = store_blk_more(s, blk, &get->moved_, sectors_of(get->len_bytes) * SECTOR_BYTES);
    if (r == -EAGAIN)
        return;
    if (r < 0) {
        get_finish(get, r);
        return;
    }
    kill_point("get.read");
    get->phase_ = GET_HASH;
    get->work_ = (struct io_work){
        .op = IO_WORK_HASH,
        .len_bytes = get->len_bytes,
        .src = get->buf,
        .seed = store_seed(&get->entry),
        .first_granule = get->off_bytes / (uint32_t)GRANULE_BYTES,
        .sums = get->sums_,
        .done = get_hashed,
    };
    s->be->ops->work_submit(s->be, &get->work_);
}

static void get_start_read(struct store_get *get)
{
    struct store *s = get->store_;

    get->phase_ = GET_READ;
    get->blk_ = (struct io_blk){
        .op = IO_BLK_READ,
        .urgent = get->urgent,
        .user = get->user,
        .lane = store_lane(s, get->entry.loc.segment, get->evacuating),
        .dev = s->dev,
        .len_bytes = sectors_of(get->len_bytes) * SECTOR_BYTES,
        .off_bytes = store_off(s, get->entry.loc.segment, get->entry.loc.sector) + get->off_bytes,
        .buf = get->buf,
        .done = get_read,
    };
    kill_point("get.submit");
    s->be->ops->blk_submit(s->be, &get->blk_);
    kill_point("get.submitted");
}

static void get_sums_read(struct io_blk *blk)
{
    get_sums_done(container_of(blk, struct sums_buffer, blk));
}

/* Two gets may load the same sums at once: they store the same, since nothing is put into an adopted segment. */
void get_sums_done(struct sums_buffer *b)
{
    struct store_get *get = b->get;
    struct store *s = b->store;
    struct segment *seg = store_segment(s, b->segment);
    int32_t result = b->blk.result;

    if (result == (int32_t)SECTOR_BYTES && !seg->sums_loaded) {
        memcpy(s->table.sums + (uint64_t)b->segment * s->table.slots, b->mem, s->table.slots * sizeof(uint64_t));
        seg->sums_loaded = 1;
    }
    commit_sums_release(s, b);
    kill_point("get.sums_there");
    if (result == (int32_t)SECTOR_BYTES)
        get_start_read(get);
    else
        get_finish(get, -EIO);
}

void get_sums_load(struct sums_buffer *b, struct store_get *get)
{
    struct store *s = b->store;

    b->get = get;
    b->segment = get->entry.loc.segment;
    b->blk = (struct io_blk){
        .op = IO_BLK_READ,
        .urgent = get->urgent,
        .user = get->user,
        .lane = store_lane(s, b->segment, get->evacuating),
        .dev = s->dev,
        .len_bytes = SECTOR_BYTES,
        .off_bytes = s->g.sums_off_bytes + (uint64_t)b->segment * SECTOR_BYTES,
        .buf = b->buf,
        .done = get_sums_read,
    };
    kill_point("get.sums_load");
    s->be->ops->blk_submit(s->be, &b->blk);
}

void store_get(struct store *s, struct store_get *get)
{
    const struct store_entry *e = &get->entry;

    assert(e->loc.segment < s->table.n && e->size_bytes <= PIECE_BYTES_MAX);
    assert(range_ok(e->loc.sector, sectors_of(e->size_bytes), s->g.segment_sectors));
    assert(range_ok(get->off_bytes, get->len_bytes, e->size_bytes) && get->off_bytes % GRANULE_BYTES == 0);
    assert(get->len_bytes % GRANULE_BYTES == 0 || get->off_bytes + get->len_bytes == e->size_bytes);
    get->store_ = s;
    get->moved_ = 0;
    get->phase_ = GET_LOAD;
    list_init(&get->link_);
    s->n_gets++;
    kill_point("get.begin");
    store_segment(s, e->loc.segment)->readers++;
    if (get->len_bytes == e->size_bytes || store_segment(s, e->loc.segment)->sums_loaded) {
        get_start_read(get);
        return;
    }
    struct sums_buffer *b = commit_sums_take(s);
    if (b)
        get_sums_load(b, get);
    else
        list_push_tail(&s->sums_waiting, &get->link_);
}

static void blk_urge(struct store *s, struct io_blk *blk, uint8_t user)
{
    blk->user = user;
    s->be->ops->blk_urge(s->be, blk);
}

void store_get_urge(struct store_get *get, uint8_t user)
{
    struct store *s = get->store_;

    if (get->urgent)
        return;
    get->urgent = 1;
    get->user = user;
    if (get->phase_ == GET_READ)
        blk_urge(s, &get->blk_, user);
    for (uint32_t i = 0; get->phase_ == GET_LOAD && i < STORE_SUMS_BUFFERS; i++)
        if (s->sums_buffers[i].get == get)
            blk_urge(s, &s->sums_buffers[i].blk, user);
}
