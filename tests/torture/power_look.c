/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opens a device's image as a daemon would: the real store and tiering, on a simulated disk, because that takes
 * milliseconds. What they write meanwhile is undone afterwards, so that one image serves for all cuts.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/cleanup.h"
#include "tests/torture/power.h"
#include "tests/unit/support/simdisk.h"
#include "tiering/tiering.h"

#define MAX_OBJECTS 4096
#define MAX_LEASES 64
#define STEP_NS 1000000
#define STEPS_MAX 100000

/* What lay there before. */
struct undo {
    uint64_t off_bytes;
    uint32_t len_bytes;
    uint8_t *old;
};

struct look {
    const struct t_place *place;
    struct simdisk *disk;
    struct undo *undos;
    size_t n_undos, room;
    struct tiering *t;
    struct tiering_session session;
    struct tiering_pool_config pools[T_GROUPS];
    struct tiering_space_info blocks[T_KINDS], tensors[T_CLIENTS][T_GROUPS];
    void *records;
    uint64_t now_ns;
    uint8_t *bytes;
    const char *what;
    uint64_t cut, n;
};

struct look_wait {
    struct tiering_wait wait;
    int status; /* 1: not yet */
};

/* --- The disk ------------------------------------------------------------------------------------------------------------ */

static void remember(void *ctx, uint32_t dev, uint64_t off_bytes, uint64_t len_bytes)
{
    struct look *l = ctx;

    if (l->n_undos == l->room) {
        l->room = l->room ? 2 * l->room : 256;
        l->undos = realloc(l->undos, l->room * sizeof(*l->undos));
    }
    uint8_t *old = malloc(len_bytes);

    if (!l->undos || !old)
        torture_fail("no memory");
    memcpy(old, simdisk_bytes(l->disk, dev) + off_bytes, len_bytes);
    l->undos[l->n_undos++] = (struct undo){off_bytes, (uint32_t)len_bytes, old};
}

void look_write(struct look *l, uint64_t off_bytes, const void *bytes, uint32_t len_bytes, bool for_good)
{
    if (!for_good)
        remember(l, 0, off_bytes, len_bytes);
    simdisk_poke(l->disk, 0, off_bytes, bytes, len_bytes);
}

void look_undo(struct look *l)
{
    while (l->n_undos > 0) {
        struct undo *u = &l->undos[--l->n_undos];

        simdisk_poke(l->disk, 0, u->off_bytes, u->old, u->len_bytes);
        free(u->old);
    }
}

/* --- Opening ------------------------------------------------------------------------------------------------------------- */

static void on_chunk_new(void *ctx, uint32_t region, uint32_t epoch, uint32_t pool, enum io_chunk_kind kind,
                         uint64_t session)
{
    (void)ctx, (void)region, (void)epoch, (void)pool, (void)kind, (void)session;
}

static void on_chunk_gone(void *ctx, uint32_t region, uint32_t epoch)
{
    (void)ctx, (void)region, (void)epoch;
}

static void on_notice(void *ctx, const char *text, uint32_t pool, int status)
{
    const struct look *l = ctx;

    (void)pool;
    if (status < 0)
        torture_fail("%s: %s: %s", l->what, text, strerror(-status));
}

static const struct tiering_events events = {
    .chunk_new = on_chunk_new, .chunk_gone = on_chunk_gone, .notice = on_notice};

struct look *look_new(const struct t_place *p)
{
    struct look *l = calloc(1, sizeof(*l));

    if (!l || !(l->bytes = malloc(T_PAYLOAD_MAX)))
        torture_fail("no memory");
    l->place = p;
    l->disk = simdisk_new(p->oracle->seed);
    (void)simdisk_device_add(l->disk, p->disk_bytes);
    simdisk_watch_writes(l->disk, remember, l);
    l->records = aligned_alloc(SECTOR_BYTES, round_up(tiering_records_bytes(MAX_OBJECTS, MAX_LEASES), SECTOR_BYTES));
    if (!l->records)
        torture_fail("no memory");
    return l;
}

void look_free(struct look *l)
{
    simdisk_free(l->disk);
    free(l->undos);
    free(l->records);
    free(l->bytes);
    free(l);
}

static void step(struct look *l)
{
    l->now_ns += STEP_NS;
    for (int i = 0; i < 8 && simdisk_step(l->disk); i++)
        continue;
    (void)tiering_tick(l->t, l->now_ns);
}

static void open_space(struct look *l, uint32_t pool, const char *digest, uint8_t class_id, uint8_t durability,
                       struct tiering_space_info *ret_info)
{
    struct tiering_space_spec spec = {.pool = pool, .class_id = class_id, .durability = durability};

    memcpy(spec.digest, digest, strlen(digest));
    int r = tiering_space_open(l->t, &spec, ret_info);

    if (r < 0)
        torture_fail("%s: the space of %s cannot be opened: %s", l->what, digest, strerror(-r));
}

/* The same as in client.c. */
static void open_spaces(struct look *l)
{
    char digest[32];

    open_space(l, 0, "durable", SPW_CLASS_GENERIC, SPW_DURABLE, &l->blocks[T_DURABLE]);
    open_space(l, 0, "cache", SPW_CLASS_KV, SPW_CACHE, &l->blocks[T_CACHE]);
    open_space(l, 1, "shared", SPW_CLASS_WEIGHTS, SPW_DURABLE, &l->blocks[T_SHARED]);
    for (uint32_t i = 0; i < T_CLIENTS * T_GROUPS; i++) {
        snprintf(digest, sizeof(digest), "tensors of %u", i / T_GROUPS);
        open_space(l, i % T_GROUPS, digest, SPW_CLASS_OPTIMIZER, SPW_DURABLE, &l->tensors[i / T_GROUPS][i % T_GROUPS]);
    }
}

static void open_all(struct look *l)
{
    struct tiering_config config = {.backend = simdisk_backend(l->disk),
                                    .pools = l->pools,
                                    .n_pools = T_GROUPS,
                                    .records = l->records,
                                    .max_objects = MAX_OBJECTS,
                                    .max_leases = MAX_LEASES,
                                    .max_moves = 256,
                                    .clean_percent = 2,
                                    .memory_on_demand = true,
                                    .parts_deadline_ns = UINT64_MAX / 2,
                                    .hash_seed = 1,
                                    .events = &events,
                                    .ctx = l};
    const char *why = "";

    for (uint32_t i = 0; i < T_GROUPS; i++) {
        l->pools[i] = (struct tiering_pool_config){.trusted = i == 0,
                                                   .dram_bytes = 16 * MIB,
                                                   .nvme_bytes = UINT64_MAX,
                                                   .session_bytes = 8 * MIB,
                                                   .weight = 100,
                                                   .max_leases_percent = 80};
        snprintf(l->pools[i].name, sizeof(l->pools[i].name), "%s", i ? "shared" : "default");
    }
    for (uint32_t c = 0; c < TIERING_CLASSES; c++)
        config.classes[c] =
            (struct tiering_class_config){.policy = &policy_lru, .durability = STORE_CACHE, .weight = 100};
    memset(l->records, 0, tiering_records_bytes(MAX_OBJECTS, MAX_LEASES));
    int r = tiering_new(&config, &l->t);

    for (uint16_t i = 0; i < l->place->partitions && r == 0; i++)
        r = tiering_store_add(l->t, 0, i, l->place->disk_bytes, &why);
    if (r == 0)
        r = tiering_start(l->t);
    if (r < 0)
        torture_fail("%s: what is left cannot be opened: %s (%s)", l->what, strerror(-r), why);
    open_spaces(l);
    tiering_session_init(l->t, &l->session, 1, 1, MAX_LEASES);
    step(l);
}

static void close_all(struct look *l)
{
    tiering_session_end(l->t, &l->session);
    simdisk_restart(l->disk);
    tiering_free(l->t);
    l->t = NULL;
}

/* --- Reading ------------------------------------------------------------------------------------------------------------- */

static void look_done(struct tiering_wait *wait, int status)
{
    container_of(wait, struct look_wait, wait)->status = status;
}

/* One piece into memory of ours. */
static int read_piece(struct look *l, const struct tiering_id *id, uint8_t *to, uint32_t *ret_bytes)
{
    struct look_wait w = {.wait.done = look_done, .status = 1};
    struct tiering_grant grant;
    int r = tiering_acquire(l->t, &l->session, id, 0, 0, 0, &w.wait, &grant);

    if (r == TIERING_WAIT) {
        for (int i = 0; w.status == 1; i++) {
            if (i == STEPS_MAX)
                torture_fail("%s: a read does not end", l->what);
            step(l);
        }
        r = w.status;
        grant = w.wait.grant;
    }
    if (r < 0)
        return r;
    memcpy(to, simdisk_memory(l->disk, grant.region) + grant.offset_bytes, grant.length_bytes);
    *ret_bytes = grant.length_bytes;
    return tiering_release(l->t, &l->session, grant.lease, 0);
}

static struct tiering_id id_of(const struct tiering_space_info *space, const struct spw_key *key)
{
    struct tiering_id id = {.space = space->index, .key_len = key->len, .n_parts = 1};

    memcpy(id.key, key->bytes, sizeof(id.key));
    return id;
}

/* Its bytes; *ret_bytes is 0 if it is not there. */
static int read_object(struct look *l, const struct tiering_space_info *space, const struct spw_key *key,
                       uint64_t *ret_bytes)
{
    struct tiering_id id = id_of(space, key);
    struct tiering_found found;
    uint64_t at = 0;
    int r = tiering_lookup(l->t, &id, &found);

    *ret_bytes = 0;
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    if (found.object_bytes > T_PAYLOAD_MAX)
        return -EMSGSIZE;
    while (at < found.object_bytes) {
        uint32_t bytes;

        r = read_piece(l, &id, l->bytes + at, &bytes);
        if (r < 0)
            return r;
        at += bytes;
        id.piece++;
    }
    *ret_bytes = at;
    return 0;
}

static void look_key(struct look *l, uint32_t client, enum t_kind kind, uint32_t key)
{
    const struct t_client *of = &l->place->oracle->clients[client];
    struct spw_key name = key_of(client, key);
    uint32_t version = 0;
    uint64_t bytes;
    int r = read_object(l, &l->blocks[kind], &name, &bytes);

    if (r == -EBADMSG && kind == T_CACHE)
        bytes = 0; /* a miss, after an unclean end */
    else if (r < 0)
        torture_fail("%s: key %u of kind %u of client %u: %s; there may be %s", l->what, key, kind, client,
                     strerror(-r), oracle_key_tells(of, kind, key, l->cut));
    if (bytes) {
        version = payload_version(l->bytes, (uint32_t)bytes, payload_of_key(client, kind, key));
        if (version == 0 || version == UINT32_MAX || bytes != payload_bytes(client, kind, key, version))
            torture_fail("%s: key %u of kind %u of client %u: %llu wrong bytes", l->what, key, kind, client,
                         (unsigned long long)bytes);
    }
    if (!oracle_key_may_be(of, kind, key, l->cut, false, version))
        torture_fail("%s: key %u of kind %u of client %u is version %u; there may be %s", l->what, key, kind, client,
                     version, oracle_key_tells(of, kind, key, l->cut));
    l->n++;
}

static void look_set(struct look *l, uint32_t client, enum t_group g)
{
    uint32_t stripes[T_STRIPES] = {0};

    for (uint32_t tensor = 0; tensor < T_TENSORS; tensor++) {
        struct spw_key name = tensor_of(tensor);
        uint64_t bytes;
        int r = read_object(l, &l->tensors[client][g], &name, &bytes);

        if (r < 0 || (bytes && bytes != (uint64_t)tensor_stripes(tensor) * T_STRIPE_BYTES))
            torture_fail("%s: tensor %u of set %u of client %u: %s, %llu bytes", l->what, tensor, g, client,
                         strerror(-r), (unsigned long long)bytes);
        for (uint32_t i = 0; i < tensor_stripes(tensor) && bytes; i++) {
            uint32_t stripe = tensor_first_stripe(tensor) + i;

            stripes[stripe] = payload_version(l->bytes + (size_t)i * T_STRIPE_BYTES, T_STRIPE_BYTES,
                                              payload_of_stripe(client, g, stripe));
            if (stripes[stripe] == UINT32_MAX)
                torture_fail("%s: stripe %u of set %u of client %u: wrong bytes", l->what, stripe, g, client);
        }
    }
    if (!oracle_set_may_be(&l->place->oracle->clients[client], g, l->cut, false, stripes))
        torture_fail("%s: set %u of client %u is as it was at no SYNC that counts:%s", l->what, g, client,
                     stripes_text(stripes));
    l->n++;
}

uint64_t look_check(struct look *l, uint64_t cut, bool cache_too, const char *what)
{
    l->what = what;
    l->cut = cut;
    l->n = 0;
    open_all(l);
    for (uint32_t client = 0; client < T_CLIENTS; client++) {
        for (uint32_t kind = 0; kind < T_KINDS; kind++)
            for (uint32_t key = 0; key < T_KEYS && (kind != T_CACHE || cache_too); key++)
                look_key(l, client, (enum t_kind)kind, key);
        for (uint32_t g = 0; g < T_GROUPS; g++)
            look_set(l, client, (enum t_group)g);
    }
    close_all(l);
    return l->n;
}
