/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libspillway against a fake daemon in the same process: every call, jobs, forks, and a daemon that lies or dies.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/lib/client.h"
#include "include/base/atomic.h"
#include "include/base/base.h"
#include "include/spillway/spillway.h"
#include "tests/unit/support/fakedaemon.h"

#define BLOCK_BYTES 4096
#define MANY 10000 /* keys: three requests' worth */

static struct fake *fake;
static spw_session *session;
static spw_pool *pool;
static spw_space *space;

static int connect_fake(spw_session **ret_session)
{
    return spw_connect(
        &(struct spw_connect_options){.socket_path = fake_path(fake), .name = "test", .timeout_ms = 2000}, ret_session);
}

static spw_space *space_new(uint64_t item_bytes)
{
    spw_space *s;

    ck_assert_int_eq(spw_space_open(pool, &(struct spw_space_options){.item_bytes = item_bytes}, &s), 0);
    return s;
}

static void setup(void)
{
    fake = fake_start();
    ck_assert_msg(connect_fake(&session) == 0, "%s", spw_error_text());
    ck_assert_int_eq(spw_pool_open(session, "default", &pool), 0);
    space = space_new(BLOCK_BYTES);
}

static void teardown(void)
{
    spw_close(session);
    fake_stop(fake);
}

static struct spw_key key_of(uint64_t number, uint32_t group)
{
    struct spw_key key;

    ck_assert_int_eq(spw_key_init(&key, &number, sizeof(number), group), 0);
    return key;
}

static struct spw_key *keys_new(size_t n, uint64_t from, uint32_t group)
{
    struct spw_key *keys = calloc(n, sizeof(*keys));

    for (size_t i = 0; i < n; i++)
        keys[i] = key_of(from + i, group);
    return keys;
}

static void fill(void *data, size_t size_bytes, uint64_t seed)
{
    uint8_t *bytes = data;

    for (size_t i = 0; i < size_bytes; i++)
        bytes[i] = (uint8_t)(seed * 131 + i * 7 + (i >> 8));
}

static void verify(const void *data, size_t size_bytes, uint64_t seed)
{
    uint8_t *expected = malloc(size_bytes);

    fill(expected, size_bytes, seed);
    ck_assert(memcmp(data, expected, size_bytes) == 0);
    free(expected);
}

/* Reserve, fill and commit. */
static void store(spw_space *s, const struct spw_key *keys, size_t n, uint64_t seed)
{
    struct spw_view *views = calloc(n, sizeof(*views));

    ck_assert_int_eq(spw_reserve(s, keys, NULL, n, 0, 1000, views), 0);
    for (size_t i = 0; i < n; i++) {
        ck_assert_int_eq(views[i].status, 0);
        ck_assert_uint_eq(views[i].size_bytes, BLOCK_BYTES);
        fill(views[i].data, BLOCK_BYTES, seed + i);
    }
    ck_assert_int_eq(spw_commit(s, views, n, 0), 0);
    for (size_t i = 0; i < n; i++) {
        ck_assert_int_eq(views[i].status, 0);
        ck_assert_ptr_null(views[i].data);
        ck_assert_uint_eq(views[i].lease, 0);
    }
    free(views);
}

/* Acquire, compare and release. */
static void load(spw_space *s, const struct spw_key *keys, size_t n, uint64_t seed)
{
    struct spw_view *views = calloc(n, sizeof(*views));

    ck_assert_msg(spw_acquire(s, keys, n, SPW_CHAIN, 1000, views) == 0, "%s", spw_error_text());
    for (size_t i = 0; i < n; i++) {
        ck_assert_int_eq(views[i].status, 0);
        verify(views[i].data, views[i].size_bytes, seed + i);
    }
    ck_assert_int_eq(spw_release(s, views, n, 0), 0);
    free(views);
}

/* A GET does not wait for its leases to be given back, but the next request comes after that. */
static void no_leases(void)
{
    ck_assert_int_eq(spw_nop(space), 0);
    ck_assert_uint_eq(fake_leases(fake), 0);
}

/* --- Blocking calls ------------------------------------------------------------------------------------------------- */

START_TEST(test_life_of_a_block)
{
    struct spw_key keys[4] = {key_of(1, 0), key_of(2, 0), key_of(3, 0), key_of(4, 0)};
    struct spw_hit hits[4];
    struct spw_view views[4];

    store(space, keys, 3, 10);
    ck_assert_int_eq(spw_lookup(space, keys, 4, SPW_CHAIN, hits), 3);
    ck_assert_int_eq(hits[0].status, 0);
    ck_assert_uint_eq(hits[0].size_bytes, BLOCK_BYTES);
    ck_assert_int_eq(hits[3].status, -ENOENT);
    ck_assert_int_eq(spw_lookup(space, keys, 4, 0, NULL), 3);
    load(space, keys, 3, 10);
    ck_assert_int_eq(spw_reserve(space, keys, NULL, 4, 0, 0, views), 0);
    ck_assert_int_eq(views[0].status, -EEXIST);
    ck_assert_int_eq(views[3].status, 0);
    ck_assert_uint_eq(fake_leases(fake), 1);
    ck_assert_int_eq(spw_abort(space, views, 4), 0);
    ck_assert_uint_eq(fake_leases(fake), 0);
    ck_assert_int_eq(views[0].status, -EEXIST); /* passed over */
    ck_assert_uint_eq(fake_chunk_gets(fake), 1);
}
END_TEST

START_TEST(test_window_of_hits)
{
    struct spw_hit hits[10] = {{0}};

    ck_assert_uint_eq(spw_window_length(hits, 0, 3), 0);
    ck_assert_uint_eq(spw_window_length(hits, 10, 3), 10);
    hits[4].status = -ENOENT;
    ck_assert_uint_eq(spw_window_length(hits, 7, 3), 4); /* two behind the gap are too few */
    ck_assert_uint_eq(spw_window_length(hits, 8, 3), 8);
    ck_assert_uint_eq(spw_window_length(hits, 10, 6), 4);
    ck_assert_uint_eq(spw_window_length(hits, 6, 1), 6);
    hits[0].status = -EINPROGRESS;
    ck_assert_uint_eq(spw_window_length(hits, 3, 3), 0);
    ck_assert_uint_eq(spw_window_length(hits, 4, 3), 4);
    ck_assert_uint_eq(spw_window_length(hits, 1, 1), 0);
}
END_TEST

START_TEST(test_small_calls)
{
    struct spw_key keys[2] = {key_of(1, 0), key_of(2, 0)};
    int32_t status[2] = {1, 1};
    struct spw_stat stat;
    struct spw_pool_info info;
    uint8_t token[SPW_TOKEN_BYTES];
    char *json;

    store(space, keys, 1, 1);
    ck_assert_int_eq(spw_nop(space), 0);
    ck_assert_int_eq(spw_touch(space, keys, 2, SPW_CHAIN), 0);
    ck_assert_int_eq(spw_prefetch(space, keys, 2, 0, 5, status), 0);
    ck_assert_int_eq(status[0], 0);
    ck_assert_int_eq(status[1], -ENOENT);
    ck_assert_int_eq(spw_advise(space, keys, 2, SPW_ADVICE_USES_LEFT, 3), 0);
    ck_assert_int_eq(spw_pin(space, keys, 2, 100, status), 0);
    ck_assert_int_eq(spw_sync(space, keys, 1, 100), 0);
    ck_assert_int_eq(spw_sync(space, NULL, 0, 100), 0);
    ck_assert_int_eq(spw_stat(space, &stat), 0);
    ck_assert_uint_eq(stat.objects, 42);
    ck_assert_int_eq(spw_delete(space, keys, 1, status), 0);
    ck_assert_int_eq(spw_lookup(space, keys, 1, 0, NULL), 0);
    ck_assert_int_eq(spw_acquire(space, NULL, 0, 0, 0, NULL), 0);
    spw_pool_info(pool, &info);
    ck_assert_uint_eq(info.flags, SPW_POOL_TRUSTED);
    spw_owner_token(session, token);
    ck_assert_uint_eq(token[3], 0xab);
    ck_assert_uint_eq(spw_space_piece_bytes(space), FAKE_PIECE_BYTES);
    ck_assert_int_eq(spw_admin(session, "[1]", &json), 0);
    ck_assert_str_eq(json, "{\"echo\":[1]}");
    free(json);
}
END_TEST

START_TEST(test_wrong_arguments)
{
    struct spw_key key = key_of(1, 0), bad = key;
    struct spw_view view;
    struct spw_iovec iov = {NULL, 10};
    uint64_t size_bytes = FAKE_PIECE_BYTES + 1;
    spw_space *varying = space_new(0);

    ck_assert_int_eq(spw_connect(NULL, NULL), -EINVAL);
    ck_assert_int_eq(spw_connect(&(struct spw_connect_options){.ring_entries = 7}, &session), -EINVAL);
    ck_assert_int_eq(spw_connect(&(struct spw_connect_options){.scratch_bytes = 1}, &session), -EINVAL);
    ck_assert_int_eq(spw_connect(&(struct spw_connect_options){.spin_us = 1000001}, &session), -EINVAL);
    ck_assert_int_eq(spw_pool_open(session, "", &pool), -EINVAL);
    ck_assert_int_eq(spw_lookup(NULL, &key, 1, 0, NULL), -EINVAL);
    ck_assert_int_eq(spw_lookup(space, NULL, 1, 0, NULL), -EINVAL);
    ck_assert_int_eq(spw_lookup(space, &key, 1, SPW_WRITE, NULL), -EINVAL);
    ck_assert_int_eq(spw_reserve(varying, &key, NULL, 1, 0, 0, &view), -EINVAL);
    ck_assert_int_eq(spw_reserve(varying, &key, &size_bytes, 1, 0, 0, &view), -EMSGSIZE);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "spw_put"));
    ck_assert_int_eq(spw_acquire(space, &key, 1, 0, 0, NULL), -EINVAL);
    ck_assert_int_eq(spw_put(space, &key, &iov, 1, 0, 0, NULL), -EINVAL);
    ck_assert_int_eq(spw_key_init(&bad, "", 0, 0), -EINVAL);
    bad.bytes[20] = 1;
    ck_assert_int_eq(spw_touch(space, &bad, 1, 0), -EINVAL);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "key 0"));
    bad = key;
    bad.part = 2;
    bad.n_parts = 2;
    ck_assert_int_eq(spw_touch(space, &bad, 1, 0), -EINVAL);
    ck_assert_int_eq(spw_release(space, &view, 1, SPW_DIRTY | SPW_DISCARD), -EINVAL);
    ck_assert_int_eq(spw_acquire_range(space, &key, UINT64_MAX - 1, 4096, 0, 0, &view, 1), -EINVAL);
    ck_assert_int_eq(spw_acquire_range(space, &key, 0, FAKE_PIECE_BYTES + 1, 0, 0, &view, 1), -E2BIG);
    ck_assert_int_eq(spw_queue_fd(NULL), -EINVAL);
    ck_assert_int_eq(spw_job_wait(NULL, 0), -EINVAL);
    spw_close(NULL);
    spw_queue_free(NULL);
    spw_job_free(NULL);
    ck_assert_uint_eq(fake_sqes(fake), 0); /* none of these reached the daemon */
}
END_TEST

/* What the daemon says, and which entries it was told. */
START_TEST(test_manifest)
{
    static struct spw_manifest_entry entries[SPW_MANIFEST_MAX + 1];
    struct spw_sizing sizing;

    for (size_t i = 0; i < SPW_MANIFEST_MAX; i++)
        entries[i] = (struct spw_manifest_entry){.size_bytes = 1000 + i, .slots = 2};
    ck_assert_int_eq(spw_manifest(pool, entries, 3, &sizing), 0);
    ck_assert_uint_eq(sizing.leased_bytes, 2 * (1000 + 1001 + 1002));
    ck_assert_int_eq(spw_manifest(pool, NULL, 0, &sizing), 0);
    ck_assert_uint_eq(sizing.leases, 0);
    ck_assert_int_eq(spw_manifest(pool, entries, SPW_MANIFEST_MAX, &sizing), 0);
    ck_assert_uint_eq(sizing.leases, SPW_MANIFEST_MAX);
    ck_assert_int_eq(spw_manifest(pool, entries, SPW_MANIFEST_MAX + 1, &sizing), -E2BIG);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "256"));
    ck_assert_int_eq(spw_manifest(NULL, entries, 1, &sizing), -EINVAL);
    ck_assert_int_eq(spw_manifest(pool, NULL, 1, &sizing), -EINVAL);
    ck_assert_int_eq(spw_manifest(pool, entries, 1, NULL), -EINVAL);
    ck_assert_uint_eq(sizing.leases, SPW_MANIFEST_MAX); /* untouched */
}
END_TEST

START_TEST(test_long_lists_are_split)
{
    struct spw_key *keys = keys_new(MANY, 0, 0);
    struct spw_hit *hits = calloc(MANY, sizeof(*hits));
    struct spw_view *views = calloc(MANY, sizeof(*views));

    store(space, keys, MANY - 1, 0);
    unsigned before = fake_sqes(fake);
    ck_assert_int_eq(spw_lookup(space, keys, MANY, SPW_CHAIN, hits), MANY - 1);
    ck_assert_uint_ge(fake_sqes(fake) - before, 3);
    ck_assert_int_eq(hits[MANY - 1].status, -ENOENT);
    load(space, keys, MANY - 1, 0);
    ck_assert_int_eq(spw_delete(space, keys + 5000, 1, NULL), 0);
    ck_assert_int_eq(spw_lookup(space, keys, MANY, 0, NULL), 5000); /* the prefix ends in a later request */
    ck_assert_int_eq(spw_acquire(space, keys, MANY, SPW_ALL, 0, views), -E2BIG);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "list_max"));
    ck_assert_int_eq(spw_sync(space, keys, MANY, 0), -E2BIG);
    ck_assert_int_eq(spw_acquire(space, keys, 4096, SPW_ALL, 0, views), 0);
    ck_assert_int_eq(spw_release(space, views, 4096, 0), 0);
    ck_assert_uint_eq(fake_leases(fake), 0);
    free(views);
    free(hits);
    free(keys);
}
END_TEST

START_TEST(test_a_plan_goes_out_in_order)
{
    struct spw_key *keys = keys_new(MANY, 0, 0);
    unsigned before = fake_sqes(fake);

    ck_assert_int_eq(spw_plan(space, keys, MANY), MANY);
    ck_assert_uint_ge(fake_sqes(fake) - before, 3);
    ck_assert_int_eq(spw_plan(space, keys, 100), 100);
    before = fake_sqes(fake);
    ck_assert_int_eq(spw_plan(space, NULL, 0), 0); /* is told */
    ck_assert_uint_eq(fake_sqes(fake) - before, 1);
    ck_assert_int_eq(spw_plan(NULL, keys, 1), -EINVAL);
    ck_assert_int_eq(spw_plan(space, NULL, 1), -EINVAL);
    fake_set_fault(fake, FAKE_REQUEST_FAILS);
    ck_assert_int_eq(spw_plan(space, keys, MANY), -EAGAIN);
    fake_set_fault(fake, FAKE_NONE);
    free(keys);
}
END_TEST

START_TEST(test_limits_are_named)
{
    struct spw_key key = key_of(1, 0);
    struct spw_view view;

    fake_set_fault(fake, FAKE_NO_SPACE);
    ck_assert_int_eq(spw_reserve(space, &key, NULL, 1, 0, 0, &view), 0);
    ck_assert_int_eq(view.status, -ENOSPC);
    ck_assert_ptr_nonnull(strstr(spw_limit_text(view.detail), "max_leases_percent"));
    fake_set_fault(fake, FAKE_REQUEST_FAILS);
    ck_assert_int_eq(spw_reserve(space, &key, NULL, 1, 0, 0, &view), -EAGAIN);
    ck_assert_uint_eq(spw_error_limit(), SPW_LIMIT_REQUESTS);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "too many requests"));
    ck_assert_int_eq(view.status, -EAGAIN);
    fake_set_fault(fake, FAKE_NONE);
    ck_assert_int_eq(spw_nop(space), 0);
    for (unsigned i = 0; i < 20; i++)
        ck_assert_uint_gt(strlen(spw_limit_text(i)), 0);
}
END_TEST

static int memfd_sealed(uint64_t size_bytes)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, (off_t)size_bytes), 0);
    ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    return fd;
}

START_TEST(test_chunk_epochs)
{
    struct spw_key keys[2] = {key_of(1, 0), key_of(2, 0)};

    store(space, keys, 1, 1);
    load(space, keys, 1, 1);
    fake_renew_chunk(fake);
    store(space, keys + 1, 1, 2);
    load(space, keys + 1, 1, 2);
    ck_assert_uint_eq(fake_chunk_gets(fake), 2);
}
END_TEST

/* A daemon that lies: a chunk goes though there are leases in it. Its addresses stay. */
START_TEST(test_chunk_renewed_under_views)
{
    struct spw_key keys[2] = {key_of(1, 0), key_of(2, 0)};
    struct spw_view view, reserved;
    uint64_t size_bytes = 4096;
    unsigned sum = 0;

    store(space, keys, 1, 1);
    ck_assert_int_eq(spw_acquire(space, keys, 1, 0, 1000, &view), 0);
    ck_assert_int_eq(spw_reserve(space, &keys[1], &size_bytes, 1, 0, 1000, &reserved), 0);
    fake_renew_chunk(fake);
    struct spw_key other = key_of(3, 0);
    store(space, &other, 1, 3);
    load(space, &other, 1, 3);
    for (size_t i = 0; i < view.size_bytes; i++)
        sum += ((const volatile uint8_t *)view.data)[i];
    memset(reserved.data, (int)sum, size_bytes);
    ck_assert_int_eq(spw_release(space, &view, 1, 0), 0);
    ck_assert_int_eq(spw_abort(space, &reserved, 1), 0);
}
END_TEST

/* Smaller, larger, and with other rights: addresses that were mapped once stay mapped. */
START_TEST(test_map_in_place_of_another)
{
    static const struct {
        uint64_t size_bytes;
        bool writable, is_there;
    } steps[] = {
        {MIB, true, true}, {3 * MIB, true, true}, {64 * MIB, true, false}, {4096, true, true}, {4096, false, false}};
    struct client_map map, maps[ARRAY_LEN(steps)];
    int fd = memfd_sealed(4 * MIB);

    ck_assert_int_eq(client_map_open(fd, 4 * MIB, true, &map), 0);
    close(fd);
    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        bool is_there = !steps[i].is_there;

        memset(map.base, 0x55, map.size_bytes < 4096 ? map.size_bytes : 4096);
        fd = memfd_sealed(steps[i].size_bytes);
        ck_assert_int_eq(client_map_replace(fd, steps[i].size_bytes, steps[i].writable, &map, &maps[i], &is_there), 0);
        close(fd);
        ck_assert(is_there == steps[i].is_there);
        ck_assert((maps[i].base == map.base) == is_there);
        ck_assert_uint_eq(maps[i].size_bytes, steps[i].size_bytes);
        for (size_t at = 0; at < map.place_bytes; at += 4096) /* the old one's, all of it */
            ck_assert_uint_eq(((const volatile uint8_t *)map.base)[at], 0);
        if (!is_there)
            memset(map.base, 1, map.place_bytes);
        if (!is_there)
            client_map_close(&map);
        map = maps[i];
    }
    client_map_close(&map);
}
END_TEST

/* --- Put and get ---------------------------------------------------------------------------------------------------- */

START_TEST(test_put_get)
{
    enum { N = 700 }; /* several batches */
    struct spw_key *keys = keys_new(N + 1, 0, 0);
    struct spw_iovec *from = calloc(N, sizeof(*from)), *to = calloc(N + 1, sizeof(*to));
    int32_t *status = calloc(N + 1, sizeof(*status));
    spw_space *varying = space_new(0);

    for (size_t i = 0; i < N; i++) {
        size_t size_bytes = i % 97 == 5 ? 300000 + i : 1 + i * 53 % FAKE_PIECE_BYTES; /* some of several pieces */
        from[i] = (struct spw_iovec){malloc(size_bytes), size_bytes};
        to[i] = (struct spw_iovec){malloc(size_bytes), size_bytes};
        fill(from[i].data, size_bytes, i);
    }
    ck_assert_msg(spw_put(varying, keys, from, N, SPW_CHAIN, 1000, status) == 0, "%s", spw_error_text());
    for (size_t i = 0; i < N; i++)
        ck_assert_int_eq(status[i], 0);
    to[N] = (struct spw_iovec){malloc(10), 10};
    ck_assert_msg(spw_get(varying, keys, to, N + 1, SPW_CHAIN, 1000, status) == 0, "%s", spw_error_text());
    for (size_t i = 0; i < N; i++) {
        ck_assert_int_eq(status[i], 0);
        ck_assert_uint_eq(to[i].size_bytes, from[i].size_bytes);
        verify(to[i].data, to[i].size_bytes, i);
    }
    ck_assert_int_eq(status[N], -ENOENT);
    ck_assert_int_eq(spw_put(varying, keys, from, 7, 0, 1000, status), 0);
    ck_assert_int_eq(status[0], -EEXIST);
    ck_assert_int_eq(status[5], -EEXIST);
    no_leases();
    for (size_t i = 0; i <= N; i++) {
        free(to[i].data);
        if (i < N)
            free(from[i].data);
    }
    free(status);
    free(to);
    free(from);
    free(keys);
}
END_TEST

/* Rooms that are too small, too large, and for objects of several pieces. */
START_TEST(test_get_rooms)
{
    struct spw_key keys[2] = {key_of(1, 0), key_of(2, 0)};
    spw_space *varying = space_new(0);
    uint8_t *large = malloc(300000), *room = malloc(400000), small[1000];
    struct spw_iovec from[2] = {{small, 1000}, {large, 300000}};
    int32_t status[2];

    fill(small, sizeof(small), 1);
    fill(large, 300000, 2);
    ck_assert_int_eq(spw_put(varying, keys, from, 2, 0, 1000, status), 0);
    struct spw_iovec to[2] = {{room, 999}, {room + 1000, 299999}};
    ck_assert_int_eq(spw_get(varying, keys, to, 2, 0, 1000, status), 0);
    ck_assert_int_eq(status[0], -EMSGSIZE);
    ck_assert_int_eq(status[1], -EMSGSIZE);
    ck_assert_uint_eq(to[0].size_bytes, 1000);
    ck_assert_uint_eq(to[1].size_bytes, 300000);
    struct spw_iovec tight = {room, 10}; /* one piece of room, an object of five */
    ck_assert_int_eq(spw_get(varying, &keys[1], &tight, 1, 0, 1000, status), 0);
    ck_assert_int_eq(status[0], -EMSGSIZE);
    ck_assert_uint_eq(tight.size_bytes, 300000);
    struct spw_iovec roomy[2] = {{room, 100000}, {room + 100000, 300000}};
    ck_assert_int_eq(spw_get(varying, keys, roomy, 2, 0, 1000, status), 0);
    ck_assert_int_eq(status[0], 0);
    ck_assert_uint_eq(roomy[0].size_bytes, 1000);
    verify(room, 1000, 1);
    verify(room + 100000, 300000, 2);
    struct spw_view views[5];
    ck_assert_int_eq(spw_acquire(varying, &keys[1], 1, 0, 0, views), 0);
    ck_assert_int_eq(views[0].status, -EMSGSIZE);
    ck_assert_int_eq(spw_acquire_range(varying, &keys[1], 65000, 200000, 0, 0, views, 5), 5);
    ck_assert_uint_eq(views[0].size_bytes, 536);
    ck_assert_uint_eq(views[4].size_bytes, 265000 - 4 * FAKE_PIECE_BYTES);
    ck_assert(memcmp(views[1].data, large + FAKE_PIECE_BYTES, FAKE_PIECE_BYTES) == 0);
    ck_assert_int_eq(spw_release(varying, views, 5, 0), 0);
    no_leases();
    free(room);
    free(large);
}
END_TEST

/* An object of another size, or of the same, takes its place at any request of the GET: all of one comes, or all of the
 * other. */
START_TEST(test_get_replaced)
{
    static const uint64_t sizes[] = {1000, FAKE_PIECE_BYTES, 300000, 300000, 3 * MIB + 5, 5 * MIB};
    uint64_t size_bytes = sizes[_i], room_bytes = 4 * MIB;
    spw_space *varying = space_new(0);
    uint8_t *from_bytes = malloc(size_bytes), *room = calloc(1, room_bytes), *other = malloc(room_bytes);
    unsigned n_replaced = 0;

    memset(other, FAKE_REPLACED_BYTE, room_bytes);
    fill(from_bytes, size_bytes, 7);
    for (unsigned n = 0; n < 8 * ARRAY_LEN(sizes); n++) {
        struct spw_key key = key_of(n + 1, 0);
        struct spw_iovec from = {from_bytes, size_bytes}, to = {room, room_bytes};
        uint64_t other_bytes = sizes[n % ARRAY_LEN(sizes)];
        int32_t status;

        ck_assert_int_eq(spw_put(varying, &key, &from, 1, 0, 1000, &status), 0);
        fake_replace(fake, n / ARRAY_LEN(sizes) + 1, other_bytes);
        ck_assert_int_eq(spw_get(varying, &key, &to, 1, 0, 1000, &status), 0);
        fake_replace(fake, 0, 0);
        bool is_other = status == 0 ? room[0] == FAKE_REPLACED_BYTE : to.size_bytes == other_bytes;
        ck_assert_uint_eq(to.size_bytes, is_other ? other_bytes : size_bytes);
        ck_assert_int_eq(status, to.size_bytes > room_bytes ? -EMSGSIZE : 0);
        if (status == 0)
            ck_assert(memcmp(room, is_other ? other : from_bytes, to.size_bytes) == 0);
        n_replaced += is_other;
        no_leases();
    }
    ck_assert_uint_ge(n_replaced, ARRAY_LEN(sizes));
    free(other);
    free(room);
    free(from_bytes);
}
END_TEST

/* Larger than a window, and than a batch of views. */
START_TEST(test_put_get_large)
{
    size_t size_bytes = 30 * MIB + 12345;
    struct spw_key key = key_of(1, 0);
    spw_space *varying = space_new(0);
    uint8_t *a = malloc(size_bytes), *b = malloc(size_bytes);
    struct spw_iovec from = {a, size_bytes}, to = {b, size_bytes};
    int32_t status;

    fill(a, size_bytes, 9);
    ck_assert_int_eq(spw_put(varying, &key, &from, 1, 0, 1000, &status), 0);
    ck_assert_int_eq(status, 0);
    ck_assert_int_eq(spw_get(varying, &key, &to, 1, 0, 1000, &status), 0);
    ck_assert_int_eq(status, 0);
    ck_assert(memcmp(a, b, size_bytes) == 0);
    no_leases();
    free(b);
    free(a);
}
END_TEST

START_TEST(test_tensors)
{
    size_t size_bytes = 20 * MIB + 77;
    struct spw_key key = key_of(1, 0), missing = key_of(2, 0);
    uint8_t *a = malloc(size_bytes), *b = malloc(size_bytes);

    fill(a, size_bytes, 4);
    ck_assert_int_eq(spw_tensor_open(space, &key, size_bytes), 0);
    ck_assert_int_eq(spw_tensor_open(space, &key, size_bytes), 0);
    ck_assert_int_eq(spw_tensor_open(space, &key, size_bytes + 1), -EINVAL);
    ck_assert_int_eq(spw_put_range(space, &key, 0, a, size_bytes, 1000), 0);
    ck_assert_int_eq(spw_get_range(space, &key, 0, b, size_bytes, 1000), 0);
    ck_assert(memcmp(a, b, size_bytes) == 0);
    ck_assert_int_eq(spw_put_range(space, &key, 100001, a, 9 * MIB, 1000), 0);
    memset(b, 0, size_bytes);
    ck_assert_int_eq(spw_get_range(space, &key, 100001, b, 9 * MIB, 1000), 0);
    ck_assert(memcmp(a, b, 9 * MIB) == 0);
    ck_assert_int_eq(spw_get_range(space, &key, size_bytes - 1, b, 2, 1000), -ERANGE);
    ck_assert_int_eq(spw_get_range(space, &missing, 0, b, 2, 1000), -ENOENT);
    ck_assert_int_eq(spw_get_range(space, &key, 0, b, 0, 1000), -EINVAL);
    struct spw_view arena;
    uint64_t odd = 4097, even = 8192;
    ck_assert_int_eq(spw_acquire_range(space, &key, 0, 4096, SPW_WRITE, 1000, &arena, 1), 1);
    ck_assert_int_eq(spw_get_to_view(space, &key, &odd, 1, &arena, 0, 1000, NULL), -EINVAL);
    ck_assert_int_eq(spw_get_to_view(space, &key, &even, 1, &arena, 0, 1000, NULL), -ERANGE);
    ck_assert_int_eq(spw_release(space, &arena, 1, SPW_DISCARD), 0);
    ck_assert_int_eq(spw_get_to_view(space, &key, NULL, 1, &arena, 0, 1000, NULL), -EINVAL);
    ck_assert_uint_eq(fake_leases(fake), 0);
    free(b);
    free(a);
}
END_TEST

/* --- Threads -------------------------------------------------------------------------------------------------------- */

static void *thread_calls(void *arg)
{
    uint64_t number = (uintptr_t)arg * 1000;

    for (unsigned i = 0; i < 40; i++) {
        struct spw_key keys[8];
        for (unsigned k = 0; k < 8; k++)
            keys[k] = key_of(number + (uint64_t)i * 8 + k, 0);
        store(space, keys, 8, number + i);
        load(space, keys, 8, number + i);
    }
    return NULL;
}

START_TEST(test_threads)
{
    pthread_t threads[8];

    for (uintptr_t i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, thread_calls, (void *)i);
    for (unsigned i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    ck_assert_uint_eq(fake_leases(fake), 0);
    ck_assert_uint_eq(fake_rings(fake), 0); /* they went with their threads */
}
END_TEST

static pthread_barrier_t barrier;

static void *thread_outlives(void *arg)
{
    (void)arg;
    ck_assert_int_eq(spw_nop(space), 0);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier); /* the session is closed in between */
    return NULL;
}

START_TEST(test_session_ends_before_its_threads)
{
    pthread_t thread;

    pthread_barrier_init(&barrier, NULL, 2);
    pthread_create(&thread, NULL, thread_outlives, NULL);
    pthread_barrier_wait(&barrier);
    spw_close(session);
    session = NULL;
    pthread_barrier_wait(&barrier);
    pthread_join(thread, NULL);
    pthread_barrier_destroy(&barrier);
}
END_TEST

START_TEST(test_many_sessions_in_one_thread)
{
    for (unsigned i = 0; i < 100; i++) {
        spw_session *s;
        spw_pool *p;
        spw_space *sp;
        ck_assert_int_eq(connect_fake(&s), 0);
        ck_assert_int_eq(spw_pool_open(s, "default", &p), 0);
        ck_assert_int_eq(spw_space_open(p, &(struct spw_space_options){.item_bytes = 1}, &sp), 0);
        ck_assert_int_eq(spw_nop(sp), 0);
        spw_close(s);
    }
}
END_TEST

/* Both sides sleep between calls that are one at a time, so each must have been woken. */
START_TEST(test_both_sides_sleep)
{
    struct spw_key key = key_of(1, FAKE_GROUP_HOLD);
    spw_queue *queue;

    ck_assert_int_eq(spw_queue_new(session, space, 8, &queue), 0);
    for (unsigned i = 0; i < 50; i++) {
        spw_job *job;
        ck_assert_int_eq(spw_submit_lookup(queue, space, &key, 1, 0, NULL, NULL, &job), 0);
        fake_wait_held(fake, 1); /* the engine has seen it, and goes to sleep */
        ck_assert_int_eq(spw_job_wait(job, 1), -ETIMEDOUT);
        fake_let_go(fake);
        ck_assert_int_eq(spw_job_wait(job, SPW_FOREVER), 0);
        spw_job_free(job);
    }
    ck_assert_uint_ge(fake_sleeps(fake), 50);
    spw_queue_free(queue);
}
END_TEST

/* A blocking call that must not poll goes to sleep each time, and is woken. */
START_TEST(test_calls_without_spinning)
{
    struct spw_connect_options options = {.socket_path = fake_path(fake), .spin_us = SPW_SPIN_NEVER};
    struct rusage before, after;
    spw_session *s;
    spw_space *sp;
    spw_pool *p;

    ck_assert_int_eq(spw_connect(&options, &s), 0);
    ck_assert_int_eq(spw_pool_open(s, "default", &p), 0);
    ck_assert_int_eq(spw_space_open(p, &(struct spw_space_options){.item_bytes = BLOCK_BYTES}, &sp), 0);
    ck_assert_int_eq(spw_nop(sp), 0);
    getrusage(RUSAGE_THREAD, &before);
    for (unsigned i = 0; i < 200; i++)
        ck_assert_int_eq(spw_nop(sp), 0);
    getrusage(RUSAGE_THREAD, &after);
    ck_assert_int_gt(after.ru_nvcsw - before.ru_nvcsw, 0); /* some answers come before it is asleep */
    spw_close(s);
}
END_TEST

/* --- Jobs ----------------------------------------------------------------------------------------------------------- */

static void poll_once(spw_queue *queue)
{
    int r = spw_queue_arm(queue);

    ck_assert_int_ge(r, 0);
    if (r == 0) {
        struct pollfd pfd = {.fd = spw_queue_fd(queue), .events = POLLIN};
        ck_assert_int_eq(poll(&pfd, 1, 10000), 1);
    }
}

START_TEST(test_jobs_by_poll)
{
    enum { N = 64 };
    struct spw_key keys[N];
    struct spw_view views[N] = {0};
    unsigned ended = 0;
    spw_queue *queue;
    spw_job *job;

    ck_assert_int_eq(spw_queue_new(session, space, N, &queue), 0);
    ck_assert_int_eq(spw_queue_next(queue, &job), -EAGAIN);
    for (unsigned i = 0; i < N; i++) {
        keys[i] = key_of(i, i % 2 ? FAKE_GROUP_HOLD : 0);
        ck_assert_int_eq(spw_submit_reserve(queue, space, &keys[i], NULL, 1, 0, 1000, &views[i], &views[i], NULL), 0);
    }
    ck_assert_int_eq(spw_submit_lookup(queue, space, keys, 1, 0, NULL, NULL, NULL), -EAGAIN); /* full */
    fake_wait_held(fake, N / 2);
    fake_let_go(fake);
    while (ended < N) {
        poll_once(queue);
        while (spw_queue_next(queue, &job) == 0) {
            ck_assert_int_eq(spw_job_status(job), 0);
            ck_assert_uint_eq(spw_job_value(job), 1);
            struct spw_view *view = spw_job_user(job);
            ck_assert_int_eq(view->status, 0);
            ck_assert_ptr_nonnull(view->data);
            spw_job_free(job);
            ended++;
        }
    }
    ck_assert_int_eq(spw_submit_commit(queue, space, views, N, 0, NULL, &job), 0);
    ck_assert_int_eq(spw_job_wait(job, SPW_FOREVER), 0);
    ck_assert_uint_eq(spw_job_value(job), N);
    spw_job_free(job);
    ck_assert_int_eq(spw_queue_next(queue, &job), -EAGAIN); /* waited for and freed: comes no more */
    ck_assert_uint_eq(fake_leases(fake), 0);
    spw_queue_free(queue);
}
END_TEST

START_TEST(test_jobs_of_every_kind)
{
    struct spw_key keys[2] = {key_of(1, 0), key_of(2, 0)};
    uint8_t a[BLOCK_BYTES], b[BLOCK_BYTES];
    struct spw_iovec from[1] = {{a, sizeof(a)}}, to[1] = {{b, sizeof(b)}};
    struct spw_view views[1];
    struct spw_hit hits[2];
    int32_t status[2] = {7, 7};
    spw_queue *queue;
    spw_job *job;

    fill(a, sizeof(a), 3);
    ck_assert_int_eq(spw_queue_new(session, space, 0, &queue), 0);
    ck_assert_int_eq(spw_submit_put(queue, space, keys, from, 1, 0, 1000, status, from, &job), 0);
    poll_once(queue);
    while (spw_queue_next(queue, &job) == -EAGAIN)
        poll_once(queue);
    ck_assert_ptr_eq(spw_job_user(job), from);
    ck_assert_int_eq(spw_job_status(job), 0);
    ck_assert_int_eq(status[0], 0);
    spw_job_free(job);
    ck_assert_int_eq(spw_submit_get(queue, space, keys, to, 1, 0, 1000, status, NULL, &job), 0);
    ck_assert_int_eq(spw_job_wait(job, SPW_FOREVER), 0);
    ck_assert_uint_eq(spw_job_value(job), 1);
    ck_assert(memcmp(a, b, sizeof(a)) == 0);
    spw_job_free(job);
    ck_assert_int_eq(spw_submit_lookup(queue, space, keys, 2, 0, hits, NULL, &job), 0);
    ck_assert_int_eq(spw_job_wait(job, SPW_FOREVER), 0);
    ck_assert_uint_eq(spw_job_value(job), 1);
    spw_job_free(job);
    ck_assert_int_eq(spw_submit_acquire(queue, space, keys, 1, 0, 1000, views, NULL, &job), 0);
    ck_assert_int_eq(spw_job_wait(job, SPW_FOREVER), 0);
    spw_job_free(job);
    ck_assert_int_eq(spw_submit_release(queue, space, views, 1, 0, NULL, &job), 0);
    ck_assert_int_eq(spw_job_wait(job, SPW_FOREVER), 0);
    spw_job_free(job);
    ck_assert_int_eq(spw_submit_prefetch(queue, space, keys, 2, 0, 10, status, NULL, &job), 0);
    ck_assert_int_eq(spw_job_wait(job, SPW_FOREVER), 0);
    ck_assert_int_eq(status[1], -ENOENT);
    spw_job_free(job);
    ck_assert_int_eq(spw_submit_sync(queue, space, NULL, 0, 10, NULL, &job), 0);
    ck_assert_int_eq(spw_job_wait(job, SPW_FOREVER), 0);
    spw_job_free(job);
    ck_assert_int_eq(spw_submit_lookup(queue, space, NULL, 0, 0, NULL, NULL, &job), 0); /* nothing to do */
    ck_assert_int_eq(spw_job_status(job), 0);
    ck_assert_int_eq(spw_queue_arm(queue), 1);
    spw_queue_free(queue);
}
END_TEST

/* Who is told that something has ended does not sleep, so nobody rings for the queue. */
START_TEST(test_a_queue_with_an_answer_is_not_armed)
{
    struct spw_key keys[2] = {key_of(1, FAKE_GROUP_HOLD), key_of(2, 0)};
    struct spw_hit hits[2];
    spw_job *held, *job;
    spw_queue *queue;

    ck_assert_int_eq(spw_queue_new(session, space, 8, &queue), 0);
    struct pollfd pfd = {.fd = spw_queue_fd(queue), .events = POLLIN};
    ck_assert_int_eq(spw_submit_lookup(queue, space, &keys[0], 1, 0, &hits[0], NULL, &held), 0);
    fake_wait_held(fake, 1);
    ck_assert_int_eq(spw_submit_lookup(queue, space, &keys[1], 1, 0, &hits[1], NULL, &job), 0);
    ck_assert_int_eq(spw_job_wait(job, SPW_FOREVER), 0);
    ck_assert_int_eq(spw_queue_arm(queue), 1);
    fake_let_go(fake);
    ck_assert_int_eq(spw_job_wait(held, SPW_FOREVER), 0);
    ck_assert_int_eq(poll(&pfd, 1, 0), 0);
    /* Taken by hand, both are there. */
    for (unsigned i = 0; i < 2; i++)
        ck_assert_int_eq(spw_queue_next(queue, &job), 0);
    ck_assert_int_eq(spw_queue_next(queue, &job), -EAGAIN);
    spw_queue_free(queue);
}
END_TEST

static void changes(spw_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    client_queue_changed_locked(queue);
    pthread_mutex_unlock(&queue->lock);
}

/* What could not be taken back once is taken back the next time, and what was empty keeps nobody from being woken. */
START_TEST(test_a_queue_whose_eventfd_is_not_read)
{
    struct spw_key key = key_of(1, FAKE_GROUP_HOLD);
    struct spw_hit hit;
    spw_queue *queue;
    spw_job *job, *none;

    ck_assert_int_eq(spw_queue_new(session, space, 8, &queue), 0);
    struct pollfd pfd = {.fd = spw_queue_fd(queue), .events = POLLIN};
    ck_assert_int_eq(spw_submit_lookup(queue, space, &key, 1, 0, &hit, NULL, &job), 0);
    fake_wait_held(fake, 1);
    ck_assert_int_eq(spw_queue_arm(queue), 0);
    changes(queue);
    ck_assert_int_eq(poll(&pfd, 1, 0), 1);
    int fd = queue->event_fd;
    queue->event_fd = -1;
    ck_assert_int_eq(spw_queue_next(queue, &none), -EAGAIN);
    queue->event_fd = fd;
    ck_assert_int_eq(spw_queue_arm(queue), 0);
    ck_assert_int_eq(spw_queue_next(queue, &none), -EAGAIN);
    ck_assert_int_eq(spw_queue_arm(queue), 0);
    ck_assert_int_eq(poll(&pfd, 1, 0), 0);
    store_release(&queue->is_roused, 1); /* by somebody whose signal was read with another one */
    ck_assert_int_eq(spw_queue_next(queue, &none), -EAGAIN);
    ck_assert_int_eq(spw_queue_arm(queue), 0);
    changes(queue);
    ck_assert_int_eq(poll(&pfd, 1, 0), 1);
    ck_assert_int_eq(spw_queue_next(queue, &none), -EAGAIN);
    ck_assert_int_eq(spw_queue_arm(queue), 0);
    ck_assert_int_eq(poll(&pfd, 1, 0), 0);
    spw_queue_free(queue);
}
END_TEST

START_TEST(test_cancel)
{
    struct spw_key key = key_of(1, FAKE_GROUP_HOLD);
    struct spw_hit hit;
    spw_queue *queue;
    spw_job *job, *late;

    ck_assert_int_eq(spw_queue_new(session, space, 8, &queue), 0);
    ck_assert_int_eq(spw_submit_lookup(queue, space, &key, 1, 0, &hit, NULL, &job), 0);
    fake_wait_held(fake, 1);
    ck_assert_int_eq(spw_job_status(job), -EINPROGRESS);
    ck_assert_int_eq(spw_job_cancel(job), 0);
    ck_assert_int_eq(spw_job_wait(job, SPW_FOREVER), -ECANCELED);
    ck_assert_int_eq(hit.status, -ECANCELED);
    ck_assert_int_eq(spw_job_cancel(job), 0); /* too late: nothing */
    spw_job_free(job);
    ck_assert_int_eq(spw_submit_lookup(queue, space, &key, 1, 0, &hit, NULL, &late), 0);
    fake_wait_held(fake, 1);
    spw_queue_free(queue); /* cancels it */
    fake_wait_held(fake, 0);
}
END_TEST

static void *thread_waits(void *arg)
{
    ck_assert_int_eq(spw_job_wait(arg, SPW_FOREVER), 0);
    return NULL;
}

/* Several threads wait on one queue, for jobs that end in another order. */
START_TEST(test_waiters)
{
    struct spw_key key = key_of(1, FAKE_GROUP_HOLD);
    pthread_t threads[4];
    spw_queue *queue;
    spw_job *jobs[4];

    ck_assert_int_eq(spw_queue_new(session, space, 8, &queue), 0);
    for (unsigned i = 0; i < 4; i++) {
        ck_assert_int_eq(spw_submit_lookup(queue, space, &key, 1, 0, NULL, NULL, &jobs[i]), 0);
        pthread_create(&threads[i], NULL, thread_waits, jobs[i]);
    }
    fake_wait_held(fake, 4);
    fake_let_go(fake);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    spw_queue_free(queue);
}
END_TEST

/* --- Forks ---------------------------------------------------------------------------------------------------------- */

static int in_child(spw_queue *queue)
{
    struct spw_key key = key_of(1, 0);
    spw_pool *p;
    spw_job *job;
    spw_session *own;

    if (spw_nop(space) != -ECHILD || spw_lookup(space, &key, 1, 0, NULL) != -ECHILD)
        return 1;
    if (!strstr(spw_error_text(), "fork"))
        return 2;
    if (spw_pool_open(session, "default", &p) != -ECHILD || spw_queue_next(queue, &job) != -ECHILD ||
        spw_queue_arm(queue) != -ECHILD || spw_submit_sync(queue, space, NULL, 0, 0, NULL, NULL) != -ECHILD)
        return 3;
    spw_queue_free(queue);
    if (connect_fake(&own) != 0 || spw_nop(space) != -ECHILD) /* also after the child has one of its own */
        return 4;
#if !defined(BASE_TSAN) /* a pool takes a thread, which TSan cannot have in a child of several */
    spw_space *own_space;
    if (spw_pool_open(own, "default", &p) != 0 ||
        spw_space_open(p, &(struct spw_space_options){.item_bytes = 1}, &own_space) != 0 || spw_nop(own_space) != 0)
        return 5;
#endif
    spw_close(own);
    spw_close(session);
    return 0;
}

START_TEST(test_fork)
{
    struct spw_key key = key_of(1, 0);
    spw_queue *queue;
    int status;

    store(space, &key, 1, 1);
    ck_assert_int_eq(spw_queue_new(session, space, 8, &queue), 0);
    pid_t pid = fork();
    if (pid == 0)
        _exit(in_child(queue));
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
    load(space, &key, 1, 1);
    spw_queue_free(queue);
}
END_TEST

/* --- A daemon that dies or lies ------------------------------------------------------------------------------------- */

START_TEST(test_no_daemon)
{
    spw_session *s = NULL;

    ck_assert_int_eq(spw_connect(&(struct spw_connect_options){.socket_path = "/nonexistent/s"}, &s), -ENOENT);
    ck_assert_ptr_null(s);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "no daemon"));
    setenv("SPILLWAY_SOCKET", fake_path(fake), 1);
    ck_assert_int_eq(spw_connect(NULL, &s), 0);
    spw_close(s);
    unsetenv("SPILLWAY_SOCKET");
}
END_TEST

START_TEST(test_handshake_refusals)
{
    spw_session *s = NULL;
    spw_pool *p;

    fake_set_fault(fake, FAKE_WRONG_VERSION);
    ck_assert_int_eq(connect_fake(&s), -EPROTONOSUPPORT);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "version 7 to 8"));
    fake_set_fault(fake, FAKE_ODD_VERSION);
    ck_assert_int_eq(connect_fake(&s), -EPROTONOSUPPORT);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "version 9"));
    fake_set_fault(fake, FAKE_REFUSE_POOL);
    ck_assert_int_eq(spw_pool_open(session, "default", &p), -EACCES);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "uid 1000"));
    fake_set_fault(fake, FAKE_RINGS_FULL);
    ck_assert_int_eq(spw_nop(space), -EMFILE);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "session_rings"));
    ck_assert_uint_eq(spw_error_limit(), SPW_LIMIT_SESSION_RINGS);
    fake_set_fault(fake, FAKE_NONE);
    ck_assert_int_eq(spw_nop(space), 0); /* a refusal ends nothing */
}
END_TEST

START_TEST(test_late_replies_are_thrown_away)
{
    spw_session *s;
    spw_pool *p;

    ck_assert_int_eq(spw_connect(&(struct spw_connect_options){.socket_path = fake_path(fake), .timeout_ms = 50}, &s),
                     0);
    fake_set_fault(fake, FAKE_SILENT);
    ck_assert_int_eq(spw_pool_open(s, "default", &p), -ETIMEDOUT);
    fake_set_fault(fake, FAKE_NONE);
    ck_assert_int_eq(spw_pool_open(s, "default", &p), 0);
    spw_close(s);
}
END_TEST

static const enum fake_fault ring_lies[] = {FAKE_SHORT_REPLY, FAKE_UNSEALED_RING, FAKE_BAD_GEOMETRY,
                                            FAKE_NO_DESCRIPTORS};

START_TEST(test_ring_lies)
{
    fake_set_fault(fake, ring_lies[_i]);
    ck_assert_int_eq(spw_nop(space), -EPROTO);
    ck_assert_int_eq(spw_nop(space), -EPROTO); /* for good */
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "protocol"));
}
END_TEST

static const enum fake_fault lies[] = {FAKE_CQ_TAIL_FAR,    FAKE_CQ_TAIL_BACK,  FAKE_CQE_UNKNOWN,
                                       FAKE_RESULT_OUTSIDE, FAKE_RESULT_LENGTH, FAKE_RESULT_CHUNK};

START_TEST(test_lies)
{
    struct spw_key key = key_of(1, 0);
    struct spw_view view;

    ck_assert_int_eq(spw_nop(space), 0);
    fake_set_fault(fake, lies[_i]);
    ck_assert_int_eq(spw_reserve(space, &key, NULL, 1, 0, 0, &view), -EPROTO);
    fake_set_fault(fake, FAKE_NONE);
    ck_assert_int_eq(spw_nop(space), -EPROTO);
    ck_assert_int_eq(spw_space_open(pool, &(struct spw_space_options){0}, &space), -EPROTO);
}
END_TEST

START_TEST(test_death_in_a_call)
{
    struct spw_key key = key_of(1, 0);
    struct spw_view view = {.data = &view};

    ck_assert_int_eq(spw_nop(space), 0);
    fake_set_fault(fake, FAKE_DIE_ON_REQUEST);
    ck_assert_int_eq(spw_acquire(space, &key, 1, 0, SPW_FOREVER, &view), -ENOTCONN);
    ck_assert_ptr_null(view.data);
    ck_assert_int_eq(view.status, -ENOTCONN);
    ck_assert_int_eq(spw_nop(space), -ENOTCONN);
    ck_assert_int_eq(spw_pool_open(session, "default", &pool), -ENOTCONN);
}
END_TEST

START_TEST(test_death_leaves_views_readable)
{
    struct spw_key key = key_of(1, 0);
    struct spw_view view;

    store(space, &key, 1, 8);
    ck_assert_int_eq(spw_acquire(space, &key, 1, 0, 0, &view), 0);
    fake_set_fault(fake, FAKE_DIE_ON_REQUEST);
    ck_assert_int_eq(spw_nop(space), -ENOTCONN);
    verify(view.data, view.size_bytes, 8);
    ck_assert_int_eq(spw_release(space, &view, 1, 0), -ENOTCONN);
}
END_TEST

START_TEST(test_death_ends_jobs)
{
    struct spw_key key = key_of(1, FAKE_GROUP_HOLD);
    struct spw_hit hit;
    pthread_t waiter;
    spw_queue *queue;
    spw_job *job, *taken;

    (void)waiter;
    ck_assert_int_eq(spw_queue_new(session, space, 8, &queue), 0);
    ck_assert_int_eq(spw_submit_lookup(queue, space, &key, 1, 0, &hit, NULL, &job), 0);
    fake_wait_held(fake, 1);
    ck_assert_int_eq(spw_queue_arm(queue), 0);
    fake_die(fake);
    struct pollfd pfd = {.fd = spw_queue_fd(queue), .events = POLLIN};
    int r;
    do { /* the hang-up is seen first, and then that the daemon does not come back */
        ck_assert_int_eq(poll(&pfd, 1, 10000), 1);
        r = spw_queue_next(queue, &taken);
        if (r == -EAGAIN)
            ck_assert_int_ge(spw_queue_arm(queue), 0);
    } while (r == -EAGAIN);
    ck_assert_int_eq(r, 0);
    ck_assert_ptr_eq(job, taken);
    ck_assert_int_eq(spw_job_status(job), -ENOTCONN);
    ck_assert_int_eq(hit.status, -ENOTCONN);
    ck_assert_int_eq(spw_queue_arm(queue), -ENOTCONN); /* nothing will ever end again */
    ck_assert_int_eq(spw_submit_sync(queue, space, NULL, 0, 0, NULL, NULL), -ENOTCONN);
    spw_job_free(job);
}
END_TEST /* the queue goes with the session */

START_TEST(test_death_wakes_waiters)
{
    struct spw_key key = key_of(1, FAKE_GROUP_HOLD);
    spw_queue *queue;
    spw_job *job;

    ck_assert_int_eq(spw_queue_new(session, space, 8, &queue), 0);
    ck_assert_int_eq(spw_submit_lookup(queue, space, &key, 1, 0, NULL, NULL, &job), 0);
    fake_wait_held(fake, 1);
    fake_die(fake);
    ck_assert_int_eq(spw_job_wait(job, SPW_FOREVER), -ENOTCONN);
    spw_queue_free(queue);
}
END_TEST

START_TEST(test_death_during_put)
{
    enum { N = 300 };
    struct spw_key *keys = keys_new(N, 0, 0);
    uint8_t *bytes = calloc(1, BLOCK_BYTES);
    struct spw_iovec from[N];
    int32_t status[N];

    for (unsigned i = 0; i < N; i++)
        from[i] = (struct spw_iovec){bytes, BLOCK_BYTES};
    ck_assert_int_eq(spw_nop(space), 0);
    fake_set_fault(fake, FAKE_DIE_ON_REQUEST);
    ck_assert_int_eq(spw_put(space, keys, from, N, 0, 0, status), -ENOTCONN);
    for (unsigned i = 0; i < N; i++)
        ck_assert_int_eq(status[i], -ENOTCONN);
    free(bytes);
    free(keys);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("client");
    struct {
        const char *name;
        const TTest *tests[12];
    } cases[] = {
        {"calls",
         {test_life_of_a_block, test_window_of_hits, test_small_calls, test_wrong_arguments, test_manifest,
          test_long_lists_are_split, test_a_plan_goes_out_in_order, test_limits_are_named, test_chunk_epochs,
          test_chunk_renewed_under_views, test_map_in_place_of_another}},
        {"transfers", {test_put_get, test_get_rooms, test_put_get_large, test_tensors}},
        {"threads",
         {test_threads, test_session_ends_before_its_threads, test_many_sessions_in_one_thread, test_both_sides_sleep,
          test_calls_without_spinning, test_fork}},
        {"jobs",
         {test_jobs_by_poll, test_jobs_of_every_kind, test_a_queue_with_an_answer_is_not_armed,
          test_a_queue_whose_eventfd_is_not_read, test_cancel, test_waiters}},
        {"faults",
         {test_no_daemon, test_handshake_refusals, test_late_replies_are_thrown_away, test_death_in_a_call,
          test_death_leaves_views_readable, test_death_ends_jobs, test_death_wakes_waiters, test_death_during_put}},
    };

    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        TCase *tc = tcase_create(cases[i].name);
        tcase_add_checked_fixture(tc, setup, teardown);
        tcase_set_timeout(tc, 60);
        for (unsigned k = 0; k < ARRAY_LEN(cases[i].tests) && cases[i].tests[k]; k++)
            tcase_add_test(tc, cases[i].tests[k]);
        if (i == 1)
            tcase_add_loop_test(tc, test_get_replaced, 0, 5);
        if (i + 1 == ARRAY_LEN(cases)) {
            tcase_add_loop_test(tc, test_ring_lies, 0, ARRAY_LEN(ring_lies));
            tcase_add_loop_test(tc, test_lies, 0, ARRAY_LEN(lies));
        }
        suite_add_tcase(s, tc);
    }
    return s;
}

int main(void)
{
    SRunner *runner = srunner_create(suite());

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
