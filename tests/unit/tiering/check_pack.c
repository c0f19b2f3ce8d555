/* A pack holds every expert in one whole record, survives kills, and shows every flipped bit. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "base/rng.h"
#include "port/hash.h"
#include "tests/support/make_tiny.h"
#include "tiering/store.h"
#include "tiering/store_image.h"

enum { DIRS = 3 };

static char model[3000], dirs[DIRS][3000];
static const char *dir_list[DIRS];
static struct model_shape shape;
static struct tier_store *source;

static void setup(void)
{
    struct tiny_options options = tiny_defaults();
    struct base_err err = { 0 };
    options.experts = 16;
    options.shards = 2;
    tiny_folder(model, sizeof model, "check_pack");
    tiny_write(model, &options);
    ck_assert_int_eq(model_shape_load(&shape, model, &err), 0);
    ck_assert_int_eq(tier_store_index(model, NULL, &shape, 2, NULL, &err), 0);
    ck_assert_int_eq(tier_store_open(&source, model, NULL, &shape, &err), 0);
    for (unsigned i = 0; i < DIRS; i++) {
        tiny_folder(dirs[i], sizeof dirs[i], "check_pack_to");
        dir_list[i] = dirs[i];
    }
}

static void teardown(void)
{
    tier_store_close(source);
    tiny_remove(model);
    for (unsigned i = 0; i < DIRS; i++) {
        tiny_remove(dirs[i]);
    }
}

static struct tier_pack_options to_dirs(unsigned first, unsigned count, enum tier_pack_mode mode)
{
    return (struct tier_pack_options){ .dirs = dir_list + first, .dir_count = count, .mode = mode,
                                       .threads = 2 };
}

static void repack(const struct tier_pack_options *options)
{
    struct base_err err = { 0 };
    int rc = tier_store_repack(source, options, NULL, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
}

static int open_pack(struct tier_store **pack, unsigned dir, struct base_err *err)
{
    char path[3100];
    snprintf(path, sizeof path, "%s/expertier.index", dirs[dir]);
    *err = (struct base_err){ 0 };
    return tier_store_open(pack, model, path, &shape, err);
}

static unsigned char *slot_of(const struct tier_store *store, const struct tier_record *record)
{
    unsigned char *slot = aligned_alloc(TIER_PAGE, tier_store_slot_bytes(store));
    for (uint32_t i = 0; i < record->extent_count; i++) {
        struct tier_extent_read read = tier_extent_read(&record->extents[i]);
        int fd = open(tier_store_file_path(store, record->extents[i].file), O_RDONLY);
        ck_assert_int_ge(fd, 0);
        ck_assert_int_ge(pread(fd, slot + record->extents[i].slot_offset, read.bytes,
                               (off_t)read.offset), (ssize_t)read.need);
        close(fd);
    }
    return slot;
}

static void compare_with_source(const struct tier_store *pack)
{
    for (uint32_t layer = 0; layer < tier_store_layers(source); layer++) {
        for (uint32_t expert = 0; expert < tier_store_experts(source); expert++) {
            struct tier_record from, to;
            tier_store_record(source, layer, expert, &from);
            unsigned char *wanted = slot_of(source, &from);
            for (uint32_t copy = 0; copy < tier_store_copies(pack); copy++) {
                tier_store_record_copy(pack, layer, expert, copy, &to);
                ck_assert_uint_eq(to.extent_count, 1);
                ck_assert_uint_eq(to.extents[0].offset % TIER_PAGE, 0);
                ck_assert_uint_eq(to.hash, from.hash);
                unsigned char *slot = slot_of(pack, &to);
                ck_assert_int_eq(tier_store_check(&to, slot, NULL, NULL), 0);
                for (unsigned p = 0; p < TIER_PARTS; p++) {
                    ck_assert_uint_eq(to.part_offset[p] % 64, 0);
                    ck_assert_mem_eq(slot + to.part_offset[p], wanted + from.part_offset[p],
                                     from.part_bytes[p]);
                }
                free(slot);
            }
            free(wanted);
        }
    }
}

START_TEST(every_expert_is_one_record)
{
    static const struct {
        unsigned dirs;
        enum tier_pack_mode mode;
        unsigned copies;
    } cases[] = { { 1, TIER_PACK_STRIPE, 1 }, { 2, TIER_PACK_STRIPE, 1 },
                  { 3, TIER_PACK_STRIPE, 1 }, { 2, TIER_PACK_MIRROR, 2 },
                  { 3, TIER_PACK_MIRROR, 3 } };
    struct tier_pack_options options = to_dirs(0, cases[_i].dirs, cases[_i].mode);
    struct tier_store *pack;
    struct base_err err;
    repack(&options);
    repack(&options);           /* once more: it is there already */
    ck_assert_msg(open_pack(&pack, 0, &err) == 0, "%s", err.text);
    ck_assert(tier_store_packed(pack));
    ck_assert_uint_eq(tier_store_copies(pack), cases[_i].copies);
    ck_assert_uint_eq(tier_store_files(pack), cases[_i].dirs);
    compare_with_source(pack);
    ck_assert_int_eq(tier_store_verify(pack, NULL, NULL, NULL, &err), 0);

    /* Another layout in the same folder is refused, and goes ahead when told to. */
    struct tier_pack_options other = to_dirs(0, 1, TIER_PACK_STRIPE);
    if (cases[_i].dirs > 1) {
        ck_assert_int_eq(tier_store_repack(source, &other, NULL, &err), -EEXIST);
        ck_assert_ptr_nonnull(strstr(err.text, "--restart"));
        other.restart = true;
        repack(&other);
    }
    tier_store_close(pack);
}
END_TEST

static void flip(const char *path, uint64_t bit)
{
    unsigned char byte;
    int fd = open(path, O_RDWR);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pread(fd, &byte, 1, (off_t)(bit / 8)), 1);
    byte ^= (unsigned char)(1u << bit % 8);
    ck_assert_int_eq(pwrite(fd, &byte, 1, (off_t)(bit / 8)), 1);
    close(fd);
}

/* Anywhere in the pack files: records, padding and first page. */
START_TEST(every_flipped_bit_is_caught)
{
    struct tier_pack_options options = to_dirs(0, 2, _i ? TIER_PACK_MIRROR : TIER_PACK_STRIPE);
    struct tier_store *pack, *again;
    struct base_err err;
    struct base_rng rng;
    repack(&options);
    base_rng_init(&rng, (uint64_t)_i);
    ck_assert_int_eq(open_pack(&pack, 0, &err), 0);
    unsigned in_header = 0, caught = 0;
    for (unsigned round = 0; round < 500; round++) {
        struct stat st;
        const char *path = tier_store_file_path(pack, (uint32_t)base_rng_below(&rng, 2));
        ck_assert_int_eq(stat(path, &st), 0);
        uint64_t bit = base_rng_below(&rng, (uint64_t)st.st_size * 8);
        flip(path, bit);
        if (bit < 8 * TIER_PAGE) {
            in_header++;
            ck_assert_int_eq(open_pack(&again, 0, &err), BASE_ESTALE);
        } else {
            ck_assert_int_eq(tier_store_verify(pack, NULL, NULL, NULL, &err), 1);
        }
        caught++;
        flip(path, bit);
    }
    ck_assert_uint_gt(in_header, 0);
    printf("500 bits flipped one by one in a %s of two folders (seed %d): %u caught, %u of them "
           "in a file's first page\n", _i ? "mirror" : "stripe", _i, caught, in_header);
    ck_assert_int_eq(tier_store_verify(pack, NULL, NULL, NULL, &err), 0);
    tier_store_close(pack);
}
END_TEST

static bool same_files(unsigned a, unsigned b)
{
    char command[13000];
    snprintf(command, sizeof command,
             "cmp -s '%s/experts.pack' '%s/experts.pack' && "
             "cmp -s '%s/expertier.index' '%s/expertier.index'",
             dirs[a], dirs[b], dirs[a], dirs[b]);
    return system(command) == 0;
}

static unsigned files_in(unsigned dir)
{
    char command[3100];
    unsigned count = 99;
    snprintf(command, sizeof command, "ls -A '%s' | wc -l", dirs[dir]);
    FILE *pipe = popen(command, "r");
    ck_assert_int_eq(fscanf(pipe, "%u", &count), 1);
    pclose(pipe);
    return count;
}

START_TEST(killed_at_any_moment_it_goes_on)
{
    struct tier_pack_options whole = to_dirs(0, 1, TIER_PACK_STRIPE);
    struct tier_pack_options killed = to_dirs(1, 1, TIER_PACK_STRIPE);
    struct base_rng rng;
    unsigned kills = 0, whole_runs = 0, most = 20000;
    repack(&whole);
    killed.sync_bytes = 1;      /* the state is written after every record */
    base_rng_init(&rng, 5);
    for (unsigned run = 0; kills < 50 && run < 2000; run++) {
        pid_t child = fork();
        ck_assert_int_ge(child, 0);
        if (child == 0) _exit(tier_store_repack(source, &killed, NULL, NULL) == 0 ? 0 : 1);
        usleep((useconds_t)base_rng_below(&rng, most));
        kill(child, SIGKILL);
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        if (WIFSIGNALED(status)) {
            kills++;
            continue;
        }
        ck_assert_int_eq(WEXITSTATUS(status), 0);
        ck_assert(same_files(0, 1));
        ck_assert_uint_eq(files_in(1), 2);
        whole_runs++;
        /* Begin anew, with kills that come earlier or later. */
        tiny_remove(dirs[1]);
        most = 1000 + (unsigned)base_rng_below(&rng, 60000);
    }
    ck_assert_uint_eq(kills, 50);
    repack(&killed);
    ck_assert(same_files(0, 1));
    ck_assert_uint_eq(files_in(1), 2);
    printf("killed %u times at random moments (seed 5), %u runs came to their end in between and "
           "one after: all with the same bytes\n", kills, whole_runs);
}
END_TEST

static int stop_at_five(void *context)
{
    return ++*(int *)context >= 5;
}

START_TEST(what_does_not_fit_is_refused)
{
    struct tier_pack_options options = to_dirs(0, 2, TIER_PACK_STRIPE);
    struct base_err err = { 0 };
    struct tier_store *pack;
    int calls = 0;
    struct tier_store_progress progress = { NULL, stop_at_five, &calls };

    /* Stopped half way; then another layout may not go on from there, the same one may. */
    options.sync_bytes = 1;
    ck_assert_int_eq(tier_store_repack(source, &options, &progress, &err), -ECANCELED);
    ck_assert_int_eq(open_pack(&pack, 0, &err), -ENOENT);
    struct tier_pack_options other = to_dirs(0, 1, TIER_PACK_STRIPE);
    ck_assert_int_eq(tier_store_repack(source, &other, NULL, &err), BASE_EMISMATCH);
    repack(&options);
    ck_assert_int_eq(open_pack(&pack, 0, &err), 0);

    /* A pack is no source for another one. */
    struct tier_pack_options third = to_dirs(2, 1, TIER_PACK_STRIPE);
    err = (struct base_err){ 0 };
    ck_assert_int_eq(tier_store_repack(pack, &third, NULL, &err), BASE_EMISMATCH);
    tier_store_close(pack);

    /* The checkpoint's own index is never replaced. */
    const char *own[] = { model };
    struct tier_pack_options inside = { .dirs = own, .dir_count = 1, .restart = true };
    err = (struct base_err){ 0 };
    ck_assert_int_eq(tier_store_repack(source, &inside, NULL, &err), -EEXIST);

    const char *twice[] = { dirs[2], dirs[2] };
    struct tier_pack_options doubled = { .dirs = twice, .dir_count = 2 };
    err = (struct base_err){ 0 };
    ck_assert_int_eq(tier_store_repack(source, &doubled, NULL, &err), -EINVAL);
}
END_TEST

static void stop_half_way(struct tier_pack_options *options)
{
    struct base_err err = { 0 };
    int calls = 0;
    struct tier_store_progress progress = { NULL, stop_at_five, &calls };
    options->sync_bytes = 1;
    ck_assert_int_eq(tier_store_repack(source, options, &progress, &err), -ECANCELED);
}

static void finish_whole(const struct tier_pack_options *options)
{
    struct tier_store *pack;
    struct base_err err;
    repack(options);
    ck_assert_msg(open_pack(&pack, 0, &err) == 0, "%s", err.text);
    ck_assert_int_eq(tier_store_verify(pack, NULL, NULL, NULL, &err), 0);
    tier_store_close(pack);
}

/* One file is gone, and the run that makes it anew fails before it has written a record: for a file
 * that is locked, for a shard that is away. The next run must not take its length for records. */
START_TEST(a_file_made_anew_begins_anew)
{
    struct tier_pack_options options = to_dirs(0, 2, TIER_PACK_STRIPE);
    struct base_err err = { 0 };
    char part[3100], other[3100], away[3100];
    const char *shard = tier_store_file_path(source, 1);
    stop_half_way(&options);
    snprintf(part, sizeof part, "%s/experts.pack.part", dirs[0]);
    snprintf(other, sizeof other, "%s/experts.pack.part", dirs[1]);
    snprintf(away, sizeof away, "%s.away", shard);
    ck_assert_int_eq(unlink(part), 0);
    if (_i == 0) {
        int fd = open(other, O_RDWR);
        ck_assert_int_eq(flock(fd, LOCK_EX), 0);
        ck_assert_int_eq(tier_store_repack(source, &options, NULL, &err), -EBUSY);
        close(fd);
    } else {
        ck_assert_int_eq(rename(shard, away), 0);
        ck_assert_int_eq(tier_store_repack(source, &options, NULL, &err), -ENOENT);
        ck_assert_int_eq(rename(away, shard), 0);
    }
    finish_whole(&options);
}
END_TEST

/* A file of the right length with nothing in it: another disk's, or made by a run that failed. */
START_TEST(a_file_of_another_run_begins_anew)
{
    struct tier_pack_options options =
        to_dirs(0, 2, _i < 2 ? TIER_PACK_STRIPE : TIER_PACK_MIRROR);
    char part[3100];
    struct stat st;
    stop_half_way(&options);
    snprintf(part, sizeof part, "%s/experts.pack.part", dirs[_i % 2]);
    ck_assert_int_eq(stat(part, &st), 0);
    ck_assert_int_eq(truncate(part, 0), 0);
    ck_assert_int_eq(truncate(part, st.st_size), 0);
    finish_whole(&options);
}
END_TEST

static int sleep_at_five(void *context)
{
    if (++*(int *)context == 5) raise(SIGSTOP);
    return 0;
}

/* Nobody else touches a folder that is packed into, whatever else they name and want. */
START_TEST(one_at_a_time_packs_into_a_folder)
{
    struct tier_pack_options options = to_dirs(0, 2, TIER_PACK_STRIPE);
    struct tier_store *pack;
    struct base_err err;
    int status, calls = 0;
    struct tier_store_progress progress = { NULL, sleep_at_five, &calls };
    options.sync_bytes = 1;
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) _exit(tier_store_repack(source, &options, &progress, NULL) == 0 ? 0 : 1);
    ck_assert_int_eq(waitpid(child, &status, WUNTRACED), child);
    ck_assert(WIFSTOPPED(status));
    for (unsigned other = 0; other < 6; other++) {
        struct tier_pack_options second = to_dirs(other / 2 % 2, 1 + other / 4, TIER_PACK_STRIPE);
        second.restart = other % 2;
        err = (struct base_err){ 0 };
        ck_assert_int_eq(tier_store_repack(source, &second, NULL, &err), -EBUSY);
        ck_assert_ptr_nonnull(strstr(err.text, "another tier-pack is packing into it"));
    }
    kill(child, SIGCONT);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ck_assert_msg(open_pack(&pack, 0, &err) == 0, "%s", err.text);
    ck_assert_int_eq(tier_store_verify(pack, NULL, NULL, NULL, &err), 0);
    tier_store_close(pack);
    ck_assert_uint_eq(files_in(0), 2);
    ck_assert_uint_eq(files_in(1), 1);
}
END_TEST

static int swap_at_five(void *context)
{
    char path[3100];
    if (++*(int *)context != 5) return 0;
    snprintf(path, sizeof path, "%s/experts.pack.part", dirs[0]);
    unlink(path);
    close(open(path, O_WRONLY | O_CREAT, 0644));
    return 0;
}

START_TEST(only_what_was_written_gets_the_last_name)
{
    struct tier_pack_options options = to_dirs(0, 1, TIER_PACK_STRIPE);
    struct base_err err = { 0 };
    struct tier_store *pack;
    int calls = 0;
    struct tier_store_progress progress = { NULL, swap_at_five, &calls };
    ck_assert_int_eq(tier_store_repack(source, &options, &progress, &err), -ESTALE);
    ck_assert_ptr_nonnull(strstr(err.text, "experts.pack.part: was moved or replaced"));
    ck_assert_int_eq(open_pack(&pack, 0, &err), -ENOENT);
    repack(&options);
    ck_assert_msg(open_pack(&pack, 0, &err) == 0, "%s", err.text);
    ck_assert_int_eq(tier_store_verify(pack, NULL, NULL, NULL, &err), 0);
    tier_store_close(pack);
}
END_TEST

START_TEST(other_weights_make_a_pack_stale)
{
    struct tier_pack_options options = to_dirs(0, 1, TIER_PACK_STRIPE);
    struct tiny_options other = tiny_defaults();
    struct tier_store *pack;
    struct base_err err;
    repack(&options);
    other.experts = 16;
    other.shards = 2;
    other.seed = 99;            /* same shapes and headers, other weights */
    tiny_write(model, &other);
    ck_assert_int_eq(open_pack(&pack, 0, &err), BASE_ESTALE);
    ck_assert_ptr_nonnull(strstr(err.text, "weights changed"));
}
END_TEST

/* As packs were before records had stretches: one checksum of all, and the parts have to match
 * theirs when they are read. */
START_TEST(packs_of_version_1_are_read)
{
    struct tier_pack_options options = to_dirs(0, 1, TIER_PACK_STRIPE);
    struct tier_store *pack;
    struct base_err err = { 0 };
    char path[3100], *bytes;
    size_t size;
    repack(&options);
    snprintf(path, sizeof path, "%s/expertier.index", dirs[0]);
    ck_assert_int_eq(open_pack(&pack, 0, &err), 0);
    ck_assert_int_eq(base_file_read(&bytes, &size, path, 1 << 24, &err), 0);
    struct tier_format_header *header = (void *)bytes;
    ck_assert_uint_eq(header->version, TIER_INDEX_VERSION_PACK);
    struct tier_format_expert *experts =
        (void *)(bytes + sizeof *header + header->file_count * sizeof(struct tier_format_file));
    header->version = TIER_INDEX_VERSION;
    for (uint32_t i = 0; i < header->layers * header->experts; i++) {
        struct tier_record record;
        tier_store_record(pack, i / header->experts, i % header->experts, &record);
        ck_assert_uint_gt(tier_store_stretches(&record), 1);
        unsigned char *slot = slot_of(pack, &record);
        experts[i].record_hash = port_hash64(slot, record.record_bytes);
        free(slot);
    }
    header->checksum = tier_image_checksum(bytes, size);
    FILE *file = fopen(path, "wb");
    ck_assert(file && fwrite(bytes, 1, size, file) == size);
    ck_assert_int_eq(fclose(file), 0);
    free(bytes);
    tier_store_close(pack);
    ck_assert_msg(open_pack(&pack, 0, &err) == 0, "%s", err.text);
    struct tier_record record;
    tier_store_record(pack, 0, 0, &record);
    ck_assert_uint_eq(tier_store_stretches(&record), 0);
    compare_with_source(pack);
    ck_assert_int_eq(tier_store_verify(pack, NULL, NULL, NULL, &err), 0);
    ck_assert_uint_eq(tier_store_weights_hash(pack), tier_store_weights_hash(source));
    tier_store_close(pack);
    repack(&options);           /* it is there already */
}
END_TEST

/* Any byte of a record in memory, its padding too; and in any order of the stretches. */
START_TEST(a_flipped_bit_in_a_slot_is_caught)
{
    struct tier_pack_options options = to_dirs(0, 1, TIER_PACK_STRIPE);
    struct tier_record record;
    struct tier_store *pack;
    struct base_err err;
    struct base_rng rng;
    repack(&options);
    ck_assert_int_eq(open_pack(&pack, 0, &err), 0);
    tier_store_record(pack, 1, 3, &record);
    unsigned char *slot = slot_of(pack, &record);
    base_rng_init(&rng, 3);
    for (int round = 0; round < 2000; round++) {
        uint64_t hashes[TIER_STRETCHES], at = base_rng_below(&rng, record.record_bytes);
        unsigned char bit = (unsigned char)(1u << base_rng_below(&rng, 8));
        slot[at] ^= bit;
        for (uint32_t i = tier_store_stretches(&record); i-- > 0;)
            hashes[i] = tier_store_stretch_hash(&record, slot, i);
        ck_assert_int_eq(tier_store_stretches_check(&record, hashes), BASE_ECHECKSUM);
        ck_assert_int_eq(tier_store_check(&record, slot, NULL, NULL), BASE_ECHECKSUM);
        slot[at] ^= bit;
    }
    ck_assert_int_eq(tier_store_check(&record, slot, NULL, NULL), 0);
    free(slot);
    tier_store_close(pack);
}
END_TEST

START_TEST(a_bad_source_is_not_packed)
{
    struct tier_pack_options options = to_dirs(0, 1, TIER_PACK_STRIPE);
    struct tier_record record;
    struct base_err err = { 0 };
    tier_store_record(source, 1, 7, &record);
    flip(tier_store_file_path(source, record.extents[0].file), record.extents[0].offset * 8 + 77);
    ck_assert_int_eq(tier_store_repack(source, &options, NULL, &err), BASE_ECHECKSUM);
    ck_assert_msg(strstr(err.text, "layer 2 expert 7"), "%s", err.text);
    struct tier_store *pack;
    ck_assert_int_eq(open_pack(&pack, 0, &err), -ENOENT);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("pack");
    tcase_set_timeout(tcase, 90);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, every_expert_is_one_record, 0, 5);
    tcase_add_loop_test(tcase, every_flipped_bit_is_caught, 0, 2);
    tcase_add_test(tcase, killed_at_any_moment_it_goes_on);
    tcase_add_test(tcase, what_does_not_fit_is_refused);
    tcase_add_loop_test(tcase, a_file_made_anew_begins_anew, 0, 2);
    tcase_add_loop_test(tcase, a_file_of_another_run_begins_anew, 0, 4);
    tcase_add_test(tcase, one_at_a_time_packs_into_a_folder);
    tcase_add_test(tcase, only_what_was_written_gets_the_last_name);
    tcase_add_test(tcase, other_weights_make_a_pack_stale);
    tcase_add_test(tcase, packs_of_version_1_are_read);
    tcase_add_test(tcase, a_flipped_bit_in_a_slot_is_caught);
    tcase_add_test(tcase, a_bad_source_is_not_packed);
    Suite *suite = suite_create("tiering/pack");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
