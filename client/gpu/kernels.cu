/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gathers scattered objects into a staging slot, and scatters them back: kernels.h says what of what.
 *
 * A window is cut into as many contiguous parts as there are thread blocks. Ids often lie in host memory, two microseconds
 * away: a thread block reads those of its part in bulk, once for KERNEL_IDS_NEAR objects, and nobody waits for one id.
 * Then a thread moves vectors of 16 bytes, neighbours beside it, VECTORS of them in flight: their addresses are found
 * first, in shared memory, then all are loaded, then all are stored. The link takes 3.4 vectors a nanosecond; eight thread
 * blocks of 512 threads have 256 KiB in flight, against some 50 KiB that the latency of HBM asks for. So few blocks are
 * enough, and the rest of the chip is the caller's.
 *
 * Offsets are counted in vectors, in 32 bits: a window ends before 4 GiB. Only addresses have 64.
 *
 * Caches: what is read is read once, and what is scattered is not needed soon, so both are marked to be evicted first. A
 * gathered slot is stored as usual: a copy engine reads it next, from L2 if it is still there.
 *
 * The file is C as well: the tests' fake driver runs it on the CPU, where GLOBAL finds the memory behind a device address.
 */
#include "client/gpu/kernels.h"

#ifdef __CUDACC__
#define GLOBAL(type, address) ((type *)(address))
#define KERNEL extern "C" __global__ void __launch_bounds__(KERNEL_THREADS)
#define INLINE static __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#endif

#define VECTORS 4

/* The last piece that begins at or before the offset. */
INLINE uint32_t find_piece(const struct kernel_piece *pieces, uint32_t n, uint32_t offset_bytes)
{
    uint32_t low = 0;

    while (n > 1) {
        uint32_t half = n / 2;

        if (pieces[low + half].offset_bytes <= offset_bytes)
            low += half;
        n -= half;
    }
    return low;
}

/* Where vector v of the window lies in HBM. ids[0] is the object first_object of the window. */
INLINE uint64_t locate(const struct kernel_args *a, const struct kernel_piece *pieces, const uint32_t *ids,
                       uint32_t first_object, uint32_t v)
{
    uint32_t item = a->item_bytes / KERNEL_VECTOR_BYTES;
    uint32_t position = a->first_bytes / KERNEL_VECTOR_BYTES + v;
    uint32_t object = position / item;
    uint32_t offset_bytes = (position - object * item) * KERNEL_VECTOR_BYTES;
    const struct kernel_piece *piece = &pieces[find_piece(pieces, a->n_pieces, offset_bytes)];

    return piece->base + ids[object - first_object] * piece->stride_bytes + (offset_bytes - piece->offset_bytes);
}

/* Vectors [from, to) of the window; the ids of their objects are at hand. */
INLINE void move_vectors(const struct kernel_args *a, bool gather, const struct kernel_piece *pieces,
                         const uint32_t *ids, uint32_t first_object, uint32_t from, uint32_t to)
{
    for (uint32_t v = from + threadIdx.x; v < to; v += VECTORS * blockDim.x) {
        uint64_t source[VECTORS], target[VECTORS];
        uint4 data[VECTORS];

        UNROLL
        for (uint32_t i = 0; i < VECTORS; i++) {
            uint32_t at = v + i * blockDim.x;

            if (at < to) {
                uint64_t packed = a->slot + (uint64_t)at * KERNEL_VECTOR_BYTES;
                uint64_t scattered = locate(a, pieces, ids, first_object, at);

                source[i] = gather ? scattered : packed;
                target[i] = gather ? packed : scattered;
            }
        }
        UNROLL
        for (uint32_t i = 0; i < VECTORS; i++)
            if (v + i * blockDim.x < to)
                data[i] = __ldcs(GLOBAL(const uint4, source[i]));
        UNROLL
        for (uint32_t i = 0; i < VECTORS; i++)
            if (v + i * blockDim.x < to) {
                if (gather)
                    *GLOBAL(uint4, target[i]) = data[i];
                else
                    __stcs(GLOBAL(uint4, target[i]), data[i]);
            }
    }
}

/* To shared memory: the ids of n objects of the window, from `object` on. */
INLINE void fetch_ids(const struct kernel_args *a, uint32_t *ids, uint32_t object, uint32_t n)
{
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
        ids[i] = a->ids ? *GLOBAL(const uint32_t, a->ids + (uint64_t)(object + i) * sizeof(uint32_t))
                        : a->inline_ids[object + i];
}

/* The last thread block to come here says so. What it and the others wrote is there before that, for whoever reads it: theirs
 * for it first, which costs less than for everybody. */
INLINE void finish(const struct kernel_args *a)
{
    if (!a->done)
        return;
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    __threadfence();
    /* Begins again at 0 behind the last. */
    if (atomicInc(GLOBAL(unsigned, a->count), gridDim.x - 1) != gridDim.x - 1)
        return;
    __threadfence_system();
    *GLOBAL(volatile uint64_t, a->done) = a->done_value;
}

/* Each thread block does its part of the window, as many objects at a time as it has room for their ids. What comes from
 * host memory is asked for at once. */
INLINE void move_window(const struct kernel_args *a, bool gather)
{
    __shared__ struct kernel_piece near_pieces[KERNEL_PIECES_NEAR];
    __shared__ uint32_t near_ids[KERNEL_IDS_NEAR];
    __shared__ uint64_t status;
    uint32_t first = a->first_bytes / KERNEL_VECTOR_BYTES, item = a->item_bytes / KERNEL_VECTOR_BYTES;
    uint32_t n = a->window_bytes / KERNEL_VECTOR_BYTES;
    /* Parts begin at lines of 128 bytes, counted from the slot's start; some blocks may have none. */
    uint32_t part = (n / gridDim.x + 8) & ~7u;
    uint32_t from = blockIdx.x > n / part ? n : blockIdx.x * part;
    uint32_t end = n - from > part ? from + part : n;

    /* Not volatile: of such loads the blocks of a GPU have one at a time, a microsecond each. */
    uint64_t first_status = threadIdx.x == 0 && a->status ? *GLOBAL(const uint64_t, a->status) : 0;

    if (threadIdx.x == 0)
        status = first_status;
    if (a->n_pieces <= KERNEL_PIECES_NEAR)
        for (uint32_t i = threadIdx.x; i < a->n_pieces; i += blockDim.x)
            near_pieces[i] = *GLOBAL(const struct kernel_piece, a->pieces + i * sizeof(struct kernel_piece));
    while (from < end) {
        uint32_t object = (first + from) / item, last = (first + end - 1) / item;
        uint32_t n_ids = last - object < KERNEL_IDS_NEAR ? last - object + 1 : KERNEL_IDS_NEAR;
        uint32_t to = object + n_ids > last ? end : (object + n_ids) * item - first;

        fetch_ids(a, near_ids, object, n_ids);
        __syncthreads();
        if (status != 0)
            break;
        if (a->n_pieces <= KERNEL_PIECES_NEAR)
            move_vectors(a, gather, near_pieces, near_ids, object, from, to);
        else
            move_vectors(a, gather, GLOBAL(const struct kernel_piece, a->pieces), near_ids, object, from, to);
        __syncthreads(); /* before the next ids take the place of these */
        from = to;
    }
    /* Every block that skips says so: they may have begun at different times. */
    if (first_status != 0 && a->error)
        *GLOBAL(volatile uint64_t, a->error) = first_status;
    finish(a);
}

KERNEL spw_gather(struct kernel_args args)
{
    move_window(&args, true);
}

KERNEL spw_scatter(struct kernel_args args)
{
    move_window(&args, false);
}
