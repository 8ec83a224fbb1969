/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the process's SIGSYS handler and what is known of calls that were not in a list. Any thread.
 *
 * A filter is a straight line of comparisons, made from the table when a thread enters; the kernel remembers which calls
 * are allowed whatever their arguments, and does not run it for these (Linux 5.11). A call that is not in the list raises
 * SIGSYS, with the kind of thread as the signal's errno: the handler tells of it and puts the result where the call would
 * have left it. To make the call after all (SANDBOX_LOG) takes an instruction that the filter knows by its address; for
 * the few calls that cannot be made from within a handler the kernel does the telling, in its own log.
 *
 * Only x86-64: an address, a register's name and the calls that other processors do not have are all that stands in the way.
 */
#include "io/sandbox.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "include/base/atomic.h"
#include "io/sandbox_calls.h"

/* sys/mman.h is for who maps. */
#define PROT_EXEC 0x4

#ifndef SYS_SECCOMP
#define SYS_SECCOMP 1 /* si_code; the C library's header does not have it */
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#endif

static struct {
    enum sandbox_mode mode;
    sandbox_say say;
    uint32_t threads; /* atomic, as what follows */
    int error;
    uint64_t refused;
    const char *call, *where;
} sandbox;

static const char *const thread_names[SANDBOX_THREADS] = {
    [SANDBOX_CONTROL] = "the control thread", [SANDBOX_ENGINE] = "an engine", [SANDBOX_WORKER] = "a worker",
    [SANDBOX_GROWER] = "the grower",          [SANDBOX_GPU] = "spillway-gpu",
};

void sandbox_stat(struct sandbox_stat *ret_stat)
{
    *ret_stat = (struct sandbox_stat){
        .mode = sandbox.mode,
        .threads = load_relaxed(&sandbox.threads),
        .error = load_relaxed(&sandbox.error),
        .refused = load_relaxed(&sandbox.refused),
        .call = load_relaxed(&sandbox.call),
        .where = load_relaxed(&sandbox.where),
    };
}

#ifdef __x86_64__

/* --- The table --------------------------------------------------------------------------------------------------- */

struct condition {
    enum { CONDITION_NONE, CONDITION_IS, CONDITION_HAS, CONDITION_LACKS, CONDITION_NOT_HERE } kind;
    uint32_t arg, value;
};

struct call {
    uint32_t number, threads;
    struct condition condition;
    const char *name;
};

#define ANY                                                                                                            \
    {                                                                                                                  \
        CONDITION_NONE, 0, 0                                                                                           \
    }
#define IS(arg_, value_)                                                                                               \
    {                                                                                                                  \
        CONDITION_IS, (arg_), (value_)                                                                                 \
    }
#define HAS(arg_, bits_)                                                                                               \
    {                                                                                                                  \
        CONDITION_HAS, (arg_), (bits_)                                                                                 \
    }
#define LACKS(arg_, bits_)                                                                                             \
    {                                                                                                                  \
        CONDITION_LACKS, (arg_), (bits_)                                                                               \
    }
#define NOT_HERE                                                                                                       \
    {                                                                                                                  \
        CONDITION_NOT_HERE, 0, 0                                                                                       \
    }
#define OWN_PID UINT32_MAX /* stands for it */

#define CALL(name_, threads_, ...) {SYS_##name_, (threads_), __VA_ARGS__, #name_},
static const struct call calls[] = {SANDBOX_CALLS(CALL)};
static const struct call sanitizers_calls[] = {SANDBOX_SANITIZERS_CALLS(CALL)};
#undef CALL
#define CALL(name_) {SYS_##name_, 0, ANY, #name_},
static const struct call gpu_refused[] = {SANDBOX_GPU_REFUSED(CALL)};
static const struct call others[] = {SANDBOX_OTHERS(CALL)};
#undef CALL

static const char *name_in(const struct call *list, size_t n, uint32_t number)
{
    for (size_t i = 0; i < n; i++)
        if (list[i].number == number)
            return list[i].name;
    return NULL;
}

static const char *call_name(uint32_t number)
{
    const char *name = name_in(calls, ARRAY_LEN(calls), number);

    if (!name)
        name = name_in(gpu_refused, ARRAY_LEN(gpu_refused), number);
    if (!name)
        name = name_in(others, ARRAY_LEN(others), number);
    return name ? name : "one without a name here";
}

/* --- The filter -------------------------------------------------------------------------------------------------- */

#define PROGRAM_MAX 1024

struct program {
    struct sock_filter at[PROGRAM_MAX];
    uint16_t n;
};

static void emit(struct program *p, uint16_t code, uint32_t k, uint8_t if_true, uint8_t if_false)
{
    assert(p->n < PROGRAM_MAX);
    p->at[p->n++] = (struct sock_filter){code, if_true, if_false, k};
}

static void emit_load(struct program *p, size_t offset)
{
    emit(p, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, 0, 0);
}

static void emit_return(struct program *p, uint32_t action)
{
    emit(p, BPF_RET | BPF_K, action, 0, 0);
}

/* Arguments are ints, or flags whose upper halves are always zero and mean nothing. */
static void emit_condition(struct program *p, const struct condition *c)
{
    uint32_t value = c->value == OWN_PID ? (uint32_t)getpid() : c->value;
    bool is_mask = c->kind != CONDITION_IS, wanted = c->kind != CONDITION_LACKS;

    emit_load(p, offsetof(struct seccomp_data, args) + c->arg * sizeof(uint64_t));
    emit(p, BPF_JMP | BPF_K | (is_mask ? BPF_JSET : BPF_JEQ), value, wanted ? 0 : 1, wanted ? 1 : 0);
    emit_return(p, SECCOMP_RET_ALLOW);
    emit_load(p, offsetof(struct seccomp_data, nr)); /* for the lines that follow */
}

static void emit_call(struct program *p, const struct call *call, uint32_t action)
{
    bool has_condition = call->condition.kind == CONDITION_IS || call->condition.kind == CONDITION_HAS ||
                         call->condition.kind == CONDITION_LACKS;

    emit(p, BPF_JMP | BPF_JEQ | BPF_K, call->number, 0, has_condition ? 4 : 1);
    if (has_condition)
        emit_condition(p, &call->condition);
    else
        emit_return(p, call->condition.kind == CONDITION_NOT_HERE ? SECCOMP_RET_ERRNO | ENOSYS : action);
}

/* The instruction behind the one that makes calls for the handler: that is where the kernel says that they come from. */
extern const char sandbox_made_here[];

static void emit_made_here(struct program *p)
{
    uint64_t at = (uintptr_t)sandbox_made_here;

    emit_load(p, offsetof(struct seccomp_data, instruction_pointer));
    emit(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)at, 0, 3);
    emit_load(p, offsetof(struct seccomp_data, instruction_pointer) + sizeof(uint32_t));
    emit(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(at >> 32), 0, 1);
    emit_return(p, SECCOMP_RET_ALLOW);
}

static void emit_calls(struct program *p, const struct call *list, size_t n, enum sandbox_thread thread)
{
    for (size_t i = 0; i < n; i++)
        if (list[i].threads & (1U << thread))
            emit_call(p, &list[i], SECCOMP_RET_ALLOW);
}

/* Those that a handler cannot make: another stack, or two returns. */
static void emit_strange(struct program *p)
{
    static const struct call strange[] = {
        {SYS_clone, 0, ANY, "clone"}, {SYS_clone3, 0, ANY, "clone3"}, {SYS_vfork, 0, ANY, "vfork"}};

    for (size_t i = 0; i < ARRAY_LEN(strange); i++)
        emit_call(p, &strange[i], SECCOMP_RET_LOG);
}

static void program_make(struct program *p, enum sandbox_thread thread)
{
    const uint32_t trap = SECCOMP_RET_TRAP | (uint32_t)thread; /* which comes along as the signal's errno */

    p->n = 0;
    emit_load(p, offsetof(struct seccomp_data, arch));
    emit(p, BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    emit_return(p, SECCOMP_RET_KILL_PROCESS); /* another processor's numbers */
    if (sandbox.mode == SANDBOX_LOG)
        emit_made_here(p);
    emit_load(p, offsetof(struct seccomp_data, nr));
    if (thread == SANDBOX_GPU) {
        for (size_t i = 0; i < ARRAY_LEN(gpu_refused); i++)
            emit_call(p, &gpu_refused[i], trap);
        emit_return(p, SECCOMP_RET_ALLOW);
        return;
    }
    emit_calls(p, calls, ARRAY_LEN(calls), thread);
    if (BASE_SANITIZED)
        emit_calls(p, sanitizers_calls, ARRAY_LEN(sanitizers_calls), thread);
    if (sandbox.mode == SANDBOX_LOG)
        emit_strange(p);
    emit_return(p, trap);
}

/* --- A call that is not in the list ------------------------------------------------------------------------------ */

long sandbox_make(const greg_t *registers);

/* The call as its registers have it. Nothing is kept but what the calling convention asks for. */
__asm__(".text\n"
        ".type sandbox_make, @function\n"
        "sandbox_make:\n"
        "    mov %rdi, %r11\n"
        "    push %r11\n"
        "    mov (8 * 13)(%r11), %rax\n"
        "    mov (8 * 8)(%r11), %rdi\n"
        "    mov (8 * 9)(%r11), %rsi\n"
        "    mov (8 * 12)(%r11), %rdx\n"
        "    mov (8 * 2)(%r11), %r10\n"
        "    mov (8 * 0)(%r11), %r8\n"
        "    mov (8 * 1)(%r11), %r9\n"
        "    syscall\n"
        ".globl sandbox_made_here\n"
        ".hidden sandbox_made_here\n"
        "sandbox_made_here:\n"
        "    pop %r11\n"
        "    ret\n"
        ".size sandbox_make, . - sandbox_make\n");
static_assert(REG_R8 == 0 && REG_R9 == 1 && REG_R10 == 2 && REG_RDI == 8 && REG_RSI == 9 && REG_RDX == 12 &&
                  REG_RAX == 13,
              "as above");

/* True: for the first time. */
static bool is_news(uint32_t thread, uint32_t number)
{
    static uint8_t said[SANDBOX_THREADS][512];

    return thread < SANDBOX_THREADS && number < ARRAY_LEN(said[0]) &&
           __atomic_exchange_n(&said[thread][number], 1, __ATOMIC_RELAXED) == 0;
}

static void on_sigsys(int signal, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    uint32_t number = (uint32_t)info->si_syscall, thread = (uint32_t)info->si_errno;
    int saved_errno = errno;

    (void)signal;
    if (info->si_code != SYS_SECCOMP) /* somebody sent it */
        return;
    bool is_made = sandbox.mode == SANDBOX_LOG;

    __atomic_fetch_add(&sandbox.refused, 1, __ATOMIC_RELAXED);
    store_relaxed(&sandbox.call, call_name(number));
    store_relaxed(&sandbox.where, thread_names[thread % SANDBOX_THREADS]);
    if (is_news(thread, number) && sandbox.say)
        sandbox.say(thread_names[thread % SANDBOX_THREADS], call_name(number), is_made);
    registers[REG_RAX] = is_made ? sandbox_make(registers) : -EPERM;
    errno = saved_errno;
}

/* --- Beginning --------------------------------------------------------------------------------------------------- */

/* By prctl() in both places: seccomp() is not among the calls that service managers allow their services. A filter at
 * address 0 is a fault where there are filters. */
static int kernel_has_it(void)
{
    return prctl(PR_SET_SECCOMP, (unsigned long)SECCOMP_MODE_FILTER, NULL, 0UL, 0UL) < 0 && errno == EFAULT ? 0
                                                                                                            : -ENOSYS;
}

/*
 * glibc reads once how the kernel counts memory, when a heap that is not the first thread's gets smaller, and remembers it.
 * A heap has to have 128 KiB at its end for that, and the blocks must not be so large that they are mapped by themselves.
 */
static void *heap_use(void *arg)
{
    void *volatile blocks[4];

    for (size_t i = 0; i < ARRAY_LEN(blocks); i++)
        blocks[i] = malloc((size_t)96 * 1024);
    for (size_t i = ARRAY_LEN(blocks); i-- > 0;)
        free(blocks[i]);
    return arg;
}

static void heap_know(void)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, heap_use, NULL) == 0)
        pthread_join(thread, NULL);
}

int sandbox_init(enum sandbox_mode mode, sandbox_say say)
{
    struct sigaction action = {.sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO | SA_NODEFER};

    if (mode == SANDBOX_OFF)
        return 0;
    if (kernel_has_it() < 0)
        return -ENOSYS;
    heap_know();
    sigemptyset(&action.sa_mask);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1UL, 0UL, 0UL, 0UL) < 0 || sigaction(SIGSYS, &action, NULL) < 0)
        return -errno;
    sandbox.mode = mode;
    sandbox.say = say;
    return 0;
}

int sandbox_enter(enum sandbox_thread thread)
{
    struct program p;
    sigset_t set;

    if (sandbox.mode == SANDBOX_OFF)
        return 0;
    /* A signal that is blocked when the kernel raises it ends the process. */
    sigemptyset(&set);
    sigaddset(&set, SIGSYS);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    program_make(&p, thread);

    struct sock_fprog program = {.len = p.n, .filter = p.at};
    int r = prctl(PR_SET_SECCOMP, (unsigned long)SECCOMP_MODE_FILTER, &program, 0UL, 0UL) < 0 ? -errno : 0;

    if (r < 0)
        store_relaxed(&sandbox.error, r);
    else
        __atomic_fetch_add(&sandbox.threads, 1, __ATOMIC_RELAXED);
    return r;
}

#else

int sandbox_init(enum sandbox_mode mode, sandbox_say say)
{
    (void)say;
    return mode == SANDBOX_OFF ? 0 : -ENOSYS;
}

int sandbox_enter(enum sandbox_thread thread)
{
    (void)thread;
    return 0;
}

#endif
