/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Our declarations of the CUDA driver beside NVIDIA's, in one file: that they compile together is the first test. All of
 * it is checked by the compiler, so on a machine without the headers there is nothing to run.
 */
#include <stdio.h>

#include "io/cuda_driver.h"

#if __has_include(<cuda.h>) && __has_include(<cudaTypedefs.h>)
#include <cuda.h>
#include <cudaTypedefs.h>

#if CUDA_VERSION >= 12080

#define SAME(ours, theirs) static_assert((unsigned long)(ours) == (unsigned long)(theirs), #ours)
#define SAME_SIZE(ours, theirs) SAME(sizeof(ours), sizeof(theirs))
#define SAME_OFFSET(ours, member, theirs, member_theirs)                                                               \
    SAME(offsetof(ours, member), offsetof(theirs, member_theirs));                                                     \
    SAME(sizeof(((ours *)0)->member), sizeof(((theirs *)0)->member_theirs))

#define RESULT(name, value) SAME(NV_ERROR_##name, CUDA_ERROR_##name);
CUDA_RESULTS(RESULT)
SAME_SIZE(int, CUresult);
SAME_SIZE(int, CUdevice);
SAME_SIZE(uint64_t, CUdeviceptr);
SAME_SIZE(uint64_t, CUmemGenericAllocationHandle);

/* That this release brought this function: the name and the number that cuGetProcAddress is asked for. */
#define VERSION(member, symbol, version, parameters) SAME_SIZE(PFN_cu##member##_v##version, void *);
CUDA_FUNCTIONS(VERSION)
CUDA_FUNCTIONS_OPTIONAL(VERSION)

SAME_SIZE(struct cuda_uuid, CUuuid);
SAME_SIZE(struct cuda_location, CUmemLocation);
SAME_OFFSET(struct cuda_location, type, CUmemLocation, type);
SAME_OFFSET(struct cuda_location, id, CUmemLocation, id);
SAME_SIZE(struct cuda_allocation_prop, CUmemAllocationProp);
SAME_OFFSET(struct cuda_allocation_prop, type, CUmemAllocationProp, type);
SAME_OFFSET(struct cuda_allocation_prop, handle_types, CUmemAllocationProp, requestedHandleTypes);
SAME_OFFSET(struct cuda_allocation_prop, location, CUmemAllocationProp, location);
SAME_OFFSET(struct cuda_allocation_prop, win32_metadata, CUmemAllocationProp, win32HandleMetaData);
SAME_OFFSET(struct cuda_allocation_prop, compression_type, CUmemAllocationProp, allocFlags.compressionType);
SAME_OFFSET(struct cuda_allocation_prop, gpu_direct_rdma_capable, CUmemAllocationProp, allocFlags.gpuDirectRDMACapable);
SAME_OFFSET(struct cuda_allocation_prop, usage, CUmemAllocationProp, allocFlags.usage);
SAME_SIZE(struct cuda_access_desc, CUmemAccessDesc);
SAME_OFFSET(struct cuda_access_desc, location, CUmemAccessDesc, location);
SAME_OFFSET(struct cuda_access_desc, flags, CUmemAccessDesc, flags);
SAME_SIZE(struct cuda_memcpy_attributes, CUmemcpyAttributes);
SAME_OFFSET(struct cuda_memcpy_attributes, src_access_order, CUmemcpyAttributes, srcAccessOrder);
SAME_OFFSET(struct cuda_memcpy_attributes, src_hint, CUmemcpyAttributes, srcLocHint);
SAME_OFFSET(struct cuda_memcpy_attributes, dst_hint, CUmemcpyAttributes, dstLocHint);
SAME_OFFSET(struct cuda_memcpy_attributes, flags, CUmemcpyAttributes, flags);

#define ATTRIBUTE(name) SAME(NV_DEVICE_ATTRIBUTE_##name, CU_DEVICE_ATTRIBUTE_##name)
ATTRIBUTE(MULTIPROCESSOR_COUNT);
ATTRIBUTE(PCI_BUS_ID);
ATTRIBUTE(PCI_DEVICE_ID);
ATTRIBUTE(ASYNC_ENGINE_COUNT);
ATTRIBUTE(UNIFIED_ADDRESSING);
ATTRIBUTE(PCI_DOMAIN_ID);
ATTRIBUTE(COMPUTE_CAPABILITY_MAJOR);
ATTRIBUTE(COMPUTE_CAPABILITY_MINOR);
ATTRIBUTE(CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM);
ATTRIBUTE(VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
ATTRIBUTE(HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
ATTRIBUTE(CAN_USE_64_BIT_STREAM_MEM_OPS);

SAME(NV_HOST_REGISTER_PORTABLE, CU_MEMHOSTREGISTER_PORTABLE);
SAME(NV_HOST_REGISTER_DEVICEMAP, CU_MEMHOSTREGISTER_DEVICEMAP);
SAME(NV_HOST_REGISTER_IOMEMORY, CU_MEMHOSTREGISTER_IOMEMORY);
SAME(NV_HOST_REGISTER_READ_ONLY, CU_MEMHOSTREGISTER_READ_ONLY);
SAME(NV_HOST_REGISTER_PORTABLE, CU_MEMHOSTALLOC_PORTABLE);
SAME(NV_HOST_REGISTER_DEVICEMAP, CU_MEMHOSTALLOC_DEVICEMAP);
SAME(NV_HOST_ALLOC_WRITECOMBINED, CU_MEMHOSTALLOC_WRITECOMBINED);
SAME(NV_ALLOCATION_TYPE_PINNED, CU_MEM_ALLOCATION_TYPE_PINNED);
SAME(NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
SAME(NV_LOCATION_TYPE_DEVICE, CU_MEM_LOCATION_TYPE_DEVICE);
SAME(NV_LOCATION_TYPE_HOST, CU_MEM_LOCATION_TYPE_HOST);
SAME(NV_ACCESS_PROT_READ, CU_MEM_ACCESS_FLAGS_PROT_READ);
SAME(NV_ACCESS_PROT_READWRITE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
SAME(NV_GRANULARITY_MINIMUM, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
SAME(NV_GRANULARITY_RECOMMENDED, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);

SAME(NV_POINTER_ATTRIBUTE_CONTEXT, CU_POINTER_ATTRIBUTE_CONTEXT);
SAME(NV_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
SAME(NV_POINTER_ATTRIBUTE_DEVICE_POINTER, CU_POINTER_ATTRIBUTE_DEVICE_POINTER);
SAME(NV_POINTER_ATTRIBUTE_HOST_POINTER, CU_POINTER_ATTRIBUTE_HOST_POINTER);
SAME(NV_POINTER_ATTRIBUTE_IS_MANAGED, CU_POINTER_ATTRIBUTE_IS_MANAGED);
SAME(NV_POINTER_ATTRIBUTE_DEVICE_ORDINAL, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
SAME(NV_POINTER_ATTRIBUTE_RANGE_START_ADDR, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR);
SAME(NV_POINTER_ATTRIBUTE_RANGE_SIZE, CU_POINTER_ATTRIBUTE_RANGE_SIZE);
SAME(NV_POINTER_ATTRIBUTE_MAPPED, CU_POINTER_ATTRIBUTE_MAPPED);
SAME(NV_MEMORYTYPE_HOST, CU_MEMORYTYPE_HOST);
SAME(NV_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_DEVICE);

SAME(NV_STREAM_DEFAULT, CU_STREAM_DEFAULT);
SAME(NV_STREAM_NON_BLOCKING, CU_STREAM_NON_BLOCKING);
SAME(NV_STREAM_WAIT_VALUE_GEQ, CU_STREAM_WAIT_VALUE_GEQ);
SAME(NV_STREAM_WAIT_VALUE_EQ, CU_STREAM_WAIT_VALUE_EQ);
SAME(NV_STREAM_WAIT_VALUE_AND, CU_STREAM_WAIT_VALUE_AND);
SAME(NV_STREAM_WAIT_VALUE_NOR, CU_STREAM_WAIT_VALUE_NOR);
SAME(NV_STREAM_WRITE_VALUE_DEFAULT, CU_STREAM_WRITE_VALUE_DEFAULT);
SAME(NV_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER, CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER);
SAME(NV_CAPTURE_STATUS_NONE, CU_STREAM_CAPTURE_STATUS_NONE);
SAME(NV_CAPTURE_STATUS_ACTIVE, CU_STREAM_CAPTURE_STATUS_ACTIVE);
SAME(NV_CAPTURE_STATUS_INVALIDATED, CU_STREAM_CAPTURE_STATUS_INVALIDATED);
SAME(NV_EVENT_DEFAULT, CU_EVENT_DEFAULT);
SAME(NV_EVENT_BLOCKING_SYNC, CU_EVENT_BLOCKING_SYNC);
SAME(NV_EVENT_DISABLE_TIMING, CU_EVENT_DISABLE_TIMING);
SAME(NV_MEMCPY_SRC_ACCESS_ORDER_STREAM, CU_MEMCPY_SRC_ACCESS_ORDER_STREAM);
SAME(NV_MEMCPY_SRC_ACCESS_ORDER_ANY, CU_MEMCPY_SRC_ACCESS_ORDER_ANY);
SAME(NV_JIT_INFO_LOG_BUFFER, CU_JIT_INFO_LOG_BUFFER);
SAME(NV_JIT_INFO_LOG_BUFFER_SIZE_BYTES, CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES);
SAME(NV_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER);
SAME(NV_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES);
SAME(NV_PROC_ADDRESS_LEGACY_STREAM, CU_GET_PROC_ADDRESS_LEGACY_STREAM);

/* Handles are theirs: a user's CUstream is passed without a cast. */
static_assert(__builtin_types_compatible_p(struct CUstream_st *, CUstream), "stream");
static_assert(__builtin_types_compatible_p(struct CUevent_st *, CUevent), "event");
static_assert(__builtin_types_compatible_p(struct CUctx_st *, CUcontext), "context");
static_assert(__builtin_types_compatible_p(struct CUmod_st *, CUmodule), "module");
static_assert(__builtin_types_compatible_p(struct CUfunc_st *, CUfunction), "function");
static_assert(__builtin_types_compatible_p(cuda_host_fn *, CUhostFn), "host function");

int main(void)
{
    printf("compared with CUDA %d.%d's headers\n", CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10);
    return 0;
}

#define COMPARED
#endif
#endif

#ifndef COMPARED
int main(void)
{
    printf("SKIP: cuda.h of 12.8 or newer is not installed: our declarations were not compared with it\n");
    return 77;
}
#endif
