/* Runs a fuzz target without libFuzzer: files given as arguments, or a seeded loop of mutations.
 *
 *     fuzz_json [--seconds N] [--seed N] [--rounds N] [FILE...]
 *
 * A crash or an input that takes over ten seconds leaves its bytes in fuzz-crash.bin in the working
 * folder, together with the seed and round that made them.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/asan.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/must.h"
#include "base/str.h"
#include "tests/fuzz/fuzz.h"

enum { SLOW_SECONDS = 10 };

#if BASE_ASAN
void __sanitizer_set_death_callback(void (*callback)(void));
#endif

static struct {
    uint64_t seed, round;
    const uint8_t *bytes;       /* the input that runs */
    size_t size;
} now;

/* Only what a signal handler may do. */
static void keep_input(void)
{
    char text[160];
    int length = snprintf(text, sizeof text,
                          "\nfuzz: seed=%llu round=%llu, %zu bytes kept in fuzz-crash.bin\n",
                          (unsigned long long)now.seed, (unsigned long long)now.round, now.size);
    int fd = open("fuzz-crash.bin", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    ssize_t wrote = write(fd, now.bytes, now.size);
    wrote += write(STDERR_FILENO, text, (size_t)length);
    (void)wrote;
}

static void on_signal(int number)
{
    static const char slow[] = "\nfuzz: this input takes over ten seconds";
    if (number == SIGALRM && write(STDERR_FILENO, slow, sizeof slow - 1) < 0) _exit(1);
    keep_input();
    if (number == SIGALRM) _exit(1);
    signal(number, SIG_DFL);
    raise(number);
}

static void watch(void)
{
    signal(SIGALRM, on_signal);
    signal(SIGABRT, on_signal);
#if BASE_ASAN
    __sanitizer_set_death_callback(keep_input);     /* ASan itself handles the faults */
#else
    signal(SIGSEGV, on_signal);
    signal(SIGBUS, on_signal);
    signal(SIGFPE, on_signal);
#endif
}

/* From a block of just its size, so that a sanitizer sees one byte too far. */
static void run_one(const uint8_t *bytes, size_t size)
{
    uint8_t *exact = malloc(size ? size : 1);
    MUST(exact);
    memcpy(exact, bytes, size);
    now.bytes = exact;
    now.size = size;
    alarm(SLOW_SECONDS);
    MUST(LLVMFuzzerTestOneInput(exact, size) == 0);
    alarm(0);
    free(exact);
}

static int run_file(const char *path)
{
    char *bytes;
    size_t size;
    struct base_err err = { 0 };
    if (base_file_read(&bytes, &size, path, 1u << 30, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 2;
    }
    run_one((uint8_t *)bytes, size);
    free(bytes);
    return 0;
}

static unsigned run_seeds(uint8_t *bytes)
{
    unsigned count = 0;
    size_t size;
    while ((size = fuzz_seed(count, bytes, FUZZ_BYTES_MAX)) > 0) {
        MUST(size <= FUZZ_BYTES_MAX);
        run_one(bytes, size);
        count++;
    }
    MUST(count > 0);
    return count;
}

/* Each round has a generator of its own: seed and round alone make the same input again. */
static void run_round(unsigned seed_count, uint8_t *bytes)
{
    struct base_rng rng;
    base_rng_init(&rng, now.seed * 0x9e3779b97f4a7c15u + now.round);
    size_t size = fuzz_seed((unsigned)base_rng_below(&rng, seed_count), bytes, FUZZ_BYTES_MAX);
    size = fuzz_mutate(&rng, bytes, size, FUZZ_BYTES_MAX);
    run_one(bytes, size);
}

int main(int argc, char **argv)
{
    static uint8_t bytes[FUZZ_BYTES_MAX];
    uint64_t seconds = 3, rounds = UINT64_MAX;
    int files = 0;
    now.seed = 1;
    watch();
    for (int i = 1; i < argc; i++) {
        uint64_t *number = strcmp(argv[i], "--seconds") == 0  ? &seconds
                           : strcmp(argv[i], "--seed") == 0   ? &now.seed
                           : strcmp(argv[i], "--rounds") == 0 ? &rounds
                                                              : NULL;
        if (!number) {
            files++;
            if (run_file(argv[i]) != 0) return 2;
        } else if (i + 1 >= argc || base_str_u64_parse(argv[++i], number) < 0) {
            fprintf(stderr, "usage: %s [--seconds N] [--seed N] [--rounds N] [FILE...]\n", argv[0]);
            return 2;
        }
    }
    if (files > 0) return 0;
    unsigned seed_count = run_seeds(bytes);
    uint64_t end_ns = base_now_ns() + seconds * 1000000000u;
    while (now.round < rounds && base_now_ns() < end_ns) {
        run_round(seed_count, bytes);
        now.round++;
    }
    printf("%llu inputs from %u seeds, seed=%llu\n", (unsigned long long)now.round, seed_count,
           (unsigned long long)now.seed);
    return 0;
}
