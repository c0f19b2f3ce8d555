/* Checksums are XXH3's published values, and pieces give the same as the whole. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "port/hash.h"

enum { SIZE = 5000 };

START_TEST(known_values)
{
    /* From the library's own documentation of XXH3 with seed 0. */
    ck_assert_uint_eq(port_hash64("", 0), 0x2d06800538d394c2u);
    ck_assert_uint_eq(port_hash64(NULL, 0), 0x2d06800538d394c2u);
}
END_TEST

START_TEST(pieces_equal_the_whole)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    static unsigned char bytes[SIZE];
    for (size_t i = 0; i < SIZE; i++) {
        bytes[i] = (unsigned char)base_rng_u64(&rng);
    }
    size_t size = base_rng_below(&rng, SIZE + 1), at = 0;
    struct port_hash hash;
    port_hash_begin(&hash);
    port_hash_add(&hash, NULL, 0);
    while (at < size) {
        size_t piece = 1 + base_rng_below(&rng, size - at);
        port_hash_add(&hash, bytes + at, piece);
        at += piece;
    }
    uint64_t whole = port_hash64(bytes, size);
    ck_assert_msg(port_hash_end(&hash) == whole, "seed %d", _i);
    ck_assert_uint_eq(port_hash_end(&hash), whole);     /* reading it changes nothing */
    if (size == 0) return;
    bytes[base_rng_below(&rng, size)] ^= (unsigned char)(1u << base_rng_below(&rng, 8));
    ck_assert_msg(port_hash64(bytes, size) != whole, "seed %d: a flipped bit is not seen", _i);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("hash");
    tcase_add_test(tcase, known_values);
    tcase_add_loop_test(tcase, pieces_equal_the_whole, 0, 100);
    Suite *suite = suite_create("port/hash");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
