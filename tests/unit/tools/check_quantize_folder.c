/* A quantised model's folder can be stopped up to its last step, and leaves nothing then; what a
 * killed run left is taken over, what it did not leave is not touched. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/make_tiny.h"
#include "tools/pack_quantize.h"

static char model[3000], out[3100], part[3200];

static void setup(void)
{
    struct tiny_options options = tiny_defaults();
    options.fp8 = false;
    tiny_folder(model, sizeof model, "check_quantize");
    tiny_write(model, &options);
    snprintf(out, sizeof out, "%s_out", model);
    snprintf(part, sizeof part, "%s.part", out);
}

static void teardown(void)
{
    tiny_remove(model);
    tiny_remove(out);
    tiny_remove(part);
}

static int run(const struct tier_store_progress *progress, struct base_err *err)
{
    struct quantize q = { .from = model, .to = out, .dtype = KERN_INT8, .group = 32, .threads = 1,
                          .progress = progress };
    *err = (struct base_err){ 0 };
    int rc = quantize_run(&q, err);
    quantize_fini(&q);
    return rc;
}

struct watch {
    bool written; /* all weights; what follows is the index */
    int calls;    /* since then */
};

static void see(void *context, uint64_t done, uint64_t total)
{
    struct watch *watch = context;
    if (done == total) watch->written = true;
}

static int stop_after_weights(void *context)
{
    struct watch *watch = context;
    return watch->written && ++watch->calls > 1;
}

START_TEST(the_index_can_be_stopped)
{
    struct watch watch = { 0 };
    struct tier_store_progress progress = { see, stop_after_weights, &watch };
    struct base_err err;
    ck_assert_msg(run(&progress, &err) == -ECANCELED, "%s", err.text);
    ck_assert(access(out, F_OK) < 0 && access(part, F_OK) < 0);
    ck_assert_msg(run(NULL, &err) == 0, "%s", err.text);
    ck_assert(access(out, F_OK) == 0 && access(part, F_OK) < 0);
}
END_TEST

static void make_file(const char *name)
{
    char path[3300];
    mkdir(part, 0755);
    snprintf(path, sizeof path, "%s/%s", part, name);
    int fd = open(path, O_WRONLY | O_CREAT, 0644);
    ck_assert_int_ge(fd, 0);
    close(fd);
}

START_TEST(only_what_a_killed_run_left_is_taken_over)
{
    struct base_err err;
    char path[3300];
    make_file("mine.safetensors");
    ck_assert_int_eq(run(NULL, &err), -EEXIST);
    ck_assert_ptr_nonnull(strstr(err.text, "no unfinished quantize left"));
    snprintf(path, sizeof path, "%s/mine.safetensors", part);
    ck_assert_int_eq(access(path, F_OK), 0);

    make_file("quantize.unfinished");
    int fd = open(part, O_RDONLY);
    ck_assert_int_eq(flock(fd, LOCK_EX), 0);
    ck_assert_int_eq(run(NULL, &err), -EBUSY);
    ck_assert_int_eq(access(path, F_OK), 0);
    close(fd);

    ck_assert_msg(run(NULL, &err) == 0, "%s", err.text);
    ck_assert(access(part, F_OK) < 0);
    snprintf(path, sizeof path, "%s/mine.safetensors", out);
    ck_assert(access(path, F_OK) < 0);
    snprintf(path, sizeof path, "%s/quantize.unfinished", out);
    ck_assert(access(path, F_OK) < 0);
    ck_assert_int_eq(run(NULL, &err), -EEXIST);
    ck_assert_ptr_nonnull(strstr(err.text, "is there already"));
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("quantize_folder");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, the_index_can_be_stopped);
    tcase_add_test(tcase, only_what_a_killed_run_left_is_taken_over);
    Suite *suite = suite_create("tools/quantize_folder");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
