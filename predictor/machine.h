/* A machine as the virtual clock sees it: rates and latencies of each tier, and what a model's
 * parts cost to compute there. Read from YAML (configs/machines, `tier-bench machine`).
 *
 *      nvme ── latency, bandwidth, depth ──> dram ── bandwidth each way ──> hbm ── compute
 *
 * A part of the model (the layer before its experts, the shared expert, one routed expert, the rest
 * of a step) that works on `rows` tokens takes
 *
 *      time + rows x token_time + the longer of  bytes / compute.bandwidth
 *                                          and   rows x weights / compute.rate
 *
 * (a warm expert that the CPU computes in dram has `cpu` for `compute`), so a description may be
 * measured (times), reckoned (rates and sizes), or both. Cold; any thread.
 */
#ifndef PREDICTOR_MACHINE_H
#define PREDICTOR_MACHINE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/option.h"

#define PRED_MACHINE_OPTIONS(O)                                                                   \
    O(name, TEXTLINE, "machine.name", "", "", "", "what this describes")                          \
    O(nvme_bandwidth, BYTES, "nvme.bandwidth", "7GB", "1..", "bytes/s",                           \
      "bytes a second that all reads together get")                                               \
    O(nvme_latency, TIME, "nvme.latency", "100us", "", "",                                        \
      "from the submission of a lone read to its first byte")                                     \
    O(nvme_depth, UINT, "nvme.depth", "32", "1..4096", "reads", "most reads in flight at once")   \
    O(nvme_take_in, TIME, "nvme.take_in", "0", "", "",                                            \
      "time of the computing thread for each expert that was read (checksum, rearranging)")       \
    O(copy_bandwidth, BYTES, "copy.bandwidth", "0", "", "bytes/s",                                \
      "bytes a second from dram to hbm, and as many back; 0 = no device, experts run in dram")    \
    O(copy_latency, TIME, "copy.latency", "10us", "", "", "of each copy")                         \
    O(cpu_bandwidth, BYTES, "cpu.bandwidth", "0", "", "bytes/s",                                  \
      "bytes of weights a second that the CPU computes warm experts from, where they lie in dram "\
      "(tiers.warm_experts: compute); 0 = not reckoned")                                          \
    O(cpu_rate, REAL, "cpu.rate", "0", "0..", "",                                                 \
      "multiply-adds a second of the CPU; 0 = not reckoned")                                      \
    O(cpu_expert_time, TIME, "cpu.expert_time", "0", "", "", "of one warm expert on the CPU")     \
    O(cpu_expert_token_time, TIME, "cpu.expert_token_time", "0", "", "",                          \
      "more for each token that uses it")                                                         \
    O(compute_bandwidth, BYTES, "compute.bandwidth", "0", "", "bytes/s",                          \
      "bytes of weights a second where experts run; 0 = not reckoned")                            \
    O(compute_rate, REAL, "compute.rate", "0", "0..", "",                                         \
      "multiply-adds a second; 0 = not reckoned")                                                 \
    O(layer_time, TIME, "compute.layer_time", "0", "", "",                                        \
      "of a layer before its experts: attention, norms, gate, launches")                          \
    O(layer_token_time, TIME, "compute.layer_token_time", "0", "", "", "more for each token")     \
    O(shared_time, TIME, "compute.shared_time", "0", "", "", "of a layer's shared expert")        \
    O(shared_token_time, TIME, "compute.shared_token_time", "0", "", "", "more for each token")   \
    O(expert_time, TIME, "compute.expert_time", "0", "", "", "of one routed expert")              \
    O(expert_token_time, TIME, "compute.expert_token_time", "0", "", "",                          \
      "more for each token that uses it")                                                         \
    O(step_time, TIME, "compute.step_time", "0", "", "",                                          \
      "of a step beside its layers with experts: embedding, dense layers, logits, sampling")      \
    O(step_token_time, TIME, "compute.step_token_time", "0", "", "", "more for each token")       \
    O(expert_bytes, BYTES, "model.expert_bytes", "0", "", "bytes",                                \
      "of one routed expert, where the trace does not say it")                                    \
    O(read_bytes, BYTES, "model.read_bytes", "0", "", "bytes",                                    \
      "that reading one expert takes from disk, pads included; 0 = the expert's own")             \
    O(expert_reads, UINT, "model.expert_reads", "1", "1..6", "reads",                             \
      "reads that one expert takes: 1 from a pack, else one for each of its parts")               \
    O(layer_bytes, BYTES, "model.layer_bytes", "0", "", "bytes",                                  \
      "weights of a layer before its experts")                                                    \
    O(shared_bytes, BYTES, "model.shared_bytes", "0", "", "bytes",                                \
      "weights of a layer's shared expert")                                                       \
    O(step_bytes, BYTES, "model.step_bytes", "0", "", "bytes",                                    \
      "weights of a step beside its layers with experts")                                         \
    O(weight_bytes, REAL, "model.weight_bytes", "1", "0.125..4", "bytes",                         \
      "of one stored weight: 1 for FP8, 2 for BF16")

struct pred_machine {
    BASE_OPTION_STRUCT(PRED_MACHINE_OPTIONS)
};
extern const struct base_option pred_machine_options[];
extern const size_t pred_machine_option_count;

/* Defaults, then the file (NULL = none). BASE_ECONFIG with the place of what is wrong. */
int pred_machine_load(struct pred_machine *machine, const char *path, struct base_err *err);
/* One "key=value" over it. */
int pred_machine_set(struct pred_machine *machine, const char *pair, struct base_err *err);

enum pred_machine_part {
    PRED_PART_LAYER,
    PRED_PART_SHARED,
    PRED_PART_EXPERT,
    PRED_PART_STEP,
    PRED_PART_WARM_EXPERT,      /* by the CPU, in dram below hbm */
};

/* Nanoseconds of a part for so many tokens. `bytes`: an expert's weights; else the model's are
 * taken. */
uint64_t pred_machine_compute_ns(const struct pred_machine *machine, enum pred_machine_part part,
                                 uint64_t bytes, uint64_t rows);

#endif
