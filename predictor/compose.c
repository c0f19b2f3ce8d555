#include "predictor/compose.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/temp.h"
#include "port/json.h"
#include "predictor/import_out.h"

/* -- arrivals --------------------------------------------------------------------------------- */

struct arrival {
    uint64_t time_ns;           /* since the first */
    uint64_t prompt, generated; /* tokens */
};

struct arrivals {
    struct pred_text_in *in;
    bool csv, started;
    double first_s;
};

static int csv_line(struct arrivals *a, const char *line, double *time_s, struct arrival *to,
                    struct base_err *err)
{
    struct tm at = { 0 };
    double second;
    if (sscanf(line, "%d-%d-%d %d:%d:%lf,%" SCNu64 ",%" SCNu64, &at.tm_year, &at.tm_mon,
               &at.tm_mday, &at.tm_hour, &at.tm_min, &second, &to->prompt, &to->generated) != 8) {
        return pred_import_bad(a->in, err, "expected YYYY-MM-DD HH:MM:SS,ContextTokens,"
                               "GeneratedTokens");
    }
    at.tm_year -= 1900;
    at.tm_mon -= 1;
    *time_s = (double)timegm(&at) + second;
    return 0;
}

static int jsonl_line(struct arrivals *a, const char *line, size_t size, double *time_s,
                      struct arrival *to, struct base_err *err)
{
    struct port_json *doc;
    int64_t prompt = 0, generated = 0;
    double ms = 0;
    const char *path = pred_text_in_path(a->in);
    int rc = port_json_parse(&doc, line, size, path, err);
    if (rc < 0) return rc;
    rc = port_json_double(doc, "timestamp", true, 0, &ms, path, err);
    if (rc == 0) rc = port_json_i64(doc, "input_length", true, 0, 1 << 30, 0, &prompt, path, err);
    if (rc == 0) {
        rc = port_json_i64(doc, "output_length", true, 0, 1 << 30, 0, &generated, path, err);
    }
    port_json_free(doc);
    *time_s = ms / 1e3;
    to->prompt = (uint64_t)prompt;
    to->generated = (uint64_t)generated;
    return rc;
}

/* 1 with the next arrival, 0 at the end. */
static int arrivals_next(struct arrivals *a, struct arrival *to, struct base_err *err)
{
    char *line;
    size_t size;
    double time_s = 0;
    int rc = pred_text_in_next(a->in, &line, &size, err);
    if (rc > 0 && pred_text_in_line(a->in) == 1 && line[0] != '{') {
        a->csv = true;
        if (strncmp(line, "TIMESTAMP,ContextTokens,GeneratedTokens", 39) != 0) {
            return pred_import_bad(a->in, err, "expected the columns TIMESTAMP,ContextTokens,"
                                   "GeneratedTokens, or JSONL");
        }
        rc = pred_text_in_next(a->in, &line, &size, err);
    }
    if (rc <= 0) return rc;
    rc = a->csv ? csv_line(a, line, &time_s, to, err) : jsonl_line(a, line, size, &time_s, to, err);
    if (rc < 0) return rc;
    if (!a->started) a->first_s = time_s;
    a->started = true;
    to->time_ns = time_s > a->first_s ? (uint64_t)((time_s - a->first_s) * 1e9) : 0;
    return 1;
}

/* -- tokens in a temporary file --------------------------------------------------------------- */

/* What lies there of each token; its expert ids follow. */
struct token_head {
    uint32_t token;
    uint32_t phase;
};

struct sequence {
    uint64_t first;             /* place of its first token */
    uint64_t prompt, generated;
};

struct spool {
    const struct pred_trace_header *header;
    FILE *tokens, *sequences;
    size_t ids_bytes, record_bytes;
    uint64_t count;             /* tokens so far */
    uint64_t sequence_count;
    uint64_t lost;              /* records that the trace lacks */
};

static int spool_file(FILE **out, struct base_err *err)
{
    int fd = base_temp_open(err);
    if (fd < 0) return fd;
    *out = fdopen(fd, "w+");
    if (*out) return 0;
    close(fd);
    return base_err_set(err, -ENOMEM, "no memory for a temporary file");
}

static int spool_open(struct spool *s, const struct pred_trace_header *header, struct base_err *err)
{
    *s = (struct spool){ .header = header };
    s->ids_bytes = (size_t)header->layers * header->top_k * sizeof(uint32_t);
    s->record_bytes = sizeof(struct token_head) + s->ids_bytes;
    int rc = spool_file(&s->tokens, err);
    return rc < 0 ? rc : spool_file(&s->sequences, err);
}

static void spool_close(struct spool *s)
{
    if (s->tokens) fclose(s->tokens);
    if (s->sequences) fclose(s->sequences);
}

static int spool_token(struct spool *s, const struct pred_step *step, uint32_t row)
{
    struct token_head head = { .token = step->tokens[row], .phase = step->phases[row] };
    uint32_t top_k = s->header->top_k;
    bool good = fwrite(&head, sizeof head, 1, s->tokens) == 1;
    for (uint32_t l = 0; good && l < s->header->layers; l++) {
        const uint32_t *ids = step->expert_ids + ((size_t)l * step->token_count + row) * top_k;
        good = fwrite(ids, sizeof ids[0], top_k, s->tokens) == top_k;
    }
    s->count++;
    return good ? 0 : -EIO;
}

static int spool_sequence(struct spool *s, struct sequence *sequence)
{
    if (sequence->prompt + sequence->generated == 0) return 0;
    s->sequence_count++;
    return fwrite(sequence, sizeof *sequence, 1, s->sequences) == 1 ? 0 : -EIO;
}

static int spool_fill(struct spool *s, struct pred_trace_reader *from, struct base_err *err)
{
    struct pred_trace_item item;
    struct sequence running = { 0 };
    uint64_t seq = 0;
    int rc;
    const unsigned want = PRED_WANT_STEPS | 1 << PRED_ITEM_GAP;
    while ((rc = pred_trace_reader_next(from, want, &item, err)) > 0) {
        const struct pred_step *step = &item.step;
        if (item.kind == PRED_ITEM_GAP) {
            s->lost += item.lost;
            continue;
        }
        for (uint32_t i = 0; rc >= 0 && i < step->token_count; i++) {
            if (step->seqs[i] != step->seqs[0]) {
                return base_err_set(err, BASE_EMISMATCH, "step %" PRIu64 " holds several "
                                    "sequences: batches are composed from traces of single ones",
                                    step->step);
            }
            if (s->count == 0 || step->seqs[i] != seq) {
                rc = spool_sequence(s, &running);
                running = (struct sequence){ .first = s->count };
                seq = step->seqs[i];
            }
            if (rc >= 0) rc = spool_token(s, step, i);
            if (step->phases[i] == TIER_DECODE) running.generated++;
            else running.prompt++;
        }
        if (rc < 0) break;
    }
    if (rc >= 0) rc = spool_sequence(s, &running);
    if (rc >= 0 && (fflush(s->tokens) != 0 || fflush(s->sequences) != 0)) rc = -EIO;
    if (rc < 0) {
        return base_err_set(err, rc, "cannot keep the trace's tokens: %s", base_err_name(rc));
    }
    if (s->sequence_count > 0) return 0;
    return base_err_set(err, BASE_EFORMAT, "the trace holds no tokens");
}

/* -- steps ------------------------------------------------------------------------------------ */

struct user {
    bool running;
    uint64_t request;
    uint64_t prompt_at, prompt_end;         /* places of tokens */
    uint64_t generate_at, generate_end;
    uint32_t position;
};

struct batch {                              /* the running step, room for users + chunk tokens */
    uint32_t count, room;
    uint64_t *seqs;
    uint32_t *tokens, *positions, *ids, *row;
    uint8_t *phases;
};

struct compose {
    const struct pred_compose_options *options;
    struct spool spool;
    struct arrivals arrivals;
    struct arrival next;
    bool has_next;
    struct user *users;
    struct batch batch;
    struct pred_import_out out;
    struct pred_compose_stats *stats;
    uint64_t now_ns, generated_steps, generated;
};

static int batch_create(struct compose *c)
{
    struct batch *b = &c->batch;
    size_t a_row = (size_t)c->spool.header->layers * c->spool.header->top_k;
    b->room = c->options->users + c->options->chunk;
    b->seqs = calloc(b->room, sizeof b->seqs[0]);
    b->tokens = calloc(b->room, sizeof b->tokens[0]);
    b->positions = calloc(b->room, sizeof b->positions[0]);
    b->phases = calloc(b->room, 1);
    b->ids = calloc(b->room * a_row, sizeof b->ids[0]);
    b->row = calloc(b->room * a_row, sizeof b->row[0]);
    c->users = calloc(c->options->users, sizeof c->users[0]);
    if (!b->seqs || !b->tokens || !b->positions || !b->phases || !b->ids || !b->row || !c->users) {
        return -ENOMEM;
    }
    return 0;
}

static void compose_fini(struct compose *c)
{
    free(c->batch.seqs);
    free(c->batch.tokens);
    free(c->batch.positions);
    free(c->batch.phases);
    free(c->batch.ids);
    free(c->batch.row);
    free(c->users);
    pred_text_in_close(c->arrivals.in);
    spool_close(&c->spool);
}

/* Rows are gathered token by token, then turned to layer by layer. */
static int batch_add(struct compose *c, struct user *user, uint64_t place)
{
    struct batch *b = &c->batch;
    struct token_head head;
    uint32_t *to = b->row + (size_t)b->count * c->spool.header->layers * c->spool.header->top_k;
    off_t at = (off_t)(place * c->spool.record_bytes);
    int file = fileno(c->spool.tokens);
    if (pread(file, &head, sizeof head, at) != (ssize_t)sizeof head ||
        pread(file, to, c->spool.ids_bytes, at + (off_t)sizeof head) !=
            (ssize_t)c->spool.ids_bytes) {
        return -EIO;
    }
    b->seqs[b->count] = user->request;
    b->tokens[b->count] = head.token;
    b->positions[b->count] = user->position++;
    b->phases[b->count++] = (uint8_t)head.phase;
    return 0;
}

static int batch_write(struct compose *c)
{
    struct batch *b = &c->batch;
    uint32_t top_k = c->spool.header->top_k, layers = c->spool.header->layers;
    for (uint32_t l = 0; l < layers; l++) {
        for (uint32_t i = 0; i < b->count; i++) {
            memcpy(b->ids + ((size_t)l * b->count + i) * top_k,
                   b->row + ((size_t)i * layers + l) * top_k, top_k * sizeof b->ids[0]);
        }
    }
    struct pred_step step = { .step = c->stats->steps, .token_count = b->count, .seqs = b->seqs,
                              .tokens = b->tokens, .positions = b->positions, .phases = b->phases,
                              .expert_ids = b->ids };
    pred_trace_writer_step(c->out.writer, &step);
    c->stats->steps++;
    c->stats->tokens += b->count;
    return 0;
}

/* The next request takes a free place: its sequence, cut to the lengths that the arrival names. */
static int user_start(struct compose *c, struct user *user, struct base_err *err)
{
    struct sequence s;
    uint64_t number = c->stats->requests % c->spool.sequence_count;
    if (pread(fileno(c->spool.sequences), &s, sizeof s, (off_t)(number * sizeof s)) !=
        (ssize_t)sizeof s) {
        return base_err_set(err, -EIO, "cannot read back a sequence to compose");
    }
    uint64_t prompt = s.prompt < c->next.prompt ? s.prompt : c->next.prompt;
    uint64_t generated = s.generated < c->next.generated ? s.generated : c->next.generated;
    *user = (struct user){
        .running = prompt + generated > 0, .request = c->stats->requests++,
        .prompt_at = s.first + s.prompt - prompt, .prompt_end = s.first + s.prompt,
        .generate_at = s.first + s.prompt, .generate_end = s.first + s.prompt + generated,
    };
    int rc = arrivals_next(&c->arrivals, &c->next, err);
    uint64_t most = c->options->requests > 0 ? c->options->requests : c->spool.sequence_count;
    c->has_next = rc > 0 && c->stats->requests < most;
    return rc < 0 ? rc : 0;
}

static int users_admit(struct compose *c, struct base_err *err)
{
    bool any = false;
    for (uint32_t u = 0; u < c->options->users; u++) any |= c->users[u].running;
    if (!any && c->has_next && c->next.time_ns > c->now_ns) c->now_ns = c->next.time_ns;
    for (uint32_t u = 0; u < c->options->users; u++) {
        while (!c->users[u].running && c->has_next && c->next.time_ns <= c->now_ns) {
            int rc = user_start(c, &c->users[u], err);
            if (rc < 0) return rc;
        }
    }
    return 0;
}

static int step_compose(struct compose *c)
{
    struct user *prompting = NULL;
    uint32_t generated = 0;
    int rc = 0;
    c->batch.count = 0;
    for (uint32_t u = 0; u < c->options->users && rc == 0; u++) {
        struct user *user = &c->users[u];
        if (!user->running) continue;
        if (user->prompt_at < user->prompt_end) {
            if (!prompting || user->request < prompting->request) prompting = user;
            continue;
        }
        rc = batch_add(c, user, user->generate_at++);
        generated++;
        user->running = user->generate_at < user->generate_end;
    }
    for (uint32_t i = 0; prompting && i < c->options->chunk && rc == 0; i++) {
        if (prompting->prompt_at == prompting->prompt_end) break;
        rc = batch_add(c, prompting, prompting->prompt_at++);
    }
    if (prompting && prompting->prompt_at == prompting->prompt_end) {
        prompting->running = prompting->generate_at < prompting->generate_end;
    }
    if (generated > c->stats->batch_max) c->stats->batch_max = generated;
    c->generated += generated;
    c->generated_steps += generated > 0;
    return rc;
}

static int steps_compose(struct compose *c, struct base_err *err)
{
    for (;;) {
        int rc = users_admit(c, err);
        if (rc == 0) rc = step_compose(c);
        if (rc < 0) return base_err_set(err, rc, "cannot compose: %s", base_err_name(rc));
        if (c->batch.count > 0) rc = batch_write(c);
        else if (!c->has_next) return 0;
        c->now_ns += c->options->step_ns;
    }
}

int pred_compose(struct pred_trace_reader *from, const char *to,
                 const struct pred_compose_options *options, struct pred_compose_stats *stats,
                 struct base_err *err)
{
    struct compose c = { .options = options, .stats = stats };
    struct pred_trace_header header = *pred_trace_reader_header(from);
    memset(stats, 0, sizeof *stats);
    if (options->users == 0 || options->users > PRED_COMPOSE_USERS_MAX || options->chunk == 0 ||
        options->chunk > PRED_STEP_TOKENS_MAX / 2 || options->step_ns == 0) {
        return base_err_set(err, -EINVAL, "users: 1 to %d, chunk: 1 to %d tokens, step: above 0",
                            PRED_COMPOSE_USERS_MAX, PRED_STEP_TOKENS_MAX / 2);
    }
    uint32_t most = pred_import_step_tokens_max(&header);
    if (options->users + options->chunk > most) {
        return base_err_set(err, -EINVAL, "%" PRIu32 " users and a chunk of %" PRIu32 " tokens: a "
                            "step of this model can hold %" PRIu32, options->users, options->chunk,
                            most);
    }
    int rc = pred_import_out_check(options->arrivals, to, err);
    if (rc == 0) rc = pred_trace_reader_spares(from, to, err);
    if (rc == 0) rc = spool_open(&c.spool, pred_trace_reader_header(from), err);
    if (rc == 0) rc = pred_text_in_open(&c.arrivals.in, options->arrivals, err);
    if (rc == 0) rc = spool_fill(&c.spool, from, err);
    if (rc == 0) rc = arrivals_next(&c.arrivals, &c.next, err);
    if (rc == 0) rc = base_err_set(err, BASE_EFORMAT, "%s: no arrivals", options->arrivals);
    c.has_next = true;
    if (rc > 0) rc = batch_create(&c);
    if (rc < 0) {
        compose_fini(&c);
        return base_err_set(err, rc, "cannot compose: %s", base_err_name(rc));
    }
    header.decide = (struct tier_decide_config){ 0 };
    snprintf(header.source, sizeof header.source, "composed");
    rc = pred_import_out_begin(&c.out, to, &header, false, err);
    /* Whose tokens are missing nobody knows any more. */
    if (rc >= 0) pred_trace_writer_gap(c.out.writer, c.spool.lost);
    if (rc >= 0) rc = steps_compose(&c, err);
    stats->sequences = c.spool.sequence_count;
    stats->batch_mean =
        c.generated_steps > 0 ? (double)c.generated / (double)c.generated_steps : 0;
    rc = pred_import_out_end(&c.out, rc, err);
    compose_fini(&c);
    return rc;
}
