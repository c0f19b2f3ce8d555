/* Tiny random models give the logits and the greedy tokens that Hugging Face transformers gives
 * (tests/golden/make_golden.py): six DeepSeek-V3 shapes and more, two V2 shapes. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "port/json.h"
#include "tests/support/run_stack.h"

enum { TOKENS_MAX = 128 };

/* Largest difference allowed, as a share of the range of a row of logits. */
static const double f32_bound = 2e-4;
/* With bf16 KV each cached number is off by up to 2^-9 of itself. A token whose choice of experts
 * was close may then choose another one, and its row jumps; so the bound is on the median row, and
 * on how many rows may lie beyond ten times as much. */
static const double bf16_median_bound = 5e-3;
static const uint32_t bf16_jumps_max_percent = 10;

static const char *const cases[] = {
    "v3-bf16", "v3-fp8-yarn", "v3-fp8-plain-q", "v3-bf16-yarn-sharded", "v3-f16-tied", "v3-fp8-odd",
    "v3-f32", "v2-greedy", "v2-groups",
};
enum { CASES = sizeof cases / sizeof cases[0] };

struct golden {
    char folder[3000];
    uint32_t prompt[TOKENS_MAX], greedy[TOKENS_MAX], positions[TOKENS_MAX];
    uint32_t prompt_count, greedy_count, position_count;
    float *rows;
};

static uint32_t read_list(const struct port_json *root, const char *key, uint32_t *to)
{
    const struct port_json *list = port_json_get(root, key);
    uint32_t count = (uint32_t)port_json_count(list);
    ck_assert_uint_gt(count, 0);
    ck_assert_uint_le(count, TOKENS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        to[i] = (uint32_t)port_json_as_i64(port_json_at(list, i));
    }
    return count;
}

static void load(struct golden *golden, const char *name)
{
    char path[3100];
    struct port_json *root;
    struct base_err err = { 0 };
    const char *source = getenv("EXPERTIER_SOURCE");
    snprintf(golden->folder, sizeof golden->folder, "%s/tests/golden/%s", source ? source : ".",
             name);
    snprintf(path, sizeof path, "%s/golden.json", golden->folder);
    int rc = port_json_load(&root, path, 1 << 20, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    golden->prompt_count = read_list(root, "prompt", golden->prompt);
    golden->greedy_count = read_list(root, "greedy", golden->greedy);
    golden->position_count = read_list(root, "positions", golden->positions);
    port_json_free(root);
}

static void load_rows(struct golden *golden, uint32_t vocab)
{
    char path[3100];
    size_t count = (size_t)golden->position_count * vocab;
    snprintf(path, sizeof path, "%s/golden.f32", golden->folder);
    FILE *from = fopen(path, "rb");
    ck_assert_ptr_nonnull(from);
    golden->rows = malloc(count * sizeof *golden->rows);
    ck_assert_uint_eq(fread(golden->rows, sizeof *golden->rows, count, from), count);
    ck_assert_int_eq(fgetc(from), EOF);
    fclose(from);
}

/* Largest difference of one row, as a share of its range. */
static double row_difference(const float *have, const float *want, uint32_t vocab)
{
    double worst = 0.0, low = want[0], high = want[0];
    for (uint32_t i = 0; i < vocab; i++) {
        double off = fabs((double)have[i] - (double)want[i]);
        worst = off > worst ? off : worst;
        low = want[i] < low ? want[i] : low;
        high = want[i] > high ? want[i] : high;
    }
    return worst / (high - low);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Differences of all golden rows, smallest first. */
static void compare(const struct golden *golden, const struct run_answer *answer, uint32_t vocab,
                    double *differences)
{
    ck_assert_uint_eq(answer->row_positions, golden->prompt_count + golden->greedy_count - 1);
    for (uint32_t i = 0; i < golden->position_count; i++) {
        differences[i] = row_difference(answer->rows + (size_t)golden->positions[i] * vocab,
                                        golden->rows + (size_t)i * vocab, vocab);
    }
    qsort(differences, golden->position_count, sizeof *differences, by_size);
}

START_TEST(gives_what_transformers_gives)
{
    static struct golden golden;
    static struct run run;
    load(&golden, cases[_i]);
    static const char *const settings[] = { "tiers.dram.capacity=70%", NULL };
    run_open(&run, golden.folder, settings);
    run.keep_rows = true;
    load_rows(&golden, run.stack.shape.vocab);
    struct run_answer *answer =
        run_greedy(&run, golden.prompt, golden.prompt_count, golden.greedy_count);
    run_finish(&run);
    double differences[TOKENS_MAX];
    compare(&golden, answer, run.stack.shape.vocab, differences);
    double worst = differences[golden.position_count - 1];
    printf("%-22s largest difference %.1e of the logits' range\n", cases[_i], worst);
    ck_assert_double_lt(worst, f32_bound);
    ck_assert_uint_eq(answer->token_count, golden.greedy_count);
    ck_assert_mem_eq(answer->tokens, golden.greedy, golden.greedy_count * sizeof *golden.greedy);
    run_close(&run);
    free(golden.rows);
}
END_TEST

/* The same text through a cache of half the size: near, not equal. The golden tokens are given as a
 * prompt, so that one other choice does not change what follows. */
START_TEST(stays_near_with_bf16_kv)
{
    static struct golden golden;
    static struct run run;
    static const char *const settings[] = { "kv.dtype=bf16", "tiers.dram.capacity=70%", NULL };
    uint32_t tokens[2 * TOKENS_MAX];
    load(&golden, cases[_i]);
    run_open(&run, golden.folder, settings);
    run.keep_rows = true;
    load_rows(&golden, run.stack.shape.vocab);
    memcpy(tokens, golden.prompt, golden.prompt_count * sizeof *tokens);
    memcpy(tokens + golden.prompt_count, golden.greedy, golden.greedy_count * sizeof *tokens);
    struct run_answer *answer =
        run_greedy(&run, tokens, golden.prompt_count + golden.greedy_count - 1, 1);
    run_finish(&run);
    double differences[TOKENS_MAX];
    compare(&golden, answer, run.stack.shape.vocab, differences);
    double median = differences[golden.position_count / 2];
    uint32_t jumps = 0;
    for (uint32_t i = 0; i < golden.position_count; i++) {
        jumps += differences[i] > 10 * bf16_median_bound;
    }
    printf("%-22s bf16 kv: median difference %.1e of the logits' range, largest %.1e, %u of %u "
           "rows jump\n",
           cases[_i], median, differences[golden.position_count - 1], jumps, golden.position_count);
    ck_assert_double_gt(median, 0.0);
    ck_assert_double_lt(median, bf16_median_bound);
    ck_assert_uint_le(jumps * 100, bf16_jumps_max_percent * golden.position_count);
    run_close(&run);
    free(golden.rows);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("golden");
    TCase *tests = tcase_create("transformers");
    tcase_add_loop_test(tests, gives_what_transformers_gives, 0, CASES);
    tcase_add_loop_test(tests, stays_near_with_bf16_kv, 0, CASES);
    tcase_set_timeout(tests, 60);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
