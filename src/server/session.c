#include "server/session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/must.h"
#include "server/hub.h"
#include "server/sse.h"

enum { SESSION_MAGIC = 0x5e551011 };

static void make_id(char *to, size_t size, enum srv_endpoint endpoint)
{
    unsigned char random[12];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) {
        uint64_t now = base_now_ns();
        memset(random, 0, sizeof random);
        memcpy(random, &now, sizeof now);
    }
    int n = snprintf(to, size, "%s-", endpoint == SRV_CHAT ? "chatcmpl" : "cmpl");
    for (size_t i = 0; i < sizeof random; i++) {
        n += snprintf(to + n, size - (size_t)n, "%02x", random[i]);
    }
}

struct srv_session *srv_session_create(struct srv_hub *hub, struct srv_ask *ask,
                                       const struct srv_model *model, size_t answer_buffer)
{
    struct srv_session *s = calloc(1, sizeof *s);
    if (!s || srv_ring_init(&s->ring, answer_buffer) < 0) {
        free(s);
        return NULL;
    }
    s->magic = SESSION_MAGIC;
    atomic_init(&s->references, 2);
    s->hub = hub;
    s->ask = *ask;
    *ask = (struct srv_ask){ 0 };
    s->model = model;
    s->created = (int64_t)time(NULL);
    s->begun_ns = base_now_ns();
    s->fd = -1;
    make_id(s->id, sizeof s->id, s->ask.endpoint);
    base_buf_init(&s->scratch);
    base_buf_init(&s->text);
    base_buf_init(&s->out);
    return s;
}

void srv_session_unref(struct srv_session *s)
{
    MUST_MAGIC(s, SESSION_MAGIC);
    if (atomic_fetch_sub_explicit(&s->references, 1, memory_order_acq_rel) > 1) {
        return;
    }
    s->magic = 0;
    srv_ask_fini(&s->ask);
    srv_ring_fini(&s->ring);
    base_buf_fini(&s->scratch);
    base_buf_fini(&s->text);
    base_buf_fini(&s->out);
    free(s->logprobs);
    free(s);
}

void srv_session_put_accepted(struct srv_session *s)
{
    struct srv_record record = { .kind = SRV_RECORD_ACCEPTED };
    MUST(srv_ring_put(&s->ring, &record, "", false));   /* the first of all */
}

bool srv_session_put_piece(struct srv_session *s, const struct eng_piece *piece)
{
    struct srv_record record = {
        .kind = SRV_RECORD_PIECE,
        .text_bytes = (uint32_t)piece->size,
        .token = piece->token,
        .logprob = piece->logprob,
        .reused = piece->reused,
        .time_ns = base_now_ns(),
    };
    return srv_ring_put(&s->ring, &record, piece->text, false);
}

void srv_session_put_end(struct srv_session *s, int finish, int code, const char *sentence)
{
    struct srv_record record = {
        .kind = SRV_RECORD_END,
        .text_bytes = sentence ? (uint32_t)strlen(sentence) : 0,
        .finish = finish,
        .code = code,
        .time_ns = base_now_ns(),
    };
    MUST(!atomic_load(&s->ended));
    srv_ring_put(&s->ring, &record, sentence ? sentence : "", true);
    s->end_finish = finish;
    atomic_store(&s->ended, true);
}

static const char *finish_name(int finish)
{
    return finish == ENG_LENGTH ? "length" : "stop";
}

static struct srv_answer answer_of(const struct srv_session *s)
{
    return (struct srv_answer){
        .endpoint = s->ask.endpoint,
        .id = s->id,
        .model = s->model->name,
        .created = s->created,
        .prompt_tokens = s->ask.id_count,
        .cached_tokens = s->cached_tokens,
        .answer_tokens = s->tokens,
        .include_usage = s->ask.include_usage,
        .tokenizer = s->model->tokenizer,
    };
}

/* An engine's error as HTTP tells it. */
static void set_fault(struct srv_session *s, int code, const char *sentence)
{
    const char *name = "engine_failed";
    int status = 503;
    switch (code) {
    case -EINVAL: status = 400; name = "invalid_value"; break;
    case -ENOBUFS: name = "client_too_slow"; break;
    case -ENOMEM: name = "out_of_memory"; break;
    case -ESHUTDOWN: name = "shutting_down"; break;
    case -EIO:
    case BASE_ECHECKSUM:
    case BASE_EQUARANTINE: name = "expert_unreadable"; break;
    default: break;
    }
    srv_fault_set(&s->fault, status, status == 400 ? "invalid_request_error" : "server_error", name,
                  NULL, "%s", sentence[0] ? sentence : base_err_name(code));
}

static void measure(struct srv_session *s, const struct srv_record *record)
{
    struct srv_metrics *m = &s->hub->metrics;
    pthread_mutex_lock(&s->hub->metrics_lock);
    if (record->kind == SRV_RECORD_PIECE && record->token >= 0) {
        if (s->last_token_ns == 0) {
            s->first_token_ns = record->time_ns;
            base_hist_add(&m->first_token_latency, record->time_ns - s->begun_ns);
        } else {
            base_hist_add(&m->token_interval, record->time_ns - s->last_token_ns);
        }
        s->last_token_ns = record->time_ns;
    } else if (record->kind == SRV_RECORD_END && record->finish != ENG_FAILED) {
        base_hist_add(&m->request_latency, record->time_ns - s->begun_ns);
    }
    pthread_mutex_unlock(&s->hub->metrics_lock);
}

static void frame_part(struct srv_session *s, const struct srv_part *part)
{
    struct srv_answer answer = answer_of(s);
    struct base_buf json;
    base_buf_init(&json);
    srv_render_chunk(&json, &answer, part);
    if (base_buf_error(&json) == 0) {
        srv_sse_data(&s->out, json.data, json.size);
    } else {
        s->out.error = base_buf_error(&json);
    }
    base_buf_fini(&json);
}

static void keep_logprob(struct srv_session *s, const struct srv_record *record)
{
    if (s->logprob_count == s->logprob_capacity) {
        size_t capacity = s->logprob_capacity ? 2 * s->logprob_capacity : 64;
        struct srv_logprob *grown = realloc(s->logprobs, capacity * sizeof *grown);
        if (!grown) {
            s->text.error = -ENOMEM;
            return;
        }
        s->logprobs = grown;
        s->logprob_capacity = capacity;
    }
    s->logprobs[s->logprob_count++] = (struct srv_logprob){
        .token = (uint32_t)record->token,
        .logprob = record->logprob,
        .text_offset = s->text_offset,
    };
}

/* Of a token's own text, which may wait for a stop string or for the rest of a character: the
 * characters that begin in it. */
static uint64_t characters(const struct srv_session *s, uint32_t token)
{
    bool special;
    size_t size;
    uint64_t count = 0;
    const char *bytes = model_tokenizer_bytes(s->model->tokenizer, token, &size, &special);
    for (size_t i = 0; i < size && !special; i++) count += ((unsigned char)bytes[i] & 0xc0) != 0x80;
    return count;
}

static void take_piece(struct srv_session *s, const struct srv_record *record)
{
    bool logprobs = s->ask.logprobs && record->token >= 0;
    s->tokens += record->token >= 0;
    s->cached_tokens = record->reused;
    if (!s->ask.stream) {
        if (logprobs) {
            keep_logprob(s, record);
        }
        base_buf_append(&s->text, s->scratch.data, s->scratch.size);
    } else if (s->scratch.size > 0 || logprobs) {
        struct srv_logprob one = { .token = (uint32_t)record->token, .logprob = record->logprob,
                                   .text_offset = s->text_offset };
        frame_part(s, &(struct srv_part){ .text = s->scratch.data ? s->scratch.data : "",
                                          .size = s->scratch.size,
                                          .logprobs = logprobs ? &one : NULL,
                                          .logprob_count = logprobs });
    }
    if (logprobs) s->text_offset += characters(s, (uint32_t)record->token);
}

/* The end of a stream: finish reason, usage where it was asked for, or the error; then [DONE]. */
static void frame_end(struct srv_session *s)
{
    struct base_buf json;
    base_buf_init(&json);
    if (s->fault.status != 0) {
        srv_render_error(&json, &s->fault);
        srv_sse_data(&s->out, json.data ? json.data : "", json.size);
    } else {
        frame_part(s, &(struct srv_part){ .text = "", .finish = finish_name(s->finish) });
        if (s->ask.include_usage) {
            struct srv_answer answer = answer_of(s);
            srv_render_usage_chunk(&json, &answer);
            srv_sse_data(&s->out, json.data ? json.data : "", json.size);
        }
    }
    srv_sse_done(&s->out);
    if (base_buf_error(&json) < 0) {
        s->out.error = base_buf_error(&json);
    }
    base_buf_fini(&json);
}

static void take_end(struct srv_session *s, const struct srv_record *record)
{
    s->finished = true;
    s->finish = record->finish;
    if (record->finish == ENG_FAILED || record->finish == ENG_CANCELLED) {
        base_buf_append(&s->scratch, "", 0);
        set_fault(s, record->code, s->scratch.size ? s->scratch.data : "");
    }
    if (s->ask.stream && s->accepted) {
        frame_end(s);
    }
}

/* Turns records into text or frames; a stream stops while it has a good deal to send. */
static void take_records(struct srv_session *s)
{
    struct srv_record record;
    while (!s->finished && s->out.size - s->out_at < 16384) {
        base_buf_clear(&s->scratch);
        if (!srv_ring_take(&s->ring, &record, &s->scratch)) {
            return;
        }
        measure(s, &record);
        switch (record.kind) {
        case SRV_RECORD_ACCEPTED:
            s->accepted = true;
            if (s->ask.stream && s->ask.endpoint == SRV_CHAT) {
                frame_part(s, &(struct srv_part){ .text = "", .first = true });
            }
            break;
        case SRV_RECORD_PIECE: take_piece(s, &record); break;
        case SRV_RECORD_END: take_end(s, &record); break;
        default: MUST(!"record kind");
        }
        if (base_buf_error(&s->scratch) < 0) {
            s->text.error = s->out.error = base_buf_error(&s->scratch);
        }
    }
}

/* Before the answer was whole. The engine may have ended it for that: no failure of its own. */
static bool client_left(const struct srv_session *s)
{
    return atomic_load(&s->cancelled) && (!s->finished || s->fault.status != 0);
}

enum srv_session_state srv_session_advance(struct srv_session *s)
{
    MUST_MAGIC(s, SESSION_MAGIC);
    take_records(s);
    if (client_left(s)) {
        return SRV_SESSION_ABORT;
    }
    if (s->finished && (!s->ask.stream || !s->accepted)) {
        return SRV_SESSION_REPLY;
    }
    if (s->ask.stream && s->accepted) {
        return SRV_SESSION_STREAM;
    }
    return atomic_load(&s->hub->closing) ? SRV_SESSION_ABORT : SRV_SESSION_WAIT;
}

int srv_session_reply(struct srv_session *s, struct base_buf *to)
{
    if (base_buf_error(&s->text) < 0) {
        srv_fault_set(&s->fault, 503, "server_error", "out_of_memory", NULL,
                      "out of memory while the answer was put together");
    }
    if (s->fault.status != 0) {
        srv_render_error(to, &s->fault);
        return s->fault.status;
    }
    struct srv_answer answer = answer_of(s);
    struct srv_part part = {
        .text = s->text.data ? s->text.data : "",
        .size = s->text.size,
        .finish = finish_name(s->finish),
        .logprobs = s->logprobs,
        .logprob_count = s->logprob_count,
    };
    srv_render_answer(to, &answer, &part);
    return 200;
}

ssize_t srv_session_read(struct srv_session *s, char *to, size_t size)
{
    MUST_MAGIC(s, SESSION_MAGIC);
    if (s->out_at == s->out.size) {
        base_buf_clear(&s->out);
        s->out_at = 0;
    }
    take_records(s);
    if (srv_hub_keep_alive_due(s->hub, s) && s->out_at == s->out.size) {
        srv_sse_comment(&s->out, "working");
    }
    if (base_buf_error(&s->out) < 0) {
        return -2;
    }
    size_t bytes = s->out.size - s->out_at;
    if (bytes > 0) {
        bytes = bytes < size ? bytes : size;
        memcpy(to, s->out.data + s->out_at, bytes);
        s->out_at += bytes;
        srv_hub_spoke(s->hub, s);
        return (ssize_t)bytes;
    }
    if (s->finished) {
        return -1;
    }
    return atomic_load(&s->cancelled) || atomic_load(&s->hub->closing) ? -2 : 0;
}

static const char *outcome(const struct srv_session *s)
{
    if (client_left(s)) return atomic_load(&s->hub->closing) ? "shutting_down" : "client_left";
    if (s->fault.status != 0) return s->fault.code;
    if (s->finished) return finish_name(s->finish);
    return atomic_load(&s->hub->closing) ? "shutting_down" : "client_left";
}

void srv_session_log(const struct srv_session *s, int status)
{
    char first[32] = "-";
    if (s->first_token_ns != 0) {
        snprintf(first, sizeof first, "%.1f", (double)(s->first_token_ns - s->begun_ns) / 1e6);
    }
    base_log(BASE_LOG_INFO, "request", "%s id=%s status=%d finish=%s prompt_tokens=%zu "
             "cached_tokens=%llu answer_tokens=%llu first_token_ms=%s total_ms=%.1f",
             s->ask.endpoint == SRV_CHAT ? "/v1/chat/completions" : "/v1/completions", s->id,
             status, outcome(s), s->ask.id_count, (unsigned long long)s->cached_tokens,
             (unsigned long long)s->tokens, first,
             (double)(base_now_ns() - s->begun_ns) / 1e6);
}
