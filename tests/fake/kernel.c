/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Modules, and the two kernels. The module must be ours, in a language that the driver's version can translate; what runs is
 * the kernels' very source, compiled for the CPU: a thread block is one thread here, and blocks run one after the other.
 * Its accesses go through GLOBAL, which finds the memory, and loses the context if there is none. Of spillbench's loads,
 * which compute nothing that anybody wants, it is only seen that their memory is there.
 */
#include <stdlib.h>

#include "client/bench/gpu_load.h"
#include "client/gpu/kernels.h"
#include "tests/fake/fake.h"

#define HELD_MAX 64

/* What a launch touches is held until it ends; most addresses lie in what is held already. */
struct launch {
    struct {
        struct fake_region *region;
        uint64_t from, to; /* of a reservation only what was found mapped */
    } held[HELD_MAX];
    size_t n_held;
    int result;
};

/* Looked at for each 16 bytes that a kernel moves: a sanitizer takes its time over a thread's variables, these aside. */
#define QUICK _Thread_local __attribute__((tls_model("initial-exec")))
static QUICK struct launch *launch;

static void *global(uint64_t address, size_t size_bytes)
{
    static _Thread_local _Alignas(16) char nowhere[64]; /* for the rest of a kernel that has failed */
    struct fake_region *region;

    for (size_t i = 0; i < launch->n_held; i++)
        if (address >= launch->held[i].from && address + size_bytes <= launch->held[i].to)
            return fake_region_memory(launch->held[i].region, address);
    region = fake_region_get(address, size_bytes, false);
    if (!region || address % MIN(size_bytes, sizeof(uint64_t)) != 0) {
        launch->result = region ? NV_ERROR_MISALIGNED_ADDRESS : NV_ERROR_ILLEGAL_ADDRESS;
        fake_region_put(region);
        return nowhere;
    }
    if (launch->n_held == HELD_MAX)
        fake_region_put(launch->held[--launch->n_held].region);
    uint64_t from = region->base, to = region->base + region->size_bytes;

    if (region->kind == FAKE_RESERVED) {
        from = address & ~(FAKE_CUDA_GRANULARITY - 1);
        to = from + FAKE_CUDA_GRANULARITY;
    }
    launch->held[launch->n_held].region = region;
    launch->held[launch->n_held].from = from;
    launch->held[launch->n_held++].to = to;
    return fake_region_memory(region, address);
}

/* What the device's compiler knows, for one thread a block. */
struct index {
    uint32_t x;
};
typedef struct {
    uint32_t x, y, z, w;
} uint4;
static const struct index threadIdx = {0}, blockDim = {1};
static QUICK struct index blockIdx, gridDim;

#ifdef __CPPCHECK__ /* it does not see that threadIdx.x is 0 */
#define __shared__ static
#else
#define __shared__ /* of its one thread */
#endif
#define __syncthreads() ((void)0)
#define __threadfence() fence_full()
#define __threadfence_system() fence_full()
#define __ldcs(p) (*(p))
#define __stcs(p, v) (*(p) = (v))
#define GLOBAL(type, address) ((type *)global(address, sizeof(type)))
#define KERNEL static void
#define INLINE static inline
#define UNROLL

static unsigned atomicInc(unsigned *value, unsigned most)
{
    unsigned before = *value;

    *value = before >= most ? 0 : before + 1;
    return before;
}

#define volatile _Atomic /* others look at these words meanwhile */
#include "client/gpu/kernels.cu"
#undef volatile

struct CUfunc_st {
    const char *name;
    size_t args_bytes;
    void (*run)(struct kernel_args args); /* NULL: a load */
};

struct CUmod_st {
    struct list link;
    struct CUctx_st *ctx;
};

static struct CUfunc_st functions[] = {
    {KERNEL_GATHER, sizeof(struct kernel_args), spw_gather},
    {KERNEL_SCATTER, sizeof(struct kernel_args), spw_scatter},
    {LOAD_MEMORY, sizeof(struct load_args), NULL},
    {LOAD_PRODUCTS, sizeof(struct load_args), NULL},
};

void fake_modules_reclaim(struct CUctx_st *ctx)
{
    for (struct list *l = fake.modules.next, *next; l != &fake.modules; l = next) {
        struct CUmod_st *module = container_of(l, struct CUmod_st, link);

        next = l->next;
        if (module->ctx != ctx)
            continue;
        COUNT(n_reclaimed, 1);
        GAUGE(n_modules, -1);
        list_unlink(l);
        free(module);
    }
}

/* PTX 8.0 came with CUDA 12.0, 9.0 with 13.0. */
static int check_image(const char *text)
{
    const char *version = strstr(text, ".version ");
    int major, minor;

    if (!version || sscanf(version, ".version %d.%d", &major, &minor) != 2)
        return NV_ERROR_INVALID_IMAGE;
    if (major * 10 + minor > (fake.version / 1000 - 4) * 10 + fake.version % 1000 / 10)
        return NV_ERROR_UNSUPPORTED_PTX_VERSION;
    return (strstr(text, ".entry " KERNEL_GATHER) && strstr(text, ".entry " KERNEL_SCATTER)) ||
                   (strstr(text, ".entry " LOAD_MEMORY) && strstr(text, ".entry " LOAD_PRODUCTS))
               ? NV_SUCCESS
               : NV_ERROR_INVALID_PTX;
}

int cuModuleLoadDataEx(struct CUmod_st **ret_module, const void *image, unsigned n_options, int *options, void **values)
{
    struct CUmod_st *module;
    int r;

    (void)values;
    ENTER("cuModuleLoadDataEx", FAKE_CONTEXT);
    if (n_options > 0 && !options)
        return NV_ERROR_INVALID_VALUE;
    if ((r = check_image(image)) != NV_SUCCESS)
        return r;
    module = calloc(1, sizeof(*module));
    if (!module)
        abort();
    module->ctx = fake_context();
    pthread_mutex_lock(&fake.lock);
    list_push_tail(&fake.modules, &module->link);
    pthread_mutex_unlock(&fake.lock);
    GAUGE(n_modules, 1);
    *ret_module = module;
    return NV_SUCCESS;
}

static struct CUmod_st *module_find(struct CUmod_st *handle)
{
    for (struct list *l = fake.modules.next; l != &fake.modules; l = l->next)
        if (container_of(l, struct CUmod_st, link) == handle)
            return handle;
    return NULL;
}

int cuModuleUnload(struct CUmod_st *handle)
{
    struct CUmod_st *module;

    ENTER("cuModuleUnload", FAKE_CONTEXT);
    pthread_mutex_lock(&fake.lock);
    module = module_find(handle);
    if (module)
        list_unlink(&module->link);
    pthread_mutex_unlock(&fake.lock);
    if (!module)
        return NV_ERROR_INVALID_HANDLE;
    free(module);
    GAUGE(n_modules, -1);
    return NV_SUCCESS;
}

int cuModuleGetFunction(struct CUfunc_st **ret_function, struct CUmod_st *handle, const char *name)
{
    bool found;

    ENTER("cuModuleGetFunction", FAKE_CONTEXT);
    pthread_mutex_lock(&fake.lock);
    found = module_find(handle);
    pthread_mutex_unlock(&fake.lock);
    if (!found)
        return NV_ERROR_INVALID_HANDLE;
    for (size_t i = 0; i < ARRAY_LEN(functions); i++) {
        if (strcmp(name, functions[i].name) == 0) {
            *ret_function = &functions[i];
            return NV_SUCCESS;
        }
    }
    return NV_ERROR_NOT_FOUND;
}

/* What the device would not notice, a test should: bytes that the arguments leave to chance. */
static bool is_sound(const struct kernel_args *args)
{
    uint32_t offset_bytes = 0;

    if (args->n_pieces == 0 || args->item_bytes == 0 || args->first_bytes >= args->item_bytes ||
        (uint64_t)args->first_bytes + args->window_bytes > UINT32_MAX ||
        (args->item_bytes | args->first_bytes | args->window_bytes | args->slot) % KERNEL_VECTOR_BYTES != 0)
        return false;
    for (uint32_t i = 0; i < args->n_pieces; i++) {
        const struct kernel_piece *piece =
            GLOBAL(const struct kernel_piece, args->pieces + i * sizeof(struct kernel_piece));

        if (piece->offset_bytes != offset_bytes || piece->bytes == 0 ||
            (piece->base | piece->stride_bytes | piece->bytes) % KERNEL_VECTOR_BYTES != 0)
            return false;
        offset_bytes += piece->bytes;
    }
    return offset_bytes == args->item_bytes;
}

static void run_load(struct fake_op *op)
{
    struct load_args args;
    struct fake_region *memory = NULL;

    memcpy(&args, op->params, sizeof(args));
    struct fake_region *sink = fake_region_get(args.sink, 16, true);
    if (args.size_bytes > 0)
        memory = fake_region_get(args.memory, args.size_bytes, false);
    if (!sink || (args.size_bytes > 0 && !memory) || args.size_bytes % LOAD_BYTES_UNIT != 0)
        fake_lose(NV_ERROR_ILLEGAL_ADDRESS);
    fake_region_put(memory);
    fake_region_put(sink);
}

static void run_kernel(struct fake_op *op)
{
    const struct CUfunc_st *function = op->arg;
    struct kernel_args args;
    struct launch here = {.result = NV_SUCCESS};
    bool skips;

    memcpy(&args, op->params, sizeof(args));
    launch = &here;
    gridDim.x = op->grid;
    if (!is_sound(&args) && here.result == NV_SUCCESS)
        here.result = NV_ERROR_LAUNCH_FAILED;
    skips = args.status && *GLOBAL(const volatile uint64_t, args.status) != 0;
    for (blockIdx.x = 0; blockIdx.x < op->grid && here.result == NV_SUCCESS; blockIdx.x++)
        function->run(args);
    launch = NULL;
    while (here.n_held > 0)
        fake_region_put(here.held[--here.n_held].region);
    if (here.result != NV_SUCCESS)
        fake_lose(here.result);
    if (function->run == spw_gather)
        COUNT(n_gathers, 1);
    else
        COUNT(n_scatters, 1);
    if (skips)
        COUNT(n_skipped, 1);
}

int cuLaunchKernel(struct CUfunc_st *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, struct CUstream_st *stream, void **params,
                   void **extra)
{
    struct fake_op op = {
        .run = function->run ? run_kernel : run_load, .arg = function, .grid = grid_x, .block = block_x};

    ENTER("cuLaunchKernel", FAKE_CONTEXT);
    if (grid_x == 0 || grid_y != 1 || grid_z != 1 || block_x == 0 || block_x > KERNEL_THREADS || block_y != 1 ||
        block_z != 1 || shared_bytes != 0 || !params || extra)
        return NV_ERROR_INVALID_VALUE;
    static_assert(sizeof(op.params) >= sizeof(struct kernel_args), "room for the arguments");
    memcpy(op.params, params[0], function->args_bytes);
    return fake_submit(stream, &op);
}
