/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Limits as an application meets them: the device is full, the pool's memory is leased. Always an answer that names the
 * limit and its knob, at once or when the time is over; never a hang, and never at somebody else's cost.
 */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "include/base/base.h"
#include "tests/system/support/daemon.h"

#define BLOCK (512 * 1024)
#define SECTIONS "[tier.dram]\nsize = 64 MiB\n[pool default]\n"
#define DISK_BYTES (64 * DAEMON_MIB)
#define HOT 100000

static struct daemon d;
static spw_session *session;

static void begin(const char *sections)
{
    daemon_init(&d);
    daemon_format(&d, DISK_BYTES);
    daemon_configure(&d, "", sections);
    daemon_start(&d);
    session = daemon_connect(&d);
}

static void setup(void)
{
    begin(SECTIONS);
}

/* Half of the memory may be leased: what is not leased has room beside it. */
static void setup_half(void)
{
    begin(SECTIONS "max_leases_percent = 50\n");
}

static void teardown(void)
{
    spw_close(session);
    daemon_deinit(&d);
}

/* Durable blocks until there is no room; how many. */
static uint64_t fill(spw_space *space, unsigned *ret_limit)
{
    uint64_t n = 0;
    int r = 0;

    while (r == 0 && n < 4 * DISK_BYTES / BLOCK) {
        r = block_put_within(space, n, BLOCK, 500, ret_limit);
        n += r == 0;
        if (r == 0 && n % 16 == 0 && (r = spw_sync(space, NULL, 0, 20000)) < 0)
            *ret_limit = spw_error_limit();
    }
    ck_assert_msg(r == -ENOSPC, "%llu blocks, then %d: %s", (unsigned long long)n, r, spw_error_text());
    return n;
}

START_TEST(test_disk_full)
{
    spw_space *durable = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
    spw_space *cache = daemon_space(session, "default", "cache", 0, SPW_CLASS_KV, SPW_CACHE);
    unsigned limit = 0;
    uint64_t n = fill(durable, &limit);

    ck_assert_uint_ge(n, DISK_BYTES / BLOCK / 2);
    ck_assert_msg(limit == SPW_LIMIT_DEVICE_BYTES, "limit %u: %s", limit, spw_limit_text(limit));
    ck_assert_ptr_nonnull(strstr(spw_limit_text(limit), "device"));

    /* The cache in the same pool goes on, with what memory is left. */
    for (uint64_t i = HOT; i < HOT + 200; i++) {
        int r = block_put(cache, i, BLOCK);

        ck_assert_msg(r == 0, "cache block %llu: %d", (unsigned long long)(i - HOT), r);
        ck_assert_int_eq(block_get(cache, i, BLOCK), 0);
    }
    for (uint64_t i = HOT; i < HOT + 200; i++) {
        int r = block_get(cache, i, BLOCK);

        ck_assert_msg(r == 0 || r == -ENOENT, "cache block %llu: %d", (unsigned long long)(i - HOT), r);
    }
    for (uint64_t i = 0; i < n; i++)
        ck_assert_int_eq(block_get(durable, i, BLOCK), 0);

    /* What is deleted makes room, and what was synced is there after a crash. */
    for (uint64_t i = 0; i < n / 2; i++) {
        struct spw_key key = block_key(i);

        ck_assert_int_eq(spw_delete(durable, &key, 1, NULL), 0);
    }
    ck_assert_int_eq(spw_sync(durable, NULL, 0, 20000), 0);
    for (uint64_t i = 0; i < 8; i++)
        ck_assert_int_eq(block_put(durable, 1000 + i, BLOCK), 0);
    ck_assert_int_eq(spw_sync(durable, NULL, 0, 20000), 0);
    spw_close(session);
    daemon_kill(&d);
    daemon_start(&d);
    session = daemon_connect(&d);
    durable = daemon_space(session, "default", "durable", 0, SPW_CLASS_GENERIC, SPW_DURABLE);
    for (uint64_t i = 0; i < n; i++)
        ck_assert_int_eq(block_get(durable, i, BLOCK), i < n / 2 ? -ENOENT : 0);
    for (uint64_t i = 0; i < 8; i++)
        ck_assert_int_eq(block_get(durable, 1000 + i, BLOCK), 0);
}
END_TEST

#define VIEWS 160
static struct spw_view views[VIEWS], rest[VIEWS];

/* Blocks that are not committed hold the pool's memory: as many as it lets be leased. */
static size_t lease_all(spw_space *space, struct spw_view *ret_views)
{
    size_t n = 0;
    int r = 0;

    while (n < VIEWS && r == 0) {
        struct spw_key key = block_key(n);

        r = spw_reserve(space, &key, NULL, 1, 0, 0, &ret_views[n]);
        if (r == 0)
            r = ret_views[n].status;
        n += r == 0;
    }
    ck_assert_int_eq(r, -ENOSPC);
    ck_assert_uint_eq(ret_views[n].detail, SPW_LIMIT_POOL_LEASES);
    return n;
}

START_TEST(test_all_leased)
{
    spw_space *space = daemon_space(session, "default", "cache", BLOCK, SPW_CLASS_KV, SPW_CACHE);
    struct spw_view view;
    size_t n = lease_all(space, views);
    struct spw_key key = block_key(n);
    int r;

    ck_assert_uint_ge(n * BLOCK, 64 * DAEMON_MIB * 70 / 100);
    ck_assert_uint_le(n * BLOCK, 64 * DAEMON_MIB * 80 / 100);
    ck_assert_uint_eq(views[n].detail, SPW_LIMIT_POOL_LEASES);
    ck_assert_ptr_nonnull(strstr(spw_limit_text(views[n].detail), "max_leases_percent"));

    /* As a whole, the call tells it in words; a wait has an end. */
    int64_t start = clock_ms();

    r = spw_reserve(space, &key, NULL, 1, SPW_ALL, 300, &view);
    ck_assert_int_eq(r < 0 ? r : view.status, -ENOSPC);
    if (r < 0)
        ck_assert_msg(strstr(spw_error_text(), "max_leases_percent") != NULL, "%s", spw_error_text());
    ck_assert_int_lt(clock_ms() - start, 20000);

    /* What is given back is room again, for one who waits too. */
    ck_assert_int_eq(spw_abort(space, views, n / 2), 0);
    ck_assert_int_eq(block_put(space, 1000, BLOCK), 0);
    ck_assert_int_eq(block_get(space, 1000, BLOCK), 0);
    ck_assert_int_eq(spw_abort(space, views, n), 0);
    ck_assert_int_eq(daemon_admin_number(session, "pools", "pools/0/dram/leased_bytes"), 0);
}
END_TEST

/* --- Copies wait for leases ----------------------------------------------------------------------------------------- */

#define LARGE (5 * DAEMON_MIB)
#define N_COPIED 40 /* of a few batches */
#define SMALL 4096
#define COPY_KEYS 1000

enum copy { COPY_PUT, COPY_PUT_LARGE, COPY_GET, COPY_GET_LARGE, COPY_PUT_RANGE, COPY_GET_RANGE, COPY_SUBMIT, COPIES };

struct copies {
    spw_space *blocks, *large, *tensors, *leased, *rest;
    size_t n_leased, n_rest;
    uint8_t *bytes; /* LARGE */
    int32_t statuses[N_COPIED];
};

static void copies_begin(struct copies *c)
{
    struct spw_key name = block_key(1);

    c->blocks = daemon_space(session, "default", "blocks", SMALL, SPW_CLASS_KV, SPW_CACHE);
    c->large = daemon_space(session, "default", "large", 0, SPW_CLASS_GENERIC, SPW_CACHE);
    c->tensors = daemon_space(session, "default", "tensors", 0, SPW_CLASS_GENERIC, SPW_CACHE);
    c->leased = daemon_space(session, "default", "leased", BLOCK, SPW_CLASS_KV, SPW_CACHE);
    c->rest = daemon_space(session, "default", "rest", SMALL, SPW_CLASS_KV, SPW_CACHE);
    c->bytes = malloc(LARGE);
    ck_assert_ptr_nonnull(c->bytes);
    for (uint64_t i = 0; i < N_COPIED; i++)
        ck_assert_int_eq(block_put(c->blocks, COPY_KEYS + i, SMALL), 0);
    pattern_fill(c->bytes, LARGE, 1, 0);
    ck_assert_int_eq(spw_put(c->large, &name, &(struct spw_iovec){c->bytes, LARGE}, 1, 0, 10000, NULL), 0);
    ck_assert_int_eq(spw_tensor_open(c->tensors, &name, LARGE), 0);
    ck_assert_int_eq(spw_put_range(c->tensors, &name, 0, c->bytes, LARGE, 10000), 0);
    c->n_leased = lease_all(c->leased, views);
    c->n_rest = lease_all(c->rest, rest);
}

/* Blocks of a list: put, or got, by a call or by a job. Returns the first error. */
static int copy_blocks(struct copies *c, enum copy kind, uint32_t timeout_ms)
{
    struct spw_key keys[N_COPIED];
    struct spw_iovec memory[N_COPIED];
    spw_queue *queue;
    spw_job *job;
    int r;

    for (size_t i = 0; i < N_COPIED; i++) {
        keys[i] = block_key(COPY_KEYS * (kind == COPY_PUT ? 2 : 1) + i);
        memory[i] = (struct spw_iovec){c->bytes + i * SMALL, SMALL};
        pattern_fill(memory[i].data, SMALL, COPY_KEYS * 2 + i, 0);
    }
    if (kind == COPY_PUT) {
        r = spw_put(c->blocks, keys, memory, N_COPIED, 0, timeout_ms, c->statuses);
    } else if (kind == COPY_GET) {
        r = spw_get(c->blocks, keys, memory, N_COPIED, 0, timeout_ms, c->statuses);
    } else {
        memset(&c->statuses[8], 0, sizeof(c->statuses) - 8 * sizeof(c->statuses[0]));
        ck_assert_int_eq(spw_queue_new(session, c->blocks, 0, &queue), 0);
        ck_assert_int_eq(spw_submit_get(queue, c->blocks, keys, memory, 8, 0, timeout_ms, c->statuses, NULL, &job), 0);
        r = spw_job_wait(job, SPW_FOREVER);
        spw_job_free(job);
        spw_queue_free(queue);
    }
    for (size_t i = 0; r == 0 && i < N_COPIED; i++)
        r = c->statuses[i];
    for (size_t i = 0; r == 0 && i < (kind == COPY_SUBMIT ? 8 : N_COPIED) && kind != COPY_PUT; i++)
        ck_assert(pattern_is(memory[i].data, SMALL, COPY_KEYS + i, 0));
    return r;
}

static int copy(struct copies *c, enum copy kind, uint32_t timeout_ms)
{
    struct spw_key name = block_key(1), other = block_key(2);
    struct spw_iovec memory = {c->bytes, LARGE};
    int32_t status = 0;
    int r;

    switch (kind) {
    case COPY_PUT_LARGE:
        r = spw_put(c->large, &other, &memory, 1, 0, timeout_ms, &status);
        break;
    case COPY_GET_LARGE:
        memset(c->bytes, 0, LARGE);
        r = spw_get(c->large, &name, &memory, 1, 0, timeout_ms, &status);
        break;
    case COPY_PUT_RANGE:
        return spw_put_range(c->tensors, &name, 0, c->bytes, LARGE, timeout_ms);
    case COPY_GET_RANGE:
        memset(c->bytes, 0, LARGE);
        r = spw_get_range(c->tensors, &name, 0, c->bytes, LARGE, timeout_ms);
        break;
    default:
        return copy_blocks(c, kind, timeout_ms);
    }
    r = r < 0 ? r : status;
    if (r == 0 && kind != COPY_PUT_LARGE)
        ck_assert(pattern_is(c->bytes, LARGE, 1, 0));
    return r;
}

/* A GET does not wait for the answer when it gives back. */
static void nothing_is_leased(void)
{
    for (int i = 0; i < 1000 && daemon_admin_number(session, "pools", "pools/0/dram/leased_bytes") != 0; i++)
        sleep_ms(10);
    ck_assert_int_eq(daemon_admin_number(session, "pools", "pools/0/dram/leased_bytes"), 0);
}

static void *give_back(void *arg)
{
    struct copies *c = arg;

    sleep_ms(300);
    int r = spw_abort(c->leased, views, c->n_leased);
    return (void *)(intptr_t)(r < 0 ? r : spw_abort(c->rest, rest, c->n_rest));
}

/* What others have leased they give back: a copy is not refused for it, if they do in time. It says so if they do not. */
START_TEST(test_copies_wait_for_leases)
{
    static struct copies c;
    enum copy kind = (enum copy)_i;
    pthread_t thread;
    void *result;

    copies_begin(&c);
    int r = copy(&c, kind, 200);
    ck_assert_msg(r == -ENOSPC, "kind %d: %d", _i, r);
    ck_assert_int_eq(pthread_create(&thread, NULL, give_back, &c), 0);
    r = copy(&c, kind, 20000);
    ck_assert_msg(r == 0, "kind %d: %d", _i, r);
    ck_assert_int_eq(pthread_join(thread, &result), 0);
    ck_assert_ptr_null(result);
    nothing_is_leased();
    free(c.bytes);
}
END_TEST

/* A job that waits for leases, with several elements refused, ends when it is canceled. */
START_TEST(test_a_job_that_waits_for_leases_is_canceled)
{
    static struct copies c;
    struct spw_key keys[8];
    struct spw_iovec memory[8];
    int64_t start = clock_ms();
    spw_queue *queue;
    spw_job *job;

    copies_begin(&c);
    for (size_t i = 0; i < 8; i++) {
        keys[i] = block_key(COPY_KEYS + i);
        memory[i] = (struct spw_iovec){c.bytes + i * SMALL, SMALL};
    }
    ck_assert_int_eq(spw_queue_new(session, c.blocks, 0, &queue), 0);
    ck_assert_int_eq(spw_submit_get(queue, c.blocks, keys, memory, 8, 0, 60000, c.statuses, NULL, &job), 0);
    ck_assert_int_eq(spw_job_wait(job, 200), -ETIMEDOUT);
    ck_assert_int_eq(spw_job_cancel(job), 0);
    (void)spw_job_wait(job, SPW_FOREVER);
    ck_assert_int_lt(clock_ms() - start, 30000);
    ck_assert_uint_eq(spw_job_value(job), 0);
    ck_assert_int_eq(c.statuses[0], -ECANCELED);
    for (size_t i = 1; i < 8; i++)
        ck_assert_int_eq(c.statuses[i], -ENOSPC);
    spw_job_free(job);
    spw_queue_free(queue);
    ck_assert_ptr_null(give_back(&c));
    nothing_is_leased();
    free(c.bytes);
}
END_TEST

/* What the pool could never lease is refused at once, whatever the time. */
START_TEST(test_more_than_the_pool)
{
    static uint8_t bytes[60 * DAEMON_MIB];
    spw_space *space = daemon_space(session, "default", "large", 0, SPW_CLASS_GENERIC, SPW_CACHE);
    struct spw_key name = block_key(1);
    struct spw_iovec memory = {bytes, sizeof(bytes)};
    int64_t start = clock_ms();
    int32_t status;

    ck_assert_int_eq(spw_put(space, &name, &memory, 1, 0, SPW_FOREVER, &status), 0);
    ck_assert_int_eq(status, -ENOSPC);
    ck_assert_int_lt(clock_ms() - start, 30000); /* it would be a minute */
    nothing_is_leased();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("full");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_disk_full);
    tcase_add_test(tc, test_all_leased);
    tcase_add_test(tc, test_more_than_the_pool);
    suite_add_tcase(suite, tc);
    tc = tcase_create("half");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup_half, teardown);
    tcase_add_test(tc, test_a_job_that_waits_for_leases_is_canceled);
    tcase_add_loop_test(tc, test_copies_wait_for_leases, 0, COPIES);
    suite_add_tcase(suite, tc);
    return suite_main(suite);
}
