/* Slots leave and enter service: what is free goes with its memory, what is used stays, and what
 * comes back is empty and can be written. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tiering/slots.h"

enum { COUNT = 8, MOST = 32, SLOT = 4 * TIER_PAGE };

struct log {
    uint64_t in, out;           /* bytes that came and went */
};

static void on_moved(void *context, void *memory, size_t bytes, bool in_service)
{
    struct log *log = context;
    ck_assert_uint_eq((uintptr_t)memory % TIER_PAGE, 0);
    if (in_service) log->in += bytes;
    else log->out += bytes;
}

static unsigned resident_pages(const struct tier_slots *s, uint32_t slot)
{
    unsigned char pages[SLOT / TIER_PAGE];
    unsigned count = 0;
    ck_assert_int_eq(mincore(tier_slots_memory(s, slot), SLOT, pages), 0);
    for (unsigned i = 0; i < sizeof pages; i++) count += pages[i] & 1;
    return count;
}

static uint32_t fill(struct tier_slots *s, uint32_t key)
{
    uint32_t slot = tier_slots_take(s, key);
    ck_assert_uint_ne(slot, TIER_NO_SLOT);
    memset(tier_slots_memory(s, slot), (int)key + 1, SLOT);
    return slot;
}

static const struct tier_slots_hold unpinned = { .pin = TIER_PIN_OFF };

START_TEST(memory_goes_and_comes)
{
    struct tier_slots s;
    struct base_err err = { 0 };
    struct log log = { 0 };
    uint32_t slot[MOST];
    struct tier_slots_hold hold = { .pin = _i ? TIER_PIN_AUTO : TIER_PIN_OFF };
    ck_assert_int_eq(tier_slots_create(&s, COUNT, MOST, SLOT, &hold, &err), 0);
    ck_assert_uint_eq(s.most, MOST);
    s.moved = on_moved;
    s.context = &log;
    for (uint32_t k = 0; k < COUNT; k++) slot[k] = fill(&s, k);
    ck_assert_uint_eq(tier_slots_take(&s, 99), TIER_NO_SLOT);
    ck_assert_uint_eq(tier_slots_retire(&s, 3), 0);     /* none is free */
    for (uint32_t k = 0; k < COUNT; k += 2) tier_slots_give(&s, slot[k]);
    ck_assert_uint_eq(tier_slots_retire(&s, 3), 3);
    ck_assert_uint_eq(s.count, COUNT - 3);
    ck_assert_uint_eq(s.bytes, (COUNT - 3) * SLOT);
    ck_assert_uint_eq(log.out, 3 * SLOT);
    unsigned gone = 0;
    for (uint32_t k = 0; k < COUNT; k += 2) gone += resident_pages(&s, slot[k]) == 0;
    ck_assert_uint_eq(gone, 3);
    for (uint32_t k = 1; k < COUNT; k += 2) {           /* the others keep their bytes */
        ck_assert_int_eq(tier_slots_memory(&s, slot[k])[SLOT - 1], (char)(k + 1));
    }
    ck_assert_int_eq(tier_slots_grow(&s, MOST - s.count, &err), 0);
    ck_assert_uint_eq(s.count, MOST);
    ck_assert_uint_eq(log.in, (MOST - COUNT + 3) * SLOT);
    bool seen[MOST] = { false };
    for (uint32_t k = 1; k < COUNT; k += 2) seen[slot[k]] = true;
    for (uint32_t k = 0; k < MOST - COUNT / 2; k++) {
        uint32_t at = fill(&s, k);
        ck_assert_uint_lt(at, MOST);
        ck_assert(!seen[at]);
        seen[at] = true;
    }
    ck_assert_int_eq(tier_slots_grow(&s, 1, &err), BASE_EBUDGET);
    ck_assert_ptr_nonnull(strstr(err.text, "addresses were set aside for 32"));
    tier_slots_destroy(&s);
}
END_TEST

/* Where the system has no addresses to set aside, a tier keeps the size it has. */
START_TEST(no_addresses_no_growth)
{
    struct tier_slots s;
    struct base_err err = { 0 };
    ck_assert_int_eq(tier_slots_create(&s, 2, UINT32_MAX / 2, UINT64_C(1) << 31,
                                       &unpinned, &err), 0);
    ck_assert_uint_eq(s.most, 2);
    ck_assert_int_eq(tier_slots_grow(&s, 1, &err), BASE_EBUDGET);
    ck_assert_uint_eq(tier_slots_retire(&s, 1), 1);
    ck_assert_int_eq(tier_slots_grow(&s, 1, &err), 0);
    tier_slots_destroy(&s);
}
END_TEST

/* Scattered holes and back, many times: every slot is there once. */
START_TEST(comes_back_whole)
{
    struct tier_slots s;
    struct base_err err = { 0 };
    uint32_t slot[MOST];
    ck_assert_int_eq(tier_slots_create(&s, MOST, MOST, SLOT, &unpinned, &err), 0);
    for (int round = 0; round < 50; round++) {
        for (uint32_t k = 0; k < MOST; k++) slot[k] = fill(&s, k);
        for (uint32_t k = 0; k < MOST; k++) {
            if ((k * 7 + (uint32_t)round) % 3) tier_slots_give(&s, slot[k]);
        }
        uint32_t gone = tier_slots_retire(&s, MOST);
        ck_assert_uint_eq(s.free_count, 0);
        ck_assert_int_eq(tier_slots_grow(&s, gone, &err), 0);
        for (uint32_t k = 0; k < MOST; k++) {
            if ((k * 7 + (uint32_t)round) % 3 == 0) tier_slots_give(&s, slot[k]);
        }
        ck_assert_uint_eq(s.free_count, MOST);
    }
    tier_slots_destroy(&s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("slots");
    TCase *tests = tcase_create("slots");
    tcase_add_loop_test(tests, memory_goes_and_comes, 0, 2);
    tcase_add_test(tests, no_addresses_no_growth);
    tcase_add_test(tests, comes_back_whole);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
