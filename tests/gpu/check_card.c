/* Shows on a card what tests/cudahost shows without one: every CUDA kernel is near its scalar twin
 * on random shapes (the same cases, the same tolerances), has the same bits alone and in company,
 * in decode and in prefill, and writes nowhere else.
 *
 *   check_card [--seeds N] [--seed S] [KERNEL] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cudahost/cases.h"
#include "tests/gpu/card.h"
#include "tests/support/guard.h"

static bool case_run(struct cuda_case *c, const struct cuda_kernel *kernel, uint64_t seed)
{
    *c = (struct cuda_case){ .reference = kern_ops_variant(KERN_CPU_REFERENCE) };
    base_rng_init(&c->rng, seed);
    kernel->run(c);
    CARD(cudaDeviceSynchronize()); /* the process cannot go on after a sticky error */
    if (!guard_end()) case_fail(c, "guard bytes were overwritten");
    return !c->failed;
}

static void kernel_run(const struct cuda_kernel *kernel, uint64_t first, uint64_t seeds)
{
    struct card_row row = { .stage = "kernels", .ok = true };
    double worst = 0;
    unsigned bad = 0;
    for (uint64_t seed = first; seed < first + seeds && bad < 5; seed++) {
        struct cuda_case c;
        const bool good = case_run(&c, kernel, seed);
        worst = c.worst > worst ? c.worst : worst;
        if (good) continue;
        bad++;
        printf("FAIL %s --seed %llu: %s\n", kernel->name, (unsigned long long)seed, c.what);
        if (bad == 1)
            snprintf(row.note, sizeof row.note, "seed %llu: %.150s", (unsigned long long)seed,
                     c.what);
    }
    row.ok = !bad;
    snprintf(row.name, sizeof row.name, "%s", kernel->name);
    if (!bad)
        snprintf(row.note, sizeof row.note, "%llu shapes, largest error %.2f of what is allowed",
                 (unsigned long long)seeds, worst);
    card_row_give(&row);
}

int main(int argc, char **argv)
{
    struct cudaDeviceProp prop;
    const char *only = NULL;
    uint64_t first = 1, seeds = 200;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--seeds") && i + 1 < argc) {
            seeds = strtoull(argv[++i], NULL, 10);
        } else if (!strcmp(argv[i], "--seed") && i + 1 < argc) {
            first = strtoull(argv[++i], NULL, 10);
        } else if (argv[i][0] != '-') {
            only = argv[i];
        } else {
            fprintf(stderr, "usage: check_card [--seeds N] [--seed S] [KERNEL]\n");
            return 2;
        }
    }
    card_open(&prop);
    for (size_t i = 0; i < cuda_kernel_count; i++) {
        if (only && strcmp(only, cuda_kernels[i].name)) continue;
        kernel_run(&cuda_kernels[i], first, seeds);
    }
    return card_rows_bad() ? EXIT_FAILURE : EXIT_SUCCESS;
}
