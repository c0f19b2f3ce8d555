/* Any bytes as a request body: a request that can be carried out, or one sentence in an error of
 * the API's shape; any text in an answer is valid JSON in valid event frames. */
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/must.h"
#include "port/json.h"
#include "server/openai.h"
#include "server/render.h"
#include "server/sse.h"
#include "tests/fuzz/fuzz.h"

const char *const fuzz_words[] = {
    "\"prompt\":", "\"messages\":", "\"role\":\"user\"", "\"content\":", "\"type\":\"text\"",
    "\"text\":", "\"stop\":", "\"max_tokens\":", "\"max_completion_tokens\":", "\"temperature\":",
    "\"top_p\":", "\"top_k\":", "\"seed\":", "\"stream\":true", "\"stream_options\":",
    "\"include_usage\":true", "\"logprobs\":", "\"n\":1", "\"logit_bias\":{}", "\"model\":\"m\"",
    "\"response_format\":", "\"tools\":[]", "\"ignore_eos\":true", "\"user\":null", "{", "}", "[",
    "]", ",", "null", "1e308", "-1", "9223372036854775807", "\\u0000", "\\ud83d\\ude00", NULL,
};

/* The first byte chooses the endpoint. */
static const char *const seeds[] = {
    "c{\"prompt\":\"x\",\"max_tokens\":5,\"stop\":[\"a\",\"b\"],\"seed\":7,\"logprobs\":0}",
    "c{\"prompt\":[1,2,3],\"stream\":true,\"stream_options\":{\"include_usage\":true}}",
    "c{\"prompt\":[\"x\"],\"temperature\":0.5,\"top_p\":0,\"top_k\":-1,\"n\":1,\"best_of\":1}",
    "m{\"messages\":[{\"role\":\"system\",\"content\":\"a\"},{\"role\":\"user\",\"content\":"
    "[{\"type\":\"text\",\"text\":\"b\"},{\"type\":\"text\",\"text\":\"\"}]}],\"stop\":\"###\"}",
    "m{\"model\":\"m\",\"messages\":[{\"role\":\"developer\",\"content\":[]}],\"logprobs\":true,"
    "\"top_logprobs\":0,\"response_format\":{\"type\":\"text\"},\"modalities\":[\"text\"]}",
};

size_t fuzz_seed(unsigned index, uint8_t *to, size_t room)
{
    if (index >= sizeof seeds / sizeof seeds[0]) return 0;
    size_t size = strlen(seeds[index]);
    MUST(size <= room);
    memcpy(to, seeds[index], size);
    return size;
}

static void must_be_json(const char *text, size_t size)
{
    struct port_json *root = NULL;
    MUST(port_json_parse(&root, text, size, "reply", NULL) == 0);
    MUST(port_json_type(root) == PORT_JSON_OBJECT);
    port_json_free(root);
}

static void check_refusal(const struct srv_fault *fault)
{
    struct base_buf reply;
    MUST(fault->status >= 400 && fault->status < 600 && fault->type && fault->message[0]);
    for (const char *c = fault->message; *c; c++) {
        MUST((unsigned char)*c >= 0x20 && *c != 0x7f);
    }
    base_buf_init(&reply);
    srv_render_error(&reply, fault);
    MUST(base_buf_error(&reply) == 0);
    must_be_json(reply.data, reply.size);
    base_buf_fini(&reply);
}

static void check_request(const struct srv_ask *ask)
{
    MUST(ask->endpoint == SRV_CHAT ? ask->message_count > 0 : ask->prompt || ask->id_count > 0);
    MUST(ask->sampling.temperature >= 0 && ask->sampling.temperature <= 2);
    MUST(ask->sampling.top_p > 0 && ask->sampling.top_p <= 1);
    MUST(ask->stop_count <= SRV_STOPS_MAX);
    for (uint32_t i = 0; i < ask->stop_count; i++) {
        size_t size = strlen(ask->stops[i]);
        MUST(size > 0 && size <= SRV_STOP_BYTES_MAX);
    }
    for (size_t i = 0; i < ask->message_count; i++) {
        MUST(ask->messages[i].role && ask->messages[i].text);
        MUST(ask->messages[i].text[ask->messages[i].size] == 0);
    }
}

/* The bytes as an answer's text. */
static void check_answer(enum srv_endpoint endpoint, const char *text, size_t size)
{
    struct srv_answer answer = { .endpoint = endpoint, .id = "id", .model = "m" };
    struct srv_part part = { .text = text, .size = size, .finish = "stop" };
    struct base_buf json, frame;
    base_buf_init(&json);
    base_buf_init(&frame);
    srv_render_answer(&json, &answer, &part);
    MUST(base_buf_error(&json) == 0);
    must_be_json(json.data, json.size);
    base_buf_clear(&json);
    srv_render_chunk(&json, &answer, &part);
    must_be_json(json.data, json.size);
    srv_sse_data(&frame, json.data, json.size);
    /* One event: a data line and the empty line that ends it. */
    MUST(frame.size == json.size + 8);
    MUST(memchr(frame.data, '\n', frame.size) == frame.data + frame.size - 2);
    base_buf_fini(&frame);
    base_buf_fini(&json);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    if (size == 0) return 0;
    enum srv_endpoint endpoint = bytes[0] == 'm' ? SRV_CHAT : SRV_COMPLETION;
    const char *body = (const char *)bytes + 1;
    struct srv_fault fault;
    struct srv_ask ask;
    if (srv_ask_parse(&ask, endpoint, body, size - 1, SRV_VALUES_MAX, &fault) < 0) {
        check_refusal(&fault);
    } else {
        check_request(&ask);
    }
    srv_ask_fini(&ask);
    check_answer(endpoint, body, size - 1);
    return 0;
}
