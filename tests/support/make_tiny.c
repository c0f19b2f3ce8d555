#include "tests/support/make_tiny.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/rng.h"

enum kind { KIND_BF16, KIND_FP8, KIND_F32 };

struct tensor {
    char name[96];
    enum kind kind;
    uint32_t rows, cols;        /* rows = 0: a vector */
    float spread;               /* standard deviation around `middle` */
    float middle;
};

struct tiny {
    struct tiny_options options;
    struct tensor *tensors;
    size_t count, capacity;
    struct base_rng rng;
};

static _Noreturn void give_up(const char *what)
{
    fprintf(stderr, "make_tiny: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

struct tiny_options tiny_defaults(void)
{
    return (struct tiny_options){
        .seed = 1, .fp8 = true, .shards = 1, .layers = 3, .dense_layers = 1, .hidden = 64,
        .dense_width = 96, .expert_width = 32, .experts = 8, .shared_experts = 1, .top_k = 3,
        .groups = 4, .top_groups = 2, .heads = 2, .q_lora_rank = 24, .kv_lora_rank = 16,
        .nope_dim = 16, .rope_dim = 8, .v_dim = 16, .vocab = 128, .block = 32,
    };
}

static struct tensor *add(struct tiny *tiny, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static struct tensor *add(struct tiny *tiny, const char *format, ...)
{
    if (tiny->count == tiny->capacity) {
        tiny->capacity = tiny->capacity ? 2 * tiny->capacity : 256;
        tiny->tensors = realloc(tiny->tensors, tiny->capacity * sizeof *tiny->tensors);
        if (!tiny->tensors) give_up("tensors");
    }
    struct tensor *tensor = &tiny->tensors[tiny->count++];
    memset(tensor, 0, sizeof *tensor);
    va_list args;
    va_start(args, format);
    vsnprintf(tensor->name, sizeof tensor->name, format, args);
    va_end(args);
    return tensor;
}

static void add_vector(struct tiny *tiny, const char *prefix, const char *name, uint32_t size)
{
    struct tensor *tensor = add(tiny, "%s%s.weight", prefix, name);
    tensor->cols = size;
    tensor->middle = 1.0f;
    tensor->spread = 0.1f;
}

/* A matrix that a product runs over: FP8 with scales where the model is FP8. */
static void add_linear(struct tiny *tiny, const char *prefix, const char *name, uint32_t rows,
                       uint32_t cols)
{
    struct tensor *tensor = add(tiny, "%s%s.weight", prefix, name);
    tensor->rows = rows;
    tensor->cols = cols;
    tensor->spread = 1.0f / sqrtf((float)cols);
    if (!tiny->options.fp8) return;
    tensor->kind = KIND_FP8;
    float spread = tensor->spread;
    uint32_t block = tiny->options.block;
    tensor = add(tiny, "%s%s.weight_scale_inv", prefix, name);
    tensor->kind = KIND_F32;
    tensor->rows = (rows + block - 1) / block;
    tensor->cols = (cols + block - 1) / block;
    tensor->middle = spread;
    tensor->spread = spread / 8;
}

static void add_mlp(struct tiny *tiny, const char *prefix, uint32_t width)
{
    add_linear(tiny, prefix, "down_proj", tiny->options.hidden, width);
    add_linear(tiny, prefix, "gate_proj", width, tiny->options.hidden);
    add_linear(tiny, prefix, "up_proj", width, tiny->options.hidden);
}

static void add_attention(struct tiny *tiny, const char *prefix)
{
    const struct tiny_options *o = &tiny->options;
    uint32_t q_rows = o->heads * (o->nope_dim + o->rope_dim);
    if (o->q_lora_rank > 0) {
        add_linear(tiny, prefix, "q_a_proj", o->q_lora_rank, o->hidden);
        add_vector(tiny, prefix, "q_a_layernorm", o->q_lora_rank);
        add_linear(tiny, prefix, "q_b_proj", q_rows, o->q_lora_rank);
    } else {
        add_linear(tiny, prefix, "q_proj", q_rows, o->hidden);
    }
    add_linear(tiny, prefix, "kv_a_proj_with_mqa", o->kv_lora_rank + o->rope_dim, o->hidden);
    add_vector(tiny, prefix, "kv_a_layernorm", o->kv_lora_rank);
    add_linear(tiny, prefix, "kv_b_proj", o->heads * (o->nope_dim + o->v_dim), o->kv_lora_rank);
    add_linear(tiny, prefix, "o_proj", o->hidden, o->heads * o->v_dim);
}

static void add_layer(struct tiny *tiny, uint32_t layer)
{
    const struct tiny_options *o = &tiny->options;
    char prefix[64];
    snprintf(prefix, sizeof prefix, "model.layers.%u.", layer);
    add_vector(tiny, prefix, "input_layernorm", o->hidden);
    add_vector(tiny, prefix, "post_attention_layernorm", o->hidden);
    snprintf(prefix, sizeof prefix, "model.layers.%u.self_attn.", layer);
    add_attention(tiny, prefix);
    snprintf(prefix, sizeof prefix, "model.layers.%u.mlp.", layer);
    if (layer < o->dense_layers) {
        add_mlp(tiny, prefix, o->dense_width);
        return;
    }
    struct tensor *gate = add(tiny, "%sgate.weight", prefix);
    gate->rows = o->experts;
    gate->cols = o->hidden;
    gate->spread = 1.0f / sqrtf((float)o->hidden);
    struct tensor *bias = add(tiny, "%sgate.e_score_correction_bias", prefix);
    bias->kind = KIND_F32;
    bias->cols = o->experts;
    bias->spread = 0.05f;
    for (uint32_t expert = 0; expert < o->experts; expert++) {
        snprintf(prefix, sizeof prefix, "model.layers.%u.mlp.experts.%u.", layer, expert);
        add_mlp(tiny, prefix, o->expert_width);
    }
    if (o->shared_experts > 0) {
        snprintf(prefix, sizeof prefix, "model.layers.%u.mlp.shared_experts.", layer);
        add_mlp(tiny, prefix, o->expert_width * o->shared_experts);
    }
}

static void list_tensors(struct tiny *tiny)
{
    const struct tiny_options *o = &tiny->options;
    struct tensor *embed = add(tiny, "model.embed_tokens.weight");
    embed->rows = o->vocab;
    embed->cols = o->hidden;
    embed->spread = 1.0f;
    for (uint32_t layer = 0; layer < o->layers + o->mtp_layers; layer++) {
        add_layer(tiny, layer);
    }
    add_vector(tiny, "model.", "norm", o->hidden);
    struct tensor *head = add(tiny, "lm_head.weight");
    head->rows = o->vocab;
    head->cols = o->hidden;
    head->spread = 1.0f / sqrtf((float)o->hidden);

    for (size_t i = tiny->count; o->shuffle && i > 1; i--) {
        size_t other = (size_t)base_rng_below(&tiny->rng, i);
        struct tensor swap = tiny->tensors[i - 1];
        tiny->tensors[i - 1] = tiny->tensors[other];
        tiny->tensors[other] = swap;
    }
}

static uint64_t elements(const struct tensor *tensor)
{
    return (uint64_t)(tensor->rows ? tensor->rows : 1) * tensor->cols;
}

static uint64_t bytes_of(const struct tensor *tensor)
{
    return elements(tensor) * (tensor->kind == KIND_FP8 ? 1 : tensor->kind == KIND_BF16 ? 2 : 4);
}

static void write_values(struct tiny *tiny, const struct tensor *tensor, FILE *file)
{
    for (uint64_t i = 0; i < elements(tensor); i++) {
        if (tensor->kind == KIND_FP8) {
            /* Magnitudes of 2^-3 to 2^2 times the scale, either sign: never a NaN code. */
            uint64_t bits = base_rng_u64(&tiny->rng);
            unsigned char code = (unsigned char)((bits & 0x80) | (0x20 + (bits >> 8) % 0x28));
            fwrite(&code, 1, 1, file);
            continue;
        }
        float value = tensor->middle + tensor->spread * (float)base_rng_normal(&tiny->rng);
        uint32_t word;
        memcpy(&word, &value, sizeof word);
        uint16_t half = (uint16_t)(word >> 16);
        if (tensor->kind == KIND_F32) {
            fwrite(&word, sizeof word, 1, file);
        } else {
            fwrite(&half, sizeof half, 1, file);
        }
    }
}

/* Tensors [from, to) as one safetensors file. */
static void write_shard(struct tiny *tiny, const char *path, size_t from, size_t to)
{
    static const char *const names[] = { "BF16", "F8_E4M3", "F32" };
    char *header = NULL;
    size_t size = 0;
    FILE *text = open_memstream(&header, &size);
    if (!text) give_up(path);
    fprintf(text, "{\"__metadata__\":{\"format\":\"pt\"}");
    uint64_t at = 0;
    for (size_t i = from; i < to; i++) {
        const struct tensor *tensor = &tiny->tensors[i];
        fprintf(text, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", tensor->name, names[tensor->kind]);
        if (tensor->rows) fprintf(text, "%u,", tensor->rows);
        fprintf(text, "%u],\"data_offsets\":[%llu,%llu]}", tensor->cols, (unsigned long long)at,
                (unsigned long long)(at + bytes_of(tensor)));
        at += bytes_of(tensor);
    }
    fputc('}', text);
    fflush(text);
    while (size % 8 != 0) {
        fputc(' ', text);
        fflush(text);
    }
    fclose(text);

    FILE *file = fopen(path, "wb");
    if (!file) give_up(path);
    uint64_t length = size;
    fwrite(&length, sizeof length, 1, file);
    fwrite(header, 1, size, file);
    for (size_t i = from; i < to; i++) {
        write_values(tiny, &tiny->tensors[i], file);
    }
    if (fclose(file) != 0) give_up(path);
    free(header);
}

static void shard_name(char *name, size_t size, uint32_t shard, uint32_t shards)
{
    if (shards == 1) {
        snprintf(name, size, "model.safetensors");
    } else {
        snprintf(name, size, "model-%05u-of-%05u.safetensors", shard + 1, shards);
    }
}

static void write_shards(struct tiny *tiny, const char *dir)
{
    uint32_t shards = tiny->options.shards ? tiny->options.shards : 1;
    char path[4096], name[64];
    uint64_t total = 0;
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    FILE *index = shards > 1 ? fopen(path, "w") : NULL;
    if (shards > 1 && !index) give_up(path);
    if (index) fprintf(index, "{\"weight_map\":{");
    for (uint32_t shard = 0; shard < shards; shard++) {
        size_t from = tiny->count * shard / shards, to = tiny->count * (shard + 1) / shards;
        shard_name(name, sizeof name, shard, shards);
        snprintf(path, sizeof path, "%s/%s", dir, name);
        write_shard(tiny, path, from, to);
        for (size_t i = from; i < to; i++) {
            total += bytes_of(&tiny->tensors[i]);
            if (index) fprintf(index, "%s\"%s\":\"%s\"", i ? "," : "", tiny->tensors[i].name, name);
        }
    }
    if (index) {
        fprintf(index, "},\"metadata\":{\"total_size\":%llu}}\n", (unsigned long long)total);
        fclose(index);
    }
}

static void write_config(const struct tiny_options *o, const char *dir)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *file = fopen(path, "w");
    if (!file) give_up(path);
    fprintf(file,
            "{\"architectures\":[\"DeepseekV3ForCausalLM\"],\"model_type\":\"deepseek_v3\","
            "\"attention_bias\":false,\"bos_token_id\":0,\"eos_token_id\":1,"
            "\"hidden_act\":\"silu\",\"max_position_embeddings\":512,\"moe_layer_freq\":1,"
            "\"norm_topk_prob\":true,\"rope_scaling\":null,\"rope_theta\":10000.0,"
            "\"rms_norm_eps\":1e-06,\"routed_scaling_factor\":2.5,\"scoring_func\":\"sigmoid\","
            "\"topk_method\":\"noaux_tc\",\"tie_word_embeddings\":false,"
            "\"torch_dtype\":\"bfloat16\"");
    const struct {
        const char *key;
        uint32_t value;
    } keys[] = {
        { "vocab_size", o->vocab }, { "hidden_size", o->hidden },
        { "intermediate_size", o->dense_width }, { "moe_intermediate_size", o->expert_width },
        { "num_hidden_layers", o->layers }, { "num_nextn_predict_layers", o->mtp_layers },
        { "first_k_dense_replace", o->dense_layers }, { "num_attention_heads", o->heads },
        { "num_key_value_heads", o->heads }, { "kv_lora_rank", o->kv_lora_rank },
        { "qk_nope_head_dim", o->nope_dim }, { "qk_rope_head_dim", o->rope_dim },
        { "v_head_dim", o->v_dim }, { "n_routed_experts", o->experts },
        { "n_shared_experts", o->shared_experts }, { "num_experts_per_tok", o->top_k },
        { "n_group", o->groups }, { "topk_group", o->top_groups },
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        fprintf(file, ",\"%s\":%u", keys[i].key, keys[i].value);
    }
    if (o->q_lora_rank > 0) {
        fprintf(file, ",\"q_lora_rank\":%u", o->q_lora_rank);
    } else {
        fprintf(file, ",\"q_lora_rank\":null");
    }
    if (o->fp8) {
        fprintf(file,
                ",\"quantization_config\":{\"activation_scheme\":\"dynamic\",\"fmt\":\"e4m3\","
                "\"quant_method\":\"fp8\",\"weight_block_size\":[%u,%u]}",
                o->block, o->block);
    }
    fprintf(file, "}\n");
    if (fclose(file) != 0) give_up(path);
}

void tiny_write(const char *dir, const struct tiny_options *options)
{
    struct tiny tiny = { .options = *options };
    if (mkdir(dir, 0777) < 0 && errno != EEXIST) give_up(dir);
    base_rng_init(&tiny.rng, options->seed);
    list_tensors(&tiny);
    write_config(options, dir);
    write_shards(&tiny, dir);
    free(tiny.tensors);
}

void tiny_folder(char *dir, size_t size, const char *name)
{
    const char *build = getenv("EXPERTIER_BUILD");
    int length = snprintf(dir, size, "%s/%s_XXXXXX", build ? build : ".", name);
    if (length < 0 || (size_t)length >= size || !mkdtemp(dir)) give_up(dir);
}

void tiny_remove(const char *dir)
{
    DIR *folder = opendir(dir);
    char path[4096];
    struct dirent *entry;
    while (folder && (entry = readdir(folder)) != NULL) {
        if (entry->d_name[0] == '.' && (!entry->d_name[1] || entry->d_name[1] == '.')) continue;
        if (snprintf(path, sizeof path, "%s/%s", dir, entry->d_name) < (int)sizeof path) {
            if (unlink(path) < 0 && errno == EISDIR) tiny_remove(path);
        }
    }
    if (folder) closedir(folder);
    rmdir(dir);
}
