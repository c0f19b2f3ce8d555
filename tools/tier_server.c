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
#include "engine/report.h"
#include "engine/stack.h"
#include "port/topo.h"
#include "server/admin_socket.h"
#include "server/change.h"
#include "tools/cli.h"
#include "tools/server_config.h"

enum { EXIT_MISUSE = 2, POLL_MS = 100 };
#define PORT_NOT_GIVEN UINT64_MAX

static struct {
    const char *config;
    const char *model;
    const char *listen;
    const char *trace;
    const char *profile;
    uint64_t profile_events;
    const char *log_level;
    const char *diff;
    struct cli_list set;
    uint64_t port;
    bool log_json;
    bool options;
    bool metrics;
    bool check_config;
    bool schema_only;
    bool print_config;
    bool dry_run;
} flags = { .profile_events = ENG_PROFILE_EVENTS, .port = PORT_NOT_GIVEN };
static bool engine_stopped;     /* which every rank knows: each ends by itself */

static struct srv_settings config;

/* What the command line says, over this file. */
static struct cli_server_source source_of(const char *file)
{
    static char port[24];
    struct cli_server_source source = {
        .file = file, .set = &flags.set, .listen = flags.listen, .trace = flags.trace,
        .schema_only = flags.schema_only,
    };
    if (flags.port != PORT_NOT_GIVEN) {
        snprintf(port, sizeof port, "%llu", (unsigned long long)flags.port);
        source.port = port;
    }
    return source;
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
static volatile sig_atomic_t signal_count, reread;

static void on_signal(int number)
{
    uint64_t one = 1;
    int saved = errno;
    if (number == SIGHUP) {
        reread = 1;
    } else {
        signal_count++;
    }
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
    sigaction(SIGHUP, &action, NULL);
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

/* SIGHUP: the file again, then the command line over it, as at start. */
static void read_again(struct srv *srv)
{
    struct base_err err = { 0 };
    struct cli_server_source source = source_of(flags.config);
    struct srv_settings *next = calloc(1, sizeof *next);
    char note[300];
    if (!next) return;
    int rc = cli_server_config_read(next, &source, &err);
    if (rc == 0) rc = cli_server_config_check(next, NULL, note, sizeof note, &err);
    if (rc < 0) {
        base_log(BASE_LOG_ERROR, "server", "settings not changed: %s by=SIGHUP", err.text);
    } else {
        srv_change_begin(srv, NULL);
        rc = srv_change_apply(srv, next, "SIGHUP", NULL, &err);
        srv_change_end(srv);
        if (rc == 0) {
            base_log(BASE_LOG_INFO, "server", "settings read again from %s",
                     cli_server_config_name(&source));
        }
    }
    free(next);
}

/* Serves until a signal comes, then lets running requests finish. 0, or how the engine failed. */
static int serve(struct srv *srv)
{
    while (signal_count == 0 && srv_failed(srv) == 0) {
        wait_for_signal(1000);
        if (reread) {
            reread = 0;
            read_again(srv);
        }
    }
    if (srv_failed(srv) < 0) {
        return srv_failed(srv);
    }
    srv_drain(srv);
    if (!srv_idle(srv)) {
        char time[16];
        base_log(BASE_LOG_INFO, "server", "finishing running requests, for at most %s; a second "
                 "signal stops after the step that runs",
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

static void log_lines(const char *area, char *text)
{
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        base_log(BASE_LOG_INFO, area, "%s", line + strspn(line, " "));
    }
}

/* Several lines for stderr: plain, or each a line of the log where that is JSON. */
struct talk {
    FILE *to;                   /* print here; NULL when memory is short */
    char *text;
    size_t size;
};

static void talk_begin(struct talk *talk)
{
    *talk = (struct talk){ .to = stderr };
    if (flags.log_json) talk->to = open_memstream(&talk->text, &talk->size);
}

static void talk_end(struct talk *talk, const char *area)
{
    if (!talk->to || talk->to == stderr) return;
    fclose(talk->to);
    log_lines(area, talk->text);
    free(talk->text);
}

static int print_footprint(const struct eng_stack_args *args, struct base_err *err)
{
    struct talk talk;
    talk_begin(&talk);
    int rc = talk.to ? eng_stack_print_footprint(args, talk.to, err)
                     : base_err_set(err, -ENOMEM, "out of memory");
    talk_end(&talk, "memory");
    return rc;
}

static int give_up(int exit_code, const struct base_err *err)
{
    if (!flags.log_json) return cli_fail(exit_code, err);
    base_log(BASE_LOG_ERROR, "server", "%s", err->text[0] ? err->text : base_err_name(err->code));
    return exit_code;
}

/* What became of every setting is said once at start, what there is less of also in the log;
 * /tier/stats keeps saying it. */
static void report(struct eng_stack *stack)
{
    static struct tier_snapshot snapshot;       /* both too large for the stack */
    static struct tier_report all;
    struct talk talk;
    tier_snapshot(stack->tier, &snapshot);
    eng_report(&all, stack, &stack->config, &snapshot);
    talk_begin(&talk);
    if (talk.to) eng_report_print(talk.to, &all);
    talk_end(&talk, "report");
    for (uint32_t i = 0; i < all.count; i++) {
        const struct tier_report_row *row = &all.rows[i];
        if (row->state != TIER_DEGRADED && row->state != TIER_REFUSED) continue;
        base_log(BASE_LOG_WARN, "server", "%s: %s: %s", tier_state_name(row->state), row->feature,
                 row->note);
    }
}

/* What hangs where on this machine, for whoever binds ranks, tiers and threads to it. */
static void report_topology(void)
{
    struct base_err err = { 0 };
    char *text = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&text, &size);
    if (!to) return;
    int rc = port_topo_describe(to, &err);
    fclose(to);
    if (rc < 0) base_log(BASE_LOG_WARN, "topology", "%s", err.text);
    else log_lines("topology", text);
    free(text);
}

static void report_ranks(const struct eng_stack *stack)
{
    const struct eng_ranks *r = &stack->ranks;
    if (r->count == 1) return;
    base_log(BASE_LOG_INFO, "server", "ranks: %s; attention and dense layers over %u, experts over "
             "%u", r->comm->note, r->tensor, r->expert);
    if (r->placement) {
        base_log(BASE_LOG_INFO, "server", "ranks: experts %s", r->placement->note);
    }
}

/* The admin socket of the port that was bound; -1 when there is none. What `auto` cannot have is
 * done without. */
static int open_admin(const struct srv_socket *socket, char path[SRV_ADMIN_PATH], int *fd,
                      struct base_err *err)
{
    const char *colon = strrchr(socket->url, ':');
    *fd = -1;
    int rc = srv_admin_socket_path(path, &config.server, (unsigned)strtoul(colon + 1, NULL, 10),
                                   err);
    if (rc < 0 || !path[0]) return rc;
    bool is_auto = strcmp(config.server.admin_listen, "auto") == 0;
    *fd = srv_admin_socket_open(path, is_auto, err);
    if (*fd >= 0) return 0;
    path[0] = '\0';
    if (!is_auto) return *fd;
    base_log(BASE_LOG_WARN, "server", "degraded: %s", err->text);
    *err = (struct base_err){ 0 };
    return 0;
}

/* No step can succeed any more. Every rank knows, or is told as rank 0 closes: each ends by itself,
 * when it has saved what it has to. */
static int stopped(const char *why, int code, struct base_err *err)
{
    engine_stopped = true;
    return base_err_set(err, code, "the engine stopped: %s", why);
}

/* A rank other than 0 serves nobody: it follows rank 0 until that ends. Signals are rank 0's: a
 * launcher gives them to all. */
static int run_rank(const struct eng_stack_args *args, struct base_err *err)
{
    static struct eng_stack stack;
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    int rc = print_footprint(args, err);
    if (rc == 0) rc = eng_stack_open(&stack, args, err);
    if (rc < 0) return rc;
    report(&stack);
    if (args->comm->local_rank == 0) report_topology();
    eng_follow(stack.engine);
    const char *why = eng_failure(stack.engine);
    if (why) rc = stopped(why, BASE_EDEVICE, err);
    eng_stack_close(&stack);
    return rc;
}

static void announce(const struct srv_socket *socket, const char *admin)
{
    struct talk talk;
    talk_begin(&talk);
    if (!talk.to) return;
    if (admin[0]) fprintf(talk.to, "admin socket %s\n", admin);
    fprintf(talk.to, "listening on %s\n", socket->url);
    talk_end(&talk, "server");
}

static int run_server(const struct eng_stack_args *args, struct base_err *err)
{
    static struct eng_stack stack;
    struct srv_socket socket = { .fd = -1 };
    char admin[SRV_ADMIN_PATH] = "";
    int admin_fd = -1;
    struct cli_server_source source = source_of(NULL);
    char *command_line = cli_server_config_command_line(&source);
    struct srv *srv = NULL;
    bool open = false;
    int rc = command_line ? srv_bind(&socket, &config.server, err)
                          : base_err_set(err, -ENOMEM, "out of memory");
    if (rc < 0) goto done;
    rc = print_footprint(args, err);
    if (rc < 0) goto done;
    rc = eng_stack_open(&stack, args, err);
    if (rc < 0) goto done;
    open = true;
    report(&stack);
    report_topology();
    report_ranks(&stack);
    rc = catch_signals(err);
    if (rc == 0) rc = open_admin(&socket, admin, &admin_fd, err);
    if (rc < 0) goto done;
    struct srv_open_args open_args = { &config, &stack, &socket, admin_fd, command_line };
    rc = srv_open(&srv, &open_args, err);
    if (rc < 0) goto done;
    announce(&socket, admin);
    socket.fd = admin_fd = -1;  /* the server's now */
    rc = serve(srv);
    if (rc < 0) {
        const char *why = eng_failure(stack.engine);
        stopped(why ? why : base_err_name(rc), rc, err);
    }
done:
    srv_close(srv);
    if (socket.fd >= 0) close(socket.fd);
    if (admin_fd >= 0) close(admin_fd);
    if (admin[0]) unlink(admin);
    if (open) eng_stack_close(&stack);
    free(command_line);
    return rc;
}

static int check_config(const struct cli_server_source *source)
{
    struct base_err err = { 0 };
    char note[300];
    int rc = cli_server_config_check(&config, flags.model, note, sizeof note, &err);
    if (rc < 0) {
        if (!strstr(err.text, cli_server_config_name(source))) {
            base_err_prefix(&err, "%s", cli_server_config_name(source));
        }
        return cli_fail(rc == BASE_ECONFIG || rc == BASE_EBUDGET ? EXIT_MISUSE : EXIT_FAILURE,
                        &err);
    }
    if (note[0]) fprintf(stderr, "%s\n", note);
    if (flags.schema_only) {
        struct base_err why = { 0 };
        if (eng_stack_check(&config.stack, &why) < 0) {
            fprintf(stderr, "as it stands this build would refuse it: %s\n", why.text);
        }
    }
    if (flags.check_config) printf("%s: valid\n", cli_server_config_name(source));
    if (flags.diff) cli_server_config_diff(source->running, &config, stdout);
    return EXIT_SUCCESS;
}

/* What is wrong with the settings; where only this build or machine is, that much is said. */
static int refuse_config(struct cli_server_source *source, struct base_err *err)
{
    struct base_err keys = { 0 };
    source->schema_only = true;
    if (flags.check_config && !flags.schema_only &&
        cli_server_config_read(&config, source, &keys) == 0) {
        fprintf(stderr, "%s: each key and value is valid (--schema-only asks no more), but this "
                        "build cannot do all of it:\n", cli_server_config_name(source));
    }
    return give_up(EXIT_MISUSE, err);
}

/* The server is found by what the file and the command line say of its place, whatever else they
 * say; then the file is read again as that server would. */
static int run_diff(struct cli_server_source *source)
{
    static struct cli_server_running running;
    struct cli_server_source place = *source;
    struct base_err err = { 0 };
    int code;
    place.schema_only = true;
    if (cli_server_config_read(&config, &place, &err) < 0) return cli_fail(EXIT_MISUSE, &err);
    source->running = &running;
    if (cli_server_config_ask(&running, &config, &err) < 0) {
        code = cli_fail(EXIT_FAILURE, &err);
    } else if (cli_server_config_read(&config, source, &err) < 0) {
        code = refuse_config(source, &err);
    } else {
        code = check_config(source);
    }
    cli_server_config_forget(&running);
    return code;
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
    struct base_option_group groups[SRV_SETTINGS_GROUPS];
    size_t group_count = srv_settings_groups(&config, groups);
    if (flags.options) {
        base_option_print_reference(stdout, groups, group_count);
        return EXIT_SUCCESS;
    }
    if (flags.schema_only && !flags.check_config) {
        return cli_misuse("--schema-only goes with --check-config: a server that starts obeys all");
    }
    struct cli_server_source source = source_of(flags.diff ? flags.diff : flags.config);
    if (flags.diff && !flags.print_config) return run_diff(&source);
    if (cli_server_config_read(&config, &source, &err) < 0) return refuse_config(&source, &err);
    if (flags.print_config) {
        base_option_print_yaml(stdout, groups, group_count, true);
        return EXIT_SUCCESS;
    }
    if (flags.check_config) {
        return check_config(&source);
    }
    if (!flags.model) {
        return cli_misuse("--model DIR is missing: the folder with config.json and the "
                          "safetensors files, for example models/pebble");
    }
    if (flags.profile_events < 1 || flags.profile_events > CLI_PROFILE_EVENTS_MAX) {
        return cli_misuse("--profile-events: 1 to %d", CLI_PROFILE_EVENTS_MAX);
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);    /* until there is something to change */
    struct eng_stack_args args = {
        .model_dir = flags.model,
        .config = &config.stack,
        .trace_path = flags.trace,
        .profile_path = flags.profile,
        .profile_events = flags.profile_events,
        .peers = true,
        .quiet = flags.log_json && isatty(STDERR_FILENO),   /* a moving bar is no line of JSON */
    };
    if (comm_open(&args.comm, &config.stack.comm, &err) < 0) return give_up(EXIT_FAILURE, &err);
    if (args.comm->rank == 0) args.beside = srv_beside, args.beside_context = &config.server;
    int rc = flags.dry_run         ? eng_stack_print_footprint(&args, stdout, &err)
             : args.comm->rank > 0 ? run_rank(&args, &err) : run_server(&args, &err);
    if (rc < 0 && !engine_stopped) comm_abort(args.comm, err.text);
    comm_close(args.comm);
    if (rc < 0) {
        return give_up(rc == BASE_ECONFIG ? EXIT_MISUSE : EXIT_FAILURE, &err);
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
    { "profile", CLI_TEXT, &flags.profile, "FILE", "write at the end where the time went, as "
      "Chrome trace events; open it in Perfetto" },
    { "profile-events", CLI_UINT, &flags.profile_events, "N", "newest events that --profile keeps "
      "(262144)" },
    { "dry-run", CLI_SWITCH, &flags.dry_run, NULL, "print what memory it would take, then stop" },
    { "schema-only", CLI_SWITCH, &flags.schema_only, NULL, "with --check-config: keys and values "
      "alone, not what this build or this machine can do with them" },
    { "check-config", CLI_SWITCH, &flags.check_config, NULL, "read the settings, say if they are "
      "valid (with --model also if they fit it), then stop" },
    { "diff", CLI_TEXT, &flags.diff, "FILE", "print what FILE would change in the running server "
      "(found by its admin socket; else from the defaults), live or with a restart, then stop" },
    { "print-config", CLI_SWITCH, &flags.print_config, NULL, "print the effective settings as "
      "YAML, then stop" },
    { "options", CLI_SWITCH, &flags.options, NULL, "print every setting with its default and "
      "limits, then stop" },
    { "metrics", CLI_SWITCH, &flags.metrics, NULL, "print every metric with its meaning, then "
      "stop" },
    { "log-level", CLI_TEXT, &flags.log_level, "LEVEL", "error, warn, info (default) or debug" },
    { "log-json", CLI_SWITCH, &flags.log_json, NULL, "each line on stderr is a JSON object" },
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
        "made at the first start. SIGHUP reads the settings again and changes what can change "
        "while requests run; PUT /tier/config on the admin socket does the same. SIGTERM lets "
        "running requests finish and exits 0; a second signal stops after the step that runs. "
        "Wrong settings exit with 2.",
    .commands = commands,
    .command_count = 1,
    .examples = "tier-server --model models/pebble\n"
                "tier-server --model /data/DeepSeek-V3 --set tiers.dram.capacity=512GiB\n"
                "tier-server --model models/pebble --port 0 --trace routing.trace\n"
                "tier-server --config configs/cpu-only.yaml --model models/pebble --dry-run\n"
                "tier-server --diff new.yaml\n",
    .files = "configs/default.yaml lists every setting with its default; DIR/expertier.index is "
             "the expert index (tiers.nvme.index moves it).",
};

int main(int argc, char **argv)
{
    return cli_main(&program, argc, argv);
}
