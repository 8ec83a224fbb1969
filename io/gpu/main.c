/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spillway-gpu: started by spillwayd, one for each GPU that it serves; nobody else has a use for it. It ends when the
 * socket does, and by nothing else that can be refused: signals that are meant for the daemon reach it too, as it is in
 * the same process group and unit, and then the daemon has still to end its lanes in order.
 *
 * It has no capabilities, even if the daemon is root's, and gets none back: by no program that it runs. So the driver cannot
 * make device files by nvidia-modprobe from here; they are there, as the client that named the GPU has used them, or the
 * machine has made them (docs/admin.md). It leaves no core: the pools' bytes are mapped here.
 */
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io/gpu/helper.h"
#include "io/sandbox.h"

#define EXIT_MISUSE 2

static bool is_our_socket(int fd)
{
    int type = 0;
    socklen_t size = sizeof(type);

    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET;
}

/* Standard output and input are nothing to us, but the driver's libraries believe that they are there. */
static void close_others(void)
{
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (null_fd >= 0) {
        (void)dup2(null_fd, STDIN_FILENO);
        (void)dup2(null_fd, STDOUT_FILENO);
        if (fcntl(STDERR_FILENO, F_GETFD) < 0)
            (void)dup2(null_fd, STDERR_FILENO);
    }
    (void)close_range(GPU_WIRE_FD + 1, ~0U, 0);
    (void)fcntl(GPU_WIRE_FD, F_SETFD, FD_CLOEXEC);
}

/*
 * The bounding set first, as that takes a capability. The others only if there are some: the daemon's unit forbids capset(),
 * and there the daemon has seen to it that none come along. If it fails we are as before: less safe, but of use.
 */
static void drop_privileges(void)
{
    static const struct rlimit no_core = {0, 0};
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct have[_LINUX_CAPABILITY_U32S_3] = {0}, none[_LINUX_CAPABILITY_U32S_3] = {0};

    for (unsigned long cap = 0; prctl(PR_CAPBSET_DROP, cap, 0L, 0L, 0L) == 0; cap++)
        ;
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0L, 0L, 0L);
    if (syscall(SYS_capget, &header, have) == 0 && memcmp(have, none, sizeof(none)) != 0)
        (void)syscall(SYS_capset, &header, none);
    (void)prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L);
    (void)setrlimit(RLIMIT_CORE, &no_core);
}

static void say_call(const char *who, const char *call, bool is_made)
{
    (void)!write(STDERR_FILENO, who, strlen(who));
    (void)!write(STDERR_FILENO, is_made ? " made the system call " : " was refused the system call ",
                 is_made ? 22 : 29);
    (void)!write(STDERR_FILENO, call, strlen(call));
    (void)!write(STDERR_FILENO, ": see gpu_seccomp in [daemon]\n", 30);
}

/* The daemon's config says it, by its launcher. Threads of the driver are made after this. */
static void enter_sandbox(void)
{
    const char *word = getenv("SPILLWAY_GPU_SECCOMP");
    enum sandbox_mode mode = !word ? SANDBOX_OFF : strcmp(word, "log") == 0 ? SANDBOX_LOG : SANDBOX_ON;

    if (sandbox_init(mode, say_call) == 0)
        (void)sandbox_enter(SANDBOX_GPU);
}

int main(void)
{
    static const int ignored[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE};

    if (!is_our_socket(GPU_WIRE_FD)) {
        fputs("spillway-gpu is started by spillwayd\n", stderr);
        return EXIT_MISUSE;
    }
    close_others();
    drop_privileges();
    (void)prctl(PR_SET_NAME, "spillway-gpu");
    for (size_t i = 0; i < ARRAY_LEN(ignored); i++)
        (void)signal(ignored[i], SIG_IGN);
    enter_sandbox();
    helper_show_device(GPU_WIRE_FD);
    return helper_run(GPU_WIRE_FD) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
