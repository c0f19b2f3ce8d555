/* The map agrees with a plain list over random puts, gets and removes, dense keys and full
 * tables. */
#include <check.h>
#include <stdlib.h>

#include "base/map.h"
#include "base/rng.h"

enum { KEYS = 64, CAPACITY = 40 };

START_TEST(agrees_with_a_plain_list)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    struct base_map map;
    void *memory = malloc(base_map_bytes(CAPACITY));
    base_map_init(&map, memory, CAPACITY);
    uint64_t keys[KEYS];
    uint32_t expected[KEYS], count = 0;
    for (int k = 0; k < KEYS; k++) {
        /* Like (layer, expert) packed: dense low bits, or only high ones, or anything. */
        static const int shifts[] = { 0, 32, 56 };
        keys[k] = _i % 4 < 3 ? (uint64_t)k << shifts[_i % 4] : base_rng_u64(&rng);
        expected[k] = BASE_MAP_NONE;
    }
    for (int step = 0; step < 4000; step++) {
        int k = (int)base_rng_below(&rng, KEYS);
        if (base_rng_below(&rng, 2)) {
            uint32_t value = (uint32_t)base_rng_below(&rng, BASE_MAP_NONE);
            bool fits = expected[k] != BASE_MAP_NONE || count < CAPACITY;
            ck_assert_int_eq(base_map_put(&map, keys[k], value), fits);
            if (!fits) continue;
            count += expected[k] == BASE_MAP_NONE;
            expected[k] = value;
        } else {
            ck_assert_uint_eq(base_map_remove(&map, keys[k]), expected[k]);
            count -= expected[k] != BASE_MAP_NONE;
            expected[k] = BASE_MAP_NONE;
        }
        ck_assert_uint_eq(map.count, count);
        int other = (int)base_rng_below(&rng, KEYS);
        ck_assert_msg(base_map_get(&map, keys[other]) == expected[other], "seed %d step %d", _i,
                      step);
    }
    uint32_t place = 0, value, seen = 0;
    uint64_t key;
    while (base_map_next(&map, &place, &key, &value)) {
        ck_assert_uint_eq(base_map_get(&map, key), value);
        seen++;
    }
    ck_assert_uint_eq(seen, count);
    base_map_clear(&map);
    place = 0;
    ck_assert(!base_map_next(&map, &place, &key, &value));
    ck_assert_uint_eq(base_map_get(&map, keys[0]), BASE_MAP_NONE);
    free(memory);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("map");
    tcase_add_loop_test(tcase, agrees_with_a_plain_list, 0, 12);
    Suite *suite = suite_create("base/map");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
