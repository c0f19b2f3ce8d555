/* Every io backend delivers exactly the file's bytes, at any extent, size, order and load. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "tiering/io_backend.h"

enum { FILE_BYTES = 3 * 1024 * 1024 + 1234, PAGE = 4096, ROOM = 1 << 20, REQS = 24 };

static unsigned char *content;
static char path[64];

static void make_file(void)
{
    struct base_rng rng;
    base_rng_init(&rng, 42);
    content = malloc(FILE_BYTES);
    ck_assert_ptr_nonnull(content);
    for (size_t i = 0; i < FILE_BYTES; i++) {
        content[i] = (unsigned char)base_rng_u64(&rng);
    }
    /* The build folder's file system, since /tmp may refuse O_DIRECT. */
    const char *folder = getenv("EXPERTIER_BUILD");
    ck_assert(chdir(folder ? folder : ".") == 0);
    snprintf(path, sizeof path, "check_io_XXXXXX");
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, content, FILE_BYTES), FILE_BYTES);
    close(fd);
}

static void drop_file(void)
{
    unlink(path);
    free(content);
}

static struct tier_io_config config_of(const char *const *pairs)
{
    struct tier_io_config config;
    struct base_option_group group = { "io", tier_io_options, tier_io_option_count, &config };
    base_option_defaults(&group, 1);
    for (; *pairs; pairs++) {
        struct base_err err = { 0 };
        int rc = base_option_set_pair(&group, 1, *pairs, &err);
        ck_assert_msg(rc == 0, "%s", err.text);
    }
    return config;
}

static struct tier_io *open_io(const char *const *pairs, struct base_clock *clock)
{
    struct tier_io_config config = config_of(pairs);
    struct base_err err = { 0 };
    struct tier_io *io = NULL;
    int rc = tier_io_create(&io, &config, clock ? clock : base_clock_real(), &err);
    if (rc < 0 && strcmp(pairs[0], "io.backend=io_uring") == 0) {
        fprintf(stderr, "skipped: %s\n", err.text);
        return NULL;
    }
    ck_assert_msg(rc == 0, "%s", err.text);
    return io;
}

/* Random reads, many at once, compared byte by byte. */
static void read_at_random(struct tier_io *io, uint64_t seed)
{
    struct base_rng rng;
    struct base_err err = { 0 };
    struct tier_io_req reqs[REQS], *done[REQS];
    unsigned char *room = aligned_alloc(PAGE, (size_t)REQS * ROOM);
    ck_assert_ptr_nonnull(room);
    base_rng_init(&rng, seed);
    int file = tier_io_file_add(io, path, &err);
    ck_assert_msg(file >= 0, "%s", err.text);
    ck_assert_str_eq(tier_io_file_path(io, (uint32_t)file), path);
    size_t all = (size_t)REQS * ROOM;
    if (base_rng_below(&rng, 2)) tier_io_memory_add(io, room, all, all);
    uint64_t grain = io->direct ? PAGE : 1;

    unsigned sent = 0, back = 0, goal = 120;
    bool busy[REQS] = { false };
    while (back < goal) {
        for (unsigned i = 0; i < REQS && sent < goal; i++) {
            if (busy[i] || base_rng_below(&rng, 3) == 0) continue;
            uint64_t offset = base_rng_below(&rng, FILE_BYTES + 2 * PAGE);
            uint64_t bytes = base_rng_below(&rng, base_rng_below(&rng, 2) ? ROOM : 3 * PAGE) + 1;
            offset -= offset % grain;
            bytes = (bytes + grain - 1) / grain * grain;
            if (bytes > ROOM) bytes = ROOM;
            reqs[i] = (struct tier_io_req){ .file = (uint32_t)file,
                                            .offset = offset,
                                            .to = room + (size_t)i * ROOM,
                                            .bytes = bytes,
                                            .prefetch = base_rng_below(&rng, 2),
                                            .owner = &reqs[i] };
            memset(reqs[i].to, 0xee, bytes);
            struct tier_io_req *one = &reqs[i];
            int taken = tier_io_submit(io, &one, 1);
            if (taken == 0) break;
            busy[i] = true;
            sent++;
            if (base_rng_below(&rng, 8) == 0) tier_io_promote(io, &reqs[i]);
        }
        int count = tier_io_reap(io, done, REQS, (unsigned)base_rng_below(&rng, 3), UINT64_MAX);
        ck_assert_int_ge(count, 0);
        for (int k = 0; k < count; k++) {
            struct tier_io_req *req = done[k];
            ck_assert_ptr_eq(req->owner, req);
            busy[req - reqs] = false;
            back++;
            uint64_t there = req->offset >= FILE_BYTES ? 0 : FILE_BYTES - req->offset;
            if (there > req->bytes) there = req->bytes;
            ck_assert_msg(req->result == (int64_t)there, "seed %llu: %lld bytes, wanted %llu",
                          (unsigned long long)seed, (long long)req->result,
                          (unsigned long long)there);
            ck_assert_mem_eq(req->to, content + (there ? req->offset : 0), there);
            ck_assert_uint_ge(req->done_ns, req->submit_ns);
        }
    }
    ck_assert_uint_eq(io->in_flight, 0);
    ck_assert_int_eq(tier_io_reap(io, done, REQS, 5, UINT64_MAX), 0);
    free(room);
}

static const char *const settings[][8] = {
    { "io.backend=io_uring", NULL },
    { "io.backend=io_uring", "io.depth=2", "io.chunk=64KiB", NULL },
    { "io.backend=io_uring", "io.direct=off", "io.depth=5", NULL },
    { "io.backend=threads", "io.threads=1", NULL },
    { "io.backend=threads", "io.threads=4", "io.chunk=64KiB", "io.depth=7", NULL },
    { "io.backend=threads", "io.direct=off", NULL },
    { "io.backend=sim", "io.sim_latency=1us", NULL },
    { "io.backend=threads", "io.throttle_bandwidth=4GiB", "io.throttle_latency=10us", NULL },
    { "io.backend=auto", "io.faults=seed=3", "io.throttle_latency=1us", NULL },
    { "io.backend=threads", "io.faults=slow=0.1,stuck=0.01,slow_for=1ms,stuck_for=5ms",
      "io.throttle_bandwidth=8GiB", NULL },
};
enum { SETTINGS = sizeof settings / sizeof settings[0], SEEDS = 6 };

START_TEST(exact_bytes_at_random_extents)
{
    struct tier_io *io = open_io(settings[_i / SEEDS], NULL);
    if (!io) return;
    read_at_random(io, (uint64_t)_i);
    tier_io_destroy(io);
}
END_TEST

/* A disk that answers all at once gets a third of what is left, one that answers singly all. */
START_TEST(window_follows_the_way_of_answers)
{
    enum { MIB = 1 << 20, PIECES = 36 };
    struct tier_io_window window = { 0 };
    unsigned crowds[PIECES], count = 0;
    for (int layer = 0; layer < 8; layer++) {
        unsigned sent = 0, left = PIECES;
        window.left_bytes = (uint64_t)PIECES * MIB;
        for (count = 0; left > 0; count++) {
            for (; sent < left && tier_io_window_open(&window); sent++) window.sent_bytes += MIB;
            tier_io_window_seen(&window, sent, sent);
            crowds[count] = sent;
            left -= sent;
            window.left_bytes -= (uint64_t)sent * MIB;
            window.sent_bytes = sent = 0;
        }
    }
    ck_assert_uint_eq(count, 6);
    const unsigned wanted[] = { 12, 8, 6, 4, 4, 2 };
    ck_assert_mem_eq(crowds, wanted, sizeof wanted);
    for (unsigned left = PIECES; left > 0; left--) tier_io_window_seen(&window, left, 1);
    window.left_bytes = window.sent_bytes = (uint64_t)PIECES * MIB;
    ck_assert(tier_io_window_open(&window));
}
END_TEST

/* Pieces differ by a page at most, none is larger than the chunk, and together they are all. */
START_TEST(pieces_are_even)
{
    struct base_rng rng;
    base_rng_init(&rng, 7);
    for (int i = 0; i < 1000; i++) {
        struct tier_io_queue queue = { .piece_bytes = (1 + base_rng_below(&rng, 64)) * PAGE };
        struct tier_io_req req = { .bytes = (1 + base_rng_below(&rng, 1000)) * PAGE };
        struct tier_io_piece piece;
        uint64_t at = 0, least = UINT64_MAX, most = 0, count = 0;
        tier_io_queue_push(&queue, &req);
        for (; tier_io_queue_cut(&queue, &piece); count++) {
            ck_assert_uint_eq(piece.at, at);
            at += piece.bytes;
            if (piece.bytes < least) least = piece.bytes;
            if (piece.bytes > most) most = piece.bytes;
        }
        ck_assert_uint_eq(at, req.bytes);
        ck_assert_uint_le(most, queue.piece_bytes);
        ck_assert_uint_le(most - least, PAGE);
        ck_assert_uint_eq(count, (req.bytes + queue.piece_bytes - 1) / queue.piece_bytes);
    }
}
END_TEST

START_TEST(sim_on_virtual_time_is_exact_and_repeatable)
{
    const char *const pairs[] = { "io.backend=sim", "io.sim_seed=9", "io.sim_latency=1ms", NULL };
    uint64_t ends[2];
    for (int run = 0; run < 2; run++) {
        struct base_clock_virtual clock;
        base_clock_virtual_init(&clock, 1000);
        struct tier_io *io = open_io(pairs, &clock.clock);
        read_at_random(io, (uint64_t)_i);
        tier_io_destroy(io);
        ends[run] = clock.time_ns;
    }
    ck_assert_uint_eq(ends[0], ends[1]);
    ck_assert_uint_gt(ends[0], 1000000);
}
END_TEST

/* Submits `n` reads of a page each and returns the order in which they came back. */
static void order_of(const char *const *pairs, unsigned n, unsigned *order, int64_t *results,
                     unsigned char *room)
{
    struct base_clock_virtual clock;
    struct tier_io_req reqs[REQS], *list[REQS], *done[1];
    base_clock_virtual_init(&clock, 0);
    struct tier_io *io = open_io(pairs, &clock.clock);
    ck_assert_int_eq(tier_io_file_add(io, path, NULL), 0);
    for (unsigned i = 0; i < n; i++) {
        reqs[i] = (struct tier_io_req){ .offset = (uint64_t)i * PAGE, .to = room + (size_t)i * PAGE,
                                        .bytes = PAGE };
        list[i] = &reqs[i];
    }
    ck_assert_int_eq(tier_io_submit(io, list, n), (int)n);
    for (unsigned i = 0; i < n; i++) {
        ck_assert_int_eq(tier_io_reap(io, done, 1, 1, UINT64_MAX), 1);
        order[i] = (unsigned)(done[0] - reqs);
        if (results) results[order[i]] = done[0]->result;
    }
    tier_io_destroy(io);
}

START_TEST(sim_order_is_random_and_follows_the_seed)
{
    static unsigned char room[REQS * PAGE];
    unsigned first[16], again[16], other[16], in_order = 0;
    const char *one[] = { "io.backend=sim", "io.sim_seed=1", NULL };
    const char *two[] = { "io.backend=sim", "io.sim_seed=2", NULL };
    order_of(one, 16, first, NULL, room);
    order_of(one, 16, again, NULL, room);
    order_of(two, 16, other, NULL, room);
    ck_assert_mem_eq(first, again, sizeof first);
    ck_assert_mem_ne(first, other, sizeof first);
    for (unsigned i = 0; i < 16; i++) {
        in_order += first[i] == i;
    }
    ck_assert_uint_lt(in_order, 12);
}
END_TEST

START_TEST(sim_takes_the_time_of_its_disk)
{
    const char *pairs[] = { "io.backend=sim", "io.sim_latency=1ms", "io.sim_bandwidth=1MiB", NULL };
    struct base_clock_virtual clock;
    static unsigned char room[8 * PAGE];
    struct tier_io_req reqs[8], *list[8], *done[8];
    base_clock_virtual_init(&clock, 0);
    struct tier_io *io = open_io(pairs, &clock.clock);
    tier_io_file_add(io, path, NULL);
    for (unsigned i = 0; i < 8; i++) {
        reqs[i] = (struct tier_io_req){ .to = room + i * PAGE, .bytes = PAGE };
        list[i] = &reqs[i];
    }
    tier_io_submit(io, list, 8);
    ck_assert_int_eq(tier_io_reap(io, done, 8, 1, 500000), 0);      /* the deadline comes first */
    ck_assert_uint_eq(clock.time_ns, 500000);
    ck_assert_int_eq(tier_io_reap(io, done, 8, 8, UINT64_MAX), 8);
    /* One latency, eight transfers of 4 KiB at 1 MiB/s. */
    ck_assert_uint_ge(clock.time_ns, 1000000 + 8 * 3906250 - 10);
    ck_assert_uint_le(clock.time_ns, 1000000 + 8 * 3906250 + 10);
    tier_io_destroy(io);
}
END_TEST

START_TEST(throttle_holds_the_rate_and_demand_goes_first)
{
    const char *pairs[] = { "io.backend=null", "io.throttle_bandwidth=1MiB",
                            "io.throttle_latency=1ms", NULL };
    struct base_clock_virtual clock;
    static unsigned char room[PAGE];
    struct tier_io_req reqs[10], *list[10], *done[10];
    base_clock_virtual_init(&clock, 0);
    struct tier_io *io = open_io(pairs, &clock.clock);
    tier_io_file_add(io, path, NULL);
    for (unsigned i = 0; i < 10; i++) {
        reqs[i] = (struct tier_io_req){ .to = room, .bytes = PAGE, .prefetch = i < 9 };
        list[i] = &reqs[i];
    }
    ck_assert_int_eq(tier_io_submit(io, list, 10), 10);
    /* The demand read, submitted last, passes all prefetch reads. */
    ck_assert_int_eq(tier_io_reap(io, done, 10, 2, UINT64_MAX), 2);
    ck_assert_ptr_eq(done[0], &reqs[9]);
    ck_assert_int_eq(tier_io_reap(io, done, 10, 8, UINT64_MAX), 8);
    ck_assert_uint_ge(clock.time_ns, 10 * 3906250);
    ck_assert_uint_le(clock.time_ns, 1000000 + 10 * 3906250 + 10);
    tier_io_destroy(io);
}
END_TEST

START_TEST(faults_are_visible_and_follow_the_seed)
{
    static const struct {
        const char *faults;
        int kind;
    } cases[] = { { "io.faults=seed=5,eio=0.5", 0 },
                  { "io.faults=seed=5,short=0.5", 1 },
                  { "io.faults=seed=5,flip=0.5", 2 } };
    for (unsigned c = 0; c < 3; c++) {
        const char *pairs[] = { "io.backend=sim", cases[c].faults, NULL };
        static unsigned char room[REQS * PAGE];
        unsigned order[REQS], hit = 0, hit_again = 0;
        int64_t results[REQS];
        for (int run = 0; run < 2; run++) {
            unsigned mask = 0;
            memset(room, 0, sizeof room);
            order_of(pairs, REQS, order, results, room);
            for (unsigned i = 0; i < REQS; i++) {
                bool same = memcmp(room + i * PAGE, content + i * PAGE, PAGE) == 0;
                bool faulted = results[i] != PAGE || !same;
                if (cases[c].kind == 0 && faulted) ck_assert_int_eq(results[i], -EIO);
                if (cases[c].kind == 1 && faulted) ck_assert(results[i] >= 0 && results[i] < PAGE);
                if (cases[c].kind == 2) ck_assert_int_eq(results[i], PAGE);
                mask |= (unsigned)faulted << i;
            }
            *(run ? &hit_again : &hit) = mask;
        }
        ck_assert_uint_eq(hit, hit_again);
        ck_assert_int_gt(__builtin_popcount(hit), 4);
        ck_assert_int_lt(__builtin_popcount(hit), 20);
    }
}
END_TEST

START_TEST(stuck_reads_come_late)
{
    const char *pairs[] = { "io.backend=sim", "io.faults=stuck=1,stuck_for=3s", NULL };
    struct base_clock_virtual clock;
    static unsigned char room[PAGE];
    struct tier_io_req req = { .to = room, .bytes = PAGE }, *one = &req, *done[1];
    base_clock_virtual_init(&clock, 0);
    struct tier_io *io = open_io(pairs, &clock.clock);
    tier_io_file_add(io, path, NULL);
    tier_io_submit(io, &one, 1);
    ck_assert_int_eq(tier_io_reap(io, done, 1, 1, 2000000000), 0);
    ck_assert_int_eq(tier_io_reap(io, done, 1, 1, UINT64_MAX), 1);
    ck_assert_uint_eq(clock.time_ns, 3000000000);
    tier_io_destroy(io);
}
END_TEST

START_TEST(wrong_requests_and_settings_are_refused)
{
    static const char *const bad[] = { "eio", "eio=2", "eio=0.7,flip=0.7", "eoi=0.1", "seed=x",
                                       "slow_for=3" };
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct tier_io_config config = config_of((const char *[]){ "io.backend=null", NULL });
        struct base_err err = { 0 };
        struct tier_io *io;
        snprintf(config.faults, sizeof config.faults, "%s", bad[i]);
        ck_assert_int_eq(tier_io_create(&io, &config, base_clock_real(), &err), BASE_ECONFIG);
        ck_assert_msg(strncmp(err.text, "io.faults: ", 11) == 0, "%s", err.text);
    }
    for (unsigned i = 0; i < 2; i++) {
        struct tier_io *io = open_io(settings[i == 0 ? 0 : 3], NULL);
        if (!io) continue;
        struct base_err err = { 0 };
        ck_assert_int_eq(tier_io_file_add(io, "no/such/file", &err), -ENOENT);
        ck_assert_ptr_nonnull(strstr(err.text, "no/such/file"));
        ck_assert_int_lt(tier_io_file_add(io, ".", NULL), 0);
        ck_assert_int_eq(tier_io_file_add(io, path, NULL), 0);
        unsigned char room[64];
        struct tier_io_req unknown = { .file = 3, .to = room, .bytes = 8 };
        struct tier_io_req odd = { .file = 0, .offset = 7, .to = room, .bytes = 8 };
        struct tier_io_req *both[] = { &unknown, &odd }, *done[2];
        ck_assert_int_eq(tier_io_submit(io, both, 2), 2);
        ck_assert_int_eq(tier_io_reap(io, done, 2, 2, UINT64_MAX), 2);
        ck_assert_int_eq(unknown.result, -EBADF);
        ck_assert_int_eq(odd.result, io->direct ? -EINVAL : 8);
        tier_io_destroy(io);
    }
}
END_TEST

/* sysfs takes no O_DIRECT on any kernel. */
START_TEST(a_refusal_of_direct_reads_is_reported)
{
    static const char refusing[] = "/sys/kernel/mm/transparent_hugepage/enabled";
    struct base_err err = { 0 };
    if (access(refusing, R_OK) < 0) {
        fprintf(stderr, "skipped: %s is not there\n", refusing);
        return;
    }
    struct tier_io *io = open_io((const char *[]){ "io.backend=threads", NULL }, NULL);
    ck_assert_int_eq(tier_io_file_add(io, refusing, &err), 0);
    ck_assert(io->direct_refused && !io->direct);
    ck_assert_ptr_nonnull(strstr(io->note, "refuses O_DIRECT"));
    ck_assert_int_eq(tier_io_file_add(io, path, &err), 1);
    tier_io_destroy(io);

    io = open_io((const char *[]){ "io.backend=threads", "io.direct=on", NULL }, NULL);
    ck_assert_int_eq(tier_io_file_add(io, refusing, &err), -EINVAL);
    ck_assert_msg(strstr(err.text, "io.direct"), "%s", err.text);
    tier_io_destroy(io);

    io = open_io((const char *[]){ "io.backend=threads", "io.direct=off", NULL }, NULL);
    ck_assert_int_eq(tier_io_file_add(io, refusing, &err), 0);
    ck_assert(!io->direct_refused && !io->direct);
    tier_io_destroy(io);
}
END_TEST

START_TEST(deadlines_are_kept)
{
    for (unsigned i = 0; i < 2; i++) {
        const char *pairs[] = { i == 0 ? "io.backend=io_uring" : "io.backend=threads",
                                "io.faults=stuck=1,stuck_for=60ms", NULL };
        struct tier_io *io = open_io(pairs, NULL);
        if (!io) continue;
        static _Alignas(4096) unsigned char room[PAGE];
        struct tier_io_req req = { .to = room, .bytes = PAGE }, *one = &req, *done[1];
        tier_io_file_add(io, path, NULL);
        tier_io_submit(io, &one, 1);
        uint64_t begin = base_now_ns();
        ck_assert_int_eq(tier_io_reap(io, done, 1, 1, begin + 20000000), 0);
        ck_assert_uint_ge(base_now_ns() - begin, 19000000);
        ck_assert_int_eq(tier_io_reap(io, done, 1, 1, UINT64_MAX), 1);
        ck_assert_int_eq(req.result, PAGE);
        tier_io_destroy(io);
    }
}
END_TEST

/* One piece at a time is with the kernel: that the last one comes in is feed's doing. */
START_TEST(feed_keeps_reads_going)
{
    static const char *const pairs[] = { "io.backend=io_uring", "io.depth=1", "io.chunk=64KiB",
                                         NULL };
    static _Alignas(4096) unsigned char room[ROOM];
    struct tier_io *io = open_io(pairs, NULL);
    if (!io) return;
    struct tier_io_req req = { .to = room, .bytes = ROOM }, *one = &req, *done[1];
    volatile unsigned char *last = room + ROOM - 1;
    tier_io_file_add(io, path, NULL);
    *last = (unsigned char)~content[ROOM - 1];
    tier_io_submit(io, &one, 1);
    const uint64_t until = base_now_ns() + UINT64_C(20000000000);
    while (*last != content[ROOM - 1] && base_now_ns() < until) tier_io_feed(io);
    ck_assert_uint_eq(*last, content[ROOM - 1]);
    ck_assert_int_eq(tier_io_reap(io, done, 1, 1, UINT64_MAX), 1);
    ck_assert_int_eq(memcmp(room, content, ROOM), 0);
    tier_io_destroy(io);
}
END_TEST

START_TEST(destroy_waits_for_what_is_in_flight)
{
    for (unsigned i = 0; i < 5; i++) {
        struct tier_io *io = open_io(settings[i], NULL);
        if (!io) continue;
        unsigned char *room = aligned_alloc(PAGE, 4 * ROOM);
        struct tier_io_req reqs[4], *list[4];
        tier_io_file_add(io, path, NULL);
        for (unsigned k = 0; k < 4; k++) {
            reqs[k] = (struct tier_io_req){ .to = room + (size_t)k * ROOM, .bytes = ROOM };
            list[k] = &reqs[k];
        }
        tier_io_submit(io, list, 4);
        tier_io_destroy(io);
        free(room);             /* ASan sees a write that comes later */
    }
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("io");
    tcase_set_timeout(tcase, 60);
    tcase_add_unchecked_fixture(tcase, make_file, drop_file);
    tcase_add_test(tcase, window_follows_the_way_of_answers);
    tcase_add_test(tcase, pieces_are_even);
    tcase_add_loop_test(tcase, exact_bytes_at_random_extents, 0, SETTINGS * SEEDS);
    tcase_add_loop_test(tcase, sim_on_virtual_time_is_exact_and_repeatable, 0, 5);
    tcase_add_test(tcase, sim_order_is_random_and_follows_the_seed);
    tcase_add_test(tcase, sim_takes_the_time_of_its_disk);
    tcase_add_test(tcase, throttle_holds_the_rate_and_demand_goes_first);
    tcase_add_test(tcase, faults_are_visible_and_follow_the_seed);
    tcase_add_test(tcase, stuck_reads_come_late);
    tcase_add_test(tcase, wrong_requests_and_settings_are_refused);
    tcase_add_test(tcase, a_refusal_of_direct_reads_is_reported);
    tcase_add_test(tcase, deadlines_are_kept);
    tcase_add_test(tcase, feed_keeps_reads_going);
    tcase_add_test(tcase, destroy_waits_for_what_is_in_flight);
    Suite *suite = suite_create("tiering/io");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
