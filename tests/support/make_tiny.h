/* Writes a small random checkpoint folder of the DeepSeek-V3 architecture, for tests.
 *
 * config.json and safetensors (one file or shards with their index), FP8 with block scales or BF16.
 * The same options give the same bytes. Weights are scaled so that a forward pass stays finite.
 * No tokenizer. Failures end the process with a sentence: a test cannot go on without its model.
 */
#ifndef TESTS_SUPPORT_MAKE_TINY_H
#define TESTS_SUPPORT_MAKE_TINY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tiny_options {
    uint64_t seed;
    bool fp8;                   /* else BF16 */
    bool shuffle;               /* tensors in random order: an expert's parts lie far apart */
    uint32_t shards;            /* 1 = model.safetensors */
    uint32_t layers, dense_layers, mtp_layers;
    uint32_t hidden, dense_width, expert_width;
    uint32_t experts, shared_experts, top_k, groups, top_groups;
    uint32_t heads, q_lora_rank, kv_lora_rank, nope_dim, rope_dim, v_dim;
    uint32_t vocab, block;      /* block x block weights share an FP8 scale */
};

/* A model of 3 layers, 2 of them with 8 experts: about 300 KB. */
struct tiny_options tiny_defaults(void);

/* Makes `dir` (it may exist) and writes the checkpoint there. */
void tiny_write(const char *dir, const struct tiny_options *options);

/* Makes a fresh folder "NAME_XXXXXX" in the build folder (file systems there take O_DIRECT) and
 * puts its path into `dir`. */
void tiny_folder(char *dir, size_t size, const char *name);

/* Removes a folder with all that is in it. */
void tiny_remove(const char *dir);

#endif
