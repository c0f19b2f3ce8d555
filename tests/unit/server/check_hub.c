/* A parked connection is resumed when it has something to do and not before: a quiet stream is kept
 * alive, one that waits to be let in sleeps on. */
#include <check.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "server/hub.h"

/* The watch thread looks every 50 ms, and 100. */
enum { KEEP_ALIVE_NS = 1000000, LONGER_NS = 200000000 };

static struct srv_hub hub;
static struct srv_session *session;
static int fds[2];
static atomic_uint parked, resumed;

static void count_cancelled(void *context)
{
    (void)context;
}

static void park(void *context)
{
    (void)context;
    atomic_fetch_add(&parked, 1);
}

static void unpark(void *context)
{
    (void)context;
    atomic_fetch_add(&resumed, 1);
}

static bool parks(void)
{
    return srv_hub_park(&hub, session, park, NULL);
}

/* Waits until `resumed` is `count` or `ms` are over. */
static unsigned await_resumed(unsigned count, unsigned ms)
{
    for (; ms > 0 && atomic_load(&resumed) < count; ms--) {
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    }
    return atomic_load(&resumed);
}

static void begin(uint64_t keep_alive_ns)
{
    struct base_err err = { 0 };
    struct srv_ask ask = { .stream = true };
    static const struct srv_model model = { .name = "m" };
    ck_assert_int_eq(srv_hub_open(&hub, keep_alive_ns, &err), 0);
    hub.cancelled = count_cancelled;
    atomic_store(&parked, 0);
    atomic_store(&resumed, 0);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    session = srv_session_create(&hub, &ask, &model, 8192);
    ck_assert_ptr_nonnull(session);
    srv_hub_join(&hub, session, fds[0], unpark, NULL);
}

static void setup(void)
{
    begin(KEEP_ALIVE_NS);
}

static void setup_longer(void)
{
    begin(LONGER_NS);
}

static void teardown(void)
{
    srv_hub_shut(&hub);
    srv_hub_leave(&hub, session);
    srv_session_unref(session);         /* the engine side's */
    srv_hub_close(&hub);
    close(fds[0]);
    close(fds[1]);
}

START_TEST(a_stream_that_has_not_begun_sleeps)
{
    ck_assert(parks());
    ck_assert_uint_eq(await_resumed(1, 300), 0);
    srv_session_put_accepted(session);
    srv_hub_news(&hub);
    ck_assert_uint_eq(await_resumed(1, 10000), 1);
    ck_assert_int_eq(srv_session_advance(session), SRV_SESSION_STREAM);
}
END_TEST

START_TEST(a_quiet_stream_is_kept_alive)
{
    char bytes[64];
    srv_session_put_accepted(session);
    ck_assert_int_eq(srv_session_advance(session), SRV_SESSION_STREAM);
    srv_hub_stream(&hub, session);
    for (unsigned round = 1; round <= 2; round++) {
        ck_assert(parks());
        ck_assert_uint_eq(await_resumed(round, 10000), round);
        ck_assert(!parks());            /* until it was said */
        ck_assert_int_gt(srv_session_read(session, bytes, sizeof bytes), 0);
        ck_assert_int_eq(bytes[0], ':');
    }
}
END_TEST

/* Tokens without text wake the connection, and tell the client nothing. */
START_TEST(tokens_without_text_keep_nothing_alive)
{
    char bytes[64];
    bool said = false;
    srv_session_put_accepted(session);
    ck_assert_int_eq(srv_session_advance(session), SRV_SESSION_STREAM);
    srv_hub_stream(&hub, session);
    for (unsigned round = 1; round <= 400 && !said; round++) {
        const struct eng_piece empty = { .token = 1, .text = "" };
        if (parks()) {
            ck_assert(srv_session_put_piece(session, &empty));
            srv_hub_news(&hub);
            await_resumed(round, 10000);
        }
        nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
        ssize_t n = srv_session_read(session, bytes, sizeof bytes);
        said = n > 0 && bytes[0] == ':';
        ck_assert(said || n == 0);
    }
    ck_assert_msg(said, "two seconds of tokens without text, and no comment");
}
END_TEST

/* What the engine makes of a client that left is no failure of its own. */
START_TEST(who_left_gets_no_error)
{
    atomic_store(&session->cancelled, true);
    srv_session_put_end(session, ENG_FAILED, -ECANCELED, "the client left");
    ck_assert_int_eq(srv_session_advance(session), SRV_SESSION_ABORT);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("hub");
    TCase *cases = tcase_create("hub");
    tcase_add_checked_fixture(cases, setup, teardown);
    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, a_stream_that_has_not_begun_sleeps);
    tcase_add_test(cases, a_quiet_stream_is_kept_alive);
    tcase_add_test(cases, who_left_gets_no_error);
    suite_add_tcase(suite, cases);
    cases = tcase_create("longer");
    tcase_add_checked_fixture(cases, setup_longer, teardown);
    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, tokens_without_text_keep_nothing_alive);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
