/* Routing of one token. It is 256 numbers a layer: every op set uses this one. */
#include "base/must.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/scalar.h"

enum { GROUPS_MAX = 64 };

/* scores[e]: sigmoid, or softmax over all experts. */
static void gate_scores(const struct kern_gate *gate, const float *logits, float *scores)
{
    if (gate->sigmoid) {
        for (uint32_t e = 0; e < gate->experts; e++)
            scores[e] = 1.0f / (1.0f + scalar_exp(-logits[e]));
        return;
    }
    float highest = logits[0], sum = 0;
    for (uint32_t e = 1; e < gate->experts; e++)
        highest = logits[e] > highest ? logits[e] : highest;
    for (uint32_t e = 0; e < gate->experts; e++) {
        scores[e] = scalar_exp(logits[e] - highest);
        sum += scores[e];
    }
    for (uint32_t e = 0; e < gate->experts; e++)
        scores[e] = scores[e] / sum;
}

/* Best score of a group, or the sum of its two best (NOAUX). */
static float group_score(const struct kern_gate *gate, const float *choice, uint32_t size)
{
    float first = -INFINITY, second = -INFINITY;
    for (uint32_t i = 0; i < size; i++) {
        if (choice[i] > first) {
            second = first;
            first = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    }
    return gate->method == KERN_GATE_NOAUX && size > 1 ? first + second : first;
}

/* The losing groups of `choice` become minus infinity. Of equal groups the lower one stays. */
static void groups_mask(const struct kern_gate *gate, float *choice)
{
    float best[GROUPS_MAX];
    const uint32_t size = gate->experts / gate->groups;
    uint64_t kept = 0;
    for (uint32_t g = 0; g < gate->groups; g++)
        best[g] = group_score(gate, choice + (size_t)g * size, size);
    for (uint32_t i = 0; i < gate->top_groups; i++) {
        uint32_t winner = gate->groups;
        for (uint32_t g = 0; g < gate->groups; g++) {
            if (!(kept >> g & 1) && (winner == gate->groups || best[g] > best[winner]))
                winner = g;
        }
        kept |= UINT64_C(1) << winner;
    }
    for (uint32_t e = 0; e < gate->experts; e++) {
        if (!(kept >> (e / size) & 1))
            choice[e] = -INFINITY;
    }
}

/* ids of the top_k highest, strongest first; an insertion into a short sorted list, so an expert
 * never passes an equal one of lower id. */
static void top_k_pick(const struct kern_gate *gate, const float *choice, uint32_t *ids)
{
    uint32_t count = 0;
    for (uint32_t e = 0; e < gate->experts; e++) {
        if (count == gate->top_k && !(choice[e] > choice[ids[count - 1]]))
            continue;
        uint32_t at = count < gate->top_k ? count++ : count - 1;
        for (; at > 0 && choice[e] > choice[ids[at - 1]]; at--)
            ids[at] = ids[at - 1];
        ids[at] = e;
    }
}

void kern_ref_gate(const struct kern_gate *gate, const float *logits, uint32_t *ids, float *weights,
                   float *scratch)
{
    float *scores = scratch, *choice = scratch + gate->experts;
    const bool grouped = gate->method != KERN_GATE_GREEDY && gate->groups > 1;
    MUST(gate->top_k >= 1 && gate->top_k <= gate->experts);
    gate_scores(gate, logits, scores);
    for (uint32_t e = 0; e < gate->experts; e++) {
        const bool biased = gate->method == KERN_GATE_NOAUX && gate->bias;
        const float value = biased ? scores[e] + gate->bias[e] : scores[e];
        choice[e] = isnan(value) ? -INFINITY : value;
    }
    if (grouped) {
        MUST(gate->groups <= GROUPS_MAX && gate->experts % gate->groups == 0);
        MUST(gate->top_groups >= 1 && gate->top_groups <= gate->groups);
        MUST(gate->experts / gate->groups * gate->top_groups >= gate->top_k);
        groups_mask(gate, choice);
    }
    top_k_pick(gate, choice, ids);
    float sum = 0;
    for (uint32_t i = 0; i < gate->top_k; i++) {
        weights[i] = scores[ids[i]];
        sum += weights[i];
    }
    for (uint32_t i = 0; i < gate->top_k; i++) {
        if (gate->normalize)
            weights[i] = weights[i] / (sum + 1e-20f);
        weights[i] *= gate->scaling;
    }
}
