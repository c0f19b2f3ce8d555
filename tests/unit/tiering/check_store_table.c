/* The table in memory gives back every expert as it was on disk, however they are laid out. */
#include <check.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "tiering/store_table.h"

/* Experts of `kinds` layouts, or each of an own one with 0. Parts lie anywhere, also before part 0
 * and in other files. */
static struct tier_format_expert *draw(struct base_rng *rng, uint64_t count, uint32_t kinds)
{
    struct tier_format_expert *experts = calloc(count, sizeof *experts), *shapes = NULL;
    shapes = calloc(kinds + 1, sizeof *shapes);
    for (uint64_t i = 0; i < count + kinds; i++) {
        struct tier_format_expert *to = i < kinds ? &shapes[i] : &experts[i - kinds];
        if (i < kinds || kinds == 0) {
            for (unsigned p = 0; p < TIER_FORMAT_PARTS; p++) {
                to->offset[p] = base_rng_below(rng, UINT64_C(1) << 49);
                to->file[p] = (uint16_t)base_rng_below(rng, 30000);
            }
            to->zero = (uint32_t)base_rng_below(rng, 5);
        } else {
            uint64_t by = base_rng_below(rng, UINT64_C(1) << 49);
            uint16_t file = (uint16_t)base_rng_below(rng, 30000);
            *to = shapes[base_rng_below(rng, kinds)];
            for (unsigned p = 0; p < TIER_FORMAT_PARTS; p++) {
                to->offset[p] += by;
                to->file[p] = (uint16_t)(to->file[p] + file);
            }
        }
        to->hash = base_rng_u64(rng);
        to->record_hash = base_rng_u64(rng);
    }
    free(shapes);
    return experts;
}

START_TEST(gives_back_what_it_got)
{
    static const uint32_t kinds[] = { 1, 2, 31, 32, 33, 500, 0 };
    struct base_rng rng;
    struct tier_table table;
    struct tier_format_expert expert;
    uint64_t seed = (uint64_t)_i + 1;
    base_rng_init(&rng, seed);
    uint64_t count = 1 + base_rng_below(&rng, 2000);
    uint32_t want = kinds[_i % 7];
    bool records = _i % 2;
    struct tier_format_expert *experts = draw(&rng, count, want);
    ck_assert_int_eq(tier_table_make(&table, experts, count, records), 0);
    if (want > 0) ck_assert_uint_le(table.layout_count, want);
    for (uint64_t i = 0; i < count; i++) {
        if (!records) experts[i].record_hash = 0;
        tier_table_expert(&table, i, &expert);
        ck_assert_msg(memcmp(&expert, &experts[i], sizeof expert) == 0,
                      "seed %" PRIu64 " expert %" PRIu64, seed, i);
    }
    tier_table_free(&table);
    free(experts);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store_table");
    TCase *tests = tcase_create("store_table");
    tcase_add_loop_test(tests, gives_back_what_it_got, 0, 70);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
