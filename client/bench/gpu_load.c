/* SPDX-License-Identifier: Apache-2.0 */
/* Loads the two kernels of gpu_load.ptx and launches them. One thread. */
#include "client/bench/gpu_load.h"

#include <errno.h>
#include <stdio.h>

#include "client/bench/gpu.h"

/* The machine code, as it is in the file beside this one. */
extern const char gpu_load_ptx[];
__asm__(".pushsection .rodata\n"
        ".global gpu_load_ptx\n"
        ".hidden gpu_load_ptx\n"
        ".type gpu_load_ptx, %object\n"
        "gpu_load_ptx:\n"
        ".incbin \"client/bench/gpu_load.ptx\"\n"
        ".byte 0\n"
        ".size gpu_load_ptx, . - gpu_load_ptx\n"
        ".popsection\n");

static int launch(const struct gpu_load *load, struct CUfunc_st *function, struct load_args args,
                  struct CUstream_st *stream)
{
    void *params[] = {&args};

    return CU(load->bench, LaunchKernel(function, LOAD_BLOCKS, 1, 1, LOAD_THREADS, 1, 1, 0, stream, params, NULL));
}

int gpu_load_open(struct gpu_bench *b, uint64_t size_bytes, struct gpu_load *ret_load)
{
    struct gpu_load load = {.bench = b, .size_bytes = size_bytes};
    struct CUmod_st *module;
    int result = b->cu->ModuleLoadDataEx(&module, gpu_load_ptx, 0, NULL, NULL);

    assert(size_bytes % LOAD_BYTES_UNIT == 0);
    if (cuda_errno(result) == -ENOTSUP) {
        fprintf(stderr, "SKIP: gpu: products of bf16: %s\n", cuda_error_name(result));
        return -ENOTSUP;
    }
    int r = result == NV_SUCCESS ? 0 : gpu_driver_say("cuModuleLoadDataEx", result);
    if (r == 0)
        r = CU(b, ModuleGetFunction(&load.read, module, LOAD_MEMORY));
    if (r == 0)
        r = CU(b, ModuleGetFunction(&load.products, module, LOAD_PRODUCTS));
    if (r == 0)
        r = CU(b, MemAlloc(&load.memory, size_bytes));
    if (r == 0)
        r = CU(b, MemAlloc(&load.sink, SECTOR_BYTES));
    if (r == 0)
        r = CU(b, MemsetD8(load.memory, 0, size_bytes));
    if (r == 0)
        *ret_load = load;
    return r;
}

int gpu_load_read(const struct gpu_load *load, uint64_t size_bytes, unsigned i, struct CUstream_st *stream)
{
    uint64_t n = load->size_bytes / size_bytes;

    return launch(
        load, load->read,
        (struct load_args){.memory = load->memory + i % n * size_bytes, .size_bytes = size_bytes, .sink = load->sink},
        stream);
}

int gpu_load_multiply(const struct gpu_load *load, uint32_t rounds, struct CUstream_st *stream)
{
    return launch(load, load->products, (struct load_args){.sink = load->sink, .rounds = rounds}, stream);
}
