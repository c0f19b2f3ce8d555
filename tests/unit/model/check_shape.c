/* config.json of V2 and V3 gives the right dimensions, YaRN agrees with transformers, and what does
 * not fit together is named. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/shape.h"
#include "port/json.h"

static const char v3[] =
    "{\"model_type\":\"deepseek_v3\",\"vocab_size\":129280,\"hidden_size\":7168,"
    "\"intermediate_size\":18432,\"moe_intermediate_size\":2048,\"num_hidden_layers\":61,"
    "\"num_nextn_predict_layers\":1,\"num_attention_heads\":128,\"num_key_value_heads\":128,"
    "\"n_shared_experts\":1,\"n_routed_experts\":256,\"ep_size\":1,\"routed_scaling_factor\":2.5,"
    "\"kv_lora_rank\":512,\"q_lora_rank\":1536,\"qk_rope_head_dim\":64,\"v_head_dim\":128,"
    "\"qk_nope_head_dim\":128,\"topk_method\":\"noaux_tc\",\"n_group\":8,\"topk_group\":4,"
    "\"num_experts_per_tok\":8,\"moe_layer_freq\":1,\"first_k_dense_replace\":3,"
    "\"norm_topk_prob\":true,\"scoring_func\":\"sigmoid\",\"hidden_act\":\"silu\","
    "\"max_position_embeddings\":163840,\"rms_norm_eps\":1e-06,\"rope_theta\":10000,"
    "\"rope_scaling\":{\"beta_fast\":32,\"beta_slow\":1,\"factor\":40,\"mscale\":1.0,"
    "\"mscale_all_dim\":1.0,\"original_max_position_embeddings\":4096,\"type\":\"yarn\"},"
    "\"quantization_config\":{\"activation_scheme\":\"dynamic\",\"fmt\":\"e4m3\","
    "\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]},"
    "\"tie_word_embeddings\":false,\"attention_bias\":false,\"bos_token_id\":0,"
    "\"eos_token_id\":1}";

static const char v2_lite[] =
    "{\"model_type\":\"deepseek_v2\",\"vocab_size\":102400,\"hidden_size\":2048,"
    "\"intermediate_size\":10944,\"moe_intermediate_size\":1408,\"num_hidden_layers\":27,"
    "\"num_attention_heads\":16,\"num_key_value_heads\":16,\"n_shared_experts\":2,"
    "\"n_routed_experts\":64,\"routed_scaling_factor\":1.0,\"kv_lora_rank\":512,"
    "\"q_lora_rank\":null,\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"qk_nope_head_dim\":128,"
    "\"topk_method\":\"greedy\",\"n_group\":1,\"topk_group\":1,\"num_experts_per_tok\":6,"
    "\"moe_layer_freq\":1,\"first_k_dense_replace\":1,\"norm_topk_prob\":false,"
    "\"scoring_func\":\"softmax\",\"hidden_act\":\"silu\",\"max_position_embeddings\":163840,"
    "\"rms_norm_eps\":1e-06,\"rope_theta\":10000,\"rope_scaling\":{\"beta_fast\":32,"
    "\"beta_slow\":1,\"factor\":40,\"mscale\":0.707,\"mscale_all_dim\":0.707,"
    "\"original_max_position_embeddings\":4096,\"type\":\"yarn\"},\"bos_token_id\":100000,"
    "\"eos_token_id\":[100001,100002,100001]}";

static int parse(struct model_shape *shape, const char *json, struct base_err *err)
{
    *err = (struct base_err){ 0 };
    return model_shape_parse(shape, json, strlen(json), "config.json", err);
}

static void parse_good(struct model_shape *shape, const char *json)
{
    struct base_err err;
    int rc = parse(shape, json, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
}

START_TEST(deepseek_v3_is_read)
{
    struct model_shape s;
    parse_good(&s, v3);
    ck_assert_int_eq(s.family, MODEL_DEEPSEEK_V3);
    ck_assert_uint_eq(s.layers, 61);
    ck_assert_uint_eq(s.mtp_layers, 1);
    ck_assert_uint_eq(model_shape_moe_layers(&s), 58);
    ck_assert(!model_shape_is_moe(&s, 2) && model_shape_is_moe(&s, 3));
    ck_assert_uint_eq(s.experts, 256);
    ck_assert_uint_eq(s.top_k, 8);
    ck_assert_uint_eq(s.groups, 8);
    ck_assert_uint_eq(s.top_groups, 4);
    ck_assert_int_eq(s.scoring, MODEL_SCORE_SIGMOID);
    ck_assert_int_eq(s.topk_method, MODEL_TOPK_NOAUX);
    ck_assert(s.norm_topk && s.rope_interleaved && !s.tied_embeddings);
    ck_assert_uint_eq(s.q_lora_rank, 1536);
    ck_assert_uint_eq(s.fp8_block_rows, 128);
    ck_assert_uint_eq(s.fp8_block_cols, 128);
    ck_assert_double_eq(s.routed_scaling, 2.5);
    ck_assert(s.yarn.enabled);
    ck_assert_uint_eq(s.yarn.original_positions, 4096);
    ck_assert_int_eq(s.bos_id, 0);
    ck_assert_uint_eq(s.eos_count, 1);
    ck_assert_int_eq(s.eos_ids[0], 1);
    ck_assert_int_eq(s.eos_ids[1], -1);
    /* MODEL.md's figure: (128 + 64)^-0.5 x (0.1 ln 40 + 1)^2. */
    ck_assert_double_eq_tol(model_shape_softmax_scale(&s), 0.13523377, 1e-7);
}
END_TEST

START_TEST(deepseek_v2_lite_is_read)
{
    struct model_shape s;
    parse_good(&s, v2_lite);
    ck_assert_int_eq(s.family, MODEL_DEEPSEEK_V2);
    ck_assert_uint_eq(s.q_lora_rank, 0);
    ck_assert_uint_eq(s.mtp_layers, 0);
    ck_assert_uint_eq(model_shape_moe_layers(&s), 26);
    ck_assert_int_eq(s.scoring, MODEL_SCORE_SOFTMAX);
    ck_assert_int_eq(s.topk_method, MODEL_TOPK_GREEDY);
    ck_assert(!s.norm_topk);
    ck_assert_uint_eq(s.groups, 1);
    ck_assert_uint_eq(s.fp8_block_rows, 0);
    ck_assert_uint_eq(s.eos_count, 2);
    ck_assert_int_eq(s.eos_ids[1], 100002);
}
END_TEST

/* Layers with experts are multiples of moe_layer_freq, from first_k_dense_replace on. */
START_TEST(moe_layers_are_counted_from_layer_0)
{
    static const struct {
        uint32_t dense, step, first, count;
    } cases[] = { { 3, 1, 3, 7 }, { 1, 2, 2, 4 }, { 2, 2, 2, 4 }, { 0, 3, 0, 4 }, { 4, 3, 6, 2 } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct model_shape s = { .layers = 10, .experts = 8, .dense_layers = cases[i].dense,
                                 .moe_layer_freq = cases[i].step };
        ck_assert_uint_eq(model_shape_moe_first(&s), cases[i].first);
        ck_assert_uint_eq(model_shape_moe_layers(&s), cases[i].count);
        for (uint32_t l = 0; l < s.layers; l++) {
            ck_assert_int_eq(model_shape_is_moe(&s, l),
                             l >= cases[i].dense && l % cases[i].step == 0);
        }
    }
}
END_TEST

START_TEST(absent_keys_have_hugging_face_defaults)
{
    struct model_shape s;
    parse_good(&s, "{\"model_type\":\"deepseek_v3\"}");
    ck_assert_uint_eq(s.hidden, 7168);
    ck_assert_uint_eq(s.layers, 61);
    ck_assert_uint_eq(s.positions_max, 4096);
    ck_assert_int_eq(s.topk_method, MODEL_TOPK_NOAUX);
    ck_assert(!s.yarn.enabled);
    ck_assert_int_eq(s.eos_ids[0], 1);
    parse_good(&s, "{\"model_type\":\"deepseek_v2\",\"num_experts_per_tok\":6,\"n_group\":null}");
    ck_assert_uint_eq(s.hidden, 4096);
    ck_assert_uint_eq(s.experts, 64);
    ck_assert_int_eq(s.bos_id, 1);
    ck_assert_int_eq(s.topk_method, MODEL_TOPK_GREEDY);
    parse_good(&s, "{\"model_type\":\"deepseek_v2\",\"n_routed_experts\":null,"
                   "\"bos_token_id\":null,\"eos_token_id\":null,\"rope_interleave\":false}");
    ck_assert_uint_eq(model_shape_moe_layers(&s), 0);
    ck_assert_int_eq(s.bos_id, -1);
    ck_assert_uint_eq(s.eos_count, 0);
    ck_assert(!s.rope_interleaved);
}
END_TEST

START_TEST(rope_agrees_with_transformers)
{
    char path[4096];
    const char *root = getenv("EXPERTIER_SOURCE");
    snprintf(path, sizeof path, "%s/tests/golden/shape_rope.json", root ? root : ".");
    struct base_err err = { 0 };
    struct port_json *golden;
    ck_assert_msg(port_json_load(&golden, path, 1 << 20, &err) == 0, "%s", err.text);
    ck_assert_uint_ge(port_json_count(golden), 9);
    for (size_t i = 0; i < port_json_count(golden); i++) {
        const struct port_json *item = port_json_at(golden, i);
        struct model_shape s;
        parse_good(&s, port_json_text(port_json_get(item, "config"), NULL));
        double frequencies[2048], magnitude;
        model_shape_rope(&s, frequencies, &magnitude);
        const struct port_json *list = port_json_get(item, "inverse_frequency");
        ck_assert_uint_eq(port_json_count(list), s.qk_rope_dim / 2);
        for (uint32_t k = 0; k < s.qk_rope_dim / 2; k++) {
            double want = port_json_as_double(port_json_at(list, k));
            ck_assert_msg(fabs(frequencies[k] - want) <= 1e-6 * want,
                          "case %zu, frequency %u: %.9g, not %.9g", i, k, frequencies[k], want);
        }
        ck_assert_double_eq_tol(magnitude,
                                port_json_as_double(port_json_get(item, "magnitude")), 1e-12);
        ck_assert_double_eq_tol(model_shape_softmax_scale(&s),
                                port_json_as_double(port_json_get(item, "softmax_scale")), 1e-12);
    }
    port_json_free(golden);
}
END_TEST

/* Each is added to a good V3 config, where the same key is dropped first; the sentence must name
 * the value's key. */
static const struct broken {
    const char *key;
    const char *member;         /* "key":value, or NULL for a whole file in `key` */
    int code;
    const char *says;
} brokens[] = {
    { "", NULL, BASE_EFORMAT, "config.json" },
    { "[]", NULL, BASE_EFORMAT, "object" },
    { "{\"model_type\":", NULL, BASE_EFORMAT, "config.json:1" },
    { "{\"model_type\":\"deepseek_v3\",\"model_type\":\"deepseek_v3\"}", NULL, BASE_EFORMAT,
      "model_type" },
    { "{\"model_type\":\"deepseek_v3\",\"rms_norm_eps\":NaN}", NULL, BASE_EFORMAT,
      "config.json:1" },
    { "{}", NULL, BASE_EVERSION, "model_type is '(absent)'" },
    { "model_type", "\"llama\\n\"", BASE_EVERSION, "model_type is 'llama?'" },
    { "model_type", "3", BASE_EFORMAT, "model_type must be a string" },
    { "hidden_size", "0", BASE_EFORMAT, "hidden_size" },
    { "hidden_size", "-7168", BASE_EFORMAT, "hidden_size" },
    { "hidden_size", "99999999999", BASE_EFORMAT, "hidden_size" },
    { "hidden_size", "99999999999999999999999", BASE_EFORMAT, "config.json:1" },
    { "hidden_size", "\"7168\"", BASE_EFORMAT, "hidden_size" },
    { "num_hidden_layers", "1.5", BASE_EFORMAT, "num_hidden_layers" },
    { "rms_norm_eps", "-1", BASE_EFORMAT, "rms_norm_eps" },
    { "rms_norm_eps", "1e999", BASE_EFORMAT, "config.json:1" },
    { "qk_rope_head_dim", "63", BASE_EFORMAT, "qk_rope_head_dim" },
    { "qk_head_dim", "200", BASE_EMISMATCH, "qk_head_dim" },
    { "num_key_value_heads", "8", BASE_EMISMATCH, "num_key_value_heads" },
    { "hidden_act", "\"gelu\"", BASE_EVERSION, "gelu" },
    { "attention_bias", "true", BASE_EVERSION, "attention_bias" },
    { "tie_word_embeddings", "1", BASE_EFORMAT, "tie_word_embeddings" },
    { "scoring_func", "\"tanh\"", BASE_EVERSION, "tanh" },
    { "topk_method", "\"best\"", BASE_EVERSION, "best" },
    { "n_group", "7", BASE_EMISMATCH, "n_group" },
    { "n_group", "null", BASE_EFORMAT, "n_group" },
    { "n_group", "128", BASE_EVERSION, "more than the 64 groups" },
    { "topk_group", "9", BASE_EMISMATCH, "topk_group" },
    { "num_experts_per_tok", "129", BASE_EMISMATCH, "num_experts_per_tok" },
    { "num_experts_per_tok", "0", BASE_EMISMATCH, "num_experts_per_tok" },
    { "first_k_dense_replace", "62", BASE_EMISMATCH, "first_k_dense_replace" },
    { "moe_layer_freq", "0", BASE_EFORMAT, "moe_layer_freq" },
    { "num_mtp_layers", "2", BASE_EMISMATCH, "num_mtp_layers" },
    { "routed_scaling_factor", "0", BASE_EFORMAT, "routed_scaling_factor" },
    { "rope_theta", "0.5", BASE_EFORMAT, "rope_theta" },
    { "rope_parameters", "{\"rope_type\":\"default\"}", BASE_EMISMATCH, "rope_parameters" },
    { "rope_scaling", "{\"type\":\"linear\",\"factor\":2}", BASE_EVERSION, "linear" },
    { "rope_scaling", "{\"type\":\"yarn\",\"factor\":2}", BASE_EFORMAT, "original_max" },
    { "rope_scaling", "{\"factor\":2}", BASE_EFORMAT, "no type" },
    { "rope_scaling", "7", BASE_EFORMAT, "rope_scaling" },
    { "rope_scaling", "{\"type\":\"default\",\"rope_theta\":5}", BASE_EMISMATCH, "rope_theta" },
    { "rope_scaling",
      "{\"type\":\"yarn\",\"factor\":40,\"original_max_position_embeddings\":4096,"
      "\"beta_fast\":1,\"beta_slow\":2}",
      BASE_EMISMATCH, "beta_slow" },
    { "quantization_config", "{\"quant_method\":\"awq\"}", BASE_EVERSION, "awq" },
    { "quantization_config", "{\"quant_method\":\"fp8\",\"weight_block_size\":[0,128]}",
      BASE_EFORMAT, "weight_block_size" },
    { "quantization_config", "{\"quant_method\":\"fp8\",\"weight_block_size\":null}", BASE_EFORMAT,
      "weight_block_size" },
    { "eos_token_id", "129280", BASE_EMISMATCH, "eos_token_id" },
    { "eos_token_id", "[1,2,3,4,5,6,7,8,9]", BASE_EFORMAT, "eos_token_id" },
    { "eos_token_id", "[[1]]", BASE_EFORMAT, "eos_token_id" },
    { "bos_token_id", "-5", BASE_EMISMATCH, "bos_token_id" },
};

/* The V3 config with one member renamed out of the way and another put first. */
static void config_with(char *to, size_t size, const char *key, const char *value)
{
    char quoted[64], copy[sizeof v3];
    memcpy(copy, v3, sizeof v3);
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    char *old = strstr(copy, quoted);
    if (old) old[1] = '_';
    snprintf(to, size, "{\"%s\":%s,%s", key, value, copy + 1);
}

START_TEST(broken_configs_get_one_sentence)
{
    for (size_t i = 0; i < sizeof brokens / sizeof brokens[0]; i++) {
        const struct broken *b = &brokens[i];
        char json[8192];
        if (b->member) {
            config_with(json, sizeof json, b->key, b->member);
        } else {
            snprintf(json, sizeof json, "%s", b->key);
        }
        struct model_shape s;
        struct base_err err;
        int rc = parse(&s, json, &err);
        ck_assert_msg(rc == b->code, "%s %s: code %d, not %d: %s", b->key, b->member, rc, b->code,
                      err.text);
        ck_assert_int_eq(err.code, rc);
        ck_assert_msg(strncmp(err.text, "config.json", 11) == 0, "no place: %s", err.text);
        ck_assert_msg(strstr(err.text, b->says) && !strchr(err.text, '\n'), "%s does not say %s",
                      err.text, b->says);
    }
}
END_TEST

static void file_write(const char *dir, const char *name, const char *text)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    ck_assert_int_eq(fclose(file), 0);
}

START_TEST(folder_gives_name_and_both_files_eos)
{
    char dir[] = "/tmp/check_shape_XXXXXX", path[4096];
    ck_assert_ptr_nonnull(mkdtemp(dir));
    struct model_shape s;
    struct base_err err = { 0 };
    ck_assert_int_eq(model_shape_load(&s, dir, &err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(err.text, "config.json"));
    file_write(dir, "config.json", v3);
    file_write(dir, "generation_config.json", "{\"eos_token_id\":[1,128805]}");
    err = (struct base_err){ 0 };
    ck_assert_msg(model_shape_load(&s, dir, &err) == 0, "%s", err.text);
    ck_assert_str_eq(s.name, strrchr(dir, '/') + 1);
    ck_assert_uint_eq(s.eos_count, 2);
    ck_assert_int_eq(s.eos_ids[1], 128805);
    file_write(dir, "generation_config.json", "{\"eos_token_id\":\"</s>\"}");
    ck_assert_int_eq(model_shape_load(&s, dir, &err), BASE_EFORMAT);
    ck_assert_ptr_nonnull(strstr(err.text, "generation_config.json: eos_token_id"));
    for (unsigned i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, i ? "config.json" : "generation_config.json");
        unlink(path);
    }
    rmdir(dir);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("shape");
    tcase_set_timeout(tcase, 110);
    tcase_add_test(tcase, deepseek_v3_is_read);
    tcase_add_test(tcase, deepseek_v2_lite_is_read);
    tcase_add_test(tcase, absent_keys_have_hugging_face_defaults);
    tcase_add_test(tcase, moe_layers_are_counted_from_layer_0);
    tcase_add_test(tcase, rope_agrees_with_transformers);
    tcase_add_test(tcase, broken_configs_get_one_sentence);
    tcase_add_test(tcase, folder_gives_name_and_both_files_eos);
    Suite *suite = suite_create("shape");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
