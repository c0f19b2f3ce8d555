/* What the programs for a machine with a card have in common: errors of CUDA, rows of results, and
 * the few kernels that only tests need. One thread.
 *
 * A row goes to stdout for people and, where CARD_ROWS names a file, to its end as one line of
 * JSON:
 *   {"stage":"roofline","name":"...","ok":true,"us":1.0,"bytes":1,"gbps":1.0,"share":0.9,...}
 */
#ifndef TESTS_GPU_CARD_H
#define TESTS_GPU_CARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Ends the program with the place and CUDA's words; status 3. */
#define CARD(call) card_check((call), #call, __FILE__, __LINE__)
void card_check(cudaError_t code, const char *call, const char *file, int line);
/* The same for calls of kern_cuda.h. */
#define CARD_KERN(call) card_check_kern((call), #call, __FILE__, __LINE__)
void card_check_kern(int rc, const char *call, const char *file, int line);

/* Opens card 0; without one says so and ends with status 77. */
void card_open(struct cudaDeviceProp *prop);

struct card_row {
    const char *stage;
    char name[64];
    bool ok;
    double us;              /* of one call; 0: not timed */
    double bytes, flops;    /* of one call; 0: not counted */
    double bandwidth, peak; /* floors, bytes and operations a second; 0: none */
    char note[200];
};
void card_row_give(const struct card_row *row);
unsigned card_rows_bad(void); /* given with ok = false so far */

/* ---- stream.cu ---- */

/* Reads all, or copies; bytes a multiple of 16. The sink is never written. */
void card_read(const void *from, size_t bytes, void *sink, cudaStream_t stream);
void card_copy(void *to, const void *from, size_t bytes, cudaStream_t stream);
/* Random codes that are finite in every stored type and near 1 in BF16 and F32. */
enum card_fill { CARD_FILL_BYTES, CARD_FILL_FP8, CARD_FILL_BF16, CARD_FILL_F32, CARD_FILL_SCALES };
void card_fill(void *to, size_t bytes, enum card_fill fill, uint32_t seed, cudaStream_t stream);
/* Copies bytes with one slow block, so that work is left to overlap with. */
void card_keep(void *to, const void *from, size_t bytes, uint64_t spin_ns, cudaStream_t stream);
/* Operations a second of f32 multiply-adds and of BF16 matrix products by warps. */
double card_peak_f32(cudaStream_t stream);
double card_peak_mma(cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
