/* YAML fills option tables; whatever is wrong gets file:line:column; what is printed reads back. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "port/yaml.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define SAMPLE_OPTIONS(O)                                                                          \
    O(capacity, BYTES, "tiers.dram.capacity", "1GiB", "1MiB..", "bytes", "memory of the tier")     \
    O(pin, ENUM, "tiers.dram.pin", "auto", "auto|on|off", "", "lock it")                           \
    O(depth, UINT, "io.depth", "32", "1..4096", "reads", "reads in flight")                        \
    O(latency, TIME, "io.latency", "80us", "", "", "how long")                                     \
    O(share, SHARE, "io.share", "25%", "", "", "how much")                                         \
    O(name, TEXTLINE, "name", "", "", "", "whose")                                                 \
    O(offset, INT, "io.offset", "-1", "", "", "where")                                             \
    O(rate, REAL, "io.rate", "0.1", "", "", "how often")                                           \
    O(quick, BOOL, "io.quick", "false", "", "", "whether")                                         \
    O(paths, LIST, "tiers.nvme.paths", "/a,/b", "", "", "folders")
struct sample {
    BASE_OPTION_STRUCT(SAMPLE_OPTIONS)
};
#define BASE_OPTION_OWNER struct sample
static const struct base_option table[] = { SAMPLE_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER

static struct sample sample;
static const struct base_option_group group = { "sample", table, COUNT(table), &sample };

static void setup(void)
{
    base_option_defaults(&group, 1);
}

static void parse(const char *text)
{
    struct base_err err = { 0 };
    ck_assert_msg(port_yaml_parse(text, strlen(text), "x.yaml", &group, 1, &err) == 0, "%s",
                  err.text);
}

START_TEST(nested_maps_become_dotted_keys)
{
    parse("# all of it\n"
          "tiers:\n"
          "  dram:\n"
          "    capacity: 16GiB   # half\n"
          "    pin: 'on'\n"
          "  nvme: {paths: [/x, \"/y z\"]}\n"
          "io.depth: 64\n"
          "io:\n"
          "  latency: 1.5ms\n"
          "  share: 0.5\n"
          "name: \"\"\n");
    ck_assert_uint_eq(sample.capacity, 16ull << 30);
    ck_assert_int_eq(sample.pin, 1);
    ck_assert_uint_eq(sample.depth, 64);
    ck_assert_uint_eq(sample.latency, 1500000);
    ck_assert_double_eq(sample.share, 0.5);
    ck_assert_uint_eq(sample.paths.count, 2);
    ck_assert_str_eq(sample.paths.text[1], "/y z");
}
END_TEST

START_TEST(nothing_changes_nothing)
{
    static const char *const texts[] = { "", "\n\n", "# only talk\n", "---\n...\n", "~",
                                         "tiers:\nio:\n", "tiers: {}\n" };
    for (size_t i = 0; i < COUNT(texts); i++) {
        parse(texts[i]);
    }
    ck_assert_uint_eq(sample.depth, 32);
    ck_assert_uint_eq(sample.paths.count, 2);
}
END_TEST

START_TEST(lists_replace_the_default)
{
    parse("tiers:\n  nvme:\n    paths:\n      - /one\n");
    ck_assert_uint_eq(sample.paths.count, 1);
    parse("tiers.nvme.paths: /two\n");
    ck_assert_uint_eq(sample.paths.count, 1);
    ck_assert_str_eq(sample.paths.text[0], "/two");
    parse("tiers.nvme.paths: []\n");
    ck_assert_uint_eq(sample.paths.count, 0);
}
END_TEST

START_TEST(wrong_files_say_where)
{
    static const struct {
        const char *text, *sentence;
    } cases[] = {
        { "tiers:\n  dram:\n    capasity: 1GiB\n",
          "x.yaml:3:5: tiers.dram.capasity: unknown key; the nearest known one is "
          "tiers.dram.capacity" },
        { "server:\n  port: 1\n",
          "x.yaml:1:1: server: unknown key; --options lists the known ones" },
        { "io:\n  depth: lots\n",
          "x.yaml:2:10: io.depth: \"lots\" is not a whole number such as 16" },
        { "io:\n  depth: 0\n", "x.yaml:2:10: io.depth: \"0\" is outside 1..4096 reads" },
        { "io:\n  depth:\n", "x.yaml:2:9: io.depth: has no value; for an empty text write \"\"" },
        { "io:\n  depth: [1]\n", "x.yaml:2:10: io.depth: takes one value, not a list" },
        { "io:\n  depth: {a: 1}\n", "x.yaml:2:10: io.depth: takes a value, not keys" },
        { "io: 5\n", "x.yaml:1:5: io: is a section with keys under it, not a value" },
        { "io: [5]\n", "x.yaml:1:5: io: holds keys, not a list" },
        { "tiers.dram.capacity: 16G\n",
          "x.yaml:1:22: tiers.dram.capacity: \"16G\" is ambiguous: write 16GiB or 16GB" },
        { "io:\n  depth: 1\n  depth: 1\n", "x.yaml:3:3: io.depth: given twice" },
        { "io:\n  depth: 1\nio.depth: 1\n", "x.yaml:3:1: io.depth: given twice" },
        { "io:\n  depth: 1\nio:\n  rate: 1\n", "x.yaml:3:1: io: given twice" },
        { "io: &a\n  depth: 1\n",
          "x.yaml:1:5: anchors and aliases are not used in settings: write the value itself" },
        { "io: *a\n",
          "x.yaml:1:5: anchors and aliases are not used in settings: write the value itself" },
        { "name: !!str 5\n", "x.yaml:1:7: tags are not used in settings: write the value itself" },
        { "name: a\n--- \nname: b\n", "x.yaml:2:1: a second document; settings are one" },
        { "- a\n", "x.yaml:1:1: settings are \"key: value\" lines" },
        { "just text\n", "x.yaml:1:1: settings are \"key: value\" lines" },
        { "? [a]\n: b\n", "x.yaml:1:3: a key must be a plain word" },
        { "\"\": b\n", "x.yaml:1:1: an empty key" },
        { "\"na\\0me\": b\n", "x.yaml:1:1: a key holds a NUL byte" },
        { "name: \"a\\0b\"\n", "x.yaml:1:7: name: the value holds a NUL byte" },
        { "name: |\n  two\n  lines\n",
          "x.yaml:1:7: name: byte 4 of the text is a control character" },
        { "tiers.nvme.paths: [[a]]\n",
          "x.yaml:1:20: tiers.nvme.paths: a list of texts holds texts only" },
        { "tiers.nvme.paths: [a, ~]\n",
          "x.yaml:1:23: tiers.nvme.paths: has no value; for an empty text write \"\"" },
        { "io:\n\tdepth: 1\n", "x.yaml:2:1: while scanning for the next token: found character "
                               "that cannot start any token" },
        { "name: \"open\n", "x.yaml:2:1: while scanning a quoted scalar: found unexpected end of "
                            "stream" },
        { "name: [a\n", "x.yaml:1:7: name: takes one value, not a list" },
        { "tiers.nvme.paths: [a\n",
          "x.yaml:2:1: while parsing a flow sequence: did not find expected ',' or ']'" },
        { "io:\n  depth: 1\n rate: 1\n",
          "x.yaml:3:2: while parsing a block mapping: did not find expected key" },
        { "# \xff\n", "x.yaml:1:3: invalid leading UTF-8 octet" },
        { "name: a\n# \xc3\x28\n", "x.yaml:2:4: invalid trailing UTF-8 octet" },
        { "# \x01\n", "x.yaml:1:3: control characters are not allowed" },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct base_err err = { 0 };
        const char *text = cases[i].text;
        ck_assert_msg(port_yaml_parse(text, strlen(text), "x.yaml", &group, 1, &err) ==
                          BASE_ECONFIG,
                      "accepted: %s", text);
        ck_assert_str_eq(err.text, cases[i].sentence);
    }
}
END_TEST

START_TEST(giants_are_refused)
{
    struct base_err err = { 0 };
    char text[3000];
    memset(text, 'k', 600);
    strcpy(text + 600, ": 1\n");
    ck_assert_int_eq(port_yaml_parse(text, strlen(text), "x", &group, 1, &err), BASE_ECONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "x:1:1: no key is as long as \"kkkk"));
    memset(text, '{', 2000);
    ck_assert_int_eq(port_yaml_parse(text, 2000, "x", &group, 1, NULL), BASE_ECONFIG);
    memset(text, '[', 2000);
    ck_assert_int_eq(port_yaml_parse(text, 2000, "x", &group, 1, NULL), BASE_ECONFIG);
    char list[200] = "tiers.nvme.paths: [0";
    for (int i = 1; i < 17; i++) {
        sprintf(list + strlen(list), ",%d", i);
    }
    strcat(list, "]");
    err.code = 0;
    ck_assert_int_eq(port_yaml_parse(list, strlen(list), "x", &group, 1, &err), BASE_ECONFIG);
    ck_assert_str_eq(err.text, "x:1:58: tiers.nvme.paths: more than 16 texts in the list");
}
END_TEST

static void random_text(struct base_rng *rng, char *to)
{
    static const char letters[] = "aB9 #:\"\\'{}[],-%&*!|>@`~?\xc3\xa9";
    size_t length = base_rng_below(rng, 30);
    for (size_t i = 0; i < length; i++) {
        to[i] = letters[base_rng_below(rng, 25)];
    }
    to[length] = '\0';
}

START_TEST(what_is_printed_reads_back)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    memset(&sample, 0, sizeof sample);
    sample.capacity = (1u << 20) + (base_rng_u64(&rng) >> base_rng_below(&rng, 40));
    sample.pin = (int)base_rng_below(&rng, 3);
    sample.depth = 1 + base_rng_below(&rng, 4096);
    sample.latency = base_rng_u64(&rng) >> base_rng_below(&rng, 64);
    sample.share = base_rng_unit(&rng);
    sample.offset = (int64_t)base_rng_u64(&rng);
    sample.rate = base_rng_normal(&rng) * 1e10;
    sample.quick = base_rng_below(&rng, 2);
    random_text(&rng, sample.name);
    sample.paths.count = (unsigned)base_rng_below(&rng, 5);
    for (unsigned i = 0; i < sample.paths.count; i++) {
        random_text(&rng, sample.paths.text[i]);
    }
    struct sample before = sample;
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);
    base_option_print_yaml(to, &group, 1, _i % 2 == 0);
    fclose(to);
    memset(&sample, 0, sizeof sample);
    parse(text);
    ck_assert_uint_eq(sample.capacity, before.capacity);
    ck_assert_int_eq(sample.pin, before.pin);
    ck_assert_uint_eq(sample.depth, before.depth);
    ck_assert_uint_eq(sample.latency, before.latency);
    ck_assert_int_eq(sample.offset, before.offset);
    ck_assert_int_eq(sample.quick, before.quick);
    ck_assert_msg(sample.share == before.share && sample.rate == before.rate, "seed %d:\n%s", _i,
                  text);
    ck_assert_str_eq(sample.name, before.name);
    ck_assert_uint_eq(sample.paths.count, before.paths.count);
    for (unsigned i = 0; i < sample.paths.count; i++) {
        ck_assert_str_eq(sample.paths.text[i], before.paths.text[i]);
    }
    free(text);
}
END_TEST

START_TEST(files)
{
    char path[] = "/tmp/check_yaml_XXXXXX";
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, "io.depth: 7\n", 12), 12);
    close(fd);
    ck_assert_int_eq(port_yaml_load(path, &group, 1, NULL), 0);
    ck_assert_uint_eq(sample.depth, 7);
    ck_assert_int_eq(truncate(path, 2 << 20), 0);
    ck_assert_int_eq(port_yaml_load(path, &group, 1, NULL), -EFBIG);
    unlink(path);
    struct base_err err = { 0 };
    ck_assert_int_eq(port_yaml_load("/no/such.yaml", &group, 1, &err), -ENOENT);
    ck_assert_str_eq(err.text, "/no/such.yaml: No such file or directory");
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("yaml");
    tcase_add_checked_fixture(tcase, setup, NULL);
    tcase_add_test(tcase, nested_maps_become_dotted_keys);
    tcase_add_test(tcase, nothing_changes_nothing);
    tcase_add_test(tcase, lists_replace_the_default);
    tcase_add_test(tcase, wrong_files_say_where);
    tcase_add_test(tcase, giants_are_refused);
    tcase_add_loop_test(tcase, what_is_printed_reads_back, 0, 200);
    tcase_add_test(tcase, files);
    Suite *suite = suite_create("port/yaml");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
