/* Shows that every CUDA kernel, executed thread by thread on the CPU, is near its scalar twin (the
 * tolerances stand in cases_*.c), races nowhere, reads nothing unwritten or outside, and gives the
 * same bits in any order of threads and blocks; and that each barrier is needed: without it a case
 * fails.
 *
 *   check_kernels [--seeds N] [--seed S] [KERNEL]      cases; default 20 each
 *   check_kernels --mutate                             every barrier and wait removed in turn */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cudahost/cases.h"
#include "tests/cudahost/cudahost.h"
#include "tests/support/guard.h"

/* One case under one order of threads. False with c->what when something is wrong. */
static bool case_run(struct cuda_case *c, const struct cuda_kernel *kernel, uint64_t seed,
                     uint64_t order)
{
    *c = (struct cuda_case){ .reference = kern_ops_variant(KERN_CPU_REFERENCE) };
    base_rng_init(&c->rng, seed);
    cudahost_seed(order);
    cudahost_failure();
    kernel->run(c);
    const char *failure = cudahost_failure();
    if (failure) {
        c->failed = true;
        snprintf(c->what, sizeof c->what, "%s", failure);
    }
    if (!guard_end() && !c->failed) {
        c->failed = true;
        snprintf(c->what, sizeof c->what, "guard bytes were overwritten");
    }
    cudahost_reset();
    return !c->failed;
}

static unsigned cases_run(const char *only, uint64_t first, uint64_t seeds)
{
    unsigned failed = 0;
    for (size_t i = 0; i < cuda_kernel_count; i++) {
        const struct cuda_kernel *kernel = &cuda_kernels[i];
        if (only && strcmp(only, kernel->name)) continue;
        unsigned bad = 0;
        double worst = 0;
        for (uint64_t seed = first; seed < first + seeds && bad < 5; seed++) {
            struct cuda_case c;
            const bool good = case_run(&c, kernel, seed, seed);
            worst = c.worst > worst ? c.worst : worst;
            if (good) continue;
            bad++;
            printf("FAIL %s --seed %llu: %s\n", kernel->name, (unsigned long long)seed, c.what);
        }
        if (!bad)
            printf("ok   %s: %llu cases, largest error %.2f of what is allowed\n", kernel->name,
                   (unsigned long long)seeds, worst);
        failed += bad;
    }
    return failed;
}

/* With the site muted: does a case fail, and of which kernel? */
static bool mutation_noticed(const char *site, uint64_t seeds, char *how, size_t size)
{
    bool noticed = false;
    cudahost_site_mute(site);
    for (uint64_t seed = 1; seed <= seeds && !noticed; seed++) {
        for (size_t i = 0; i < cuda_kernel_count && !noticed; i++) {
            struct cuda_case c;
            if (case_run(&c, &cuda_kernels[i], seed, seed)) continue;
            noticed = true;
            snprintf(how, size, "%s: %s", cuda_kernels[i].name, c.what);
        }
    }
    cudahost_site_mute(NULL);
    return noticed;
}

static unsigned mutations_run(uint64_t seeds)
{
    static char found[CUDAHOST_SITES_MAX][64];
    const char *const *names;
    unsigned unnoticed = 0;
    if (cases_run(NULL, 1, seeds) > 0) return 1;
    const unsigned count = cudahost_sites(&names);
    for (unsigned i = 0; i < count; i++)
        snprintf(found[i], sizeof found[i], "%s", names[i]);
    for (unsigned i = 0; i < count; i++) {
        char how[512];
        if (mutation_noticed(found[i], seeds, how, sizeof how)) {
            printf("ok   without %s: %s\n", found[i], how);
        } else {
            printf("FAIL without %s every case passes\n", found[i]);
            unnoticed++;
        }
    }
    printf("%u barriers and waits removed in turn, %u not noticed\n", count, unnoticed);
    return count > 0 ? unnoticed : 1;
}

int main(int argc, char **argv)
{
    const char *only = NULL;
    uint64_t first = 1, seeds = 0;
    bool mutate = false;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--mutate")) {
            mutate = true;
        } else if (!strcmp(argv[i], "--seeds") && i + 1 < argc) {
            seeds = strtoull(argv[++i], NULL, 10);
        } else if (!strcmp(argv[i], "--seed") && i + 1 < argc) {
            first = strtoull(argv[++i], NULL, 10);
            seeds = seeds ? seeds : 1;
        } else if (argv[i][0] != '-') {
            only = argv[i];
        } else {
            fprintf(stderr, "usage: check_kernels [--mutate] [--seed S] [--seeds N] [KERNEL]\n");
            return 2;
        }
    }
    const unsigned failed =
        mutate ? mutations_run(seeds ? seeds : 12) : cases_run(only, first, seeds ? seeds : 20);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
