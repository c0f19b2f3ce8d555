/* KV blocks that are known by their text: the index finds what a plain list of texts holds, drops
 * the longest idle first and nothing with something behind it; and requests that begin alike get
 * the bits that they get alone, however few blocks there are. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "engine/prefix.h"
#include "tests/support/run_stack.h"

/* --------------------------------------------------------------------------------- the index -- */

enum { BLOCKS = 40, BLOCK_TOKENS = 3, DEPTH_MAX = 6, TEXTS = 12, ROUNDS = 20000 };

/* A text that somebody holds: its blocks, as the index has them. */
struct holder {
    bool holds;
    uint32_t tokens[DEPTH_MAX * BLOCK_TOKENS];
    uint32_t ids[DEPTH_MAX];
    uint32_t depth;
};

/* What is known of a block, kept plainly. */
struct plain {
    bool known;
    uint32_t text[DEPTH_MAX * BLOCK_TOKENS], depth;     /* all tokens up to its end */
    uint32_t holders;
    uint64_t idle_since;
};

struct game {
    struct eng_prefix index;
    struct plain plain[BLOCKS];
    struct holder holders[TEXTS];
    struct base_rng rng;
    uint64_t now;
    uint32_t found, made, dropped;
};

static uint32_t plain_find(const struct game *g, const uint32_t *text, uint32_t depth)
{
    for (uint32_t id = 0; id < BLOCKS; id++) {
        const struct plain *p = &g->plain[id];
        if (p->known && p->depth == depth &&
            memcmp(p->text, text, depth * BLOCK_TOKENS * sizeof *text) == 0) {
            return id;
        }
    }
    return ENG_PREFIX_NONE;
}

/* A block that is not known, made so by dropping if need be; NONE when all are held. */
static uint32_t take(struct game *g)
{
    uint32_t want = ENG_PREFIX_NONE;
    for (uint32_t id = 0; id < BLOCKS; id++) {
        const struct plain *p = &g->plain[id];
        if (!p->known) return id;
        bool longer = want == ENG_PREFIX_NONE || p->idle_since < g->plain[want].idle_since;
        if (p->holders == 0 && longer) want = id;
    }
    uint32_t id = eng_prefix_drop(&g->index);
    ck_assert_msg(id == want, "dropped block %u, not %u", id, want);
    if (id == ENG_PREFIX_NONE) return id;
    for (uint32_t other = 0; other < BLOCKS; other++) {
        const struct plain *p = &g->plain[other];
        bool behind = p->known && p->depth > g->plain[id].depth &&
                      memcmp(p->text, g->plain[id].text,
                             g->plain[id].depth * BLOCK_TOKENS * sizeof(uint32_t)) == 0;
        ck_assert_msg(!behind, "block %u was dropped before %u behind it", id, other);
    }
    g->plain[id].known = false;
    g->dropped++;
    return id;
}

static void begin(struct game *g, struct holder *h)
{
    const uint32_t depth = 1 + (uint32_t)base_rng_below(&g->rng, DEPTH_MAX);
    *h = (struct holder){ .holds = true };
    /* Two letters and seldom a third, so that texts begin alike for a while. */
    for (uint32_t t = 0; t < depth * BLOCK_TOKENS; t++) {
        h->tokens[t] = base_rng_below(&g->rng, 8) == 0 ? 2 : t % BLOCK_TOKENS == 1;
    }
    for (; h->depth < depth; h->depth++) {
        const uint32_t before = h->depth ? h->ids[h->depth - 1] : ENG_PREFIX_NONE;
        const uint32_t *tokens = h->tokens + h->depth * BLOCK_TOKENS;
        uint32_t id = eng_prefix_find(&g->index, before, tokens);
        ck_assert_uint_eq(id, plain_find(g, h->tokens, h->depth + 1));
        if (id != ENG_PREFIX_NONE) {
            eng_prefix_hold(&g->index, id);
            g->plain[id].holders++;
            g->found++;
        } else {
            id = take(g);
            if (id == ENG_PREFIX_NONE) return;
            eng_prefix_add(&g->index, id, before, tokens);
            g->plain[id] = (struct plain){ .known = true, .depth = h->depth + 1, .holders = 1 };
            memcpy(g->plain[id].text, h->tokens, sizeof h->tokens);
            g->made++;
        }
        h->ids[h->depth] = id;
    }
}

static void end(struct game *g, struct holder *h)
{
    while (h->depth > 0) {
        uint32_t id = h->ids[--h->depth];
        eng_prefix_release(&g->index, id);
        if (--g->plain[id].holders == 0) g->plain[id].idle_since = ++g->now;
    }
    h->holds = false;
}

START_TEST(the_index_agrees_with_a_list)
{
    static struct game g;
    g = (struct game){ 0 };
    base_rng_init(&g.rng, (uint64_t)_i);
    ck_assert_int_eq(eng_prefix_init(&g.index, BLOCKS, BLOCK_TOKENS), 0);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        struct holder *h = &g.holders[base_rng_below(&g.rng, TEXTS)];
        uint32_t known = 0, idle = 0;
        h->holds ? end(&g, h) : begin(&g, h);
        for (uint32_t id = 0; id < BLOCKS; id++) {
            known += g.plain[id].known;
            idle += g.plain[id].known && g.plain[id].holders == 0;
        }
        ck_assert_uint_eq(g.index.known_count, known);
        ck_assert_uint_eq(g.index.idle_count, idle);
    }
    ck_assert_msg(g.found > 1000 && g.made > 1000 && g.dropped > 1000,
                  "seed %d: %u found, %u made, %u dropped", _i, g.found, g.made, g.dropped);
    eng_prefix_fini(&g.index);
}
END_TEST

/* ---------------------------------------------------------------------------------- the bits -- */

enum { ASKED = 5, ANSWER = 40 };

static const char *const texts[ASKED] = {
    "In the beginning God created the heaven and the earth. And the earth was without form",
    "In the beginning God created the heaven and the earth. And God said, Let there be light",
    "In the beginning God created the heaven and the earth.",
    "In the beginning of the file there is a line that names the interpreter of the script",
    "#include <stdio.h>\n\nint main(int argc, char **argv)\n{\n",
};

/* Sampled, so that one wrong bit leads to another text. */
static struct run_answer *ask(struct run *run, int which)
{
    uint32_t count;
    uint32_t *ids = run_encode(run, texts[which], &count);
    struct eng_request request = {
        .prompt = ids, .prompt_tokens = count, .max_tokens = ANSWER, .ignore_eos = true,
        .sampling = { .temperature = 0.8f, .top_p = 0.95f, .seed = (uint64_t)which + 1 },
    };
    struct run_answer *answer = run_submit(run, &request);
    free(ids);
    return answer;
}

static uint64_t alone[ASKED];

static void ask_alone(void)
{
    static const char *const settings[] = { "tiers.dram.capacity=100%", NULL };
    static struct run run;
    for (int i = 0; i < ASKED; i++) {
        run_open(&run, run_pebble(), settings);
        const struct run_answer *answer = ask(&run, i);
        run_finish(&run);
        alone[i] = answer->rows_hash;
        run_close(&run);
    }
}

START_TEST(beginnings_that_were_there_do_not_show)
{
    static const char *const settings[][6] = {
        { NULL },
        { "kv.block_tokens=1", NULL },
        { "kv.block_tokens=7", "scheduler.max_chunked_prefill_tokens=3", NULL },
        { "kv.block_tokens=4", "scheduler.max_num_seqs=2", "engine.cpu_mask=avx2", NULL },
        /* So few blocks that known ones are dropped and sequences sent back. */
        { "kv.block_tokens=4", "kv.capacity=256KiB", "scheduler.max_model_len=80", NULL },
        { "kv.block_tokens=2", "kv.capacity=256KiB", "scheduler.max_model_len=80",
          "scheduler.max_chunked_prefill_tokens=5", NULL },
    };
    static struct run run;
    const char *with[8] = { "tiers.dram.capacity=25%", "scheduler.enable_prefix_caching=true" };
    for (int i = 0; settings[_i][i]; i++) {
        with[2 + i] = settings[_i][i];
    }
    run_open(&run, run_pebble(), with);
    const bool few = strstr(settings[_i][1] ? settings[_i][1] : "", "kv.capacity") != NULL;
    /* One after the other, all at once, and again. */
    const struct run_answer *answers[3 * ASKED];
    for (int i = 0; i < 3 * ASKED; i++) {
        answers[i] = ask(&run, i % ASKED);
        if (i < ASKED) run_finish(&run);
    }
    run_finish(&run);
    struct eng_metrics m;
    eng_snapshot(run.stack.engine, &m);
    for (int i = 0; i < 3 * ASKED; i++) {
        ck_assert_msg(answers[i]->finish == ENG_LENGTH, "%s", answers[i]->error);
        ck_assert_msg(answers[i]->rows_hash == alone[i % ASKED],
                      "settings %d, request %d: other bits than alone", _i, i);
    }
    ck_assert_msg(m.reused_tokens > 0, "settings %d: nothing was there from before", _i);
    ck_assert_msg(few == (m.preempted_requests > 0), "settings %d: %llu sent back", _i,
                  (unsigned long long)m.preempted_requests);
    ck_assert_uint_eq(m.kv_used_blocks, 0);
    ck_assert_uint_gt(m.kv_idle_blocks, 0);
    run_close(&run);
}
END_TEST

/* Exactly the full blocks of the common beginning; never the last token. Whoever wants the logits
 * of the whole prompt has it computed. */
START_TEST(as_much_as_is_common)
{
    static const char *const settings[] = { "scheduler.enable_prefix_caching=true",
                                            "kv.block_tokens=4", NULL };
    static struct run run;
    run_open(&run, run_pebble(), settings);
    uint32_t count, before = 0;
    uint32_t *ids = run_encode(&run, texts[0], &count);
    const struct {
        uint32_t length, reused;
        bool prompt_logits;
    } cases[] = { { count, 0, false }, { count, (count - 1) / 4 * 4, false }, { 9, 8, false },
                  { 8, 4, false }, { 3, 0, false }, { count, 0, true } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct eng_request request = { .prompt = ids, .prompt_tokens = cases[i].length,
                                       .max_tokens = 1, .sampling = { .top_p = 1 },
                                       .prompt_logits = cases[i].prompt_logits };
        struct eng_metrics m;
        run_submit(&run, &request);
        run_finish(&run);
        eng_snapshot(run.stack.engine, &m);
        ck_assert_msg(m.reused_tokens - before == cases[i].reused, "case %zu: %llu", i,
                      (unsigned long long)m.reused_tokens - before);
        before = (uint32_t)m.reused_tokens;
    }
    free(ids);
    run_close(&run);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("prefix");
    TCase *index = tcase_create("index");
    tcase_add_loop_test(index, the_index_agrees_with_a_list, 1, 11);
    TCase *bits = tcase_create("bits");
    tcase_add_unchecked_fixture(bits, ask_alone, NULL);
    tcase_add_loop_test(bits, beginnings_that_were_there_do_not_show, 0, 6);
    tcase_add_test(bits, as_much_as_is_common);
    tcase_set_timeout(bits, 120);
    suite_add_tcase(suite, index);
    suite_add_tcase(suite, bits);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
