/* Stands in for the forward pass on a card in builds without kernels for one. The stack asks
 * eng_cuda_built first, so nothing else here is ever reached. */
#include <errno.h>

#include "base/must.h"
#include "engine/cuda/cuda.h"

bool eng_cuda_built(void)
{
    return false;
}

void eng_cuda_bytes(struct eng_cuda_bytes *out, const struct eng_limits *limits,
                    const struct model_shape *shape)
{
    (void)limits, (void)shape;
    *out = (struct eng_cuda_bytes){ 0 };
}

int eng_cuda_open(struct eng_cuda **out, struct eng_core *core, const struct eng_limits *limits,
                  struct base_err *err)
{
    (void)core, (void)limits;
    *out = NULL;
    return base_err_set(err, -ENOTSUP, "this build has no kernels for a card");
}

void eng_cuda_close(struct eng_cuda *cuda)
{
    MUST(!cuda);
}

int eng_cuda_forward(struct eng_cuda *cuda, const struct eng_batch *batch, struct base_err *err)
{
    (void)cuda, (void)batch;
    return base_err_set(err, -ENOTSUP, "this build has no kernels for a card");
}

int eng_cuda_head(struct eng_cuda *cuda, const uint32_t *rows, uint32_t count, struct base_err *err)
{
    (void)cuda, (void)rows, (void)count;
    return base_err_set(err, -ENOTSUP, "this build has no kernels for a card");
}
