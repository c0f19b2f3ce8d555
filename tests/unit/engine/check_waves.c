/* A prompt streams through its share of the slots: every expert that a chunk touches is read once
 * at most, and what decode lives on stays but for that share. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/run_stack.h"

enum { LAYERS = 6, EXPERTS = 64, KEYS = LAYERS * EXPERTS, SLOTS = 16 };

static const char prompt[] =
    "The page allocator hands out contiguous ranges of physical pages; a driver that asks for "
    "more than one must be ready to be refused. And God saw the light, that it was good: and God "
    "divided the light from the darkness. #include <stdio.h> struct list_head { struct list_head "
    "*next, *prev; }; int main(int argc, char **argv) { return printf(\"%d\\n\", argc); } The "
    "interrupt handler runs with the line masked, so it must not sleep. Thou shalt not covet thy "
    "neighbour's house, nor his ox, nor his ass, nor any thing that is thy neighbour's.";

struct seen {
    uint8_t resident[KEYS];
    uint32_t loads[KEYS];
};

static void look(struct run *run, struct seen *seen)
{
    uint64_t lookups[KEYS];
    ck_assert_int_eq(tier_snapshot_experts(run->stack.tier, lookups, seen->resident, KEYS), 0);
    for (uint32_t k = 0; k < KEYS; k++) {
        seen->loads[k] = tier_expert_loads(run->stack.tier, k / EXPERTS, k % EXPERTS).loads;
    }
}

static void say(struct run *run, const char *text, uint32_t tokens)
{
    uint32_t count, *ids = run_encode(run, text, &count);
    ck_assert_uint_le(count, 256);              /* one chunk */
    struct run_answer *answer = run_greedy(run, ids, count, tokens);
    run_finish(run);
    ck_assert_msg(answer->error_code == 0, "%s", answer->error);
    free(ids);
}

/* Slots of the layer that lost most of what decode had there, and experts the prompt read. */
static void after_a_prompt(const char *share, uint32_t *lost_most, uint32_t *read)
{
    static struct run run;
    static struct seen before, after;
    const char *settings[] = { "tiers.dram.capacity=25%", "policy.eviction=lru",
                               "predictor.kind=none", share, NULL };
    run_open(&run, run_pebble(), settings);
    say(&run, "In the beginning God created the heaven and the earth", 120);
    look(&run, &before);
    say(&run, prompt, 1);                       /* that token is the prompt's: nothing decodes */
    look(&run, &after);
    *lost_most = *read = 0;
    for (uint32_t l = 0; l < LAYERS; l++) {
        uint32_t had = 0, lost = 0;
        for (uint32_t k = l * EXPERTS; k < (l + 1) * EXPERTS; k++) {
            uint32_t loads = after.loads[k] - before.loads[k];
            ck_assert_msg(loads <= 1, "expert %u of layer %u was read %u times in one chunk",
                          k % EXPERTS, l, loads);
            *read += loads;
            had += before.resident[k] != 0;
            lost += before.resident[k] && !after.resident[k];
        }
        ck_assert_uint_eq(had, SLOTS);
        if (lost > *lost_most) *lost_most = lost;
    }
    run_close(&run);
}

START_TEST(a_prompt_leaves_decode_its_set)
{
    uint32_t lost, read, lost_all, read_all;
    after_a_prompt("policy.prefill_share=25%", &lost, &read);
    after_a_prompt("policy.prefill_share=100%", &lost_all, &read_all);
    printf("one chunk: %u experts read through 4 of 16 slots a layer, %u of decode's lost at most; "
           "%u read through all, %u lost\n", read, lost, read_all, lost_all);
    ck_assert_uint_gt(read, 4 * LAYERS * 3);    /* several waves */
    ck_assert_uint_le(lost, SLOTS / 4);
    ck_assert_uint_gt(lost_all, SLOTS / 2);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("waves");
    TCase *tests = tcase_create("waves");
    tcase_add_test(tests, a_prompt_leaves_decode_its_set);
    tcase_set_timeout(tests, 120);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
