/* The part of the CUDA runtime that the cuda device and the kernels use, for a machine without a
 * card: same names, same rules, executed by tests/cudahost (runtime.cc, fibers.cc).
 *
 * Streams are lists of operations that run as late as the rules allow: a call that must wait runs
 * what it waits for and no more, every other call runs a random few of the operations that stream
 * order and events leave free, in a seeded order. The destination of a copy is poisoned when the
 * copy is asked for, so whoever reads it before an event said so reads nonsense.
 */
#ifndef CUDAHOST_CUDA_RUNTIME_H
#define CUDAHOST_CUDA_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Codes as in the toolkit's driver_types.h. */
typedef enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInitializationError = 3,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorECCUncorrectable = 214,
    cudaErrorContained = 226,
    cudaErrorHardwareStackError = 714,
    cudaErrorIllegalInstruction = 715,
    cudaErrorMisalignedAddress = 716,
    cudaErrorInvalidAddressSpace = 717,
    cudaErrorInvalidPc = 718,
    cudaErrorLaunchFailure = 719,
    cudaErrorAssert = 710,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchTimeout = 702,
    cudaErrorHostMemoryAlreadyRegistered = 712,
    cudaErrorNotReady = 600,
    cudaErrorUnknown = 999,
} cudaError_t;

enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;

typedef struct {
    char bytes[16];
} cudaUUID_t;

struct cudaDeviceProp {
    char name[256];
    cudaUUID_t uuid;
    size_t totalGlobalMem;
    int major, minor;
};

#define cudaStreamNonBlocking 0x01u
#define cudaEventDisableTiming 0x02u
#define cudaHostRegisterPortable 0x01u

/* Calls whose absence must be noticed know where they stand (tests/cudahost/cudahost.h, sites). */
#define cudaEventRecord(event, stream) cudahost_event_record(event, stream, __FILE__, __LINE__)
#define cudaStreamWaitEvent(stream, event, flags) \
    cudahost_stream_wait(stream, event, flags, __FILE__, __LINE__)
#define cudaEventQuery(event) cudahost_event_query(event, __FILE__, __LINE__)
#define cudaEventSynchronize(event) cudahost_event_sync(event, __FILE__, __LINE__)
#define cudaStreamQuery(stream) cudahost_stream_query(stream, __FILE__, __LINE__)
#define cudaStreamSynchronize(stream) cudahost_stream_sync(stream, __FILE__, __LINE__)

cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
cudaError_t cudaMalloc(void **out, size_t bytes);
cudaError_t cudaFree(void *memory);
cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void *memory);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaGetLastError(void);
const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);

cudaError_t cudahost_event_record(cudaEvent_t event, cudaStream_t stream, const char *file,
                                  int line);
cudaError_t cudahost_stream_wait(cudaStream_t stream, cudaEvent_t event, unsigned flags,
                                 const char *file, int line);
cudaError_t cudahost_event_query(cudaEvent_t event, const char *file, int line);
cudaError_t cudahost_event_sync(cudaEvent_t event, const char *file, int line);
cudaError_t cudahost_stream_query(cudaStream_t stream, const char *file, int line);
cudaError_t cudahost_stream_sync(cudaStream_t stream, const char *file, int line);

#ifdef __cplusplus
}
#include "cudahost_device.h"
#endif

#endif
