/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A child is in a process group of its own when it has a log (Ctrl-C is for us: we stop it in order), and gets SIGTERM if
 * we are killed. Any thread.
 */
#include "client/bench/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

pid_t child_spawn(const char *const argv[], int fd)
{
    pid_t parent = getpid(), pid = fork();

    if (pid < 0)
        return -errno;
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(1);
    int null = open("/dev/null", O_RDWR);
    if (null < 0)
        _exit(1);
    dup2(null, STDIN_FILENO);
    dup2(fd >= 0 ? fd : null, STDOUT_FILENO);
    if (fd >= 0) {
        setpgid(0, 0);
        dup2(fd, STDERR_FILENO);
    }
    execvp(argv[0], (char *const *)(uintptr_t)argv);
    fprintf(stderr, "spillbench: cannot run %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

bool child_ended(pid_t pid, int *ret_status)
{
    pid_t r = waitpid(pid, ret_status, WNOHANG);

    if (r < 0)
        *ret_status = 0;
    return r == pid || (r < 0 && errno == ECHILD);
}

const char *child_status_print(int status, char ret_text[static CHILD_STATUS_BYTES])
{
    if (WIFSIGNALED(status))
        snprintf(ret_text, CHILD_STATUS_BYTES, "was killed by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(ret_text, CHILD_STATUS_BYTES, "ended with status %d", WEXITSTATUS(status));
    return ret_text;
}
