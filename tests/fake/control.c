/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a test orders and reads: the control file, faults, the sticky error, and how much HBM is left. The file is shared by
 * all processes, and every access to it is atomic; a process has a slot of its own for what it has now.
 */
#include <stdlib.h>
#include <time.h>

#include "tests/fake/fake.h"

#define WAIT_NS 2000000

struct fake fake = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .progress = PTHREAD_COND_INITIALIZER,
    .regions = LIST_INIT(fake.regions),
    .streams = LIST_INIT(fake.streams),
    .events = LIST_INIT(fake.events),
    .modules = LIST_INIT(fake.modules),
    .handles = LIST_INIT(fake.handles),
};

static struct fake_cuda_control private_control;
static pthread_mutex_t attach_lock = PTHREAD_MUTEX_INITIALIZER;
static bool attached; /* atomic */
static bool forked;   /* the child of a process that had begun: it can do nothing, as in reality */

/* One that had only found the functions begins anew, with a slot of its own. */
static void fork_child(void)
{
    forked = fake.inited;
    attached = false;
}

static uint32_t my_role(void)
{
    char comm[32] = "";
    FILE *f = fopen("/proc/self/comm", "re");

    if (f && fgets(comm, sizeof(comm), f))
        comm[strcspn(comm, "\n")] = '\0';
    if (f)
        fclose(f);
    return strcmp(comm, FAKE_CUDA_HELPER_COMM) == 0 ? FAKE_CUDA_HELPER : FAKE_CUDA_CLIENT;
}

/* A free slot, or one of a process that is gone. */
static struct fake_cuda_process *take_slot(struct fake_cuda_control *control, uint32_t role)
{
    for (size_t i = 0; i < FAKE_CUDA_PROCESSES_MAX; i++) {
        struct fake_cuda_process *process = &control->processes[i];
        int32_t old = load_acquire(&process->pid);

        if (fake_cuda_is_alive(process) || !__atomic_compare_exchange_n(&process->pid, &old, (int32_t)getpid(), false,
                                                                        __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            continue;
        memset((char *)process + sizeof(process->pid), 0, sizeof(*process) - sizeof(process->pid));
        store_release(&process->role, role);
        return process;
    }
    fprintf(stderr, "fake libcuda: more than %d processes\n", FAKE_CUDA_PROCESSES_MAX);
    abort();
}

static size_t env_number(const char *name, size_t otherwise)
{
    const char *text = getenv(name);

    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

static void attach(void)
{
    static bool watches_forks;
    const char *path = getenv("FAKE_CUDA_CONTROL");
    uint32_t role = my_role();

    if (!watches_forks)
        pthread_atfork(NULL, NULL, fork_child);
    watches_forks = true;
    fake.control = path && *path ? fake_cuda_control_map(path) : &private_control;
    if (!fake.control) {
        fprintf(stderr, "fake libcuda: FAKE_CUDA_CONTROL=%s: %s\n", path, strerror(errno));
        abort();
    }
    fake.role = &fake.control->roles[role];
    fake.process = take_slot(fake.control, role);
    fake.n_devices = (int)MIN(env_number("FAKE_CUDA_DEVICES", 1), (size_t)FAKE_CUDA_DEVICES_MAX);
    fake.hbm_bytes = env_number("FAKE_CUDA_HBM", GIB);
    fake.version = (int)env_number("FAKE_CUDA_DRIVER_VERSION", 13000);
}

static void attach_once(void)
{
    if (load_acquire(&attached))
        return;
    pthread_mutex_lock(&attach_lock);
    if (!attached)
        attach();
    store_release(&attached, true);
    pthread_mutex_unlock(&attach_lock);
}

/* The result that a test ordered for this call, or NV_SUCCESS. */
static int fault_for(const char *function)
{
    for (size_t i = 0; i < FAKE_CUDA_FAULTS_MAX; i++) {
        struct fake_cuda_fault *fault = &fake.role->faults[i];
        uint32_t result = load_acquire(&fault->result); /* pairs with fake_cuda_fail() */

        if (result == 0 || strcmp(fault->function, function) != 0)
            continue;
        if (load_relaxed(&fault->nth) > 1) {
            __atomic_fetch_sub(&fault->nth, 1, __ATOMIC_RELAXED);
            continue;
        }
        __atomic_fetch_add(&fault->n_fired, 1, __ATOMIC_RELAXED);
        if (__atomic_sub_fetch(&fault->times, 1, __ATOMIC_RELAXED) == 0)
            store_release(&fault->result, 0);
        return (int)result;
    }
    return NV_SUCCESS;
}

int fake_lost(void)
{
    uint32_t ordered = load_acquire(&fake.role->lost);

    if (ordered != 0)
        fake_lose((int)ordered);
    return (int)load_acquire(&fake.lost);
}

/* The first error stays. */
void fake_lose(int result)
{
    uint32_t none = 0;

    __atomic_compare_exchange_n(&fake.lost, &none, (uint32_t)result, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

int fake_enter(const char *function, enum fake_needs needs)
{
    int r;

    if (forked)
        return NV_ERROR_NOT_INITIALIZED;
    attach_once();
    if (fake_in_host_fn && needs != FAKE_NOTHING)
        return NV_ERROR_NOT_PERMITTED;
    if ((r = fault_for(function)) != NV_SUCCESS) {
        if (cuda_is_fatal(r))
            fake_lose(r);
        return r;
    }
    if (needs == FAKE_NOTHING)
        return NV_SUCCESS;
    if (!load_acquire(&fake.inited))
        return NV_ERROR_NOT_INITIALIZED;
    if (needs == FAKE_INIT)
        return NV_SUCCESS;
    if (!fake_context())
        return NV_ERROR_INVALID_CONTEXT;
    if (load_relaxed(&fake_context()->n_refs) == 0)
        return NV_ERROR_CONTEXT_IS_DESTROYED;
    return fake_lost();
}

int cuInit(unsigned flags)
{
    ENTER("cuInit", FAKE_NOTHING);
    if (flags != 0)
        return NV_ERROR_INVALID_VALUE;
    if (!load_acquire(&fake.inited))
        fake_devices_show();
    if (fake.n_visible == 0)
        return NV_ERROR_NO_DEVICE;
    store_release(&fake.inited, true);
    return NV_SUCCESS;
}

void fake_wait(void)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += WAIT_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_cond_timedwait(&fake.progress, &fake.lock, &until);
}

static int64_t hbm_used(int device)
{
    return fake_cuda_sum(fake.control, FAKE_CUDA_ROLES,
                         offsetof(struct fake_cuda_process, hbm_bytes) + (size_t)device * sizeof(int64_t));
}

/* Takes first and looks then: of two processes that race for the last bytes both may fail, but never both succeed. */
bool fake_charge(int device, int64_t bytes)
{
    GAUGE(hbm_bytes[device], bytes);
    if (bytes <= 0 || hbm_used(device) <= (int64_t)fake.hbm_bytes)
        return true;
    GAUGE(hbm_bytes[device], -bytes);
    return false;
}

size_t fake_hbm_free(int device)
{
    int64_t used = hbm_used(device);

    return used < (int64_t)fake.hbm_bytes ? fake.hbm_bytes - (size_t)used : 0;
}
