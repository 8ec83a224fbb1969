/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the two kernels are told: shared by kernels.cu, by the client that launches them, and by the fake driver of the
 * tests. The machine code is kernels.ptx, part of the library.
 *
 * An object of item_bytes is cut into pieces that lie in different places of HBM (a block of every layer's keys and
 * values); packed, they follow each other. The packed objects of a list make a stream of bytes, and a staging slot holds a
 * window of that stream, which may begin and end anywhere in an object. spw_gather fills a slot with a window's bytes,
 * spw_scatter brings them back to where they belong.
 */
#pragma once

#ifndef __cplusplus
#include <assert.h>
#endif
#include <stddef.h>
#include <stdint.h>

#define KERNEL_GATHER "spw_gather"
#define KERNEL_SCATTER "spw_scatter"

/* Both want this many threads in a block; the number of blocks is free, see kernels.cu. */
#define KERNEL_THREADS 512
/* All addresses, offsets, sizes and strides are multiples of it. */
#define KERNEL_VECTOR_BYTES 16
/* A layout of more pieces works, but is searched in device memory. */
#define KERNEL_PIECES_NEAR 1024
/* Block ids that a thread block fetches at a time. */
#define KERNEL_IDS_NEAR 1024
/* Block ids that come with the arguments. */
#define KERNEL_IDS_INLINE 16

/* One piece of every object: of block id it lies at base + id * stride, and at offset in the packed object. */
struct kernel_piece {
    uint64_t base;
    uint64_t stride_bytes;
    uint32_t offset_bytes;
    uint32_t bytes; /* not 0 */
};

/*
 * One launch, by value. The pieces are sorted by offset and tile the object: none overlaps the next, none is missing.
 * first_bytes < item_bytes, and first_bytes + window_bytes < 4 GiB. Nobody checks that on the device.
 */
struct kernel_args {
    uint64_t pieces; /* struct kernel_piece[n_pieces] in device memory */
    uint32_t n_pieces;
    uint32_t item_bytes;
    uint64_t ids;         /* uint32_t[]: ids[0] is the object that holds the window's first byte; or 0: inline_ids */
    uint32_t first_bytes; /* offset of that byte in it */
    uint32_t window_bytes;
    uint64_t slot;   /* where the window lies */
    uint64_t status; /* uint64_t, or 0 for none: if it is not zero, nothing is copied */
    uint64_t error;  /* uint64_t, or 0 for none: where it is stored then */
    /* uint64_t, or 0 for none: where done_value is stored when no thread block reads or writes any more. */
    uint64_t done;
    uint64_t done_value;
    uint64_t count; /* with `done`: uint32_t on the device, of no other launch at the time; 0 before and after */
    uint32_t inline_ids[KERNEL_IDS_INLINE];
};

static_assert(sizeof(struct kernel_piece) == 24, "read by the device");
static_assert(offsetof(struct kernel_piece, stride_bytes) == 8, "read by the device");
static_assert(offsetof(struct kernel_piece, offset_bytes) == 16, "read by the device");
static_assert(offsetof(struct kernel_piece, bytes) == 20, "read by the device");
static_assert(sizeof(struct kernel_args) == 144, "read by the device");
static_assert(offsetof(struct kernel_args, n_pieces) == 8, "read by the device");
static_assert(offsetof(struct kernel_args, item_bytes) == 12, "read by the device");
static_assert(offsetof(struct kernel_args, ids) == 16, "read by the device");
static_assert(offsetof(struct kernel_args, first_bytes) == 24, "read by the device");
static_assert(offsetof(struct kernel_args, window_bytes) == 28, "read by the device");
static_assert(offsetof(struct kernel_args, slot) == 32, "read by the device");
static_assert(offsetof(struct kernel_args, status) == 40, "read by the device");
static_assert(offsetof(struct kernel_args, error) == 48, "read by the device");
static_assert(offsetof(struct kernel_args, done) == 56, "read by the device");
static_assert(offsetof(struct kernel_args, done_value) == 64, "read by the device");
static_assert(offsetof(struct kernel_args, count) == 72, "read by the device");
static_assert(offsetof(struct kernel_args, inline_ids) == 80, "read by the device");

#ifndef __CUDACC__
/* The PTX text, for cuModuleLoadDataEx; ends with a NUL. */
extern const char kernels_ptx[];
#endif
