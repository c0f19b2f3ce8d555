/* A kernel of the tests: copies bytes when the stream comes to it, so that a test sees what a
 * kernel would have read. */
#include "tests/cudahost/include/cuda_runtime.h"
#include "tests/cudahost/cudahost.h"

static void keep_bytes(uint8_t *to, const uint8_t *from, size_t bytes)
{
    for (size_t i = threadIdx.x; i < bytes; i += 32)
        to[i] = from[i];
}

void cudahost_keep(void *to, const void *from, size_t bytes, void *stream)
{
    uint8_t *at = (uint8_t *)to;
    const uint8_t *source = (const uint8_t *)from;
    KERN_LAUNCH(keep_bytes, dim3(1), dim3(32), 0, (cudaStream_t)stream, at, source, bytes);
}
