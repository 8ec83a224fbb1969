/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The system calls that each kind of thread may make once it is set up, found by running every test with `seccomp = log`.
 * Private to io/sandbox.c.
 *
 *   C  the control thread       E  engines       W  workers       G  the grower, and threads that touch memory for it
 *
 * CALL(name, threads, condition): a call may have several lines, and one of them must hold. The conditions:
 *   ANY                whatever its arguments are
 *   IS(n, value)       argument n is that
 *   HAS(n, bits)       one of these bits is set in argument n
 *   LACKS(n, bits)     none of them is
 *   NOT_HERE           the call fails with ENOSYS, and its caller has another way
 */
#pragma once

#define C (1 << SANDBOX_CONTROL)
#define E (1 << SANDBOX_ENGINE)
#define W (1 << SANDBOX_WORKER)
#define G (1 << SANDBOX_GROWER)
#define ALL (C | E | W | G)

/* No thread gets memory that it could write and then run: what is executable was there before. */
#define SANDBOX_CALLS(CALL)                                                                                            \
    /* memory of our own, malloc's among it */                                                                         \
    CALL(brk, ALL, ANY)                                                                                                \
    CALL(madvise, ALL, ANY)                                                                                            \
    CALL(mmap, ALL, LACKS(2, PROT_EXEC))                                                                               \
    CALL(mprotect, ALL, LACKS(2, PROT_EXEC))                                                                           \
    CALL(mremap, ALL, ANY)                                                                                             \
    CALL(munmap, ALL, ANY)                                                                                             \
    /* sleeping, waking, ending */                                                                                     \
    CALL(clock_nanosleep, ALL, ANY)                                                                                    \
    CALL(exit, ALL, ANY)                                                                                               \
    CALL(exit_group, ALL, ANY)                                                                                         \
    CALL(futex, ALL, ANY)                                                                                              \
    CALL(nanosleep, ALL, ANY)                                                                                          \
    CALL(restart_syscall, ALL, ANY)                                                                                    \
    CALL(rseq, ALL, ANY)                                                                                               \
    CALL(sched_yield, ALL, ANY)                                                                                        \
    CALL(set_robust_list, ALL, ANY)                                                                                    \
    /* clocks, where the machine's own cannot be read without a call */                                                \
    CALL(clock_getres, ALL, ANY)                                                                                       \
    CALL(clock_gettime, ALL, ANY)                                                                                      \
    CALL(getcpu, ALL, ANY)                                                                                             \
    CALL(gettimeofday, ALL, ANY)                                                                                       \
    /* signal handlers (memory_guard.c), and abort() after a failed assertion */                                       \
    CALL(getpid, ALL, ANY)                                                                                             \
    CALL(gettid, ALL, ANY)                                                                                             \
    CALL(kill, ALL, IS(0, OWN_PID)) /* a kill point (include/base/kill_point.h) */                                     \
    CALL(rt_sigaction, ALL, ANY)                                                                                       \
    CALL(rt_sigprocmask, ALL, ANY)                                                                                     \
    CALL(rt_sigreturn, ALL, ANY)                                                                                       \
    CALL(sigaltstack, ALL, ANY)                                                                                        \
    CALL(tgkill, ALL, IS(0, OWN_PID))                                                                                  \
    /* mailboxes, and what abort() says */                                                                             \
    CALL(close, ALL, ANY)                                                                                              \
    CALL(read, ALL, ANY)                                                                                               \
    CALL(write, ALL, ANY)                                                                                              \
    CALL(writev, ALL, ANY)                                                                                             \
    /* rings: the kernel's, the doorbells of clients and helpers; the last words of a device's log */                  \
    CALL(fdatasync, C | E, ANY)                                                                                        \
    CALL(fsync, C | E, ANY)                                                                                            \
    CALL(io_uring_enter, C | E, ANY)                                                                                   \
    CALL(io_uring_register, C | E, ANY)                                                                                \
    CALL(pread64, C | E, ANY)                                                                                          \
    CALL(pwrite64, C | E, ANY)                                                                                         \
    CALL(recvfrom, C | E, ANY)                                                                                         \
    CALL(recvmsg, C | E, ANY)                                                                                          \
    CALL(sendmsg, C | E, ANY)                                                                                          \
    CALL(sendto, C | E, ANY)                                                                                           \
    /* memory that is shared: memfds, on a node, touched by threads, locked; and what the kernel says of it */         \
    CALL(access, C | G, ANY)                                                                                           \
    CALL(capget, C | G, ANY)                                                                                           \
    CALL(clone, C | G, HAS(0, CLONE_THREAD))                                                                           \
    CALL(clone3, C | G, NOT_HERE) /* its flags lie in memory; clone() is what the C library takes then */              \
    CALL(fallocate, C | G, ANY)                                                                                        \
    CALL(faccessat, C | G, ANY)                                                                                        \
    CALL(faccessat2, C | G, ANY)                                                                                       \
    CALL(fchmod, C | G, ANY)                                                                                           \
    CALL(fcntl, C | G, ANY)                                                                                            \
    CALL(fstat, C | G, ANY)                                                                                            \
    CALL(ftruncate, C | G, ANY)                                                                                        \
    CALL(get_mempolicy, C | G, ANY)                                                                                    \
    CALL(getdents64, C | G, ANY)                                                                                       \
    CALL(getrandom, C | G, ANY)                                                                                        \
    CALL(lseek, C | G, ANY)                                                                                            \
    CALL(mbind, C | G, ANY)                                                                                            \
    CALL(memfd_create, C | G, ANY)                                                                                     \
    CALL(mlock, C | G, ANY)                                                                                            \
    CALL(mlock2, C | G, ANY)                                                                                           \
    CALL(move_pages, C | G, IS(0, 0))                                                                                  \
    CALL(munlock, C | G, ANY)                                                                                          \
    CALL(newfstatat, C | G, ANY)                                                                                       \
    CALL(openat, C | G, ANY)                                                                                           \
    CALL(prctl, C | G, IS(0, PR_SET_NAME))                                                                             \
    CALL(prctl, C | G, IS(0, PR_SET_VMA))                                                                              \
    CALL(prlimit64, C | G, IS(0, 0))                                                                                   \
    CALL(readlink, C | G, ANY)                                                                                         \
    CALL(readlinkat, C | G, ANY)                                                                                       \
    CALL(sched_getaffinity, C | G, ANY)                                                                                \
    CALL(set_mempolicy, C | G, ANY)                                                                                    \
    CALL(statx, C | G, ANY)                                                                                            \
    CALL(sysinfo, C | G, ANY)                                                                                          \
    /* clients, helpers, the service manager, and the services that know users and groups: local sockets alone */      \
    CALL(accept4, C, ANY)                                                                                              \
    CALL(connect, C, ANY)                                                                                              \
    CALL(dup, C, ANY)                                                                                                  \
    CALL(dup3, C, ANY)                                                                                                 \
    CALL(epoll_create1, C, ANY)                                                                                        \
    CALL(epoll_ctl, C, ANY)                                                                                            \
    CALL(epoll_pwait, C, ANY)                                                                                          \
    CALL(epoll_wait, C, ANY)                                                                                           \
    CALL(eventfd2, C, ANY)                                                                                             \
    CALL(flock, C, ANY)                                                                                                \
    CALL(getegid, C, ANY)                                                                                              \
    CALL(geteuid, C, ANY)                                                                                              \
    CALL(getgid, C, ANY)                                                                                               \
    CALL(getpeername, C, ANY)                                                                                          \
    CALL(getrusage, C, ANY)                                                                                            \
    CALL(getsockname, C, ANY)                                                                                          \
    CALL(getsockopt, C, ANY)                                                                                           \
    CALL(getuid, C, ANY)                                                                                               \
    CALL(ioctl, C, IS(1, BLKGETSIZE64)) /* a device's size */                                                          \
    CALL(ioctl, C, IS(1, TCGETS))       /* stdio: is this a terminal? */                                               \
    CALL(kill, C, IS(1, SIGKILL))       /* a helper that hangs */                                                      \
    CALL(pidfd_open, C, ANY)                                                                                           \
    CALL(pidfd_send_signal, C, ANY)                                                                                    \
    CALL(poll, C, ANY)                                                                                                 \
    CALL(ppoll, C, ANY)                                                                                                \
    CALL(setsockopt, C, ANY)                                                                                           \
    CALL(shutdown, C, ANY)                                                                                             \
    CALL(signalfd4, C, ANY)                                                                                            \
    CALL(socket, C, IS(0, AF_UNIX))                                                                                    \
    CALL(socketpair, C, IS(0, AF_UNIX))                                                                                \
    CALL(statfs, C, ANY)                                                                                               \
    CALL(fstatfs, C, ANY)                                                                                              \
    CALL(uname, C, ANY)                                                                                                \
    CALL(unlink, C, ANY)                                                                                               \
    CALL(unlinkat, C, ANY)                                                                                             \
    CALL(wait4, C, ANY)                                                                                                \
    CALL(waitid, C, ANY)

/* What sanitizers do beside it, in a build that has them: they look at the process, and for leaks at its end, from a
 * process of their own that stops this one. */
#define SANDBOX_SANITIZERS_CALLS(CALL)                                                                                 \
    CALL(open, ALL, ANY)                                                                                               \
    CALL(getdents, ALL, ANY)                                                                                           \
    CALL(stat, ALL, ANY)                                                                                               \
    CALL(lstat, ALL, ANY)                                                                                              \
    CALL(fstat, ALL, ANY)                                                                                              \
    CALL(dup2, ALL, ANY)                                                                                               \
    CALL(pipe, ALL, ANY)                                                                                               \
    CALL(clone, ALL, ANY)                                                                                              \
    CALL(getdents64, ALL, ANY)                                                                                         \
    CALL(getppid, ALL, ANY)                                                                                            \
    CALL(lseek, ALL, ANY)                                                                                              \
    CALL(newfstatat, ALL, ANY)                                                                                         \
    CALL(openat, ALL, ANY)                                                                                             \
    CALL(pipe2, ALL, ANY)                                                                                              \
    CALL(prctl, ALL, ANY)                                                                                              \
    CALL(prlimit64, ALL, ANY)                                                                                          \
    CALL(process_vm_readv, ALL, ANY)                                                                                   \
    CALL(ptrace, ALL, ANY)                                                                                             \
    CALL(readlink, ALL, ANY)                                                                                           \
    CALL(sched_getaffinity, ALL, ANY)                                                                                  \
    CALL(set_tid_address, ALL, ANY)                                                                                    \
    CALL(tkill, ALL, ANY)                                                                                              \
    CALL(tgkill, ALL, ANY)                                                                                             \
    CALL(wait4, ALL, ANY)

/*
 * What spillway-gpu may not do. Most of it the kernel would refuse to a process without capabilities anyway; a driver has
 * no use for the rest: other processes' memory, new namespaces, the kernel's own rings and programs, keys.
 */
/* clang-format off */
#define SANDBOX_GPU_REFUSED(CALL)                                                                                      \
    CALL(acct) CALL(add_key) CALL(adjtimex) CALL(bpf) CALL(chroot) CALL(clock_adjtime) CALL(clock_settime)             \
    CALL(delete_module) CALL(fanotify_init) CALL(finit_module) CALL(fsconfig) CALL(fsmount) CALL(fsopen) CALL(fspick)  \
    CALL(init_module) CALL(io_uring_enter) CALL(io_uring_register) CALL(io_uring_setup) CALL(kcmp)                     \
    CALL(kexec_file_load) CALL(kexec_load) CALL(keyctl) CALL(lookup_dcookie) CALL(mount) CALL(mount_setattr)           \
    CALL(move_mount) CALL(name_to_handle_at) CALL(open_by_handle_at) CALL(open_tree) CALL(perf_event_open)             \
    CALL(personality) CALL(pidfd_getfd) CALL(pivot_root) CALL(process_madvise) CALL(process_vm_readv)                  \
    CALL(process_vm_writev) CALL(ptrace) CALL(quotactl) CALL(reboot) CALL(request_key) CALL(setdomainname)             \
    CALL(sethostname) CALL(setns) CALL(settimeofday) CALL(swapoff) CALL(swapon) CALL(syslog) CALL(umount2)             \
    CALL(unshare) CALL(userfaultfd) CALL(vhangup)

/* The rest, for their names. */
#define SANDBOX_OTHERS(CALL)                                                                                           \
    CALL(accept) CALL(alarm) CALL(bind) CALL(capset) CALL(chdir) CALL(chmod) CALL(chown) CALL(close_range)             \
    CALL(copy_file_range) CALL(creat) CALL(dup2) CALL(epoll_create) CALL(epoll_pwait2) CALL(eventfd) CALL(execve)      \
    CALL(execveat) CALL(fadvise64) CALL(fanotify_mark) CALL(fchdir) CALL(fchmodat) CALL(fchown) CALL(fchownat)         \
    CALL(fgetxattr) CALL(flistxattr) CALL(fork) CALL(fremovexattr) CALL(fsetxattr) CALL(futex_waitv) CALL(futimesat)   \
    CALL(get_robust_list) CALL(getcwd) CALL(getdents) CALL(getgroups) CALL(getitimer) CALL(getpgid) CALL(getpgrp)      \
    CALL(getppid) CALL(getpriority) CALL(getresgid) CALL(getresuid) CALL(getrlimit) CALL(getsid) CALL(getxattr)        \
    CALL(inotify_add_watch) CALL(inotify_init) CALL(inotify_init1) CALL(inotify_rm_watch) CALL(io_cancel)              \
    CALL(io_destroy) CALL(io_getevents) CALL(io_pgetevents) CALL(io_setup) CALL(io_submit) CALL(ioprio_get)            \
    CALL(ioprio_set) CALL(landlock_add_rule) CALL(landlock_create_ruleset) CALL(landlock_restrict_self) CALL(lchown)   \
    CALL(lgetxattr) CALL(link) CALL(linkat) CALL(listen) CALL(listxattr) CALL(llistxattr) CALL(lremovexattr)           \
    CALL(lsetxattr) CALL(lstat) CALL(membarrier) CALL(memfd_secret) CALL(migrate_pages) CALL(mincore) CALL(mkdir)      \
    CALL(mkdirat) CALL(mknod) CALL(mknodat) CALL(mlockall) CALL(mq_getsetattr) CALL(mq_notify) CALL(mq_open)           \
    CALL(mq_timedreceive) CALL(mq_timedsend) CALL(mq_unlink) CALL(msgctl) CALL(msgget) CALL(msgrcv) CALL(msgsnd)       \
    CALL(msync) CALL(munlockall) CALL(open) CALL(openat2) CALL(pause) CALL(pipe) CALL(pipe2) CALL(pkey_alloc)          \
    CALL(pkey_free) CALL(pkey_mprotect) CALL(preadv) CALL(preadv2) CALL(process_mrelease) CALL(pselect6)               \
    CALL(pwritev) CALL(pwritev2) CALL(quotactl_fd) CALL(readahead) CALL(readv) CALL(recvmmsg) CALL(remap_file_pages)   \
    CALL(removexattr) CALL(rename) CALL(renameat) CALL(renameat2) CALL(rmdir) CALL(rt_sigpending)                      \
    CALL(rt_sigqueueinfo) CALL(rt_sigsuspend) CALL(rt_sigtimedwait) CALL(rt_tgsigqueueinfo)                            \
    CALL(sched_get_priority_max) CALL(sched_get_priority_min) CALL(sched_getattr) CALL(sched_getparam)                 \
    CALL(sched_getscheduler) CALL(sched_rr_get_interval) CALL(sched_setaffinity) CALL(sched_setattr)                   \
    CALL(sched_setparam) CALL(sched_setscheduler) CALL(seccomp) CALL(select) CALL(semctl) CALL(semget) CALL(semop)     \
    CALL(semtimedop) CALL(sendfile) CALL(sendmmsg) CALL(set_mempolicy_home_node) CALL(set_tid_address) CALL(setfsgid)  \
    CALL(setfsuid) CALL(setgid) CALL(setgroups) CALL(setitimer) CALL(setpgid) CALL(setpriority) CALL(setregid)         \
    CALL(setresgid) CALL(setresuid) CALL(setreuid) CALL(setrlimit) CALL(setsid) CALL(setuid) CALL(setxattr)            \
    CALL(shmat) CALL(shmctl) CALL(shmdt) CALL(shmget) CALL(signalfd) CALL(splice) CALL(stat) CALL(symlink)             \
    CALL(symlinkat) CALL(sync) CALL(sync_file_range) CALL(syncfs) CALL(tee) CALL(time) CALL(timer_create)              \
    CALL(timer_delete) CALL(timer_getoverrun) CALL(timer_gettime) CALL(timer_settime) CALL(timerfd_create)             \
    CALL(timerfd_gettime) CALL(timerfd_settime) CALL(times) CALL(tkill) CALL(truncate) CALL(umask) CALL(ustat)         \
    CALL(utime) CALL(utimensat) CALL(utimes) CALL(vfork) CALL(vmsplice)
/* clang-format on */
