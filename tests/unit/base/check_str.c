/* Sizes, times, shares and numbers are read exactly or refused; what is printed fits and is
 * true. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/str.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

START_TEST(sizes)
{
    static const struct {
        const char *text;
        int rc;
        uint64_t bytes;
    } cases[] = {
        { "0", 0, 0 },
        { "4096", 0, 4096 },
        { "812B", 0, 812 },
        { "16KiB", 0, 16384 },
        { "16 KiB", 0, 16384 },
        { "1.5GiB", 0, 1610612736 },
        { "16GiB", 0, 17179869184 },
        { "2GB", 0, 2000000000 },
        { "2kB", 0, 2000 },
        { "0.1MB", 0, 100000 },
        { "16383PiB", 0, 16383ull << 50 },
        { "18446744073709551615", 0, UINT64_MAX },
        { "18446744073709551616", -ERANGE, 0 },
        { "16384PiB", -ERANGE, 0 },
        { "99999999999999999999GiB", -ERANGE, 0 },
        { "16G", -EINVAL, 0 },
        { "16g", -EINVAL, 0 },
        { "16gib", -EINVAL, 0 },
        { "1.5", -EINVAL, 0 },
        { "1.5B", -EINVAL, 0 },
        { "1.GiB", -EINVAL, 0 },
        { ".5GiB", -EINVAL, 0 },
        { "-1", -EINVAL, 0 },
        { "+1", -EINVAL, 0 },
        { " 1", -EINVAL, 0 },
        { "1 ", -EINVAL, 0 },
        { "", -EINVAL, 0 },
        { "GiB", -EINVAL, 0 },
        { "0x10", -EINVAL, 0 },
        { "1e3", -EINVAL, 0 },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        uint64_t bytes = 7;
        ck_assert_msg(base_str_bytes_parse(cases[i].text, &bytes) == cases[i].rc, "%s",
                      cases[i].text);
        ck_assert_msg(bytes == (cases[i].rc ? 7 : cases[i].bytes), "%s", cases[i].text);
    }
}
END_TEST

START_TEST(times)
{
    static const struct {
        const char *text;
        int rc;
        uint64_t ns;
    } cases[] = {
        { "0", 0, 0 },           { "250us", 0, 250000 },       { "250\xc2\xb5s", 0, 250000 },
        { "10ms", 0, 10000000 }, { "1.5s", 0, 1500000000 },    { "2min", 0, 120000000000 },
        { "1h", 0, 3600000000000 }, { "0.5ns", 0, 0 },         { "10", -EINVAL, 0 },
        { "10m", -EINVAL, 0 },   { "ms", -EINVAL, 0 },         { "-1s", -EINVAL, 0 },
        { "1s2", -EINVAL, 0 },   { "99999999999h", -ERANGE, 0 }, { "", -EINVAL, 0 },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        uint64_t ns = 7;
        ck_assert_msg(base_str_duration_parse(cases[i].text, &ns) == cases[i].rc, "%s",
                      cases[i].text);
        ck_assert_msg(ns == (cases[i].rc ? 7 : cases[i].ns), "%s", cases[i].text);
    }
}
END_TEST

START_TEST(shares)
{
    static const struct {
        const char *text;
        int rc;
        double share;
    } cases[] = {
        { "25%", 0, 0.25 }, { "25 %", 0, 0.25 },     { "0.25", 0, 0.25 },   { "0", 0, 0.0 },
        { "100%", 0, 1.0 }, { "1", 0, 1.0 },         { "2.5%", 0, 0.025 },  { "101%", -ERANGE, 0 },
        { "2", -ERANGE, 0 }, { "-1%", -ERANGE, 0 },  { "%", -EINVAL, 0 },   { "", -EINVAL, 0 },
        { "nan", -EINVAL, 0 }, { "inf%", -EINVAL, 0 }, { "a lot", -EINVAL, 0 },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        double share = 7;
        ck_assert_msg(base_str_share_parse(cases[i].text, &share) == cases[i].rc, "%s",
                      cases[i].text);
        ck_assert_msg(share == (cases[i].rc ? 7 : cases[i].share), "%s", cases[i].text);
    }
}
END_TEST

START_TEST(numbers)
{
    uint64_t u;
    int64_t i;
    double d;
    ck_assert_int_eq(base_str_u64_parse("18446744073709551615", &u), 0);
    ck_assert_uint_eq(u, UINT64_MAX);
    ck_assert_int_eq(base_str_u64_parse("18446744073709551616", &u), -ERANGE);
    ck_assert_int_eq(base_str_u64_parse("-1", &u), -EINVAL);
    ck_assert_int_eq(base_str_u64_parse("1x", &u), -EINVAL);
    ck_assert_int_eq(base_str_u64_parse("99999999999999999999999x", &u), -EINVAL);
    ck_assert_int_eq(base_str_i64_parse("-9223372036854775808", &i), 0);
    ck_assert_int_eq(i, INT64_MIN);
    ck_assert_int_eq(base_str_i64_parse("-9223372036854775809", &i), -ERANGE);
    ck_assert_int_eq(base_str_i64_parse("9223372036854775808", &i), -ERANGE);
    ck_assert_int_eq(base_str_i64_parse("--1", &i), -EINVAL);
    ck_assert_int_eq(base_str_double_parse("-1.5e3", &d), 0);
    ck_assert_double_eq(d, -1500.0);
    static const char *const bad[] = { "", "nan", "inf", "0x1p3", " 1", "1 ", "1e", "-", "1.2.3" };
    for (size_t k = 0; k < COUNT(bad); k++) {
        ck_assert_msg(base_str_double_parse(bad[k], &d) == -EINVAL, "\"%s\"", bad[k]);
    }
    ck_assert_int_eq(base_str_double_parse("1e999", &d), -ERANGE);
}
END_TEST

START_TEST(printed_sizes_are_near_and_short)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    for (int round = 0; round < 2000; round++) {
        uint64_t value = base_rng_u64(&rng) >> base_rng_below(&rng, 64), again;
        char text[16];
        base_str_bytes(text, sizeof text, value);
        ck_assert_uint_lt(strlen(text), sizeof text - 1);
        if (strstr(text, "EiB")) continue;          /* the parser ends at PiB */
        ck_assert_msg(base_str_bytes_parse(text, &again) == 0, "seed %d: %s", _i, text);
        double off = (double)again - (double)value;
        ck_assert_msg(off <= 0.006 * (double)value && off >= -0.006 * (double)value,
                      "seed %d: %llu printed as %s", _i, (unsigned long long)value, text);
        base_str_duration(text, sizeof text, value);
        ck_assert_uint_lt(strlen(text), sizeof text - 1);
    }
    char text[16];
    ck_assert_str_eq(base_str_bytes(text, sizeof text, 1536ull << 20), "1.50 GiB");
    ck_assert_str_eq(base_str_bytes(text, sizeof text, 17408), "17 KiB");
    ck_assert_str_eq(base_str_bytes(text, sizeof text, (1ull << 20) - 1), "1.00 MiB");
    ck_assert_str_eq(base_str_duration(text, sizeof text, 812), "812 ns");
    ck_assert_str_eq(base_str_duration(text, sizeof text, 1500000), "1.50 ms");
    ck_assert_str_eq(base_str_duration(text, sizeof text, 2000000000), "2.00 s");
}
END_TEST

START_TEST(format_says_when_it_would_cut)
{
    char to[4];
    ck_assert_int_eq(base_str_format(to, sizeof to, "%d", 123), 3);
    ck_assert_str_eq(to, "123");
    ck_assert_int_eq(base_str_format(to, sizeof to, "%d", 1234), -ENAMETOOLONG);
}
END_TEST

START_TEST(nearest_is_a_slip_away)
{
    static const char *const words[] = { "policy.eviction", "tiers.dram.capacity", "io.depth" };
    ck_assert_str_eq(base_str_nearest("policy.evicton", words, 3), "policy.eviction");
    ck_assert_str_eq(base_str_nearest("io.detph", words, 3), "io.depth");
    ck_assert_str_eq(base_str_nearest("tiers.dram.capcity", words, 3), "tiers.dram.capacity");
    ck_assert_ptr_null(base_str_nearest("server.listen", words, 3));
    ck_assert_ptr_null(base_str_nearest("", words, 3));
    static const char *const letters[] = { "x" };
    ck_assert_ptr_null(base_str_nearest("y", letters, 1));
    char giant[5000];
    memset(giant, 'a', sizeof giant - 1);
    giant[sizeof giant - 1] = '\0';
    ck_assert_ptr_null(base_str_nearest(giant, words, 3));
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("str");
    tcase_add_test(tcase, sizes);
    tcase_add_test(tcase, times);
    tcase_add_test(tcase, shares);
    tcase_add_test(tcase, numbers);
    tcase_add_loop_test(tcase, printed_sizes_are_near_and_short, 0, 5);
    tcase_add_test(tcase, format_says_when_it_would_cut);
    tcase_add_test(tcase, nearest_is_a_slip_away);
    Suite *suite = suite_create("base/str");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
