/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns a child, its folder and one connection. Speaks just SET and GET of RESP. One thread.
 */
#include "client/bench/redis.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define READY_SECONDS 10
#define READY_POLL_NS 20000000L

struct redis {
    char folder[64];
    struct sockaddr_un address;
    pid_t pid;
    int fd;
};

static void child_run(const struct redis *redis)
{
    int null = open("/dev/null", O_RDWR);

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int fd = 0; fd <= 2; fd++)
        (void)dup2(null, fd);
    execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", redis->address.sun_path, "--save", "",
           "--appendonly", "no", "--dir", redis->folder, NULL);
    _exit(127);
}

static int connect_when_ready(struct redis *redis)
{
    uint64_t start_ns = now_ns();
    int status;

    redis->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (redis->fd < 0)
        return -errno;
    while (connect(redis->fd, (const struct sockaddr *)&redis->address, sizeof(redis->address)) < 0) {
        if (waitpid(redis->pid, &status, WNOHANG) == redis->pid) {
            redis->pid = 0;
            return WIFEXITED(status) && WEXITSTATUS(status) == 127 ? -ENOENT : -ECHILD;
        }
        if (seconds_since(start_ns) > READY_SECONDS)
            return -ETIMEDOUT;
        nanosleep(&(struct timespec){.tv_nsec = READY_POLL_NS}, NULL);
    }
    return 0;
}

int redis_new(struct redis **ret_redis)
{
    struct redis *redis = calloc(1, sizeof(*redis));

    if (!redis)
        return -ENOMEM;
    redis->fd = -1;
    snprintf(redis->folder, sizeof(redis->folder), "/tmp/spillbench-redis-XXXXXX");
    if (!mkdtemp(redis->folder)) {
        int r = -errno;
        free(redis);
        return r;
    }
    redis->address.sun_family = AF_UNIX;
    snprintf(redis->address.sun_path, sizeof(redis->address.sun_path), "%s/socket", redis->folder);
    redis->pid = fork();
    if (redis->pid == 0)
        child_run(redis);
    int r = redis->pid < 0 ? -errno : connect_when_ready(redis);
    if (r < 0) {
        redis_free(redis);
        return r;
    }
    *ret_redis = redis;
    return 0;
}

void redis_free(struct redis *redis)
{
    if (!redis)
        return;
    if (redis->pid > 0) {
        kill(redis->pid, SIGKILL);
        (void)waitpid(redis->pid, NULL, 0);
    }
    close_p(&redis->fd);
    (void)unlink(redis->address.sun_path);
    (void)rmdir(redis->folder);
    free(redis);
}

static int send_all(int fd, const void *from, size_t size_bytes)
{
    for (const char *at = from; size_bytes > 0;) {
        ssize_t n = send(fd, at, size_bytes, MSG_NOSIGNAL);
        if (n <= 0)
            return -EPIPE;
        at += n, size_bytes -= (size_t)n;
    }
    return 0;
}

static int recv_all(int fd, void *to, size_t size_bytes)
{
    for (char *at = to; size_bytes > 0;) {
        ssize_t n = recv(fd, at, size_bytes, 0);
        if (n <= 0)
            return -EPIPE;
        at += n, size_bytes -= (size_t)n;
    }
    return 0;
}

int redis_set(struct redis *redis, const char *key, const void *bytes, uint64_t size_bytes)
{
    char head[160], reply[5] = "";

    int n = snprintf(head, sizeof(head), "*3\r\n$3\r\nSET\r\n$%zu\r\n%s\r\n$%llu\r\n", strlen(key), key,
                     (unsigned long long)size_bytes);
    int r = send_all(redis->fd, head, (size_t)n);
    if (r == 0)
        r = send_all(redis->fd, bytes, size_bytes);
    if (r == 0)
        r = send_all(redis->fd, "\r\n", 2);
    if (r == 0)
        r = recv_all(redis->fd, reply, sizeof(reply));
    return r == 0 && memcmp(reply, "+OK\r\n", 5) != 0 ? -EBADMSG : r;
}

int redis_get(struct redis *redis, const char *key, void *ret_bytes, uint64_t size_bytes)
{
    char request[160], head[32] = "", want[32], end[2];

    int n = snprintf(request, sizeof(request), "*2\r\n$3\r\nGET\r\n$%zu\r\n%s\r\n", strlen(key), key);
    int n_head = snprintf(want, sizeof(want), "$%llu\r\n", (unsigned long long)size_bytes);
    int r = send_all(redis->fd, request, (size_t)n);
    if (r == 0)
        r = recv_all(redis->fd, head, (size_t)n_head);
    if (r == 0 && memcmp(head, want, (size_t)n_head) != 0)
        return -EBADMSG;
    if (r == 0)
        r = recv_all(redis->fd, ret_bytes, size_bytes);
    return r < 0 ? r : recv_all(redis->fd, end, sizeof(end));
}
