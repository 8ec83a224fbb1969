/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layouts: what the caller says of its cache, checked once, so that kernels need not. Everything that a kernel touches for
 * any block id below n_blocks lies in memory of the GPU, is aligned, and belongs to one block and one piece alone.
 */
#include <string.h>

#include "client/lib/gpu.h"

static uint64_t piece_end(const struct spw_gpu_piece *piece, uint32_t n_blocks)
{
    return piece->base + (n_blocks - 1) * piece->stride_bytes + piece->bytes;
}

/* Aligned, its blocks apart from each other, and within 64 bits. */
static int piece_check(const struct spw_gpu_piece *piece, size_t i, uint32_t n_blocks)
{
    uint64_t last, end;

    if (piece->bytes == 0 || piece->base == 0 || (piece->base | piece->stride_bytes | piece->bytes) % 16 != 0)
        return client_error(-EINVAL, 0, "spw_gpu_layout_new: piece %zu: base, stride and bytes are multiples of 16", i);
    if (n_blocks > 1 && piece->stride_bytes < piece->bytes)
        return client_error(-EINVAL, 0, "spw_gpu_layout_new: piece %zu: its blocks overlap: stride %llu, bytes %llu", i,
                            (unsigned long long)piece->stride_bytes, (unsigned long long)piece->bytes);
    if (__builtin_mul_overflow((uint64_t)(n_blocks - 1), piece->stride_bytes, &last) ||
        __builtin_add_overflow(piece->base, last, &end) || __builtin_add_overflow(end, piece->bytes, &end))
        return client_error(-EINVAL, 0, "spw_gpu_layout_new: piece %zu: its last block lies beyond all memory", i);
    return 0;
}

/* Two pieces, over all blocks. */
static bool pieces_overlap(const struct spw_gpu_piece *a, const struct spw_gpu_piece *b, uint32_t n_blocks)
{
    if (piece_end(a, n_blocks) <= b->base || piece_end(b, n_blocks) <= a->base)
        return false;
    if (a->stride_bytes != b->stride_bytes || n_blocks == 1)
        return true;
    uint64_t apart = b->base > a->base ? (b->base - a->base) % a->stride_bytes
                                       : (a->stride_bytes - (a->base - b->base) % a->stride_bytes) % a->stride_bytes;
    return apart < a->bytes || a->stride_bytes - apart < b->bytes;
}

int client_gpu_memory_check(const struct spw_gpu *gpu, const char *what, size_t i, uint64_t from, uint64_t end,
                            struct gpu_memory *known)
{
    const struct cuda_driver *cuda = gpu->cuda;
    uint32_t type = 0;
    int device = -1;
    void *values[] = {&type, &device};
    int attributes[] = {NV_POINTER_ATTRIBUTE_MEMORY_TYPE, NV_POINTER_ATTRIBUTE_DEVICE_ORDINAL};

    if (from >= known->from && end <= known->end)
        return 0;
    int r = cuda->PointerGetAttributes(ARRAY_LEN(values), attributes, values, from);
    if (r != NV_SUCCESS || type != NV_MEMORYTYPE_DEVICE || device != gpu->device)
        return client_error(-EINVAL, 0, "%s %zu: its address is no memory of this GPU", what, i);
    *known = (struct gpu_memory){.from = from, .end = from};
    /* An allocation may be several mappings, one behind the other. */
    while (known->end < end) {
        uint64_t base;
        size_t bytes;

        r = cuda->MemGetAddressRange(&base, &bytes, known->end);
        if (r != NV_SUCCESS || base > known->end || base + bytes <= known->end)
            return client_error(-EINVAL, 0, "%s %zu: it ends %llu bytes beyond its memory", what, i,
                                (unsigned long long)(end - known->end));
        known->from = MIN(known->from, base);
        known->end = base + bytes;
    }
    return 0;
}

static int layout_check(struct spw_gpu *gpu, const spw_space *space, const struct spw_gpu_piece *pieces,
                        size_t n_pieces, uint32_t n_blocks)
{
    uint64_t sum = 0;

    int r = client_gpu_space_check("spw_gpu_layout_new", gpu, space);

    if (r < 0)
        return r;
    if (n_pieces == 0 || n_pieces > GPU_PIECES_MAX || n_blocks == 0)
        return client_error(-EINVAL, 0, "spw_gpu_layout_new: 1 to %d pieces, and at least one block", GPU_PIECES_MAX);
    for (size_t i = 0; i < n_pieces; i++) {
        r = piece_check(&pieces[i], i, n_blocks);
        if (r < 0)
            return r;
        sum += pieces[i].bytes;
    }
    if (space->item_bytes > space->piece_bytes)
        return client_error(
            -EMSGSIZE, SPW_LIMIT_OBJECT_BYTES,
            "spw_gpu_layout_new: blocks of %llu bytes: those of more than one piece (%u) are not supported",
            (unsigned long long)space->item_bytes, space->piece_bytes);
    if (space->item_bytes == 0 || sum != space->item_bytes)
        return client_error(-EINVAL, 0, "spw_gpu_layout_new: the pieces have %llu bytes, the space's blocks %llu",
                            (unsigned long long)sum, (unsigned long long)space->item_bytes);
    for (size_t i = 0; i < n_pieces; i++)
        for (size_t k = i + 1; k < n_pieces; k++)
            if (pieces_overlap(&pieces[i], &pieces[k], n_blocks))
                return client_error(-EINVAL, 0, "spw_gpu_layout_new: pieces %zu and %zu overlap", i, k);
    return 0;
}

/* The table that kernels read. */
static int table_upload(struct spw_gpu_layout *layout, const struct spw_gpu_piece *pieces)
{
    const struct cuda_driver *cuda = layout->gpu->cuda;
    cleanup_free struct kernel_piece *table = calloc(MAX(layout->n_pieces, 1U), sizeof(*table));
    uint32_t offset_bytes = 0;

    if (!table)
        return client_error(-ENOMEM, 0, "out of memory");
    for (uint32_t i = 0; i < layout->n_pieces; i++) {
        table[i] = (struct kernel_piece){.base = pieces[i].base,
                                         .stride_bytes = pieces[i].stride_bytes,
                                         .offset_bytes = offset_bytes,
                                         .bytes = (uint32_t)pieces[i].bytes};
        offset_bytes += table[i].bytes;
    }
    int r = cuda->MemAlloc(&layout->pieces, layout->n_pieces * sizeof(*table));
    if (r == NV_SUCCESS)
        r = cuda->MemcpyHtoD(layout->pieces, table, layout->n_pieces * sizeof(*table));
    return r == NV_SUCCESS ? 0 : client_gpu_error(r, "spw_gpu_layout_new");
}

void client_gpu_layout_destroy(struct spw_gpu_layout *layout)
{
    if (layout->pieces)
        (void)layout->gpu->cuda->MemFree(layout->pieces);
    list_unlink(&layout->link);
    free(layout);
}

int spw_gpu_layout_new(spw_gpu *gpu, spw_space *space, const struct spw_gpu_piece *pieces, size_t n_pieces,
                       uint32_t n_blocks, spw_gpu_layout **ret_layout)
{
    if (!gpu || !space || !pieces || !ret_layout)
        return client_error(-EINVAL, 0, "spw_gpu_layout_new: an argument is NULL");
    int r = client_gpu_enter("spw_gpu_layout_new", gpu);
    if (r < 0)
        return r;
    struct spw_gpu_layout *layout = NULL;
    struct gpu_memory known = {0, 0};
    r = layout_check(gpu, space, pieces, n_pieces, n_blocks);
    for (size_t i = 0; r == 0 && i < n_pieces; i++)
        r = client_gpu_memory_check(gpu, "spw_gpu_layout_new: piece", i, pieces[i].base,
                                    piece_end(&pieces[i], n_blocks), &known);
    if (r == 0)
        r = (layout = calloc(1, sizeof(*layout))) ? 0 : client_error(-ENOMEM, 0, "out of memory");
    if (r == 0) {
        *layout = (struct spw_gpu_layout){.gpu = gpu,
                                          .space = space,
                                          .n_pieces = (uint32_t)n_pieces,
                                          .n_blocks = n_blocks,
                                          .item_bytes = (uint32_t)space->item_bytes};
        list_init(&layout->link);
        list_push_tail(&gpu->layouts, &layout->link);
        r = table_upload(layout, pieces);
        if (r < 0)
            client_gpu_layout_destroy(layout);
        else
            *ret_layout = layout;
    }
    client_gpu_leave(gpu);
    return r;
}

void spw_gpu_layout_free(spw_gpu_layout *layout)
{
    if (!layout)
        return;
    spw_gpu *gpu = layout->gpu;

    if (client_gpu_enter("spw_gpu_layout_free", gpu) < 0)
        return;
    if (layout->n_jobs == 0)
        client_gpu_layout_destroy(layout);
    client_gpu_leave(gpu);
}
