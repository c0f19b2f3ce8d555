/* The engine thread stops while HTTP threads still hand over requests and jobs: each is answered or
 * refused, none is lost; a request that finds it idle waits for company, as long as others can
 * come. The engine is a fake one, linked in place of the real. */
#include <check.h>
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "server/drive.h"

enum { HELD_MAX = 8, THREADS = 4, ROUNDS = 40, HANGS_MS = 20000 };

/* -- the engine: one step answers all that was submitted -------------------------------------- */

static struct eng_request taken[HELD_MAX];
static unsigned taken_count;
static atomic_uint steps, together;     /* requests of the step that had most */

int64_t eng_submit(struct eng *eng, const struct eng_request *request, struct base_err *err)
{
    (void)eng, (void)err;
    if (taken_count == HELD_MAX) return -EAGAIN;
    taken[taken_count++] = *request;
    return 1;
}

int eng_step(struct eng *eng)
{
    (void)eng;
    atomic_fetch_add(&steps, 1);
    if (taken_count > atomic_load(&together)) atomic_store(&together, taken_count);
    while (taken_count > 0) {
        struct eng_piece piece = { .token = 1, .text = "x", .size = 1, .finish = ENG_LENGTH };
        struct eng_request *request = &taken[--taken_count];
        request->on_piece(request->context, &piece);
    }
    return 0;
}

void eng_cancel(struct eng *eng, uint64_t request)
{
    (void)eng, (void)request;
    taken_count = 0;                    /* only called as it ends */
}

uint32_t eng_idle(struct eng *eng)
{
    (void)eng;
    return UINT32_MAX;
}

const char *eng_failure(const struct eng *eng)
{
    (void)eng;
    return NULL;
}

/* -- what hands over -------------------------------------------------------------------------- */

static struct srv_hub hub;
static struct srv_drive drive;
static const struct srv_model model = { .name = "m" };
static atomic_uint answered, stopped, lost, jobs_run;

static void on_cancelled(void *context)
{
    srv_drive_cancelled(context);
}

static bool ends(struct srv_session *session)
{
    for (unsigned ms = 0; ms < HANGS_MS; ms++) {
        for (unsigned i = 0; i < 1000; i++) {
            if (atomic_load(&session->ended)) return true;
            sched_yield();
        }
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    }
    return false;
}

/* As a request does, one after the other until the drive refuses them. */
static void *ask(void *context)
{
    (void)context;
    for (;;) {
        struct srv_ask request = { .stream = true };
        struct srv_session *session = srv_session_create(&hub, &request, &model, 8192);
        int rc = session ? srv_drive_submit(&drive, session) : -ENOMEM;
        if (rc < 0) {
            srv_session_unref(session);
            srv_session_unref(session);
            if (rc == -EBUSY) continue;
            return NULL;
        }
        if (!ends(session)) {
            atomic_fetch_add(&lost, 1);
            return NULL;
        }
        atomic_fetch_add(session->end_finish == ENG_LENGTH ? &answered : &stopped, 1);
        srv_session_unref(session);
    }
}

static void run_job(struct srv_drive_job *job)
{
    (void)job;
    atomic_fetch_add(&jobs_run, 1);
}

/* As changes of settings do, which are one at a time. */
static void *change(void *context)
{
    (void)context;
    struct srv_drive_job job = { .run = run_job };
    while (srv_drive_run(&drive, &job) == 0) {
    }
    return NULL;
}

static void stop_amid(unsigned ms)
{
    struct base_err err = { 0 };
    pthread_t threads[THREADS + 1];
    ck_assert_int_eq(srv_hub_open(&hub, 1000000000, &err), 0);
    hub.cancelled = on_cancelled;
    hub.cancelled_context = &drive;
    drive = (struct srv_drive){ 0 };
    ck_assert_int_eq(srv_drive_open(&drive, NULL, &hub, HELD_MAX, &err), 0);
    for (unsigned i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, ask, NULL);
    pthread_create(&threads[THREADS], NULL, change, NULL);
    nanosleep(&(struct timespec){ .tv_nsec = (long)ms * 1000000 }, NULL);
    srv_drive_stop(&drive);
    for (unsigned i = 0; i <= THREADS; i++) pthread_join(threads[i], NULL);
    ck_assert_uint_eq(atomic_load(&drive.held), 0);
    struct srv_drive_job job = { .run = run_job };
    ck_assert_int_eq(srv_drive_run(&drive, &job), -ESHUTDOWN);
    srv_hub_close(&hub);
    srv_drive_close(&drive);
}

START_TEST(requests_that_come_as_it_stops_are_answered_or_refused)
{
    for (unsigned round = 0; round < ROUNDS; round++) {
        stop_amid(1 + round % 5);
        ck_assert_uint_eq(atomic_load(&lost), 0);
    }
    ck_assert_uint_gt(atomic_load(&answered), ROUNDS);
    ck_assert_uint_gt(atomic_load(&jobs_run), 0);
    printf("%u answered, %u told that it stops, %u jobs\n", atomic_load(&answered),
           atomic_load(&stopped), atomic_load(&jobs_run));
}
END_TEST

/* ----------------------------------------------------------------------------------- company -- */

enum { COMPANY = 4 };

static struct srv_session *submitted(void)
{
    struct srv_ask request = { .stream = true };
    struct srv_session *session = srv_session_create(&hub, &request, &model, 8192);
    ck_assert_ptr_nonnull(session);
    ck_assert_int_eq(srv_drive_submit(&drive, session), 0);
    return session;
}

static void open_waiting(uint64_t company_ns)
{
    struct base_err err = { 0 };
    ck_assert_int_eq(srv_hub_open(&hub, 1000000000, &err), 0);
    hub.cancelled = on_cancelled;
    hub.cancelled_context = &drive;
    drive = (struct srv_drive){ .company_ns = company_ns, .company_max = COMPANY };
    ck_assert_int_eq(srv_drive_open(&drive, NULL, &hub, HELD_MAX, &err), 0);
    atomic_store(&steps, 0);
    atomic_store(&together, 0);
}

static void close_waiting(void)
{
    srv_drive_stop(&drive);
    srv_hub_close(&hub);
    srv_drive_close(&drive);
}

/* Longer than any test: what ends the wait is that nobody else can come, or that nobody is left. */
static const uint64_t FOREVER_NS = UINT64_C(3600000000000);

START_TEST(a_request_waits_for_company)
{
    struct srv_session *sessions[COMPANY];
    open_waiting(FOREVER_NS);
    for (int round = 1; round <= 3; round++) {
        for (int i = 0; i < COMPANY; i++) {
            sessions[i] = submitted();
            nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
            if (i < COMPANY - 1) ck_assert(!atomic_load(&sessions[0]->ended));
        }
        for (int i = 0; i < COMPANY; i++) {
            ck_assert(ends(sessions[i]));
            ck_assert_int_eq(sessions[i]->end_finish, ENG_LENGTH);
            srv_session_unref(sessions[i]);
        }
        ck_assert_uint_eq(atomic_load(&steps), round);
        ck_assert_uint_eq(atomic_load(&together), COMPANY);
    }
    close_waiting();
}
END_TEST

START_TEST(waiting_for_company_ends_with_who_waits)
{
    open_waiting(FOREVER_NS);
    struct srv_session *session = submitted();
    atomic_store(&session->cancelled, true);
    srv_drive_cancelled(&drive);
    ck_assert_msg(ends(session), "a client that left is waited for");
    ck_assert_int_eq(session->end_finish, ENG_FAILED);
    srv_session_unref(session);
    /* Jobs are run meanwhile, and the drive stops. */
    session = submitted();
    struct srv_drive_job job = { .run = run_job };
    ck_assert_int_eq(srv_drive_run(&drive, &job), 0);
    close_waiting();
    ck_assert(atomic_load(&session->ended));
    srv_session_unref(session);
    ck_assert_uint_eq(atomic_load(&together), 0);
    /* Nobody comes: it begins alone. */
    open_waiting(1000000);
    session = submitted();
    ck_assert(ends(session));
    ck_assert_int_eq(session->end_finish, ENG_LENGTH);
    srv_session_unref(session);
    close_waiting();
    ck_assert_uint_eq(atomic_load(&together), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("drive");
    TCase *cases = tcase_create("drive");
    tcase_set_timeout(cases, 100);
    tcase_add_test(cases, requests_that_come_as_it_stops_are_answered_or_refused);
    tcase_add_test(cases, a_request_waits_for_company);
    tcase_add_test(cases, waiting_for_company_ends_with_who_waits);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
