/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Restarts under load: no call fails, no byte is wrong, nothing is missing, whether the daemon is stopped, killed, or
 * handed over. And what a session that goes on must not do.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "include/spillway/abi.h"
#include "tests/system/support/hotload.h"
#include "tests/system/support/keeper.h"

#define SECTIONS "[tier.dram]\nsize = 128 MiB\n[pool default]\n"
#define N_RESTARTS 7
#define BLOCK (64 * 1024)

static struct daemon d;
static struct keeper k;

static spw_space *cache_of(spw_session *session)
{
    return daemon_space(session, "default", "cache", 0, SPW_CLASS_KV, SPW_CACHE);
}

static void configure(bool has_device, const char *keys)
{
    daemon_init(&d);
    if (has_device)
        daemon_format(&d, 256 * DAEMON_MIB);
    daemon_configure(&d, keys, SECTIONS);
}

static void setup(void)
{
    configure(false, "");
    keeper_start(&k, &d);
}

static void teardown(void)
{
    int status = keeper_stop(&k);

    ck_assert_msg(status == 0, "%d: %s", status, daemon_log_end(&d));
    daemon_deinit(&d);
}

/* --- Load ------------------------------------------------------------------------------------------------------------ */

static void restart_by_keeper(int i)
{
    keeper_restart(&k, i % 2 ? SIGTERM : SIGKILL);
}

static void restart_by_upgrade(int i)
{
    (void)i;
    ck_assert_msg(daemon_upgrade(&d) == 0, "%s", daemon_log_end(&d));
}

static void under_load(void (*restart)(int i))
{
    static struct hotload load;

    hotload_start(&load, &d, 1);
    for (int i = 0; i < N_RESTARTS && !hotload_error(&load); i++) {
        ck_assert_msg(hotload_progress(&load), "restart %d: the load stands still: %s", i, daemon_log_end(&d));
        restart(i);
    }
    if (!hotload_error(&load))
        ck_assert_msg(hotload_progress(&load), "the load stands still: %s", daemon_log_end(&d));
    uint64_t n = hotload_stop(&load);

    ck_assert_msg(!hotload_error(&load), "%s\n%s", hotload_error(&load), daemon_log_end(&d));
    ck_assert_uint_gt(n, 0);
}

START_TEST(test_memory)
{
    under_load(restart_by_keeper);
}
END_TEST

START_TEST(test_device)
{
    configure(true, "");
    keeper_start(&k, &d);
    under_load(restart_by_keeper);
    teardown();
}
END_TEST

START_TEST(test_two_engines)
{
    configure(false, "engines = 2");
    keeper_start(&k, &d);
    under_load(restart_by_keeper);
    teardown();
}
END_TEST

START_TEST(test_upgrade)
{
    configure(true, "");
    daemon_start(&d);
    under_load(restart_by_upgrade);
    daemon_deinit(&d);
}
END_TEST

/* --- One client ------------------------------------------------------------------------------------------------------ */

/* A client that does nothing is there after each. */
static void restarts_of_an_idle_client(void)
{
    spw_session *session = daemon_connect(&d);
    spw_space *space = cache_of(session);

    for (int i = 0; i < 4; i++) {
        restart_by_keeper(i);
        int r = spw_nop(space);

        ck_assert_msg(r == 0, "restart %d: %d %s: %s", i, r, spw_error_text(), daemon_log_end(&d));
    }
    spw_close(session);
}

START_TEST(test_idle)
{
    restarts_of_an_idle_client();
}
END_TEST

/* Owners do not linger here, and that of a session which is on its way to the next process does not end. */
START_TEST(test_no_linger)
{
    daemon_init(&d);
    daemon_configure(&d, "", SECTIONS "linger = 0 s\n");
    keeper_start(&k, &d);
    restarts_of_an_idle_client();
    teardown();
}
END_TEST

/* Nobody kept anything: the client hears of it as ever, and can read on. */
START_TEST(test_lost)
{
    spw_session *session = daemon_connect(&d);
    spw_space *space = cache_of(session);
    struct spw_key key = block_key(1);
    struct spw_view view;

    ck_assert_int_eq(block_put(space, 1, BLOCK), 0);
    ck_assert_int_eq(spw_acquire(space, &key, 1, 0, 1000, &view), 0);
    pthread_mutex_lock(&k.lock);
    manager_forget_all(&k.manager);
    pthread_mutex_unlock(&k.lock);
    keeper_restart(&k, SIGKILL);
    ck_assert_int_eq(spw_nop(space), -ENOTCONN);
    ck_assert(pattern_is(view.data, BLOCK, 1, 0));
    ck_assert_int_eq(spw_release(space, &view, 1, 0), -ENOTCONN);
    spw_close(session);
}
END_TEST

/* A call's own deadline holds while there is no daemon, and the next call goes through when there is one. */
START_TEST(test_deadline)
{
    spw_session *session = daemon_connect(&d);
    spw_space *space = cache_of(session);
    struct spw_key key = block_key(1);
    struct spw_view view;

    ck_assert_int_eq(block_put(space, 1, BLOCK), 0);
    keeper_kill(&k);
    ck_assert_int_eq(spw_acquire(space, &key, 1, 0, 200, &view), -ETIMEDOUT);
    ck_assert_int_eq(view.status, -ETIMEDOUT);
    keeper_revive(&k);
    ck_assert_int_eq(block_get(space, 1, BLOCK), 0);
    ck_assert_int_eq(daemon_admin_number(session, "sessions", "sessions/0/leases"),
                     0); /* nor was one left by the first try */
    spw_close(session);
}
END_TEST

#if !defined(BASE_TSAN)
/* A process that holds a lease, until it is killed. */
static pid_t child_with_lease(void)
{
    int ready[2];
    char byte;

    ck_assert_int_eq(pipe(ready), 0);
    fflush(NULL);
    pid_t pid = fork();

    if (pid == 0) {
        spw_space *space = cache_of(daemon_connect(&d));
        struct spw_key key = block_key(9);
        struct spw_view view;

        if (block_put(space, 9, BLOCK) != 0 || spw_acquire(space, &key, 1, 0, 1000, &view) != 0)
            _exit(1);
        (void)!write(ready[1], "", 1);
        pause();
        _exit(0);
    }
    close(ready[1]);
    ck_assert_int_eq(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    return pid;
}

static bool sessions_become(spw_session *session, int64_t n, int64_t within_ms)
{
    for (int64_t end = clock_ms() + within_ms; clock_ms() < end; sleep_ms(10))
        if (daemon_admin_number(session, "status", "sessions") == n)
            return true;
    return false;
}

/* A client that died while there was no daemon is not waited for. */
START_TEST(test_dead_client)
{
    pid_t pid = child_with_lease();

    keeper_kill(&k);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    keeper_revive(&k);
    spw_session *session = daemon_connect(&d);

    ck_assert_msg(sessions_become(session, 1, 10000), "%s", daemon_log_end(&d));
    spw_close(session);
}
END_TEST

/* One that lives and does not come back is waited for so long. */
START_TEST(test_late_client)
{
    configure(false, "reattach = 500 ms");
    keeper_start(&k, &d);
    pid_t pid = child_with_lease();

    kill(pid, SIGSTOP);
    keeper_restart(&k, SIGKILL);
    spw_session *session = daemon_connect(&d);

    ck_assert_msg(sessions_become(session, 1, 20000), "%s", daemon_log_end(&d));
    ck_assert(daemon_logged(&d, "did not come back"));
    kill(pid, SIGKILL);
    kill(pid, SIGCONT);
    waitpid(pid, NULL, 0);
    spw_close(session);
    teardown();
}
END_TEST
#endif

/* --- Tokens ---------------------------------------------------------------------------------------------------------- */

static int dial(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    memcpy(addr.sun_path, d.socket, strlen(d.socket) + 1);
    ck_assert_int_eq(connect(fd, (const struct sockaddr *)&addr, sizeof(addr)), 0);
    return fd;
}

/* Says HELLO; the reply's status, and the welcome if there is one. */
static int hello(int fd, const uint8_t *token, struct spw_msg_welcome *ret_welcome)
{
    struct spw_msg_hello hello = {.msg = {.magic = SPW_ABI_MAGIC,
                                          .type = SPW_MSG_HELLO,
                                          .version = SPW_ABI_VERSION,
                                          .size_bytes = sizeof(hello),
                                          .request = 1},
                                  .version_min = SPW_ABI_VERSION,
                                  .version_max = SPW_ABI_VERSION,
                                  .name = "raw"};
    union {
        struct spw_msg_welcome welcome;
        struct spw_msg_error error;
    } reply = {0};

    if (token)
        memcpy(hello.session_token, token, SPW_TOKEN_BYTES);
    ck_assert_int_eq(send(fd, &hello, sizeof(hello), 0), sizeof(hello));
    ck_assert_int_gt(recv(fd, &reply, sizeof(reply), 0), 0);
    if (ret_welcome)
        *ret_welcome = reply.welcome;
    return reply.welcome.msg.status;
}

/* A connection that is not closed is a session that has got nothing. */
static void refused(const uint8_t *token)
{
    int fd = dial();
    char byte;

    ck_assert_int_eq(hello(fd, token, NULL), -ENOENT);
    ck_assert_int_eq(recv(fd, &byte, 1, 0), 0);
    close(fd);
}

static void refused_of_another_process(const uint8_t *token)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        refused(token);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    ck_assert_int_eq(status, 0);
}

START_TEST(test_tokens)
{
    uint8_t guess[SPW_TOKEN_BYTES] = {1};
    struct spw_msg_welcome first, second;
    int fd = dial();

    ck_assert_int_eq(hello(fd, NULL, &first), 0);
    ck_assert_uint_gt(first.reattach_ms, 0);
    ck_assert_uint_ne(first.memory_id, 0);
    refused(guess);
    refused(first.session_token); /* it is not away */
    keeper_restart(&k, SIGKILL);
    close(fd);
    refused(guess);
    refused_of_another_process(first.session_token);
    fd = dial();
    ck_assert_int_eq(hello(fd, first.session_token, &second), 0);
    ck_assert_uint_eq(second.session, first.session);
    ck_assert_uint_eq(second.memory_id, first.memory_id);
    ck_assert_mem_eq(second.session_token, first.session_token, SPW_TOKEN_BYTES);
    refused(first.session_token);

    /* Whoever did not hear the answer may ask again. */
    close(fd);
    fd = dial();
    for (int64_t end = clock_ms() + 10000; hello(fd, first.session_token, &second) != 0 && clock_ms() < end;
         sleep_ms(5)) {
        close(fd); /* the hang-up has not been seen yet */
        fd = dial();
    }
    ck_assert_uint_eq(second.session, first.session);
    close(fd);
}
END_TEST

/* --- The store ------------------------------------------------------------------------------------------------------- */

START_TEST(test_unknown_names)
{
    int fd = open("/dev/null", O_RDONLY);

    keeper_give(&k, "nonsense", fd);
    keeper_restart(&k, SIGTERM);
    for (int64_t end = clock_ms() + 10000; keeper_has(&k, "nonsense") > 0 && clock_ms() < end; sleep_ms(5))
        ;
    ck_assert_uint_eq(keeper_has(&k, "nonsense"), 0);
    ck_assert_uint_eq(keeper_has(&k, "sessions"), 1);
    ck_assert_uint_eq(keeper_has(&k, "engine."), 1);
    ck_assert_uint_gt(keeper_has(&k, "chunk.0."), 0);
    ck_assert(daemon_logged(&d, "'nonsense'"));
}
END_TEST

START_TEST(test_full)
{
    struct spw_connect_options options = {.socket_path = d.socket};
    spw_session *session;

    configure(false, "");
    options.socket_path = d.socket;
    keeper_init(&k, &d);
    k.manager.max = 3;
    keeper_go(&k);
    ck_assert_int_eq(spw_connect(&options, &session), -EMFILE);
    ck_assert_ptr_nonnull(strstr(spw_error_text(), "FileDescriptorStoreMax"));
    ck_assert_uint_eq(spw_error_limit(), SPW_LIMIT_DESCRIPTORS);
    ck_assert_uint_le(k.manager.n, 3);
    teardown();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("hot restart");
    TCase *kept = tcase_create("kept"), *own = tcase_create("own");

    tcase_set_timeout(kept, 120);
    tcase_add_checked_fixture(kept, setup, teardown);
    tcase_add_test(kept, test_memory);
    tcase_add_test(kept, test_idle);
    tcase_add_test(kept, test_lost);
    tcase_add_test(kept, test_deadline);
#if !defined(BASE_TSAN) /* a child with threads of its own */
    tcase_add_test(kept, test_dead_client);
    tcase_add_test(own, test_late_client);
#endif
    tcase_add_test(kept, test_tokens);
    tcase_add_test(kept, test_unknown_names);
    suite_add_tcase(suite, kept);
    tcase_set_timeout(own, 120);
    tcase_add_test(own, test_device);
    tcase_add_test(own, test_two_engines);
    tcase_add_test(own, test_upgrade);
    tcase_add_test(own, test_full);
    tcase_add_test(own, test_no_linger);
    suite_add_tcase(suite, own);
    return suite_main(suite);
}
