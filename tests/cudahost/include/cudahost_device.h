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
struct alignas(8) uint2 {
    unsigned x, y;
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

/* ---- tensor cores and pairs of BF16 ---- */

static inline float cudahost_bf16(unsigned code)
{
    return __uint_as_float(code << 16);
}

static inline unsigned cudahost_to_bf16(float value)
{
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bits >> 16 | 0x40u;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

static inline float cudahost_f16(unsigned code)
{
    const unsigned sign = (code & 0x8000u) << 16, magnitude = code & 0x7fffu;
    if (magnitude >= 0x7c00u)
        return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    return __uint_as_float(sign | magnitude << 13) * 0x1p112f;
}

static inline unsigned cudahost_to_f16(float value)
{
    const unsigned sign = __float_as_uint(value) >> 16 & 0x8000u;
    const float magnitude = fabsf(value);
    if (isnan(value)) return 0x7fffu;
    if (magnitude >= 65520.0f) return sign | 0x7c00u;
    /* A float of that size whose last place is that of the F16 rounds to nearest even for us. */
    const float place = magnitude < 0x1p-14f ? 0x1p-1f
                                             : __uint_as_float(__float_as_uint(magnitude) &
                                                               0x7f800000u) *
                                                   0x1p13f;
    const float rounded = (magnitude + place) - place;
    return sign | (unsigned)(__float_as_uint(rounded * 0x1p-112f) >> 13);
}

/* A card sums in an order of its own: closeness may be asked of results, never equal bits. */
static inline void cudahost_mma(const char *what, float (*decode)(unsigned), float (&d)[4],
                                const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    static unsigned left[32][32][4], right[32][32][2]; /* of each warp of the block */
    unsigned(*l)[4] = left[cudahost_self->warp], (*r)[2] = right[cudahost_self->warp];
    const unsigned lane = cudahost_self->lane;
    memcpy(l[lane], a, sizeof l[lane]);
    r[lane][0] = b0;
    r[lane][1] = b1;
    cudahost_exchange(what, 0xffffffffu, 0);
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane / 4 + (i / 2) * 8, col = 2 * (lane % 4) + i % 2;
        for (unsigned k = 0; k < 16; k++) {
            const unsigned t = k % 8 / 2, half = k / 8, shift = 16 * (k % 2);
            const unsigned x = l[row % 8 * 4 + t][2 * half + row / 8] >> shift & 0xffffu;
            const unsigned y = r[col * 4 + t][half] >> shift & 0xffffu;
            d[i] = fmaf(decode(x), decode(y), d[i]);
        }
    }
    cudahost_exchange(what, 0xffffffffu, 1);
}

static inline void kern_mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    cudahost_mma("kern_mma", cudahost_bf16, d, a, b0, b1);
}

static inline void kern_mma_f16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    cudahost_mma("kern_mma_f16", cudahost_f16, d, a, b0, b1);
}

static inline void cudahost_matrices(unsigned (&m)[4], cudahost_cursor<uint32_t> row, bool turned)
{
    uint64_t at[32];
    if (row.at % 4) cudahost_report("%s[%zu]: ldmatrix at an odd address", row.name, row.at);
    memcpy(at, cudahost_exchange("kern_matrices", 0xffffffffu, row.at), sizeof at);
    for (unsigned i = 0; i < 4; i++) {
        m[i] = 0;
        for (unsigned j = 0; j < 2; j++) {
            const unsigned a = cudahost_self->lane / 4, b = 2 * (cudahost_self->lane % 4) + j;
            const unsigned r = turned ? b : a, c = turned ? a : b;
            const uint32_t word = (row + (size_t)(at[8 * i + r] - row.at))[c / 2];
            m[i] |= (word >> 16 * (c % 2) & 0xffffu) << 16 * j;
        }
    }
}

static inline void kern_matrices(unsigned (&m)[4], cudahost_cursor<uint32_t> row)
{
    cudahost_matrices(m, row, false);
}

static inline void kern_matrices_turned(unsigned (&m)[4], cudahost_cursor<uint32_t> row)
{
    cudahost_matrices(m, row, true);
}

static inline unsigned kern_bf16_pair(float first, float second)
{
    return cudahost_to_bf16(first) | cudahost_to_bf16(second) << 16;
}

static inline unsigned kern_f16_pair(float first, float second)
{
    return cudahost_to_f16(first) | cudahost_to_f16(second) << 16;
}

static inline void kern_f16_floats(unsigned pair, float *first, float *second)
{
    *first = cudahost_f16(pair & 0xffffu);
    *second = cudahost_f16(pair >> 16);
}

static inline unsigned kern_f16_fma(unsigned a, unsigned b, unsigned c)
{
    return kern_f16_pair(
        fmaf(cudahost_f16(a & 0xffffu), cudahost_f16(b & 0xffffu), cudahost_f16(c & 0xffffu)),
        fmaf(cudahost_f16(a >> 16), cudahost_f16(b >> 16), cudahost_f16(c >> 16)));
}

static inline uint4 kern_shared_load4(cudahost_cursor<uint32_t> from)
{
    if (from.at % 4) cudahost_report("%s[%zu]: 16 bytes at an odd address", from.name, from.at);
    return uint4{ from[0], from[1], from[2], from[3] };
}

static inline void kern_shared_store2(cudahost_cursor<uint32_t> to, uint32_t a, uint32_t b)
{
    if (to.at % 2) cudahost_report("%s[%zu]: 8 bytes at an odd address", to.name, to.at);
    to[0] = a;
    to[1] = b;
}

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
