/* SPDX-License-Identifier: Apache-2.0 */
/* See daemon.h. The daemon dies with the test's process, so that a test that aborts leaves nothing running. */
#include "tests/system/support/daemon.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "include/base/mix.h"

#define READY_MS 60000
#define STOP_MS 60000
#define LOG_BYTES_MAX (1 << 20)
#define LOG_END_BYTES 1500

int64_t clock_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000L}, NULL);
}

static void program_path(const char *name, char *ret_path, size_t path_bytes)
{
    const char *bin = getenv("SPILLWAY_BIN");

    snprintf(ret_path, path_bytes, "%s/%s", bin ? bin : ".", name);
}

static int exit_status(int status)
{
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* --- The folder -------------------------------------------------------------------------------------------------- */

void daemon_init(struct daemon *d)
{
    *d = (struct daemon){.dir = "/var/tmp/spillway-test-XXXXXX"};
    ck_assert_ptr_nonnull(mkdtemp(d->dir));
    chmod(d->dir, 0755);
    snprintf(d->socket, sizeof(d->socket), "%s/socket", d->dir);
    snprintf(d->log, sizeof(d->log), "%s/log", d->dir);
    snprintf(d->config, sizeof(d->config), "%s/conf", d->dir);
    snprintf(d->disk, sizeof(d->disk), "%s/disk.spill", d->dir);
}

void daemon_format(struct daemon *d, uint64_t size_bytes)
{
    daemon_format_partitions(d, size_bytes, 1);
}

void daemon_format_partitions(struct daemon *d, uint64_t size_bytes, unsigned n)
{
    char capacity[32], partitions[16], text[4096];
    const char *const args[] = {"device",       "format",   d->disk,     "--capacity", capacity,
                                "--partitions", partitions, "--segment", "1 MiB",      NULL};

    snprintf(partitions, sizeof(partitions), "%u", n);
    snprintf(capacity, sizeof(capacity), "%llu MiB", (unsigned long long)(size_bytes / DAEMON_MIB));
    int status = daemon_run_program("spillctl", args, text, sizeof(text));

    ck_assert_msg(status == 0, "spillctl device format: %d: %s", status, text);
    d->disk_bytes = size_bytes;
}

void daemon_configure(const struct daemon *d, const char *daemon_keys, const char *sections)
{
    FILE *f = fopen(d->config, "w");

    ck_assert_ptr_nonnull(f);
    fprintf(f, "[daemon]\nsocket = %s\n%slog_level = debug\n%s\n", d->socket,
            strstr(daemon_keys, "engines") ? "" : "engines = 1\n", daemon_keys);
    if (d->disk_bytes)
        fprintf(f, "[device disk]\npath = %s\n", d->disk);
    fprintf(f, "%s\n", sections);
    ck_assert_int_eq(fclose(f), 0);
}

static void folder_remove(const char *path)
{
    DIR *dir = opendir(path);
    char file[512];

    // cppcheck-suppress readdirCalled; nobody else reads this stream
    for (struct dirent *e; dir && (e = readdir(dir)) != NULL;) {
        snprintf(file, sizeof(file), "%s/%s", path, e->d_name);
        unlink(file);
    }
    if (dir)
        closedir(dir);
    rmdir(path);
}

/* --- The process ------------------------------------------------------------------------------------------------- */

static void limit(int resource, rlim_t value)
{
    struct rlimit limits = {value, value};

    if (value > 0 && setrlimit(resource, &limits) < 0)
        _exit(126);
}

static void daemon_exec(const struct daemon *d)
{
    char program[512];
    const char *argv[] = {
        program, "--config", d->config, d->upgrades ? "--upgrade" : "--foreground", d->system_mode ? NULL : "--user",
        NULL};
    int log = open(d->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(log, STDERR_FILENO);
    dup2(log, STDOUT_FILENO);
    program_path("spillwayd", program, sizeof(program));
    limit(RLIMIT_MEMLOCK, d->memlock_bytes);
    if (d->uid != 0 && (setgroups(0, NULL) < 0 || setgid(d->uid) < 0 || setuid(d->uid) < 0))
        _exit(126);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* setuid() has cleared it */
    if (d->in_child)
        d->in_child(d->in_child_ctx);
    execv(program, (char *const *)(uintptr_t)argv);
    perror(program);
    _exit(127);
}

void daemon_spawn(struct daemon *d)
{
    d->pid = fork();
    if (d->pid == 0) /* libcheck's lock may be another thread's: no assertions in the child */
        daemon_exec(d);
    ck_assert_int_ge(d->pid, 0);
}

void daemon_start(struct daemon *d)
{
    struct spw_connect_options options = {.socket_path = d->socket, .timeout_ms = 1000};

    fflush(NULL);
    daemon_spawn(d);
    for (int64_t end = clock_ms() + READY_MS; clock_ms() < end; sleep_ms(10)) {
        spw_session *session;
        int status, r = d->uid == 0 ? spw_connect(&options, &session) : access(d->socket, F_OK);

        if (r == 0 && d->uid == 0)
            spw_close(session);
        if (r == 0 && (d->uid == 0 || daemon_logged(d, "ready:")))
            return;
        if (waitpid(d->pid, &status, WNOHANG) != 0) {
            d->pid = 0;
            ck_abort_msg("spillwayd ended with %d at once: %s", exit_status(status), daemon_log(d));
        }
    }
    ck_abort_msg("spillwayd does not become ready: %s", daemon_log(d));
}

/* False if it had to be killed. */
static bool daemon_reap(struct daemon *d, int *ret_status)
{
    for (int64_t end = clock_ms() + STOP_MS; clock_ms() < end; sleep_ms(5)) {
        if (waitpid(d->pid, ret_status, WNOHANG) != 0) {
            d->pid = 0;
            return true;
        }
    }
    kill(d->pid, SIGKILL);
    waitpid(d->pid, ret_status, 0);
    d->pid = 0;
    return false;
}

int daemon_start_refused(struct daemon *d)
{
    int status = 0;

    fflush(NULL);
    daemon_spawn(d);
    ck_assert_msg(daemon_reap(d, &status), "spillwayd goes on where it should refuse: %s", daemon_log(d));
    return exit_status(status);
}

int daemon_upgrade(struct daemon *d)
{
    struct daemon old = *d;
    int status = 0;

    d->upgrades = true;
    fflush(NULL);
    daemon_spawn(d);
    d->upgrades = false;
    ck_assert_msg(daemon_reap(&old, &status), "spillwayd does not hand over: %s", daemon_log_end(d));
    return exit_status(status);
}

int daemon_stop(struct daemon *d)
{
    int status = 0;

    if (d->pid == 0)
        return 0;
    kill(d->pid, SIGTERM);
    ck_assert_msg(daemon_reap(d, &status), "spillwayd does not stop: %s", daemon_log(d));
    return exit_status(status);
}

void daemon_kill(struct daemon *d)
{
    kill(d->pid, SIGKILL);
    waitpid(d->pid, NULL, 0);
    d->pid = 0;
}

bool daemon_lives(struct daemon *d)
{
    int status;

    if (d->pid != 0 && waitpid(d->pid, &status, WNOHANG) != 0)
        d->pid = 0;
    return d->pid != 0;
}

/* An honest daemon needs no call that is not in a list (io/sandbox_calls.h), whatever was asked of it. */
static void no_call_was_refused(const struct daemon *d)
{
    char line[1024];
    FILE *f = fopen(d->log, "r");

    while (f && fgets(line, sizeof(line), f))
        ck_assert_msg(!strstr(line, "refused the system call"), "%s", line);
    if (f)
        fclose(f);
}

void daemon_deinit(struct daemon *d)
{
    int status = daemon_stop(d);

    ck_assert_msg(status == 0, "spillwayd ended with %d: %s", status, daemon_log(d));
    if (!d->is_taken_over)
        no_call_was_refused(d);
    folder_remove(d->dir);
}

const char *daemon_log(const struct daemon *d)
{
    static char text[LOG_BYTES_MAX];
    FILE *f = fopen(d->log, "r");
    size_t n = 0;

    if (f && fseek(f, 0, SEEK_END) == 0 && ftell(f) >= (long)sizeof(text))
        (void)fseek(f, 1 - (long)sizeof(text), SEEK_END); /* what came last */
    else if (f)
        rewind(f);
    if (f)
        n = fread(text, 1, sizeof(text) - 1, f);

    if (f)
        fclose(f);
    text[n] = '\0';
    return text;
}

const char *daemon_log_end(const struct daemon *d)
{
    const char *log = daemon_log(d);
    size_t len = strlen(log);

    return len > LOG_END_BYTES ? log + len - LOG_END_BYTES : log;
}

bool daemon_logged(const struct daemon *d, const char *text)
{
    for (int i = 0; i < 200; i++, sleep_ms(10))
        if (strstr(daemon_log(d), text))
            return true;
    return false;
}

uint64_t daemon_cpu_ticks(const struct daemon *d)
{
    unsigned long long user = 0, system = 0;
    char path[64], line[1024] = "";

    snprintf(path, sizeof(path), "/proc/%d/stat", d->pid);
    FILE *f = fopen(path, "r");

    ck_assert_ptr_nonnull(f);
    ck_assert_ptr_nonnull(fgets(line, sizeof(line), f));
    fclose(f);
    ck_assert_int_eq(
        sscanf(strrchr(line, ')') + 1, "%*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu %llu", &user, &system), 2);
    return user + system;
}

int daemon_run_program(const char *program, const char *const args[], char *ret_text, size_t text_bytes)
{
    const char *argv[16] = {NULL};
    char path[512], rest[4096];
    int pipe_fds[2], status;
    size_t n = 0;

    program_path(program, path, sizeof(path));
    argv[0] = path;
    for (int i = 0; i < 14 && args[i]; i++)
        argv[i + 1] = args[i];
    ck_assert_int_eq(pipe2(pipe_fds, O_CLOEXEC), 0);
    fflush(NULL);
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(pipe_fds[1], STDOUT_FILENO);
        dup2(pipe_fds[1], STDERR_FILENO);
        execv(path, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(pipe_fds[1]);
    for (ssize_t got = 1; got > 0;) {
        bool full = !ret_text || n + 1 >= text_bytes;

        got = full ? read(pipe_fds[0], rest, sizeof(rest)) : read(pipe_fds[0], ret_text + n, text_bytes - 1 - n);
        n += !full && got > 0 ? (size_t)got : 0;
    }
    close(pipe_fds[0]);
    if (ret_text)
        ret_text[n] = '\0';
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    return exit_status(status);
}

/* --- Clients ----------------------------------------------------------------------------------------------------- */

spw_session *daemon_connect(const struct daemon *d)
{
    spw_session *session;
    int r = spw_connect(&(struct spw_connect_options){.socket_path = d->socket, .timeout_ms = d->timeout_ms}, &session);

    ck_assert_msg(r == 0, "connect: %d: %s", r, spw_error_text());
    return session;
}

char *daemon_admin(spw_session *session, const char *what)
{
    char request[64], *json;

    snprintf(request, sizeof(request), "{\"get\": \"%s\"}", what);
    int r = spw_admin(session, request, &json);

    ck_assert_msg(r == 0, "admin %s: %d: %s", what, r, spw_error_text());
    return json;
}

int64_t daemon_admin_number(spw_session *session, const char *what, const char *path)
{
    char *text = daemon_admin(session, what), steps[128], *state = NULL;
    struct json_object *root = json_tokener_parse(text), *at = root;

    ck_assert_ptr_nonnull(root);
    snprintf(steps, sizeof(steps), "%s", path);
    for (char *step = strtok_r(steps, "/", &state); step && at; step = strtok_r(NULL, "/", &state)) {
        if (json_object_is_type(at, json_type_array))
            at = json_object_array_get_idx(at, strtoul(step, NULL, 10));
        else if (!json_object_object_get_ex(at, step, &at))
            at = NULL;
    }
    ck_assert_msg(at != NULL, "%s has no %s: %s", what, path, text);
    int64_t value = json_object_get_int64(at);

    json_object_put(root);
    free(text);
    return value;
}

int64_t daemon_status_number(const struct daemon *d, const char *path)
{
    spw_session *session = daemon_connect(d);
    int64_t value = daemon_admin_number(session, "status", path);

    spw_close(session);
    return value;
}

spw_space *daemon_space(spw_session *session, const char *pool_name, const char *digest, uint64_t item_bytes,
                        unsigned class_id, unsigned durability)
{
    struct spw_space_options options = {
        .item_bytes = item_bytes, .class_id = (uint8_t)class_id, .durability = (uint8_t)durability};
    spw_space *space;
    spw_pool *pool;
    int r = spw_pool_open(session, pool_name, &pool);

    ck_assert_msg(r == 0, "pool %s: %d: %s", pool_name, r, spw_error_text());
    memcpy(options.digest, digest, strlen(digest));
    r = spw_space_open(pool, &options, &space);
    ck_assert_msg(r == 0, "space %s: %d: %s", digest, r, spw_error_text());
    return space;
}

void pattern_fill(void *to, size_t size_bytes, uint64_t key, uint64_t version)
{
    uint64_t stream = splitmix64(key ^ splitmix64(version));

    for (size_t i = 0; i + 8 <= size_bytes; i += 8) {
        uint64_t word = splitmix64(stream + i);

        memcpy((char *)to + i, &word, 8);
    }
}

bool pattern_is(const void *from, size_t size_bytes, uint64_t key, uint64_t version)
{
    uint64_t stream = splitmix64(key ^ splitmix64(version));

    for (size_t i = 0; i + 8 <= size_bytes; i += 8) {
        uint64_t word = splitmix64(stream + i);

        if (memcmp((const char *)from + i, &word, 8) != 0)
            return false;
    }
    return true;
}

struct spw_key block_key(uint64_t number)
{
    struct spw_key key;

    ck_assert_int_eq(spw_key_init(&key, &number, sizeof(number), 0), 0);
    return key;
}

int block_put_within(spw_space *space, uint64_t number, size_t size_bytes, uint32_t timeout_ms, unsigned *ret_limit)
{
    struct spw_key key = block_key(number);
    uint64_t size = size_bytes;
    struct spw_view view;
    int r = spw_reserve(space, &key, &size, 1, 0, timeout_ms, &view);

    *ret_limit = r < 0 ? spw_error_limit() : view.detail;
    if (r < 0 || view.status < 0)
        return r < 0 ? r : view.status;
    ck_assert_uint_eq(view.size_bytes, size_bytes);
    pattern_fill(view.data, size_bytes, number, 0);
    r = spw_commit(space, &view, 1, 0);
    if (view.lease)
        spw_abort(space, &view, 1);
    return r < 0 ? r : view.status;
}

int block_put(spw_space *space, uint64_t number, size_t size_bytes)
{
    unsigned limit;

    return block_put_within(space, number, size_bytes, 10000, &limit);
}

int block_get_from(spw_space *space, uint64_t number, size_t size_bytes, unsigned *ret_tier)
{
    struct spw_key key = block_key(number);
    struct spw_view view;
    int r = spw_acquire(space, &key, 1, 0, 10000, &view);

    if (r < 0 || view.status < 0)
        return r < 0 ? r : view.status;
    ck_assert_uint_eq(view.size_bytes, size_bytes);
    ck_assert_msg(pattern_is(view.data, size_bytes, number, 0), "block %llu has wrong bytes",
                  (unsigned long long)number);
    *ret_tier = view.tier;
    ck_assert_int_eq(spw_release(space, &view, 1, 0), 0);
    return 0;
}

int block_get(spw_space *space, uint64_t number, size_t size_bytes)
{
    unsigned tier;

    return block_get_from(space, number, size_bytes, &tier);
}

int suite_main(struct Suite *suite)
{
    SRunner *sr = srunner_create(suite);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
