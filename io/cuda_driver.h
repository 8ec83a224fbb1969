/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA driver as a table of functions, found when it is first wanted: nothing of ours links libcuda, and a machine
 * without one only lacks the GPU tier. One list gives the table, the symbols and the loader.
 */
#pragma once

#include "io/cuda_abi.h"

/*
 * X(member, symbol, version, parameters): NVIDIA's name is "cu" and the member. The symbol is the version of it that has
 * these parameters, and the number the release that brought it: what cuGetProcAddress wants to be asked for.
 */
/* clang-format off */
#define CUDA_FUNCTIONS(X) \
    X(Init, cuInit, 2000, (unsigned flags)) \
    X(DriverGetVersion, cuDriverGetVersion, 2020, (int *ret_version)) \
    X(GetErrorName, cuGetErrorName, 6000, (int result, const char **ret_text)) \
    X(GetErrorString, cuGetErrorString, 6000, (int result, const char **ret_text)) \
    X(DeviceGetCount, cuDeviceGetCount, 2000, (int *ret_n)) \
    X(DeviceGet, cuDeviceGet, 2000, (int *ret_device, int ordinal)) \
    X(DeviceGetUuid, cuDeviceGetUuid_v2, 11040, (struct cuda_uuid *ret_uuid, int device)) \
    X(DeviceGetName, cuDeviceGetName, 2000, (char *ret_name, int name_bytes, int device)) \
    X(DeviceTotalMem, cuDeviceTotalMem_v2, 3020, (size_t *ret_bytes, int device)) \
    X(DeviceGetAttribute, cuDeviceGetAttribute, 2000, (int *ret_value, int attribute, int device)) \
    X(DeviceGetPCIBusId, cuDeviceGetPCIBusId, 4010, (char *ret_text, int text_bytes, int device)) \
    X(DevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, 7000, (struct CUctx_st **ret_ctx, int device)) \
    X(DevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, 11000, (int device)) \
    X(CtxGetCurrent, cuCtxGetCurrent, 4000, (struct CUctx_st **ret_ctx)) \
    X(CtxSetCurrent, cuCtxSetCurrent, 4000, (struct CUctx_st *ctx)) \
    X(CtxPushCurrent, cuCtxPushCurrent_v2, 4000, (struct CUctx_st *ctx)) \
    X(CtxPopCurrent, cuCtxPopCurrent_v2, 4000, (struct CUctx_st **ret_ctx)) \
    X(CtxGetDevice, cuCtxGetDevice, 2000, (int *ret_device)) \
    X(CtxSynchronize, cuCtxSynchronize, 2000, (void)) \
    X(CtxGetStreamPriorityRange, cuCtxGetStreamPriorityRange, 5050, (int *ret_least, int *ret_greatest)) \
    X(MemGetInfo, cuMemGetInfo_v2, 3020, (size_t *ret_free_bytes, size_t *ret_total_bytes)) \
    X(MemAlloc, cuMemAlloc_v2, 3020, (uint64_t *ret_ptr, size_t size_bytes)) \
    X(MemFree, cuMemFree_v2, 3020, (uint64_t ptr)) \
    X(MemHostRegister, cuMemHostRegister_v2, 6050, (void *memory, size_t size_bytes, unsigned flags)) \
    X(MemHostUnregister, cuMemHostUnregister, 4000, (void *memory)) \
    X(MemHostGetDevicePointer, cuMemHostGetDevicePointer_v2, 3020, (uint64_t *ret_ptr, void *memory, unsigned flags)) \
    X(MemHostAlloc, cuMemHostAlloc, 2020, (void **ret_memory, size_t size_bytes, unsigned flags)) \
    X(MemFreeHost, cuMemFreeHost, 2000, (void *memory)) \
    X(MemCreate, cuMemCreate, 10020, \
      (uint64_t *ret_handle, size_t size_bytes, const struct cuda_allocation_prop *prop, unsigned long long flags)) \
    X(MemRelease, cuMemRelease, 10020, (uint64_t handle)) \
    X(MemAddressReserve, cuMemAddressReserve, 10020, \
      (uint64_t *ret_ptr, size_t size_bytes, size_t alignment, uint64_t wanted, unsigned long long flags)) \
    X(MemAddressFree, cuMemAddressFree, 10020, (uint64_t ptr, size_t size_bytes)) \
    X(MemMap, cuMemMap, 10020, \
      (uint64_t ptr, size_t size_bytes, size_t offset, uint64_t handle, unsigned long long flags)) \
    X(MemUnmap, cuMemUnmap, 10020, (uint64_t ptr, size_t size_bytes)) \
    X(MemSetAccess, cuMemSetAccess, 10020, \
      (uint64_t ptr, size_t size_bytes, const struct cuda_access_desc *desc, size_t n)) \
    X(MemGetAllocationGranularity, cuMemGetAllocationGranularity, 10020, \
      (size_t *ret_bytes, const struct cuda_allocation_prop *prop, int option)) \
    X(MemExportToShareableHandle, cuMemExportToShareableHandle, 10020, \
      (void *ret_fd, uint64_t handle, int handle_type, unsigned long long flags)) \
    X(MemImportFromShareableHandle, cuMemImportFromShareableHandle, 10020, \
      (uint64_t *ret_handle, void *fd_as_pointer, int handle_type)) \
    X(PointerGetAttributes, cuPointerGetAttributes, 7000, (unsigned n, int *attributes, void **ret_values, uint64_t ptr)) \
    X(MemGetAddressRange, cuMemGetAddressRange_v2, 3020, (uint64_t *ret_base, size_t *ret_bytes, uint64_t ptr)) \
    X(MemcpyDtoH, cuMemcpyDtoH_v2, 3020, (void *dst, uint64_t src, size_t len_bytes)) \
    X(MemcpyHtoD, cuMemcpyHtoD_v2, 3020, (uint64_t dst, const void *src, size_t len_bytes)) \
    X(MemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, 3020, \
      (void *dst, uint64_t src, size_t len_bytes, struct CUstream_st *stream)) \
    X(MemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, 3020, \
      (uint64_t dst, const void *src, size_t len_bytes, struct CUstream_st *stream)) \
    X(MemcpyDtoDAsync, cuMemcpyDtoDAsync_v2, 3020, \
      (uint64_t dst, uint64_t src, size_t len_bytes, struct CUstream_st *stream)) \
    X(MemsetD8, cuMemsetD8_v2, 3020, (uint64_t dst, unsigned char value, size_t len_bytes)) \
    X(MemsetD8Async, cuMemsetD8Async, 3020, \
      (uint64_t dst, unsigned char value, size_t len_bytes, struct CUstream_st *stream)) \
    X(StreamCreateWithPriority, cuStreamCreateWithPriority, 5050, \
      (struct CUstream_st **ret_stream, unsigned flags, int priority)) \
    X(StreamDestroy, cuStreamDestroy_v2, 4000, (struct CUstream_st *stream)) \
    X(StreamQuery, cuStreamQuery, 2000, (struct CUstream_st *stream)) \
    X(StreamSynchronize, cuStreamSynchronize, 2000, (struct CUstream_st *stream)) \
    X(StreamWaitEvent, cuStreamWaitEvent, 3020, \
      (struct CUstream_st *stream, struct CUevent_st *event, unsigned flags)) \
    X(StreamWaitValue64, cuStreamWaitValue64_v2, 11070, \
      (struct CUstream_st *stream, uint64_t ptr, uint64_t value, unsigned flags)) \
    X(StreamWriteValue64, cuStreamWriteValue64_v2, 11070, \
      (struct CUstream_st *stream, uint64_t ptr, uint64_t value, unsigned flags)) \
    X(StreamIsCapturing, cuStreamIsCapturing, 10000, (struct CUstream_st *stream, int *ret_status)) \
    X(StreamGetCtx, cuStreamGetCtx, 9020, (struct CUstream_st *stream, struct CUctx_st **ret_ctx)) \
    X(LaunchHostFunc, cuLaunchHostFunc, 10000, (struct CUstream_st *stream, cuda_host_fn *fn, void *arg)) \
    X(EventCreate, cuEventCreate, 2000, (struct CUevent_st **ret_event, unsigned flags)) \
    X(EventRecord, cuEventRecord, 2000, (struct CUevent_st *event, struct CUstream_st *stream)) \
    X(EventQuery, cuEventQuery, 2000, (struct CUevent_st *event)) \
    X(EventSynchronize, cuEventSynchronize, 2000, (struct CUevent_st *event)) \
    X(EventElapsedTime, cuEventElapsedTime, 2000, \
      (float *ret_ms, struct CUevent_st *from, struct CUevent_st *to)) \
    X(EventDestroy, cuEventDestroy_v2, 4000, (struct CUevent_st *event)) \
    X(ModuleLoadDataEx, cuModuleLoadDataEx, 2010, \
      (struct CUmod_st **ret_module, const void *image, unsigned n_options, int *options, void **values)) \
    X(ModuleUnload, cuModuleUnload, 2000, (struct CUmod_st *module)) \
    X(ModuleGetFunction, cuModuleGetFunction, 2000, \
      (struct CUfunc_st **ret_function, struct CUmod_st *module, const char *name)) \
    X(LaunchKernel, cuLaunchKernel, 4000, \
      (struct CUfunc_st *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, \
       unsigned block_y, unsigned block_z, unsigned shared_bytes, struct CUstream_st *stream, void **params, \
       void **extra))

/*
 * NULL in the table where the driver is older. MemcpyBatchAsync got another signature in 13.0; this is the one of 12.8,
 * which later drivers keep.
 */
#define CUDA_FUNCTIONS_OPTIONAL(X) \
    X(MemcpyBatchAsync, cuMemcpyBatchAsync, 12080, \
      (uint64_t *dsts, uint64_t *srcs, size_t *sizes_bytes, size_t n, struct cuda_memcpy_attributes *attributes, \
       size_t *attribute_starts, size_t n_attributes, size_t *ret_failed, struct CUstream_st *stream))
/* clang-format on */

/* All return an enum cuda_result, and set the calling thread's current context only where their names say so. */
struct cuda_driver {
#define CUDA_MEMBER(member, symbol, version, parameters) int(*member) parameters;
    CUDA_FUNCTIONS(CUDA_MEMBER)
    CUDA_FUNCTIONS_OPTIONAL(CUDA_MEMBER)
#undef CUDA_MEMBER
};

#define CUDA_LIBRARY "libcuda.so.1"
#define CUDA_PROBLEM_BYTES 256
#define CUDA_UUID_TEXT_BYTES 41 /* GPU-12345678-9abc-def0-1234-56789abcdef0 */

/*
 * The one table of the process; any thread. It is looked for once, is there for good, and the answer stays the same: 0;
 * -ENOENT: there is no driver; -ENOTSUP: the driver is too old for us. Nothing of CUDA is called, not even cuInit.
 */
int cuda_driver_load(const struct cuda_driver **ret_driver);
/* Why it could not be loaded, in words: the library, or the function that is missing. Empty if it could, or was not yet. */
const char *cuda_driver_problem(void);

/* What cuda_driver_load() does, once, with CUDA_LIBRARY. ret_problem is "" on success. The library is never closed. */
int cuda_driver_open(const char *library, struct cuda_driver *ret_driver, char ret_problem[static CUDA_PROBLEM_BYTES]);
/* Makes cuda_driver_load() look for another library; before its first call. For tests. */
void cuda_driver_set_library(const char *library);

/*
 * A CUresult as negative errno, 0 for success. -EAGAIN: not ready yet. -ENOMEM, -EINVAL, -ENOTSUP, -EPERM (stream
 * capture) as their names say. -ENODEV: there is no such device, or it, or the context, is lost. Everything else is -EIO.
 */
int cuda_errno(int result);
/* Whether the context, and with it all that this process can do with the device, is lost. Only a new process helps. */
bool cuda_is_fatal(int result);
/* CUDA_ERROR_… of those that we know, else what the loaded driver calls it, else a text that says so. Never NULL. */
const char *cuda_error_name(int result);

/* As nvidia-smi prints it. */
const char *cuda_uuid_print(const struct cuda_uuid *uuid, char ret_text[static CUDA_UUID_TEXT_BYTES]);
/* With or without GPU- or MIG- before it. -EINVAL. */
int cuda_uuid_parse(const char *text, struct cuda_uuid *ret_uuid);
