#include "model/shape.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/must.h"
#include "model/show.h"
#include "port/hash.h"
#include "port/json.h"

enum { CONFIG_BYTES_MAX = 16 << 20 };

/* Reads keys of one object; the first fault sticks, so that a list of keys reads as a list. */
struct reader {
    const struct port_json *object;
    const char *where;
    struct base_err *err;
    int rc;
};

static void fault(struct reader *r, int code, const char *format, ...) BASE_PRINTF(3, 4);
static void fault(struct reader *r, int code, const char *format, ...)
{
    if (r->rc < 0) return;
    char text[BASE_ERR_TEXT];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    r->rc = base_err_set(r->err, code, "%s: %s", r->where, text);
}

static bool key_is_null(const struct reader *r, const char *key)
{
    const struct port_json *value = port_json_get(r->object, key);
    return value && port_json_type(value) == PORT_JSON_NULL;
}

static bool key_has_value(const struct reader *r, const char *key)
{
    const struct port_json *value = port_json_get(r->object, key);
    return value && port_json_type(value) != PORT_JSON_NULL;
}

static uint32_t read_u32(struct reader *r, const char *key, uint32_t min, uint32_t max,
                         uint32_t fallback)
{
    int64_t value = fallback;
    if (r->rc == 0) {
        r->rc = port_json_i64(r->object, key, false, min, max, fallback, &value, r->where, r->err);
    }
    return (uint32_t)value;
}

/* The same for keys whose null says "there is none". */
static uint32_t read_u32_or_none(struct reader *r, const char *key, uint32_t max, uint32_t fallback)
{
    return key_is_null(r, key) ? 0 : read_u32(r, key, 0, max, fallback);
}

static double read_double(struct reader *r, const char *key, double min, double max,
                          double fallback)
{
    double value = fallback;
    if (r->rc == 0) {
        r->rc = port_json_double(r->object, key, false, fallback, &value, r->where, r->err);
    }
    if (!(value >= min && value <= max)) {
        fault(r, BASE_EFORMAT, "%s is %g, which is not within %g .. %g", key, value, min, max);
    }
    return value;
}

static bool read_bool(struct reader *r, const char *key, bool fallback)
{
    bool value = fallback;
    if (r->rc == 0) {
        r->rc = port_json_bool(r->object, key, false, fallback, &value, r->where, r->err);
    }
    return value;
}

/* A string key; `fallback` when it is absent or null. */
static const char *read_text(struct reader *r, const char *key, const char *fallback)
{
    if (!key_has_value(r, key)) return fallback;
    const char *text = port_json_text(port_json_get(r->object, key), NULL);
    if (!text) fault(r, BASE_EFORMAT, "%s must be a string", key);
    return text ? text : fallback;
}

static bool text_is(const char *a, const char *b)
{
    return a && strcmp(a, b) == 0;
}

static void read_family(struct reader *r, struct model_shape *shape)
{
    const char *type = read_text(r, "model_type", NULL);
    if (text_is(type, "deepseek_v3")) {
        shape->family = MODEL_DEEPSEEK_V3;
    } else if (text_is(type, "deepseek_v2")) {
        shape->family = MODEL_DEEPSEEK_V2;
    } else {
        fault(r, BASE_EVERSION, "model_type is '%s'; deepseek_v3 and deepseek_v2 are supported",
              model_show(type).text);
    }
    const char *activation = read_text(r, "hidden_act", "silu");
    if (!text_is(activation, "silu")) {
        fault(r, BASE_EVERSION, "hidden_act is '%s', only silu is supported",
              model_show(activation).text);
    }
    shape->attention_bias = read_bool(r, "attention_bias", false);
    if (shape->attention_bias) {
        fault(r, BASE_EVERSION, "attention_bias is true, which is not supported");
    }
    if (read_bool(r, "mlp_bias", false)) {
        fault(r, BASE_EVERSION, "mlp_bias is true, which is not supported");
    }
}

/* The bounds are far above any model and keep every product of two dimensions within 64 bits and
 * every width within 32. */
static void read_dimensions(struct reader *r, struct model_shape *s)
{
    bool v3 = s->family == MODEL_DEEPSEEK_V3;
    s->layers = read_u32(r, "num_hidden_layers", 1, 4096, v3 ? 61 : 32);
    s->hidden = read_u32(r, "hidden_size", 1, 1 << 20, v3 ? 7168 : 4096);
    s->dense_width = read_u32(r, "intermediate_size", 1, 1 << 22, v3 ? 18432 : 11008);
    s->heads = read_u32(r, "num_attention_heads", 1, 4096, v3 ? 128 : 32);
    s->q_lora_rank = read_u32_or_none(r, "q_lora_rank", 1 << 20, 1536);
    s->kv_lora_rank = read_u32(r, "kv_lora_rank", 1, 1 << 16, 512);
    s->qk_nope_dim = read_u32(r, "qk_nope_head_dim", 1, 4096, 128);
    s->qk_rope_dim = read_u32(r, "qk_rope_head_dim", 2, 4096, 64);
    s->v_dim = read_u32(r, "v_head_dim", 1, 4096, 128);
    s->vocab = read_u32(r, "vocab_size", 1, 1 << 24, v3 ? 129280 : 102400);
    s->positions_max = read_u32(r, "max_position_embeddings", 1, 1 << 30, v3 ? 4096 : 2048);
    s->rms_eps = read_double(r, "rms_norm_eps", 1e-30, 0.1, 1e-6);
    s->tied_embeddings = read_bool(r, "tie_word_embeddings", false);
    if (s->qk_rope_dim % 2 != 0) {
        fault(r, BASE_EFORMAT, "qk_rope_head_dim is %u; rotation needs an even number",
              s->qk_rope_dim);
    }
    uint32_t kv_heads = read_u32(r, "num_key_value_heads", 1, 4096, s->heads);
    if (kv_heads != s->heads) {
        fault(r, BASE_EMISMATCH,
              "num_key_value_heads is %u, but latent attention needs it to equal "
              "num_attention_heads, %u",
              kv_heads, s->heads);
    }
    uint32_t qk = read_u32(r, "qk_head_dim", 1, 8192, s->qk_nope_dim + s->qk_rope_dim);
    if (qk != s->qk_nope_dim + s->qk_rope_dim) {
        fault(r, BASE_EMISMATCH, "qk_head_dim is %u, but qk_nope_head_dim + qk_rope_head_dim is %u",
              qk, s->qk_nope_dim + s->qk_rope_dim);
    }
}

static uint32_t read_mtp_layers(struct reader *r, const struct model_shape *s)
{
    uint32_t fallback = s->family == MODEL_DEEPSEEK_V3 ? 1 : 0;
    uint32_t old = read_u32(r, "num_nextn_predict_layers", 0, 64, fallback);
    uint32_t new = read_u32(r, "num_mtp_layers", 0, 64, old);
    if (key_has_value(r, "num_nextn_predict_layers") && new != old) {
        fault(r, BASE_EMISMATCH, "num_mtp_layers is %u, but num_nextn_predict_layers is %u", new,
              old);
    }
    return new;
}

static void check_groups(struct reader *r, const struct model_shape *s)
{
    if (s->groups == 0 || s->top_groups == 0) {
        fault(r, BASE_EFORMAT, "the gate chooses among groups, but n_group or topk_group is null "
              "or 0");
        return;
    }
    if (s->groups > MODEL_GROUPS_MAX) {
        fault(r, BASE_EVERSION, "n_group, %u, is more than the %d groups that a gate can have here",
              s->groups, MODEL_GROUPS_MAX);
    }
    if (s->experts % s->groups != 0) {
        fault(r, BASE_EMISMATCH, "n_routed_experts, %u, is no multiple of n_group, %u", s->experts,
              s->groups);
    }
    if (s->top_groups > s->groups) {
        fault(r, BASE_EMISMATCH, "topk_group, %u, exceeds n_group, %u", s->top_groups, s->groups);
    }
    uint32_t group_size = s->experts / s->groups;
    if (s->topk_method == MODEL_TOPK_NOAUX && group_size < 2) {
        fault(r, BASE_EMISMATCH,
              "topk_method noaux_tc scores a group by its two best experts, but "
              "groups have %u (n_routed_experts %u, n_group %u)",
              group_size, s->experts, s->groups);
    }
    if (s->top_k > s->top_groups * group_size) {
        fault(r, BASE_EMISMATCH, "num_experts_per_tok, %u, exceeds the %u experts of topk_group %u "
              "groups", s->top_k, s->top_groups * group_size, s->top_groups);
    }
}

static void read_gate_method(struct reader *r, struct model_shape *s)
{
    bool v3 = s->family == MODEL_DEEPSEEK_V3;
    const char *scoring = read_text(r, "scoring_func", v3 ? "sigmoid" : "softmax");
    const char *method = read_text(r, "topk_method", v3 ? "noaux_tc" : "greedy");
    if (text_is(scoring, "sigmoid")) {
        s->scoring = MODEL_SCORE_SIGMOID;
    } else if (text_is(scoring, "softmax")) {
        s->scoring = MODEL_SCORE_SOFTMAX;
    } else {
        fault(r, BASE_EVERSION, "scoring_func is '%s'; sigmoid and softmax are supported",
              model_show(scoring).text);
    }
    if (text_is(method, "noaux_tc")) {
        s->topk_method = MODEL_TOPK_NOAUX;
    } else if (text_is(method, "group_limited_greedy")) {
        s->topk_method = MODEL_TOPK_GROUP_MAX;
    } else if (text_is(method, "greedy")) {
        s->topk_method = MODEL_TOPK_GREEDY;
    } else {
        fault(r, BASE_EVERSION,
              "topk_method is '%s'; noaux_tc, group_limited_greedy and greedy are supported",
              model_show(method).text);
    }
}

static void read_experts(struct reader *r, struct model_shape *s)
{
    bool v3 = s->family == MODEL_DEEPSEEK_V3;
    s->experts = read_u32_or_none(r, "n_routed_experts", 1 << 16, v3 ? 256 : 64);
    s->shared_experts = read_u32_or_none(r, "n_shared_experts", 1024, v3 ? 1 : 2);
    s->expert_width = read_u32(r, "moe_intermediate_size", 1, 1 << 20, v3 ? 2048 : 1407);
    s->dense_layers = read_u32(r, "first_k_dense_replace", 0, 4096, v3 ? 3 : 0);
    s->moe_layer_freq = read_u32(r, "moe_layer_freq", 1, 4096, 1);
    s->mtp_layers = read_mtp_layers(r, s);
    s->top_k = read_u32_or_none(r, "num_experts_per_tok", 1 << 16, v3 ? 8 : 0);
    s->norm_topk = read_bool(r, "norm_topk_prob", v3);
    s->routed_scaling = read_double(r, "routed_scaling_factor", 1e-6, 1e6, v3 ? 2.5 : 1.0);
    read_gate_method(r, s);
    s->groups = read_u32_or_none(r, "n_group", 1 << 16, v3 ? 8 : 0);
    s->top_groups = read_u32_or_none(r, "topk_group", 1 << 16, v3 ? 4 : 0);
    if (s->topk_method == MODEL_TOPK_GREEDY) s->groups = s->top_groups = 1;
    if (s->dense_layers > s->layers) {
        fault(r, BASE_EMISMATCH, "first_k_dense_replace, %u, exceeds num_hidden_layers, %u",
              s->dense_layers, s->layers);
    }
    if (s->experts == 0) {
        s->groups = s->top_groups = 1;
        s->top_k = 0;
        return;
    }
    if (s->top_k == 0 || s->top_k > s->experts) {
        fault(r, BASE_EMISMATCH, "num_experts_per_tok is %u, but must be within 1 .. "
              "n_routed_experts, %u", s->top_k, s->experts);
    }
    check_groups(r, s);
}

/* One description of the rotary part: `rope_scaling` (null, or YaRN) or the newer `rope_parameters`
 * (with the type "default" for none, and rope_theta inside). */
static void read_rope_object(struct reader *parent, const struct port_json *object, const char *key,
                             double *theta, struct model_yarn *yarn)
{
    char where[512];
    snprintf(where, sizeof where, "%s: %s", parent->where, key);
    struct reader r = { .object = object, .where = where, .err = parent->err, .rc = parent->rc };
    if (port_json_type(object) != PORT_JSON_OBJECT) {
        fault(&r, BASE_EFORMAT, "it must be an object or null");
    }
    const char *type = read_text(&r, "rope_type", NULL);
    const char *old_type = read_text(&r, "type", type);
    if (type && !text_is(old_type, type)) {
        fault(&r, BASE_EMISMATCH, "rope_type is '%s', but type is '%s'", model_show(type).text,
              model_show(old_type).text);
    }
    *theta = read_double(&r, "rope_theta", 1.001, 1e15, *theta);
    if (read_double(&r, "partial_rotary_factor", 0, 1, 1) != 1) {
        fault(&r, BASE_EVERSION, "a partial_rotary_factor other than 1 is not supported");
    }
    if (text_is(old_type, "yarn")) {
        *yarn = (struct model_yarn){ .enabled = true };
        if (!key_has_value(&r, "factor") ||
            !key_has_value(&r, "original_max_position_embeddings")) {
            fault(&r, BASE_EFORMAT, "yarn needs factor and original_max_position_embeddings");
        }
        yarn->factor = read_double(&r, "factor", 1, 1e6, 1);
        yarn->original_positions =
            read_u32(&r, "original_max_position_embeddings", 1, 1 << 30, 4096);
        yarn->beta_fast = read_double(&r, "beta_fast", 1e-6, 1e6, 32);
        yarn->beta_slow = read_double(&r, "beta_slow", 1e-6, 1e6, 1);
        yarn->mscale = read_double(&r, "mscale", 0, 1e3, 1);
        yarn->mscale_all_dim = read_double(&r, "mscale_all_dim", 0, 1e3, 0);
        if (yarn->beta_slow > yarn->beta_fast) {
            fault(&r, BASE_EMISMATCH, "beta_slow, %g, exceeds beta_fast, %g", yarn->beta_slow,
                  yarn->beta_fast);
        }
        if (key_has_value(&r, "attention_factor") || !read_bool(&r, "truncate", true)) {
            fault(&r, BASE_EVERSION, "attention_factor and truncate: false are not supported");
        }
    } else if (old_type && !text_is(old_type, "default")) {
        fault(&r, BASE_EVERSION, "type is '%s'; yarn and default are supported",
              model_show(old_type).text);
    } else if (!old_type && key_has_value(&r, "factor")) {
        fault(&r, BASE_EFORMAT, "there is a factor, but no type");
    }
    parent->rc = r.rc;
}

static bool yarn_equal(const struct model_yarn *a, const struct model_yarn *b)
{
    return a->enabled == b->enabled && a->factor == b->factor && a->beta_fast == b->beta_fast &&
           a->beta_slow == b->beta_slow && a->mscale == b->mscale &&
           a->mscale_all_dim == b->mscale_all_dim &&
           a->original_positions == b->original_positions;
}

static void read_rope(struct reader *r, struct model_shape *s)
{
    s->rope_interleaved = read_bool(r, "rope_interleave", true);
    s->rope_theta = read_double(r, "rope_theta", 1.001, 1e15, 10000);
    bool has_scaling = key_has_value(r, "rope_scaling");
    bool has_parameters = key_has_value(r, "rope_parameters");
    double theta = s->rope_theta;
    struct model_yarn old = { 0 }, new = { 0 };
    if (has_scaling) {
        read_rope_object(r, port_json_get(r->object, "rope_scaling"), "rope_scaling", &theta, &old);
    }
    if (has_parameters) {
        read_rope_object(r, port_json_get(r->object, "rope_parameters"), "rope_parameters", &theta,
                         &new);
    }
    if (has_scaling && has_parameters && !yarn_equal(&old, &new)) {
        fault(r, BASE_EMISMATCH, "rope_scaling and rope_parameters do not say the same");
    }
    s->yarn = has_parameters ? new : old;
    if (key_has_value(r, "rope_theta") && theta != s->rope_theta) {
        fault(r, BASE_EMISMATCH, "rope_theta is %g, but %g in rope_%s", s->rope_theta, theta,
              has_parameters ? "parameters" : "scaling");
    }
    s->rope_theta = theta;
}

static void read_quantization(struct reader *parent, struct model_shape *s)
{
    if (!key_has_value(parent, "quantization_config")) return;
    char where[512];
    snprintf(where, sizeof where, "%s: quantization_config", parent->where);
    struct reader r = { .object = port_json_get(parent->object, "quantization_config"),
                        .where = where, .err = parent->err, .rc = parent->rc };
    if (port_json_type(r.object) != PORT_JSON_OBJECT) {
        fault(&r, BASE_EFORMAT, "it must be an object or null");
    }
    const char *method = read_text(&r, "quant_method", "(absent)");
    const char *format = read_text(&r, "fmt", "e4m3");
    if (!text_is(method, "fp8") || !text_is(format, "e4m3")) {
        fault(&r, BASE_EVERSION, "quant_method '%s' with fmt '%s'; only fp8 with e4m3 is "
              "supported", model_show(method).text, model_show(format).text);
    }
    const struct port_json *block = port_json_get(r.object, "weight_block_size");
    s->fp8_block_rows = s->fp8_block_cols = 128;
    if (block) {
        int64_t rows = port_json_as_i64(port_json_at(block, 0));
        int64_t cols = port_json_as_i64(port_json_at(block, 1));
        if (port_json_type(block) != PORT_JSON_ARRAY || port_json_count(block) != 2 || rows < 1 ||
            cols < 1 || rows > 65536 || cols > 65536) {
            fault(&r, BASE_EFORMAT,
                  "weight_block_size must be two whole numbers within 1 .. 65536, "
                  "as in [128, 128]");
        }
        s->fp8_block_rows = (uint32_t)rows;
        s->fp8_block_cols = (uint32_t)cols;
    }
    parent->rc = r.rc;
}

static bool read_token_id(struct reader *r, const struct port_json *value, const char *key,
                          const struct model_shape *s, int32_t *id)
{
    if (port_json_type(value) != PORT_JSON_INT) {
        fault(r, BASE_EFORMAT, "%s must be a whole number, a list of them (eos), or null", key);
        return false;
    }
    int64_t number = port_json_as_i64(value);
    if (number < 0 || number >= s->vocab) {
        fault(r, BASE_EMISMATCH, "%s is %lld, but vocab_size is %u", key, (long long)number,
              s->vocab);
        return false;
    }
    *id = (int32_t)number;
    return true;
}

static void add_eos(struct reader *r, const struct port_json *value, struct model_shape *s)
{
    int32_t id;
    if (!read_token_id(r, value, "eos_token_id", s, &id)) return;
    for (uint32_t i = 0; i < s->eos_count; i++) {
        if (s->eos_ids[i] == id) return;
    }
    if (s->eos_count == sizeof s->eos_ids / sizeof s->eos_ids[0]) {
        fault(r, BASE_EFORMAT, "eos_token_id: more than %u different ids", s->eos_count);
        return;
    }
    s->eos_ids[s->eos_count++] = id;
}

static void read_eos(struct reader *r, struct model_shape *s)
{
    const struct port_json *value = port_json_get(r->object, "eos_token_id");
    if (!value || port_json_type(value) == PORT_JSON_NULL) return;
    if (port_json_type(value) != PORT_JSON_ARRAY) {
        add_eos(r, value, s);
        return;
    }
    for (size_t i = 0; i < port_json_count(value); i++) add_eos(r, port_json_at(value, i), s);
}

static void read_tokens(struct reader *r, struct model_shape *s)
{
    bool v3 = s->family == MODEL_DEEPSEEK_V3;
    for (size_t i = 0; i < sizeof s->eos_ids / sizeof s->eos_ids[0]; i++) s->eos_ids[i] = -1;
    s->bos_id = v3 ? 0 : 1;
    const struct port_json *bos = port_json_get(r->object, "bos_token_id");
    if (key_is_null(r, "bos_token_id")) {
        s->bos_id = -1;
    } else if (bos) {
        read_token_id(r, bos, "bos_token_id", s, &s->bos_id);
    }
    read_eos(r, s);
    if (!port_json_get(r->object, "eos_token_id")) s->eos_ids[s->eos_count++] = v3 ? 1 : 2;
}

static int shape_read(struct model_shape *shape, const struct port_json *root, const char *where,
                      struct base_err *err)
{
    struct reader r = { .object = root, .where = where, .err = err };
    if (port_json_type(root) != PORT_JSON_OBJECT) {
        fault(&r, BASE_EFORMAT, "the file must hold one JSON object");
    }
    read_family(&r, shape);
    read_dimensions(&r, shape);
    read_experts(&r, shape);
    read_rope(&r, shape);
    read_quantization(&r, shape);
    read_tokens(&r, shape);
    return r.rc;
}

/* What /v1/models shows: cut at a character's begin if the folder's name is very long. */
static void name_set(struct model_shape *shape, const char *name)
{
    size_t size = strlen(name);
    if (size >= sizeof shape->name) {
        size = sizeof shape->name - 1;
        while (size > 0 && ((unsigned char)name[size] & 0xc0) == 0x80) size--;
    }
    memcpy(shape->name, name, size);
    shape->name[size] = '\0';
}

int model_shape_parse(struct model_shape *shape, const char *json, size_t size, const char *name,
                      struct base_err *err)
{
    *shape = (struct model_shape){ 0 };
    struct port_json *root = NULL;
    int rc = port_json_parse(&root, json, size, name, err);
    if (rc == 0) rc = shape_read(shape, root, name, err);
    port_json_free(root);
    name_set(shape, name);
    return rc;
}

static void name_from_folder(struct model_shape *shape, const char *dir)
{
    char *real = realpath(dir, NULL);
    const char *path = real ? real : dir;
    const char *slash = strrchr(path, '/');
    name_set(shape, slash && slash[1] ? slash + 1 : path);
    free(real);
}

/* Generation stops at the ids of both files: fine-tuned checkpoints often list theirs only
 * there. */
static int generation_eos_add(struct model_shape *shape, const char *dir, struct base_err *err)
{
    char *path;
    if (asprintf(&path, "%s/generation_config.json", dir) < 0) return -ENOMEM;
    struct port_json *root = NULL;
    int rc = 0;
    if (access(path, F_OK) == 0) {
        rc = port_json_load(&root, path, CONFIG_BYTES_MAX, err);
        struct reader r = { .object = root, .where = path, .err = err, .rc = rc };
        if (rc == 0) read_eos(&r, shape);
        rc = r.rc;
    }
    port_json_free(root);
    free(path);
    return rc;
}

int model_shape_load(struct model_shape *shape, const char *dir, struct base_err *err)
{
    *shape = (struct model_shape){ 0 };
    char *path;
    if (asprintf(&path, "%s/config.json", dir) < 0) return -ENOMEM;
    struct port_json *root = NULL;
    int rc = port_json_load(&root, path, CONFIG_BYTES_MAX, err);
    if (rc == 0) rc = shape_read(shape, root, path, err);
    port_json_free(root);
    free(path);
    if (rc < 0) return rc;
    name_from_folder(shape, dir);
    return generation_eos_add(shape, dir, err);
}

/* Field by field: what lies between them has no value. */
uint64_t model_shape_hash(const struct model_shape *shape)
{
    struct port_hash hash;
    port_hash_begin(&hash);
#define ADD(field) port_hash_add(&hash, &shape->field, sizeof shape->field)
    ADD(family); ADD(layers); ADD(mtp_layers); ADD(dense_layers); ADD(moe_layer_freq);
    ADD(hidden); ADD(dense_width); ADD(expert_width); ADD(experts); ADD(shared_experts);
    ADD(top_k); ADD(groups); ADD(top_groups); ADD(scoring); ADD(topk_method); ADD(norm_topk);
    ADD(routed_scaling); ADD(heads); ADD(q_lora_rank); ADD(kv_lora_rank); ADD(qk_nope_dim);
    ADD(qk_rope_dim); ADD(v_dim); ADD(vocab); ADD(positions_max); ADD(rms_eps); ADD(rope_theta);
    ADD(yarn.enabled); ADD(yarn.factor); ADD(yarn.beta_fast); ADD(yarn.beta_slow);
    ADD(yarn.mscale); ADD(yarn.mscale_all_dim); ADD(yarn.original_positions);
    ADD(rope_interleaved); ADD(attention_bias); ADD(tied_embeddings); ADD(fp8_block_rows);
    ADD(fp8_block_cols); ADD(bos_id); ADD(eos_ids); ADD(eos_count);
#undef ADD
    return port_hash_end(&hash);
}

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

double model_shape_softmax_scale(const struct model_shape *shape)
{
    double scale = 1 / sqrt((double)shape->qk_nope_dim + shape->qk_rope_dim);
    if (!shape->yarn.enabled || shape->yarn.mscale_all_dim == 0) return scale;
    double mscale = yarn_mscale(shape->yarn.factor, shape->yarn.mscale_all_dim);
    return scale * mscale * mscale;
}

/* The dimension that turns `rotations` times over the original context. */
static double yarn_dimension(const struct model_shape *shape, double rotations)
{
    double wavelengths = shape->yarn.original_positions / (rotations * 2 * M_PI);
    return shape->qk_rope_dim * log(wavelengths) / (2 * log(shape->rope_theta));
}

void model_shape_rope(const struct model_shape *shape, double *inverse_frequency, double *magnitude)
{
    MUST(shape->qk_rope_dim >= 2 && shape->qk_rope_dim % 2 == 0);
    uint32_t pairs = shape->qk_rope_dim / 2;
    for (uint32_t i = 0; i < pairs; i++) {
        inverse_frequency[i] = 1 / pow(shape->rope_theta, 2.0 * i / shape->qk_rope_dim);
    }
    *magnitude = 1;
    const struct model_yarn *yarn = &shape->yarn;
    if (!yarn->enabled) return;
    double low = fmax(floor(yarn_dimension(shape, yarn->beta_fast)), 0);
    double high = fmin(ceil(yarn_dimension(shape, yarn->beta_slow)), shape->qk_rope_dim - 1.0);
    if (low == high) high += 0.001;
    for (uint32_t i = 0; i < pairs; i++) {
        /* Fast dimensions stay as trained, slow ones are stretched by the factor. */
        double stretched = fmin(fmax((i - low) / (high - low), 0), 1);
        inverse_frequency[i] *= (1 - stretched) + stretched / yarn->factor;
    }
    *magnitude = yarn_mscale(yarn->factor, yarn->mscale) /
                 yarn_mscale(yarn->factor, yarn->mscale_all_dim);
}
