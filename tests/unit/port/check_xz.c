/* .xz streams unpack in pieces of any size; damaged and cut ones are refused. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/rng.h"
#include "port/xz.h"

/* "one\n" a thousand times, packed; then "two\n". */
static const unsigned char first[96] = {
    0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00,
    0x21, 0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0xe0, 0x0f, 0x9f, 0x00,
    0x1e, 0x5d, 0x00, 0x37, 0x9b, 0x88, 0xcc, 0xff, 0xcd, 0x2d, 0xac, 0x21, 0xe2, 0x84,
    0x80, 0x17, 0x9c, 0x8a, 0x9d, 0xe6, 0xb0, 0x29, 0x33, 0xb7, 0x68, 0xd6, 0x16, 0xb5,
    0x6b, 0x46, 0x82, 0xb0, 0x00, 0x00, 0x00, 0x00, 0xf4, 0x48, 0x06, 0xb0, 0x54, 0xb6,
    0x88, 0x3a, 0x00, 0x01, 0x3a, 0xa0, 0x1f, 0x00, 0x00, 0x00, 0x49, 0x28, 0xe9, 0x1e,
    0xb1, 0xc4, 0x67, 0xfb, 0x02, 0x00, 0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
};
static const unsigned char second[60] = {
    0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00,
    0x21, 0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x03, 0x74,
    0x77, 0x6f, 0x0a, 0x00, 0x65, 0x06, 0xd6, 0xff, 0xc4, 0xc0, 0xf9, 0x3a, 0x00, 0x01,
    0x1c, 0x04, 0x6f, 0x2c, 0x9c, 0xc1, 0x1f, 0xb6, 0xf3, 0x7d, 0x01, 0x00, 0x00, 0x00,
    0x00, 0x04, 0x59, 0x5a,
};

enum { TEXT = 4004, PACKED = sizeof first + sizeof second };

static unsigned char packed[PACKED];
static char text[TEXT + 10];

static void setup(void)
{
    memcpy(packed, first, sizeof first);
    memcpy(packed + sizeof first, second, sizeof second);
}

/* Feeds pieces as `rng` decides (all at once when NULL); the result, with *size bytes in `text`. */
static int unpack(size_t packed_size, struct base_rng *rng, size_t *size)
{
    struct port_xz *xz;
    ck_assert_int_eq(port_xz_create(&xz, 100u << 20), 0);
    size_t in_at = 0, out_at = 0;
    int rc = 0;
    while (rc == 0) {
        size_t in = packed_size - in_at, out = sizeof text - out_at;
        if (rng) in = base_rng_below(rng, in + 1);
        if (rng) out = base_rng_below(rng, out + 1);
        struct port_xz_io io = { packed + in_at, in, in_at + in == packed_size, text + out_at,
                                 out };
        rc = port_xz_unpack(xz, &io);
        in_at += in - io.in_size;
        out_at += out - io.out_size;
        ck_assert_ptr_eq(io.in, packed + in_at);
        ck_assert_ptr_eq(io.out, text + out_at);
        if (!rng && rc == 0) break;
    }
    port_xz_destroy(xz);
    *size = out_at;
    return rc;
}

START_TEST(pieces_of_any_size)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    size_t size;
    ck_assert_int_eq(unpack(PACKED, _i ? &rng : NULL, &size), 1);
    ck_assert_uint_eq(size, TEXT);
    for (size_t i = 0; i < TEXT; i++) {
        ck_assert_msg(text[i] == (i < 4000 ? "one\n" : "two\n")[i % 4], "seed %d byte %zu", _i, i);
    }
}
END_TEST

START_TEST(cut_streams_are_torn)
{
    size_t size;
    for (size_t cut = 1; cut < PACKED; cut++) {
        int rc = unpack(cut, NULL, &size);
        ck_assert_msg(rc == (cut == sizeof first ? 1 : BASE_ETORN), "cut at %zu: %d", cut, rc);
    }
}
END_TEST

START_TEST(flipped_bits_are_refused)
{
    size_t size;
    for (size_t at = 0; at < sizeof first; at++) {
        packed[at] ^= 0x10;
        int rc = unpack(PACKED, NULL, &size);
        ck_assert_msg(rc < 0 || (rc == 1 && size == TEXT), "byte %zu: %d", at, rc);
        packed[at] ^= 0x10;
    }
}
END_TEST

START_TEST(beginnings)
{
    ck_assert(port_xz_begins(packed, 6));
    ck_assert(!port_xz_begins(packed, 5));
    ck_assert(!port_xz_begins("{\"a\":1}", 7));
    struct port_xz *xz;
    ck_assert_int_eq(port_xz_create(&xz, 1), 0);
    struct port_xz_io io = { packed, PACKED, true, text, sizeof text };
    ck_assert_int_eq(port_xz_unpack(xz, &io), -ENOMEM);
    port_xz_destroy(xz);
    port_xz_destroy(NULL);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("xz");
    tcase_add_checked_fixture(tcase, setup, NULL);
    tcase_add_loop_test(tcase, pieces_of_any_size, 0, 30);
    tcase_add_test(tcase, cut_streams_are_torn);
    tcase_add_test(tcase, flipped_bits_are_refused);
    tcase_add_test(tcase, beginnings);
    Suite *suite = suite_create("port/xz");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
