/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuBLAS by dlopen, as much of it as a product of matrices needs, declared by ourselves: the project builds where no
 * cublas_v2.h is. One thread.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "client/bench/gpu.h"
#include "client/bench/gpu_load.h"
#include "include/base/cleanup.h"

/* NVIDIA's CUDA_R_16BF, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT and CUBLAS_OP_N. */
enum { TYPE_BF16 = 14, COMPUTE_FLOAT = 68, ALGORITHM_ANY = -1, AS_IT_IS = 0 };

struct gpu_cublas {
    void *handle;
    int (*create)(void **ret_handle);
    int (*set_stream)(void *handle, struct CUstream_st *stream);
    int (*gemm)(void *handle, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha, const void *a,
                int a_type, int a_lead, const void *b, int b_type, int b_lead, const void *beta, void *c, int c_type,
                int c_lead, int compute_type, int algorithm);
};

static void *library_open(void)
{
    static const char *const names[] = {"libcublas.so.13", "libcublas.so.12"};

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);

        if (library)
            return library;
    }
    return NULL;
}

int gpu_cublas_open(struct CUstream_st *stream, struct gpu_cublas **ret_cublas)
{
    cleanup_free struct gpu_cublas *cublas = calloc(1, sizeof(*cublas));
    void *library = library_open();

    if (!cublas)
        return -ENOMEM;
    if (!library) {
        fprintf(stderr, "SKIP: gpu: no libcublas.so.12 or .13: none of its products\n");
        return -ENOENT;
    }
    /* POSIX's way from an object pointer to a function: a cast is no part of C. */
    *(void **)&cublas->create = dlsym(library, "cublasCreate_v2");
    *(void **)&cublas->set_stream = dlsym(library, "cublasSetStream_v2");
    *(void **)&cublas->gemm = dlsym(library, "cublasGemmEx");
    if (!cublas->create || !cublas->set_stream || !cublas->gemm || cublas->create(&cublas->handle) != 0 ||
        cublas->set_stream(cublas->handle, stream) != 0) {
        fprintf(stderr, "SKIP: gpu: cuBLAS does not start: none of its products\n");
        return -ENOENT;
    }
    *ret_cublas = steal_ptr(cublas);
    return 0;
}

int gpu_cublas_multiply(struct gpu_cublas *cublas, uint64_t a, uint64_t b, uint64_t c, int m, int n, int k)
{
    const float one = 1, zero = 0;
    int status = cublas->gemm(cublas->handle, AS_IT_IS, AS_IT_IS, m, n, k, &one, (const void *)(uintptr_t)a, TYPE_BF16,
                              m, (const void *)(uintptr_t)b, TYPE_BF16, k, &zero, (void *)(uintptr_t)c, TYPE_BF16, m,
                              COMPUTE_FLOAT, ALGORITHM_ANY);

    if (status == 0)
        return 0;
    fprintf(stderr, "spillbench: cublasGemmEx: status %d\n", status);
    return -EIO;
}
