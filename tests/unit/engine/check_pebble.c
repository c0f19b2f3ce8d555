/* The shipped model says what its reference says: greedy tokens, the five best logits at every
 * position, and the experts chosen in the first and the last layer that has some. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "port/json.h"
#include "tests/support/run_stack.h"

enum { POSITIONS_MAX = 128, EXPERTS_ACTIVE = 6 };

/* Of the logits' range: what f32 sums in another order may differ by. */
static const double bound = 2e-4;

static struct port_json *reference;
static uint32_t first_layer[POSITIONS_MAX][EXPERTS_ACTIVE],
    last_layer[POSITIONS_MAX][EXPERTS_ACTIVE];

static void load_reference(void)
{
    char path[3100];
    struct base_err err = { 0 };
    snprintf(path, sizeof path, "%s/reference.json", run_pebble());
    int rc = port_json_load(&reference, path, 1 << 22, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    ck_assert_uint_eq(port_json_count(reference), 7);
}

static void free_reference(void)
{
    port_json_free(reference);
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void keep_experts(struct run *run, const struct eng_step_record *record)
{
    (void)run;
    ck_assert_uint_eq(record->top_k, EXPERTS_ACTIVE);
    for (uint32_t i = 0; i < record->token_count; i++) {
        uint32_t position = record->positions[i];
        ck_assert_uint_lt(position, POSITIONS_MAX);
        size_t last = (size_t)(record->moe_layers - 1) * record->token_count;
        memcpy(first_layer[position], record->expert_ids + i * EXPERTS_ACTIVE,
               sizeof first_layer[0]);
        memcpy(last_layer[position], record->expert_ids + (last + i) * EXPERTS_ACTIVE,
               sizeof last_layer[0]);
        qsort(first_layer[position], EXPERTS_ACTIVE, sizeof(uint32_t), ascending);
        qsort(last_layer[position], EXPERTS_ACTIVE, sizeof(uint32_t), ascending);
    }
}

static uint32_t read_ids(const struct port_json *list, uint32_t *to, uint32_t room)
{
    uint32_t count = (uint32_t)port_json_count(list);
    ck_assert_uint_le(count, room);
    for (uint32_t i = 0; i < count; i++) {
        to[i] = (uint32_t)port_json_as_i64(port_json_at(list, i));
    }
    return count;
}

static double range_of(const float *row, uint32_t vocab)
{
    float low = row[0], high = row[0];
    for (uint32_t i = 1; i < vocab; i++) {
        low = row[i] < low ? row[i] : low;
        high = row[i] > high ? row[i] : high;
    }
    return (double)high - (double)low;
}

/* Largest difference to the reference, as a share of the range. */
static double compare_logits(const struct run_answer *answer, const struct port_json *one,
                             uint32_t vocab)
{
    const struct port_json *ids = port_json_get(one, "top5_ids");
    const struct port_json *logits = port_json_get(one, "top5_logits");
    double worst = 0.0;
    for (uint32_t p = 0; p < answer->row_positions; p++) {
        const float *row = answer->rows + (size_t)p * vocab;
        double range = range_of(row, vocab);
        for (uint32_t k = 0; k < 5; k++) {
            int64_t id = port_json_as_i64(port_json_at(port_json_at(ids, p), k));
            double want = port_json_as_double(port_json_at(port_json_at(logits, p), k));
            double off = fabs((double)row[id] - want) / range;
            if (off > worst) worst = off;
        }
    }
    return worst;
}

static void compare_experts(const struct port_json *one, const char *key,
                            uint32_t have[][EXPERTS_ACTIVE], uint32_t positions)
{
    const struct port_json *list = port_json_get(one, key);
    for (uint32_t p = 0; p < positions; p++) {
        uint32_t want[EXPERTS_ACTIVE];
        read_ids(port_json_at(list, p), want, EXPERTS_ACTIVE);
        ck_assert_msg(memcmp(want, have[p], sizeof want) == 0, "%s at position %u", key, p);
    }
}

START_TEST(follows_the_reference)
{
    const struct port_json *one = port_json_at(reference, (size_t)_i);
    uint32_t prompt[POSITIONS_MAX], want[POSITIONS_MAX], encoded_count;
    uint32_t prompt_count = read_ids(port_json_get(one, "prompt_ids"), prompt, POSITIONS_MAX);
    uint32_t want_count = read_ids(port_json_get(one, "greedy_ids"), want, POSITIONS_MAX);
    static struct run run;
    run_open(&run, run_pebble(), NULL);
    run.keep_rows = true;
    run.step_end = keep_experts;

    uint32_t *encoded =
        run_encode(&run, port_json_text(port_json_get(one, "prompt"), NULL), &encoded_count);
    ck_assert_uint_eq(encoded_count, prompt_count);
    ck_assert_mem_eq(encoded, prompt, prompt_count * sizeof *prompt);
    free(encoded);

    struct run_answer *answer = run_greedy(&run, prompt, prompt_count, want_count);
    run_finish(&run);
    ck_assert_int_eq(answer->finish, ENG_LENGTH);
    ck_assert_uint_eq(answer->token_count, want_count);
    ck_assert_mem_eq(answer->tokens, want, want_count * sizeof *want);
    uint32_t positions = prompt_count + want_count - 1;
    ck_assert_uint_eq(answer->row_positions, positions);
    double worst = compare_logits(answer, one, run.stack.shape.vocab);
    printf("prompt %d: largest difference %.1e of the logits' range\n", _i, worst);
    ck_assert_double_lt(worst, bound);
    compare_experts(one, "experts_first_moe_layer", first_layer, positions);
    compare_experts(one, "experts_last_moe_layer", last_layer, positions);
    run_close(&run);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("pebble");
    TCase *tests = tcase_create("reference");
    tcase_add_checked_fixture(tests, load_reference, free_reference);
    tcase_add_loop_test(tests, follows_the_reference, 0, 7);
    tcase_set_timeout(tests, 60);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
