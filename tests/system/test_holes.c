/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scenario 4 while a device is busy: a client punches holes into all that it may write, over and over, while its pieces are
 * written to a device, dropped from memory and read again: the chunks of a pool that is its user's alone, or the private
 * ones of a pool of several users. It damages its own: what it is told of each block is that it is there or damaged, and the
 * bytes are its own or zeros. Another client, of another pool or of the same one, does as much beside it, and each of its
 * calls works, each of its bytes is right, also after a restart.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "include/base/base.h"
#include "tests/system/support/rawclient.h"

#define BLOCK_BYTES (1U << 20)
#define N_BLOCKS 80 /* more than memory holds; and not more than a pool may have of the device, of three pools */
#define CHUNKS 64
#define TIMEOUT_MS 20000

static struct raw_daemon d;

/* --- One client --- */

struct chunk {
    uint32_t number, epoch;
    int fd;
    unsigned char *mem;
    uint64_t size_bytes;
};

struct client {
    struct raw_session s;
    struct chunk chunks[CHUNKS]; /* mapped once */
    uint32_t n_chunks;           /* atomic: the puncher reads it */
};

/* The daemon goes by who connects. */
static void client_open(struct client *c, const char *pool, uint8_t space, uid_t uid)
{
    *c = (struct client){0};
    ck_assert_int_eq(seteuid(uid), 0);
    raw_session_open(&c->s, &d);
    ck_assert_int_eq(seteuid(getuid()), 0);
    ck_assert_int_eq(raw_pool_open(&c->s, pool), 0);
    ck_assert_int_eq(raw_space_open(&c->s, space, 0, SPW_CLASS_KV, SPW_DURABLE), 0);
    ck_assert_int_eq(raw_ring_new(&c->s, &c->s.ring, 64, RAW_SCRATCH_BYTES), 0);
}

static void client_close(struct client *c)
{
    for (uint32_t i = 0; i < c->n_chunks; i++) {
        munmap(c->chunks[i].mem, c->chunks[i].size_bytes);
        close(c->chunks[i].fd);
    }
    raw_session_close(&c->s);
}

static unsigned char *client_at(struct client *c, const struct spw_result *result)
{
    struct spw_msg_chunk_get wanted = {.engine = c->s.space.engine, .chunk = result->chunk, .epoch = result->epoch};
    struct spw_msg_chunk reply;
    struct chunk *chunk = &c->chunks[c->n_chunks];
    unsigned n_fds = 0;
    int fds[8];

    for (uint32_t i = 0; i < c->n_chunks; i++)
        if (c->chunks[i].number == result->chunk && c->chunks[i].epoch == result->epoch)
            return c->chunks[i].mem + result->offset_bytes;
    ck_assert_uint_lt(c->n_chunks, CHUNKS);
    ck_assert_int_eq(
        raw_request(c->s.fd, SPW_MSG_CHUNK_GET, &wanted, sizeof(wanted), &reply, sizeof(reply), fds, &n_fds),
        sizeof(reply));
    ck_assert_uint_eq(n_fds, 1);
    *chunk =
        (struct chunk){.number = result->chunk, .epoch = result->epoch, .fd = fds[0], .size_bytes = reply.size_bytes};
    int prot = reply.flags & SPW_CHUNK_WRITABLE ? PROT_READ | PROT_WRITE : PROT_READ;

    chunk->mem = mmap(NULL, chunk->size_bytes, prot, MAP_SHARED, chunk->fd, 0);
    ck_assert(chunk->mem != MAP_FAILED);
    store_release(&c->n_chunks, c->n_chunks + 1); /* pairs with the acquire in punch_all() */
    return chunk->mem + result->offset_bytes;
}

static int client_call(struct client *c, uint8_t opcode, uint64_t key, struct spw_result *ret_result)
{
    struct spw_sqe sqe = raw_sqe(&c->s, opcode, 1);

    raw_items(&c->s.ring)[0] = raw_item(key, opcode == SPW_OP_RESERVE ? BLOCK_BYTES : 0);
    sqe.timeout_ms = TIMEOUT_MS;
    raw_submit(&c->s.ring, &sqe);
    struct spw_cqe cqe;

    ck_assert_msg(raw_wait(&c->s.ring, &cqe, 2 * TIMEOUT_MS), "opcode %u of block %llu: no answer", opcode,
                  (unsigned long long)key);
    *ret_result = raw_results(&c->s.ring)[0];
    return cqe.status < 0 ? cqe.status : ret_result->status;
}

static int client_end(struct client *c, uint8_t opcode, uint64_t lease)
{
    struct spw_sqe sqe = raw_sqe(&c->s, opcode, 1);

    raw_handles(&c->s.ring)[0] = (struct spw_handle){.lease = lease};
    struct spw_cqe cqe = raw_call(&c->s.ring, &sqe);

    return cqe.status < 0 ? cqe.status : raw_results(&c->s.ring)[0].status;
}

static int client_put(struct client *c, uint64_t key, uint8_t fill)
{
    struct spw_result result;
    int r = client_call(c, SPW_OP_RESERVE, key, &result);

    if (r < 0)
        return r;
    memset(client_at(c, &result), fill, BLOCK_BYTES);
    return client_end(c, SPW_OP_COMMIT, result.lease);
}

/* Of the bytes, how many are zeros instead, and how many are neither. */
static int client_get(struct client *c, uint64_t key, uint8_t fill, uint32_t *ret_zeros, uint32_t *ret_wrong)
{
    struct spw_result result;
    int r = client_call(c, SPW_OP_ACQUIRE, key, &result);

    *ret_zeros = *ret_wrong = 0;
    if (r < 0)
        return r;
    const unsigned char *bytes = client_at(c, &result);

    ck_assert_uint_eq(result.length_bytes, BLOCK_BYTES);
    for (uint32_t i = 0; i < BLOCK_BYTES; i++) {
        unsigned char byte = ((const volatile unsigned char *)bytes)[i];

        *ret_zeros += byte == 0;
        *ret_wrong += byte != 0 && byte != fill;
    }
    return client_end(c, SPW_OP_RELEASE, result.lease);
}

/* --- Both --- */

static uint32_t punch_stop;
static uint64_t n_punched;

static void *punch_all(void *arg)
{
    struct client *c = arg;

    while (!load_relaxed(&punch_stop)) {
        uint32_t n = load_acquire(&c->n_chunks);

        for (uint32_t i = 0; i < n; i++)
            n_punched += fallocate(c->chunks[i].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                                   (off_t)c->chunks[i].size_bytes) == 0;
        usleep(2000);
    }
    return NULL;
}

static uint8_t fill_of(uint64_t key, uint32_t round)
{
    return (uint8_t)(1 + (key * 7 + round * 31) % 255);
}

struct told {
    uint32_t whole, zeros, damaged, refused;
};

static void bystander_is_served(struct client *c, uint64_t key, const char *when)
{
    uint32_t zeros, wrong;
    int r = client_get(c, key, fill_of(key, 0), &zeros, &wrong);

    ck_assert_msg(r == 0 && zeros == 0 && wrong == 0, "%s the bystander's block %llu: %d, %u zeros, %u other bytes",
                  when, (unsigned long long)key, r, zeros, wrong);
}

static void attacker_is_told(struct client *c, uint64_t key, struct told *told)
{
    uint32_t zeros, wrong;
    int r = client_get(c, key, fill_of(key, 1), &zeros, &wrong);

    ck_assert_msg(wrong == 0, "block %llu has %u bytes that are neither its own nor zeros", (unsigned long long)key,
                  wrong);
    ck_assert_msg(r == 0 || r == -EBADMSG || r == -EFAULT, "block %llu: %d", (unsigned long long)key, r);
    told->damaged += r < 0;
    told->zeros += r == 0 && zeros > 0;
    told->whole += r == 0 && zeros == 0;
}

#define ALICE 12345U
#define BOB 12346U

struct pair {
    const char *attacked, *beside; /* pools */
    bool others;                   /* no users of the daemon's own */
};
static const struct pair pairs[] = {{"attacked", "beside", false}, {"shared", "shared", true}};

static void open_bystander(struct client *c, const struct pair *pair)
{
    client_open(c, pair->beside, 2, pair->others ? BOB : getuid());
}

static void setup(void)
{
    char sections[512];

    raw_daemon_folder(&d);
    raw_daemon_format(&d, "one", 512, 1);
    snprintf(sections, sizeof(sections),
             "[tier.dram]\nsize = 128 MiB\n[device one]\npath = %s/one\n"
             "[pool attacked]\nusers = %u\ndram = 32 MiB\n[pool beside]\nusers = %u\ndram = 32 MiB\n"
             "[pool shared]\nusers = %u, %u\ndram = 64 MiB\n",
             d.dir, getuid(), getuid(), ALICE, BOB);
    raw_daemon_start(&d, "engines = 1", sections);
    ck_assert_int_eq(chmod(d.socket, 0666), 0);
}

static void teardown(void)
{
    raw_daemon_end(&d);
}

START_TEST(test_holes_during_io)
{
    const struct pair *pair = &pairs[_i];
    struct client attacker, bystander;
    struct told told = {0};
    pthread_t thread;

    if (pair->others && getuid() != 0) {
        printf("SKIP: needs root, to be others\n");
        return;
    }
    client_open(&attacker, pair->attacked, 1, pair->others ? ALICE : getuid());
    open_bystander(&bystander, pair);
    ck_assert_int_eq(pthread_create(&thread, NULL, punch_all, &attacker), 0);
    for (uint64_t i = 0; i < N_BLOCKS; i++) {
        told.refused += client_put(&attacker, i, fill_of(i, 1)) < 0;
        ck_assert_int_eq(client_put(&bystander, i, fill_of(i, 0)), 0);
        bystander_is_served(&bystander, i * 5 / 7, "meanwhile");
        attacker_is_told(&attacker, i * 5 / 7, &told);
    }
    for (uint64_t i = 0; i < N_BLOCKS; i++) {
        attacker_is_told(&attacker, i, &told);
        bystander_is_served(&bystander, i, "in the end");
    }
    store_relaxed(&punch_stop, 1);
    pthread_join(thread, NULL);
    printf("pool %s: %llu holes of a whole chunk; of the blocks that had them %u were read as they were put, %u in "
           "part as "
           "zeros, %u "
           "not at all, and %u could not be put\n",
           pair->attacked, (unsigned long long)n_punched, told.whole, told.zeros, told.damaged, told.refused);
    ck_assert_uint_gt(n_punched, 0);
    ck_assert_uint_gt(told.zeros + told.damaged, 0); /* it was an attack */
    ck_assert_uint_eq(told.refused, 0);
    ck_assert_uint_gt(raw_admin_number(&d, "devices", "got_bytes"), (uint64_t)N_BLOCKS * BLOCK_BYTES);

    /* Neither has lost its session; what is put from now on is whole. */
    uint32_t zeros, wrong;

    ck_assert_int_eq(client_put(&attacker, 1000, 77), 0);
    ck_assert_int_eq(client_get(&attacker, 1000, 77, &zeros, &wrong), 0);
    ck_assert_uint_eq(zeros + wrong, 0);
    client_close(&attacker);
    client_close(&bystander);

    ck_assert_int_eq(raw_daemon_stop(&d), 0);
    raw_daemon_restart(&d);
    ck_assert_int_eq(chmod(d.socket, 0666), 0);
    open_bystander(&bystander, pair);
    for (uint64_t i = 0; i < N_BLOCKS; i++)
        bystander_is_served(&bystander, i, "after a restart");
    client_close(&bystander);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("holes");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 200);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, test_holes_during_io, 0, ARRAY_LEN(pairs));
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
