/* tier-pack: prepares a model's experts for reading from disk. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/str.h"
#include "model/shape.h"
#include "tiering/store.h"
#include "tools/cli.h"
#include "tools/pack.h"

struct pack_flags pack_flags = { .mode = "stripe", .order = "rows", .group = 32 };

static volatile sig_atomic_t interrupted;

static void on_signal(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

static int is_interrupted(void *context)
{
    (void)context;
    return interrupted;
}

static void show_progress(void *context, uint64_t done, uint64_t total)
{
    cli_progress_bytes(context, done, total);
}

struct tier_store_progress pack_progress(struct cli_progress *progress, const char *what)
{
    struct sigaction action = { .sa_handler = on_signal };
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    cli_progress_begin(progress, what, pack_flags.quiet);
    return (struct tier_store_progress){ show_progress, is_interrupted, progress };
}

void pack_trim(char *path)
{
    for (size_t size = strlen(path); size > 1 && path[size - 1] == '/'; size--) {
        path[size - 1] = '\0';
    }
}

unsigned pack_threads(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (pack_flags.threads > 0) return (unsigned)pack_flags.threads;
    return cores < 1 ? 1 : cores > 16 ? 16 : (unsigned)cores;
}

int pack_open(struct tier_store **store, const char *dir, struct base_err *err)
{
    struct model_shape shape;
    int rc = model_shape_load(&shape, dir, err);
    return rc < 0 ? rc : tier_store_open(store, dir, pack_flags.index, &shape, err);
}

static int run_index(int count, char **arguments)
{
    struct base_err err = { 0 };
    struct model_shape shape;
    struct cli_progress bar;
    struct tier_store *store;
    (void)count;
    uint64_t begin = base_now_ns();
    int rc = model_shape_load(&shape, arguments[0], &err);
    if (rc < 0) return cli_fail(1, &err);
    struct tier_store_progress progress = pack_progress(&bar, "indexing");
    rc = tier_store_index(arguments[0], pack_flags.index, &shape, pack_threads(), &progress, &err);
    cli_progress_end(&bar);
    if (rc == 0) rc = tier_store_open(&store, arguments[0], pack_flags.index, &shape, &err);
    if (rc < 0) return cli_fail(1, &err);

    char bytes[16], time[16];
    uint64_t experts = (uint64_t)tier_store_layers(store) * tier_store_experts(store);
    if (!pack_flags.quiet) {
        fprintf(stderr, "%s: %llu experts, %s, in %s\n", tier_store_index_path(store),
                (unsigned long long)experts,
                base_str_bytes(bytes, sizeof bytes, experts * tier_store_expert_bytes(store)),
                base_str_duration(time, sizeof time, base_now_ns() - begin));
    }
    tier_store_close(store);
    return 0;
}

struct verify_report {
    const struct tier_store *store;
    struct base_buf list;       /* JSON */
    unsigned count;
};

static void report_bad(void *context, uint32_t moe_layer, uint32_t expert, const char *why)
{
    struct verify_report *report = context;
    uint32_t layer = tier_store_layer_of(report->store, moe_layer);
    base_buf_printf(&report->list, "%s{\"layer\":%u,\"expert\":%u,\"why\":\"",
                    report->count++ ? "," : "", layer, expert);
    base_buf_json_escape(&report->list, why, strlen(why));
    base_buf_puts(&report->list, "\"}");
    fprintf(stderr, "layer %u expert %u: %s\n", layer, expert, why);
}

static int run_verify(int count, char **arguments)
{
    struct base_err err = { 0 };
    struct cli_progress bar;
    struct verify_report report = { 0 };
    struct tier_store *store;
    (void)count;
    int rc = pack_open(&store, arguments[0], &err);
    if (rc < 0) return cli_fail(1, &err);
    report.store = store;
    base_buf_init(&report.list);
    struct tier_store_progress progress = pack_progress(&bar, "verifying");
    int64_t bad = tier_store_verify(store, report_bad, &report, &progress, &err);
    cli_progress_end(&bar);

    uint64_t records = (uint64_t)tier_store_layers(store) * tier_store_experts(store) *
                       tier_store_copies(store);
    if (bad < 0) {
        cli_fail(1, &err);
    } else if (pack_flags.json) {
        printf("{\"records\":%llu,\"bad\":%lld,\"experts\":[%s]}\n", (unsigned long long)records,
               (long long)bad, report.list.data ? report.list.data : "");
    } else {
        printf("%llu of %llu records are whole\n", (unsigned long long)(records - (uint64_t)bad),
               (unsigned long long)records);
    }
    base_buf_fini(&report.list);
    tier_store_close(store);
    return bad == 0 ? 0 : 1;
}

static double mean_extents(const struct tier_store *store)
{
    uint64_t sum = 0, count = 0;
    struct tier_record record;
    for (uint32_t layer = 0; layer < tier_store_layers(store); layer++) {
        for (uint32_t expert = 0; expert < tier_store_experts(store); expert++) {
            tier_store_record(store, layer, expert, &record);
            sum += record.extent_count;
            count++;
        }
    }
    return (double)sum / (double)count;
}

static void info_json(const struct tier_store *store)
{
    const struct tier_part *parts = tier_store_parts(store);
    struct base_buf out;
    base_buf_init(&out);
    base_buf_puts(&out, "{\"index\":\"");
    base_buf_json_escape(&out, tier_store_index_path(store), strlen(tier_store_index_path(store)));
    base_buf_printf(&out, "\",\"kind\":\"%s\",\"order\":\"%s\",\"copies\":%u,"
                    "\"layer_first\":%u,\"layers\":%u,"
                    "\"experts_per_layer\":%u,\"top_k\":%u,\"expert_bytes\":%llu,"
                    "\"slot_bytes\":%llu,\"extents_per_expert\":%.3f,\"parts\":[",
                    tier_store_packed(store) ? "pack" : "checkpoint",
                    tier_store_order_name(tier_store_order(store)), tier_store_copies(store),
                    tier_store_layer_first(store), tier_store_layers(store),
                    tier_store_experts(store), tier_store_top_k(store),
                    (unsigned long long)tier_store_expert_bytes(store),
                    (unsigned long long)tier_store_slot_bytes(store), mean_extents(store));
    for (unsigned p = 0, shown = 0; p < TIER_PARTS; p++) {
        if (parts[p].rows == 0) continue;
        base_buf_printf(&out, "%s{\"name\":\"%s\",\"dtype\":\"%s\",\"rows\":%u,\"cols\":%u}",
                        shown++ ? "," : "", tier_store_part_name(p),
                        model_dtype_name(parts[p].dtype), parts[p].rows, parts[p].cols);
    }
    base_buf_puts(&out, "],\"files\":[");
    for (uint32_t i = 0; i < tier_store_files(store); i++) {
        const char *path = tier_store_file_path(store, i);
        base_buf_puts(&out, i ? ",\"" : "\"");
        base_buf_json_escape(&out, path, strlen(path));
        base_buf_puts(&out, "\"");
    }
    base_buf_puts(&out, "]}");
    if (base_buf_error(&out) == 0) puts(out.data);
    base_buf_fini(&out);
}

static void info_text(const struct tier_store *store)
{
    const struct tier_part *parts = tier_store_parts(store);
    char bytes[16], slot[16], all[16];
    uint64_t experts = (uint64_t)tier_store_layers(store) * tier_store_experts(store);
    printf("index    %s\n", tier_store_index_path(store));
    if (tier_store_packed(store)) {
        printf("points   into %u pack files, %u %s of each expert, order: %s\n",
               tier_store_files(store), tier_store_copies(store),
               tier_store_copies(store) == 1 ? "copy" : "copies",
               tier_store_order_name(tier_store_order(store)));
    } else {
        printf("points   into the checkpoint's %u files\n", tier_store_files(store));
    }
    printf("experts  %llu: %u layers from layer %u on, %u each, %u per token\n",
           (unsigned long long)experts, tier_store_layers(store), tier_store_layer_first(store),
           tier_store_experts(store), tier_store_top_k(store));
    printf("expert   %s in %.2f reads, slot %s\n",
           base_str_bytes(bytes, sizeof bytes, tier_store_expert_bytes(store)),
           mean_extents(store), base_str_bytes(slot, sizeof slot, tier_store_slot_bytes(store)));
    printf("all      %s; a dram tier of 25%% takes ",
           base_str_bytes(all, sizeof all, experts * tier_store_expert_bytes(store)));
    printf("%s\n", base_str_bytes(all, sizeof all, experts / 4 * tier_store_slot_bytes(store)));
    for (unsigned p = 0; p < TIER_PARTS; p++) {
        if (parts[p].rows == 0) continue;
        printf("part     %-11s  %s %u x %u\n", tier_store_part_name(p),
               model_dtype_name(parts[p].dtype), parts[p].rows, parts[p].cols);
    }
}

static int run_info(int count, char **arguments)
{
    struct base_err err = { 0 };
    struct tier_store *store;
    (void)count;
    int rc = pack_open(&store, arguments[0], &err);
    if (rc < 0) return cli_fail(1, &err);
    if (pack_flags.json) {
        info_json(store);
    } else {
        info_text(store);
    }
    tier_store_close(store);
    return 0;
}

static int run_repack(int count, char **arguments)
{
    struct base_err err = { 0 };
    struct cli_progress bar;
    struct tier_store *source;
    struct model_shape shape;
    struct pack_order made;
    struct tier_pack_options options = {
        .dirs = pack_flags.to.text,
        .dir_count = pack_flags.to.count,
        .threads = pack_threads(),
        .sync_bytes = pack_flags.sync_bytes,
        .restart = pack_flags.restart,
    };
    (void)count;
    if (options.dir_count == 0) return cli_misuse("repack: --to DIR says where the pack goes");
    for (unsigned i = 0; i < options.dir_count; i++) {
        pack_trim((char *)pack_flags.to.text[i]);       /* of argv */
    }
    if (strcmp(pack_flags.mode, "mirror") == 0) {
        options.mode = TIER_PACK_MIRROR;
    } else if (strcmp(pack_flags.mode, "stripe") != 0) {
        return cli_misuse("--mode %s: wanted stripe or mirror", pack_flags.mode);
    }
    enum tier_order order = TIER_ORDER_ROWS;
    if (strcmp(pack_flags.order, "tiles") == 0) {
        order = TIER_ORDER_TILES;
    } else if (strcmp(pack_flags.order, "woven") == 0) {
        order = TIER_ORDER_WOVEN;
    } else if (strcmp(pack_flags.order, "rows") != 0) {
        return cli_misuse("--order %s: wanted rows, tiles or woven", pack_flags.order);
    }
    int rc = model_shape_load(&shape, arguments[0], &err);
    if (rc == 0) rc = pack_open(&source, arguments[0], &err);
    if (rc < 0) return cli_fail(1, &err);
    pack_order(&made, &options, order, source, &shape);
    struct tier_store_progress progress = pack_progress(&bar, "packing");
    rc = tier_store_repack(source, &options, &progress, &err);
    cli_progress_end(&bar);
    tier_store_close(source);
    if (rc == -ECANCELED && !pack_flags.quiet) {
        fprintf(stderr, "tier-pack: the same command goes on from here\n");
    }
    if (rc < 0) return cli_fail(1, &err);
    if (!pack_flags.quiet) {
        fprintf(stderr, "%s/expertier.index: set tiers.nvme.index to it\n", pack_flags.to.text[0]);
    }
    return 0;
}

#define FLAG_INDEX                                                                      \
    {                                                                                   \
        "index", CLI_TEXT, &pack_flags.index, "FILE",                                   \
            "where the index lies (expertier.index in the model's folder)"              \
    }
#define FLAG_QUIET                                                       \
    {                                                                    \
        "quiet", CLI_SWITCH, &pack_flags.quiet, NULL, "show no progress" \
    }
#define FLAG_JSON                                                             \
    {                                                                         \
        "json", CLI_SWITCH, &pack_flags.json, NULL, "print the result as JSON" \
    }

static const struct cli_flag index_flags[] = {
    FLAG_INDEX,
    { "threads", CLI_UINT, &pack_flags.threads, "N", "readers; 0 = one per core, at most 16" },
    FLAG_QUIET,
    { 0 },
};
static const struct cli_flag repack_flags[] = {
    FLAG_INDEX,
    { "to", CLI_REPEATED, &pack_flags.to, "DIR",
      "folder of the pack; may be repeated, one a disk" },
    { "mode", CLI_TEXT, &pack_flags.mode, "MODE",
      "several folders: stripe (default) adds up their bandwidth, mirror survives a bad disk" },
    { "order", CLI_TEXT, &pack_flags.order, "ORDER",
      "rows (default); as CPUs multiply them, not for cards: tiles for INT8 and INT4, woven for "
      "FP8 with f32 activations" },
    { "threads", CLI_UINT, &pack_flags.threads, "N", "readers; 0 = one per core, at most 16" },
    { "sync", CLI_BYTES, &pack_flags.sync_bytes, "SIZE",
      "make progress durable this often (256MiB)" },
    { "restart", CLI_SWITCH, &pack_flags.restart, NULL, "throw away what an earlier run left" },
    FLAG_QUIET,
    { 0 },
};
static const struct cli_flag quantize_flags[] = {
    { "to", CLI_TEXT, &pack_flags.rung, "RUNG", "what the routed experts become: int8 or int4" },
    { "dense", CLI_SWITCH, &pack_flags.dense, NULL,
      "also attention, dense layers, shared experts and head, to int8" },
    { "group", CLI_UINT, &pack_flags.group, "N",
      "weights of a row that share a scale: 32 (default) or 128" },
    { "text", CLI_TEXT, &pack_flags.text, "FILE",
      "also measure the perplexity of both models on this text" },
    { "allow-larger", CLI_SWITCH, &pack_flags.allow_larger, NULL,
      "write the model even where the new experts are not smaller" },
    { "threads", CLI_UINT, &pack_flags.threads, "N", "threads; 0 = one per core, at most 16" },
    FLAG_JSON,
    FLAG_QUIET,
    { 0 },
};
static const struct cli_flag verify_flags[] = { FLAG_INDEX, FLAG_JSON, FLAG_QUIET, { 0 } };
static const struct cli_flag info_flags[] = { FLAG_INDEX, FLAG_JSON, { 0 } };

static const struct cli_command commands[] = {
    { .name = "index",
      .arguments = "MODEL",
      .text = "note where each expert lies, and its checksum",
      .details =
          "Reads every expert once. The index points into the checkpoint's own files: nothing is\n"
          "copied. It is written whole or not at all.",
      .arguments_min = 1,
      .arguments_max = 1,
      .flags = index_flags,
      .run = run_index },
    { .name = "repack",
      .arguments = "MODEL",
      .text = "copy the experts into records read at once",
      .details =
          "Every expert becomes one record that begins on a page, so that one read brings it. The\n"
          "checkpoint stays: its other weights are read from it. Stopped or killed, the same "
          "command\n"
          "goes on where it was. With --order tiles INT8 and INT4 experts (quantize) need not be\n"
          "rearranged each time they are read to be multiplied on CPUs.",
      .arguments_min = 1,
      .arguments_max = 1,
      .flags = repack_flags,
      .run = run_repack },
    { .name = "quantize",
      .arguments = "MODEL OUT",
      .text = "write a copy of a model with its weights in int8 or int4",
      .details =
          "OUT becomes a model folder of its own, with its index: every program takes it like any\n"
          "other. --to says what the routed experts become. With --dense the projections of\n"
          "attention, dense layers, shared experts and head become int8 where they are F32, F16\n"
          "or BF16 (FP8 would not get smaller), with --dense alone nothing but them. Embeddings,\n"
          "gates, norms and kv_b stay as they are. Prints the relative RMS error of each layer's\n"
          "matrices. OUT is written whole or not at all. A rung that is not smaller than what it\n"
          "replaces is refused.",
      .arguments_min = 2,
      .arguments_max = 2,
      .flags = quantize_flags,
      .run = pack_quantize },
    { .name = "verify",
      .arguments = "MODEL",
      .text = "read every expert back and compare checksums",
      .arguments_min = 1,
      .arguments_max = 1,
      .flags = verify_flags,
      .run = run_verify },
    { .name = "info",
      .arguments = "MODEL",
      .text = "show what the index says",
      .arguments_min = 1,
      .arguments_max = 1,
      .flags = info_flags,
      .run = run_info },
};

int main(int argc, char **argv)
{
    static const struct cli_program program = {
        .name = "tier-pack",
        .text = "prepare a model's experts for reading from disk",
        .details = "MODEL is a folder with config.json and safetensors files.",
        .commands = commands,
        .command_count = sizeof commands / sizeof commands[0],
        .examples = "tier-pack index models/pebble\n"
                    "tier-pack verify models/pebble --json\n"
                    "tier-pack index /read-only/model --index ~/model.index\n"
                    "tier-pack quantize --to int4 --text sample.txt MODEL MODEL-int4\n"
                    "tier-pack repack MODEL --to /mnt/nvme0/pack --to /mnt/nvme1/pack",
        .files = "MODEL/expertier.index    the index, unless --index names another place\n"
                 "DIR/experts.pack         a pack file; DIR/expertier.index its index",
    };
    return cli_main(&program, argc, argv);
}
