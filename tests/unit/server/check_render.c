/* Replies are valid JSON of OpenAI's shapes, whatever the text; an event frame holds it whole. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "port/json.h"
#include "server/render.h"
#include "server/sse.h"

static struct base_buf out;
static struct port_json *json;
static struct srv_answer answer;

static void setup(void)
{
    base_buf_init(&out);
    json = NULL;
    answer = (struct srv_answer){ .endpoint = SRV_CHAT, .id = "chatcmpl-1", .model = "m\"x",
                                  .created = 12, .prompt_tokens = 3, .cached_tokens = 2,
                                  .answer_tokens = 4 };
}

static void teardown(void)
{
    base_buf_fini(&out);
    port_json_free(json);
}

static const struct port_json *parsed(void)
{
    struct base_err err = { 0 };
    port_json_free(json);
    ck_assert_int_eq(base_buf_error(&out), 0);
    ck_assert_msg(port_json_parse(&json, out.data, out.size, "reply", &err) == 0, "%s\n%s",
                  err.text, out.data);
    return json;
}

static const char *text_at(const struct port_json *value, const char *key)
{
    return port_json_text(port_json_get(value, key), NULL);
}

START_TEST(errors_have_the_four_fields)
{
    struct srv_fault fault = { 0 };
    srv_fault_set(&fault, 400, "invalid_request_error", NULL, "stop", "bad \"%s\"", "a\nb");
    srv_fault_set(&fault, 500, "later", "later", "later", "the first fault is kept");
    srv_render_error(&out, &fault);
    const struct port_json *error = port_json_get(parsed(), "error");
    ck_assert_str_eq(text_at(error, "message"), "bad \"a b\"");
    ck_assert_str_eq(text_at(error, "type"), "invalid_request_error");
    ck_assert_str_eq(text_at(error, "param"), "stop");
    ck_assert_int_eq(port_json_type(port_json_get(error, "code")), PORT_JSON_NULL);
    ck_assert_uint_eq(port_json_count(error), 4);
}
END_TEST

START_TEST(a_chat_answer)
{
    static const char text[] = "\x01 \"quoted\" \\ \xff broken \xe2\x82\xac";
    struct srv_part part = { .text = text, .size = sizeof text - 1, .finish = "length" };
    srv_render_answer(&out, &answer, &part);
    const struct port_json *reply = parsed();
    ck_assert_str_eq(text_at(reply, "object"), "chat.completion");
    ck_assert_str_eq(text_at(reply, "model"), "m\"x");
    const struct port_json *choice = port_json_at(port_json_get(reply, "choices"), 0);
    const struct port_json *message = port_json_get(choice, "message");
    ck_assert_str_eq(text_at(message, "role"), "assistant");
    ck_assert_str_eq(text_at(message, "content"),
                     "\x01 \"quoted\" \\ \xef\xbf\xbd broken \xe2\x82\xac");
    ck_assert_str_eq(text_at(choice, "finish_reason"), "length");
    const struct port_json *usage = port_json_get(reply, "usage");
    ck_assert_int_eq(port_json_as_i64(port_json_get(usage, "total_tokens")), 7);
    const struct port_json *details = port_json_get(usage, "prompt_tokens_details");
    ck_assert_int_eq(port_json_as_i64(port_json_get(details, "cached_tokens")), 2);
}
END_TEST

START_TEST(stream_chunks_of_both_kinds)
{
    for (int chat = 0; chat < 2; chat++) {
        answer.endpoint = chat ? SRV_CHAT : SRV_COMPLETION;
        answer.include_usage = true;
        struct srv_part parts[] = {
            { .text = "", .first = true },
            { .text = "he", .size = 2 },
            { .text = "", .finish = "stop" },
        };
        for (int p = chat ? 0 : 1; p < 3; p++) {
            base_buf_clear(&out);
            srv_render_chunk(&out, &answer, &parts[p]);
            const struct port_json *reply = parsed();
            ck_assert_str_eq(text_at(reply, "object"),
                             chat ? "chat.completion.chunk" : "text_completion");
            ck_assert_ptr_nonnull(port_json_get(reply, "usage"));
            const struct port_json *choice = port_json_at(port_json_get(reply, "choices"), 0);
            const struct port_json *from = chat ? port_json_get(choice, "delta") : choice;
            const char *text = text_at(from, chat ? "content" : "text");
            if (chat && p == 2) {
                ck_assert_ptr_null(text);
            } else {
                ck_assert_str_eq(text, parts[p].text);
            }
            if (p == 2) {
                ck_assert_str_eq(text_at(choice, "finish_reason"), "stop");
            } else {
                ck_assert_ptr_null(text_at(choice, "finish_reason"));
            }
        }
        base_buf_clear(&out);
        srv_render_usage_chunk(&out, &answer);
        ck_assert_uint_eq(port_json_count(port_json_get(parsed(), "choices")), 0);
    }
}
END_TEST

START_TEST(models_are_listed)
{
    srv_render_models(&out, "pebble", 99, 4096);
    const struct port_json *model = port_json_at(port_json_get(parsed(), "data"), 0);
    ck_assert_str_eq(text_at(model, "id"), "pebble");
    ck_assert_int_eq(port_json_as_i64(port_json_get(model, "max_model_len")), 4096);
}
END_TEST

START_TEST(frames_end_with_an_empty_line)
{
    srv_sse_data(&out, "{}", 2);
    srv_sse_data(&out, "a\nb\n", 4);
    srv_sse_comment(&out, "working");
    srv_sse_done(&out);
    ck_assert_str_eq(out.data, "data: {}\n\n"
                               "data: a\ndata: b\ndata: \n\n"
                               ": working\n\n"
                               "data: [DONE]\n\n");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("render");
    TCase *cases = tcase_create("render");
    tcase_add_checked_fixture(cases, setup, teardown);
    tcase_add_test(cases, errors_have_the_four_fields);
    tcase_add_test(cases, a_chat_answer);
    tcase_add_test(cases, stream_chunks_of_both_kinds);
    tcase_add_test(cases, models_are_listed);
    tcase_add_test(cases, frames_end_with_an_empty_line);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
