/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library that is loaded before all others (LD_PRELOAD), and stands before every function of libc that the daemon, its
 * helper and libspillway call and that can fail. It counts calls by site, lets the one fail that the driver asked for, and
 * keeps count of the heap. All threads; it takes no lock.
 *
 * The functions are declared as what they are to the processor: six words in, a word out. So one macro serves all of them,
 * variadic ones included, and no prototype has to be repeated. They are ours by their assembler names alone.
 */
#include "tests/fail/failcalls.h"

#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define FRAMES_MAX 48
#define RANGES_MAX 64
#define EARLY_BYTES 65536

/* How a function says that it failed. */
enum fail_as { AS_MINUS_ONE, AS_NULL, AS_VALUE, AS_STREAM, AS_STREAM_NULL, AS_CLOSE };

/* X(name, how): its errno comes from the driver. */
#define CALLS(X)                                                                                                       \
    X(open, AS_MINUS_ONE)                                                                                              \
    X(openat, AS_MINUS_ONE)                                                                                            \
    X(close, AS_CLOSE)                                                                                                 \
    X(access, AS_MINUS_ONE)                                                                                            \
    X(stat, AS_MINUS_ONE)                                                                                              \
    X(lstat, AS_MINUS_ONE)                                                                                             \
    X(fstat, AS_MINUS_ONE)                                                                                             \
    X(fstatfs, AS_MINUS_ONE)                                                                                           \
    X(statx, AS_MINUS_ONE)                                                                                             \
    X(readlink, AS_MINUS_ONE)                                                                                          \
    X(mkdir, AS_MINUS_ONE)                                                                                             \
    X(unlink, AS_MINUS_ONE)                                                                                            \
    X(rename, AS_MINUS_ONE)                                                                                            \
    X(chmod, AS_MINUS_ONE)                                                                                             \
    X(fchmod, AS_MINUS_ONE)                                                                                            \
    X(ftruncate, AS_MINUS_ONE)                                                                                         \
    X(fallocate, AS_MINUS_ONE)                                                                                         \
    X(posix_fallocate, AS_VALUE)                                                                                       \
    X(lseek, AS_MINUS_ONE)                                                                                             \
    X(read, AS_MINUS_ONE)                                                                                              \
    X(pread, AS_MINUS_ONE)                                                                                             \
    X(write, AS_MINUS_ONE)                                                                                             \
    X(pwrite, AS_MINUS_ONE)                                                                                            \
    X(fdatasync, AS_MINUS_ONE)                                                                                         \
    X(fsync, AS_MINUS_ONE)                                                                                             \
    X(flock, AS_MINUS_ONE)                                                                                             \
    X(fcntl, AS_MINUS_ONE)                                                                                             \
    X(ioctl, AS_MINUS_ONE)                                                                                             \
    X(dup2, AS_MINUS_ONE)                                                                                              \
    X(dup3, AS_MINUS_ONE)                                                                                              \
    X(close_range, AS_MINUS_ONE)                                                                                       \
    X(pipe2, AS_MINUS_ONE)                                                                                             \
    X(memfd_create, AS_MINUS_ONE)                                                                                      \
    X(mmap, AS_MINUS_ONE)                                                                                              \
    X(munmap, AS_MINUS_ONE)                                                                                            \
    X(mremap, AS_MINUS_ONE)                                                                                            \
    X(mprotect, AS_MINUS_ONE)                                                                                          \
    X(madvise, AS_MINUS_ONE)                                                                                           \
    X(mlock, AS_MINUS_ONE)                                                                                             \
    X(mbind, AS_MINUS_ONE)                                                                                             \
    X(move_pages, AS_MINUS_ONE)                                                                                        \
    X(socket, AS_MINUS_ONE)                                                                                            \
    X(socketpair, AS_MINUS_ONE)                                                                                        \
    X(bind, AS_MINUS_ONE)                                                                                              \
    X(listen, AS_MINUS_ONE)                                                                                            \
    X(connect, AS_MINUS_ONE)                                                                                           \
    X(accept4, AS_MINUS_ONE)                                                                                           \
    X(getsockopt, AS_MINUS_ONE)                                                                                        \
    X(setsockopt, AS_MINUS_ONE)                                                                                        \
    X(send, AS_MINUS_ONE)                                                                                              \
    X(sendmsg, AS_MINUS_ONE)                                                                                           \
    X(recv, AS_MINUS_ONE)                                                                                              \
    X(recvmsg, AS_MINUS_ONE)                                                                                           \
    X(shutdown, AS_MINUS_ONE)                                                                                          \
    X(poll, AS_MINUS_ONE)                                                                                              \
    X(ppoll, AS_MINUS_ONE)                                                                                             \
    X(__ppoll_chk, AS_MINUS_ONE)                                                                                       \
    X(epoll_create1, AS_MINUS_ONE)                                                                                     \
    X(epoll_ctl, AS_MINUS_ONE)                                                                                         \
    X(epoll_wait, AS_MINUS_ONE)                                                                                        \
    X(eventfd, AS_MINUS_ONE)                                                                                           \
    X(eventfd_read, AS_MINUS_ONE)                                                                                      \
    X(eventfd_write, AS_MINUS_ONE)                                                                                     \
    X(signalfd, AS_MINUS_ONE)                                                                                          \
    X(timerfd_create, AS_MINUS_ONE)                                                                                    \
    X(timerfd_settime, AS_MINUS_ONE)                                                                                   \
    X(pidfd_open, AS_MINUS_ONE)                                                                                        \
    X(posix_spawn, AS_VALUE)                                                                                           \
    X(posix_spawn_file_actions_init, AS_VALUE)                                                                         \
    X(posix_spawn_file_actions_adddup2, AS_VALUE)                                                                      \
    X(posix_spawnattr_init, AS_VALUE)                                                                                  \
    X(posix_spawnattr_setflags, AS_VALUE)                                                                              \
    X(posix_spawnattr_setsigmask, AS_VALUE)                                                                            \
    X(execl, AS_MINUS_ONE)                                                                                             \
    X(execve, AS_MINUS_ONE)                                                                                            \
    X(fork, AS_MINUS_ONE)                                                                                              \
    X(kill, AS_MINUS_ONE)                                                                                              \
    X(waitid, AS_MINUS_ONE)                                                                                            \
    X(waitpid, AS_MINUS_ONE)                                                                                           \
    X(prctl, AS_MINUS_ONE)                                                                                             \
    X(getrlimit, AS_MINUS_ONE)                                                                                         \
    X(setrlimit, AS_MINUS_ONE)                                                                                         \
    X(initgroups, AS_MINUS_ONE)                                                                                        \
    X(setresgid, AS_MINUS_ONE)                                                                                         \
    X(setresuid, AS_MINUS_ONE)                                                                                         \
    X(pthread_create, AS_VALUE)                                                                                        \
    X(pthread_key_create, AS_VALUE)                                                                                    \
    X(pthread_setname_np, AS_VALUE)                                                                                    \
    X(getrandom, AS_MINUS_ONE)                                                                                         \
    X(nanosleep, AS_MINUS_ONE)                                                                                         \
    X(usleep, AS_MINUS_ONE)                                                                                            \
    X(setenv, AS_MINUS_ONE)                                                                                            \
    X(putenv, AS_MINUS_ONE)                                                                                            \
    X(getgrnam_r, AS_VALUE)                                                                                            \
    X(getpwnam_r, AS_VALUE)                                                                                            \
    X(dlopen, AS_NULL)                                                                                                 \
    X(sysconf, AS_MINUS_ONE)                                                                                           \
    X(sched_getaffinity, AS_MINUS_ONE)                                                                                 \
    X(getcpu, AS_MINUS_ONE)                                                                                            \
    X(fopen, AS_NULL)                                                                                                  \
    X(open_memstream, AS_NULL)                                                                                         \
    X(opendir, AS_NULL)                                                                                                \
    X(fgets, AS_STREAM_NULL)                                                                                           \
    X(fgetc, AS_STREAM)                                                                                                \
    X(__isoc99_fscanf, AS_STREAM)

/* Those that are written out below. */
#define OTHER_CALLS(X)                                                                                                 \
    X(malloc)                                                                                                          \
    X(calloc)                                                                                                          \
    X(realloc)                                                                                                         \
    X(reallocarray)                                                                                                    \
    X(aligned_alloc)                                                                                                   \
    X(posix_memalign)                                                                                                  \
    X(free)                                                                                                            \
    X(syscall)                                                                                                         \
    X(sigaction)                                                                                                       \
    X(pthread_sigmask)

enum call {
    CALL_NONE, /* so that no key is 0 */
#define X(name, how) CALL_##name,
    CALLS(X)
#undef X
#define X(name) CALL_##name,
        OTHER_CALLS(X)
#undef X
            CALL_END
};

static_assert((int)CALL_END < (int)FAIL_RAW_SETUP, "more calls than the table takes");

typedef long word_fn(long, long, long, long, long, long);

static const char *const call_names[FAIL_CALLS_MAX] = {
#define X(name, how) [CALL_##name] = #name,
    CALLS(X)
#undef X
#define X(name) [CALL_##name] = #name,
        OTHER_CALLS(X)
#undef X
            [FAIL_RAW_SETUP] = "io_uring_setup",
    [FAIL_RAW_ENTER] = "io_uring_enter",
    [FAIL_RAW_REGISTER] = "io_uring_register",
    [FAIL_RAW_MMAP] = "liburing mmap",
    [FAIL_RAW_MUNMAP] = "liburing munmap",
    [FAIL_COMPLETION] = "completion",
};

struct range {
    uintptr_t low, high, base;
    enum { OURS_PROGRAM = FAIL_PROGRAM, OURS_LIBRARY = FAIL_LIBRARY, THEIRS, OUTSIDE } kind;
};

static struct fail_state *state; /* NULL: this program is left alone */
static word_fn *real[FAIL_CALLS_MAX];
static struct range ranges[RANGES_MAX];
static unsigned n_ranges;
static __thread unsigned depth __attribute__((tls_model("initial-exec")));

static word_fn *real_of(enum call call)
{
    if (!real[call]) {
        depth++;
        real[call] = (word_fn *)(uintptr_t)dlsym(RTLD_NEXT, call_names[call]);
        depth--;
    }
    return real[call]; // cppcheck-suppress CastIntegerToAddressAtReturn; it is a function's address
}

/* --- Who calls? -------------------------------------------------------------------------------------------------- */

static const struct range *range_of(uintptr_t address)
{
    for (unsigned i = 0; i < n_ranges; i++)
        if (address >= ranges[i].low && address < ranges[i].high)
            return &ranges[i];
    return NULL;
}

/* The first frame that is ours, if between it and the call there are only libraries that it was linked with. */
static bool site_of(void *return_address, uint64_t *ret_place)
{
    const struct range *range = range_of((uintptr_t)return_address);
    uintptr_t at = (uintptr_t)return_address;
    void *frames[FRAMES_MAX];

    if (range && range->kind == THEIRS) {
        int saved = errno;
        int n = backtrace(frames, FRAMES_MAX), i = 0;

        errno = saved;
        while (i < n && frames[i] != return_address) /* ours, a handler's */
            i++;
        while (i < n && (range = range_of((uintptr_t)frames[i])) && range->kind == THEIRS)
            i++;
        at = i < n ? (uintptr_t)frames[i] : 0;
        range = i < n ? range : NULL;
    }
    if (!range || (range->kind != OURS_PROGRAM && range->kind != OURS_LIBRARY))
        return false;
    *ret_place = (uint64_t)range->kind << 40 | (at - range->base);
    return true;
}

static struct fail_site *site_find(uint64_t key)
{
    uint64_t at = key * UINT64_C(0x9e3779b97f4a7c15) >> 32;

    for (unsigned i = 0; i < FAIL_SITES_MAX; i++) {
        struct fail_site *site = &state->sites[(at + i) % FAIL_SITES_MAX];
        uint64_t found = atomic_load(&site->key);

        if (found == 0 && atomic_compare_exchange_strong(&site->key, &found, key))
            return site;
        if (found == key)
            return site;
    }
    atomic_fetch_add(&state->n_left_out, 1);
    return NULL;
}

/* --- Does it fail? ----------------------------------------------------------------------------------------------- */

static bool is_allocation(uint64_t call)
{
    return call >= CALL_malloc && call <= CALL_posix_memalign;
}

static bool is_same_kind(uint64_t key, uint64_t target)
{
    if (key == target || !atomic_load(&state->is_whole))
        return key == target;
    return key >> 48 == target >> 48 || (is_allocation(key >> 48) && is_allocation(target >> 48));
}

static bool decide(uint64_t key, int *ret_error)
{
    struct fail_site *site = site_find(key);
    uint32_t mode = atomic_load(&state->mode);
    uint64_t target = atomic_load(&state->target);
    bool is_it = false;

    if (site)
        atomic_fetch_add(&site->n_calls, 1);
    if (mode == FAIL_OFF)
        return false;
    if (key == target)
        is_it = atomic_fetch_add(&state->n_seen, 1) + 1 == atomic_load(&state->nth);
    if (!is_it)
        is_it = mode == FAIL_FOR_GOOD && atomic_load(&state->n_fired) > 0 && is_same_kind(key, target);
    if (is_it) {
        atomic_fetch_add(&state->n_fired, 1);
        *ret_error = atomic_load(&state->error);
    }
    return is_it;
}

bool fail_now(unsigned call, void *return_address, int *ret_error)
{
    uint64_t place;

    if (!state || depth > 0)
        return false;
    depth++;
    bool is_it = site_of(return_address, &place) && decide((uint64_t)call << 48 | place, ret_error);
    depth--;
    return is_it;
}

bool fail_completion_now(unsigned address, int *ret_error)
{
    return state && decide((uint64_t)FAIL_COMPLETION << 48 | (uint64_t)FAIL_RING << 40 | address, ret_error);
}

static long fail(enum fail_as how, int error, long stream)
{
    switch (how) {
    case AS_VALUE:
        return error;
    case AS_NULL:
        errno = error;
        return 0;
    case AS_STREAM:
    case AS_STREAM_NULL:
        ((FILE *)stream)->_flags |=
            0x20; // NOLINT(performance-no-int-to-ptr): glibc's _IO_ERR_SEEN, as its own reads do
        errno = error;
        return how == AS_STREAM ? EOF : 0;
    case AS_CLOSE:
    case AS_MINUS_ONE:
        break;
    }
    errno = error;
    return -1;
}

/* --- The functions ----------------------------------------------------------------------------------------------- */

/* A descriptor is closed whatever close() says. fgets() has its stream behind the room, the others in front. */
#define X(name, how)                                                                                                   \
    EXPORT long stand_in_##name(long a, long b, long c, long d, long e, long f) __asm__(#name);                        \
    EXPORT long stand_in_##name(long a, long b, long c, long d, long e, long f)                                        \
    {                                                                                                                  \
        int error;                                                                                                     \
                                                                                                                       \
        if (!fail_now(CALL_##name, __builtin_return_address(0), &error))                                               \
            return real_of(CALL_##name)(a, b, c, d, e, f);                                                             \
        if ((how) == AS_CLOSE)                                                                                         \
            (void)real_of(CALL_##name)(a, b, c, d, e, f);                                                              \
        return fail(how, error, (how) == AS_STREAM_NULL ? c : a);                                                      \
    }
CALLS(X)
#undef X

typedef long seven_words_fn(long, long, long, long, long, long, long);
EXPORT long stand_in_syscall(long a, long b, long c, long d, long e, long f, long g) __asm__("syscall");
EXPORT long stand_in_syscall(long a, long b, long c, long d, long e, long f, long g)
{
    int error;

    if (fail_now(CALL_syscall, __builtin_return_address(0), &error))
        return fail(AS_MINUS_ONE, error, 0);
    return ((seven_words_fn *)(uintptr_t)real_of(CALL_syscall))(a, b, c, d, e, f, g);
}

/* Trap.c needs its signal, in every thread. */
EXPORT long stand_in_pthread_sigmask(long how, const sigset_t *set, sigset_t *old) __asm__("pthread_sigmask");
EXPORT long stand_in_pthread_sigmask(long how, const sigset_t *set, sigset_t *old)
{
    sigset_t without;

    if (set && how != SIG_UNBLOCK) {
        without = *set;
        sigdelset(&without, SIGSYS);
        set = &without;
    }
    return real_of(CALL_pthread_sigmask)(how, (long)set, (long)old, 0, 0, 0);
}

EXPORT long stand_in_sigaction(long number, long act, long old) __asm__("sigaction");
EXPORT long stand_in_sigaction(long number, long act, long old)
{
    int error;

    if (fail_now(CALL_sigaction, __builtin_return_address(0), &error))
        return fail(AS_MINUS_ONE, error, 0);
    if (number == SIGSYS && act && n_ranges > 0 && depth == 0)
        return 0;
    return real_of(CALL_sigaction)(number, act, old, 0, 0, 0);
}

/* --- The heap ---------------------------------------------------------------------------------------------------- */

/* What dlsym() may want before malloc() is found. Never given back. */
static char early[EARLY_BYTES] __attribute__((aligned(64)));
static atomic_size_t early_used;

static void *early_alloc(size_t size)
{
    size_t at = atomic_fetch_add(&early_used, (size + 63) & ~(size_t)63);

    return at + size <= EARLY_BYTES ? early + at : NULL;
}

static bool is_early(const void *mem)
{
    return (const char *)mem >= early && (const char *)mem < early + EARLY_BYTES;
}

static void *counted(void *mem)
{
    if (state && mem) {
        atomic_fetch_add(&state->live_bytes, (int64_t)malloc_usable_size(mem));
        atomic_fetch_add(&state->live_blocks, 1);
    }
    return mem;
}

static void uncount(int64_t size_bytes)
{
    if (state) {
        atomic_fetch_sub(&state->live_bytes, size_bytes);
        atomic_fetch_sub(&state->live_blocks, 1);
    }
}

static bool allocation_fails(enum call call, void *return_address)
{
    int error;

    if (!fail_now(call, return_address, &error))
        return false;
    errno = error;
    return true;
}

EXPORT void *malloc(size_t size)
{
    if (!real[CALL_malloc] && depth > 0)
        return early_alloc(size);
    if (allocation_fails(CALL_malloc, __builtin_return_address(0)))
        return NULL;
    return counted((void *)real_of(CALL_malloc)((long)size, 0, 0, 0, 0, 0));
}

EXPORT void *calloc(size_t nmemb, size_t size)
{
    if (!real[CALL_calloc] && depth > 0)
        return early_alloc(nmemb * size);
    if (allocation_fails(CALL_calloc, __builtin_return_address(0)))
        return NULL;
    return counted((void *)real_of(CALL_calloc)((long)nmemb, (long)size, 0, 0, 0, 0));
}

static void *resize(void *mem, size_t size)
{
    int64_t before = mem ? (int64_t)malloc_usable_size(mem) : 0;
    void *moved = (void *)real_of(CALL_realloc)((long)mem, (long)size, 0, 0, 0, 0);

    if (mem && (moved || size == 0))
        uncount(before);
    return counted(moved);
}

EXPORT void *realloc(void *ptr, size_t size)
{
    return allocation_fails(CALL_realloc, __builtin_return_address(0)) ? NULL : resize(ptr, size);
}

EXPORT void *reallocarray(void *ptr, size_t nmemb, size_t size)
{
    size_t bytes;

    if (__builtin_mul_overflow(nmemb, size, &bytes) ||
        allocation_fails(CALL_reallocarray, __builtin_return_address(0))) {
        errno = ENOMEM;
        return NULL;
    }
    return resize(ptr, bytes);
}

EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
    if (allocation_fails(CALL_aligned_alloc, __builtin_return_address(0)))
        return NULL;
    return counted((void *)real_of(CALL_aligned_alloc)((long)alignment, (long)size, 0, 0, 0, 0));
}

EXPORT int posix_memalign(void **memptr, size_t alignment, size_t size)
{
    if (allocation_fails(CALL_posix_memalign, __builtin_return_address(0)))
        return errno;
    int r = (int)real_of(CALL_posix_memalign)((long)memptr, (long)alignment, (long)size, 0, 0, 0);

    if (r == 0)
        (void)counted(*memptr);
    return r;
}

EXPORT void free(void *ptr)
{
    if (!ptr || is_early(ptr))
        return;
    uncount((int64_t)malloc_usable_size(ptr));
    (void)real_of(CALL_free)((long)ptr, 0, 0, 0, 0, 0);
}

/* --- The beginning ----------------------------------------------------------------------------------------------- */

static int range_add(struct dl_phdr_info *info, size_t size, void *program)
{
    const char *name = info->dlpi_name[0] ? info->dlpi_name : program;
    const char *base = strrchr(name, '/') ? strrchr(name, '/') + 1 : name;
    bool is_program = !info->dlpi_name[0];

    (void)size;
    for (int i = 0; i < info->dlpi_phnum && n_ranges < RANGES_MAX; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];

        if (ph->p_type != PT_LOAD || !(ph->p_flags & PF_X))
            continue;
        struct range *r = &ranges[n_ranges++];

        r->base = info->dlpi_addr;
        r->low = info->dlpi_addr + ph->p_vaddr;
        r->high = r->low + ph->p_memsz;
        r->kind = THEIRS;
        if (strncmp(base, "libspillway.so", 14) == 0)
            r->kind = OURS_LIBRARY;
        else if (is_program)
            r->kind = strncmp(base, "spillway", 8) == 0 ? OURS_PROGRAM : OUTSIDE;
        else if (r->low <= (uintptr_t)range_add && (uintptr_t)range_add < r->high)
            r->kind = THEIRS; /* this library: its frames are passed over */
        else if (strncmp(base, "libcuda.so", 10) == 0)
            r->kind = OUTSIDE; /* where it is loaded this early: what it needs for itself is no call of ours */
        if (strncmp(base, "liburing.so", 11) == 0)
            trap_install(r->low, r->high);
    }
    return 0;
}

static void state_map(const char *program)
{
    const char *dir = getenv("FAILCALLS_DIR"), *base = strrchr(program, '/');
    char path[PATH_MAX];

    if (!dir || !base || snprintf(path, sizeof(path), "%s%s.state", dir, base) >= (int)sizeof(path))
        return;
    int fd = (int)real_of(CALL_open)((long)path, O_RDWR | O_CLOEXEC, 0, 0, 0, 0);

    if (fd < 0)
        return;
    void *mem = (void *)real_of(CALL_mmap)(0, sizeof(*state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    (void)real_of(CALL_close)(fd, 0, 0, 0, 0, 0);
    if (mem != MAP_FAILED) // NOLINT(performance-no-int-to-ptr)
        state = mem;
}

__attribute__((constructor)) static void begin(void)
{
    char program[PATH_MAX] = "";
    void *frame;

    depth++;
    for (enum call call = CALL_NONE + 1; call < CALL_END; call++)
        (void)real_of(call);
    (void)backtrace(&frame, 1); /* loads what it needs now */
    if (real_of(CALL_readlink)((long)"/proc/self/exe", (long)program, sizeof(program) - 1, 0, 0, 0) > 0)
        state_map(program);
    if (state) {
        for (unsigned i = 0; i < FAIL_CALLS_MAX; i++)
            if (call_names[i])
                snprintf(state->names[i], FAIL_NAME_BYTES, "%s", call_names[i]);
        (void)dl_iterate_phdr(range_add, program);
        atomic_store(&state->magic, FAIL_MAGIC);
    }
    depth--;
}
