/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opens a partition with the daemon's own recovery, on a backend that keeps its writes, and judges what came out: what
 * lives lies within segments, nothing over something else, and in spaces that the log tells of.
 *
 * Dropping is the one repair that needs the log: as a start and a stop of the daemon would, on the device itself, and
 * of partitions that were closed in order only. Of another one, what is alive is for the daemon to say
 * (tiering/recover.c): closing it in order here would make it believe `cache` that it should not.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "client/ctl/fsck.h"

static void open_deinit(struct fsck_open *o)
{
    store_free(o->store);
    free(o->sorted);
    free(o->damage);
    fsck_pieces_deinit(&o->pieces);
    fsck_backend_deinit(&o->backend);
}

static int open_init(struct fsck *f, uint16_t partition, bool writes_through, struct fsck_open *o)
{
    uint64_t n_segments = f->copies.format.device_bytes / f->copies.format.segment_bytes;

    *o = (struct fsck_open){0};
    int r = fsck_pieces_init(&o->pieces, partition, n_segments, f->entries && !writes_through);
    if (r < 0)
        return r;
    r = fsck_backend_init(&o->backend, f->device.fd, f->device.size_bytes, writes_through);
    if (r < 0)
        fsck_pieces_deinit(&o->pieces);
    return r;
}

/* One pool is enough: which one a piece belongs to, the config says, and it is not on the device. */
static int open_store(struct fsck *f, struct fsck_open *o, const char **ret_why)
{
    const struct store_config config = {
        .backend = &o->backend.backend,
        .partition = o->pieces.partition,
        .device_bytes = f->device.size_bytes,
        .events = &fsck_pieces_events,
        .ctx = &o->pieces,
        .n_pools = 1,
    };
    int r = store_open(&config, &o->store, ret_why);

    if (r < 0 && o->pieces.contradiction)
        *ret_why = o->pieces.contradiction;
    return r < 0 ? r : fsck_pieces_sort(&o->pieces, &o->sorted);
}

/* ── what lives where ───────────────────────────────────────────────────────────────────────────────────────────── */

static uint64_t end_of(const struct store_entry *e)
{
    return e->loc.sector + (uint64_t)sectors_of(e->size_bytes);
}

static void check_places(struct fsck *f, struct fsck_open *o)
{
    uint64_t n_outside = 0, n_over = 0, homeless = fsck_pieces_homeless(&o->pieces);

    for (uint32_t i = 0; i < o->pieces.n; i++) {
        const struct store_entry *e = o->sorted[i], *before = i > 0 ? o->sorted[i - 1] : NULL;

        if (before && before->loc.segment == e->loc.segment && end_of(before) > e->loc.sector)
            n_over++;
        else
            n_outside += store_adopt(o->store, 0, e) < 0;
    }
    if (n_over > 0)
        fsck_problem(f, o->pieces.partition, false, "pieces that lie over others: %" PRIu64, n_over);
    if (n_outside > 0)
        fsck_problem(f, o->pieces.partition, false, "pieces that lie outside what was put: %" PRIu64, n_outside);
    if (homeless > 0)
        fsck_problem(f, o->pieces.partition, false, "pieces of spaces that the log does not tell of: %" PRIu64,
                     homeless);
    f->n_refused += n_outside > 0 || n_over > 0 || homeless > 0;
}

static void tell_pieces(const struct fsck_open *o, struct json_object *row)
{
    static const uint8_t kinds[] = {STORE_CACHE, STORE_SCRATCH, STORE_DURABLE};
    struct json_object *all = json_object_new_object();
    uint64_t damaged = 0;

    for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
        struct json_object *one = json_object_new_object();
        uint64_t n = 0, bytes = 0;

        for (uint32_t i = 0; i < o->pieces.n; i++) {
            bool is_one = o->sorted[i]->durability == kinds[k];

            n += is_one;
            bytes += is_one ? o->sorted[i]->size_bytes : 0;
            damaged += is_one && (o->sorted[i]->kind & STORE_KIND_DAMAGED);
        }
        fsck_number(one, "pieces", n);
        fsck_number(one, "bytes", bytes);
        json_object_object_add(all, store_durability_name(kinds[k]), one);
    }
    json_object_object_add(row, "live", all);
    fsck_number(row, "damaged_before", damaged);
}

static void tell_log(const struct fsck *f, const struct fsck_open *o, struct json_object *row)
{
    struct json_object *log = json_object_new_object(), *segments = json_object_new_object();
    uint64_t tail_lsn = f->copies.partition[o->pieces.partition].tail_lsn;
    struct store_stat stat;

    store_stat(o->store, &stat);
    fsck_number(log, "from_lsn", tail_lsn);
    fsck_number(log, "to_lsn", MAX(tail_lsn, o->pieces.to_lsn));
    fsck_number(log, "bytes", (MAX(tail_lsn, o->pieces.to_lsn) - tail_lsn) * SECTOR_BYTES);
    fsck_number(log, "blocks", o->pieces.blocks);
    fsck_number(log, "entries", o->pieces.entries);
    json_object_object_add(row, "log", log);
    fsck_number(row, "spaces", o->pieces.n_spaces);
    fsck_number(segments, "all", stat.segments);
    fsck_number(segments, "free", stat.segments_free);
    json_object_object_add(row, "segments", segments);
}

/* ── data ───────────────────────────────────────────────────────────────────────────────────────────────────────── */

static int drop_later(struct fsck *f, uint16_t partition, const struct store_entry *entry)
{
    if (f->n_drops == f->room_drops) {
        size_t room = f->room_drops ? f->room_drops * 2 : 64;
        struct fsck_drop *drops = realloc(f->drops, room * sizeof(*drops));

        if (!drops)
            return -ENOMEM;
        f->drops = drops;
        f->room_drops = room;
    }
    f->drops[f->n_drops++] = (struct fsck_drop){.partition = partition, .entry = *entry};
    return 0;
}

static void tell_damaged(struct fsck *f, uint16_t partition, const struct store_entry *e, bool bytes_whole)
{
    struct json_object *o = json_object_new_object();
    char text[STORE_KEY_TEXT_BYTES];

    fsck_number(o, "partition", partition);
    snprintf(text, sizeof(text), "%016" PRIx64, e->id.space);
    json_object_object_add(o, "space", json_object_new_string(text));
    store_key_print(&e->id, text);
    json_object_object_add(o, "key", json_object_new_string(text));
    fsck_number(o, "group", e->id.group);
    fsck_number(o, "part", e->id.part);
    fsck_number(o, "piece", e->id.piece);
    fsck_number(o, "segment", e->loc.segment);
    fsck_number(o, "offset_bytes", (uint64_t)e->loc.sector * SECTOR_BYTES);
    fsck_number(o, "size_bytes", e->size_bytes);
    json_object_object_add(o, "durability", json_object_new_string(store_durability_name(e->durability)));
    json_object_object_add(o, "bytes_whole", json_object_new_boolean(bytes_whole));
    json_object_array_add(f->damaged, o);
}

/*
 * A `cache` piece may be in the log without its bytes or sums after a crash: no error, a read of it misses. Sums may be
 * missing long after, when the daemon was started and stopped again. So may bytes, but these nobody can tell from others.
 */
static int tell_data(struct fsck *f, const struct fsck_open *o, struct json_object *row)
{
    uint16_t partition = o->pieces.partition;
    uint64_t n = 0, n_durable = 0, n_drop = 0, n_missed = 0;
    int r = 0;

    for (uint32_t i = 0; i < o->pieces.n && r == 0; i++) {
        bool is_cache = o->sorted[i]->durability == STORE_CACHE;

        if (o->damage[i] == FSCK_WHOLE)
            continue;
        tell_damaged(f, partition, o->sorted[i], o->damage[i] == FSCK_DAMAGED_SUMS);
        n++;
        n_durable += !is_cache;
        if (is_cache && (!f->copies.partition[partition].is_clean || o->damage[i] == FSCK_DAMAGED_SUMS)) {
            n_missed++;
        } else if (is_cache) {
            n_drop++;
            r = drop_later(f, partition, o->sorted[i]);
        }
    }
    fsck_number(row, "damaged", n);
    fsck_number(row, "missed", n_missed);
    if (n_durable > 0)
        fsck_problem(f, partition, false, "damaged durable pieces, of which reads fail with EBADMSG: %" PRIu64,
                     n_durable);
    if (n_drop > 0)
        fsck_problem(f, partition, true, "damaged cache pieces, which can be dropped: %" PRIu64, n_drop);
    return r;
}

/* ── the whole ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static void tell_header(const struct fsck *f, uint16_t partition, struct json_object *row)
{
    struct json_object *headers = json_object_new_array();

    fsck_number(row, "partition", partition);
    for (int i = 0; i < 2; i++)
        json_object_array_add(headers, json_object_new_boolean(f->copies.partition[partition].header_whole[i]));
    json_object_object_add(row, "headers_whole", headers);
    json_object_object_add(row, "clean", json_object_new_boolean(f->copies.partition[partition].is_clean));
    fsck_number(row, "epoch", f->copies.partition[partition].epoch);
}

static int check_open(struct fsck *f, struct fsck_open *o, struct json_object *row)
{
    const char *why;
    int r = open_store(f, o, &why);

    if (r == -ENOMEM)
        return r;
    if (r < 0) {
        f->n_refused++;
        fsck_problem(f, o->pieces.partition, false, "%s%s%s", why, r == -EUCLEAN ? "" : ": ",
                     r == -EUCLEAN ? "" : strerrordesc_np(-r));
        return 0;
    }
    check_places(f, o);
    tell_log(f, o, row);
    tell_pieces(o, row);
    r = f->data ? fsck_data(o) : 0;
    if (r == 0 && f->data)
        r = tell_data(f, o, row);
    return r;
}

int fsck_partition(struct fsck *f, uint16_t partition)
{
    struct json_object *row = json_object_new_object();
    struct fsck_open o;

    tell_header(f, partition, row);
    json_object_array_add(ctl_find(f->report, "partitions"), row);
    int r = open_init(f, partition, false, &o);
    if (r < 0)
        return r;
    r = check_open(f, &o, row);
    open_deinit(&o);
    return r;
}

static int drop_open(struct fsck *f, struct fsck_open *o)
{
    const char *why;
    int r = open_store(f, o, &why);

    for (uint32_t i = 0; i < o->pieces.n && r == 0; i++)
        r = store_adopt(o->store, 0, o->sorted[i]);
    if (r < 0)
        return r;
    store_stop(o->store);
    store_adopt_done(o->store);
    for (size_t i = 0; i < f->n_drops; i++) {
        const struct fsck_drop *drop = &f->drops[i];

        if (drop->partition != o->pieces.partition)
            continue;
        (void)fsck_pieces_events.replay_delete(&o->pieces, &drop->entry.id, drop->entry.generation);
        store_drop(o->store, &drop->entry);
    }
    return store_close_clean(o->store);
}

int fsck_partition_drop(struct fsck *f, uint16_t partition)
{
    struct fsck_open o;

    int r = open_init(f, partition, true, &o);
    if (r < 0)
        return r;
    r = drop_open(f, &o);
    open_deinit(&o);
    return r;
}
