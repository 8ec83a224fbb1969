/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls that no function of libc makes: liburing has its own instructions for them. A seccomp filter answers with a
 * signal where the instruction lies in liburing's text; the handler, in the thread that called, makes the call from here, or
 * lets it fail. No second process, no privilege, and the stack is there to tell who called.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "tests/fail/failcalls.h"

/* The instruction's place in the filter's data is 64 bits, compared by halves: the upper ones have to be one value. */
#define CODE_SECCOMP 1 /* SYS_SECCOMP of <asm/siginfo.h>, a name that libc uses otherwise */
#define IP_LOW (offsetof(struct seccomp_data, instruction_pointer))
#define IP_HIGH (IP_LOW + 4)

static long kernel(long nr, const long *args)
{
    // cppcheck-suppress constStatement; it knows no registers
    register long r10 __asm__("r10") = args[3];
    // cppcheck-suppress constStatement; it knows no registers
    register long r8 __asm__("r8") = args[4];
    // cppcheck-suppress constStatement; it knows no registers
    register long r9 __asm__("r9") = args[5];
    long ret = nr;

    __asm__ volatile("syscall"
                     : "+a"(ret)
                     : "D"(args[0]), "S"(args[1]), "d"(args[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}

static unsigned call_of(long nr)
{
    switch (nr) {
    case SYS_io_uring_setup:
        return FAIL_RAW_SETUP;
    case SYS_io_uring_enter:
        return FAIL_RAW_ENTER;
    case SYS_io_uring_register:
        return FAIL_RAW_REGISTER;
    case SYS_mmap:
        return FAIL_RAW_MMAP;
    default:
        return FAIL_RAW_MUNMAP;
    }
}

static void note(long nr, const long *args, long ret)
{
    if (nr == SYS_io_uring_setup && ret >= 0)
        completion_ring_made((int)ret, (const struct io_uring_params *)args[1]);
    if (nr == SYS_mmap && ret > 0)
        completion_ring_mapped((int)args[4], (uint64_t)args[5], (void *)ret); // NOLINT(performance-no-int-to-ptr)
    if (nr == SYS_io_uring_register && args[1] == IORING_REGISTER_RING_FDS && ret == 1) {
        const struct io_uring_rsrc_update *update = (const struct io_uring_rsrc_update *)args[2];

        completion_ring_registered((int)update->data, update->offset);
    }
}

static long carry_out(long nr, const long *args)
{
    bool is_registered = (args[3] & IORING_ENTER_REGISTERED_RING) != 0;

    if (nr == SYS_io_uring_enter)
        completion_entering((int)args[0], is_registered);
    long ret = kernel(nr, args);

    if (nr == SYS_io_uring_enter)
        completion_entered((int)args[0], is_registered);
    note(nr, args, ret);
    return ret;
}

static void on_trap(int number, siginfo_t *info, void *context)
{
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    long args[6] = {regs[REG_RDI], regs[REG_RSI], regs[REG_RDX], regs[REG_R10], regs[REG_R8], regs[REG_R9]};
    int saved = errno, error;

    (void)number;
    if (info->si_code != CODE_SECCOMP)
        abort();
    if (fail_now(call_of(info->si_syscall), (void *)regs[REG_RIP], &error)) // NOLINT(performance-no-int-to-ptr)
        regs[REG_RAX] = -error;
    else
        regs[REG_RAX] = carry_out(info->si_syscall, args);
    errno = saved;
}

void trap_install(uintptr_t text_low, uintptr_t text_high)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)IP_HIGH),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(text_low >> 32), 0, 10),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)IP_LOW),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, (uint32_t)text_low, 0, 8),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, (uint32_t)text_high, 7, 0),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_enter, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_register, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_munmap, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_RESTART};

    if (text_low >> 32 != text_high >> 32) /* one library in a thousand millions: not counted then */
        return;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGSYS, &action, NULL) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0)
        abort();
}
