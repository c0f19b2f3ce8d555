/* KV blocks and the scheduler: no block that can be written has two owners, requests come in by
 * arrival with the watermark left over, the last one in gives way, and in the end everything is
 * free again. The same with blocks that are shared: then every token finds before it what its own
 * text puts there. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "engine/scheduler.h"
#include "tests/support/run_stack.h"

enum { SEQS = 60, BLOCKS_MAX = 64, BLOCK_TOKENS = 4 };

/* Like ck_assert, which writes a line for every call: these are called millions of times. */
#define HOLDS(what) \
    do { \
        if (!(what)) ck_abort_msg("%s", #what); \
    } while (0)

#define HOLDS_MSG(what, ...) \
    do { \
        if (!(what)) ck_abort_msg(__VA_ARGS__); \
    } while (0)

static struct model_tokenizer *tokenizer;

struct game {
    struct base_rng rng;
    struct eng_kv kv;
    struct eng_scheduler scheduler;
    struct eng_seq_limits limits;
    uint32_t seed, added, over, cancelled;
    uint32_t last_admitted;     /* id of the youngest request that was ever let in */
    bool let_in[SEQS + 1];
    uint32_t answered[SEQS + 1], wanted[SEQS + 1];
    uint64_t kept[BLOCKS_MAX][BLOCK_TOKENS];    /* instead of KV: the text up to there, as a hash */
};

static void load(void)
{
    struct base_err err = { 0 };
    int rc = model_tokenizer_load(&tokenizer, run_pebble(), &err);
    ck_assert_msg(rc == 0, "%s", err.text);
}

static void unload(void)
{
    model_tokenizer_free(tokenizer);
}

START_TEST(blocks_are_lent_once)
{
    struct eng_kv kv;
    bool lent[BLOCKS_MAX] = { false };
    uint32_t held[BLOCKS_MAX], count = 0;
    struct base_rng rng;
    base_rng_init(&rng, 3);
    HOLDS(eng_kv_init(&kv, 2, 5, BLOCK_TOKENS, false, BLOCKS_MAX, 8) == 0);
    HOLDS(eng_kv_blocks_for(&kv, 0) == 0);
    HOLDS(eng_kv_blocks_for(&kv, 1) == 1);
    HOLDS(eng_kv_blocks_for(&kv, BLOCK_TOKENS) == 1);
    HOLDS(eng_kv_blocks_for(&kv, BLOCK_TOKENS + 1) == 2);
    for (int round = 0; round < 20000; round++) {
        if (base_rng_below(&rng, 2)) {
            int64_t id = eng_kv_take(&kv);
            HOLDS((id < 0) == (count == BLOCKS_MAX));
            if (id < 0) continue;
            HOLDS((uint64_t)id < BLOCKS_MAX);
            HOLDS(!lent[id]);
            lent[id] = true;
            held[count++] = (uint32_t)id;
        } else if (count > 0) {
            uint32_t give = 1 + (uint32_t)base_rng_below(&rng, count);
            count -= give;
            for (uint32_t i = 0; i < give; i++) {
                lent[held[count + i]] = false;
            }
            eng_kv_give(&kv, held + count, give);
        }
        HOLDS(kv.free_count + count == BLOCKS_MAX);
    }
    eng_kv_give(&kv, held, count);
    /* Rows of all blocks and layers lie apart and inside the memory. */
    memset(kv.memory, 0, kv.layer_bytes * kv.layers * kv.blocks);
    for (uint32_t id = 0; id < BLOCKS_MAX; id++) {
        for (uint32_t layer = 0; layer < 2; layer++) {
            unsigned char *block = eng_kv_block(&kv, id, layer);
            for (size_t i = 0; i < kv.layer_bytes; i++) {
                HOLDS(block[i] == 0);
                block[i] = 1;
            }
        }
    }
    eng_kv_fini(&kv);
}
END_TEST

/* ------------------------------------------------------------------------ a game of requests -- */

static void add_request(struct game *g)
{
    static uint32_t prompt[200];
    uint32_t id = ++g->added;
    /* Texts that begin alike, where blocks are shared; they go on like answers do. */
    const uint32_t fork = (uint32_t)base_rng_below(&g->rng, 60);
    for (uint32_t i = 0; g->kv.shares && i < 200; i++) {
        prompt[i] = i < fork ? 300 : 301 + (uint32_t)base_rng_below(&g->rng, 2);
    }
    uint32_t most = g->limits.tokens_max;
    uint32_t prompt_tokens = 1 + (uint32_t)base_rng_below(&g->rng, most - 1);
    struct eng_request request = { .prompt = prompt, .prompt_tokens = prompt_tokens,
                                   .max_tokens = 1 + (uint32_t)base_rng_below(&g->rng, 40) };
    g->wanted[id] =
        request.max_tokens < most - prompt_tokens ? request.max_tokens : most - prompt_tokens;
    struct eng_seq *seq = eng_seq_create(&request, id, tokenizer, &g->limits);
    HOLDS(seq != NULL);
    eng_scheduler_add(&g->scheduler, seq);
}

/* Those that they alone have. */
static uint32_t count_blocks(const struct eng_seq *seq, bool *owned)
{
    uint32_t count = 0;
    for (; seq; seq = seq->next) {
        for (uint32_t i = seq->known; i < seq->block_count; i++) {
            HOLDS(!owned[seq->blocks[i]]);
            owned[seq->blocks[i]] = true;
        }
        count += seq->block_count - seq->known;
    }
    return count;
}

static uint32_t known_blocks(const struct eng_kv *kv)
{
    return kv->shares ? kv->prefix.known_count : 0;
}

static void check_blocks(const struct game *g)
{
    bool owned[BLOCKS_MAX] = { false };
    uint32_t used = count_blocks(g->scheduler.running, owned);
    HOLDS_MSG(used + known_blocks(&g->kv) + g->kv.free_count == g->kv.blocks,
              "seed %u: blocks were lost", g->seed);
    for (const struct eng_seq *seq = g->scheduler.running; seq; seq = seq->next) {
        for (uint32_t i = 0; i < seq->known; i++) {
            HOLDS(!owned[seq->blocks[i]]);
        }
    }
    HOLDS(count_blocks(g->scheduler.waiting, owned) == 0);
    for (const struct eng_seq *seq = g->scheduler.waiting; seq; seq = seq->next) {
        HOLDS(seq->state == ENG_SEQ_WAITING);
        HOLDS(seq->computed == 0);
    }
}

/* Arrival decides who is let in first; afterwards running requests are in the order of
 * admission. */
static void check_admission(struct game *g, uint32_t free_before, uint32_t running_before)
{
    for (const struct eng_seq *seq = g->scheduler.running; seq; seq = seq->next) {
        uint32_t id = (uint32_t)seq->id;
        if (g->let_in[id]) continue;
        HOLDS_MSG(id > g->last_admitted, "seed %u: request %u overtook", g->seed, id);
        if (running_before > 0 && g->scheduler.preempted == 0) {
            ck_assert_msg(eng_kv_room(&g->kv) >= g->scheduler.config.watermark_blocks,
                          "seed %u: %u blocks left, the watermark is %u", g->seed,
                          eng_kv_room(&g->kv), g->scheduler.config.watermark_blocks);
        }
        HOLDS(eng_kv_room(&g->kv) <= free_before);
        g->last_admitted = id;
        g->let_in[id] = true;
    }
}

/* Who waits though the chunk has room does so for want of a place or of blocks. */
static void check_fullness(const struct game *g, const struct eng_batch *batch)
{
    const struct eng_scheduler_config *config = &g->scheduler.config;
    const struct eng_seq *seq = g->scheduler.waiting;
    const struct eng_seq *last = batch->count > 0 ? batch->members[batch->member_count - 1] : NULL;
    if (!seq || g->kv.shares || g->scheduler.running_count == config->seqs_max) return;
    if (batch->count == config->batch_tokens_max) return;
    if (batch->count - batch->decode_count == config->chunk_tokens_max) return;
    if (last && last->state == ENG_SEQ_PROMPT && last->token_count > last->prompt_count) return;
    HOLDS_MSG(eng_kv_room(&g->kv) <
                  eng_kv_blocks_for(&g->kv, seq->token_count) + config->watermark_blocks,
              "seed %u: request %llu could have come in", g->seed, (unsigned long long)seq->id);
}

static void check_batch(const struct game *g, const struct eng_batch *batch)
{
    const struct eng_scheduler_config *config = &g->scheduler.config;
    uint32_t prompts = 0, generating = 0, unfinished = 0, row = 0;
    HOLDS(batch->count <= eng_scheduler_rows_max(config));
    for (const struct eng_seq *seq = g->scheduler.running; seq; seq = seq->next) {
        prompts += seq->state == ENG_SEQ_PROMPT;
        generating += seq->state == ENG_SEQ_GENERATING;
    }
    HOLDS(prompts + generating <= config->seqs_max);
    HOLDS(batch->decode_count == generating);
    HOLDS(batch->member_count == generating + prompts);
    HOLDS(batch->count - batch->decode_count <= config->chunk_tokens_max);
    for (uint32_t m = 0; m < batch->member_count; m++) {
        const struct eng_seq *seq = batch->members[m];
        for (uint32_t at = seq->computed; row < batch->count && batch->row_member[row] == m;
             row++, at++) {
            HOLDS(batch->positions[row] == at);
            HOLDS(batch->tokens[row] == seq->tokens[at]);
            HOLDS(batch->seqs[row] == seq->id);
            HOLDS(batch->phases[row] == (row < batch->decode_count ? TIER_DECODE : TIER_PREFILL));
            HOLDS(at < seq->token_count);
            HOLDS(at / BLOCK_TOKENS < seq->block_count);
            /* Behind tokens that were generated before stands no prompt. */
            HOLDS(row < batch->decode_count || at < seq->prompt_count ||
                  m == batch->member_count - 1);
        }
        unfinished += row > 0 && batch->positions[row - 1] + 1 < seq->token_count;
    }
    HOLDS(row == batch->count);
    HOLDS(unfinished <= 1);
    check_fullness(g, batch);
}

static uint64_t longer(uint64_t text, uint32_t token)
{
    return (text + token + 1) * UINT64_C(0x9e3779b97f4a7c15) + 1;
}

/* Every row looks at all that is kept before it, and keeps what its own text comes to. */
static void attend(struct game *g, const struct eng_seq *seq, uint32_t position)
{
    uint64_t text = 0;
    for (uint32_t at = 0; at <= position; at++) {
        uint64_t *kept = &g->kept[seq->blocks[at / BLOCK_TOKENS]][at % BLOCK_TOKENS];
        /* On a card a generated token has bits of its own. */
        const bool own = g->kv.prompts_only && at >= seq->prompt_count;
        text = longer(text, seq->tokens[at] + (own ? 1000 : 0));
        if (at == position) {
            HOLDS(at / BLOCK_TOKENS >= seq->known);
            *kept = text;
        }
        HOLDS_MSG(*kept == text, "seed %u: request %llu finds other text at %u before its %u",
                  g->seed, (unsigned long long)seq->id, at, position);
    }
}

/* What the engine does with a batch, without the arithmetic. */
static void compute(struct game *g, const struct eng_batch *batch)
{
    for (uint32_t row = 0; row < batch->count; row++) {
        attend(g, batch->members[batch->row_member[row]], batch->positions[row]);
        batch->members[batch->row_member[row]]->computed++;
    }
    for (uint32_t m = 0; m < batch->member_count; m++) {
        struct eng_seq *seq = batch->members[m];
        if (seq->computed < seq->token_count) continue;
        seq->state = ENG_SEQ_GENERATING;
        g->answered[seq->id]++;
        if (eng_seq_push(seq, 300, 0.0f, false) != ENG_RUNNING) {
            HOLDS(g->answered[seq->id] == g->wanted[seq->id]);
            seq->state = ENG_SEQ_OVER;
            g->over++;
        }
    }
    for (uint32_t m = 0; m < batch->member_count; m++) {
        eng_seq_make_known(batch->members[m], &g->kv);
    }
}

static void cancel_one(struct game *g)
{
    struct eng_seq *seq = eng_scheduler_find(&g->scheduler, 1 + base_rng_below(&g->rng, SEQS));
    if (!seq || seq->state == ENG_SEQ_OVER) return;
    seq->state = ENG_SEQ_OVER;
    g->over++;
    g->cancelled++;
}

enum sharing { ALONE, SHARED, PROMPTS_SHARED, SHARINGS };

static void play(struct game *g, enum sharing sharing)
{
    uint32_t blocks = 8 + (uint32_t)base_rng_below(&g->rng, BLOCKS_MAX - 8);
    struct eng_scheduler_config config = {
        .seqs_max = 1 + (uint32_t)base_rng_below(&g->rng, 8),
        .chunk_tokens_max = 1 + (uint32_t)base_rng_below(&g->rng, 20),
        .watermark_blocks = (uint32_t)base_rng_below(&g->rng, 4),
    };
    config.batch_tokens_max = config.seqs_max + 1 + (uint32_t)base_rng_below(&g->rng, 20);
    g->limits = (struct eng_seq_limits){ .tokens_max = blocks * BLOCK_TOKENS, .blocks_max = blocks,
                                         .token_bytes_max = 64 };
    if (g->limits.tokens_max > 150) g->limits.tokens_max = 150;
    HOLDS(eng_kv_init(&g->kv, 1, 4, BLOCK_TOKENS, false, blocks, blocks) == 0);
    if (sharing) HOLDS(eng_kv_share(&g->kv, sharing == PROMPTS_SHARED) == 0);
    HOLDS(eng_scheduler_init(&g->scheduler, &config, &g->kv) == 0);
    uint32_t idle = 0;
    for (uint32_t step = 0; g->over < SEQS; step++) {
        HOLDS_MSG(step < 200000, "seed %u: no end", g->seed);
        while (g->added < SEQS && base_rng_below(&g->rng, 3) == 0) {
            add_request(g);
        }
        uint32_t free_before = eng_kv_room(&g->kv), running = g->scheduler.running_count;
        uint64_t preempted = g->scheduler.preempted;
        g->scheduler.preempted = 0;
        const struct eng_batch *batch = eng_scheduler_next(&g->scheduler);
        check_blocks(g);
        check_admission(g, g->scheduler.preempted ? UINT32_MAX : free_before, running);
        g->scheduler.preempted += preempted;
        check_batch(g, batch);
        /* Whoever waits while nobody runs must be let in. */
        idle = batch->count == 0 && g->scheduler.waiting_count > 0 ? idle + 1 : 0;
        HOLDS_MSG(idle == 0, "seed %u: requests wait for nothing", g->seed);
        compute(g, batch);
        if (base_rng_below(&g->rng, 50) == 0) cancel_one(g);
        eng_scheduler_sweep(&g->scheduler);
    }
    HOLDS(eng_kv_room(&g->kv) == g->kv.blocks);
    HOLDS(!g->scheduler.running);
    HOLDS(!g->scheduler.waiting);
    HOLDS(g->scheduler.running_count + g->scheduler.waiting_count == 0);
}

START_TEST(every_request_gets_its_answer)
{
    uint64_t preempted = 0, reused = 0;
    uint32_t cancelled = 0;
    for (uint32_t seed = 1; seed <= 100; seed++) {
        static struct game game;
        game = (struct game){ .seed = seed };
        base_rng_init(&game.rng, seed);
        play(&game, (enum sharing)_i);
        preempted += game.scheduler.preempted;
        reused += game.scheduler.reused;
        cancelled += game.cancelled;
        eng_scheduler_fini(&game.scheduler);
        eng_kv_fini(&game.kv);
    }
    /* The seeds do come to what they are for. */
    ck_assert_uint_gt(preempted, 100);
    ck_assert_uint_gt(cancelled, 50);
    ck_assert_msg(_i ? reused > 10000 : reused == 0, "%llu tokens were there from before",
                  (unsigned long long)reused);
}
END_TEST

/* A scheduler that is torn down with requests in it frees them (the sanitizers look on). */
START_TEST(the_end_frees_what_is_left)
{
    static struct game game;
    game = (struct game){ .seed = 1 };
    base_rng_init(&game.rng, 1);
    struct eng_scheduler_config config = { .seqs_max = 2,
                                           .chunk_tokens_max = 8,
                                           .batch_tokens_max = 20 };
    game.limits =
        (struct eng_seq_limits){ .tokens_max = 40, .blocks_max = 10, .token_bytes_max = 64 };
    ck_assert_int_eq(eng_kv_init(&game.kv, 1, 4, BLOCK_TOKENS, true, 20, 10), 0);
    ck_assert_int_eq(eng_scheduler_init(&game.scheduler, &config, &game.kv), 0);
    for (int i = 0; i < 5; i++) {
        add_request(&game);
    }
    eng_scheduler_next(&game.scheduler);
    eng_scheduler_fini(&game.scheduler);
    eng_kv_fini(&game.kv);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("scheduler");
    TCase *tests = tcase_create("scheduler");
    tcase_add_checked_fixture(tests, load, unload);
    tcase_add_test(tests, blocks_are_lent_once);
    tcase_add_loop_test(tests, every_request_gets_its_answer, 0, SHARINGS);
    tcase_add_test(tests, the_end_frees_what_is_left);
    tcase_set_timeout(tests, 60);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
