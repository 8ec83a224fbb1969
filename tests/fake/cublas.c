/* SPDX-License-Identifier: Apache-2.0 */
/*
 * As much of cuBLAS as spillbench calls; found by the name libcublas.so.12 beside this library. Nothing is multiplied: it is
 * only seen that the matrices are where memory is, when the stream comes to it.
 */
#include "tests/fake/fake.h"

#define INVALID_VALUE 7
#define BF16_BYTES 2
#define EXPORT __attribute__((visibility("default")))

/* What the caller must mean: bf16, not transposed, sums in float, any algorithm. */
enum { AS_IT_IS = 0, TYPE_BF16 = 14, COMPUTE_FLOAT = 68, ALGORITHM_ANY = -1 };

struct matrices {
    uint64_t memory[3], size_bytes[3];
};

static struct CUstream_st *stream;

EXPORT int cublasCreate_v2(void **ret_handle);
EXPORT int cublasSetStream_v2(void *handle, struct CUstream_st *its_stream);
EXPORT int cublasGemmEx(void *handle, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha,
                        const void *a, int a_type, int a_lead, const void *b, int b_type, int b_lead, const void *beta,
                        void *c, int c_type, int c_lead, int compute_type, int algorithm);

int cublasCreate_v2(void **ret_handle)
{
    ENTER("cublasCreate", FAKE_CONTEXT);
    *ret_handle = &stream;
    return 0;
}

int cublasSetStream_v2(void *handle, struct CUstream_st *its_stream)
{
    if (handle != (void *)&stream)
        return INVALID_VALUE;
    stream = its_stream;
    return 0;
}

static void run_gemm(struct fake_op *op)
{
    struct matrices matrices;

    memcpy(&matrices, op->params, sizeof(matrices));
    for (size_t i = 0; i < ARRAY_LEN(matrices.memory); i++) {
        struct fake_region *region = fake_region_get(matrices.memory[i], matrices.size_bytes[i], i == 2);

        if (!region)
            fake_lose(NV_ERROR_ILLEGAL_ADDRESS);
        fake_region_put(region);
    }
}

int cublasGemmEx(void *handle, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha, const void *a,
                 int a_type, int a_lead, const void *b, int b_type, int b_lead, const void *beta, void *c, int c_type,
                 int c_lead, int compute_type, int algorithm)
{
    struct fake_op op = {.run = run_gemm};
    struct matrices matrices = {{(uintptr_t)a, (uintptr_t)b, (uintptr_t)c},
                                {(uint64_t)a_lead * (uint64_t)k * BF16_BYTES,
                                 (uint64_t)b_lead * (uint64_t)n * BF16_BYTES,
                                 (uint64_t)c_lead * (uint64_t)n * BF16_BYTES}};

    ENTER("cublasGemmEx", FAKE_CONTEXT);
    if (handle != (void *)&stream || m <= 0 || n <= 0 || k <= 0 || a_lead < m || b_lead < k || c_lead < m || !alpha ||
        !beta || transpose_a != AS_IT_IS || transpose_b != AS_IT_IS || a_type != TYPE_BF16 || b_type != TYPE_BF16 ||
        c_type != TYPE_BF16 || compute_type != COMPUTE_FLOAT || algorithm != ALGORITHM_ANY)
        return INVALID_VALUE;
    static_assert(sizeof(op.params) >= sizeof(matrices), "room for the arguments");
    memcpy(op.params, &matrices, sizeof(matrices));
    return fake_submit(stream, &op);
}
