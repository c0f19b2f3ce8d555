/* All that differs between nvcc and the emulated machine of tests/cudahost: shared arrays,
 * cp.async, launches, and every line of PTX. The twins of these stand in tests/cudahost/include,
 * which is where <cuda_runtime.h> comes from there.
 */
#ifndef KERNELS_CUDA_PORT_CUH
#define KERNELS_CUDA_PORT_CUH

#include <errno.h>
#include <stdint.h>

#include <cuda_runtime.h>

#include "base/err.h"
#include "kernels/cuda/kern_cuda.h"

#if defined(__CUDACC__)

#define KERN_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define KERN_SHARED_DYNAMIC(type, name) \
    extern __shared__ __align__(16) unsigned char kern_dynamic[]; \
    type *name = (type *)kern_dynamic
template <class T> using kern_shared_ptr = T *;

template <class T> static __device__ __forceinline__ void kern_async_copy16(T *to, const T *from)
{
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"((unsigned)__cvta_generic_to_shared(to)),
        "l"(from)
        : "memory");
}

static __device__ __forceinline__ void kern_async_commit()
{
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

#define KERN_ASYNC_WAIT(groups_left) \
    asm volatile("cp.async.wait_group %0;\n" ::"n"(groups_left) : "memory")

#define KERN_LAUNCH(kernel, blocks, threads, dynamic_bytes, stream, ...) \
    kernel<<<blocks, threads, dynamic_bytes, stream>>>(__VA_ARGS__)
/* Beyond 48 KiB of dynamic shared memory a kernel has to be told so. */
#define KERN_DYNAMIC_LIMIT(kernel, bytes) \
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes))

#endif

#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
/* Two e4m3 codes at once, exact; 0x7f and 0xff are NaN. */
static __device__ __forceinline__ void kern_fp8_pair(unsigned codes, float *first, float *second)
{
    unsigned halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((unsigned short)codes));
    asm("{\n\t.reg .b16 low, high;\n\tmov.b32 {low, high}, %2;\n\t"
        "cvt.f32.f16 %0, low;\n\tcvt.f32.f16 %1, high;\n\t}"
        : "=f"(*first), "=f"(*second)
        : "r"(halves));
}
#else
static __device__ __forceinline__ float kern_fp8_one(unsigned code)
{
    /* The code's exponent and fraction, moved to a float's, are the value / 2^120, subnormals
     * too. */
    const unsigned magnitude = code & 0x7fu;
    const float value = __uint_as_float((code & 0x80u) << 24 | magnitude << 20) * 0x1p120f;
    return magnitude == 0x7fu ? __uint_as_float(0x7fc00000u) : value;
}

static __device__ __forceinline__ void kern_fp8_pair(unsigned codes, float *first, float *second)
{
    *first = kern_fp8_one(codes & 0xffu);
    *second = kern_fp8_one(codes >> 8 & 0xffu);
}
#endif

/* What a launch answers, as one of our codes. */
static inline int kern_launched()
{
    return cudaGetLastError() == cudaSuccess ? 0 : (int)BASE_EDEVICE;
}

#endif
