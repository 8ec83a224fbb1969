/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Work for a GPU whose results nobody wants: products of bf16 matrices, and reading memory. Two kernels of our own, so that
 * something is measured where no cuBLAS is; and cuBLAS, where one is. tests/fake/ knows the two by these names.
 */
#pragma once

#ifndef __cplusplus
#include <assert.h>
#endif
#include <stddef.h>
#include <stdint.h>

#define LOAD_MEMORY "load_memory"
#define LOAD_PRODUCTS "load_products"
#define LOAD_BLOCKS 512
#define LOAD_THREADS 256
/* Of memory that is read: each thread has four vectors of 16 bytes under way. */
#define LOAD_BYTES_UNIT (UINT64_C(4) * 16 * LOAD_BLOCKS * LOAD_THREADS)

/* One launch, by value. */
struct load_args {
    uint64_t memory, size_bytes; /* read once */
    uint64_t sink;               /* 16 bytes, for a result that does not come */
    uint32_t rounds;             /* of products: each warp has 8 of 16 x 8 x 16 in one */
    uint32_t reserved;
};
static_assert(sizeof(struct load_args) == 32, "read by the device");

struct gpu_bench;
struct CUstream_st;

struct gpu_load {
    struct gpu_bench *bench;
    struct CUfunc_st *read, *products;
    uint64_t memory, size_bytes, sink;
    struct gpu_cublas *cublas; /* NULL: there is none */
};

/* Memory of that size, in which sizes of cuBLAS's matrices have room. -ENOTSUP: the GPU has no bf16; both are said. */
int gpu_load_open(struct gpu_bench *b, uint64_t size_bytes, struct gpu_load *ret_load);
/* Reads size_bytes of the memory, the i-th such part of it. */
int gpu_load_read(const struct gpu_load *load, uint64_t size_bytes, unsigned i, struct CUstream_st *stream);
int gpu_load_multiply(const struct gpu_load *load, uint32_t rounds, struct CUstream_st *stream);

/* ── gpu_cublas.c ───────────────────────────────────────────────────────────────────────────────────────────────── */

/* -ENOENT: no libcublas.so.12 or .13, after it has said so. Lives as long as the process. */
int gpu_cublas_open(struct CUstream_st *stream, struct gpu_cublas **ret_cublas);
/* C = A * B in bf16, A of m x k, B of k x n, all three in memory at these addresses. */
int gpu_cublas_multiply(struct gpu_cublas *cublas, uint64_t a, uint64_t b, uint64_t c, int m, int n, int k);
