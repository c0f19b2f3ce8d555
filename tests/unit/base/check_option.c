/* Option tables: defaults, limits, sentences for wrong values, and values that print and read
 * back. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/option.h"
#include "base/rng.h"

enum colour { RED, GREEN, BLUE };

#define PAINT_OPTIONS(O)                                                                           \
    O(wet, BOOL, "paint.wet", "true", "", "", "whether it is wet")                                 \
    O(coats, UINT, "paint.coats", "2", "1..8", "coats", "how often")                               \
    O(warmth, INT, "room.warmth", "-5", "-40..40", "degrees", "how warm")                          \
    O(gloss, REAL, "paint.gloss", "0.5", "0..1.5", "", "how shiny")                                \
    O(bucket, BYTES, "paint.bucket", "16GiB", "1MiB..1TiB", "bytes", "how much")                   \
    O(drying, TIME, "paint.drying", "250us", "..2min", "", "how long")                             \
    O(cover, SHARE, "paint.cover", "25%", "", "", "how much of the wall")                          \
    O(colour, ENUM, "paint.colour", "green", "red|green|blue", "", "which")                        \
    O(name, TEXTLINE, "room.name", "", "", "", "whose")                                            \
    O(walls, LIST, "room.walls", "north,south", "", "", "which walls")
struct paint {
    BASE_OPTION_STRUCT(PAINT_OPTIONS)
};
#define BASE_OPTION_OWNER struct paint
static const struct base_option paint_table[] = { PAINT_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER

#define TOOL_OPTIONS(O) O(brush, UINT, "paint.brush.size", "3", "1..", "", "which brush")
struct tool {
    BASE_OPTION_STRUCT(TOOL_OPTIONS)
};
#define BASE_OPTION_OWNER struct tool
static const struct base_option tool_table[] = { TOOL_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct paint paint;
static struct tool tool;
static const struct base_option_group groups[] = {
    { "paint", paint_table, COUNT(paint_table), &paint },
    { "tool", tool_table, COUNT(tool_table), &tool },
};

static void setup(void)
{
    memset(&paint, 0xee, sizeof paint);
    memset(&tool, 0xee, sizeof tool);
    base_option_defaults(groups, COUNT(groups));
}

START_TEST(defaults)
{
    ck_assert(paint.wet);
    ck_assert_uint_eq(paint.coats, 2);
    ck_assert_int_eq(paint.warmth, -5);
    ck_assert_double_eq(paint.gloss, 0.5);
    ck_assert_uint_eq(paint.bucket, 17179869184);
    ck_assert_uint_eq(paint.drying, 250000);
    ck_assert_double_eq(paint.cover, 0.25);
    ck_assert_int_eq(paint.colour, GREEN);
    ck_assert_str_eq(paint.name, "");
    ck_assert_uint_eq(paint.walls.count, 2);
    ck_assert_str_eq(paint.walls.text[1], "south");
    ck_assert_uint_eq(tool.brush, 3);
}
END_TEST

START_TEST(wrong_pairs_get_a_sentence)
{
    static const struct {
        const char *pair, *sentence;
    } cases[] = {
        { "paint.coats=9", "--set: paint.coats: \"9\" is outside 1..8 coats" },
        { "paint.coats=0", "--set: paint.coats: \"0\" is outside 1..8 coats" },
        { "paint.coats=-1", "--set: paint.coats: \"-1\" is not a whole number such as 16" },
        { "room.warmth=-41", "--set: room.warmth: \"-41\" is outside -40..40 degrees" },
        { "paint.gloss=1.6", "--set: paint.gloss: \"1.6\" is outside 0..1.5" },
        { "paint.gloss=nan", "--set: paint.gloss: \"nan\" is not a number such as 0.5" },
        { "paint.bucket=16G", "--set: paint.bucket: \"16G\" is ambiguous: write 16GiB or 16GB" },
        { "paint.bucket=5k", "--set: paint.bucket: \"5k\" is ambiguous: write 5KiB or 5KB" },
        { "paint.bucket=2TiB", "--set: paint.bucket: \"2TiB\" is outside 1MiB..1TiB bytes" },
        { "paint.drying=3min", "--set: paint.drying: \"3min\" is outside ..2min" },
        { "paint.drying=30", "--set: paint.drying: \"30\" is not a time with its unit such as "
                             "250us, 10ms or 1.5s" },
        { "paint.cover=120%", "--set: paint.cover: \"120%\" is outside 0%..100%" },
        { "paint.colour=gree", "--set: paint.colour: \"gree\" is not one of red|green|blue" },
        { "paint.colour=red|green",
          "--set: paint.colour: \"red|green\" is not one of red|green|blue" },
        { "paint.wet=maybe", "--set: paint.wet: \"maybe\" is not true or false" },
        { "paint.caots=1",
          "--set: paint.caots: unknown key; the nearest known one is paint.coats" },
        { "warmth=1", "--set: warmth: unknown key; the nearest known one is room.warmth" },
        { "garden=1", "--set: garden: unknown key; --options lists the known ones" },
        { "paint=1", "--set: paint: is a section with keys under it, not a value" },
        { "paint.coats", "--set: \"paint.coats\" is not key=value" },
        { "=1", "--set: \"=1\" is not key=value" },
        { "room.name=a\tb", "--set: room.name: byte 2 of the text is a control character" },
        { "room.walls=1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17",
          "--set: room.walls: more than 16 texts in the list" },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct base_err err = { 0 };
        ck_assert_msg(base_option_set_pair(groups, COUNT(groups), cases[i].pair, &err) == -EINVAL,
                      "%s", cases[i].pair);
        ck_assert_str_eq(err.text, cases[i].sentence);
        ck_assert_int_eq(err.code, -EINVAL);
    }
    ck_assert_uint_eq(paint.coats, 2);
    ck_assert_uint_eq(paint.bucket, 17179869184);
}
END_TEST

START_TEST(sources_are_named)
{
    struct base_option_source source = { "x.yaml", 12, 7 };
    struct base_err err = { 0 };
    ck_assert_int_eq(base_option_set(groups, 2, "paint.coats", "many", &source, true, &err),
                     -EINVAL);
    ck_assert_str_eq(err.text,
                     "x.yaml:12:7: paint.coats: \"many\" is not a whole number such as 16");
    err.code = 0;
    source = (struct base_option_source){ "EXPERTIER_COATS", 0, 0 };
    ck_assert_int_eq(base_option_set(groups, 2, "paint.coats", "9", &source, true, &err), -EINVAL);
    ck_assert_str_eq(err.text, "EXPERTIER_COATS: paint.coats: \"9\" is outside 1..8 coats");
    ck_assert_int_eq(base_option_set(groups, 2, "paint.coats", "9", NULL, true, NULL), -EINVAL);
}
END_TEST

START_TEST(giant_texts_are_refused_not_cut)
{
    char pair[2000];
    struct base_err err = { 0 };
    strcpy(pair, "room.name=");
    memset(pair + 10, 'x', 256);
    pair[266] = '\0';
    ck_assert_int_eq(base_option_set_pair(groups, 2, pair, &err), -EINVAL);
    ck_assert_str_eq(err.text,
                     "--set: room.name: the text is 256 bytes long; at most 255 are kept");
    pair[265] = '\0';
    ck_assert_int_eq(base_option_set_pair(groups, 2, pair, NULL), 0);
    memset(pair, 'k', 300);
    strcpy(pair + 300, "=1");
    ck_assert_int_eq(base_option_set_pair(groups, 2, pair, NULL), -EINVAL);
    ck_assert_int_eq(base_option_set(groups, 2, pair, "1", NULL, true, NULL), -EINVAL);
}
END_TEST

START_TEST(lists_begin_and_append)
{
    ck_assert_int_eq(base_option_set(groups, 2, "room.walls", "east", NULL, true, NULL), 0);
    ck_assert_int_eq(base_option_set(groups, 2, "room.walls", "west", NULL, false, NULL), 0);
    ck_assert_uint_eq(paint.walls.count, 2);
    ck_assert_str_eq(paint.walls.text[0], "east");
    ck_assert_str_eq(paint.walls.text[1], "west");
    ck_assert_int_eq(base_option_set_pair(groups, 2, "room.walls=", NULL), 0);
    ck_assert_uint_eq(paint.walls.count, 0);
    ck_assert_int_eq(base_option_set_pair(groups, 2, "room.walls=a,b,c", NULL), 0);
    ck_assert_uint_eq(paint.walls.count, 3);
    ck_assert_int_eq(base_option_clear_list(groups, 2, "room.walls"), 0);
    ck_assert_uint_eq(paint.walls.count, 0);
    ck_assert_int_eq(base_option_clear_list(groups, 2, "room.name"), -EINVAL);
    ck_assert_int_eq(base_option_clear_list(groups, 2, "room.nome"), -ENOENT);
}
END_TEST

/* Random values of every type, all within their limits. */
static void randomize(struct base_rng *rng)
{
    static const char letters[] = "abc 019#:\"\\'{}[],-%\xc3\xa9";
    paint.wet = base_rng_below(rng, 2);
    paint.coats = 1 + base_rng_below(rng, 8);
    paint.warmth = (int64_t)base_rng_below(rng, 81) - 40;
    paint.gloss = base_rng_unit(rng) * 1.5;
    paint.bucket = (1u << 20) + base_rng_below(rng, 1ull << 30 << base_rng_below(rng, 9));
    if (base_rng_below(rng, 2)) paint.bucket &= ~0xfffffull;
    paint.drying = base_rng_below(rng, 120000) * (base_rng_below(rng, 2) ? 1000000 : 1);
    paint.cover = base_rng_below(rng, 2) ? (double)base_rng_below(rng, 101) / 100.0
                                         : base_rng_unit(rng);
    paint.colour = (int)base_rng_below(rng, 3);
    size_t length = base_rng_below(rng, 20);
    for (size_t i = 0; i < length; i++) {
        paint.name[i] = letters[base_rng_below(rng, 19)];
    }
    paint.name[length] = '\0';
    tool.brush = 1 + base_rng_u64(rng) / 2;
}

START_TEST(what_get_writes_set_reads)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    randomize(&rng);
    struct paint before = paint;
    struct tool tool_before = tool;
    static char text[COUNT(paint_table)][300];
    for (size_t i = 0; i < COUNT(paint_table); i++) {
        ck_assert_int_ge(base_option_get(groups, 2, paint_table[i].key, text[i], 300), 0);
    }
    char brush[32];
    ck_assert_int_gt(base_option_get(groups, 2, "paint.brush.size", brush, sizeof brush), 0);
    base_option_defaults(groups, 2);
    for (size_t i = 0; i < COUNT(paint_table); i++) {
        char pair[500];
        struct base_err err = { 0 };
        snprintf(pair, sizeof pair, "%s=%.299s", paint_table[i].key, text[i]);
        ck_assert_msg(base_option_set_pair(groups, 2, pair, &err) == 0, "seed %d: %s", _i,
                      err.text);
    }
    ck_assert_int_eq(base_option_set(groups, 2, "paint.brush.size", brush, NULL, true, NULL), 0);
    ck_assert_uint_eq(tool.brush, tool_before.brush);
    ck_assert_uint_eq(paint.coats, before.coats);
    ck_assert_int_eq(paint.warmth, before.warmth);
    ck_assert_uint_eq(paint.bucket, before.bucket);
    ck_assert_uint_eq(paint.drying, before.drying);
    ck_assert_int_eq(paint.wet, before.wet);
    ck_assert_int_eq(paint.colour, before.colour);
    ck_assert_str_eq(paint.name, before.name);
    ck_assert_msg(paint.gloss == before.gloss && paint.cover == before.cover, "seed %d", _i);
    ck_assert_int_eq(base_option_get(groups, 2, "room.nome", brush, sizeof brush), -ENOENT);
    ck_assert_int_eq(base_option_get(groups, 2, "room.walls", brush, 3), -ENAMETOOLONG);
}
END_TEST

START_TEST(yaml_has_each_section_once)
{
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);
    strcpy(paint.name, "Eve's \"own\" \\ room");
    base_option_print_yaml(to, groups, 2, false);
    fclose(to);
    ck_assert_str_eq(text, "paint:\n"
                           "  wet: true\n"
                           "  coats: 2\n"
                           "  gloss: 0.5\n"
                           "  bucket: 16GiB\n"
                           "  drying: 250us\n"
                           "  cover: 25%\n"
                           "  colour: green\n"
                           "  brush:\n"
                           "    size: 3\n"
                           "room:\n"
                           "  warmth: -5\n"
                           "  name: \"Eve's \\\"own\\\" \\\\ room\"\n"
                           "  walls: [\"north\", \"south\"]\n");
    free(text);
    to = open_memstream(&text, &size);
    base_option_print_yaml(to, groups + 1, 1, true);
    base_option_print_reference(to, groups, 2);
    fclose(to);
    ck_assert_ptr_eq(strstr(text, "paint:\n  brush:\n    # which brush\n    size: 3\n"), text);
    ck_assert_ptr_nonnull(
        strstr(text, "| `paint.colour` | enum | green | red \\| green \\| blue |  | which |\n"));
    free(text);
}
END_TEST

START_TEST(keys_and_sections_are_known)
{
    ck_assert_ptr_eq(base_option_find(groups, 2, "paint.coats"), &paint_table[1]);
    ck_assert_ptr_null(base_option_find(groups, 2, "paint"));
    ck_assert(base_option_is_section(groups, 2, "paint"));
    ck_assert(base_option_is_section(groups, 2, "paint.brush"));
    ck_assert(!base_option_is_section(groups, 2, "pain"));
    ck_assert(!base_option_is_section(groups, 2, "paint.coats"));
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("option");
    tcase_add_checked_fixture(tcase, setup, NULL);
    tcase_add_test(tcase, defaults);
    tcase_add_test(tcase, wrong_pairs_get_a_sentence);
    tcase_add_test(tcase, sources_are_named);
    tcase_add_test(tcase, giant_texts_are_refused_not_cut);
    tcase_add_test(tcase, lists_begin_and_append);
    tcase_add_loop_test(tcase, what_get_writes_set_reads, 0, 200);
    tcase_add_test(tcase, yaml_has_each_section_once);
    tcase_add_test(tcase, keys_and_sections_are_known);
    Suite *suite = suite_create("base/option");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
