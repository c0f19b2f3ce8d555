/* Requests of OpenAI's API are read as their authors meant them; each bad one gets one clear
 * sentence, the right status and the parameter's name. */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "server/openai.h"

static struct srv_ask ask;
static struct srv_fault fault;

static int parse(enum srv_endpoint endpoint, const char *body)
{
    return srv_ask_parse(&ask, endpoint, body, strlen(body), SRV_VALUES_MAX, &fault);
}

static void teardown(void)
{
    srv_ask_fini(&ask);
}

START_TEST(completion_with_everything)
{
    ck_assert_int_eq(parse(SRV_COMPLETION,
        "{\"model\":\"pebble\",\"prompt\":\"In the\\u0000 beginning\",\"max_tokens\":7,"
        "\"temperature\":0.25,\"top_p\":0.5,\"top_k\":40,\"seed\":-3,\"stop\":[\"\\n\",\"END\"],"
        "\"stream\":true,\"stream_options\":{\"include_usage\":true},\"logprobs\":0,\"n\":1,"
        "\"best_of\":1,\"echo\":false,\"presence_penalty\":0,\"frequency_penalty\":0.0,"
        "\"logit_bias\":{},\"user\":\"me\",\"metadata\":{\"a\":\"b\"},\"suffix\":null,"
        "\"ignore_eos\":true}"), 0);
    ck_assert_str_eq(ask.model, "pebble");
    ck_assert_uint_eq(ask.prompt_bytes, strlen("In the") + 1 + strlen(" beginning"));
    ck_assert_uint_eq(ask.max_tokens, 7);
    ck_assert(ask.sampling.temperature == 0.25f && ask.sampling.top_p == 0.5f);
    ck_assert_uint_eq(ask.sampling.top_k, 40);
    ck_assert(ask.seeded && ask.sampling.seed == (uint64_t)-3);
    ck_assert_uint_eq(ask.stop_count, 2);
    ck_assert_str_eq(ask.stops[1], "END");
    ck_assert(ask.stream && ask.include_usage && ask.logprobs && ask.ignore_eos);
}
END_TEST

START_TEST(what_is_not_given_has_the_defaults_of_the_api)
{
    ck_assert_int_eq(parse(SRV_COMPLETION, "{\"prompt\":\"x\"}"), 0);
    ck_assert(ask.sampling.temperature == 1 && ask.sampling.top_p == 1);
    ck_assert(!ask.stream && !ask.seeded && !ask.logprobs && !ask.model);
    ck_assert_uint_eq(ask.max_tokens, 0);
    ck_assert_uint_eq(ask.stop_count, 0);
}
END_TEST

START_TEST(prompts_may_be_ids_and_arrays_of_one)
{
    ck_assert_int_eq(parse(SRV_COMPLETION, "{\"prompt\":[5,0,4095]}"), 0);
    ck_assert_uint_eq(ask.id_count, 3);
    ck_assert_uint_eq(ask.ids[2], 4095);
    srv_ask_fini(&ask);
    ck_assert_int_eq(parse(SRV_COMPLETION, "{\"prompt\":[[1,2]]}"), 0);
    ck_assert_uint_eq(ask.id_count, 2);
    srv_ask_fini(&ask);
    ck_assert_int_eq(parse(SRV_COMPLETION, "{\"prompt\":[\"one\"]}"), 0);
    ck_assert_str_eq(ask.prompt, "one");
}
END_TEST

START_TEST(chat_with_parts_and_roles)
{
    ck_assert_int_eq(parse(SRV_CHAT,
        "{\"messages\":[{\"role\":\"developer\",\"content\":\"be brief\"},"
        "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
        "{\"type\":\"text\",\"text\":\"b\"}],\"name\":\"x\"},"
        "{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":null,\"refusal\":null},"
        "{\"role\":\"user\",\"content\":[]},"
        "{\"role\":\"tool\",\"tool_call_id\":\"call_1\",\"content\":\"21 degrees\"}],"
        "\"max_completion_tokens\":9,\"max_tokens\":9,\"stop\":\"###\",\"logprobs\":true,"
        "\"top_logprobs\":0,\"tools\":[],\"tool_choice\":\"none\",\"store\":false,"
        "\"response_format\":{\"type\":\"text\"},\"modalities\":[\"text\"]}"), 0);
    ck_assert_uint_eq(ask.message_count, 5);
    ck_assert_str_eq(ask.messages[0].role, "system");
    ck_assert_str_eq(ask.messages[1].text, "ab");
    ck_assert_uint_eq(ask.messages[1].size, 2);
    ck_assert_uint_eq(ask.messages[3].size, 0);
    ck_assert_str_eq(ask.messages[4].role, "tool");
    ck_assert_str_eq(ask.messages[4].text, "21 degrees");
    ck_assert_uint_eq(ask.max_tokens, 9);
    ck_assert_str_eq(ask.stops[0], "###");
    ck_assert(ask.logprobs);
}
END_TEST

START_TEST(top_p_of_nothing_is_greedy)
{
    ck_assert_int_eq(parse(SRV_COMPLETION, "{\"prompt\":\"x\",\"top_p\":0}"), 0);
    ck_assert(ask.sampling.temperature == 0 && ask.sampling.top_p == 1);
}
END_TEST

static const struct {
    enum srv_endpoint endpoint;
    const char *body;
    const char *param;          /* "" = none */
    const char *says;           /* part of the sentence */
} bad[] = {
    { SRV_COMPLETION, "", "", "request body" },
    { SRV_COMPLETION, "{", "", "request body:1" },
    { SRV_COMPLETION, "{\"prompt\":\"x\"} trailing", "", "request body:1" },
    { SRV_COMPLETION, "[1]", "", "must be a JSON object, not an array" },
    { SRV_COMPLETION, "null", "", "must be a JSON object, not null" },
    { SRV_COMPLETION, "{\"prompt\":\"\xff\xfe\"}", "", "request body:1" },
    { SRV_COMPLETION, "{\"prompt\":\"\\ud800\"}", "", "request body:1" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"prompt\":\"y\"}", "", "duplicate" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"temperature\":NaN}", "", "request body:1" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"temperature\":1e999}", "", "request body:1" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"seed\":99999999999999999999}", "", "request body:1" },
    { SRV_COMPLETION, "{}", "prompt", "'prompt' is missing" },
    { SRV_COMPLETION, "{\"prompt\":null}", "prompt", "'prompt' is missing" },
    { SRV_COMPLETION, "{\"prompt\":7}", "prompt", "must be a string or an array of token ids" },
    { SRV_COMPLETION, "{\"prompt\":[]}", "prompt", "empty array" },
    { SRV_COMPLETION, "{\"prompt\":[\"a\",\"b\"]}", "prompt", "one prompt a request" },
    { SRV_COMPLETION, "{\"prompt\":[1,-1]}", "prompt", "from 0 to" },
    { SRV_COMPLETION, "{\"prompt\":[1,\"a\"]}", "prompt", "must be an integer, not a string" },
    { SRV_COMPLETION, "{\"prompt\":[true]}", "prompt", "not a boolean" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"max_tokens\":0}", "max_tokens", "from 1 to" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"max_tokens\":\"9\"}", "max_tokens", "not a string" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"max_tokens\":1.5}", "max_tokens", "an integer" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"max_tokens\":1e18}", "max_tokens", "an integer" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"temperature\":-0.1}", "temperature", "from 0 to 2" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"temperature\":\"hot\"}", "temperature", "a number" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"top_p\":1.01}", "top_p", "from 0 to 1" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"top_k\":-2}", "top_k", "from -1" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"seed\":1.0}", "seed", "an integer" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"stop\":\"\"}", "stop", "1 to 256 bytes" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"stop\":[3]}", "stop", "not an integer" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"stop\":\"a\\u0000b\"}", "stop", "NUL" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\","
      "\"8\",\"9\",\"10\",\"11\",\"12\",\"13\",\"14\",\"15\",\"16\",\"17\"]}", "stop",
      "at most 16" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"n\":2}", "n", "'n' must be 1" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"n\":\"1\"}", "n", "an integer" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"best_of\":3}", "best_of", "must be 1" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"logprobs\":3}", "logprobs", "use 0" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"logprobs\":true}", "logprobs", "an integer" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"echo\":true}", "echo", "not supported" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"stream\":1}", "stream", "true or false" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"stream_options\":{\"include_usage\":true}}",
      "stream_options", "needs \"stream\": true" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"stream\":true,\"stream_options\":{\"x\":1}}",
      "stream_options", "'stream_options.x'" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"presence_penalty\":0.5}", "presence_penalty",
      "not supported" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"repetition_penalty\":1.1}", "repetition_penalty",
      "not supported" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"logit_bias\":{\"50\":1}}", "logit_bias",
      "not supported" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"temprature\":1}", "temprature",
      "did you mean 'temperature'?" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"a\\nb\\u001b[31m\":1}", "a\nb\033[31m",
      "unknown parameter 'a b [31m'" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"messages\":[]}", "messages", "unknown parameter" },
    { SRV_COMPLETION, "{\"prompt\":\"x\",\"model\":5}", "model", "a string" },
    { SRV_CHAT, "{\"prompt\":\"x\"}", "prompt", "unknown parameter 'prompt'" },
    { SRV_CHAT, "{}", "messages", "'messages' is missing" },
    { SRV_CHAT, "{\"messages\":[]}", "messages", "1 to" },
    { SRV_CHAT, "{\"messages\":\"hi\"}", "messages", "an array" },
    { SRV_CHAT, "{\"messages\":[\"hi\"]}", "messages", "messages[0] must be an object" },
    { SRV_CHAT, "{\"messages\":[{\"content\":\"x\"}]}", "messages", "messages[0].role" },
    { SRV_CHAT, "{\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]}", "messages",
      "not king" },
    { SRV_CHAT, "{\"messages\":[{\"role\":\"user\"}]}", "messages", "absent" },
    { SRV_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":5}]}", "messages",
      "not an integer" },
    { SRV_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\","
      "\"image_url\":{}}]}]}", "messages", "not type 'image_url'" },
    { SRV_CHAT, "{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{}]}]}",
      "messages", "'tool_calls' is not supported" },
    { SRV_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"tool_call_id\":\"1\"}]}",
      "messages", "'tool_call_id' is not supported" },
    { SRV_CHAT, "{\"messages\":[{\"role\":\"tool\",\"content\":\"x\",\"tool_call_id\":1}]}",
      "messages", "'tool_call_id' must be a string, not an integer" },
    { SRV_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tools\":[{}]}", "tools",
      "not supported" },
    { SRV_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
      "\"tool_choice\":\"required\"}", "tool_choice", "not supported" },
    { SRV_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
      "\"response_format\":{\"type\":\"json_object\"}}", "response_format", "constrained" },
    { SRV_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"top_logprobs\":5}",
      "top_logprobs", "not supported" },
    { SRV_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":5,"
      "\"max_completion_tokens\":6}", "max_completion_tokens", "differ" },
    { SRV_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
      "\"modalities\":[\"audio\"]}", "modalities", "[\"text\"]" },
};

START_TEST(bad_requests_get_one_clear_sentence)
{
    int rc = parse(bad[_i].endpoint, bad[_i].body);
    ck_assert_msg(rc == -EINVAL, "accepted: %s", bad[_i].body);
    ck_assert_int_eq(fault.status, 400);
    ck_assert_str_eq(fault.type, "invalid_request_error");
    ck_assert_ptr_nonnull(fault.code);
    ck_assert_str_eq(fault.param, bad[_i].param);
    ck_assert_msg(strstr(fault.message, bad[_i].says), "%s\n  said: %s\n  not:  %s", bad[_i].body,
                  fault.message, bad[_i].says);
    ck_assert_ptr_null(strchr(fault.message, '\n'));
}
END_TEST

START_TEST(deep_nesting_is_refused)
{
    char body[4096] = "{\"prompt\":";
    size_t at = strlen(body);
    memset(body + at, '[', 2000);
    memset(body + at + 2000, ']', 2000);
    body[at + 4000] = '}';
    ck_assert_int_eq(srv_ask_parse(&ask, SRV_COMPLETION, body, at + 4001, SRV_VALUES_MAX,
                                   &fault), -EINVAL);
    ck_assert_msg(strstr(fault.message, "nested more than"), "%s", fault.message);
}
END_TEST

/* [1,{},{},...] in a member that is ignored; `count` values in all, the body, the prompt and the
 * array too. */
static void parse_many(size_t count, int rc)
{
    static const char head[] = "{\"prompt\":\"x\",\"metadata\":{\"a\":[1", tail[] = "]}}";
    char *body = malloc(sizeof head + 3 * count + sizeof tail), *at = body;
    ck_assert_ptr_nonnull(body);
    at += sprintf(at, "%s", head);
    for (size_t values = 6; values < count; values += 2) at += sprintf(at, ",%s", "{}");
    at += sprintf(at, "%s", tail);
    ck_assert_int_eq(srv_ask_parse(&ask, SRV_COMPLETION, body, (size_t)(at - body), SRV_VALUES_MAX,
                                   &fault), rc);
    free(body);
}

START_TEST(more_values_than_memory_is_meant_for_are_refused)
{
    parse_many(SRV_VALUES_MAX, 0);
    srv_ask_fini(&ask);
    parse_many(SRV_VALUES_MAX + 2, -EINVAL);
    ck_assert_int_eq(fault.status, 400);
    ck_assert_str_eq(fault.code, "invalid_json");
    ck_assert_msg(strstr(fault.message, "more than 262144 JSON values"), "%s", fault.message);
    srv_ask_fini(&ask);
    /* In a string they are none. */
    ck_assert_uint_eq(port_json_values("[\"a,[{\\\",\",2]", 14), 3);
}
END_TEST

START_TEST(the_body_is_freed_before_the_answer)
{
    static const struct srv_model model = { .name = "pebble", .vocab = 100, .tokens_max = 50 };
    ck_assert_int_eq(parse(SRV_COMPLETION, "{\"prompt\":[1,2,3],\"model\":\"pebble\","
                           "\"stop\":[\"END\",\"\\n\"],\"metadata\":{\"a\":[1,2]}}"), 0);
    ck_assert_ptr_nonnull(ask.body);
    ck_assert_int_eq(srv_ask_tokenize(&ask, &model, &fault), 0);
    ck_assert_ptr_null(ask.body);
    ck_assert_ptr_null(ask.model);
    ck_assert_uint_eq(ask.id_count, 3);
    ck_assert_uint_eq(ask.ids[2], 3);
    ck_assert_uint_eq(ask.stop_count, 2);
    ck_assert_str_eq(ask.stops[0], "END");
    ck_assert_str_eq(ask.stops[1], "\n");
    srv_ask_fini(&ask);
    ck_assert_int_eq(parse(SRV_COMPLETION, "{\"prompt\":[1,2,3]}"), 0);
    ck_assert_int_eq(srv_ask_tokenize(&ask, &model, &fault), 0);
    ck_assert_ptr_null(ask.body);
    ck_assert_uint_eq(ask.stop_count, 0);
}
END_TEST

/* Any damage to a good body is either accepted or refused with a sentence; nothing crashes. */
START_TEST(damaged_bodies_are_survived)
{
    static const char good[] =
        "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\","
        "\"text\":\"h\\u00e9llo\"}]}],\"stop\":[\"a\",\"b\"],\"max_tokens\":12,"
        "\"temperature\":0.5,\"stream\":true,\"stream_options\":{\"include_usage\":true}}";
    struct base_rng rng;
    uint64_t seed = 99 + (uint64_t)_i;
    base_rng_init(&rng, seed);
    for (unsigned round = 0; round < 2000; round++) {
        char body[sizeof good];
        memcpy(body, good, sizeof good);
        size_t size = sizeof good - 1;
        for (uint64_t hits = 1 + base_rng_below(&rng, 4); hits > 0; hits--) {
            body[base_rng_below(&rng, size)] = (char)base_rng_below(&rng, 256);
        }
        size = base_rng_below(&rng, 4) == 0 ? base_rng_below(&rng, size) : size;
        int rc = srv_ask_parse(&ask, SRV_CHAT, body, size, SRV_VALUES_MAX, &fault);
        ck_assert_msg(rc == 0 || (fault.status >= 400 && fault.message[0]), "seed %llu",
                      (unsigned long long)seed);
        srv_ask_fini(&ask);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ask");
    TCase *cases = tcase_create("ask");
    tcase_add_checked_fixture(cases, NULL, teardown);
    tcase_set_timeout(cases, 60);
    tcase_add_test(cases, completion_with_everything);
    tcase_add_test(cases, what_is_not_given_has_the_defaults_of_the_api);
    tcase_add_test(cases, prompts_may_be_ids_and_arrays_of_one);
    tcase_add_test(cases, chat_with_parts_and_roles);
    tcase_add_test(cases, top_p_of_nothing_is_greedy);
    tcase_add_loop_test(cases, bad_requests_get_one_clear_sentence, 0,
                        (int)(sizeof bad / sizeof bad[0]));
    tcase_add_test(cases, deep_nesting_is_refused);
    tcase_add_test(cases, more_values_than_memory_is_meant_for_are_refused);
    tcase_add_test(cases, the_body_is_freed_before_the_answer);
    tcase_add_loop_test(cases, damaged_bodies_are_survived, 0, 4);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
