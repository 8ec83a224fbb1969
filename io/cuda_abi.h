/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What we use of the CUDA driver's binary interface, declared by ourselves: the project builds where no cuda.h is, and a
 * program may include NVIDIA's beside ours. So nothing here bears a name of theirs, but for the tags of opaque handles:
 * `struct CUstream_st *` is their CUstream, and values go to and fro without a cast. NV_ stands for their CU_ and CUDA_.
 * tests/unit/test_cuda_abi.c compares all of it with NVIDIA's headers, where they are installed.
 */
#pragma once

#include "include/base/base.h"

struct CUctx_st;
struct CUstream_st;
struct CUevent_st;
struct CUmod_st;
struct CUfunc_st;

/* Those that we translate; a driver has more, and adds some with every release. */
#define CUDA_RESULTS(X)                                                                                                \
    X(INVALID_VALUE, 1)                                                                                                \
    X(OUT_OF_MEMORY, 2)                                                                                                \
    X(NOT_INITIALIZED, 3)                                                                                              \
    X(DEINITIALIZED, 4)                                                                                                \
    X(STUB_LIBRARY, 34)                                                                                                \
    X(CALL_REQUIRES_NEWER_DRIVER, 36)                                                                                  \
    X(DEVICE_UNAVAILABLE, 46)                                                                                          \
    X(NO_DEVICE, 100)                                                                                                  \
    X(INVALID_DEVICE, 101)                                                                                             \
    X(DEVICE_NOT_LICENSED, 102)                                                                                        \
    X(INVALID_IMAGE, 200)                                                                                              \
    X(INVALID_CONTEXT, 201)                                                                                            \
    X(ALREADY_MAPPED, 208)                                                                                             \
    X(NO_BINARY_FOR_GPU, 209)                                                                                          \
    X(NOT_MAPPED, 211)                                                                                                 \
    X(ECC_UNCORRECTABLE, 214)                                                                                          \
    X(INVALID_PTX, 218)                                                                                                \
    X(NVLINK_UNCORRECTABLE, 220)                                                                                       \
    X(UNSUPPORTED_PTX_VERSION, 222)                                                                                    \
    X(JIT_COMPILATION_DISABLED, 223)                                                                                   \
    X(CONTAINED, 226)                                                                                                  \
    X(OPERATING_SYSTEM, 304)                                                                                           \
    X(INVALID_HANDLE, 400)                                                                                             \
    X(ILLEGAL_STATE, 401)                                                                                              \
    X(NOT_FOUND, 500)                                                                                                  \
    X(NOT_READY, 600)                                                                                                  \
    X(ILLEGAL_ADDRESS, 700)                                                                                            \
    X(LAUNCH_OUT_OF_RESOURCES, 701)                                                                                    \
    X(LAUNCH_TIMEOUT, 702)                                                                                             \
    X(CONTEXT_IS_DESTROYED, 709)                                                                                       \
    X(ASSERT, 710)                                                                                                     \
    X(HOST_MEMORY_ALREADY_REGISTERED, 712)                                                                             \
    X(HOST_MEMORY_NOT_REGISTERED, 713)                                                                                 \
    X(HARDWARE_STACK_ERROR, 714)                                                                                       \
    X(ILLEGAL_INSTRUCTION, 715)                                                                                        \
    X(MISALIGNED_ADDRESS, 716)                                                                                         \
    X(INVALID_ADDRESS_SPACE, 717)                                                                                      \
    X(INVALID_PC, 718)                                                                                                 \
    X(LAUNCH_FAILED, 719)                                                                                              \
    X(TENSOR_MEMORY_LEAK, 721)                                                                                         \
    X(NOT_PERMITTED, 800)                                                                                              \
    X(NOT_SUPPORTED, 801)                                                                                              \
    X(SYSTEM_NOT_READY, 802)                                                                                           \
    X(SYSTEM_DRIVER_MISMATCH, 803)                                                                                     \
    X(COMPAT_NOT_SUPPORTED_ON_DEVICE, 804)                                                                             \
    X(MPS_CONNECTION_FAILED, 805)                                                                                      \
    X(MPS_RPC_FAILURE, 806)                                                                                            \
    X(MPS_CLIENT_TERMINATED, 810)                                                                                      \
    X(STREAM_CAPTURE_UNSUPPORTED, 900)                                                                                 \
    X(STREAM_CAPTURE_INVALIDATED, 901)                                                                                 \
    X(STREAM_CAPTURE_MERGE, 902)                                                                                       \
    X(STREAM_CAPTURE_UNMATCHED, 903)                                                                                   \
    X(STREAM_CAPTURE_UNJOINED, 904)                                                                                    \
    X(STREAM_CAPTURE_ISOLATION, 905)                                                                                   \
    X(STREAM_CAPTURE_IMPLICIT, 906)                                                                                    \
    X(CAPTURED_EVENT, 907)                                                                                             \
    X(STREAM_CAPTURE_WRONG_THREAD, 908)                                                                                \
    X(TIMEOUT, 909)                                                                                                    \
    X(EXTERNAL_DEVICE, 911)                                                                                            \
    X(UNKNOWN, 999)

#define CUDA_RESULT(name, value) NV_ERROR_##name = (value),
enum cuda_result { NV_SUCCESS = 0, CUDA_RESULTS(CUDA_RESULT) };
#undef CUDA_RESULT

/* Flags and values, by the function that takes them. */
enum {
    NV_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    NV_DEVICE_ATTRIBUTE_PCI_BUS_ID = 33,
    NV_DEVICE_ATTRIBUTE_PCI_DEVICE_ID = 34,
    NV_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT = 40,
    NV_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING = 41,
    NV_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID = 50,
    NV_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    NV_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    NV_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM = 91,
    NV_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 102,
    NV_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED = 103,
    NV_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS = 122,

    NV_HOST_REGISTER_PORTABLE = 1, /* the same bits serve cuMemHostAlloc */
    NV_HOST_REGISTER_DEVICEMAP = 2,
    NV_HOST_REGISTER_IOMEMORY = 4,
    NV_HOST_REGISTER_READ_ONLY = 8,
    NV_HOST_ALLOC_WRITECOMBINED = 4,

    NV_ALLOCATION_TYPE_PINNED = 1,
    NV_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR = 1,
    NV_LOCATION_TYPE_DEVICE = 1,
    NV_LOCATION_TYPE_HOST = 2,
    NV_ACCESS_PROT_READ = 1,
    NV_ACCESS_PROT_READWRITE = 3,
    NV_GRANULARITY_MINIMUM = 0,
    NV_GRANULARITY_RECOMMENDED = 1,

    NV_POINTER_ATTRIBUTE_CONTEXT = 1,
    NV_POINTER_ATTRIBUTE_MEMORY_TYPE = 2,
    NV_POINTER_ATTRIBUTE_DEVICE_POINTER = 3,
    NV_POINTER_ATTRIBUTE_HOST_POINTER = 4,
    NV_POINTER_ATTRIBUTE_IS_MANAGED = 8,
    NV_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9,
    NV_POINTER_ATTRIBUTE_RANGE_START_ADDR = 11,
    NV_POINTER_ATTRIBUTE_RANGE_SIZE = 12,
    NV_POINTER_ATTRIBUTE_MAPPED = 13,
    NV_MEMORYTYPE_HOST = 1,
    NV_MEMORYTYPE_DEVICE = 2,

    NV_STREAM_DEFAULT = 0, /* waits for the stream NULL, and it for this */
    NV_STREAM_NON_BLOCKING = 1,
    NV_STREAM_WAIT_VALUE_GEQ = 0, /* as signed difference: the counter may wrap */
    NV_STREAM_WAIT_VALUE_EQ = 1,
    NV_STREAM_WAIT_VALUE_AND = 2,
    NV_STREAM_WAIT_VALUE_NOR = 3,
    NV_STREAM_WRITE_VALUE_DEFAULT = 0,
    NV_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER = 1,
    NV_CAPTURE_STATUS_NONE = 0,
    NV_CAPTURE_STATUS_ACTIVE = 1,
    NV_CAPTURE_STATUS_INVALIDATED = 2,
    NV_EVENT_DEFAULT = 0,
    NV_EVENT_BLOCKING_SYNC = 1,
    NV_EVENT_DISABLE_TIMING = 2,

    NV_MEMCPY_SRC_ACCESS_ORDER_STREAM = 1,
    NV_MEMCPY_SRC_ACCESS_ORDER_ANY = 3,

    NV_JIT_INFO_LOG_BUFFER = 3,
    NV_JIT_INFO_LOG_BUFFER_SIZE_BYTES = 4,
    NV_JIT_ERROR_LOG_BUFFER = 5,
    NV_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6,

    NV_PROC_ADDRESS_LEGACY_STREAM = 1,
};

struct cuda_uuid {
    uint8_t bytes[16];
};

struct cuda_location {
    uint32_t type;
    int32_t id;
};

struct cuda_allocation_prop {
    uint32_t type;
    uint32_t handle_types;
    struct cuda_location location;
    void *win32_metadata;
    uint8_t compression_type;
    uint8_t gpu_direct_rdma_capable;
    uint16_t usage;
    uint8_t reserved[4];
};

struct cuda_access_desc {
    struct cuda_location location;
    uint32_t flags;
};

struct cuda_memcpy_attributes {
    uint32_t src_access_order;
    struct cuda_location src_hint;
    struct cuda_location dst_hint;
    uint32_t flags;
};

/* Runs on a thread of the driver, which must not call the driver there. */
typedef void cuda_host_fn(void *arg);
