/* Recordings become the traces they should be, and bad ones are refused with file and line. */
#include <errno.h>
#include <math.h>

#include "predictor/edit.h"
#include "predictor/import.h"
#include "predictor/import_out.h"
#include "tests/unit/predictor/support.h"

#define HEAD "{\"format\": \"routing-jsonl\", \"version\": 1, \"model\": \"m\", \"layers\": 2, " \
             "\"first_moe_layer\": 0, \"experts\": 8, \"top_k\": 2}\n"
#define HIGH_HEAD "{\"format\": \"routing-jsonl\", \"version\": 1, \"layers\": 7, " \
                  "\"first_moe_layer\": 5, \"experts\": 8, \"top_k\": 2}\n"
#define TOKEN(experts) "{\"seq\":0,\"phase\":\"decode\",\"token\":1,\"experts\":" experts
#define CSV_HEAD \
    "# route_trace v1\n# model=/a/b/tiny-Q4.gguf arch=x n_layer=2 n_expert=8 n_expert_used=2\n" \
    "# layer=0 expert_bytes=100 dense_bytes=1\n# layer=1 expert_bytes=300 dense_bytes=1\n" \
    "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n"

static int import(const char *format, const char *text, struct pred_import_stats *stats,
                  struct base_err *err)
{
    const char *from = support_path("in.txt");
    support_write(from, (const uint8_t *)text, strlen(text));
    bool jsonl = strcmp(format, "jsonl") == 0;
    return (jsonl ? pred_import_jsonl : pred_import_csv)(from, support_path("out.trace"), stats,
                                                         NULL, err);
}

static struct pred_trace_reader *open_out(void)
{
    struct pred_trace_reader *r;
    struct base_err err = { 0 };
    ck_assert_msg(pred_trace_reader_open(&r, support_path("out.trace"), &err) == 0, "%s", err.text);
    return r;
}

static void next_step(struct pred_trace_reader *r, struct pred_trace_item *item)
{
    struct base_err err = { 0 };
    ck_assert_msg(pred_trace_reader_next(r, PRED_WANT_ALL, item, &err) == 1, "%s", err.text);
    ck_assert_int_eq(item->kind, PRED_ITEM_STEP);
}

START_TEST(jsonl_lines_become_steps)
{
    static struct pred_trace_item item;
    struct pred_import_stats stats;
    struct base_err err = { 0 };
    int rc = import(
        "jsonl",
        HEAD "{\"seq\":7,\"phase\":\"prefill\",\"token\":55,\"experts\":[[1,2],[3,4]]}\n"
             "{\"seq\":9,\"phase\":\"decode\",\"token\":-1,\"experts\":[[5,6],[7,0]]}\r\n"
             "\n{\"seq\":7,\"phase\":\"decode\",\"token\":4294967294,\"experts\":[[0,7],[2,1]]}",
        &stats, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    ck_assert_uint_eq(stats.tokens, 3);
    ck_assert_uint_eq(stats.sequences, 2);
    struct pred_trace_reader *r = open_out();
    ck_assert_str_eq(pred_trace_reader_header(r)->source, "jsonl");
    ck_assert_ptr_null(pred_trace_reader_header(r)->expert_bytes);
    next_step(r, &item);
    ck_assert_uint_eq(item.step.seqs[0], 7);
    ck_assert_uint_eq(item.step.tokens[0], 55);
    ck_assert_int_eq(item.step.phases[0], TIER_PREFILL);
    ck_assert_mem_eq(item.step.expert_ids, ((uint32_t[]){ 1, 2, 3, 4 }), 16);
    next_step(r, &item);
    ck_assert_uint_eq(item.step.tokens[0], PRED_NO_TOKEN);
    ck_assert_uint_eq(item.step.positions[0], 0);
    next_step(r, &item);
    ck_assert_uint_eq(item.step.tokens[0], 4294967294u);
    ck_assert_uint_eq(item.step.positions[0], 1);
    ck_assert_mem_eq(item.step.expert_ids, ((uint32_t[]){ 0, 7, 2, 1 }), 16);
    ck_assert_int_eq(pred_trace_reader_next(r, PRED_WANT_ALL, &item, &err), 0);
    pred_trace_reader_close(r);
}
END_TEST

START_TEST(jsonl_may_count_dense_layers)
{
    static struct pred_trace_item item;
    struct pred_import_stats stats;
    struct base_err err = { 0 };
    int rc = import("jsonl",
                    "{\"format\":\"routing-jsonl\",\"version\":1,\"model\":\"m\",\"layers\":3,"
                    "\"first_moe_layer\":1,\"experts\":8,\"top_k\":2,\"expert_bytes\":[10,20]}\n"
                    "{\"seq\":0,\"phase\":\"decode\",\"token\":1,\"experts\":[[],[1,2],[3,4]],"
                    "\"weights\":[[],[0.75,0.25],[0.5,0.125]]}\n",
                    &stats, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    struct pred_trace_reader *r = open_out();
    ck_assert_uint_eq(pred_trace_reader_header(r)->layers, 2);
    ck_assert_uint_eq(pred_trace_reader_header(r)->expert_bytes[1], 20);
    next_step(r, &item);
    ck_assert_mem_eq(item.step.expert_ids, ((uint32_t[]){ 1, 2, 3, 4 }), 16);
    ck_assert_mem_eq(item.step.expert_weights, ((float[]){ 0.75f, 0.25f, 0.5f, 0.125f }), 16);
    pred_trace_reader_close(r);
}
END_TEST

START_TEST(csv_prompt_is_one_step)
{
    static struct pred_trace_item item;
    struct pred_import_stats stats;
    struct base_err err = { 0 };
    int rc = import("csv", CSV_HEAD
                    "0,0,0,0,0,1,0.5,0,100\n0,0,0,0,1,2,0.25,0,100\n"
                    "0,0,1,0,0,3,0.5,0,100\n0,0,1,0,1,4,0.25,0,100\n"
                    "0,0,1,1,0,5,0.5,0,300\n0,0,1,1,1,6,0.25,0,300\n"      /* last token alone */
                    "0,1,2,0,0,7,0.5,1,0\n0,1,2,0,1,1,0.5,1,0\n"
                    "0,1,2,1,0,0,0.5,1,0\n0,1,2,1,1,2,0.5,1,0\n", &stats, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    ck_assert_uint_eq(stats.steps, 2);
    ck_assert_uint_eq(stats.tokens, 3);
    struct pred_trace_reader *r = open_out();
    ck_assert_str_eq(pred_trace_reader_header(r)->model, "tiny-Q4");
    ck_assert_uint_eq(pred_trace_reader_header(r)->expert_bytes[0], 100);
    ck_assert_uint_eq(pred_trace_reader_header(r)->expert_bytes[1], 300);
    next_step(r, &item);
    ck_assert_uint_eq(item.step.token_count, 2);
    ck_assert_mem_eq(item.step.expert_ids,
                     ((uint32_t[]){ 1, 2, 3, 4, PRED_NO_EXPERT, PRED_NO_EXPERT, 5, 6 }), 32);
    ck_assert(item.step.expert_weights[1] == 0.25f && item.step.expert_weights[4] == 0);
    next_step(r, &item);
    ck_assert_uint_eq(item.step.token_count, 1);
    ck_assert_uint_eq(item.step.positions[0], 2);
    ck_assert_int_eq(item.step.phases[0], TIER_DECODE);
    ck_assert_mem_eq(item.step.expert_ids, ((uint32_t[]){ 7, 1, 0, 2 }), 16);
    pred_trace_reader_close(r);
}
END_TEST

START_TEST(jsonl_step_of_several_tokens)
{
    static struct pred_trace_item item;
    struct pred_import_stats stats;
    struct base_err err = { 0 };
    int rc = import("jsonl", HEAD
        "{\"step\":4,\"seq\":1,\"phase\":\"prefill\",\"token\":5,\"experts\":[[1,2],null]}\n"
        "{\"step\":4,\"seq\":2,\"phase\":\"decode\",\"token\":6,\"experts\":[[3,4],[5,6]]}\n"
        "{\"step\":5,\"seq\":2,\"phase\":\"decode\",\"token\":7,\"experts\":[[0,1],[2,3]]}\n"
        "{\"seq\":2,\"phase\":\"decode\",\"token\":8,\"experts\":[[4,5],[6,7]]}\n"
        "{\"seq\":2,\"phase\":\"decode\",\"token\":9,\"experts\":[[7,5],[6,1]]}\n", &stats, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    ck_assert_uint_eq(stats.steps, 4);
    ck_assert_uint_eq(stats.tokens, 5);
    struct pred_trace_reader *r = open_out();
    next_step(r, &item);
    ck_assert_uint_eq(item.step.token_count, 2);
    ck_assert_mem_eq(item.step.expert_ids,
                     ((uint32_t[]){ 1, 2, 3, 4, PRED_NO_EXPERT, PRED_NO_EXPERT, 5, 6 }), 32);
    ck_assert_int_eq(item.step.phases[0], TIER_PREFILL);
    ck_assert_int_eq(item.step.phases[1], TIER_DECODE);
    ck_assert_uint_eq(item.step.tokens[1], 6);
    for (int i = 0; i < 3; i++) next_step(r, &item);
    ck_assert_uint_eq(item.step.positions[0], 3);
    ck_assert_mem_eq(item.step.expert_ids, ((uint32_t[]){ 7, 5, 6, 1 }), 16);
    pred_trace_reader_close(r);
}
END_TEST

enum { LAYERS = 3, EXPERTS = 10, TOP_K = 2, STEPS = 60, TOKENS_MAX = 7 };

/* Prompts of several tokens, some of them not routed in the last layer, and generated tokens; with
 * `batches` also steps of several sequences. */
static void write_steps(const char *path, uint64_t seed, bool weights, bool batches,
                        const uint64_t *expert_bytes)
{
    struct pred_trace_config config = support_config(path);
    struct pred_trace_header header = {
        .model = "m", .layers = LAYERS, .experts = EXPERTS, .top_k = TOP_K, .first_moe_layer = 1,
        .expert_bytes = expert_bytes,
    };
    struct pred_trace_writer *writer;
    struct base_err err = { 0 };
    struct base_rng rng;
    uint32_t seen[8] = { 0 };
    base_rng_init(&rng, seed);
    config.weights = PRED_WEIGHTS_F32;
    ck_assert_msg(pred_trace_writer_open(&writer, &config, &header, false, &err) == 0, "%s",
                  err.text);
    pred_trace_writer_patient(writer);
    for (uint32_t s = 0; s < STEPS; s++) {
        uint64_t seqs[TOKENS_MAX];
        uint32_t tokens[TOKENS_MAX], positions[TOKENS_MAX];
        uint8_t phases[TOKENS_MAX];
        uint32_t ids[LAYERS * TOKENS_MAX * TOP_K];
        float gate[LAYERS * TOKENS_MAX * TOP_K];
        bool prefill = s % 6 == 0, batch = batches && !prefill && s % 2 == 0;
        uint32_t n = prefill || batch ? 2 + (uint32_t)base_rng_below(&rng, TOKENS_MAX - 1) : 1;
        for (uint32_t i = 0; i < n; i++) {
            seqs[i] = batch ? i : s / 6 % 8;
            if (!batch && seqs[i] >= 8) seqs[i] = 0;
            tokens[i] = (uint32_t)base_rng_below(&rng, 1000);
            positions[i] = seen[seqs[i]]++;
            phases[i] = prefill ? TIER_PREFILL : TIER_DECODE;
            for (uint32_t l = 0; l < LAYERS; l++) {
                uint32_t *to = ids + (l * n + i) * TOP_K;
                support_ids(&rng, to, TOP_K, EXPERTS);
                bool none = prefill && l + 1 == LAYERS && i + 1 < n;
                for (uint32_t k = 0; k < TOP_K; k++) {
                    if (none) to[k] = PRED_NO_EXPERT;
                    gate[(l * n + i) * TOP_K + k] = none ? 0 : (float)base_rng_unit(&rng);
                }
            }
        }
        struct pred_step step = { .step = s, .token_count = n, .seqs = seqs, .tokens = tokens,
                                  .positions = positions, .phases = phases, .expert_ids = ids,
                                  .expert_weights = weights ? gate : NULL };
        pred_trace_writer_step(writer, &step);
    }
    ck_assert_msg(pred_trace_writer_close(writer, &err) == 0, "%s", err.text);
}

static void expect_same(const char *path, bool tokens_kept, const uint64_t *expert_bytes)
{
    static struct pred_trace_item x, y;
    struct base_err err = { 0 };
    struct pred_trace_reader *a, *b = open_out();
    ck_assert_int_eq(pred_trace_reader_open(&a, path, &err), 0);
    const struct pred_trace_header *h = pred_trace_reader_header(b);
    ck_assert_uint_eq(h->layers, LAYERS);
    ck_assert_uint_eq(h->first_moe_layer, 1);
    /* A size that nobody knows is not made up. */
    ck_assert_int_eq(h->expert_bytes != NULL, expert_bytes != NULL);
    if (expert_bytes) ck_assert_mem_eq(h->expert_bytes, expert_bytes, LAYERS * sizeof(uint64_t));
    for (int s = 0; s < STEPS; s++) {
        next_step(a, &x);
        next_step(b, &y);
        uint32_t n = x.step.token_count, ids = LAYERS * n * TOP_K;
        ck_assert_uint_eq(y.step.token_count, n);
        ck_assert_mem_eq(y.step.seqs, x.step.seqs, n * sizeof x.step.seqs[0]);
        ck_assert_mem_eq(y.step.positions, x.step.positions, n * sizeof x.step.positions[0]);
        ck_assert_mem_eq(y.step.phases, x.step.phases, n);
        ck_assert_mem_eq(y.step.expert_ids, x.step.expert_ids, ids * sizeof x.step.expert_ids[0]);
        if (tokens_kept) ck_assert_mem_eq(y.step.tokens, x.step.tokens, n * sizeof(uint32_t));
        ck_assert_int_eq(x.step.expert_weights != NULL, y.step.expert_weights != NULL);
        if (x.step.expert_weights) {
            ck_assert_mem_eq(y.step.expert_weights, x.step.expert_weights, ids * sizeof(float));
        }
    }
    ck_assert_int_eq(pred_trace_reader_next(b, PRED_WANT_STEPS, &y, &err), 0);
    pred_trace_reader_close(a);
    pred_trace_reader_close(b);
}

/* _i: bit 0 = with weights, bit 1 = csv, bit 2 = with sizes. What is exported again is the same. */
START_TEST(exports_come_back)
{
    static const uint64_t sizes[LAYERS] = { 100, 300, 200 }, *bytes;
    bytes = _i & 4 ? sizes : NULL;
    bool weights = _i & 1, csv = _i & 2;
    const char *trace = support_path("a.trace"), *text = support_path("a.txt");
    struct pred_trace_reader *r;
    struct pred_edit_stats stats;
    struct pred_import_stats imported;
    struct base_err err = { 0 };
    write_steps(trace, 20 + (uint64_t)_i, weights, !csv, bytes);
    ck_assert_int_eq(pred_trace_reader_open(&r, trace, &err), 0);
    int rc = pred_edit_export(r, text, csv ? PRED_EXPORT_CSV : PRED_EXPORT_JSONL, &stats, NULL,
                              &err);
    pred_trace_reader_close(r);
    ck_assert_msg(rc == 0, "%s", err.text);
    rc = (csv ? pred_import_csv : pred_import_jsonl)(text, support_path("out.trace"), &imported,
                                                     NULL, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    ck_assert_uint_eq(imported.tokens, stats.tokens);
    expect_same(trace, !csv, bytes);
    size_t size, size_again;
    r = open_out();
    rc = pred_edit_export(r, support_path("b.txt"), csv ? PRED_EXPORT_CSV : PRED_EXPORT_JSONL,
                          &stats, NULL, &err);
    pred_trace_reader_close(r);
    ck_assert_msg(rc == 0, "%s", err.text);
    uint8_t *one = support_read(support_path("a.txt"), &size),
            *two = support_read(support_path("b.txt"), &size_again);
    ck_assert_uint_eq(size, size_again);
    ck_assert_mem_eq(one, two, size);
    free(one);
    free(two);
}
END_TEST

START_TEST(bad_recordings)
{
    static const struct {
        const char *format, *text, *place, *says;
    } cases[] = {
        { "jsonl", "", "in.txt: ", "no token lines" },
        { "jsonl", "hello\n", "in.txt:1", "" },
        { "jsonl", "{\"format\":\"other\"}\n", "in.txt:1: ", "routing-jsonl" },
        { "jsonl", "{\"format\":\"routing-jsonl\",\"version\":2}\n", "in.txt:1", "version" },
        { "jsonl", HEAD, "in.txt: ", "no token lines" },
        { "jsonl", HEAD "{\"seq\":0,\"phase\":\"decode\",\"token\":1,\"experts\":[[1,2]]}\n",
          "in.txt:2: ", "2 layers" },
        { "jsonl", HEAD "{\"seq\":0,\"phase\":\"decode\",\"token\":1,\"experts\":[[1,2],[3]]}\n",
          "in.txt:2: ", "layer 1: expected a list of 2" },
        { "jsonl", HEAD "{\"seq\":0,\"phase\":\"decode\",\"token\":1,\"experts\":[[1,8],[3,4]]}\n",
          "in.txt:2: ", "expert 8 is not one of 0 to 7" },
        { "jsonl", HEAD "{\"seq\":0,\"phase\":\"decode\",\"token\":1,\"experts\":[[1,1],[3,4]]}\n",
          "in.txt:2: ", "twice" },
        { "jsonl",
          HEAD "{\"seq\":0,\"phase\":\"decode\",\"token\":1,\"experts\":[[1,2.5],[3,4]]}\n",
          "in.txt:2: ", "not one of" },
        { "jsonl", HEAD "{\"seq\":0,\"phase\":\"chat\",\"token\":1,\"experts\":[[1,2],[3,4]]}\n",
          "in.txt:2: ", "prefill" },
        { "jsonl", HEAD "{\"seq\":-1,\"phase\":\"decode\",\"token\":1,\"experts\":[[1,2],[3,4]]}\n",
          "in.txt:2", "seq" },
        { "jsonl",
          HEAD "{\"seq\":0,\"phase\":\"decode\",\"token\":4294967295,"
               "\"experts\":[[1,2],[3,4]]}\n",
          "in.txt:2", "token" },
        { "jsonl", HEAD "{\"seq\":0,\"phase\":\"decode\",\"token\":1,\"experts\":[[1,2],[3,4]]",
          "in.txt:2", "" },
        { "jsonl", HIGH_HEAD TOKEN("[[1,2],[3]]") "}\n", "in.txt:2: ",
          "layer 6: expected a list" },
        { "jsonl", HIGH_HEAD TOKEN("[[1,9],[3,4]]") "}\n", "in.txt:2: ", "layer 5: expert 9" },
        { "jsonl", HIGH_HEAD TOKEN("[[1,2],[3,3]]") "}\n", "in.txt:2: ",
          "layer 6: expert 3 stands" },
        { "jsonl", HIGH_HEAD TOKEN("[[1,2],[3,4]]") ",\"weights\":[[1,2],[3]]}\n",
          "in.txt:2: ", "layer 6: expected 2 weights" },
        { "jsonl", HEAD TOKEN("[[1,2],[3,4]]") ",\"weights\":[[1,2],[1e39,0.5]]}\n",
          "in.txt:2: ", "layer 1: weight 0 is not a number" },
        { "jsonl", HEAD TOKEN("[[1,2],[3,4]]") ",\"weights\":[[1,\"2\"],[3,4]]}\n",
          "in.txt:2: ", "layer 0: weight 1 is not a number" },
        { "jsonl", HEAD TOKEN("[[1,2],[3,4]]") "}\n" TOKEN("[[1,2],[3,4]]")
          ",\"weights\":[[1,2],[3,4]]}\n", "in.txt:3: ",
          "has weights, and the first token has none" },
        { "jsonl", HEAD TOKEN("[[1,2],[3,4]]") ",\"weights\":[[1,2],[3,4]]}\n"
          TOKEN("[[1,2],[3,4]]") "}\n", "in.txt:3: ",
          "has no weights, and the first token has some" },
        { "csv", "", "in.txt: ", "no rows" },
        { "csv", "a,b\n", "in.txt:1: ", "columns" },
        { "csv", "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n",
          "in.txt:1: ", "n_expert_used" },
        { "csv", "# model=x n_layer=0 n_expert=8 n_expert_used=2\n", "in.txt:1: ", "n_layer" },
        { "csv", "# model=x n_layer=2 n_expert=8 n_expert_used=2 first_moe_layer=2\n", "in.txt:1: ",
          "first_moe_layer" },
        { "csv", CSV_HEAD "0,0,0,0,0,1,0.5,0\n", "in.txt:6: ", "column" },
        { "csv", CSV_HEAD "0,0,0,0,0,one,0.5,0,1\n", "in.txt:6: ", "column 6" },
        { "csv", CSV_HEAD "0,2,0,0,0,1,0.5,0,1\n", "in.txt:6: ", "phase" },
        { "csv", CSV_HEAD "0,0,0,2,0,1,0.5,0,1\n", "in.txt:6: ", "layer 2" },
        { "csv", CSV_HEAD "0,0,0,0,0,9,0.5,0,1\n", "in.txt:6: ", "expert 9" },
        { "csv", CSV_HEAD "0,0,0,1,0,1,0.5,0,1\n", "in.txt:6: ", "begins at layer 1" },
        { "csv", CSV_HEAD "0,0,0,0,1,1,0.5,0,1\n", "in.txt:6: ", "slot 1 where slot 0" },
        { "csv", CSV_HEAD "0,0,0,0,0,1,0.5,0,1\n0,0,0,0,1,1,0.5,0,1\n", "in.txt:7: ", "twice" },
        { "csv", CSV_HEAD "0,0,0,0,0,1,0.5,0,1\n0,0,0,1,0,1,0.5,0,1\n",
          "in.txt:7: ", "1 of 2 experts" },
        { "csv", CSV_HEAD "0,0,0,0,0,1,0.5,0,1\n0,0,0,0,1,2,0.5,0,1\n",
          "in.txt:7: ", "end at layer 0" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct pred_import_stats stats;
        struct base_err err = { 0 };
        int rc = import(cases[i].format, cases[i].text, &stats, &err);
        ck_assert_msg(rc < 0, "case %zu was taken", i);
        ck_assert_msg(strstr(err.text, cases[i].place) && strstr(err.text, cases[i].says),
                      "case %zu: %s", i, err.text);
        ck_assert_msg(access(support_path("out.trace"), F_OK) < 0, "case %zu left a trace", i);
        ck_assert_msg(support_files() == 1, "case %zu left a file", i);
    }
}
END_TEST

/* A prompt as long as some are takes no longer for each of its tokens than a short one. */
START_TEST(long_prompts_come_in_at_once)
{
    enum { PROMPT = 300000 };
    struct pred_import_stats stats;
    struct base_err err = { 0 };
    const char *from = support_path("in.txt");
    FILE *file = fopen(from, "w");
    fputs("# model=m n_layer=1 n_expert=8 n_expert_used=1\n"
          "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n", file);
    for (int i = 0; i < PROMPT; i++) fprintf(file, "0,0,%d,0,0,%d,0.5,0,1\n", i, i % 8);
    fclose(file);
    ck_assert_msg(pred_import_csv(from, support_path("out.trace"), &stats, NULL, &err) == 0, "%s",
                  err.text);
    ck_assert_uint_eq(stats.tokens, PROMPT);
    ck_assert_uint_eq(stats.steps, 1);
}
END_TEST

/* What one step cannot hold is said with the line, not at the end and not as the disk's fault. */
START_TEST(a_step_has_an_end)
{
    enum { MOST = 256 };        /* of 1024 layers and top-256 */
    struct pred_import_stats stats;
    struct base_err err = { 0 };
    const char *from = support_path("in.txt");
    FILE *file = fopen(from, "w");
    fputs("# model=m n_layer=1024 n_expert=300 n_expert_used=256\n"
          "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n", file);
    for (int i = 0; i <= MOST; i++) fprintf(file, "0,0,%d,0,0,1,0.5,0,1\n", i);
    fclose(file);
    ck_assert_int_eq(pred_import_csv(from, support_path("out.trace"), &stats, NULL, &err),
                     BASE_EFORMAT);
    ck_assert_msg(strstr(err.text, "in.txt:259: a prompt of more than 256 tokens"), "%s", err.text);
    struct pred_trace_header header = { .layers = 58, .top_k = 8 };
    ck_assert_uint_eq(pred_import_step_tokens_max(&header), 144631);
    header = (struct pred_trace_header){ .layers = 1, .top_k = 1 };
    ck_assert_uint_eq(pred_import_step_tokens_max(&header), PRED_STEP_TOKENS_MAX);
}
END_TEST

START_TEST(broken_xz_is_refused)
{
    struct pred_import_stats stats;
    struct base_err err = { 0 }, cut_err = { 0 };
    const uint8_t bytes[] = { 0xfd, '7', 'z', 'X', 'Z', 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 };
    const char *from = support_path("in.txt");
    support_write(from, bytes, sizeof bytes);
    ck_assert_int_eq(pred_import_jsonl(from, support_path("o.trace"), &stats, NULL, &err),
                     BASE_EFORMAT);
    ck_assert_ptr_nonnull(strstr(err.text, "damaged"));
    support_write(from, bytes, 6);
    ck_assert_int_eq(pred_import_jsonl(from, support_path("o.trace"), &stats, NULL, &cut_err),
                     BASE_EFORMAT);
    ck_assert_ptr_nonnull(strstr(cut_err.text, "too early"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("predictor/import");
    TCase *tcase = tcase_create("import");
    tcase_set_timeout(tcase, 30);
    tcase_add_checked_fixture(tcase, support_begin, support_end);
    tcase_add_test(tcase, jsonl_lines_become_steps);
    tcase_add_test(tcase, jsonl_may_count_dense_layers);
    tcase_add_test(tcase, csv_prompt_is_one_step);
    tcase_add_test(tcase, jsonl_step_of_several_tokens);
    tcase_add_loop_test(tcase, exports_come_back, 0, 8);
    tcase_add_test(tcase, bad_recordings);
    tcase_add_test(tcase, long_prompts_come_in_at_once);
    tcase_add_test(tcase, a_step_has_an_end);
    tcase_add_test(tcase, broken_xz_is_refused);
    suite_add_tcase(suite, tcase);
    return support_run(suite);
}
