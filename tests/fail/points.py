# SPDX-License-Identifier: Apache-2.0
"""Points: which call of which site fails, how, and in which phase of a life."""
import collections
import re

import state as st
from rig import errno_name, errno_numbers
from sites import RING
from state import call_of, module_of

Phase = collections.namedtuple("Phase", "program runs")
PHASES = {
    "start": Phase("spillwayd", "start"),
    "serve": Phase("spillwayd", "serve"),
    "stop": Phase("spillwayd", "stop"),
    "first": Phase("spillwayd", "first"),
    "helper start": Phase("spillway-gpu", "first"),
    "helper": Phase("spillway-gpu", "serve"),
    "library": Phase("fail_workload", "library"),
    "upgrade": Phase("spillwayd", "upgrade"),
    "ride": Phase("fail_workload", "upgrade"),
}

# What a call fails with. The first also from then on, unless it is one that passes.
ERRORS = {
    "open": "EMFILE EIO EACCES", "openat": "EMFILE", "fopen": "EMFILE", "opendir": "EMFILE", "open_memstream": "ENOMEM",
    "close": "EIO EINTR", "access": "EACCES", "stat": "EACCES", "lstat": "EACCES", "fstat": "EIO", "fstatfs": "EIO",
    "statx": "EIO ENOMEM",
    "readlink": "EACCES", "mkdir": "ENOSPC", "unlink": "EIO", "rename": "EIO", "chmod": "EPERM", "fchmod": "EPERM",
    "ftruncate": "ENOSPC ENOMEM", "fallocate": "ENOSPC EOPNOTSUPP", "posix_fallocate": "ENOSPC", "lseek": "EIO",
    "read": "EIO EINTR", "pread": "EIO EINTR", "write": "EIO EAGAIN", "pwrite": "EIO ENOSPC", "fdatasync": "EIO",
    "fsync": "EIO", "flock": "ENOLCK EINTR", "fcntl": "EINVAL EBUSY", "ioctl": "ENOTTY EIO", "dup2": "EMFILE",
    "dup3": "EMFILE", "close_range": "EINVAL", "pipe2": "EMFILE ENFILE", "memfd_create": "EMFILE ENOMEM",
    "mmap": "ENOMEM EAGAIN",
    "munmap": "ENOMEM", "mremap": "ENOMEM", "mprotect": "ENOMEM", "madvise": "ENOMEM EAGAIN EINVAL",
    "mlock": "ENOMEM EPERM", "mbind": "ENOMEM EIO", "move_pages": "ENOMEM EACCES", "socket": "EMFILE ENOBUFS",
    "socketpair": "EMFILE ENOBUFS", "bind": "EACCES", "listen": "EADDRINUSE", "connect": "ECONNREFUSED EAGAIN",
    "accept4": "EMFILE ECONNABORTED ENOMEM", "getsockopt": "ENOBUFS", "setsockopt": "ENOBUFS",
    "send": "EPIPE EAGAIN ENOBUFS", "sendmsg": "EPIPE EAGAIN ENOBUFS ETOOMANYREFS", "recv": "ECONNRESET EINTR",
    "recvmsg": "ECONNRESET EINTR ENOMEM", "shutdown": "ENOTCONN", "poll": "ENOMEM EINTR", "ppoll": "ENOMEM EINTR",
    "__ppoll_chk": "ENOMEM EINTR", "epoll_create1": "EMFILE ENOMEM", "epoll_ctl": "ENOSPC ENOMEM",
    "epoll_wait": "EBADF EINTR", "eventfd": "EMFILE ENOMEM", "eventfd_read": "EAGAIN", "eventfd_write": "EAGAIN",
    "signalfd": "EMFILE", "timerfd_create": "EMFILE", "timerfd_settime": "EINVAL", "pidfd_open": "EMFILE ESRCH",
    "posix_spawn": "EAGAIN ENOENT", "posix_spawn_file_actions_init": "ENOMEM",
    "posix_spawn_file_actions_adddup2": "ENOMEM", "posix_spawnattr_init": "ENOMEM", "posix_spawnattr_setflags": "EINVAL",
    "posix_spawnattr_setsigmask": "EINVAL", "execl": "ENOENT", "execve": "ENOENT ENOMEM", "fork": "ENOMEM EAGAIN",
    "kill": "EPERM", "waitid": "ECHILD EINTR", "waitpid": "ECHILD EINTR", "prctl": "EINVAL EPERM", "getrlimit": "EPERM",
    "setrlimit": "EPERM", "initgroups": "ENOMEM", "setresgid": "EPERM", "setresuid": "EPERM EAGAIN",
    "pthread_create": "EAGAIN", "pthread_key_create": "EAGAIN", "pthread_setname_np": "ERANGE", "getrandom": "ENOSYS",
    "nanosleep": "EINTR", "usleep": "EINTR", "setenv": "ENOMEM", "putenv": "ENOMEM", "getgrnam_r": "EIO ENOMEM",
    "getpwnam_r": "EIO ENOMEM",
    "dlopen": "ENOMEM", "sysconf": "EINVAL", "sched_getaffinity": "EINVAL", "getcpu": "EINVAL", "fgets": "EIO",
    "fgetc": "EIO", "__isoc99_fscanf": "EIO", "syscall": "ENOSYS ENOMEM EINTR", "sigaction": "EINVAL",
    "io_uring_setup": "ENOMEM EPERM", "io_uring_enter": "ENOMEM EAGAIN EINTR EBUSY", "io_uring_register": "ENOMEM EINVAL",
    "liburing mmap": "ENOMEM", "liburing munmap": "ENOMEM", "completion": "EIO EAGAIN EINTR ENOMEM ECANCELED SHORT",
}
ALLOCATION = "ENOMEM"
# Where one of these says something else than that the call failed: that the client has closed its doorbell, or, to the process
# that starts helpers, that the daemon has ended.
ERRORS_AT = ((re.compile(r"^recv daemon/ring\.c:"), "ENOMEM EINTR"),
             (re.compile(r"^send client/lib/ring\.c:"), "ENOBUFS EPIPE"), # EAGAIN: it is full of rings that will be heard
             (re.compile(r"^recvmsg daemon/gpu_launcher\.c:"), "ENOMEM EINTR"),
             (re.compile(r"^sendmsg daemon/gpu_launcher\.c:.* answer_send"), "EAGAIN ENOBUFS ETOOMANYREFS"))
PASSING = ("EINTR", "EAGAIN", "EBUSY", "ECONNABORTED")  # never from then on: the kernel does not say so for ever

# From then on: where the call takes something that can be used up, all calls of its kind fail, wherever they are; where it
# does something to a thing that is there, only that site's.
OF_ITS_SITE = re.compile(r"^(?:p?read|p?write|send|sendmsg|recv|recvmsg|close|poll|p?poll|__ppoll_chk|epoll_wait|ioctl|fcntl|syscall"
                         r"|fdatasync|fsync|fgets|fgetc|__isoc99_fscanf|nanosleep|usleep|kill|waitid|waitpid|prctl|sysconf"
                         r"|getsockopt|setsockopt|shutdown|f?stat|fstatfs|lstat|statx|completion|io_uring_\w+|eventfd_\w+)$")

# What the kernel answers for ever to nobody who can go on: the daemon ends, with a message.
ENDS_DAEMON = ("epoll_wait", "io_uring_enter")
# After these a device may not be trusted any more, which lasts until the daemon is started again.
IS_IO = ("completion", "pread", "pwrite", "fdatasync", "io_uring_enter")
# Before there is anything to say it to, or with.
EARLY = ("log_setup", "main", "argp_parse")


class Point:
    def __init__(self, phase, key, name, nth, mode, error):
        self.phase, self.key, self.name, self.nth, self.mode, self.error = phase, key, name, nth, mode, error
        self.outcome = None

    def __str__(self):
        how = "once" if self.mode == st.ONCE else "for good"
        error = "SHORT" if self.error == st.SHORT else errno_name(self.error)
        return f"{self.phase}/{self.name}/{self.nth}/{error} {how}"

    def is_whole(self):
        return not OF_ITS_SITE.match(self.call())

    def call(self):
        return self.name.split(" ")[0]

    def may_end_daemon(self):
        return self.call() in ENDS_DAEMON and errno_name(self.error) not in PASSING

    def is_end_by_libc(self):
        return bool(ENDED_BY_LIBC.search(str(self)))

    def is_early(self):
        return self.name.split(" ")[-1] in EARLY


# The C library's own end: its name services have assertions, and worse, where they get no memory. Nothing has begun yet then.
ENDED_BY_LIBC = re.compile(r"^(?:start|warm)/(?:malloc|calloc|realloc) daemon/main\.c:\d+ confine/")

# What was found to be wrong once: the first points of a sample.
FOUND_ONCE = (
    r"^start/close_range daemon/gpu_launcher\.c:.* once$",  # a launcher that never ended, nor did the daemon
    r"^library/send client/lib/control\.c:\d+ transmit/12/ENOBUFS once$",  # a request that was not sent, and waited for for ever
    r"^start/getrandom daemon/session_kept\.c:.* for good$",  # asked for again for ever
    r"^library/eventfd_read client/lib/queue\.c:.* once$",  # a descriptor that was readable for ever
    r"^library/pthread_create client/lib/sync\.c:\d+ client_thread_start/3/EAGAIN once$",  # a lane that was never freed
)

# Points that no kernel makes, and that nobody could do anything about.
IMPOSSIBLE = (
    (re.compile(r"/write io/engine_queue\.c:.* for good$"),
     "an eventfd's counter is full, or the call is interrupted; neither lasts"),
    (re.compile(r"^\w+/read daemon/control\.c:\d+ control_signal .* for good$"),
     "a signalfd can be read where epoll says so; without that a stop is never heard of"),
    (re.compile(r"^library/send client/lib/ring\.c:\d+ ring_wake/.* for good$"),
     "each call ends at its deadline, one after the other, for longer than a client is waited for"),
    (re.compile(r"^library/shutdown client/lib/session\.c:"),
     "a connected socket of this family can be shut down; without that nobody wakes who waits for it"),
)


def is_impossible(point):
    return any(pattern.search(str(point)) for pattern, _ in IMPOSSIBLE)


def was_found_once(point):
    return any(re.search(pattern, str(point)) for pattern in FOUND_ONCE)


def is_expected_degradation(point):
    return point.call() in IS_IO


def errors_of(call, name):
    for pattern, errors in ERRORS_AT:
        if pattern.match(name):
            return errors.split()
    return ERRORS.get(call, ALLOCATION).split()


def nths(n, at_most):
    """Of n calls: all, or the first ones, and some up to the last, further and further apart."""
    if n <= at_most:
        return list(range(1, n + 1))
    first = at_most - at_most // 4
    chosen = list(range(1, first + 1))
    step = (n - first) / max(at_most - first, 1)
    return chosen + sorted({round(first + step * (i + 1)) for i in range(at_most - first)} - set(chosen))


def points_of(phase, counts, sites, calls_a_site):
    """Of a phase, in a fixed order."""
    numbers, found = errno_numbers(), []
    for key, n in sorted(counts.items()):
        call = sites.names[call_of(key)]
        for nth in nths(n, calls_a_site):
            for i, error in enumerate(errors_of(call, sites.name(key))):
                number = st.SHORT if error == "SHORT" else numbers[error]
                found.append(Point(phase, key, sites.name(key), nth, st.ONCE, number))
                if error not in PASSING and (i == 0 or module_of(key) == RING):
                    found.append(Point(phase, key, sites.name(key), nth, st.FOR_GOOD, number))
    return [point for point in found if not is_impossible(point)]
