/* An answer comes whole or not at all: one that ends before its length is no answer. */
#include <check.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tools/fetch.h"

static char dir[64], url[100];

struct server {
    int fd;
    const char *answer;
};

static void setup(void)
{
    snprintf(dir, sizeof dir, "/tmp/expertier-check-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(url, sizeof url, "unix:%s/socket", dir);
}

static void teardown(void)
{
    unlink(url + strlen("unix:"));
    ck_assert_int_eq(rmdir(dir), 0);
}

/* Answers one request with these bytes and closes. */
static void *serve(void *context)
{
    struct server *server = context;
    char request[1024];
    int fd = accept(server->fd, NULL, NULL);
    if (fd < 0 || recv(fd, request, sizeof request, 0) < 1) return NULL;
    size_t size = strlen(server->answer);
    bool sent = send(fd, server->answer, size, MSG_NOSIGNAL) == (ssize_t)size;
    close(fd);
    return sent ? context : NULL;
}

static int fetch(const char *answer, struct base_buf *body, struct base_err *err)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct server server = { .answer = answer };
    pthread_t thread;
    void *sent;
    snprintf(address.sun_path, sizeof address.sun_path, "%s", url + strlen("unix:"));
    unlink(address.sun_path);
    server.fd = socket(AF_UNIX, SOCK_STREAM, 0);
    ck_assert_int_eq(bind(server.fd, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(listen(server.fd, 1), 0);
    ck_assert_int_eq(pthread_create(&thread, NULL, serve, &server), 0);
    base_buf_init(body);
    int rc = cli_fetch(url, "/tier/stats", body, err);
    pthread_join(thread, &sent);
    ck_assert_ptr_nonnull(sent);
    close(server.fd);
    return rc;
}

START_TEST(what_is_cut_short_is_no_answer)
{
    static const struct {
        const char *answer, *body;
        int rc;
    } cases[] = {
        { "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "abc", 200 },
        { "HTTP/1.1 404 No\r\ncontent-length:3\r\nX: y\r\n\r\nabc", "abc", 404 },
        { "HTTP/1.0 200 OK\r\n\r\nabc\r\nContent-Length: 99\r\n",
          "abc\r\nContent-Length: 99\r\n", 200 },
        { "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", NULL, BASE_ETORN },
        { "HTTP/1.1 200 OK\r\nX: y\r\nCONTENT-LENGTH: 4\r\n\r\n", NULL, BASE_ETORN },
        { "HTTP/1.1 200 OK\r\nContent-Le", NULL, BASE_EFORMAT },
        { "SSH-2.0\r\n\r\n", NULL, BASE_EFORMAT },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct base_buf body;
        struct base_err err = { 0 };
        int rc = fetch(cases[i].answer, &body, &err);
        ck_assert_msg(rc == cases[i].rc, "case %zu: %d, %s", i, rc, err.text);
        if (cases[i].body) ck_assert_str_eq(body.data, cases[i].body);
        else ck_assert_uint_eq(body.size, 0);
        if (rc == BASE_ETORN) ck_assert_ptr_nonnull(strstr(err.text, "of its 4 bytes"));
        base_buf_fini(&body);
    }
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("fetch");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, what_is_cut_short_is_no_answer);
    Suite *suite = suite_create("tools/fetch");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
