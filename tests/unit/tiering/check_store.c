/* The store: an index gives back every byte, and refuses whatever does not fit it, in one
 * sentence. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/rng.h"
#include "port/hash.h"
#include "tests/support/make_tiny.h"
#include "tiering/format.h"
#include "tiering/store.h"

static char dir[3000], index_path[3100];

static void setup(void)
{
    tiny_folder(dir, sizeof dir, "check_store");
    snprintf(index_path, sizeof index_path, "%s/expertier.index", dir);
}

static void teardown(void)
{
    tiny_remove(dir);
}

static struct model_shape load_shape(const char *folder)
{
    struct model_shape shape;
    struct base_err err = { 0 };
    int rc = model_shape_load(&shape, folder, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    return shape;
}

static void make_index(const char *folder, const char *path, unsigned threads)
{
    struct model_shape shape = load_shape(folder);
    struct base_err err = { 0 };
    int rc = tier_store_index(folder, path, &shape, threads, NULL, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
}

static struct tier_store *open_store(const char *folder, const char *path)
{
    struct model_shape shape = load_shape(folder);
    struct base_err err = { 0 };
    struct tier_store *store;
    int rc = tier_store_open(&store, folder, path, &shape, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    return store;
}

static int open_code(struct base_err *err)
{
    struct model_shape shape = load_shape(dir);
    struct tier_store *store;
    *err = (struct base_err){ 0 };
    int rc = tier_store_open(&store, dir, NULL, &shape, err);
    if (rc == 0) {
        tier_store_close(store);
        return 0;
    }
    ck_assert_ptr_null(store);
    ck_assert_int_eq(err->code, rc);
    ck_assert_msg(strlen(err->text) > 20 && !strchr(err->text, '\n'), "%s", err->text);
    return rc;
}

/* Fills a slot as direct IO would: whole pages, where the record says. */
static void fill_slot(const struct tier_store *store, const struct tier_record *record,
                      unsigned char *slot)
{
    memset(slot, 0xee, tier_store_slot_bytes(store));
    uint64_t used = 0;
    ck_assert_uint_ge(record->extent_count, 1);
    for (uint32_t i = 0; i < record->extent_count; i++) {
        struct tier_extent_read read = tier_extent_read(&record->extents[i]);
        ck_assert_uint_eq(read.offset % TIER_PAGE, 0);
        ck_assert_uint_eq(record->extents[i].slot_offset, used);
        used += read.bytes;
        ck_assert_uint_le(used, tier_store_slot_bytes(store));
        int fd = open(tier_store_file_path(store, record->extents[i].file), O_RDONLY);
        ck_assert_int_ge(fd, 0);
        ssize_t got = pread(fd, slot + record->extents[i].slot_offset, read.bytes,
                            (off_t)read.offset);
        ck_assert_int_ge(got, (ssize_t)read.need);
        close(fd);
    }
}

/* Every part in the slot against the tensor as the checkpoint's reader gives it. */
static void compare_parts(const struct model_files *files, const struct tier_record *record,
                          const unsigned char *slot)
{
    static const char *const names[] = { "gate_proj", "up_proj", "down_proj" };
    for (unsigned p = 0; p < TIER_PARTS; p++) {
        char name[128];
        snprintf(name, sizeof name, "model.layers.%u.mlp.experts.%u.%s.weight%s", record->layer,
                 record->index, names[p / 2], p % 2 ? "_scale_inv" : "");
        const struct model_tensor *tensor = model_files_find(files, name);
        ck_assert_uint_eq(tensor ? tensor->bytes : 0, record->part_bytes[p]);
        if (!tensor) continue;
        unsigned char *bytes = malloc(tensor->bytes);
        ck_assert_int_eq(model_files_read(files, tensor, bytes, NULL), 0);
        ck_assert_mem_eq(slot + record->part_offset[p], bytes, tensor->bytes);
        free(bytes);
    }
}

static void compare_all(const char *folder, const char *path)
{
    struct tier_store *store = open_store(folder, path);
    struct model_files *files;
    struct base_err err = { 0 };
    ck_assert_int_eq(model_files_open(&files, folder, &err), 0);
    unsigned char *slot = aligned_alloc(TIER_PAGE, tier_store_slot_bytes(store));
    ck_assert_uint_eq(tier_store_slot_bytes(store) % TIER_PAGE, 0);
    for (uint32_t layer = 0; layer < tier_store_layers(store); layer++) {
        for (uint32_t expert = 0; expert < tier_store_experts(store); expert++) {
            struct tier_record record;
            tier_store_record(store, layer, expert, &record);
            ck_assert_uint_eq(record.layer, tier_store_layer_of(store, layer));
            ck_assert_uint_eq(record.bytes, tier_store_expert_bytes(store));
            fill_slot(store, &record, slot);
            ck_assert_int_eq(tier_store_check(&record, slot, NULL, NULL), 0);
            compare_parts(files, &record, slot);
            uint64_t at = record.part_offset[layer % 2 ? 4 : 0] + expert % record.part_bytes[0];
            slot[at] ^= 0x10;
            ck_assert_int_eq(tier_store_check(&record, slot, NULL, NULL), BASE_ECHECKSUM);
        }
    }
    ck_assert_int_eq(tier_store_verify(store, NULL, NULL, NULL, &err), 0);
    free(slot);
    model_files_close(files);
    tier_store_close(store);
}

START_TEST(round_trip_of_random_models)
{
    struct tiny_options options = tiny_defaults();
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    options.seed = (uint64_t)_i;
    options.fp8 = base_rng_below(&rng, 2);
    options.shuffle = base_rng_below(&rng, 2);
    options.shards = 1 + (uint32_t)base_rng_below(&rng, 4);
    options.dense_layers = (uint32_t)base_rng_below(&rng, 3);
    options.mtp_layers = (uint32_t)base_rng_below(&rng, 2);
    options.hidden = 16 * (1 + (uint32_t)base_rng_below(&rng, 10));
    options.expert_width = 4 * (1 + (uint32_t)base_rng_below(&rng, 30));
    tiny_write(dir, &options);
    make_index(dir, NULL, 1 + (unsigned)_i % 3);
    compare_all(dir, NULL);
}
END_TEST

START_TEST(index_does_not_depend_on_threads)
{
    struct tiny_options options = tiny_defaults();
    char other[3100];
    options.shards = 3;
    tiny_write(dir, &options);
    snprintf(other, sizeof other, "%s/other.index", dir);
    make_index(dir, NULL, 1);
    make_index(dir, other, 7);
    char command[6400];
    snprintf(command, sizeof command, "cmp '%s' '%s'", index_path, other);
    ck_assert_int_eq(system(command), 0);
}
END_TEST

START_TEST(pebble_round_trip)
{
    const char *source = getenv("EXPERTIER_SOURCE");
    char folder[3000];
    snprintf(folder, sizeof folder, "%s/models/pebble", source ? source : ".");
    make_index(folder, index_path, 2);
    compare_all(folder, index_path);
    struct tier_store *store = open_store(folder, index_path);
    struct tier_record record;
    tier_store_record(store, 3, 9, &record);
    ck_assert_uint_eq(record.extent_count, 1);      /* its shards keep an expert together */
    tier_store_close(store);
}
END_TEST

static void poke(const char *path, uint64_t at, unsigned char xor_with, bool keep_mtime)
{
    struct stat st;
    unsigned char byte;
    int fd = open(path, O_RDWR);
    ck_assert_int_ge(fd, 0);
    fstat(fd, &st);
    ck_assert_int_eq(pread(fd, &byte, 1, (off_t)at), 1);
    byte ^= xor_with;
    ck_assert_int_eq(pwrite(fd, &byte, 1, (off_t)at), 1);
    struct timespec times[2] = { st.st_atim, st.st_mtim };
    if (keep_mtime) futimens(fd, times);
    close(fd);
}

START_TEST(changed_files_are_stale)
{
    struct tiny_options options = tiny_defaults();
    struct base_err err;
    char shard[3100];
    tiny_write(dir, &options);
    snprintf(shard, sizeof shard, "%s/model.safetensors", dir);

    ck_assert_int_eq(open_code(&err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(err.text, "tier-pack index"));
    make_index(dir, NULL, 1);
    ck_assert_int_eq(open_code(&err), 0);

    struct timespec old[2] = { { 1000, 0 }, { 1000, 0 } };
    ck_assert_int_eq(utimensat(AT_FDCWD, shard, old, 0), 0);
    ck_assert_int_eq(open_code(&err), BASE_ESTALE);
    ck_assert_ptr_nonnull(strstr(err.text, "model.safetensors"));
    ck_assert_ptr_nonnull(strstr(err.text, "run `tier-pack index`"));

    make_index(dir, NULL, 1);
    ck_assert_int_eq(open_code(&err), 0);
    poke(shard, 40, 0x01, true);
    ck_assert_int_eq(open_code(&err), BASE_ESTALE);
    ck_assert_ptr_nonnull(strstr(err.text, "header"));
    poke(shard, 40, 0x01, true);
    ck_assert_int_eq(open_code(&err), 0);

    struct stat st;
    stat(shard, &st);
    ck_assert_int_eq(truncate(shard, st.st_size - 1), 0);
    ck_assert_int_eq(open_code(&err), BASE_ESTALE);
    ck_assert_ptr_nonnull(strstr(err.text, "size"));
    unlink(shard);
    ck_assert_int_eq(open_code(&err), BASE_ESTALE);
    ck_assert_ptr_nonnull(strstr(err.text, "gone"));
}
END_TEST

struct bad_list {
    unsigned count;
    uint32_t layer, expert;
};

static void note_bad(void *context, uint32_t layer, uint32_t expert, const char *why)
{
    struct bad_list *list = context;
    list->count++;
    list->layer = layer;
    list->expert = expert;
    ck_assert_ptr_nonnull(strstr(why, "checksum"));
}

START_TEST(verify_names_every_flipped_bit)
{
    struct tiny_options options = tiny_defaults();
    char shard[3100];
    struct base_rng rng;
    base_rng_init(&rng, 7);
    options.fp8 = _i == 0;
    tiny_write(dir, &options);
    make_index(dir, NULL, 2);
    snprintf(shard, sizeof shard, "%s/model.safetensors", dir);
    struct tier_store *store = open_store(dir, NULL);
    for (unsigned round = 0; round < 100; round++) {
        struct tier_record record;
        uint32_t layer = (uint32_t)base_rng_below(&rng, tier_store_layers(store));
        uint32_t expert = (uint32_t)base_rng_below(&rng, tier_store_experts(store));
        tier_store_record(store, layer, expert, &record);
        unsigned extent = (unsigned)base_rng_below(&rng, record.extent_count);
        uint64_t at = record.extents[extent].offset +
                      base_rng_below(&rng, record.extents[extent].bytes);
        unsigned char bit = (unsigned char)(1u << base_rng_below(&rng, 8));
        struct bad_list list = { 0 };
        poke(shard, at, bit, true);
        ck_assert_int_eq(tier_store_verify(store, note_bad, &list, NULL, NULL), 1);
        ck_assert_uint_eq(list.count, 1);
        ck_assert_uint_eq(list.layer, layer);
        ck_assert_uint_eq(list.expert, expert);
        poke(shard, at, bit, true);
    }
    ck_assert_int_eq(tier_store_verify(store, note_bad, NULL, NULL, NULL), 0);
    tier_store_close(store);
}
END_TEST

/* Reads the index, lets `change` spoil it, makes its checksum right again if wanted, writes it. */
struct image {
    unsigned char *bytes;
    size_t size;
};

static struct image load_image(void)
{
    struct image image = { 0 };
    FILE *file = fopen(index_path, "rb");
    ck_assert_ptr_nonnull(file);
    fseek(file, 0, SEEK_END);
    image.size = (size_t)ftell(file);
    rewind(file);
    image.bytes = malloc(image.size + 64);
    ck_assert_uint_eq(fread(image.bytes, 1, image.size, file), image.size);
    fclose(file);
    return image;
}

static void store_image(const struct image *image, bool seal)
{
    if (seal && image->size >= sizeof(struct tier_format_header)) {
        struct tier_format_header *header = (void *)image->bytes;
        header->checksum = 0;
        header->checksum = port_hash64(image->bytes, image->size);
    }
    FILE *file = fopen(index_path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(image->bytes, 1, image->size, file), image->size);
    fclose(file);
}

#define HEADER ((struct tier_format_header *)(void *)image->bytes)
#define FILES ((struct tier_format_file *)(HEADER + 1))
#define EXPERTS ((struct tier_format_expert *)(FILES + HEADER->file_count))
#define BREAK(name, code, what) \
    static int break_##name(struct image *image) \
    { \
        what; \
        return code; \
    }
BREAK(empty, BASE_EFORMAT, image->size = 0)
BREAK(cut_header, BASE_EFORMAT, image->size = 100)
BREAK(cut_tail, BASE_EFORMAT, image->size -= 1)
BREAK(grown, BASE_EFORMAT, memset(image->bytes + image->size, 0, 8); image->size += 8)
BREAK(magic, BASE_EFORMAT, image->bytes[0] = 'Y')
BREAK(version, BASE_EVERSION, HEADER->version = 3)
BREAK(version_none, BASE_EVERSION, HEADER->version = 0)
BREAK(order, BASE_EFORMAT, HEADER->parts[0].order = TIER_FORMAT_TILES)
BREAK(order_all, BASE_EFORMAT, for (int p = 0; p < TIER_PARTS; p++) HEADER->parts[p].order = 1)
BREAK(order_of_scales, BASE_EFORMAT, HEADER->parts[3].order = 7)
BREAK(header_bytes, BASE_EVERSION, HEADER->header_bytes = 192)
BREAK(kind, BASE_EFORMAT, HEADER->kind = 9)
BREAK(no_layers, BASE_EFORMAT, HEADER->layers = 0)
BREAK(many_layers, BASE_EFORMAT, HEADER->layers = 0xffffffff)
BREAK(many_experts, BASE_EFORMAT, HEADER->experts = 0xffffffff)
BREAK(one_more_expert, BASE_EFORMAT, HEADER->experts += 1)
BREAK(top_k, BASE_EFORMAT, HEADER->top_k = HEADER->experts + 1)
BREAK(step, BASE_EFORMAT, HEADER->layer_step = 0)
BREAK(no_files, BASE_EFORMAT, HEADER->file_count = 0)
BREAK(many_files, BASE_EFORMAT, HEADER->file_count = 0x00ffffff)
BREAK(copies, BASE_EFORMAT, HEADER->copies = 2)
BREAK(data_files, BASE_EFORMAT, HEADER->data_files = 7)
BREAK(names, BASE_EFORMAT, HEADER->names_bytes = 0xfffffff0)
BREAK(hidden, BASE_EFORMAT, HEADER->hidden = 0)
BREAK(part_type, BASE_EFORMAT, HEADER->parts[2].type = 77)
BREAK(part_rows, BASE_EFORMAT, HEADER->parts[0].rows = 0x7fffffff)
BREAK(scales_gone, BASE_EFORMAT, HEADER->parts[1] = (struct tier_format_part){ 0 })
BREAK(block, BASE_EFORMAT, HEADER->block_cols = 1)
BREAK(role, BASE_EFORMAT, FILES[0].role = TIER_FILE_SOURCE)
BREAK(name_outside, BASE_EFORMAT, FILES[0].name_at = 0xfffffff0)
BREAK(name_empty, BASE_EFORMAT, FILES[0].name_bytes = 0)
BREAK(name_path, BASE_EFORMAT, memcpy(image->bytes + image->size - 17, "../../../etc/pass", 17))
BREAK(name_nul, BASE_EFORMAT, image->bytes[image->size - 3] = 0)
BREAK(file_huge, BASE_EFORMAT, FILES[0].bytes = UINT64_MAX)
BREAK(file_index, BASE_EFORMAT, EXPERTS[3].file[2] = 1)
BREAK(offset_end, BASE_EFORMAT, EXPERTS[3].offset[4] = FILES[0].bytes - 1)
BREAK(offset_wrap, BASE_EFORMAT, EXPERTS[5].offset[0] = UINT64_MAX - 5)
BREAK(offset_odd, BASE_EFORMAT, EXPERTS[5].offset[1] += 1)
BREAK(other_model, BASE_EMISMATCH, HEADER->top_k -= 1)
BREAK(other_layer, BASE_EMISMATCH, HEADER->layer_first += 1)
BREAK(file_size, BASE_ESTALE, FILES[0].bytes += 1)
BREAK(file_header, BASE_ESTALE, FILES[0].header_hash ^= 1)
#undef BREAK

static int (*const breaks[])(struct image *image) = {
    break_empty, break_cut_header, break_cut_tail, break_grown, break_magic, break_version,
    break_version_none, break_order, break_order_all, break_order_of_scales,
    break_header_bytes, break_kind, break_no_layers, break_many_layers, break_many_experts,
    break_one_more_expert, break_top_k, break_step, break_no_files, break_many_files, break_copies,
    break_data_files, break_names, break_hidden, break_part_type, break_part_rows,
    break_scales_gone, break_block, break_role, break_name_outside, break_name_empty,
    break_name_path, break_name_nul, break_file_huge, break_file_index, break_offset_end,
    break_offset_wrap, break_offset_odd, break_other_model, break_other_layer, break_file_size,
    break_file_header,
};

START_TEST(broken_indexes_get_one_sentence_each)
{
    struct tiny_options options = tiny_defaults();
    struct base_err err;
    tiny_write(dir, &options);
    make_index(dir, NULL, 1);
    struct image image = load_image();
    int code = breaks[_i](&image);
    store_image(&image, true);
    ck_assert_int_eq(open_code(&err), code);
    ck_assert_msg(strstr(err.text, code == BASE_ESTALE ? "model.safetensors" : "expertier.index"),
                  "%s", err.text);
    free(image.bytes);
}
END_TEST

/* Of 6 GiB, in a file that is mostly a hole. */
START_TEST(experts_too_large_for_a_slot_are_refused)
{
    enum { SIDE = 32768 };
    struct tiny_options options = tiny_defaults();
    struct base_err err = { 0 };
    struct tier_store *store;
    struct stat st;
    char shard[3100];
    options.fp8 = false;
    tiny_write(dir, &options);
    make_index(dir, NULL, 1);
    struct image loaded = load_image(), *image = &loaded;
    HEADER->hidden = HEADER->expert_width = SIDE;
    for (int p = 0; p < TIER_PARTS; p += 2) {
        ck_assert_uint_eq(HEADER->parts[p].type, TIER_TYPE_BF16);
        HEADER->parts[p].rows = HEADER->parts[p].cols = SIDE;
    }
    snprintf(shard, sizeof shard, "%s/model.safetensors", dir);
    ck_assert_int_eq(truncate(shard, (off_t)8 << 30), 0);
    ck_assert_int_eq(stat(shard, &st), 0);
    FILES[0].bytes = (uint64_t)st.st_size;
    FILES[0].mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    store_image(image, true);
    ck_assert_int_eq(tier_store_open(&store, dir, NULL, NULL, &err), BASE_EFORMAT);
    ck_assert_ptr_null(store);
    ck_assert_msg(strstr(err.text, "an expert has 6442450944 bytes"), "%s", err.text);
    free(loaded.bytes);
}
END_TEST

START_TEST(every_flipped_bit_of_an_index_is_seen)
{
    struct tiny_options options = tiny_defaults();
    struct base_err err;
    options.experts = 4;
    options.groups = options.top_groups = 1;
    tiny_write(dir, &options);
    make_index(dir, NULL, 1);
    struct image image = load_image();
    struct base_rng rng;
    base_rng_init(&rng, 11);
    for (unsigned round = 0; round < 400; round++) {
        uint64_t bit = base_rng_below(&rng, image.size * 8);
        image.bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
        store_image(&image, false);
        ck_assert_int_lt(open_code(&err), 0);
        image.bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    store_image(&image, false);
    ck_assert_int_eq(open_code(&err), 0);
    free(image.bytes);
}
END_TEST

START_TEST(not_a_number_is_refused_by_name)
{
    struct tiny_options options = tiny_defaults();
    struct base_err err = { 0 };
    struct model_shape shape;
    char shard[3100];
    tiny_write(dir, &options);
    make_index(dir, NULL, 1);
    snprintf(shard, sizeof shard, "%s/model.safetensors", dir);
    shape = load_shape(dir);
    struct tier_store *store = open_store(dir, NULL);
    struct image image = load_image();
    struct tier_format_header *header = (void *)image.bytes;
    struct tier_format_expert *experts =
        (void *)((struct tier_format_file *)(header + 1) + header->file_count);
    uint64_t at = experts[11].offset[2] + 99;       /* up matrix of expert 3 of the second layer */
    FILE *file = fopen(shard, "r+b");
    fseek(file, (long)at, SEEK_SET);
    fputc(0xff, file);
    fclose(file);
    ck_assert_int_eq(tier_store_index(dir, NULL, &shape, 3, NULL, &err), BASE_EFORMAT);
    ck_assert_msg(strstr(err.text, "model.layers.2.mlp.experts.3.up_proj.weight: element 99 "),
                  "%s", err.text);
    tier_store_close(store);
    free(image.bytes);
}
END_TEST

static int stop_now(void *context)
{
    return ++*(int *)context > 3;
}

START_TEST(stopping_leaves_nothing_behind)
{
    struct tiny_options options = tiny_defaults();
    struct base_err err = { 0 };
    int calls = 0;
    struct tier_store_progress progress = { NULL, stop_now, &calls };
    tiny_write(dir, &options);
    struct model_shape shape = load_shape(dir);
    ck_assert_int_eq(tier_store_index(dir, NULL, &shape, 2, &progress, &err), -ECANCELED);
    ck_assert_int_eq(access(index_path, F_OK), -1);
    char command[3200];
    snprintf(command, sizeof command, "test -z \"$(ls '%s' | grep tmp)\"", dir);
    ck_assert_int_eq(system(command), 0);
}
END_TEST

/* Before anything is read. */
START_TEST(a_place_that_cannot_be_written_is_said)
{
    struct tiny_options options = tiny_defaults();
    int calls = 0;
    struct tier_store_progress progress = { NULL, stop_now, &calls };
    tiny_write(dir, &options);
    struct model_shape shape = load_shape(dir);
    char under_file[3100];
    snprintf(under_file, sizeof under_file, "%s/config.json/index", dir);
    const struct {
        const char *path;
        int code;
    } cases[] = { { "/proc/no/such.index", -ENOENT }, { dir, -EISDIR }, { under_file, -ENOTDIR } };
    for (int i = 0; i < 3; i++) {
        struct base_err err = { 0 };
        int rc = tier_store_index(dir, cases[i].path, &shape, 1, &progress, &err);
        ck_assert_int_eq(rc, cases[i].code);
        ck_assert_msg(strstr(err.text, cases[i].path) == err.text &&
                      strstr(err.text, "`--index FILE` or tiers.nvme.index"), "%s", err.text);
    }
    ck_assert_int_eq(calls, 0);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("store");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, round_trip_of_random_models, 0, 24);
    tcase_add_test(tcase, index_does_not_depend_on_threads);
    tcase_add_test(tcase, pebble_round_trip);
    tcase_add_test(tcase, changed_files_are_stale);
    tcase_add_loop_test(tcase, verify_names_every_flipped_bit, 0, 2);
    tcase_add_loop_test(tcase, broken_indexes_get_one_sentence_each, 0,
                        sizeof breaks / sizeof breaks[0]);
    tcase_add_test(tcase, experts_too_large_for_a_slot_are_refused);
    tcase_add_test(tcase, every_flipped_bit_of_an_index_is_seen);
    tcase_add_test(tcase, not_a_number_is_refused_by_name);
    tcase_add_test(tcase, stopping_leaves_nothing_behind);
    tcase_add_test(tcase, a_place_that_cannot_be_written_is_said);
    Suite *suite = suite_create("tiering/store");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
