/* What a kernel may use, on the CPU: indices, shared memory, barriers, warp operations, cp.async,
 * launches. Included by the stand-in of cuda_runtime.h when C++ is compiled.
 *
 * Every thread of a block is a fiber; blocks run one after another, both in a seeded order. Shared
 * arrays are objects: each element carries shadow words (who wrote and read it last, in which
 * stretch between barriers), so a read of what nobody wrote in this block, an index outside, or
 * two accesses that no barrier orders are reported with both places, in whatever order the threads
 * happened to run.
 */
#ifndef CUDAHOST_DEVICE_H
#define CUDAHOST_DEVICE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define CUDAHOST 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

/* A thread of the block that runs, as kernels see it. */
struct cudahost_thread {
    uint3 index;
    uint32_t linear, warp, lane;
    uint32_t warp_epoch; /* full __syncwarp passed */
};

struct cudahost_block {
    uint3 index;
    dim3 threads, blocks;
    uint32_t serial; /* of this block in the process; 0 is nobody's */
    uint32_t epoch;  /* __syncthreads passed */
    size_t dynamic_bytes;
    uint8_t *dynamic; /* dynamic shared memory, 16-aligned */
};

extern cudahost_thread *cudahost_self;
extern cudahost_block cudahost_now;

#define threadIdx (cudahost_self->index)
#define blockIdx (cudahost_now.index)
#define blockDim (cudahost_now.threads)
#define gridDim (cudahost_now.blocks)

void cudahost_report(const char *format, ...) __attribute__((format(printf, 1, 2)));
void cudahost_barrier(const char *file, int line);
void cudahost_warp_barrier(unsigned mask, const char *file, int line);
/* Every lane of the mask gives a value; returns the 32 values. `what` tells the operations apart.
 */
const uint64_t *cudahost_exchange(const char *what, unsigned mask, uint64_t value);
bool cudahost_site_muted(const char *file, int line);

#define __syncthreads() cudahost_barrier(__FILE__, __LINE__)
#define __syncwarp() cudahost_warp_barrier(0xffffffffu, __FILE__, __LINE__)

template <class T> static inline uint64_t cudahost_pack(T value)
{
    uint64_t bits = 0;
    static_assert(sizeof value <= sizeof bits, "a value of a shuffle has at most 8 bytes");
    memcpy(&bits, &value, sizeof value);
    return bits;
}

template <class T> static inline T cudahost_unpack(uint64_t bits)
{
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int with)
{
    const uint64_t *all = cudahost_exchange("__shfl_xor_sync", mask, cudahost_pack(value));
    return cudahost_unpack<T>(all[(cudahost_self->lane ^ (unsigned)with) & 31u]);
}

template <class T> static inline T __shfl_sync(unsigned mask, T value, int lane)
{
    const uint64_t *all = cudahost_exchange("__shfl_sync", mask, cudahost_pack(value));
    return cudahost_unpack<T>(all[(unsigned)lane & 31u]);
}

static inline unsigned __ballot_sync(unsigned mask, int predicate)
{
    const uint64_t *all = cudahost_exchange("__ballot_sync", mask, predicate != 0);
    unsigned votes = 0;
    for (unsigned i = 0; i < 32; i++)
        votes |= (mask >> i & 1u) && all[i] ? 1u << i : 0u;
    return votes;
}

static inline float __uint_as_float(unsigned bits)
{
    return cudahost_unpack<float>(bits);
}

static inline unsigned __float_as_uint(float value)
{
    return (unsigned)cudahost_pack(value);
}

/* ---- shared memory ---- */

/* Shadow of one element; stamps are of the block with that serial. */
struct cudahost_shadow {
    uint32_t serial; /* block the words below belong to */
    bool written;
    uint32_t writer, write_epoch, write_warp_epoch;
    uint32_t reader; /* last one; readers_many: others too, since read_epoch began */
    uint32_t read_epoch, read_warp_epoch;
    bool readers_many, reader_warps_many;
};

void cudahost_shared_read(cudahost_shadow *shadow, const char *name, size_t index);
void cudahost_shared_write(cudahost_shadow *shadow, const char *name, size_t index);
/* The element is about to be overwritten by a copy nobody waited for yet: reading it is an error.
 */
void cudahost_shared_forget(cudahost_shadow *shadow);
size_t cudahost_shared_bounds(const char *name, size_t index, size_t count);

template <class T> struct cudahost_ref {
    T *at;
    cudahost_shadow *shadow;
    const char *name;
    size_t index;

    operator T() const
    {
        cudahost_shared_read(shadow, name, index);
        return *at;
    }
    T operator=(T value) const
    {
        cudahost_shared_write(shadow, name, index);
        return *at = value;
    }
    T operator=(const cudahost_ref &other) const
    {
        return *this = (T)other;
    }
    T operator+=(T value) const
    {
        return *this = (T) * this + value;
    }
};

/* A pointer into a shared array. */
template <class T> struct cudahost_cursor {
    T *data;
    cudahost_shadow *shadows;
    const char *name;
    size_t at, count;

    cudahost_ref<T> operator[](size_t i) const
    {
        const size_t index = cudahost_shared_bounds(name, at + i, count);
        return cudahost_ref<T>{ data + index, shadows + index, name, index };
    }
    cudahost_cursor operator+(size_t i) const
    {
        return cudahost_cursor{ data, shadows, name, at + i, count };
    }
};

template <class T, size_t N> struct cudahost_shared {
    alignas(16) T data[N];
    cudahost_shadow shadows[N];
    const char *name;

    explicit cudahost_shared(const char *name_) : data(), shadows(), name(name_)
    {
    }
    cudahost_ref<T> operator[](size_t i)
    {
        return cudahost_cursor<T>{ data, shadows, name, 0, N }[i];
    }
    cudahost_cursor<T> operator+(size_t i)
    {
        return cudahost_cursor<T>{ data, shadows, name, i, N };
    }
};

cudahost_shadow *cudahost_dynamic_shadows(size_t count);

template <class T> static inline cudahost_cursor<T> cudahost_dynamic(const char *name)
{
    const size_t count = cudahost_now.dynamic_bytes / sizeof(T);
    return cudahost_cursor<T>{ (T *)(void *)cudahost_now.dynamic, cudahost_dynamic_shadows(count),
                               name, 0, count };
}

#define KERN_SHARED(type, name, count) static cudahost_shared<type, (count)> name(#name)
#define KERN_SHARED_DYNAMIC(type, name) cudahost_cursor<type> name = cudahost_dynamic<type>(#name)
template <class T> using kern_shared_ptr = cudahost_cursor<T>;

/* ---- cp.async ---- */

void cudahost_async_copy(void *to, const void *from, size_t bytes, cudahost_shadow *shadows,
                         size_t elements, const char *name, size_t index);
void cudahost_async_commit();
void cudahost_async_wait(unsigned groups_left, const char *file, int line);

template <class T> static inline void kern_async_copy16(cudahost_cursor<T> to, const T *from)
{
    const size_t elements = 16 / sizeof(T);
    if (((uintptr_t)from & 15u) || (to.at * sizeof(T)) % 16)
        cudahost_report("%s[%zu]: cp.async of 16 bytes at an odd address", to.name, to.at);
    for (size_t i = 0; i < elements; i++)
        cudahost_shared_bounds(to.name, to.at + i, to.count);
    cudahost_async_copy(to.data + to.at, from, 16, to.shadows + to.at, elements, to.name, to.at);
}

#define kern_async_commit() cudahost_async_commit()
#define KERN_ASYNC_WAIT(groups_left) cudahost_async_wait(groups_left, __FILE__, __LINE__)

/* ---- launch ---- */

typedef struct CUstream_st *cudaStream_t;
void cudahost_launch(const char *name, dim3 blocks, dim3 threads, size_t dynamic_bytes,
                     cudaStream_t stream, void (*run)(void *context), void *context,
                     void (*drop)(void *context));

template <class F>
static inline void cudahost_launch_with(const char *name, dim3 blocks, dim3 threads,
                                        size_t dynamic_bytes, cudaStream_t stream, F body)
{
    F *kept = new F(body);
    cudahost_launch(
        name, blocks, threads, dynamic_bytes, stream, [](void *context) { (*(F *)context)(); },
        kept, [](void *context) { delete (F *)context; });
}

#define KERN_LAUNCH(kernel, blocks, threads, dynamic_bytes, stream, ...) \
    cudahost_launch_with(#kernel, blocks, threads, dynamic_bytes, stream, \
                         [=] { kernel(__VA_ARGS__); })
#define KERN_DYNAMIC_LIMIT(kernel, bytes) cudaSuccess

#endif
