/* tier-run: one answer in the terminal, from the same stack that the server runs. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "engine/perplexity.h"
#include "port/yaml.h"
#include "tools/cli.h"

static struct {
    const char *model;
    const char *prompt;
    const char *config;
    struct cli_list set;
    const char *trace;
    const char *perplexity;
    const char *profile;
    uint64_t profile_events;
    uint64_t max_tokens;
    double temperature;
    double top_p;
    uint64_t top_k;
    uint64_t seed;
    bool chat;
    bool quiet;
} flags = { .max_tokens = 128, .profile_events = ENG_PROFILE_EVENTS, .temperature = 0.0,
            .top_p = 1.0, .seed = 1 };
static bool engine_stopped;     /* which every rank knows: each ends by itself */

/* What the engine's callbacks write to. */
struct answer {
    uint32_t tokens;
    uint64_t first_ns, last_ns;
    enum eng_finish finish;
    char error[BASE_ERR_TEXT];
};

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

static void on_piece(void *context, const struct eng_piece *piece)
{
    struct answer *answer = context;
    if (piece->token >= 0) {
        answer->last_ns = base_now_ns();
        if (answer->tokens++ == 0) answer->first_ns = answer->last_ns;
    }
    fwrite(piece->text, 1, piece->size, stdout);
    fflush(stdout);
    if (piece->finish != ENG_RUNNING) answer->finish = piece->finish;
    if (piece->finish == ENG_FAILED) {
        snprintf(answer->error, sizeof answer->error, "%s", piece->error ? piece->error : "");
    }
}

static int read_config(struct eng_stack_config *config, struct base_err *err)
{
    struct base_option_group groups[ENG_STACK_GROUPS];
    size_t count = eng_stack_groups(config, groups);
    base_option_defaults(groups, count);
    if (flags.config) {
        int rc = port_yaml_load(flags.config, groups, count, err);
        if (rc < 0) return rc;
    }
    for (unsigned i = 0; i < flags.set.count; i++) {
        int rc = base_option_set_pair(groups, count, flags.set.text[i], err);
        if (rc < 0) return rc;
    }
    return 0;
}

/* The prompt from --prompt, or all of stdin. malloc'ed, or NULL with a sentence. */
static char *read_prompt(struct base_err *err)
{
    if (flags.prompt && strcmp(flags.prompt, "-") != 0) return strdup(flags.prompt);
    enum { PROMPT_MAX = 1 << 20 };
    char *text = malloc(PROMPT_MAX + 1);
    if (!text) return NULL;
    size_t size = fread(text, 1, PROMPT_MAX, stdin);
    if (size == PROMPT_MAX) {
        base_err_set(err, -EFBIG, "standard input: the prompt is longer than 1 MiB");
        free(text);
        return NULL;
    }
    text[size] = '\0';
    return text;
}

static int render(const struct eng_stack *stack, const char *prompt, uint32_t **ids, size_t *count,
                  struct base_err *err)
{
    if (!flags.chat) {
        return model_chat_prompt(stack->chat, prompt, strlen(prompt), true, MODEL_CHAT_ANY, ids,
                                 count, err);
    }
    struct model_message message = { .role = "user", .text = prompt, .size = strlen(prompt) };
    return model_chat_render(stack->chat, &message, 1, MODEL_CHAT_ANY, ids, count, err);
}

static void print_rate(const char *tier, const char *cell, const struct tier_counts *counts)
{
    if (counts->lookups == 0) return;
    fprintf(stderr, "  %-5s %-10s %8" PRIu64 " lookups  resident %5.1f%%  misses %" PRIu64 "\n",
            tier, cell, counts->lookups, 100.0 * (double)counts->resident / (double)counts->lookups,
            counts->misses);
}

static void print_stats(const struct eng_stack *stack, const struct answer *answer,
                        uint64_t prompt_tokens, uint64_t start_ns)
{
    static const char *const cells[TIER_CELL_COUNT] = { "cold_start", "prefill", "decode" };
    static struct tier_snapshot snapshot;       /* too large for the stack */
    char first[16];
    tier_snapshot(stack->tier, &snapshot);
    fprintf(stderr, "\n\nprompt %" PRIu64 " tokens, ", prompt_tokens);
    if (answer->tokens == 0) {
        fputs("no token came", stderr);
    } else {
        fprintf(stderr, "first token after %s",
                base_str_duration(first, sizeof first, answer->first_ns - start_ns));
    }
    if (answer->tokens > 1 && answer->last_ns > answer->first_ns) {
        double seconds = (double)(answer->last_ns - answer->first_ns) / 1e9;
        fprintf(stderr, "; %u tokens, %.1f tokens/s", answer->tokens,
                (double)(answer->tokens - 1) / seconds);
    }
    fputc('\n', stderr);
    for (uint32_t t = 0; t < snapshot.tier_count; t++) {
        for (int cell = 0; cell < TIER_CELL_COUNT; cell++) {
            print_rate(snapshot.tier_names[t], cells[cell], &snapshot.cells[t][cell]);
        }
    }
    char bytes[16];
    fprintf(stderr, "  nvme  read       %s in %" PRIu64 " demand reads; waited %.3f s for them\n",
            base_str_bytes(bytes, sizeof bytes, snapshot.io.demand_bytes), snapshot.io.demand_reads,
            snapshot.io.wait_demand_seconds);
    if (!stack->advice) return;
    fprintf(stderr, "  ahead            %s in %" PRIu64 " prefetch reads: %" PRIu64 " useful, %"
            PRIu64 " late, %s wasted; %s\n",
            base_str_bytes(bytes, sizeof bytes, snapshot.io.prefetch_bytes),
            snapshot.io.prefetch_reads, snapshot.io.prefetch_useful, snapshot.io.prefetch_late,
            base_str_bytes(first, sizeof first, snapshot.io.prefetch_wasted_bytes),
            snapshot.governor_note[0] ? snapshot.governor_note : snapshot.prefetch_note);
}

/* Runs the engine until the answer is there or the user interrupts. */
static int generate(struct eng_stack *stack, const struct eng_request *request,
                    struct base_err *err)
{
    int64_t id = eng_submit(stack->engine, request, err);
    if (id < 0) return (int)id;
    int alive = 1;
    while (alive > 0 && !interrupted) {
        alive = eng_step(stack->engine);
    }
    if (interrupted) eng_cancel(stack->engine, (uint64_t)id);
    if (alive >= 0) return 0;
    const char *why = eng_failure(stack->engine);
    return base_err_set(err, alive, "the engine stopped: %s", why ? why : base_err_name(alive));
}

static int answer_prompt(struct eng_stack *stack, const char *prompt, struct base_err *err)
{
    uint32_t *ids = NULL;
    size_t count = 0;
    int rc = render(stack, prompt, &ids, &count, err);
    if (rc < 0) return rc;
    struct answer answer = { 0 };
    struct eng_request request = {
        .prompt = ids,
        .prompt_tokens = (uint32_t)count,
        .max_tokens = (uint32_t)flags.max_tokens,
        .sampling = { .temperature = (float)flags.temperature,
                      .top_p = (float)flags.top_p,
                      .top_k = (uint32_t)flags.top_k,
                      .seed = flags.seed },
        .on_piece = on_piece,
        .context = &answer,
    };
    uint64_t start_ns = base_now_ns();
    rc = generate(stack, &request, err);
    free(ids);
    if (rc == 0 && answer.finish == ENG_FAILED) {
        rc = base_err_set(err, BASE_EQUARANTINE, "%s", answer.error);
    }
    if (rc == 0 && !flags.quiet) print_stats(stack, &answer, count, start_ns);
    if (rc == 0 || answer.tokens > 0) putchar('\n');
    if (rc == 0 && interrupted) rc = base_err_set(err, -ECANCELED, "stopped on request");
    return rc;
}

static int reading_shows(void *context, uint64_t done, uint64_t total)
{
    (void)context;
    if (!flags.quiet && isatty(STDERR_FILENO)) {
        fprintf(stderr, "\r%" PRIu64 " of %" PRIu64 " tokens%s", done, total,
                done == total ? "\n" : "");
    }
    return interrupted;
}

/* All digits of the sum: runs that print the same saw the same logits. */
static int read_text(const struct eng_stack_config *config, struct comm *comm,
                     struct base_err *err)
{
    enum { TEXT_MAX = 64 << 20 };
    struct eng_perplexity result;
    char *text = NULL;
    size_t size;
    struct eng_stack_args args = { .model_dir = flags.model, .config = config, .comm = comm,
                                   .quiet = true };
    int rc = base_file_read(&text, &size, flags.perplexity, TEXT_MAX, err);
    signal(SIGINT, on_interrupt);
    if (rc == 0) rc = eng_perplexity(&result, &args, text, size, 0, reading_shows, NULL, err);
    free(text);
    if (rc < 0) return rc;
    printf("perplexity %.6f  nats %.17g  tokens %" PRIu64 "\n", result.perplexity, result.nats,
           result.tokens);
    return 0;
}

/* A rank other than 0: it has no prompt, and says nothing but what goes wrong. */
static int follow(const struct eng_stack_args *args, struct base_err *err)
{
    static struct eng_stack stack;
    int rc = eng_stack_open(&stack, args, err);
    if (rc < 0) return rc;
    eng_follow(stack.engine);
    const char *why = eng_failure(stack.engine);
    engine_stopped = why != NULL;
    if (why) rc = base_err_set(err, BASE_EDEVICE, "the engine stopped: %s", why);
    eng_stack_close(&stack);
    return rc;
}

static int answer(const struct eng_stack_args *args, struct base_err *err)
{
    static struct eng_stack stack;
    char *prompt = read_prompt(err);
    if (!prompt) {
        base_err_set(err, -ENOMEM, "no memory for the prompt");
        comm_abort(args->comm, err->text);
        return err->code;
    }
    signal(SIGINT, on_interrupt);
    int rc = eng_stack_open(&stack, args, err);
    if (rc < 0) comm_abort(args->comm, err->text);
    if (rc == 0) rc = answer_prompt(&stack, prompt, err);
    eng_stack_close(&stack);
    free(prompt);
    return rc;
}

static int run(int count, char **arguments)
{
    (void)count;
    (void)arguments;
    static struct eng_stack_config config;
    struct comm *comm;
    struct base_err err = { 0 };
    if (!flags.model) {
        return cli_misuse("--model DIR is needed: a folder with config.json and safetensors");
    }
    if (flags.top_p <= 0.0 || flags.top_p > 1.0) {
        return cli_misuse("--top-p must be above 0 and at most 1");
    }
    if (flags.temperature < 0.0) return cli_misuse("--temperature must not be negative");
    if (flags.max_tokens < 1 || flags.max_tokens > UINT32_MAX) {
        return cli_misuse("--max-tokens: at least 1");
    }
    if (flags.perplexity && (flags.prompt || flags.chat || flags.trace || flags.profile)) {
        return cli_misuse("--perplexity reads its file: it takes no --prompt, --chat, --trace or "
                          "--profile");
    }
    if (flags.profile_events < 1 || flags.profile_events > CLI_PROFILE_EVENTS_MAX) {
        return cli_misuse("--profile-events: 1 to %d", CLI_PROFILE_EVENTS_MAX);
    }
    if (!flags.perplexity && !flags.prompt && isatty(STDIN_FILENO)) {
        return cli_misuse("--prompt TEXT is needed ('-' reads standard input)");
    }
    if (read_config(&config, &err) < 0) return cli_fail(2, &err);
    if (comm_open(&comm, &config.comm, &err) < 0) return cli_fail(1, &err);
    bool leads = comm->rank == 0;
    if (flags.quiet || flags.perplexity || !leads) base_log_level_set(BASE_LOG_WARN);
    struct eng_stack_args args = { .model_dir = flags.model, .config = &config, .comm = comm,
                                   .profile_path = flags.profile,
                                   .profile_events = flags.profile_events,
                                   .trace_path = flags.trace, .quiet = flags.quiet || !leads };
    int rc = !leads ? follow(&args, &err)
             : flags.perplexity ? read_text(&config, comm, &err) : answer(&args, &err);
    int code = rc < 0 ? cli_fail(1, &err) : 0;
    if (rc < 0 && (!leads || flags.perplexity) && !engine_stopped) comm_abort(comm, err.text);
    comm_close(comm);
    return code;
}

static const struct cli_flag run_flags[] = {
    { "model", CLI_TEXT, &flags.model, "DIR",
      "folder with config.json, tokenizer.json and safetensors" },
    { "prompt", CLI_TEXT, &flags.prompt, "TEXT",
      "what to continue; '-' or nothing reads standard input" },
    { "chat", CLI_SWITCH, &flags.chat, NULL,
      "send the prompt as a user's message through the chat template" },
    { "max-tokens", CLI_UINT, &flags.max_tokens, "N", "longest answer (128)" },
    { "temperature", CLI_REAL, &flags.temperature, "T", "0 = greedy (default)" },
    { "top-p", CLI_REAL, &flags.top_p, "P",
      "sample from the likeliest tokens of this total probability (1)" },
    { "top-k", CLI_UINT, &flags.top_k, "K",
      "sample from the K likeliest tokens; 0 = all (default)" },
    { "seed", CLI_UINT, &flags.seed, "N", "seed of the sampler (1)" },
    { "config", CLI_TEXT, &flags.config, "FILE", "YAML settings; see tier-server --options" },
    { "set", CLI_REPEATED, &flags.set, "KEY=VALUE",
      "one setting, over the file's; may be repeated" },
    { "trace", CLI_TEXT, &flags.trace, "FILE", "record routing and cache events for tier-replay" },
    { "profile", CLI_TEXT, &flags.profile, "FILE",
      "write where the time went, as Chrome trace events; open it in Perfetto" },
    { "profile-events", CLI_UINT, &flags.profile_events, "N",
      "newest events that --profile keeps (262144)" },
    { "perplexity", CLI_TEXT, &flags.perplexity, "FILE",
      "no answer: how well the model predicts this text, in windows of 512 tokens" },
    { "quiet", CLI_SWITCH, &flags.quiet, NULL, "print the answer only" },
    { NULL, CLI_SWITCH, NULL, NULL, NULL },
};

static const struct cli_command commands[] = {
    { .name = NULL, .arguments = "", .text = "answers one prompt", .flags = run_flags, .run = run },
};

int main(int argc, char **argv)
{
    static const struct cli_program program = {
        .name = "tier-run",
        .text = "answer one prompt from a model whose experts stay on disk",
        .details =
            "Opens the model with the same expert tiers, settings and arithmetic as tier-server, "
            "prints the\n"
            "answer on standard output as it is generated, and what it cost on standard error.",
        .commands = commands,
        .command_count = 1,
        .examples =
            "tier-run --model models/pebble --prompt 'In the beginning God created' --max-tokens "
            "40\n"
            "tier-run --model models/pebble --set tiers.dram.capacity=15% --prompt - <prompt.txt",
    };
    return cli_main(&program, argc, argv);
}
