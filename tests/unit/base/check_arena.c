/* Arena blocks are aligned, apart from each other and within the memory; reset gives all back. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/rng.h"

static char memory[40000];

START_TEST(blocks_stand_apart)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    size_t offset = base_rng_below(&rng, 64);
    struct base_arena arena;
    base_arena_init(&arena, memory + offset, sizeof memory - offset);
    for (int round = 0; round < 3; round++) {
        char *end = memory + offset;
        unsigned blocks = 0;
        for (;;) {
            size_t size = base_rng_below(&rng, 500), align = (size_t)1 << base_rng_below(&rng, 9);
            size_t before = arena.used;
            char *block = base_arena_take(&arena, size, align);
            if (!block) {
                ck_assert_uint_gt(before + base_arena_room(size, align), arena.size);
                ck_assert_uint_eq(arena.used, before);
                break;
            }
            ck_assert_uint_eq((size_t)block % align, 0);
            ck_assert(block >= end);
            ck_assert_uint_le(arena.used - before, base_arena_room(size, align));
            memset(block, 0x55, size);
            end = block + size;
            ck_assert(end <= memory + sizeof memory);
            blocks++;
        }
        ck_assert_uint_gt(blocks, 20);
        ck_assert_uint_ge(arena.used_max, arena.used);
        base_arena_reset(&arena);
        ck_assert_uint_eq(arena.used, 0);
    }
    base_arena_fini(&arena);
    memset(memory, 0, sizeof memory);       /* ours again, without poison */
}
END_TEST

START_TEST(rewind_keeps_what_came_before)
{
    struct base_arena arena;
    base_arena_init(&arena, memory, sizeof memory);
    char *kept = base_arena_take(&arena, 100, 8);
    memset(kept, 7, 100);
    size_t mark = base_arena_mark(&arena);
    char *dropped = base_arena_take(&arena, 100, 8);
    base_arena_rewind(&arena, mark);
    ck_assert_ptr_eq(base_arena_take(&arena, 100, 8), dropped);
    ck_assert_int_eq(kept[99], 7);
    base_arena_fini(&arena);
}
END_TEST

START_TEST(giant_sizes_do_not_wrap)
{
    struct base_arena arena;
    base_arena_init(&arena, memory + 1, sizeof memory - 1);
    ck_assert_ptr_null(base_arena_take(&arena, SIZE_MAX, 64));
    ck_assert_ptr_null(base_arena_take(&arena, SIZE_MAX - 16, 1));
    ck_assert_ptr_null(base_arena_take(&arena, sizeof memory, 1));
    ck_assert_ptr_nonnull(base_arena_take(&arena, sizeof memory - 1 - BASE_ARENA_ZONE, 1));
    base_arena_fini(&arena);
}
END_TEST

START_TEST(stray_accesses_are_poisoned)
{
#if BASE_ASAN
    struct base_arena arena;
    base_arena_init(&arena, memory, sizeof memory);
    char *block = base_arena_take(&arena, 13, 8);
    ck_assert_int_eq(__asan_address_is_poisoned(block + 12), 0);
    ck_assert_int_ne(__asan_address_is_poisoned(block + 13), 0);
    base_arena_reset(&arena);
    ck_assert_int_ne(__asan_address_is_poisoned(block), 0);
    base_arena_fini(&arena);
    ck_assert_int_eq(__asan_address_is_poisoned(block + 13), 0);
#endif
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("arena");
    tcase_add_loop_test(tcase, blocks_stand_apart, 0, 10);
    tcase_add_test(tcase, rewind_keeps_what_came_before);
    tcase_add_test(tcase, giant_sizes_do_not_wrap);
    if (BASE_ASAN) tcase_add_test(tcase, stray_accesses_are_poisoned);
    Suite *suite = suite_create("base/arena");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
