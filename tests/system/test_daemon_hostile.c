/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real daemon and clients without manners: it must go on serving the others, end the one, and get back what that one
 * held. After each test the daemon stops cleanly (a crash or a leak that a sanitizer sees fails it).
 *
 * The tests that need a second user are skipped where this one is not root.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/falloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "include/base/base.h"
#include "tests/system/support/rawclient.h"

#define ALICE 12345U
#define BOB 12346U
#define CLOSED_US 10000
#define TAIL_TRIES 20

static struct raw_daemon d;
static struct raw_session good; /* of somebody who notices nothing */

static const char *own_user(void)
{
    static char line[256];

    snprintf(line, sizeof(line),
             "[tier.dram]\nsize = 128 MiB\n"
             "[pool default]\nusers = %u\ndram = 50 %%\n"
             "[pool shared]\nusers = %u, %u\ndram = 25 %%\n"
             "[pool all]\nusers = any\ndram = 25 %%\n",
             getuid(), ALICE, BOB);
    return line;
}

static void setup(void)
{
    raw_daemon_start(&d, "uid_sessions = 40\nuid_descriptors = 200\nsession_rings = 2", own_user());
    raw_session_full(&good, &d, "default", 1, 0);
    ck_assert_int_eq(raw_put(&good, 1, 10000, 0x11), 0);
}

static void teardown(void)
{
    ck_assert_int_eq(raw_get(&good, 1, 10000, 0x11), 0);
    raw_session_close(&good);
    ck_assert(raw_admin_becomes(&d, "status", "peers", 0));
    ck_assert_uint_eq(raw_admin_number(&d, "pools", "leased_bytes"), 0);
    raw_daemon_end(&d);
}

/* --- Rings ------------------------------------------------------------------------------------------------------- */

static void kick(struct raw_session *s)
{
    (void)!send(s->ring.doorbell_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static int64_t now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* From the tail to the end of the session. */
static int64_t tail_closes_us(uint32_t tail)
{
    struct raw_session s;

    raw_session_full(&s, &d, "default", 2, 0);
    int64_t start_us = now_us();

    __atomic_store_n(&s.ring.shared->client.sq_tail, tail, __ATOMIC_RELEASE);
    kick(&s);
    ck_assert(raw_is_closed(s.fd, 5000));
    int64_t took_us = now_us() - start_us;

    raw_session_close(&s);
    return took_us;
}

/* Row 2. A busy machine may need several tries. */
START_TEST(test_ring_tail)
{
    static const uint32_t tails[] = {UINT32_C(1) << 31, 65, UINT32_MAX};
    int64_t best_us = INT64_MAX;
    int tries = 0;

    for (; tries < TAIL_TRIES && best_us > CLOSED_US; tries++) {
        int64_t took_us = tail_closes_us(tails[_i]);

        best_us = MIN(best_us, took_us);
    }
    ck_assert(raw_daemon_logged(&d, "an index of a ring is out of its bounds"));
    printf("a tail of %u: closed after %lld us, the best of %d\n", tails[_i], (long long)best_us, tries);
    if (!getenv("SPILLWAY_SANITIZE"))
        ck_assert_int_le(best_us, CLOSED_US);
}
END_TEST

START_TEST(test_ring_reserved_bits)
{
    struct raw_session s;

    raw_session_full(&s, &d, "default", 2, 0);
    struct spw_sqe sqe = raw_sqe(&s, SPW_OP_NOP, 0);

    if (_i == 0)
        sqe.opcode = 200;
    else if (_i == 1)
        sqe.reserved = 1;
    else {
        sqe = raw_sqe(&s, SPW_OP_ACQUIRE, 1);
        raw_items(&s.ring)[0] = raw_item(1, 0);
        raw_items(&s.ring)[0].reserved1 = 1;
    }
    raw_submit(&s.ring, &sqe);
    ck_assert(raw_is_closed(s.fd, 5000));
    raw_session_close(&s);
}
END_TEST

/* Row 3: nothing is touched, and the session goes on. */
START_TEST(test_ring_bounds)
{
    struct spw_sqe sqe = raw_sqe(&good, SPW_OP_ACQUIRE, 1);
    struct spw_item *item = raw_items(&good.ring);

    *item = raw_item(1, 8192);
    item->offset_bytes = UINT64_MAX - 4095;
    ck_assert_int_eq(raw_call(&good.ring, &sqe).status, 0);
    ck_assert_int_eq(raw_results(&good.ring)[0].status, -ERANGE);
    *item = raw_item(1, 10001);
    ck_assert_int_eq(raw_call(&good.ring, &sqe).status, 0);
    ck_assert_int_eq(raw_results(&good.ring)[0].status, -ERANGE);
    *item = raw_item(1, UINT64_C(0x100001000));
    (void)raw_call(&good.ring, &sqe);
    ck_assert_int_lt(raw_results(&good.ring)[0].status, 0);
    sqe.n_items = 0;
    ck_assert_int_eq(raw_call(&good.ring, &sqe).status, -EINVAL);
    sqe.n_items = 4096;
    sqe.items = (uint32_t)(good.ring.scratch_bytes - 64);
    ck_assert_int_eq(raw_call(&good.ring, &sqe).status, -ERANGE);
    sqe.n_items = 1;
    sqe.items = 0;
    sqe.results = UINT32_MAX - 63;
    ck_assert_int_eq(raw_call(&good.ring, &sqe).status, -ERANGE);
    sqe = raw_sqe(&good, SPW_OP_TOUCH, 1);
    sqe.space ^= 1;
    ck_assert_int_eq(raw_call(&good.ring, &sqe).status, -EBADF);
}
END_TEST

/* Another session's lease, and its private or unknown chunks. */
START_TEST(test_foreign_handles)
{
    struct raw_session s;
    struct spw_sqe sqe = raw_sqe(&good, SPW_OP_ACQUIRE, 1);
    uint64_t size;

    raw_items(&good.ring)[0] = raw_item(1, 0);
    ck_assert_int_eq(raw_call(&good.ring, &sqe).status, 0);
    struct spw_result lease = raw_results(&good.ring)[0];

    raw_session_full(&s, &d, "default", 2, 0);
    for (uint64_t i = 0; i < 3; i++) {
        sqe = raw_sqe(&s, SPW_OP_RELEASE, 1);
        raw_handles(&s.ring)[0] = (struct spw_handle){.lease = lease.lease + (i << 32)};
        ck_assert_int_eq(raw_call(&s.ring, &sqe).status, 0);
        ck_assert_int_eq(raw_results(&s.ring)[0].status, -EBADF);
    }
    struct spw_result unknown = lease;

    unknown.epoch++;
    ck_assert_ptr_null(raw_chunk_map(&s, &unknown, PROT_READ, &size));
    unknown.epoch--;
    unknown.chunk = UINT32_MAX;
    ck_assert_ptr_null(raw_chunk_map(&s, &unknown, PROT_READ, &size));
    raw_session_close(&s);

    /* A session that has not opened the pool gets none of its chunks. */
    raw_session_open(&s, &d);
    ck_assert_ptr_null(raw_chunk_map(&s, &lease, PROT_READ, &size));
    raw_session_close(&s);
    sqe = raw_sqe(&good, SPW_OP_RELEASE, 1);
    raw_handles(&good.ring)[0] = (struct spw_handle){.lease = lease.lease};
    ck_assert_int_eq(raw_call(&good.ring, &sqe).status, 0);
}
END_TEST

/* Row 4. */
START_TEST(test_holes)
{
    struct raw_session s;

    raw_session_full(&s, &d, "default", 2, 0);
    ck_assert_int_eq(ftruncate(s.ring.ring_fd, 0), -1);
    ck_assert_int_eq(errno, EPERM);
    ck_assert_int_eq(ftruncate(s.ring.scratch_fd, 1 << 30), -1);
    ck_assert_int_eq(errno, EPERM);
    for (int i = 0; i < 200; i++) {
        struct spw_sqe sqe = raw_sqe(&s, SPW_OP_LOOKUP, 4096);

        raw_submit(&s.ring, &sqe); /* its items are zeros: refused, one by one */
        (void)fallocate(s.ring.scratch_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)s.ring.scratch_bytes);
        if (i == 100) /* from here on every index is zero again: far behind, which ends the session */
            (void)fallocate(s.ring.ring_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)s.ring.ring_bytes);
    }
    raw_session_close(&s);
}
END_TEST

/* Holes in what a trusted client may write: it damages its own, the daemon and the other extents go on. */
START_TEST(test_chunk_holes)
{
    struct raw_session s;
    struct spw_sqe sqe;
    int fds[8];
    unsigned n_fds;
    struct spw_msg_chunk reply;

    raw_session_full(&s, &d, "default", 2, 0);
    sqe = raw_sqe(&s, SPW_OP_RESERVE, 1);
    raw_items(&s.ring)[0] = raw_item(1, 1 << 20);
    ck_assert_uint_eq(raw_call(&s.ring, &sqe).value, 1);
    struct spw_result r = raw_results(&s.ring)[0];
    struct spw_msg_chunk_get wanted = {.engine = s.space.engine, .chunk = r.chunk, .epoch = r.epoch};

    ck_assert_int_eq(raw_request(s.fd, SPW_MSG_CHUNK_GET, &wanted, sizeof(wanted), &reply, sizeof(reply), fds, &n_fds),
                     sizeof(reply));
    ck_assert_int_eq(ftruncate(fds[0], 0), -1);
    ck_assert_int_eq(errno, EPERM);
    ck_assert_int_eq(fallocate(fds[0], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)r.offset_bytes, 1 << 20), 0);
    close(fds[0]);
    sqe = raw_sqe(&s, SPW_OP_COMMIT, 1);
    raw_handles(&s.ring)[0] = (struct spw_handle){.lease = r.lease};
    (void)raw_call(&s.ring, &sqe);
    ck_assert_int_eq(raw_put(&s, 2, 65536, 2), 0);
    ck_assert_int_eq(raw_get(&s, 2, 65536, 2), 0);
    raw_session_close(&s);
}
END_TEST

/* --- Messages ---------------------------------------------------------------------------------------------------- */

enum {
    BAD_MAGIC,
    BAD_SIZE,
    BAD_STATUS,
    SHORT,
    UNKNOWN,
    EMPTY,
    HUGE,
    TWO_HELLOS,
    RESERVED,
    NO_END,
    MANIFEST_SHORT,
    MANIFEST_LONG,
    MANIFEST_MANY,
    MANIFEST_RESERVED,
    BAD_MESSAGES
};

/* As if it had so many entries, followed by one. */
static void send_manifest(int fd, uint32_t n, uint64_t reserved, size_t less_bytes)
{
    struct {
        struct spw_msg_manifest head;
        struct spw_manifest_entry entry;
    } m = {.head = {.n = n, .reserved = {0, reserved}}, .entry = {.size_bytes = 1}};
    size_t size = sizeof(m) - less_bytes;

    m.head.msg = (struct spw_msg){SPW_ABI_MAGIC, SPW_MSG_MANIFEST, SPW_ABI_VERSION, (uint32_t)size, 1, 0, 0};
    raw_send(fd, &m, size, NULL, 0);
}

static void send_bad(int fd, int kind)
{
    static char huge[100000];
    struct spw_msg_hello hello = {.version_min = 1, .version_max = 1};
    struct spw_msg_pool_open open = {0};

    hello.msg = (struct spw_msg){SPW_ABI_MAGIC, SPW_MSG_HELLO, SPW_ABI_VERSION, sizeof(hello), 1, 0, 0};
    open.msg = (struct spw_msg){SPW_ABI_MAGIC, SPW_MSG_POOL_OPEN, SPW_ABI_VERSION, sizeof(open), 1, 0, 0};
    switch (kind) {
    case BAD_MAGIC:
        open.msg.magic ^= 1;
        break;
    case BAD_SIZE:
        open.msg.size_bytes--;
        break;
    case BAD_STATUS:
        open.msg.status = 1;
        break;
    case SHORT:
        raw_send(fd, &open, 10, NULL, 0);
        return;
    case UNKNOWN:
        open.msg.type = 99;
        break;
    case EMPTY:
        raw_send(fd, &open, 0, NULL, 0);
        return;
    case HUGE:
        memcpy(huge, &open, sizeof(open));
        raw_send(fd, huge, sizeof(huge), NULL, 0);
        return;
    case TWO_HELLOS:
        raw_send(fd, &hello, sizeof(hello), NULL, 0);
        return;
    case RESERVED: {
        struct spw_msg_ring_free ring = {.reserved0 = 1};

        ring.msg = (struct spw_msg){SPW_ABI_MAGIC, SPW_MSG_RING_FREE, SPW_ABI_VERSION, sizeof(ring), 1, 0, 0};
        raw_send(fd, &ring, sizeof(ring), NULL, 0);
        return;
    }
    case MANIFEST_SHORT:
        send_manifest(fd, 1, 0, sizeof(struct spw_manifest_entry) + 1);
        return;
    case MANIFEST_LONG:
        send_manifest(fd, 0, 0, 0);
        return;
    case MANIFEST_MANY: /* times their size it would be what was sent, in 32 bits */
        send_manifest(fd, 1 + (UINT32_C(1) << 29), 0, 0);
        return;
    case MANIFEST_RESERVED:
        send_manifest(fd, 1, 1, 0);
        return;
    case NO_END:
        memset(open.name, 'a', sizeof(open.name));
        break;
    }
    raw_send(fd, &open, sizeof(open), NULL, 0);
}

START_TEST(test_bad_message)
{
    struct raw_session s;

    raw_session_open(&s, &d);
    send_bad(s.fd, _i);
    ck_assert(raw_is_closed(s.fd, 5000));
    raw_session_close(&s);
}
END_TEST

START_TEST(test_first_message_is_not_hello)
{
    int fd = raw_connect(&d);

    send_bad(fd, UNKNOWN);
    ck_assert(raw_is_closed(fd, 5000));
    close(fd);
}
END_TEST

START_TEST(test_versions)
{
    struct spw_msg_hello hello = {.version_min = 7, .version_max = 9};
    struct spw_msg_error reply;
    int fd = raw_connect(&d);

    ck_assert_int_eq(raw_request(fd, SPW_MSG_HELLO, &hello, sizeof(hello), &reply, sizeof(reply), NULL, NULL),
                     sizeof(reply));
    ck_assert_int_eq(reply.msg.status, -EPROTONOSUPPORT);
    ck_assert_ptr_nonnull(strstr(reply.text, "7 to 9"));
    close(fd);
}
END_TEST

START_TEST(test_owner_tokens)
{
    struct spw_msg_hello hello = {.version_min = 1, .version_max = 1};
    union {
        struct spw_msg_welcome welcome;
        struct spw_msg_error error;
    } reply;
    int fd = raw_connect(&d);

    memcpy(hello.owner_token, good.welcome.owner_token, SPW_TOKEN_BYTES);
    ck_assert_int_gt(raw_request(fd, SPW_MSG_HELLO, &hello, sizeof(hello), &reply, sizeof(reply), NULL, NULL), 0);
    ck_assert_int_eq(reply.welcome.msg.status, 0);
    ck_assert_mem_eq(reply.welcome.owner_token, good.welcome.owner_token, SPW_TOKEN_BYTES);
    close(fd);
    fd = raw_connect(&d);
    hello.owner_token[3] ^= 1;
    ck_assert_int_gt(raw_request(fd, SPW_MSG_HELLO, &hello, sizeof(hello), &reply, sizeof(reply), NULL, NULL), 0);
    ck_assert_int_eq(reply.welcome.msg.status, -ENOENT);
    close(fd);
}
END_TEST

/* Row 10: descriptors that nobody asked for. */
START_TEST(test_surplus_descriptors)
{
    struct raw_session s;
    struct spw_msg_pool_open open = {.name = "default"};
    int fds[253];
    char reply[512];

    raw_session_open(&s, &d);
    unsigned before = raw_daemon_descriptors(&d);

    for (int i = 0; i < 253; i++)
        fds[i] = STDIN_FILENO;
    for (int i = 0; i < 20; i++) {
        open.msg = (struct spw_msg){SPW_ABI_MAGIC, SPW_MSG_POOL_OPEN, SPW_ABI_VERSION, sizeof(open), 1, 0, 0};
        raw_send(s.fd, &open, sizeof(open), fds, 253);
        ck_assert_int_gt(raw_receive(s.fd, reply, sizeof(reply), NULL, NULL), 0);
    }
    ck_assert_uint_eq(raw_daemon_descriptors(&d), before);
    raw_session_close(&s);
}
END_TEST

START_TEST(test_limits_are_named)
{
    struct raw_session sessions[45], s;
    struct raw_ring ring;
    int n = 0, status = 0;

    while (n < 45 && (status = raw_session_try(&sessions[n], &d)) == 0)
        n++;
    ck_assert_int_eq(n, 39); /* and the good one */
    ck_assert_int_eq(status, -EUSERS);
    ck_assert(raw_is_closed(sessions[n].fd, 5000));
    for (int i = 0; i <= n; i++)
        raw_session_close(&sessions[i]);
    /* They are not gone at once: until then the limit holds. */
    for (int i = 0; (status = raw_session_try(&s, &d)) == -EUSERS && i < 500; i++) {
        raw_session_close(&s);
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    ck_assert_int_eq(status, 0);
    raw_session_close(&s);
    ck_assert(raw_admin_becomes(&d, "status", "sessions", 2)); /* the good one, and whoever asks */

    raw_session_full(&s, &d, "default", 2, 0);
    ck_assert_int_eq(raw_ring_new(&s, &ring, 64, 4096), 0);
    raw_ring_unmap(&ring);
    ck_assert_int_eq(raw_ring_new(&s, &ring, 64, 4096), -EMFILE);
    ck_assert_int_eq(raw_ring_new(&s, &ring, 63, 4096), -EINVAL);
    ck_assert_int_eq(raw_pool_open(&s, "nowhere"), -ENOENT);
    raw_session_close(&s);
}
END_TEST

static long daemon_cpu_ticks(void)
{
    char path[64], text[1024];
    unsigned long user = 0, system = 0;

    snprintf(path, sizeof(path), "/proc/%d/stat", d.pid);
    FILE *f = fopen(path, "r");

    ck_assert_ptr_nonnull(f);
    ck_assert_ptr_nonnull(fgets(text, sizeof(text), f));
    fclose(f);
    sscanf(strrchr(text, ')') + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
    return (long)(user + system);
}

#define HELD_CONNECTIONS 200

/* Row 10: more connections than the daemon has descriptors for. */
START_TEST(test_out_of_descriptors)
{
    struct rlimit before, limit;
    int fds[HELD_CONNECTIONS];
    unsigned refused = 0;

    ck_assert_int_eq(prlimit(d.pid, RLIMIT_NOFILE, NULL, &before), 0);
    limit = before;
    limit.rlim_cur = raw_daemon_descriptors(&d) + 8;
    ck_assert_int_eq(prlimit(d.pid, RLIMIT_NOFILE, &limit, NULL), 0);
    for (int i = 0; i < HELD_CONNECTIONS; i++) {
        fds[i] = raw_connect(&d);
        ck_assert_int_ge(fds[i], 0);
    }
    for (int i = HELD_CONNECTIONS; i < 10000; i++)
        close(raw_connect(&d));
    for (int i = 0; i < HELD_CONNECTIONS && refused == 0; i++) {
        struct spw_msg_error reply;

        if (raw_receive(fds[HELD_CONNECTIONS - 1 - i], &reply, sizeof(reply), NULL, NULL) == sizeof(reply)) {
            ck_assert_int_eq(reply.msg.status, -EMFILE);
            ck_assert_uint_eq(reply.msg.detail, SPW_LIMIT_DESCRIPTORS);
            refused++;
        }
    }
    ck_assert_uint_gt(refused, 0);
    long ticks = daemon_cpu_ticks();

    sleep(1);
    ck_assert_int_lt(daemon_cpu_ticks() - ticks, sysconf(_SC_CLK_TCK) / 2); /* it rests */
    ck_assert_int_eq(prlimit(d.pid, RLIMIT_NOFILE, &before, NULL), 0);
    for (int i = 0; i < HELD_CONNECTIONS; i++)
        close(fds[i]);
}
END_TEST

/* --- Deaths ------------------------------------------------------------------------------------------------------ */

#define HELD 20

/* Holds leases and a reservation, says so, and waits for its end. */
static void holder(int ready_fd)
{
    struct raw_session s;

    raw_session_full(&s, &d, "default", 3, 0);
    for (uint64_t i = 0; i < HELD; i++)
        ck_assert_int_eq(raw_put(&s, i, 65536, (uint8_t)i), 0);
    struct spw_sqe sqe = raw_sqe(&s, SPW_OP_ACQUIRE, HELD);

    for (uint64_t i = 0; i < HELD; i++)
        raw_items(&s.ring)[i] = raw_item(i, 0);
    ck_assert_uint_eq(raw_call(&s.ring, &sqe).value, HELD);
    sqe = raw_sqe(&s, SPW_OP_RESERVE, 1);
    raw_items(&s.ring)[0] = raw_item(1000, 65536);
    ck_assert_uint_eq(raw_call(&s.ring, &sqe).value, 1);
    (void)!write(ready_fd, "x", 1);
    for (;;)
        pause();
}

static pid_t start_holder(void)
{
    int ready[2];
    char byte;

    ck_assert_int_eq(pipe(ready), 0);
    pid_t pid = fork();

    if (pid == 0) {
        raw_session_close(&good);
        holder(ready[1]);
    }
    ck_assert_int_eq(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
    return pid;
}

START_TEST(test_killed_with_leases)
{
    pid_t pid = start_holder();

    ck_assert_uint_ge(raw_admin_number(&d, "pools", "leased_bytes"), HELD * 65536);
    ck_assert_uint_eq(raw_admin_number(&d, "status", "peers"), 2);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    ck_assert(raw_admin_becomes(&d, "pools", "leased_bytes", 0));
    ck_assert(raw_admin_becomes(&d, "status", "peers", 1));

    /* What was committed is there, what was only reserved can be reserved anew. */
    struct raw_session s;

    raw_session_full(&s, &d, "default", 3, 0);
    ck_assert_int_eq(raw_get(&s, 7, 65536, 7), 0);
    ck_assert_int_eq(raw_put(&s, 1000, 65536, 9), 0);
    raw_session_close(&s);
}
END_TEST

/* The socket lives on in a forked child: the process's end counts. */
START_TEST(test_killed_with_a_child)
{
    int ready[2];
    pid_t child;

    ck_assert_int_eq(pipe(ready), 0);
    pid_t pid = fork();

    if (pid == 0) {
        struct raw_session s;

        raw_session_full(&s, &d, "default", 3, 0);
        child = fork();
        if (child == 0)
            for (;;)
                pause();
        (void)!write(ready[1], &child, sizeof(child));
        for (;;)
            pause();
    }
    ck_assert_int_eq(read(ready[0], &child, sizeof(child)), sizeof(child));
    ck_assert_uint_eq(raw_admin_number(&d, "status", "peers"), 2);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    ck_assert(raw_admin_becomes(&d, "status", "peers", 1));
    kill(child, SIGKILL);
    close(ready[0]);
    close(ready[1]);
}
END_TEST

/* Many deaths at random moments; nothing is left over. */
START_TEST(test_many_deaths)
{
    unsigned descriptors = raw_daemon_descriptors(&d);

    srand(1);
    for (int i = 0; i < 60; i++) {
        pid_t pid = fork();

        if (pid == 0) {
            struct raw_session s;

            raw_session_full(&s, &d, "default", 4, 0);
            for (uint64_t k = 0;; k++) {
                (void)raw_put(&s, k % 50, 4096 + (uint32_t)(k % 7) * 4096, 1);
                struct spw_sqe sqe = raw_sqe(&s, SPW_OP_ACQUIRE, 10);

                for (uint64_t j = 0; j < 10; j++)
                    raw_items(&s.ring)[j] = raw_item(j, 0);
                raw_submit(&s.ring, &sqe);
                struct spw_cqe cqe;

                (void)raw_wait(&s.ring, &cqe, 1000);
            }
        }
        nanosleep(&(struct timespec){.tv_nsec = (rand() % 40) * 1000000L}, NULL);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    ck_assert(raw_admin_becomes(&d, "status", "peers", 1));
    ck_assert(raw_admin_becomes(&d, "pools", "leased_bytes", 0));
    ck_assert(raw_admin_becomes(&d, "status", "sessions", 2));
    for (int i = 0; raw_daemon_descriptors(&d) > descriptors && i < 500; i++)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL); /* of the session that asked */
    ck_assert_uint_le(raw_daemon_descriptors(&d), descriptors);
}
END_TEST

/* A pool full of leases: an answer that names the limit, at once and after a wait. */
START_TEST(test_pool_full_of_leases)
{
    struct raw_session s;
    uint64_t taken = 0;
    struct spw_cqe cqe;

    raw_session_full(&s, &d, "default", 5, 0);
    for (;; taken++) {
        struct spw_sqe sqe = raw_sqe(&s, SPW_OP_RESERVE, 1);

        raw_items(&s.ring)[0] = raw_item(taken, 4 << 20);
        sqe.timeout_ms = taken > 8 ? 200 : 5000;
        cqe = raw_call(&s.ring, &sqe);
        if (cqe.status < 0 || raw_results(&s.ring)[0].status < 0)
            break;
    }
    ck_assert_uint_ge(taken, 8);
    ck_assert_uint_le(taken, 16);
    ck_assert_int_eq(raw_results(&s.ring)[0].status, -ENOSPC);
    ck_assert_uint_ne(raw_results(&s.ring)[0].detail, SPW_LIMIT_NONE);
    raw_session_close(&s);
}
END_TEST

/* --- Other users ------------------------------------------------------------------------------------------------- */

static bool can_be_others(void)
{
    if (getuid() == 0)
        return true;
    printf("SKIP: needs root, to be others\n");
    return false;
}

/* In a process of another user; its exit status is the number of the line that failed, or 0. */
#define expect(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            _exit(1 + __LINE__ % 250);                                                                                 \
    } while (0)

static int as_user(uid_t uid, void (*body)(void))
{
    int status = 0;

    chmod(d.socket, 0666);
    pid_t pid = fork();

    if (pid == 0) {
        raw_session_close(&good);
        expect(setgroups(0, NULL) == 0 && setgid(uid) == 0 && setuid(uid) == 0);
        body();
        _exit(0);
    }
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void body_stranger(void)
{
    struct raw_session s;

    raw_session_open(&s, &d);
    expect(raw_pool_open(&s, "default") == -EACCES);
    expect(raw_pool_open(&s, "shared") == -EACCES);
    expect(raw_pool_open(&s, "all") == 0);
    char request[64] = {0}, reply[512];
    struct spw_msg *msg = (void *)request;

    memcpy(request + sizeof(*msg), "{\"get\":\"status\"}", 16);
    expect(raw_request(s.fd, SPW_MSG_ADMIN, request, sizeof(*msg) + 16, reply, sizeof(reply), NULL, NULL) > 0);
    expect(((struct spw_msg *)(void *)reply)->status == -EACCES);
}

static void body_overflow(void)
{
    struct raw_session s;

    raw_session_open(&s, &d);
    expect(raw_pool_open(&s, "all") == -EACCES);
}

static void body_alice(void)
{
    struct raw_session s;

    raw_session_open(&s, &d);
    expect(raw_pool_open(&s, "shared") == 0);
    expect(!(s.pool.flags & SPW_POOL_TRUSTED));
    expect(raw_space_open(&s, 9, 0, SPW_CLASS_KV, 0) == 0);
    expect(raw_ring_new(&s, &s.ring, 64, RAW_SCRATCH_BYTES) == 0);
    expect(raw_put(&s, 1, 20000, 0xa1) == 0);
}

static void body_bob(void)
{
    struct raw_session s;
    struct spw_sqe sqe;
    uint64_t size;

    raw_session_open(&s, &d);
    expect(raw_pool_open(&s, "shared") == 0);
    expect(raw_space_open(&s, 9, 0, SPW_CLASS_KV, 0) == 0);
    expect(raw_ring_new(&s, &s.ring, 64, RAW_SCRATCH_BYTES) == 0);
    expect(raw_get(&s, 1, 20000, 0xa1) == 0);

    /* What he may read he can neither map for writing, nor open again, nor punch. */
    sqe = raw_sqe(&s, SPW_OP_ACQUIRE, 1);
    raw_items(&s.ring)[0] = raw_item(1, 0);
    expect(raw_call(&s.ring, &sqe).status == 0);
    struct spw_result result = raw_results(&s.ring)[0];
    struct spw_msg_chunk_get wanted = {.engine = 0, .chunk = result.chunk, .epoch = result.epoch};
    struct spw_msg_chunk reply;
    int fds[8];
    unsigned n_fds;
    char path[64];

    expect(raw_chunk_map(&s, &result, PROT_READ | PROT_WRITE, &size) == NULL);
    expect(raw_request(s.fd, SPW_MSG_CHUNK_GET, &wanted, sizeof(wanted), &reply, sizeof(reply), fds, &n_fds) > 0);
    expect(n_fds == 1 && !(reply.flags & SPW_CHUNK_WRITABLE));
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fds[0]);
    int again = open(path, O_RDWR);

    expect(again < 0);
    expect(fallocate(fds[0], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) < 0);
    expect(ftruncate(fds[0], 0) < 0);
    expect(raw_get(&s, 1, 20000, 0xa1) == 0);
}

START_TEST(test_rights)
{
    if (!can_be_others())
        return;
    ck_assert_int_eq(as_user(54321, body_stranger), 0);
    ck_assert_int_eq(as_user(65534, body_overflow), 0);
    struct raw_session s;

    raw_session_open(&s, &d);
    ck_assert_int_eq(raw_pool_open(&s, "all"), -EACCES); /* root, and not its own */
    raw_session_close(&s);
}
END_TEST

START_TEST(test_shared_pool)
{
    if (!can_be_others())
        return;
    ck_assert_int_eq(as_user(ALICE, body_alice), 0);
    ck_assert_int_eq(as_user(BOB, body_bob), 0);
}
END_TEST

/* --- What one user may have -------------------------------------------------------------------------------------- */

static void open_shared(struct raw_session *s)
{
    raw_session_open(s, &d);
    expect(raw_pool_open(s, "shared") == 0);
    expect(raw_space_open(s, 9, 0, SPW_CLASS_KV, 0) == 0);
    expect(raw_ring_new(s, &s->ring, 64, RAW_SCRATCH_BYTES) == 0);
}

/* A reservation of 1 MiB; its status and limit. */
static int reserve_one(struct raw_session *s, uint64_t key, uint32_t *ret_limit)
{
    struct spw_sqe sqe = raw_sqe(s, SPW_OP_RESERVE, 1);

    raw_items(&s->ring)[0] = raw_item(key, 1 << 20);
    sqe.timeout_ms = 5000;
    int status = raw_call(&s->ring, &sqe).status;

    *ret_limit = raw_results(&s->ring)[0].detail;
    return status < 0 ? status : raw_results(&s->ring)[0].status;
}

static int hold_fds[2][2]; /* "it has all that it may have", and "that is enough" */

/* Of the pool's 32 MiB leases may pin 80 %, and those of one user 75 % of that. */
#define USER_MIB 19

static void body_takes_all(void)
{
    struct raw_session s[2], more;
    uint32_t limit, n = 0;
    char byte = 0;

    open_shared(&s[0]);
    open_shared(&s[1]);
    while (n < 40 && reserve_one(&s[n % 2], 1000 + n, &limit) == 0)
        n++;
    expect(n == USER_MIB && limit == SPW_LIMIT_UID_LEASES);
    expect(reserve_one(&s[(n + 1) % 2], 2000, &limit) == -ENOSPC && limit == SPW_LIMIT_UID_LEASES);
    open_shared(&more);
    expect(reserve_one(&more, 2001, &limit) == -ENOSPC && limit == SPW_LIMIT_UID_LEASES);
    expect(write(hold_fds[0][1], &byte, 1) == 1);
    expect(read(hold_fds[1][0], &byte, 1) == 1);

    raw_session_close(&s[1]); /* half of it is there again, for whichever session */
    for (int i = 0; reserve_one(&more, 2002, &limit) != 0; i++) {
        expect(i < 500);
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    raw_session_close(&s[0]);
    raw_session_close(&more);
}

static void body_has_his(void)
{
    struct raw_session s;
    uint32_t limit, n = 0;

    open_shared(&s);
    while (n < 5 && reserve_one(&s, 3000 + n, &limit) == 0)
        n++;
    expect(n == 5);
    expect(raw_put(&s, 4000 + getuid(), 20000, 0xb0) == 0);
    expect(raw_get(&s, 4000 + getuid(), 20000, 0xb0) == 0);
}

/* Rule 10: two sessions of one user reach the limit together, a third does not help, and another user notices nothing. When
 * a session ends all is given back. */
START_TEST(test_leases_of_a_user)
{
    int status = 0;
    char byte = 0;

    if (!can_be_others())
        return;
    chmod(d.socket, 0666);
    ck_assert_int_eq(pipe(hold_fds[0]) | pipe(hold_fds[1]), 0);
    pid_t pid = fork();

    if (pid == 0) {
        raw_session_close(&good);
        close(hold_fds[1][1]);
        expect(setgroups(0, NULL) == 0 && setgid(ALICE) == 0 && setuid(ALICE) == 0);
        body_takes_all();
        _exit(0);
    }
    close(hold_fds[0][1]);
    close(hold_fds[1][0]);
    if (read(hold_fds[0][0], &byte, 1) == 1) { /* else she has failed */
        ck_assert_int_eq(as_user(BOB, body_has_his), 0);
        ck_assert_int_eq(write(hold_fds[1][1], &byte, 1), 1);
    }
    waitpid(pid, &status, 0);
    ck_assert_int_eq(status, 0);
    close(hold_fds[0][0]);
    close(hold_fds[1][1]);
    ck_assert(raw_admin_becomes(&d, "status", "sessions", 2));
    ck_assert_int_eq(as_user(ALICE, body_has_his), 0);
}
END_TEST

static void body_bob_connects(void)
{
    struct raw_session s;

    open_shared(&s);
    raw_session_close(&s);
}

static void body_many_rings(void)
{
    static struct raw_session s[40];
    struct raw_ring ring;
    uint32_t n = 0;
    int status;

    /* A session with two rings has 8 descriptors: 25 of them. */
    for (; n < 40; n++) {
        status = raw_session_try(&s[n], &d);
        if (status < 0)
            break;
        status = raw_ring_new(&s[n], &ring, 64, 4096);
        expect(status == 0);
        status = raw_ring_new(&s[n], &ring, 64, 4096);
        expect(status == 0);
    }
    expect(n == 25 && status == -EUSERS);
    for (uint32_t i = 0; i < n; i++)
        raw_session_close(&s[i]);
}

START_TEST(test_descriptors_of_a_user)
{
    if (!can_be_others())
        return;
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(as_user(ALICE, body_many_rings), 0);
        ck_assert_int_eq(as_user(BOB, body_bob_connects), 0);
        ck_assert(raw_admin_becomes(&d, "status", "sessions", 2));
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_hostile");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 200);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, test_ring_tail, 0, 3);
    tcase_add_loop_test(tc, test_ring_reserved_bits, 0, 3);
    tcase_add_test(tc, test_ring_bounds);
    tcase_add_test(tc, test_foreign_handles);
    tcase_add_test(tc, test_holes);
    tcase_add_test(tc, test_chunk_holes);
    tcase_add_loop_test(tc, test_bad_message, 0, BAD_MESSAGES);
    tcase_add_test(tc, test_first_message_is_not_hello);
    tcase_add_test(tc, test_versions);
    tcase_add_test(tc, test_owner_tokens);
    tcase_add_test(tc, test_surplus_descriptors);
    tcase_add_test(tc, test_limits_are_named);
    tcase_add_test(tc, test_out_of_descriptors);
    tcase_add_test(tc, test_killed_with_leases);
    tcase_add_test(tc, test_killed_with_a_child);
    tcase_add_test(tc, test_many_deaths);
    tcase_add_test(tc, test_pool_full_of_leases);
    tcase_add_test(tc, test_rights);
    tcase_add_test(tc, test_shared_pool);
    tcase_add_test(tc, test_leases_of_a_user);
    tcase_add_test(tc, test_descriptors_of_a_user);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
