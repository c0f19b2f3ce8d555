/* tier-bench kernels: the products of a decode step from DRAM beside reading, of prefill from the
 * cache beside the peak of the cores, for every weight type and what activations go with it.
 *
 * Rates are medians of samples in turns with the floor; the spread is of the middle half. Weights
 * lie as an engine has them: FP8 is woven where that pays, INT8 and INT4 are in tiles.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/must.h"
#include "base/str.h"
#include "kernels/weave.h"
#include "tools/bench.h"
#include "tools/bench_products.h"
#include "tools/bench_stack.h"

enum { PREFILL_ROWS = 128, CELLS_MAX = 128 };

static struct {
    bool json, quiet;
    const char *only;
    uint64_t threads, batch;
    double at_least;
} flags = { .batch = 1 };
static const char *at_least;

struct cell {
    const struct bench_product_type *type;
    unsigned threads;
    uint32_t rows, cols, m;
    bool dram;                          /* else from the cache, beside the peak */
    double rate, spread, floor, fraction;       /* bytes or multiply-adds a second */
};

static struct cell cells[CELLS_MAX];
static size_t cell_count;

static const char *weights_name(const struct bench_product_type *t)
{
    switch (t->dtype) {
    case KERN_FP8_E4M3: return "fp8";
    case KERN_FP8_WOVEN: return "fp8 woven";
    case KERN_INT8: return "int8";
    case KERN_INT4: return "int4";
    case KERN_BF16: return "bf16";
    case KERN_F16: return "f16";
    default: return "f32";
    }
}

static const char *activations_name(const struct bench_product_type *t)
{
    return t->digits == BENCH_BF16_DIGITS ? "bf16" : t->digits == KERN_X8_FAST ? "int8" : "f32";
}

/* Where weaving pays an engine has no f32 products with FP8 in rows, else none with woven ones. */
static bool is_taken(const struct bench_product_type *t, const struct kern_ops *ops)
{
    if (t->digits == BENCH_BF16_DIGITS) return true;
    if (t->dtype == KERN_FP8_E4M3) return !kern_weave_pays(ops);
    return t->dtype != KERN_FP8_WOVEN || kern_weave_pays(ops);
}

static bool is_wanted(const struct bench_product_type *t, const struct kern_ops *ops)
{
    return flags.only ? strcmp(flags.only, weights_name(t)) == 0 : is_taken(t, ops);
}

/* What bounds prefill. f32 activations of INT8 and INT4 go in as integers, and may pass the f32
 * peak that they are held against. */
static enum bench_arithmetic arithmetic(const struct bench_product_type *t)
{
    if (t->digits == BENCH_BF16_DIGITS) return BENCH_BF16;
    return t->digits == KERN_X8_FAST ? BENCH_INT8 : BENCH_F32;
}

static struct cell *cell_add(const struct bench_product *p, size_t t, unsigned threads, bool dram)
{
    MUST(cell_count < CELLS_MAX);
    struct cell *c = &cells[cell_count++];
    *c = (struct cell){ .type = &bench_product_types[t], .threads = threads, .rows = p->w.rows,
                        .cols = p->w.cols, .m = p->m, .dram = dram };
    return c;
}

static void from_dram(const struct bench_products *b, const struct kern_ops *ops, size_t t,
                      unsigned threads)
{
    struct bench_product p = { .bench = b, .ops = ops, .m = (uint32_t)flags.batch };
    struct bench_timing times[2];
    bench_product_prepare(&p, t);
    bench_product_crowd(&p, BENCH_PRODUCT_ROWS, threads);
    bench_product_times(&p, threads, false, times);
    struct cell *c = cell_add(&p, t, threads, true);
    const double bytes = (double)bench_product_bytes(&p.w);
    c->rate = bytes / times[0].median;
    c->spread = times[0].spread / times[0].median;
    c->floor = bytes / times[1].median;
    c->fraction = times[1].median / times[0].median;
}

/* Prefill: one thread, the best sample beside the best of the peak. */
static void from_cache(const struct bench_products *b, const struct kern_ops *ops, size_t t,
                       const double *peaks)
{
    struct bench_product p = { .bench = b, .ops = ops, .m = PREFILL_ROWS };
    const struct bench_product_type *type = &bench_product_types[t];
    struct bench_timing times[2];
    bench_product_prepare(&p, t);
    bench_product_times(&p, 1, true, times);
    struct cell *c = cell_add(&p, t, 1, false);
    const double operations = (double)p.w.rows * p.w.cols * p.m;
    c->rate = operations / times[0].best;
    c->spread = times[0].spread / times[0].median;
    c->floor = peaks[arithmetic(type)];
    c->fraction = c->rate / c->floor;
}

static void print_json(const struct kern_ops *ops, double least)
{
    printf("{\"ops\":\"%s\",\"batch\":%llu,\"kernels\":[", ops->name,
           (unsigned long long)flags.batch);
    for (size_t i = 0; i < cell_count; i++) {
        const struct cell *c = &cells[i];
        const char *unit = c->dram ? "bytes_per_second" : "multiply_adds_per_second";
        printf("%s{\"weights\":\"%s\",\"scale_columns\":%u,\"activations\":\"%s\",\"rows\":%u,"
               "\"columns\":%u,\"m\":%u,\"threads\":%u,\"from\":\"%s\",\"%s\":%.0f,\"spread\":%.4f,"
               "\"floor_%s\":%.0f,\"floor_fraction\":%.4f}", i ? "," : "", weights_name(c->type),
               c->type->scale, activations_name(c->type), c->rows, c->cols, c->m, c->threads,
               c->dram ? "dram" : "cache", unit, c->rate, c->spread, unit, c->floor, c->fraction);
    }
    printf("],\"floor_fraction\":%.4f}\n", least);
}

static void print_text(const struct kern_ops *ops, double least)
{
    char floor[32];
    printf("operations: %s\n", ops->name);
    printf("%-10s %-6s %-11s %7s %4s %7s %16s %7s %18s %6s\n", "weights", "scales",
           "activations", "columns", "m", "threads", "median", "spread", "floor", "share");
    for (size_t i = 0; i < cell_count; i++) {
        const struct cell *c = &cells[i];
        const char *unit = c->dram ? "GB/s" : "G madd/s";
        snprintf(floor, sizeof floor, "%.1f %s", c->floor * 1e-9, unit);
        printf("%-10s %-6u %-11s %7u %4u %7u %7.1f %-8s %6.0f%% %18s %5.0f%%\n",
               weights_name(c->type), c->type->scale, activations_name(c->type), c->cols, c->m,
               c->threads, c->rate * 1e-9, unit, 100 * c->spread, floor, 100 * c->fraction);
    }
    printf("smallest share of reading: %.2f\n", least);
}

static int run(int count, char **arguments)
{
    struct bench_products b;
    struct cli_progress bar;
    double peaks[3], least = 1e9;
    (void)count, (void)arguments;
    const struct kern_ops *ops = kern_ops_cpu(KERN_CPU_BEST);
    const unsigned all = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    if (flags.batch < 1 || flags.batch > PREFILL_ROWS) {
        return cli_misuse("--batch: 1 to %d", PREFILL_ROWS);
    }
    if (flags.threads > all) return cli_misuse("--threads: this machine has %u", all);
    if (at_least) {
        if (base_str_double_parse(at_least, &flags.at_least) < 0 || flags.at_least < 0) {
            return cli_misuse("--at-least %s: expected a share such as 0.9", at_least);
        }
    }
    size_t chosen = 0;
    for (size_t t = 0; t < bench_product_type_count; t++) {
        chosen += is_wanted(&bench_product_types[t], ops);
    }
    if (chosen == 0) {
        return cli_misuse("--only %s: fp8, \"fp8 woven\", int8, int4, bf16, f16 or f32",
                          flags.only);
    }
    cli_progress_begin(&bar, "measuring", flags.quiet);
    bench_products_open(&b);
    for (int kind = 0; kind < 3; kind++) {
        peaks[kind] = bench_peak(1, (enum bench_arithmetic)kind).best;
    }
    for (size_t t = 0; t < bench_product_type_count; t++) {
        if (!is_wanted(&bench_product_types[t], ops)) continue;
        cli_progress_share(&bar, "measuring", (double)t / (double)bench_product_type_count);
        for (unsigned threads = flags.threads ? (unsigned)flags.threads : 1; threads;
             threads = flags.threads ? 0 : bench_threads_after(threads)) {
            from_dram(&b, ops, t, threads);
            const double fraction = cells[cell_count - 1].fraction;
            if (fraction < least) least = fraction;
        }
        from_cache(&b, ops, t, peaks);
    }
    bench_products_close(&b);
    cli_progress_end(&bar);
    flags.json ? print_json(ops, least) : print_text(ops, least);
    return least >= flags.at_least ? 0 : 1;
}

static const struct cli_flag kernels_flags[] = {
    { "only", CLI_TEXT, &flags.only, "WEIGHTS",
      "one type: fp8, \"fp8 woven\", int8, int4, bf16, f16, f32; default: all that an engine "
      "takes" },
    { "threads", CLI_UINT, &flags.threads, "N", "so many alone (1, 2 and all that there are)" },
    { "batch", CLI_UINT, &flags.batch, "N", "operand rows of the products from DRAM (1)" },
    { "at-least", CLI_TEXT, &at_least, "SHARE",
      "exit code 1 if a product from DRAM has a smaller share of reading (0)" },
    { "json", CLI_SWITCH, &flags.json, NULL, "print the result as JSON" },
    { "quiet", CLI_SWITCH, &flags.quiet, NULL, "no progress" },
    { 0 },
};

const struct cli_command bench_kernels_command = {
    .name = "kernels",
    .arguments = "",
    .text = "products of every weight type, against reading and the peak of the cores",
    .details = "Products of a decode step walk through 256 MB in huge pages, in turns with reading "
               "as many\n"
               "bytes by as many threads; floor and share are of that. Those of prefill (m = 128, "
               "one\n"
               "thread, weights in the cache) are held against the multiply-adds of a core, in the "
               "arithmetic\n"
               "of the activations; INT8 and INT4 weights take f32 ones as integers and may pass "
               "it.",
    .flags = kernels_flags,
    .run = run,
};
