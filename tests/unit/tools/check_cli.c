/* Command lines: values arrive, help exits 0 on stdout, misuse exits 2 on stderr with advice. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/cli.h"

static struct {
    bool quiet;
    const char *output;
    uint64_t count, size, time;
    double rate;
    struct cli_list set;
} flags;

static int run(int count, char **arguments)
{
    printf("quiet=%d output=%s count=%llu size=%llu time=%llu rate=%g set=", flags.quiet,
           flags.output ? flags.output : "-", (unsigned long long)flags.count,
           (unsigned long long)flags.size, (unsigned long long)flags.time, flags.rate);
    for (unsigned i = 0; i < flags.set.count; i++) {
        printf("[%s]", flags.set.text[i]);
    }
    printf(" arguments=");
    for (int i = 0; i < count; i++) {
        printf("[%s]", arguments[i]);
    }
    printf("\n");
    return 0;
}

static int break_down(int count, char **arguments)
{
    (void)count;
    struct base_err err = { 0 };
    base_err_set(&err, BASE_EFORMAT, "%s: byte 7 is wrong", arguments[0]);
    return cli_fail(1, &err);
}

static const struct cli_flag sample_flags[] = {
    { "quiet", CLI_SWITCH, &flags.quiet, NULL, "say nothing" },
    { "output|o", CLI_TEXT, &flags.output, "FILE", "where to write" },
    { "count", CLI_UINT, &flags.count, "N", "how many" },
    { "size", CLI_BYTES, &flags.size, "SIZE", "how large" },
    { "time", CLI_TIME, &flags.time, "TIME", "how long" },
    { "rate", CLI_REAL, &flags.rate, "X", "how fast" },
    { "set", CLI_REPEATED, &flags.set, "KEY=VALUE", "one setting" },
    { .name = NULL },
};

static const struct cli_command commands[] = {
    { "index", "MODEL [FILE...]", "write the index", "Reads all.", 1, 3, sample_flags, run },
    { "verify", "MODEL", "check the bytes", NULL, 1, 1, NULL, break_down },
};

static const struct cli_program with_commands = {
    .name = "sample", .text = "shows the command line", .details = "Says - in words.\n\nMore.",
    .commands = commands, .command_count = 2, .examples = "sample index m\nsample verify m\n",
};

static const struct cli_command single[] = {
    { NULL, "", "does it", NULL, 0, 0, sample_flags, run },
};
static const struct cli_program without_commands = {
    .name = "single", .text = "does one thing", .commands = single, .command_count = 1,
};

static char out[20000], err[20000];

static void read_back(FILE *from, char *to)
{
    rewind(from);
    to[fread(to, 1, 19999, from)] = '\0';
    fclose(from);
}

/* Runs the program on the words of `line` in a process of its own; returns its exit code. */
static int cli(const struct cli_program *program, const char *line, bool full_disk)
{
    FILE *out_file = tmpfile(), *err_file = tmpfile();
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        char copy[4000], *argv[200] = { (char *)(uintptr_t)"program" };
        int argc = 1;
        snprintf(copy, sizeof copy, "%s", line);
        for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) {
            argv[argc++] = word;
        }
        dup2(fileno(out_file), STDOUT_FILENO);
        dup2(fileno(err_file), STDERR_FILENO);
        if (full_disk) ck_assert_ptr_nonnull(freopen("/dev/full", "w", stdout));
        int code = cli_main(program, argc, argv);
        fflush(NULL);
        _exit(code);
    }
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    read_back(out_file, out);
    read_back(err_file, err);
    ck_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

START_TEST(values_arrive)
{
    ck_assert_int_eq(cli(&with_commands,
                         "index m --count 5 --size=16GiB --time 250us --rate 1e-3 --quiet -o x "
                         "--set a=1 f1 --set=b=2", false), 0);
    ck_assert_str_eq(out, "quiet=1 output=x count=5 size=17179869184 time=250000 rate=0.001 "
                          "set=[a=1][b=2] arguments=[m][f1]\n");
    ck_assert_str_eq(err, "");
    ck_assert_int_eq(cli(&with_commands, "index --output=--x -- --quiet - --", false), 0);
    ck_assert_str_eq(out, "quiet=0 output=--x count=0 size=0 time=0 rate=0 set= "
                          "arguments=[--quiet][-][--]\n");
    ck_assert_int_eq(cli(&without_commands, "--count 1 --count 2", false), 0);
    ck_assert_ptr_nonnull(strstr(out, " count=2 "));
}
END_TEST

START_TEST(misuse_exits_2_with_advice)
{
    static const struct {
        const char *line, *sentence;
    } cases[] = {
        { "indx m", "sample: unknown command \"indx\"; the nearest known one is \"index\"\n"
                    "Try 'sample --help'.\n" },
        { "bake", "sample: unknown command \"bake\"\nTry 'sample --help'.\n" },
        { "--quiet index", "sample: a command comes first, then its flags: not \"--quiet\"\n"
                           "Try 'sample --help'.\n" },
        { "index", "sample: the argument is missing: MODEL [FILE...]\n"
                   "Try 'sample index --help'.\n" },
        { "index a b c d", "sample: 4 arguments given; expected: MODEL [FILE...]\n"
                           "Try 'sample index --help'.\n" },
        { "index m --ouput x", "sample: unknown flag --ouput; the nearest known one is --output\n"
                               "Try 'sample index --help'.\n" },
        { "index m --zzz", "sample: unknown flag --zzz\nTry 'sample index --help'.\n" },
        { "index m -quiet", "sample: unknown flag -quiet; write --quiet\n"
                            "Try 'sample index --help'.\n" },
        { "index m --count", "sample: --count N needs a value\nTry 'sample index --help'.\n" },
        { "index m --output --quiet", "sample: --output, -o FILE needs a value; \"--quiet\" looks "
                                      "like the next flag\nTry 'sample index --help'.\n" },
        { "index m --quiet=yes", "sample: --quiet takes no value\nTry 'sample index --help'.\n" },
        { "index m --count -3", "sample: --count N: \"-3\" is not a whole number such as 16\n"
                                "Try 'sample index --help'.\n" },
        { "index m --count 99999999999999999999",
          "sample: --count N: \"99999999999999999999\" is too large\n"
          "Try 'sample index --help'.\n" },
        { "index m --size 16G",
          "sample: --size SIZE: \"16G\" is not a size such as 4096, 16GiB (of "
          "1024) or 16GB (of 1000)\nTry 'sample index --help'.\n" },
        { "index m --time 5", "sample: --time TIME: \"5\" is not a time such as 250us, 10ms or "
                              "1.5s\nTry 'sample index --help'.\n" },
        { "index m --rate x", "sample: --rate X: \"x\" is not a number such as 0.5\n"
                              "Try 'sample index --help'.\n" },
        { "verify m --quiet", "sample: unknown flag --quiet\nTry 'sample verify --help'.\n" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ck_assert_msg(cli(&with_commands, cases[i].line, false) == 2, "%s", cases[i].line);
        ck_assert_str_eq(err, cases[i].sentence);
        ck_assert_str_eq(out, "");
    }
    ck_assert_int_eq(cli(&with_commands, "", false), 2);
    ck_assert_str_eq(out, "");
    ck_assert_ptr_nonnull(strstr(err, "Usage: sample COMMAND [FLAGS] [ARGUMENTS]\n"));
    char many[1000] = "";
    for (int i = 0; i < 65; i++) {
        strcat(many, "--set a=1 ");
    }
    ck_assert_int_eq(cli(&without_commands, many, false), 2);
    ck_assert_str_eq(err, "single: --set: given more than 64 times\nTry 'single --help'.\n");
}
END_TEST

START_TEST(help_goes_to_stdout)
{
    ck_assert_int_eq(cli(&with_commands, "--help", false), 0);
    ck_assert_str_eq(err, "");
    ck_assert_ptr_eq(strstr(out, "sample: shows the command line\n\nUsage: sample COMMAND "), out);
    ck_assert_ptr_nonnull(strstr(out, "\nSays - in words.\n\nMore.\n"));
    ck_assert_ptr_nonnull(strstr(out, "\n  index        write the index\n  verify "));
    ck_assert_ptr_nonnull(strstr(out, "\nExamples:\n  sample index m\n  sample verify m\n"));
    ck_assert_int_eq(cli(&with_commands, "index --count bad-before-help", false), 2);
    ck_assert_int_eq(cli(&with_commands, "index --help --zzz", false), 0);
    ck_assert_ptr_nonnull(strstr(out, "Usage: sample index [FLAGS] MODEL [FILE...]\n"));
    ck_assert_ptr_nonnull(strstr(out, "\n  --output, -o FILE       where to write\n"));
    ck_assert_int_eq(cli(&without_commands, "-h", false), 0);
    ck_assert_ptr_nonnull(strstr(out, "Usage: single [FLAGS]\n"));
    ck_assert_int_eq(cli(&without_commands, "--version", false), 0);
    ck_assert_str_eq(out, "single (Expertier) " EXPERTIER_VERSION "\n");
}
END_TEST

START_TEST(man_page_has_its_sections)
{
    ck_assert_int_eq(cli(&with_commands, "--man", false), 0);
    static const char *const parts[] = {
        ".TH SAMPLE 1 ", ".SH NAME\nsample\n\\- shows the command line\n", ".SH SYNOPSIS\n",
        ".SH DESCRIPTION\nSays \\- in words.\n.PP\nMore.\n", ".SS index\n",
        ".TP\n.B \\-\\-output, \\-o FILE\nwhere to write\n", ".SH EXIT STATUS\n",
        ".SH EXAMPLES\n.nf\nsample index m\n",
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        ck_assert_msg(strstr(out, parts[i]) != NULL, "missing: %s", parts[i]);
    }
    ck_assert_ptr_null(strstr(out, "\n\n"));
}
END_TEST

START_TEST(failures_exit_1)
{
    ck_assert_int_eq(cli(&with_commands, "verify m", false), 1);
    ck_assert_str_eq(err, "sample: m: byte 7 is wrong\n");
    ck_assert_int_eq(cli(&without_commands, "", true), 1);
    ck_assert_str_eq(err, "single: standard output: No space left on device\n");
}
END_TEST

START_TEST(tables_align)
{
    static const char *const headings[] = { "layer", "name", "rate" };
    static const char *const rows[][3] = { { "0", "pebble", "5%" },
                                           { "10", "gr\xc3\xb6\xc3\x9f" "e", "12.5%" },
                                           { "-", NULL, "" } };
    struct cli_table *table;
    ck_assert_int_eq(cli_table_create(&table, 3, headings), 0);
    for (int i = 0; i < 3; i++) {
        cli_table_row(table, rows[i]);
    }
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);
    cli_table_print(table, to);
    fclose(to);
    ck_assert_str_eq(text, "layer  name     rate\n"
                           "    0  pebble     5%\n"
                           "   10  gr\xc3\xb6\xc3\x9f" "e   12.5%\n"
                           "    -\n");
    free(text);
    cli_table_destroy(table);
    cli_table_destroy(NULL);
}
END_TEST

/* Work that takes over a second, seen through a pipe: a line every tenth at most. */
static int slow_work(int count, char **arguments)
{
    (void)count;
    (void)arguments;
    struct cli_progress progress;
    cli_progress_begin(&progress, "reading", flags.quiet);
    cli_progress_bytes(&progress, 500, 1000);
    progress.started_ns -= 2000000000u;         /* as if two seconds had passed */
    for (uint64_t done = 0; done <= 1000; done++) {
        cli_progress_bytes(&progress, done, 1000);
    }
    cli_progress_end(&progress);
    return 0;
}

START_TEST(progress_is_ten_lines_or_none)
{
    static const struct cli_command command = { NULL, "", "", NULL, 0, 0, sample_flags, slow_work };
    static const struct cli_program program = { .name = "slow", .commands = &command,
                                                .command_count = 1 };
    ck_assert_int_eq(cli(&program, "", false), 0);
    unsigned lines = 0;
    for (const char *c = err; *c; c++) {
        lines += *c == '\n';
    }
    ck_assert_uint_eq(lines, 10);
    ck_assert_ptr_nonnull(strstr(err, "reading: 100%  1000 B of 1000 B  "));
    ck_assert_int_eq(cli(&program, "--quiet", false), 0);
    ck_assert_str_eq(err, "");
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("cli");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, values_arrive);
    tcase_add_test(tcase, misuse_exits_2_with_advice);
    tcase_add_test(tcase, help_goes_to_stdout);
    tcase_add_test(tcase, man_page_has_its_sections);
    tcase_add_test(tcase, failures_exit_1);
    tcase_add_test(tcase, tables_align);
    tcase_add_test(tcase, progress_is_ten_lines_or_none);
    Suite *suite = suite_create("tools/cli");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
