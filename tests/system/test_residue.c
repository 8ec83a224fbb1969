/* SPDX-License-Identifier: Apache-2.0 */
/*
 * No residue: what one pool, or one session, has left behind is nowhere in what another gets. The first writes a pattern
 * over all that it can reach, gives everything back, and the next one looks at all that it can reach: whole chunks (so
 * reserved objects before they are written, holes between them, tails of short ones), what comes back from a device whose
 * segments were the first one's, tensors that nobody wrote, private memory, rings. Of GPUs: test_gpu_residue.c.
 */
#include <check.h>
#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "include/base/base.h"
#include "tests/system/support/rawclient.h"

#define RESIDUE 0xa5
#define RUN_BYTES 16 /* of it, one behind the other: no chance */
#define ALICE 12345U
#define CHUNKS 64

static struct raw_daemon d;
static const char *daemon_keys = "engines = 1\nuid_sessions = 100";

struct look {
    struct raw_session *s;
    uint32_t n;
    uint32_t chunk[CHUNKS], epoch[CHUNKS];
    unsigned char *mem[CHUNKS];
    uint64_t bytes[CHUNKS];
};

static const char *sections(unsigned a_mib, unsigned b_mib)
{
    static char text[1024];

    snprintf(text, sizeof(text),
             "[tier.dram]\nsize = 192 MiB\n[device one]\npath = %s/one\n"
             "[pool a]\nusers = %u\ndram = %u MiB\n[pool b]\nusers = %u\ndram = %u MiB\n"
             "[pool shared]\nusers = %u, %u\ndram = 64 MiB\n",
             d.dir, getuid(), a_mib, getuid(), b_mib, ALICE, ALICE + 1);
    return text;
}

static void setup(void)
{
    raw_daemon_folder(&d);
    raw_daemon_format(&d, "one", 256, 1);
    raw_daemon_start(&d, daemon_keys, sections(96, 32));
}

static void teardown(void)
{
    raw_daemon_end(&d);
}

/* --- Looking ------------------------------------------------------------------------------------------------------ */

/* Maps the chunk of a result, once. */
static void look_at(struct look *look, const struct spw_result *result, int prot)
{
    for (uint32_t i = 0; i < look->n; i++)
        if (look->chunk[i] == result->chunk && look->epoch[i] == result->epoch)
            return;
    ck_assert_uint_lt(look->n, CHUNKS);
    look->chunk[look->n] = result->chunk;
    look->epoch[look->n] = result->epoch;
    look->mem[look->n] = raw_chunk_map(look->s, result, prot, &look->bytes[look->n]);
    ck_assert_ptr_nonnull(look->mem[look->n]);
    look->n++;
}

/* Where the pattern is; UINT64_MAX: nowhere. */
static uint64_t residue_in(const void *mem, uint64_t bytes)
{
    char pattern[RUN_BYTES];

    memset(pattern, RESIDUE, sizeof(pattern));
    const char *at = memmem(mem, bytes, pattern, sizeof(pattern));

    return at ? (uint64_t)(at - (const char *)mem) : UINT64_MAX;
}

static void look_for_residue(const struct look *look, const char *where)
{
    for (uint32_t i = 0; i < look->n; i++) {
        uint64_t at = residue_in(look->mem[i], look->bytes[i]);

        ck_assert_msg(at == UINT64_MAX, "%s: at %llu of chunk %u of %u", where, (unsigned long long)at, i, look->n);
    }
}

static void look_end(struct look *look)
{
    for (uint32_t i = 0; i < look->n; i++)
        raw_chunk_unmap(look->mem[i], look->bytes[i]);
    look->n = 0;
}

/* --- What is done ------------------------------------------------------------------------------------------------- */

static int one(struct raw_session *s, uint8_t opcode, uint64_t key, uint64_t bytes, struct spw_result *ret_result)
{
    struct spw_sqe sqe = raw_sqe(s, opcode, 1);

    raw_items(&s->ring)[0] = raw_item(key, bytes);
    sqe.timeout_ms = 20000;
    struct spw_cqe cqe = raw_call(&s->ring, &sqe);

    *ret_result = raw_results(&s->ring)[0];
    return cqe.status < 0 ? cqe.status : ret_result->status;
}

static int end_lease(struct raw_session *s, uint8_t opcode, uint64_t lease)
{
    struct spw_sqe sqe = raw_sqe(s, opcode, 1);

    raw_handles(&s->ring)[0] = (struct spw_handle){.lease = lease};
    struct spw_cqe cqe = raw_call(&s->ring, &sqe);

    return cqe.status < 0 ? cqe.status : raw_results(&s->ring)[0].status;
}

/* A block whose bytes are all the same, in chunks that are mapped once; and the rest of the chunks, too, if `all`. */
static void put(struct look *look, uint64_t key, uint32_t bytes, uint8_t fill)
{
    struct spw_result result;

    ck_assert_int_eq(one(look->s, SPW_OP_RESERVE, key, bytes, &result), 0);
    look_at(look, &result, PROT_READ | PROT_WRITE);
    for (uint32_t i = 0; i < look->n; i++)
        if (look->chunk[i] == result.chunk)
            memset(look->mem[i] + result.offset_bytes, fill, bytes);
    ck_assert_int_eq(end_lease(look->s, SPW_OP_COMMIT, result.lease), 0);
}

/* All that session A has: memory and device full of the pattern, then deleted. */
static void leave_residue(void)
{
    struct raw_session s;
    struct look look = {.s = &s};
    struct spw_result result;

    raw_session_full(&s, &d, "a", 1, 0);
    for (uint64_t i = 0; i < 220; i++)
        put(&look, i, 1 << 20, RESIDUE);
    for (uint64_t i = 0; i < 220; i++) {
        int r = one(&s, SPW_OP_DELETE, i, 0, &result);

        ck_assert(r == 0 || r == -ENOENT); /* it may have been dropped */
    }
    for (uint32_t i = 0; i < look.n; i++) /* holes, tails, and what was never in use */
        memset(look.mem[i], RESIDUE, look.bytes[i]);
    ck_assert_uint_ge(look.n, 2);
    look_end(&look);
    raw_session_close(&s);
}

static void reload(const char *text)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/conf", d.dir);
    FILE *f = fopen(path, "w");

    ck_assert_ptr_nonnull(f);
    fprintf(f, "[daemon]\nsocket = %s\n%s\n%s", d.socket, daemon_keys, text);
    fclose(f);
    ck_assert_int_eq(kill(d.pid, SIGHUP), 0);
    ck_assert(raw_daemon_logged(&d, "spillwayd: reloaded"));
}

/* As many reservations as may be, none of them written: what they are on, and what lies around it. */
static void look_at_reserved(struct look *look)
{
    static uint64_t leases[1000];
    struct spw_result result;
    uint32_t n = 0;

    for (; n < ARRAY_LEN(leases); n++) {
        struct spw_sqe sqe = raw_sqe(look->s, SPW_OP_RESERVE, 1);

        raw_items(&look->s->ring)[0] = raw_item(10000 + n, (1 << 20) - 5000);
        sqe.timeout_ms = 3000;
        (void)raw_call(&look->s->ring, &sqe);
        result = raw_results(&look->s->ring)[0];
        if (result.status < 0)
            break;
        leases[n] = result.lease;
        look_at(look, &result, PROT_READ | PROT_WRITE);
    }
    ck_assert_uint_gt(n, 60); /* of 96 MiB: more than it had before the reload */
    ck_assert_uint_lt(n, ARRAY_LEN(leases));
    look_for_residue(look, "reserved");
    for (uint32_t i = 0; i < n; i++)
        ck_assert_int_eq(end_lease(look->s, SPW_OP_ABORT, leases[i]), 0);
}

/* Short ones, many more than there is memory for: they go to the device, where the other's were, and come back. */
static void look_at_fetched(struct look *look)
{
    struct spw_result result;
    uint32_t fetched = 0;

    for (uint64_t i = 0; i < 4000; i++)
        put(look, 20000 + i, 40000 + (uint32_t)(i % 7) * 1000, 0x11);
    for (uint64_t i = 0; i < 4000; i++) {
        if (one(look->s, SPW_OP_ACQUIRE, 20000 + i, 0, &result) < 0)
            continue;
        fetched += (result.flags & SPW_RESULT_FETCHED) != 0;
        look_at(look, &result, PROT_READ | PROT_WRITE);
        ck_assert_int_eq(end_lease(look->s, SPW_OP_RELEASE, result.lease), 0);
    }
    ck_assert_uint_gt(fetched, 500);
    look_for_residue(look, "fetched");
}

/* All of a tensor that nobody has written is zero. */
static void look_at_tensor(struct look *look)
{
    struct spw_result result;

    ck_assert_int_eq(raw_space_open(look->s, 3, 0, SPW_CLASS_OPTIMIZER, SPW_DURABLE), 0);
    for (uint64_t i = 0; i < 8; i++) {
        ck_assert_int_eq(one(look->s, SPW_OP_TENSOR, i, 1000000, &result), 0);
        ck_assert_int_eq(one(look->s, SPW_OP_ACQUIRE, i, 1000000, &result), 0);
        look_at(look, &result, PROT_READ | PROT_WRITE);
        for (uint32_t k = 0; k < look->n; k++) {
            if (look->chunk[k] != result.chunk || look->epoch[k] != result.epoch)
                continue;
            const unsigned char *bytes = look->mem[k] + result.offset_bytes;

            ck_assert_uint_eq(result.length_bytes, 1000000);
            ck_assert(bytes[0] == 0 && memcmp(bytes, bytes + 1, result.length_bytes - 1) == 0);
        }
        ck_assert_int_eq(end_lease(look->s, SPW_OP_RELEASE, result.lease), 0);
    }
}

/* From pool to pool: DRAM by a reload that gives one what the other had, and the device's segments. */
START_TEST(test_pools)
{
    struct raw_session s;
    struct look look = {.s = &s};

    leave_residue();
    reload(sections(32, 96));
    ck_assert(raw_daemon_logged(&d, "[pool a] dram: has 32 MiB now"));
    raw_session_full(&s, &d, "b", 2, 0);
    look_at_reserved(&look);
    look_at_fetched(&look);
    look_at_tensor(&look);
    look_for_residue(&look, "at the end");
    ck_assert_uint_ge(look.n, 2);
    look_end(&look);
    raw_session_close(&s);
}
END_TEST

/* --- From session to session -------------------------------------------------------------------------------------- */

static bool open_all(struct raw_session *s, const char *pool)
{
    raw_session_open(s, &d);
    return raw_pool_open(s, pool) == 0 && raw_space_open(s, 9, 0, SPW_CLASS_KV, 0) == 0 &&
           raw_ring_new(s, &s->ring, 64, RAW_SCRATCH_BYTES) == 0;
}

static const void *rest_of_scratch(const struct raw_session *s, uint64_t *ret_bytes)
{
    *ret_bytes = s->ring.scratch_bytes;
    return s->ring.scratch;
}

/* Private chunks in a shared pool, scratch memory and rings: what one session had, the next one gets. */
static void body_sessions(void)
{
    for (int i = 0; i < 6; i++) {
        struct raw_session s;
        struct look look = {.s = &s};
        struct spw_result result;
        uint64_t bytes;

        if (!open_all(&s, "shared"))
            _exit(1);
        const void *scratch = rest_of_scratch(&s, &bytes);

        if (residue_in(scratch, bytes) != UINT64_MAX || residue_in(s.ring.shared, s.ring.ring_bytes) != UINT64_MAX)
            _exit(2);
        if (one(&s, SPW_OP_RESERVE, 100 + (uint64_t)i, 1 << 20, &result) < 0)
            _exit(3);
        look_at(&look, &result, PROT_READ | PROT_WRITE);
        if (residue_in(look.mem[0], look.bytes[0]) != UINT64_MAX)
            _exit(4);
        memset(look.mem[0], RESIDUE, look.bytes[0]);
        memset(s.ring.scratch, RESIDUE, s.ring.scratch_bytes);
        look_end(&look);
        raw_session_close(&s);
    }
    _exit(0);
}

START_TEST(test_sessions)
{
    int status;

    if (getuid() != 0) {
        printf("SKIP: needs root, to be others\n");
        return;
    }
    chmod(d.socket, 0666);
    pid_t pid = fork();

    if (pid == 0) {
        if (setgroups(0, NULL) < 0 || setgid(ALICE) < 0 || setuid(ALICE) < 0)
            _exit(9);
        body_sessions();
    }
    waitpid(pid, &status, 0);
    ck_assert_int_eq(status, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("residue");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, test_pools);
    tcase_add_test(tc, test_sessions);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
