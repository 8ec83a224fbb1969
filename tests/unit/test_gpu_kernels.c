/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels alone, against a model that moves one byte at a time: layouts of every shape, windows that begin and end
 * anywhere, any number of thread blocks. The PTX is loaded as a client loads it. The fake driver runs their source on the
 * CPU; with SPILLWAY_TEST_GPU=1 a real one runs the PTX, which is what compute-sanitizer is for.
 */
#include "client/gpu/kernels.h"
#include "tests/unit/support/cuda_rig.h"

#define BLOCKS 64 /* ids that HBM has room for */
#define PIECES_MAX 2000
#define SLOT_BYTES (1 * MIB)
#define WINDOW_BYTES_MAX (128 * KIB)

struct kernels {
    struct cuda_rig rig;
    struct CUmod_st *module;
    struct CUfunc_st *gather, *scatter;
    uint32_t random;
    /* The layout, and the same in HBM. */
    struct kernel_piece *pieces;
    uint32_t n_pieces, item_bytes;
    uint64_t table;
    /* HBM, and what we think of it. */
    uint64_t hbm;
    uint8_t *hbm_model;
    size_t hbm_bytes;
    uint64_t slot;
    uint8_t *slot_model, *slot_seen;
    uint32_t *ids; /* host memory that is mapped, as a client's */
    uint64_t *words;
    uint64_t count; /* on the device */
    uint64_t n_done;
};

static uint32_t below(struct kernels *k, uint32_t n)
{
    k->random = k->random * 1664525 + 1013904223;
    return (uint32_t)(((uint64_t)k->random * n) >> 32);
}

static void kernels_init(struct kernels *k, uint32_t seed)
{
    *k = (struct kernels){.random = seed};
    if (getenv("SPILLWAY_TEST_GPU"))
        cuda_rig_real(&k->rig);
    else
        cuda_rig_init(&k->rig);
    struct cuda_driver *cu = &k->rig.cu;

    OK(cu->ModuleLoadDataEx(&k->module, kernels_ptx, 0, NULL, NULL));
    OK(cu->ModuleGetFunction(&k->gather, k->module, KERNEL_GATHER));
    OK(cu->ModuleGetFunction(&k->scatter, k->module, KERNEL_SCATTER));
    OK(cu->MemAlloc(&k->table, PIECES_MAX * sizeof(struct kernel_piece)));
    OK(cu->MemAlloc(&k->slot, SLOT_BYTES));
    OK(cu->MemHostAlloc((void **)&k->ids, SLOT_BYTES / KERNEL_VECTOR_BYTES * sizeof(uint32_t), 0));
    OK(cu->MemHostAlloc((void **)&k->words, 4096, 0));
    OK(cu->MemAlloc(&k->count, sizeof(uint32_t)));
    OK(cu->MemsetD8(k->count, 0, sizeof(uint32_t)));
    memset(k->words, 0, 4096);
    k->pieces = calloc(PIECES_MAX, sizeof(*k->pieces));
    k->slot_model = malloc(SLOT_BYTES);
    k->slot_seen = malloc(SLOT_BYTES);
}

/* What is ours, when the device is lost. */
static void kernels_forget(struct kernels *k)
{
    free(k->pieces);
    free(k->hbm_model);
    free(k->slot_model);
    free(k->slot_seen);
}

static void kernels_deinit(struct kernels *k)
{
    struct cuda_driver *cu = &k->rig.cu;

    OK(cu->MemFree(k->table));
    OK(cu->MemFree(k->slot));
    OK(cu->MemFree(k->count));
    OK(cu->MemFree(k->hbm));
    OK(cu->MemFreeHost(k->ids));
    OK(cu->MemFreeHost(k->words));
    OK(cu->ModuleUnload(k->module));
    cuda_rig_deinit(&k->rig);
    kernels_forget(k);
}

/* Pieces of up to max_bytes, each in a part of HBM of its own, with a gap between one block's and the next one's. */
static void make_layout(struct kernels *k, uint32_t n_pieces, uint32_t max_bytes)
{
    uint64_t at = 0;

    k->n_pieces = n_pieces;
    k->item_bytes = 0;
    for (uint32_t i = 0; i < n_pieces; i++) {
        uint32_t bytes = (1 + below(k, max_bytes / KERNEL_VECTOR_BYTES)) * KERNEL_VECTOR_BYTES;
        uint64_t stride = bytes + below(k, 4) * KERNEL_VECTOR_BYTES;

        k->pieces[i] =
            (struct kernel_piece){.base = at, .stride_bytes = stride, .offset_bytes = k->item_bytes, .bytes = bytes};
        at += stride * BLOCKS;
        k->item_bytes += bytes;
    }
    if (k->hbm)
        OK(k->rig.cu.MemFree(k->hbm));
    k->hbm_bytes = at;
    OK(k->rig.cu.MemAlloc(&k->hbm, at));
    for (uint32_t i = 0; i < n_pieces; i++)
        k->pieces[i].base += k->hbm;
    OK(k->rig.cu.MemcpyHtoD(k->table, k->pieces, n_pieces * sizeof(*k->pieces)));
    k->hbm_model = realloc(k->hbm_model, at);
    cuda_rig_fill(k->hbm_model, at, k->random);
    OK(k->rig.cu.MemcpyHtoD(k->hbm, k->hbm_model, at));
}

/* Where a byte of the stream lies in HBM: the slow and obvious way. */
static size_t place_of(const struct kernels *k, uint64_t position)
{
    assert(k->item_bytes > 0);
    uint32_t id = k->ids[position / k->item_bytes], offset = (uint32_t)(position % k->item_bytes), i = 0;

    while (offset >= k->pieces[i].bytes)
        offset -= k->pieces[i++].bytes;
    return (size_t)(k->pieces[i].base - k->hbm + id * k->pieces[i].stride_bytes + offset);
}

static struct kernel_args random_window(struct kernels *k)
{
    struct kernel_args args = {.pieces = k->table,
                               .n_pieces = k->n_pieces,
                               .item_bytes = k->item_bytes,
                               .ids = (uintptr_t)k->ids,
                               .slot = k->slot};
    uint64_t most = MIN(WINDOW_BYTES_MAX, (uint64_t)k->item_bytes * (BLOCKS - 1)) / KERNEL_VECTOR_BYTES;

    args.first_bytes = below(k, k->item_bytes / KERNEL_VECTOR_BYTES) * KERNEL_VECTOR_BYTES;
    args.window_bytes = below(k, (uint32_t)most + 1) * KERNEL_VECTOR_BYTES;
    /* Every id once, so that a scatter has one answer. */
    for (uint32_t i = 0; i < BLOCKS; i++)
        k->ids[i] = i;
    for (uint32_t i = BLOCKS - 1; i > 0; i--) {
        uint32_t j = below(k, i + 1), id = k->ids[i];

        k->ids[i] = k->ids[j];
        k->ids[j] = id;
    }
    return args;
}

/* Each launch says when it is done, and leaves the count as it was; without its arguments for that it says nothing. */
static void launch(struct kernels *k, struct CUfunc_st *function, struct kernel_args *args, unsigned n_blocks)
{
    void *params[] = {args};
    uint64_t *done = &k->words[2];
    uint32_t count;

    args->done = below(k, 4) > 0 ? (uintptr_t)done : 0;
    args->done_value = args->done ? ++k->n_done : 999;
    args->count = args->done ? k->count : 0;
    OK(k->rig.cu.LaunchKernel(function, n_blocks, 1, 1, KERNEL_THREADS, 1, 1, 0, NULL, params, NULL));
    OK(k->rig.cu.CtxSynchronize());
    ck_assert_uint_eq(*done, k->n_done);
    OK(k->rig.cu.MemcpyDtoH(&count, k->count, sizeof(count)));
    ck_assert_uint_eq(count, 0);
}

static void check_slot(struct kernels *k)
{
    OK(k->rig.cu.MemcpyDtoH(k->slot_seen, k->slot, SLOT_BYTES));
    ck_assert(memcmp(k->slot_seen, k->slot_model, SLOT_BYTES) == 0);
}

static void check_hbm(struct kernels *k)
{
    uint8_t *seen = malloc(k->hbm_bytes);

    OK(k->rig.cu.MemcpyDtoH(seen, k->hbm, k->hbm_bytes));
    ck_assert(memcmp(seen, k->hbm_model, k->hbm_bytes) == 0);
    free(seen);
}

/* Gathers a window, then scatters other bytes to the same places: what lies around stays as it was. */
static void check_window(struct kernels *k, struct kernel_args *args, unsigned n_blocks)
{
    memset(k->slot_model, 0xee, SLOT_BYTES);
    OK(k->rig.cu.MemsetD8(k->slot, 0xee, SLOT_BYTES));
    for (uint32_t i = 0; i < args->window_bytes; i++)
        k->slot_model[i] = k->hbm_model[place_of(k, (uint64_t)args->first_bytes + i)];
    launch(k, k->gather, args, n_blocks);
    check_slot(k);

    cuda_rig_fill(k->slot_model, SLOT_BYTES, k->random);
    OK(k->rig.cu.MemcpyHtoD(k->slot, k->slot_model, SLOT_BYTES));
    for (uint32_t i = 0; i < args->window_bytes; i++)
        k->hbm_model[place_of(k, (uint64_t)args->first_bytes + i)] = k->slot_model[i];
    launch(k, k->scatter, args, n_blocks);
    check_slot(k);
    check_hbm(k);
}

START_TEST(test_windows)
{
    static const struct {
        uint32_t n_pieces, max_bytes;
    } layouts[] = {{1, 16}, {1, 4096}, {2, 16}, {3, 48}, {7, 1024}, {64, 64}, {160, 512}, {1024, 32}, {1025, 32}};
    struct kernels k;

    kernels_init(&k, 1 + (uint32_t)_i);
    make_layout(&k, layouts[_i].n_pieces, layouts[_i].max_bytes);
    for (int i = 0; i < 12; i++) {
        struct kernel_args args = random_window(&k);

        check_window(&k, &args, i == 0 ? 1 : 1 + below(&k, 40));
    }
    if (k.rig.control) {
        ck_assert_uint_eq(k.rig.role->n_gathers, 12);
        ck_assert_uint_eq(k.rig.role->n_scatters, 12);
        ck_assert_uint_eq(k.rig.role->n_skipped, 0);
    }
    kernels_deinit(&k);
}
END_TEST

static void check_gather(struct kernels *k, uint32_t first_bytes, uint32_t window_bytes, unsigned n_blocks)
{
    struct kernel_args args = {.pieces = k->table,
                               .n_pieces = k->n_pieces,
                               .item_bytes = k->item_bytes,
                               .ids = (uintptr_t)k->ids,
                               .first_bytes = first_bytes,
                               .window_bytes = window_bytes,
                               .slot = k->slot};

    memset(k->slot_model, 0, SLOT_BYTES);
    OK(k->rig.cu.MemsetD8(k->slot, 0, SLOT_BYTES));
    for (uint32_t i = 0; i < window_bytes; i++)
        k->slot_model[i] = k->hbm_model[place_of(k, (uint64_t)first_bytes + i)];
    launch(k, k->gather, &args, n_blocks);
    check_slot(k);
}

/* Ids that come with the launch: as many as there is room for, and fewer. */
START_TEST(test_inline_ids)
{
    struct kernels k;

    kernels_init(&k, 6);
    make_layout(&k, 3, 512);
    for (uint32_t n = 1; n <= KERNEL_IDS_INLINE; n++) {
        struct kernel_args args = random_window(&k);

        args.first_bytes = n % 2 == 0 ? 0 : args.first_bytes;
        args.window_bytes = n * k.item_bytes - args.first_bytes;
        args.ids = 0;
        memcpy(args.inline_ids, k.ids, sizeof(args.inline_ids));
        check_window(&k, &args, 1 + below(&k, 12));
    }
    kernels_deinit(&k);
}
END_TEST

/* More objects than a thread block takes ids at a time, and just as many. Ids repeat here, so bytes are only gathered. */
START_TEST(test_many_ids)
{
    struct kernels k;

    kernels_init(&k, 7);
    make_layout(&k, 2, 32);
    for (uint32_t i = 0; i < SLOT_BYTES / KERNEL_VECTOR_BYTES; i++)
        k.ids[i] = below(&k, BLOCKS);
    for (unsigned n_blocks = 1; n_blocks <= 32; n_blocks *= 8)
        check_gather(&k, 16, 512 * KIB - 48, n_blocks);
    for (uint32_t n = KERNEL_IDS_NEAR - 1; n <= KERNEL_IDS_NEAR + 2; n++)
        check_gather(&k, 0, n * k.item_bytes, 1);
    kernels_deinit(&k);
}
END_TEST

/* A status that is set keeps every byte as it was, and is passed on. */
START_TEST(test_status)
{
    struct kernel_args args;
    struct kernels k;

    kernels_init(&k, 3);
    make_layout(&k, 5, 256);
    args = random_window(&k);
    args.window_bytes = k.item_bytes;
    args.status = (uintptr_t)&k.words[0];
    args.error = (uintptr_t)&k.words[1];
    k.words[0] = 0;
    k.words[1] = 77;
    check_window(&k, &args, 8);
    ck_assert_uint_eq(k.words[1], 77);

    k.words[0] = 5;
    memset(k.slot_model, 0xab, SLOT_BYTES);
    OK(k.rig.cu.MemsetD8(k.slot, 0xab, SLOT_BYTES));
    launch(&k, k.scatter, &args, 8);
    launch(&k, k.gather, &args, 8);
    check_slot(&k);
    check_hbm(&k);
    ck_assert_uint_eq(k.words[1], 5);
    if (k.rig.control)
        ck_assert_uint_eq(k.rig.role->n_skipped, 2);
    args.error = 0;
    launch(&k, k.gather, &args, 8);
    kernels_deinit(&k);
}
END_TEST

/* An address that is nobody's: the context is lost, and says so from then on. */
START_TEST(test_illegal_address)
{
    struct kernel_args args;
    struct kernels k;
    void *params[] = {&args};

    kernels_init(&k, 4);
    make_layout(&k, 2, 64);
    args = random_window(&k);
    args.window_bytes = k.item_bytes;
    k.ids[0] = 1000000;
    OK(k.rig.cu.LaunchKernel(k.gather, 8, 1, 1, KERNEL_THREADS, 1, 1, 0, NULL, params, NULL));
    IS(k.rig.cu.CtxSynchronize(), NV_ERROR_ILLEGAL_ADDRESS);
    IS(k.rig.cu.MemFree(k.slot), NV_ERROR_ILLEGAL_ADDRESS);
    kernels_forget(&k);
}
END_TEST

/* A table that does not tile the object would move bytes at random: the fake driver is stricter than the real one. */
START_TEST(test_bad_layout)
{
    struct kernel_args args;
    struct kernels k;
    void *params[] = {&args};

    kernels_init(&k, 5);
    make_layout(&k, 3, 64);
    args = random_window(&k);
    args.item_bytes += KERNEL_VECTOR_BYTES;
    OK(k.rig.cu.LaunchKernel(k.gather, 8, 1, 1, KERNEL_THREADS, 1, 1, 0, NULL, params, NULL));
    IS(k.rig.cu.CtxSynchronize(), NV_ERROR_LAUNCH_FAILED);
    kernels_forget(&k);
}
END_TEST

START_TEST(test_modules)
{
    struct CUfunc_st *function;
    struct CUmod_st *module;
    struct cuda_rig rig;

    setenv("FAKE_CUDA_DRIVER_VERSION", "12000", 1);
    cuda_rig_init(&rig);
    IS(rig.cu.ModuleLoadDataEx(&module, "no module", 0, NULL, NULL), NV_ERROR_INVALID_IMAGE);
    IS(rig.cu.ModuleLoadDataEx(&module, ".version 6.3\n.target sm_75\n", 0, NULL, NULL), NV_ERROR_INVALID_PTX);
    IS(rig.cu.ModuleLoadDataEx(&module, ".version 9.0\n", 0, NULL, NULL), NV_ERROR_UNSUPPORTED_PTX_VERSION);
    OK(rig.cu.ModuleLoadDataEx(&module, kernels_ptx, 0, NULL, NULL)); /* on the oldest driver, too */
    IS(rig.cu.ModuleGetFunction(&function, module, "spw_other"), NV_ERROR_NOT_FOUND);
    OK(rig.cu.ModuleUnload(module));
    IS(rig.cu.ModuleGetFunction(&function, module, KERNEL_GATHER), NV_ERROR_INVALID_HANDLE);
    cuda_rig_deinit(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gpu_kernels");
    TCase *tests = tcase_create("kernels");

    tcase_add_loop_test(tests, test_windows, 0, 9);
    tcase_add_test(tests, test_inline_ids);
    tcase_add_test(tests, test_many_ids);
    tcase_add_test(tests, test_status);
    tcase_set_timeout(tests, 300); /* under compute-sanitizer */
    if (getenv("SPILLWAY_TEST_GPU")) {
        printf("SKIP: what a real driver does with broken arguments is not ours to test\n");
    } else {
        tcase_add_test(tests, test_illegal_address);
        tcase_add_test(tests, test_bad_layout);
        tcase_add_test(tests, test_modules);
    }
    suite_add_tcase(suite, tests);
    return cuda_rig_main(suite);
}
