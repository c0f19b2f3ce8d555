/* JSON: values come out typed and in order; hostile text gets one sentence with its place. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "port/json.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static struct port_json *root;

static void teardown(void)
{
    port_json_free(root);
    root = NULL;
}

static void parse(const char *text)
{
    struct base_err err = { 0 };
    teardown();
    ck_assert_msg(port_json_parse(&root, text, strlen(text), "body", &err) == 0, "%s", err.text);
}

START_TEST(hostile_text_is_refused_with_its_place)
{
    static const struct {
        const char *text, *sentence;
    } cases[] = {
        { "", "body:1:0: unexpected token near end of file" },
        { "{\"a\":1,\"a\":2}", "body:1:10: duplicate object key near '\"a\"'" },
        { "{\"a\": {\"b\": 1, \"b\": 1}}", "body:1:18: duplicate object key near '\"b\"'" },
        { "[1,]", "body:1:4: unexpected token near ']'" },
        { "{\"a\":1,}", "body:1:8: string or '}' expected near '}'" },
        { "NaN", "body:1:3: invalid token near 'NaN'" },
        { "[Infinity]", "body:1:9: invalid token near 'Infinity'" },
        { "[1e999]", "body:1:6: real number overflow near '1e999'" },
        { "[123456789012345678901234567890]", "body:1:31: too big integer" },
        { "[01]", "body:1:2: invalid token near '0'" },
        { "[+1]", "body:1:2: invalid token near '+'" },
        { "{} {}", "body:1:4: end of file expected near '{'" },
        { "{}\n\nx", "body:3:1: end of file expected near 'x'" },
        { "\"\xff\"", "body:1:1: unable to decode byte 0xff near '\"'" },
        { "\"\xc0\xaf\"", "body:1:1: unable to decode byte 0xc0 near '\"'" },
        { "\"\xed\xa0\x80\"", "body:1:1: unable to decode byte 0xed near '\"'" },
        { "\"\\ud800\"", "body:1:8: invalid Unicode '\\uD800' near '\"\\ud800\"'" },
        { "\"\\x\"", "body:1:3: invalid escape near '\"\\x'" },
        { "\"a\nb\"", "body:1:2: unexpected newline near '\"a'" },
        { "\"open", "body:1:5: premature end of input near '\"open'" },
        { "{\"a\\u0000b\":1}", "body:1:11: NUL byte in object key not supported near "
                              "'\"a\\u0000b\"'" },
        { "{\"a\" 1}", "body:1:6: ':' expected near '1'" },
        { "{1:2}", "body:1:2: string or '}' expected near '1'" },
        { "[1 2]", "body:1:4: ']' expected near '2'" },
        { "['a']", "body:1:2: invalid token near '''" },
        { "// x\n1", "body:1:1: invalid token near '/'" },
        { "nul", "body:1:3: invalid token near 'nul'" },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct base_err err = { 0 };
        root = (struct port_json *)&err;
        ck_assert_msg(port_json_parse(&root, cases[i].text, strlen(cases[i].text), "body", &err) ==
                          BASE_EFORMAT, "%s", cases[i].text);
        ck_assert_ptr_null(root);
        ck_assert_str_eq(err.text, cases[i].sentence);
    }
    struct base_err err = { 0 };
    ck_assert_int_eq(port_json_parse(&root, "[1]\0", 4, "body", &err), BASE_EFORMAT);
}
END_TEST

START_TEST(depth_is_bounded)
{
    char text[400];
    struct base_err err = { 0 };
    memset(text, '[', 64);
    memset(text + 64, ']', 64);
    text[128] = '\0';
    parse(text);
    port_json_free(root);
    memset(text, '[', 200);
    text[3] = '\n';
    memset(text + 200, ']', 200);
    ck_assert_int_eq(port_json_parse(&root, text, sizeof text, "body", &err), BASE_EFORMAT);
    ck_assert_str_eq(err.text, "body:2:62: nested more than 64 deep");
    /* Brackets inside strings are no nesting, also after an escaped quote. */
    memset(text, '[', 300);
    memcpy(text, "[\"\\\"", 4);
    memcpy(text + 298, "\"]", 3);
    parse(text);
}
END_TEST

START_TEST(a_giant_array_of_garbage_is_refused_quickly)
{
    size_t size = 4u << 20;
    char *text = malloc(size);
    memset(text, '{', size);
    uint64_t start = base_now_ns();
    ck_assert_int_eq(port_json_parse(&root, text, size, "body", NULL), BASE_EFORMAT);
    memset(text, '"', size);
    ck_assert_int_eq(port_json_parse(&root, text, size, "body", NULL), BASE_EFORMAT);
    ck_assert_uint_lt(base_now_ns() - start, 5000000000u);
    free(text);
}
END_TEST

static int collect(void *context, const char *key, size_t key_size, const struct port_json *value)
{
    char *text = context;
    ck_assert_uint_eq(key_size, strlen(key));
    sprintf(text + strlen(text), "%s=%d;", key, (int)port_json_type(value));
    return strcmp(key, "stop") == 0 ? 42 : 0;
}

START_TEST(values_come_out)
{
    parse("{\"z\":null,\"a\":true,\"m\":-5,\"b\":2.5,\"s\":\"a\\u0000\xc3\xa9\",\"l\":[1,[]],"
          "\"o\":{}}");
    char seen[200] = "";
    ck_assert_int_eq(port_json_each(root, collect, seen), 0);
    ck_assert_str_eq(seen, "z=0;a=1;m=2;b=3;s=4;l=5;o=6;");
    ck_assert_uint_eq(port_json_count(root), 7);
    size_t size;
    const char *text = port_json_text(port_json_get(root, "s"), &size);
    ck_assert_uint_eq(size, 4);
    ck_assert_mem_eq(text, "a\0\xc3\xa9", 5);
    const struct port_json *list = port_json_get(root, "l");
    ck_assert_uint_eq(port_json_count(list), 2);
    ck_assert_int_eq(port_json_as_i64(port_json_at(list, 0)), 1);
    ck_assert_ptr_null(port_json_at(list, 2));
    ck_assert_ptr_null(port_json_at(root, 0));
    ck_assert_ptr_null(port_json_get(list, "a"));
    ck_assert_ptr_null(port_json_get(NULL, "a"));
    ck_assert_ptr_null(port_json_text(list, &size));
    ck_assert_uint_eq(size, 0);
    ck_assert_int_eq(port_json_type(port_json_get(root, "none")), PORT_JSON_NULL);
    ck_assert_double_eq(port_json_as_double(port_json_get(root, "m")), -5.0);
    ck_assert(port_json_as_bool(port_json_get(root, "a")));
    ck_assert(!port_json_as_bool(port_json_get(root, "m")));
    parse("{\"a\":1,\"stop\":2,\"b\":3}");
    seen[0] = '\0';
    ck_assert_int_eq(port_json_each(root, collect, seen), 42);
    ck_assert_str_eq(seen, "a=2;stop=2;");
}
END_TEST

START_TEST(checked_members)
{
    parse("{\"n\":7,\"r\":7.0,\"t\":\"x\",\"y\":true,\"z\":null}");
    int64_t i = 0;
    double d = 0;
    bool b = false;
    struct base_err err = { 0 };
    ck_assert_int_eq(port_json_i64(root, "n", true, 1, 8, 0, &i, "c.json", NULL), 0);
    ck_assert_int_eq(i, 7);
    ck_assert_int_eq(port_json_i64(root, "none", false, 1, 8, 5, &i, "c.json", NULL), 0);
    ck_assert_int_eq(i, 5);
    ck_assert_int_eq(port_json_i64(root, "z", false, 1, 8, 6, &i, "c.json", NULL), 0);
    ck_assert_int_eq(i, 6);
    ck_assert_int_eq(port_json_double(root, "n", true, 0, &d, "c.json", NULL), 0);
    ck_assert_double_eq(d, 7.0);
    ck_assert_int_eq(port_json_bool(root, "y", true, false, &b, "c.json", NULL), 0);
    ck_assert(b);

    ck_assert_int_eq(port_json_i64(root, "n", true, 1, 6, 0, &i, "c.json", &err), BASE_EFORMAT);
    ck_assert_str_eq(err.text, "c.json.n: 7 is outside 1..6");
    err.code = 0;
    ck_assert_int_eq(port_json_i64(root, "r", true, 1, 8, 0, &i, "c.json", &err), BASE_EFORMAT);
    ck_assert_str_eq(err.text,
                     "c.json.r: must be a whole number, not a number with a fraction or exponent");
    err.code = 0;
    ck_assert_int_eq(port_json_i64(root, "gone", true, 1, 8, 0, &i, "c.json", &err), BASE_EFORMAT);
    ck_assert_str_eq(err.text, "c.json.gone: is missing");
    err.code = 0;
    ck_assert_int_eq(port_json_double(root, "z", true, 0, &d, "c.json", &err), BASE_EFORMAT);
    ck_assert_str_eq(err.text, "c.json.z: must not be null");
    err.code = 0;
    ck_assert_int_eq(port_json_double(root, "t", false, 0, &d, "c.json", &err), BASE_EFORMAT);
    ck_assert_str_eq(err.text, "c.json.t: must be a number, not a string");
    err.code = 0;
    ck_assert_int_eq(port_json_bool(root, "n", false, false, &b, "c.json", &err), BASE_EFORMAT);
    ck_assert_str_eq(err.text, "c.json.n: must be true or false, not a whole number");
    err.code = 0;
    parse("[]");
    ck_assert_int_eq(port_json_bool(root, "n", true, false, &b, "c.json", &err), BASE_EFORMAT);
    ck_assert_str_eq(err.text, "c.json: must be an object with the key \"n\", not an array");
}
END_TEST

/* A vocabulary like DeepSeek-V3's: 128,000 keys and as many merges, about 7 MB. */
START_TEST(a_real_vocabulary_loads_in_under_a_second)
{
    struct base_buf text;
    base_buf_init(&text);
    base_buf_puts(&text, "{\"model\":{\"vocab\":{");
    for (int i = 0; i < 128000; i++) {
        base_buf_printf(&text, "%s\"token %d of a vocabulary\":%d", i ? "," : "", i, i);
    }
    base_buf_puts(&text, "},\"merges\":[");
    for (int i = 0; i < 128000; i++) {
        base_buf_printf(&text, "%s\"a%d b%d\"", i ? "," : "", i, i);
    }
    base_buf_puts(&text, "]}}");
    char path[] = "/tmp/check_json_XXXXXX";
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, text.data, text.size), (ssize_t)text.size);
    close(fd);
    base_buf_fini(&text);
    uint64_t start = base_now_ns();
    ck_assert_int_eq(port_json_load(&root, path, 64u << 20, NULL), 0);
    double seconds = (double)(base_now_ns() - start) / 1e9;
    printf("loaded in %.3f s\n", seconds);
    const struct port_json *vocab = port_json_get(port_json_get(root, "model"), "vocab");
    ck_assert_uint_eq(port_json_count(vocab), 128000);
    ck_assert_int_eq(port_json_as_i64(port_json_get(vocab, "token 77777 of a vocabulary")), 77777);
    /* Sanitizers and a busy machine are allowed ten times what it should take. */
    ck_assert_double_lt(seconds, 10.0);
    struct base_err err = { 0 };
    port_json_free(root);
    ck_assert_int_eq(port_json_load(&root, path, 1000, &err), -EFBIG);
    unlink(path);
    err.code = 0;
    ck_assert_int_eq(port_json_load(&root, path, 1000, &err), -ENOENT);
    ck_assert_ptr_null(root);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("json");
    tcase_add_checked_fixture(tcase, NULL, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, hostile_text_is_refused_with_its_place);
    tcase_add_test(tcase, depth_is_bounded);
    tcase_add_test(tcase, a_giant_array_of_garbage_is_refused_quickly);
    tcase_add_test(tcase, values_come_out);
    tcase_add_test(tcase, checked_members);
    tcase_add_test(tcase, a_real_vocabulary_loads_in_under_a_second);
    Suite *suite = suite_create("port/json");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
