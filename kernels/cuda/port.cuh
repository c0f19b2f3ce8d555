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

/* d += a b: 16 rows x 16 columns of BF16 against 16 x 8. Lane 4 g + t holds, two a word, rows g and
 * g + 8 (a[0], a[1]) of columns 2 t, 2 t + 1 and (a[2], a[3]) 2 t + 8, 2 t + 9; column g of b in
 * the same places; rows g and g + 8 of d, columns 2 t, 2 t + 1. */
static __device__ __forceinline__ void kern_mma(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                unsigned b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four matrices of 8 x 8 BF16 from shared memory: lane l gives the address of row l % 8 of matrix
 * l / 8, four words, and gets of each matrix row l / 4, columns 2 (l % 4) and the next; turned:
 * rows and columns changed places. */
static __device__ __forceinline__ void kern_matrices(unsigned (&m)[4], const uint32_t *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

static __device__ __forceinline__ void kern_matrices_turned(unsigned (&m)[4], const uint32_t *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

/* The same of F16. */
static __device__ __forceinline__ void kern_mma_f16(float (&d)[4], const unsigned (&a)[4],
                                                    unsigned b0, unsigned b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Two floats rounded to BF16 or F16, the first in the lower half. */
static __device__ __forceinline__ unsigned kern_bf16_pair(float first, float second)
{
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

static __device__ __forceinline__ unsigned kern_f16_pair(float first, float second)
{
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

static __device__ __forceinline__ void kern_f16_floats(unsigned pair, float *first, float *second)
{
    asm("{\n\t.reg .b16 low, high;\n\tmov.b32 {low, high}, %2;\n\t"
        "cvt.f32.f16 %0, low;\n\tcvt.f32.f16 %1, high;\n\t}"
        : "=f"(*first), "=f"(*second)
        : "r"(pair));
}

/* a * b + c of two F16 each. */
static __device__ __forceinline__ unsigned kern_f16_fma(unsigned a, unsigned b, unsigned c)
{
    unsigned d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

static __device__ __forceinline__ uint4 kern_shared_load4(const uint32_t *from)
{
    return *(const uint4 *)from;
}

static __device__ __forceinline__ void kern_shared_store2(uint32_t *to, uint32_t a, uint32_t b)
{
    *(uint2 *)to = make_uint2(a, b);
}

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

/* The same as two F16, exact too. */
static __device__ __forceinline__ unsigned kern_fp8_halves(unsigned codes)
{
    unsigned halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((unsigned short)codes));
    return halves;
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

static __device__ __forceinline__ unsigned kern_fp8_halves(unsigned codes)
{
    return kern_f16_pair(kern_fp8_one(codes & 0xffu), kern_fp8_one(codes >> 8 & 0xffu));
}
#endif

/* What a launch answers, as one of our codes. */
static inline int kern_launched()
{
    return cudaGetLastError() == cudaSuccess ? 0 : (int)BASE_EDEVICE;
}

#endif
