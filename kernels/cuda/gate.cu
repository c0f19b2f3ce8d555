/* Routing: one warp a token, every step as the scalar reference takes it, so that equal logits give
 * equal experts there and here. */
#include "kernels/cuda/math.cuh"

namespace
{

const unsigned GROUPS_MAX = 64, PER_LANE = KERN_CUDA_EXPERTS_MAX / WARP;

struct best {
    float value;
    uint32_t id; /* UINT32_MAX: none */
};

__device__ __forceinline__ best better(best a, best b)
{
    if (b.id == UINT32_MAX) return a;
    if (a.id == UINT32_MAX) return b;
    return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

__device__ __forceinline__ best warp_best(best mine)
{
#pragma unroll
    for (int with = WARP / 2; with > 0; with /= 2) {
        best other;
        other.value = __shfl_xor_sync(FULL, mine.value, with);
        other.id = __shfl_xor_sync(FULL, mine.id, with);
        mine = better(mine, other);
    }
    return mine;
}

__device__ __forceinline__ float group_score(const kern_gate &gate, kern_shared_ptr<float> choice,
                                             uint32_t size)
{
    float first = -INFINITY, second = -INFINITY;
    for (uint32_t i = 0; i < size; i++) {
        const float value = choice[i];
        if (value > first) {
            second = first;
            first = value;
        } else if (value > second) {
            second = value;
        }
    }
    return gate.method == kern_gate::KERN_GATE_NOAUX && size > 1 ? first + second : first;
}

/* Which groups stay: of equal ones the lower. */
__device__ __forceinline__ uint64_t groups_kept(const kern_gate &gate,
                                                kern_shared_ptr<float> choice, unsigned lane)
{
    const uint32_t size = gate.experts / gate.groups;
    float score[GROUPS_MAX / WARP];
    uint64_t kept = 0;
#pragma unroll
    for (unsigned i = 0; i < GROUPS_MAX / WARP; i++) {
        const uint32_t g = lane + i * WARP;
        score[i] = g < gate.groups ? group_score(gate, choice + (size_t)g * size, size) : 0.0f;
    }
    for (uint32_t n = 0; n < gate.top_groups; n++) {
        best mine = { 0, UINT32_MAX };
#pragma unroll
        for (unsigned i = 0; i < GROUPS_MAX / WARP; i++) {
            const uint32_t g = lane + i * WARP;
            if (g < gate.groups && !(kept >> g & 1u)) mine = better(mine, best{ score[i], g });
        }
        kept |= (uint64_t)1 << warp_best(mine).id;
    }
    return kept;
}

__global__ void __launch_bounds__(WARP) gate_rows(const kern_cuda_gate_args a)
{
    KERN_SHARED(float, scores, KERN_CUDA_EXPERTS_MAX);
    KERN_SHARED(float, choice, KERN_CUDA_EXPERTS_MAX);
    const kern_gate &gate = a.gate;
    const unsigned lane = threadIdx.x;
    const float *logits = a.logits + (size_t)blockIdx.x * gate.experts;
    float highest = logits[0];
    for (uint32_t e = 1; !gate.sigmoid && e < gate.experts; e++)
        highest = logits[e] > highest ? logits[e] : highest;
    for (uint32_t e = lane; e < gate.experts; e += WARP) {
        scores[e] =
            gate.sigmoid ? 1.0f / (1.0f + exp_same(-logits[e])) : exp_same(logits[e] - highest);
    }
    __syncthreads();
    float sum = 0;
    for (uint32_t e = 0; !gate.sigmoid && e < gate.experts; e++)
        sum = sum + scores[e];
    const bool biased = gate.method == kern_gate::KERN_GATE_NOAUX && gate.bias;
    const bool grouped = gate.method != kern_gate::KERN_GATE_GREEDY && gate.groups > 1;
    float own[PER_LANE];
#pragma unroll
    for (unsigned i = 0; i < PER_LANE; i++) {
        const uint32_t e = lane + i * WARP;
        if (e >= gate.experts) continue;
        const float score = gate.sigmoid ? (float)scores[e] : scores[e] / sum;
        const float value = biased ? score + gate.bias[e] : score;
        own[i] = isnan(value) ? -INFINITY : value;
        choice[e] = own[i];
    }
    __syncthreads();
    if (grouped) {
        const uint32_t size = gate.experts / gate.groups;
        const uint64_t kept = groups_kept(gate, choice + 0, lane);
#pragma unroll
        for (unsigned i = 0; i < PER_LANE; i++) {
            const uint32_t e = lane + i * WARP;
            if (e < gate.experts && !(kept >> (e / size) & 1u)) own[i] = -INFINITY;
        }
    }
    uint32_t taken = 0; /* bit i: expert lane + 32 i */
    uint32_t *ids = a.ids + (size_t)blockIdx.x * gate.top_k;
    float *weights = a.weights + (size_t)blockIdx.x * gate.top_k;
    float total = 0;
    for (uint32_t k = 0; k < gate.top_k; k++) {
        best mine = { 0, UINT32_MAX };
#pragma unroll
        for (unsigned i = 0; i < PER_LANE; i++) {
            const uint32_t e = lane + i * WARP;
            if (e < gate.experts && !(taken >> i & 1u)) mine = better(mine, best{ own[i], e });
        }
        const uint32_t id = warp_best(mine).id;
        if (id % WARP == lane) taken |= 1u << id / WARP;
        const float weight = gate.sigmoid ? (float)scores[id] : scores[id] / sum;
        total = total + weight;
        if (lane == 0) {
            ids[k] = id;
            weights[k] = weight;
        }
    }
    for (uint32_t k = 0; lane == 0 && k < gate.top_k; k++) {
        const float weight = gate.normalize ? weights[k] / (total + 1e-20f) : weights[k];
        weights[k] = weight * gate.scaling;
    }
}

} // namespace

int kern_cuda_gate(const struct kern_cuda_gate_args *args, void *stream)
{
    const kern_cuda_gate_args a = *args;
    const kern_gate &gate = a.gate;
    const bool grouped = gate.method != kern_gate::KERN_GATE_GREEDY && gate.groups > 1;
    if (a.rows == 0 || gate.experts == 0 || gate.experts > KERN_CUDA_EXPERTS_MAX) return -EINVAL;
    if (gate.top_k == 0 || gate.top_k > gate.experts) return -EINVAL;
    if (grouped && (gate.groups > GROUPS_MAX || gate.experts % gate.groups ||
                    gate.top_groups == 0 || gate.top_groups > gate.groups ||
                    gate.experts / gate.groups * gate.top_groups < gate.top_k))
        return -EINVAL;
    KERN_LAUNCH(gate_rows, dim3(a.rows), dim3(WARP), 0, (cudaStream_t)stream, a);
    return kern_launched();
}
