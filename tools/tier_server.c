/* tier-server: serves a model over OpenAI's API; its experts stream from disk through the tiers. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "engine/stack.h"
#include "port/yaml.h"
#include "server/server.h"
#include "tools/cli.h"

/* configs/cpu-only.yaml, made into a string by the build. */
static const char embedded_config[] =
#include "tools/embedded_config.inc"
    ;
static const char embedded_name[] = "configs/cpu-only.yaml (built in)";

enum { EXIT_MISUSE = 2, GROUPS_MAX = ENG_STACK_GROUPS + 1, POLL_MS = 100 };
#define PORT_NOT_GIVEN UINT64_MAX

static struct {
    const char *config;
    const char *model;
    const char *listen;
    const char *trace;
    const char *log_level;
    struct cli_list set;
    uint64_t port;
    bool log_json;
    bool options;
    bool metrics;
    bool check_config;
    bool print_config;
    bool dry_run;
} flags = { .port = PORT_NOT_GIVEN };

static struct {
    struct eng_stack_config stack;
    struct srv_config server;
} config;

static size_t config_groups(struct base_option_group *groups)
{
    size_t count = eng_stack_groups(&config.stack, groups);
    groups[count++] = (struct base_option_group){ "server", srv_options, srv_option_count,
                                                  &config.server };
    return count;
}

/* Defaults, then the file (or the built-in one), then --set, then the flags of their own. */
static int read_config(struct base_err *err)
{
    struct base_option_group groups[GROUPS_MAX];
    size_t count = config_groups(groups);
    base_option_defaults(groups, count);
    int rc = flags.config ? port_yaml_load(flags.config, groups, count, err)
                          : port_yaml_parse(embedded_config, sizeof embedded_config - 1,
                                            embedded_name, groups, count, err);
    for (unsigned i = 0; rc >= 0 && i < flags.set.count; i++) {
        rc = base_option_set_pair(groups, count, flags.set.text[i], err);
    }
    if (rc >= 0 && flags.listen) {
        struct base_option_source source = { .file = "--listen" };
        rc = base_option_set(groups, count, "server.listen", flags.listen, &source, false, err);
    }
    if (rc >= 0 && flags.port != PORT_NOT_GIVEN) {
        struct base_option_source source = { .file = "--port" };
        char port[24];
        base_str_format(port, sizeof port, "%llu", (unsigned long long)flags.port);
        rc = base_option_set(groups, count, "server.port", port, &source, false, err);
    }
    if (rc >= 0) rc = eng_stack_check(&config.stack, err);
    return rc < 0 ? rc : 0;
}

static int print_metrics(void)
{
    struct base_buf text;
    base_buf_init(&text);
    srv_metric_reference(&text);
    int rc = base_buf_error(&text);
    if (rc == 0) {
        fwrite(text.data, 1, text.size, stdout);
    }
    base_buf_fini(&text);
    return rc < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

static int signal_fd = -1;
static volatile sig_atomic_t signal_count;

static void on_signal(int number)
{
    uint64_t one = 1;
    int saved = errno;
    (void)number;
    signal_count++;
    ssize_t n = write(signal_fd, &one, sizeof one);
    (void)n;
    errno = saved;
}

/* Before this SIGTERM ends the program at once, which is safe: nothing is half-written. */
static int catch_signals(struct base_err *err)
{
    signal_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (signal_fd < 0) {
        return base_err_set(err, -errno, "cannot make an eventfd: %s", strerror(errno));
    }
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    return 0;
}

/* Sleeps until a signal comes, or up to `ms` (-1 = for ever). */
static void wait_for_signal(int ms)
{
    struct pollfd fd = { .fd = signal_fd, .events = POLLIN };
    uint64_t count;
    if (poll(&fd, 1, ms) > 0) {
        ssize_t n = read(signal_fd, &count, sizeof count);
        (void)n;
    }
}

/* Serves until a signal comes, then lets running requests finish. 0, or how the engine failed. */
static int serve(struct srv *srv)
{
    while (signal_count == 0 && srv_failed(srv) == 0) {
        wait_for_signal(1000);
    }
    if (srv_failed(srv) < 0) {
        return srv_failed(srv);
    }
    srv_drain(srv);
    if (!srv_idle(srv)) {
        char time[16];
        base_log(BASE_LOG_INFO, "server", "finishing running requests, for at most %s; a second "
                 "signal stops at once",
                 base_str_duration(time, sizeof time, config.server.drain_timeout));
    }
    uint64_t deadline = base_now_ns() + config.server.drain_timeout;
    while (signal_count < 2 && !srv_idle(srv) && base_now_ns() < deadline &&
           srv_failed(srv) == 0) {
        wait_for_signal(POLL_MS);
    }
    if (!srv_idle(srv)) {
        base_log(BASE_LOG_WARN, "server", "stopped before all answers were complete");
    }
    return srv_failed(srv);
}

/* What `auto` settings had to do without is said once at start; /tier/stats keeps saying it. */
static void report_degraded(const struct eng_stack *stack)
{
    static struct tier_snapshot snapshot;       /* too large for the stack */
    tier_snapshot(stack->tier, &snapshot);
    if (snapshot.backend_degraded || snapshot.direct_degraded || snapshot.buffers_degraded) {
        base_log(BASE_LOG_WARN, "server", "degraded: io: %s", snapshot.io_note);
    }
    if (snapshot.pin_degraded) {
        base_log(BASE_LOG_WARN, "server", "degraded: tiers.dram.pin: %s", snapshot.pin_note);
    }
    if (!stack->advice) return;
    base_log(BASE_LOG_INFO, "server", "active: predictor.kind: %s", eng_advice_note(stack->advice));
    base_log(snapshot.prefetch_degraded ? BASE_LOG_WARN : BASE_LOG_INFO, "server",
             "%s: prefetch.enabled: %s", snapshot.prefetch_degraded ? "degraded" : "active",
             snapshot.prefetch_note);
}

static int run_server(const struct eng_stack_args *args, struct base_err *err)
{
    static struct eng_stack stack;
    struct srv_socket socket = { .fd = -1 };
    struct srv *srv = NULL;
    bool open = false;
    int rc = srv_bind(&socket, &config.server, err);
    if (rc < 0) goto done;
    rc = eng_stack_print_footprint(args, stderr, err);
    if (rc < 0) goto done;
    rc = eng_stack_open(&stack, args, err);
    if (rc < 0) goto done;
    open = true;
    report_degraded(&stack);
    rc = catch_signals(err);
    if (rc < 0) goto done;
    struct srv_open_args open_args = { &config.server, &stack, &socket };
    rc = srv_open(&srv, &open_args, err);
    if (rc < 0) goto done;
    fprintf(stderr, "listening on %s\n", socket.url);
    socket.fd = -1;             /* the server's now */
    rc = serve(srv);
    if (rc < 0) {
        base_err_set(err, rc, "the engine stopped: %s", base_err_name(rc));
    }
done:
    srv_close(srv);
    if (socket.fd >= 0) close(socket.fd);
    if (open) eng_stack_close(&stack);
    return rc;
}

static int run(int count, char **arguments)
{
    struct base_err err = { 0 };
    (void)count, (void)arguments;
    int level = flags.log_level ? base_log_level_parse(flags.log_level) : BASE_LOG_INFO;
    if (level < 0) {
        return cli_misuse("--log-level must be error, warn, info or debug, not '%s'",
                          flags.log_level);
    }
    base_log_level_set((enum base_log_level)level);
    base_log_json_set(flags.log_json);
    if (flags.metrics) {
        return print_metrics();
    }
    struct base_option_group groups[GROUPS_MAX];
    size_t group_count = config_groups(groups);
    if (flags.options) {
        base_option_print_reference(stdout, groups, group_count);
        return EXIT_SUCCESS;
    }
    if (read_config(&err) < 0) {
        return cli_fail(EXIT_MISUSE, &err);
    }
    if (flags.print_config) {
        base_option_print_yaml(stdout, groups, group_count, true);
        return EXIT_SUCCESS;
    }
    if (flags.check_config) {
        printf("%s: valid\n", flags.config ? flags.config : embedded_name);
        return EXIT_SUCCESS;
    }
    if (!flags.model) {
        return cli_misuse("--model DIR is missing: the folder with config.json and the "
                          "safetensors files, for example models/pebble");
    }
    signal(SIGPIPE, SIG_IGN);
    struct eng_stack_args args = {
        .model_dir = flags.model,
        .config = &config.stack,
        .trace_path = flags.trace,
    };
    int rc = flags.dry_run ? eng_stack_print_footprint(&args, stdout, &err)
                           : run_server(&args, &err);
    if (rc < 0) {
        return cli_fail(rc == BASE_ECONFIG ? EXIT_MISUSE : EXIT_FAILURE, &err);
    }
    return EXIT_SUCCESS;
}

static const struct cli_flag server_flags[] = {
    { "model", CLI_TEXT, &flags.model, "DIR", "model folder (config.json, tokenizer, "
      "safetensors)" },
    { "config", CLI_TEXT, &flags.config, "FILE", "settings; without it, the built-in "
      "configs/cpu-only.yaml" },
    { "set", CLI_REPEATED, &flags.set, "KEY=VALUE", "one setting, over those of the file" },
    { "listen", CLI_TEXT, &flags.listen, "ADDRESS", "address to listen on (server.listen)" },
    { "port", CLI_UINT, &flags.port, "N", "port to listen on, 0 = any free one (server.port)" },
    { "trace", CLI_TEXT, &flags.trace, "FILE", "record the routing for tier-replay" },
    { "dry-run", CLI_SWITCH, &flags.dry_run, NULL, "print what memory it would take, then stop" },
    { "check-config", CLI_SWITCH, &flags.check_config, NULL, "read the settings, say if they are "
      "valid, then stop" },
    { "print-config", CLI_SWITCH, &flags.print_config, NULL, "print the effective settings as "
      "YAML, then stop" },
    { "options", CLI_SWITCH, &flags.options, NULL, "print every setting with its default and "
      "limits, then stop" },
    { "metrics", CLI_SWITCH, &flags.metrics, NULL, "print every metric with its meaning, then "
      "stop" },
    { "log-level", CLI_TEXT, &flags.log_level, "LEVEL", "error, warn, info (default) or debug" },
    { "log-json", CLI_SWITCH, &flags.log_json, NULL, "one JSON object a log line" },
    { 0 },
};

static const struct cli_command commands[] = {
    { NULL, "", NULL, NULL, 0, 0, server_flags, run },
};

static const struct cli_program program = {
    .name = "tier-server",
    .text = "serve a Mixture-of-Experts model whose experts stream from disk",
    .details =
        "Serves OpenAI's API (/v1/completions, /v1/chat/completions, /v1/models) with /health, "
        "/metrics and /tier/stats beside it. Dense weights are read once; experts stay on disk and "
        "stream through a DRAM tier of the size set in tiers.dram.capacity. The expert index is "
        "made at the first start. SIGTERM lets running requests finish and exits 0; a second "
        "signal stops at once. Wrong settings exit with 2.",
    .commands = commands,
    .command_count = 1,
    .examples = "tier-server --model models/pebble\n"
                "tier-server --model /data/DeepSeek-V3 --set tiers.dram.capacity=512GiB\n"
                "tier-server --model models/pebble --port 0 --trace routing.trace\n"
                "tier-server --config configs/cpu-only.yaml --model models/pebble --dry-run\n",
    .files = "configs/default.yaml lists every setting with its default; DIR/expertier.index is "
             "the expert index (tiers.nvme.index moves it).",
};

int main(int argc, char **argv)
{
    return cli_main(&program, argc, argv);
}
