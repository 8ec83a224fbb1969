/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libspillway: blocks between a GPU's memory and the store.
 *
 *     spw_gpu *gpu;  spw_gpu_layout *kv;  spw_gpu_job *job;
 *     spw_gpu_attach(space, NULL, &gpu);                                 the current context's GPU
 *     spw_gpu_layout_new(gpu, space, pieces, n_pieces, n_blocks, &kv);   where a block's pieces lie, over all layers
 *     spw_spill(kv, keys, block_ids, n, stream, 0, 1000, status, &job);  after what is in `stream` now
 *     spw_gpu_job_wait(job, SPW_GPU_SOURCE_FREE, 1000);                  the blocks may be used again
 *     spw_gpu_job_wait(job, SPW_GPU_DONE, 1000);                         status[i]: stored, or why not
 *     spw_gpu_activate(gpu, space, weights, n, stream, 60000, &job);     ranges of objects: tensors, whole weights
 *     spw_gpu_alloc(gpu, bytes, &memory);                                where these go without staging
 *
 * A block of a paged cache is not one range of memory: it is a piece of each layer's tensor. A layout says where the
 * pieces are; in the store a block is one object, its pieces one behind the other. A kernel in this process gathers the
 * blocks' pieces into a slot of staging memory on the GPU, from where the daemon's helper copies them to the store's
 * memory, which it alone has pinned; a fetch goes the other way. So nothing is pinned here, and pieces of any size move at
 * the speed of the link.
 *
 * Streams. spw_spill() and spw_fetch() are ordered after what the caller's stream has at the call: a spill reads the
 * blocks, and a fetch writes them, when that is done. They run on streams of the library's own. What comes after is ordered
 * by the caller: spw_gpu_job_join() makes a stream wait for a job; no stream of the caller's ever waits for a disk or for
 * room, only for copies that are on their way over the link. While a stream is being captured these calls are -EPERM.
 *
 * Ends. A job has two: the source is free (of a spill: the blocks have been read; of a fetch: at its end), and it is done.
 * Each key has a status. If the daemon, its helper or the GPU's driver fails, jobs end with an error within a second of
 * their deadline, streams go on, and blocks of a fetch that failed have unknown contents. After that the attachment is
 * made anew by the next call.
 *
 * Restarts. When the daemon is restarted and its sessions go on (spillway.h), so do attachments: jobs wait for the next
 * daemon and its helper, and what was on its way begins again. Only a job whose end was told before it was there, because
 * a stream was made to wait for it (spw_gpu_job_join()) or its source was said to be free, ends with -EPIPE if it was
 * not complete, and so does one that an allocation's own lane had begun.
 *
 * Contexts. Attaching uses the calling thread's current context, which should be the device's primary one (as PyTorch's
 * and CUDA's runtime are); it must live until spw_gpu_detach(). Other calls need no current context, and leave the
 * thread's as they found it. Threads, forks and errors: as in spillway.h. Everywhere: -ENOSYS: no driver (libcuda.so.1) on
 * this machine, or one that is too old: spw_error_text() says which.
 */
#pragma once

#include "spillway.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

struct CUstream_st; /* a CUstream or a cudaStream_t points to it */

typedef struct spw_gpu spw_gpu;
typedef struct spw_gpu_layout spw_gpu_layout;
typedef struct spw_gpu_job spw_gpu_job;
typedef struct spw_gpu_memory spw_gpu_memory;

struct spw_gpu_options {
    const uint8_t *uuid; /* SPW_UUID_BYTES; NULL: that of the current context's device */
    uint64_t slot_bytes; /* of staging memory; 0: the daemon's default */
    uint32_t slots;      /* of each direction; 0: the daemon's default */
    /* Of the gather and scatter kernels; 0: 8, which move 130 GB/s and more, and 4 for spills of more than a few MiB, whose rest
     * of the GPU is others'. */
    uint32_t thread_blocks;
    uint32_t flags; /* SPW_GPU_MAP_ONLY */
};

enum {
    SPW_GPU_MAP_ONLY =
        1 << 0, /* for spw_gpu_map() alone: the daemon is not asked and needs no GPU; jobs are -ENOTSUP */
};

/*
 * For spaces of the same pool and engine as this one (others are -EXDEV, as with queues). -ENODEV: no such GPU here, or the
 * daemon cannot use it: spw_error_text() says why; -ENOSPC: SPW_LIMIT_POOL_GPU, the pool's gpu budget is less than this
 * staging memory, or used up by others'; -ENOMEM: the GPU has no memory left; -EAGAIN: the GPU's helper is being started (of
 * the first client that names a GPU: try again, for some seconds); -EINVAL: no context.
 */
int spw_gpu_attach(spw_space *space, const struct spw_gpu_options *options, spw_gpu **ret_gpu);
/* Cancels its jobs, waits for them, frees its layouts, jobs and memory. Before spw_close(). NULL is fine. */
void spw_gpu_detach(spw_gpu *gpu);

/*
 * Where a second process may not use the GPU (exclusive mode), or a framework's own copies and kernels are to work on the
 * pool's bytes at the speed of the link: *ret_address is where this GPU finds the bytes of the view (of spw_reserve(),
 * spw_acquire() and their like, of any space of the session), valid as long as its lease. data may then be given to the
 * driver's copies as well, which take it for pinned memory. A view for reading in a pool that is shared is for reading on
 * the GPU too; whatever else writes there breaks the rule that blocks do not change.
 *
 * This pins in this process, and only on request: the first view of a window (1 GiB of the pool, or less) registers all of it
 * with the driver, which takes tens of milliseconds, and holds up this process's other copies meanwhile. It stays so for
 * later views, of all attachments of the session, until the last of those that mapped something unmaps or detaches, or the
 * daemon uses the number of a chunk that it gave back to the machine for another. Until then the machine does not get back
 * pages that this process has pinned, even if the pool became smaller. -EINVAL: the view has no lease; -EEXIST: the
 * application has registered it itself; -ENOTSUP: the driver cannot register memory that is for reading only.
 */
int spw_gpu_map(spw_gpu *gpu, const struct spw_view *view, uint64_t *ret_address);
/* Addresses that this attachment was given are not valid any more: nothing is under way that uses them. */
void spw_gpu_unmap(spw_gpu *gpu);
/* What the session has registered now. */
uint64_t spw_gpu_mapped_bytes(spw_gpu *gpu);

/* Piece p of block b is `bytes` at base + b * stride_bytes. All three are multiples of 16. */
struct spw_gpu_piece {
    uint64_t base; /* CUdeviceptr, of block 0 */
    uint64_t stride_bytes;
    uint64_t bytes;
};

/*
 * For blocks 0 to n_blocks - 1 of one cache. The pieces' sizes add up to the space's item_bytes, which is at most one piece
 * of the space's (spw_space_piece_bytes(); -EMSGSIZE above); the table is copied. -EINVAL: alignment, a sum that is not
 * item_bytes, pieces that overlap (also of different blocks; pieces of different strides must not lie within each other's
 * range), or memory that is not of this GPU from the first byte of block 0 to the last of the last block;
 * spw_error_text() says which piece.
 */
int spw_gpu_layout_new(spw_gpu *gpu, spw_space *space, const struct spw_gpu_piece *pieces, size_t n_pieces,
                       uint32_t n_blocks, spw_gpu_layout **ret_layout);
/* No job uses it any more. NULL is fine. */
void spw_gpu_layout_free(spw_gpu_layout *layout);

/*
 * Starts a job. keys and block_ids are copied; ret_status (one an element; may be NULL) is the job's until it is done; ids are below
 * n_blocks, -EINVAL otherwise; a fetch that names one twice leaves it undefined. flags: SPW_CHAIN; fetch: SPW_NO_WAIT, only what is in
 * memory. timeout_ms: until it is done. Status of a key: spill: 0, -EEXIST, -EINPROGRESS, -ENOSPC, as spw_put(); fetch: 0,
 * -ENOENT, -EAGAIN, -EBADMSG, as spw_get(); both: -EIO, -ETIMEDOUT, -ECANCELED, -EPIPE (the transfer failed).
 */
int spw_spill(spw_gpu_layout *layout, const struct spw_key *keys, const uint32_t *block_ids, size_t n,
              struct CUstream_st *stream, unsigned flags, uint32_t timeout_ms, int32_t *ret_status,
              spw_gpu_job **ret_job);
int spw_fetch(spw_gpu_layout *layout, const struct spw_key *keys, const uint32_t *block_ids, size_t n,
              struct CUstream_st *stream, unsigned flags, uint32_t timeout_ms, int32_t *ret_status,
              spw_gpu_job **ret_job);

/* Bytes of an object, and where they are, or are to be, in this GPU's memory. address and bytes are multiples of 16. */
struct spw_gpu_range {
    struct spw_key key;
    uint64_t offset_bytes; /* in the object */
    uint64_t bytes;
    uint64_t address; /* CUdeviceptr */
};

/*
 * Ranges of objects of any size, of any number of pieces: tensors, some of a block's heads or tokens, whole weights. Ordered with
 * streams, waited for and cancelled as other jobs; `ranges` is copied, ret_status has one for each. Memory is checked as for
 * layouts (-EINVAL), the space as there (-EXDEV). Of ranges that overlap the order is not defined. Small ranges belong into the
 * list in the order of their offsets: those of one object that follow each other within 32 KiB (put: at once) cross the link
 * as one, with what lies between them; each other one takes a lease and a copy of its own.
 *
 * put: into tensors (spw_tensor_open), as spw_put_range(): others see it once its status is 0. -EROFS: not a tensor.
 * get: from tensors and blocks, as spw_get_range(). flags: SPW_NO_WAIT. Status: 0, or as spw_acquire(); -ERANGE or -EINVAL: past
 * the object's end.
 */
int spw_gpu_put_ranges(spw_gpu *gpu, spw_space *space, const struct spw_gpu_range *ranges, size_t n,
                       struct CUstream_st *stream, uint32_t timeout_ms, int32_t *ret_status, spw_gpu_job **ret_job);
int spw_gpu_get_ranges(spw_gpu *gpu, spw_space *space, const struct spw_gpu_range *ranges, size_t n,
                       struct CUstream_st *stream, unsigned flags, uint32_t timeout_ms, int32_t *ret_status,
                       spw_gpu_job **ret_job);
/*
 * A set of them as one, such as a model's weights: begins only if all objects are there and large enough (-ENOENT, -ERANGE:
 * nothing was touched), and ends with the first error, of which what lies at the addresses is unknown then.
 * spw_gpu_job_progress() tells how far it is.
 */
int spw_gpu_activate(spw_gpu *gpu, spw_space *space, const struct spw_gpu_range *ranges, size_t n,
                     struct CUstream_st *stream, uint32_t timeout_ms, spw_gpu_job **ret_job);

/*
 * Memory of the GPU that the daemon hands out, zeroed, for whatever the caller keeps there: weights, optimizer state, a whole
 * cache. The daemon's helper has it too; so ranges of it go straight between there and the pool's memory, without staging
 * memory, kernels, or copies on the GPU. A job of ranges does that if all of them lie in one such allocation, in stretches of
 * 256 KiB or more on average (ranges are one stretch that follow each other in the list and in memory); any other job uses
 * staging memory as ever, also for bytes that lie here. What is promised is the same.
 *
 * Its size, rounded up to 2 MiB, counts against the pool's gpu budget until it is freed. A session has up to 16 lanes at an
 * engine, of which the attachment is one and each allocation another: better few and large ones.
 *
 * If the daemon is restarted, later jobs on this memory use staging memory. If the helper ends, or a job has to be given up because they are silent, the memory stays mapped, and what is
 * in it may be read and written by the caller as before (after a job that was given up, a copy of it may still arrive); but
 * jobs that would take its lane are -EPIPE from then on. To have one again: allocate anew, copy, and free this.
 *
 * -ENOSPC: SPW_LIMIT_POOL_GPU, SPW_LIMIT_GPU_LANES; -ENOMEM: the GPU has no memory left; -EAGAIN: its helper is being started;
 * -ENOTSUP: SPW_GPU_MAP_ONLY. It may take 100 ms and more for many GiB; jobs go on meanwhile.
 */
int spw_gpu_alloc(spw_gpu *gpu, uint64_t bytes, spw_gpu_memory **ret_memory);
/* CUdeviceptr of its first byte, a multiple of 2 MiB. */
uint64_t spw_gpu_memory_address(const spw_gpu_memory *memory);
/* No job uses it any more, nor anything else that is under way on the GPU. NULL is fine. */
void spw_gpu_memory_free(spw_gpu_memory *memory);

enum spw_gpu_end {
    SPW_GPU_SOURCE_FREE = 1, /* what it reads may be overwritten: a spill's blocks, before they are stored */
    SPW_GPU_DONE = 2,        /* all of it, and every status is there */
};

/* Waits for that end. 0, the errno that the job as a whole ended with, or -ETIMEDOUT (it goes on). */
int spw_gpu_job_wait(spw_gpu_job *job, enum spw_gpu_end end, uint32_t timeout_ms);
/* -EINPROGRESS: it has not come to that end yet; else as above. Makes no system call if nothing is new. */
int spw_gpu_job_status(spw_gpu_job *job, enum spw_gpu_end end);
/*
 * What is in `stream` from now on waits until the job's blocks are there (fetch) or have been read (spill). Blocks the
 * caller until all of the job's copies are on their way, as for a fetch they must be in memory first: -EAGAIN with
 * timeout_ms 0 if they are not yet, -ETIMEDOUT. Then statuses are known but for failures of the link.
 */
int spw_gpu_job_join(spw_gpu_job *job, struct CUstream_st *stream, uint32_t timeout_ms);
/* Bytes of it that have arrived; *ret_total_bytes (may be NULL): of how many. */
uint64_t spw_gpu_job_progress(spw_gpu_job *job, uint64_t *ret_total_bytes);
/* Keys, or ranges, with status 0, once it is done. */
uint64_t spw_gpu_job_value(const spw_gpu_job *job);
/* A request: what is on its way over the link still arrives; the job has its one end. */
int spw_gpu_job_cancel(spw_gpu_job *job);
/* Only after it is done; NULL is fine. */
void spw_gpu_job_free(spw_gpu_job *job);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
