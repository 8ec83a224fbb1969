/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The folder of a run: device, configuration, socket, log, the oracle's file and the kill points' table, and the
 * daemon's process. The daemon is a child of ours and dies with us. Where its memory is kept we are its service manager,
 * without a thread: who waits for a daemon, or for what needs one, asks again and again whether it lives, and that takes
 * what it has sent.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "include/base/cleanup.h"
#include "tests/torture/torture.h"

#define TORTURE_UID 65533
#define ORACLE_MAGIC UINT64_C(0x3245524f54525453)
#define READY_MS 120000
#define MEMORY_MIB 64

static const struct t_place *failed_place; /* whose folder to name */

void torture_fail(const char *fmt, ...)
{
    va_list args;

    fflush(stdout);
    fprintf(stderr, "FAILED: ");
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    if (failed_place)
        fprintf(stderr, "\n(seed %llu, cycle %u; everything is in %s)", (unsigned long long)failed_place->oracle->seed,
                failed_place->oracle->cycle, failed_place->dir);
    fprintf(stderr, "\n");
    exit(EXIT_FAILURE);
}

int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

void pause_ms(int64_t ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

/* --- Who we are -------------------------------------------------------------------------------------------------------- */

/* The right to lock memory, through execve() too: so that the registered path is what runs. */
static bool keep_memlock(void)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};

    data[0].effective = data[0].permitted = data[0].inheritable = UINT32_C(1) << CAP_IPC_LOCK;
    return syscall(SYS_capset, &head, data) == 0 &&
           prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_IPC_LOCK, 0, 0) == 0;
}

void place_drop_root(void)
{
    if (geteuid() != 0)
        return;
    (void)prctl(PR_SET_KEEPCAPS, 1);
    if (setgroups(0, NULL) < 0 || setgid(TORTURE_UID) < 0 || setuid(TORTURE_UID) < 0)
        torture_fail("cannot become user %d", TORTURE_UID);
    if (!keep_memlock())
        fprintf(stderr, "memory cannot be locked: the daemon runs without registered memory\n");
    (void)prctl(PR_SET_DUMPABLE, 1);
}

/* --- The folder -------------------------------------------------------------------------------------------------------- */

static const char *const file_names[] = {"disk.spill", "socket", "notify", "log",
                                         "log.before", "conf",   "points", "state"};

static void *file_map(const char *path, size_t bytes)
{
    cleanup_close int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
        torture_fail("%s: %s", path, strerror(errno));
    void *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (mem == MAP_FAILED)
        torture_fail("%s: %s", path, strerror(errno));
    return mem;
}

static void place_paths(struct t_place *p)
{
    snprintf(p->disk, sizeof(p->disk), "%s/disk.spill", p->dir);
    snprintf(p->socket, sizeof(p->socket), "%s/socket", p->dir);
    snprintf(p->log, sizeof(p->log), "%s/log", p->dir);
    snprintf(p->config, sizeof(p->config), "%s/conf", p->dir);
    snprintf(p->table_path, sizeof(p->table_path), "%s/points", p->dir);
}

/* One or two engines, with one or two partitions for each. */
static void place_shape(struct t_place *p)
{
    uint64_t x = splitmix64(p->oracle->seed + p->oracle->life);

    p->engines = x % 3 == 2 && !p->one_engine ? 2 : 1;
    p->partitions = x % 3 == 0 ? 1 : 2;
}

static void place_manage(struct t_place *p)
{
    char notify_path[T_PATH_BYTES + 16];

    snprintf(notify_path, sizeof(notify_path), "%s/notify", p->dir);
    int r = manager_init(&p->manager, notify_path, p->socket);

    if (r < 0)
        torture_fail("%s: %s", p->dir, strerror(-r));
}

void place_forget(struct t_place *p)
{
    manager_take(&p->manager);
    manager_forget_all(&p->manager);
}

void place_leave(struct t_place *p)
{
    if (p->hot)
        manager_deinit(&p->manager);
}

void place_open(struct t_place *p, const char *dir, uint64_t seed, bool resume)
{
    char path[T_PATH_BYTES + 16];

    snprintf(p->dir, sizeof(p->dir), "%s", dir ? dir : "/var/tmp/spilltorture-XXXXXX");
    if (dir ? mkdir(p->dir, 0755) < 0 && errno != EEXIST : !mkdtemp(p->dir))
        torture_fail("%s: %s", p->dir, strerror(errno));
    place_paths(p);
    snprintf(path, sizeof(path), "%s/state", p->dir);
    p->oracle = file_map(path, sizeof(*p->oracle));
    p->table = file_map(p->table_path, sizeof(*p->table));
    failed_place = p;
    if (p->hot)
        place_manage(p);
    if (resume && p->oracle->magic == ORACLE_MAGIC) {
        place_shape(p);
        return;
    }
    memset(p->oracle, 0, sizeof(*p->oracle));
    memset(p->table, 0, sizeof(*p->table));
    p->oracle->magic = ORACLE_MAGIC;
    p->oracle->seed = seed;
    place_begin_life(p);
}

void place_remove(struct t_place *p)
{
    char path[T_PATH_BYTES + 16];

    place_leave(p);
    for (size_t i = 0; i < ARRAY_LEN(file_names); i++) {
        snprintf(path, sizeof(path), "%s/%s", p->dir, file_names[i]);
        (void)unlink(path);
    }
    (void)rmdir(p->dir);
    failed_place = NULL;
}

void place_give(const struct t_place *p)
{
    char path[T_PATH_BYTES + 16];

    for (size_t i = 0; i < ARRAY_LEN(file_names); i++) {
        snprintf(path, sizeof(path), "%s/%s", p->dir, file_names[i]);
        if (geteuid() == 0 && chown(path, TORTURE_UID, TORTURE_UID) < 0 && errno != ENOENT)
            torture_fail("%s: %s", path, strerror(errno));
    }
    if (geteuid() == 0 && chown(p->dir, TORTURE_UID, TORTURE_UID) < 0)
        torture_fail("%s: %s", p->dir, strerror(errno));
}

bool child_succeeds(pid_t pid)
{
    int status;

    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        torture_fail("fork: %s", strerror(errno));
    return status == 0;
}

/* --- Programs ---------------------------------------------------------------------------------------------------------- */

static void program_path(const char *name, char *ret_path, size_t bytes)
{
    const char *bin = getenv("SPILLWAY_BIN");

    snprintf(ret_path, bytes, "%s/%s", bin ? bin : ".", name);
}

static void output_to(const char *path, int flags)
{
    int fd = open(path, O_WRONLY | O_CREAT | flags, 0600);

    if (fd < 0)
        _exit(126);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    close(fd);
}

void place_format(const struct t_place *p, const char *path, uint64_t size_bytes)
{
    char program[512], capacity[32], partitions[8];
    const char *const argv[] = {program,         "device",       "format",   path,        "--capacity",
                                capacity,        "--partitions", partitions, "--segment", "1 MiB",
                                "--object-size", "64 KiB",       NULL};
    int status;

    snprintf(capacity, sizeof(capacity), "%llu MiB", (unsigned long long)(size_bytes / MIB));
    snprintf(partitions, sizeof(partitions), "%u", p->partitions);
    program_path("spillctl", program, sizeof(program));
    pid_t pid = fork();

    if (pid == 0) {
        output_to(p->log, O_TRUNC);
        execv(program, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
        torture_fail("%s does not format %s: see %s", program, path, p->log);
}

void place_begin_life(struct t_place *p)
{
    for (uint32_t i = 0; i < T_CLIENTS; i++) {
        p->oracle->counts.calls += p->oracle->clients[i].n_ops;
        p->oracle->counts.full += p->oracle->clients[i].n_full;
    }
    memset(p->oracle->clients, 0, sizeof(p->oracle->clients));
    place_shape(p);
    p->is_fresh = true;
    (void)unlink(p->disk);
    place_format(p, p->disk, p->disk_bytes);
    place_configure(p, DRAM_PERCENT);
}

void place_configure(struct t_place *p, uint32_t dram_percent)
{
    FILE *f = fopen(p->config, "w");

    if (!f)
        torture_fail("%s: %s", p->config, strerror(errno));
    fprintf(f, "[daemon]\nsocket = %s\nengines = %u\nlog_level = debug\n", p->socket, p->engines);
    fprintf(f, "[tier.dram]\nsize = %d MiB\n", MEMORY_MIB);
    fprintf(f, "[device disk]\npath = %s\n", p->disk);
    fprintf(f, "[pool default]\ndram = %u %%\nnvme = 60 %%\n", dram_percent);
    fprintf(f, "[pool shared]\ntrusted = no\ndram = 30 %%\nnvme = 40 %%\nsession_bytes = 8 MiB\n");
    if (fclose(f) != 0)
        torture_fail("%s: %s", p->config, strerror(errno));
    p->dram_percent = dram_percent;
}

static void daemon_exec(const struct t_place *p, const char *kill_at)
{
    char program[512];
    const char *const argv[] = {program, "--config", p->config, "--user", NULL};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    output_to(p->log, O_TRUNC);
    program_path("spillwayd", program, sizeof(program));
    setenv("SPILLWAY_KILL_TABLE", p->table_path, 1);
    if (kill_at)
        setenv("SPILLWAY_KILL_AT", kill_at, 1);
    else
        unsetenv("SPILLWAY_KILL_AT");
    if (p->hot)
        manager_pass(&p->manager);
    execv(program, (char *const *)(uintptr_t)argv);
    _exit(127);
}

void place_start_daemon(struct t_place *p, const char *kill_at)
{
    char before[T_PATH_BYTES + 32];

    snprintf(before, sizeof(before), "%s.before", p->log);
    (void)rename(p->log, before); /* the last one's "ready" is not for us */
    if (p->hot)
        manager_take(&p->manager);
    fflush(NULL);
    p->daemon = fork();
    if (p->daemon < 0)
        torture_fail("fork: %s", strerror(errno));
    if (p->daemon == 0)
        daemon_exec(p, kill_at);
    p->oracle->counts.starts++;
}

bool place_daemon_lives(struct t_place *p, int *ret_status)
{
    if (p->hot)
        manager_take(&p->manager);
    if (p->daemon && waitpid(p->daemon, ret_status, WNOHANG) == p->daemon)
        p->daemon = 0;
    return p->daemon != 0;
}

void place_was_killed(const struct t_place *p, int status)
{
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        torture_fail("the daemon ended by itself: status %x, see %s", (unsigned)status, p->log);
}

/* In its log, because whoever connects passes points, and the number of connections is up to the time. */
bool place_wait_ready(struct t_place *p)
{
    int64_t end = now_ms() + READY_MS;
    int status = 0;

    for (;; pause_ms(2)) {
        static char text[1 << 18];

        if (!place_daemon_lives(p, &status)) {
            place_was_killed(p, status);
            return false;
        }
        cleanup_close int fd = open(p->log, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

        text[n > 0 ? n : 0] = '\0';
        if (strstr(text, "ready: "))
            return true;
        if (now_ms() > end)
            torture_fail("the daemon is not ready after %d s: see %s", READY_MS / 1000, p->log);
    }
}

void place_kill_daemon(struct t_place *p)
{
    int status;

    if (p->daemon == 0)
        return;
    (void)kill(p->daemon, SIGKILL);
    (void)waitpid(p->daemon, &status, 0);
    p->daemon = 0;
    place_was_killed(p, status);
}

int place_stop_daemon(struct t_place *p)
{
    int64_t end = now_ms() + READY_MS;
    int status = 0;

    (void)kill(p->daemon, SIGTERM);
    while (place_daemon_lives(p, &status)) {
        if (now_ms() > end)
            torture_fail("the daemon does not stop: see %s", p->log);
        pause_ms(2);
    }
    return status;
}
