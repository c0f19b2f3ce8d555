#include <errno.h>
#include <string.h>

#include "base/must.h"
#include "engine/cuda/room.h"
#include "engine/mla.h"

/* ------------------------------------------------------------------------------------- begin -- */

static uint32_t *put_words(struct eng_cuda *cuda, const uint32_t *from, uint32_t count,
                           const uint32_t **device)
{
    const void *at;
    uint32_t *to = eng_wire_take(&cuda->step_wire, count * sizeof *to, &at);
    if (from) memcpy(to, from, count * sizeof *to);
    *device = at;
    return to;
}

static void put_floats(struct eng_cuda *cuda, const float *from, size_t count, const float **device)
{
    const void *at;
    memcpy(eng_wire_take(&cuda->step_wire, count * sizeof *from, &at), from, count * sizeof *from);
    *device = at;
}

/* Tokens of prompts in the batch's chunk; those behind them were generated, before their sequence
 * had to give its blocks back. */
static uint32_t prompt_rows(const struct eng_batch *batch)
{
    uint32_t row = batch->decode_count;
    while (row < batch->count &&
           batch->positions[row] < batch->members[batch->row_member[row]]->prompt_count) {
        row++;
    }
    return row - batch->decode_count;
}

static void put_spans(struct eng_cuda *cuda)
{
    const struct eng_batch *batch = cuda->step.batch;
    const uint32_t prompt = prompt_rows(batch), behind = batch->decode_count + prompt;
    const struct eng_span spans[ENG_SPANS] = {
        { 0, batch->decode_count, false, NULL },
        { batch->decode_count, prompt, true, NULL },
        { behind, batch->count - behind, false, NULL },
    };
    const void *at;
    struct kern_cuda_run *runs = eng_wire_take(&cuda->step_wire, ENG_SPANS * sizeof *runs, &at);
    for (int i = 0; i < ENG_SPANS; i++) {
        cuda->step.spans[i] = spans[i];
        cuda->step.spans[i].run = (const struct kern_cuda_run *)at + i;
        runs[i] = (struct kern_cuda_run){ .first = spans[i].first, .count = spans[i].count };
    }
}

/* The chunk's rows, so many of one sequence at once as attention takes together. */
static void put_tiles(struct eng_cuda *cuda)
{
    const struct eng_batch *batch = cuda->step.batch;
    const uint32_t prompts = batch->member_count - batch->decode_count;
    const uint32_t most = (batch->count - batch->decode_count) / KERN_CUDA_QUERIES + prompts;
    const void *at;
    struct kern_cuda_run *tiles = eng_wire_take(&cuda->step_wire, most * sizeof *tiles, &at);
    uint32_t count = 0;
    for (uint32_t row = batch->decode_count; row < batch->count; row++) {
        struct kern_cuda_run *tile = &tiles[count ? count - 1 : 0];
        if (count > 0 && tile->count < KERN_CUDA_QUERIES &&
            batch->row_member[tile->first] == batch->row_member[row]) {
            tile->count++;
        } else {
            tiles[count++] = (struct kern_cuda_run){ .first = row, .count = 1 };
        }
    }
    MUST(count <= most);
    cuda->step.tiles = at;
    cuda->step.tile_count = count;
}

/* Block ids of each sequence, as a table; returns the longest list. */
static uint32_t put_blocks(struct eng_cuda *cuda)
{
    const struct eng_batch *batch = cuda->step.batch;
    const uint32_t per_seq = cuda->core->kv.blocks_per_seq;
    uint32_t longest = 0;
    uint32_t *ids = put_words(cuda, NULL, batch->member_count * per_seq, &cuda->step.ids);
    memset(ids, 0, (size_t)batch->member_count * per_seq * sizeof *ids);
    for (uint32_t m = 0; m < batch->member_count; m++) {
        const struct eng_seq *seq = batch->members[m];
        memcpy(ids + (size_t)m * per_seq, seq->blocks, seq->block_count * sizeof *ids);
        if (seq->block_count > longest) longest = seq->block_count;
    }
    return longest;
}

static void put_positions(struct eng_cuda *cuda)
{
    const struct eng_batch *batch = cuda->step.batch;
    uint32_t *tokens = put_words(cuda, NULL, batch->count, &cuda->step.row_tokens);
    cuda->step.tokens_max[0] = cuda->step.tokens_max[1] = 0;
    for (uint32_t row = 0; row < batch->count; row++) {
        uint32_t *most = &cuda->step.tokens_max[row >= batch->decode_count];
        tokens[row] = batch->positions[row] + 1;
        if (tokens[row] > *most) *most = tokens[row];
    }
}

static void find_pages(struct eng_cuda *cuda, uint32_t blocks)
{
    const struct eng_kv *kv = &cuda->core->kv;
    const struct eng_batch *batch = cuda->step.batch;
    const struct kern_cuda_pages_args pages = {
        .layers = kv->layers,
        .members = batch->member_count,
        .rows = batch->count,
        .blocks_per_seq = kv->blocks_per_seq,
        .blocks = blocks,
        .block_tokens = kv->block_tokens,
        .layer_bytes = kv->layer_bytes,
        .token_bytes = kv->layer_bytes / kv->block_tokens,
        .memory = kv->memory,
        .ids = cuda->step.ids,
        .row_member = cuda->step.row_member,
        .row_tokens = cuda->step.row_tokens,
        .tables = cuda->work.tables,
        .places = cuda->work.places,
    };
    if (cuda->rc < 0) return;
    eng_cuda_keep(cuda, kern_cuda_pages(&pages, cuda->stream), "finding KV blocks");
}

static void begin(struct eng_cuda *cuda, const struct eng_batch *batch)
{
    struct eng_core *core = cuda->core;
    const size_t half = core->shape->qk_rope_dim / 2;
    cuda->rc = 0;
    cuda->told = false;
    cuda->stream = dev_stream(cuda->dev);
    cuda->step = (struct eng_cuda_step){ .batch = batch };
    /* What the step before sent from here was over when the host had its last gate. */
    eng_wire_reset(&cuda->step_wire);
    put_words(cuda, batch->tokens, batch->count, &cuda->step.tokens);
    put_words(cuda, batch->row_member, batch->count, &cuda->step.row_member);
    put_positions(cuda);
    put_spans(cuda);
    put_tiles(cuda);
    const uint32_t blocks = put_blocks(cuda);
    eng_mla_positions(core, batch);
    put_floats(cuda, core->plan.cos, batch->count * half, &cuda->step.cos);
    put_floats(cuda, core->plan.sin, batch->count * half, &cuda->step.sin);
    eng_wire_send(cuda, &cuda->step_wire);
    find_pages(cuda, blocks);
}

/* ------------------------------------------------------------------------------------ pieces -- */

void eng_cuda_product(struct eng_cuda *cuda, const struct eng_cuda_product *p)
{
    for (int i = 0; i < ENG_SPANS && cuda->rc == 0; i++) {
        const struct eng_span *span = &cuda->step.spans[i];
        const struct kern_cuda_product_args args = {
            .w = *p->w,
            .m = span->count,
            .rows = p->w->rows,
            .k_blocks = p->k_blocks,
            .group = p->w->rows,
            .x = p->x + span->first * p->x_stride,
            .x_stride = p->x_stride,
            .y = p->y + span->first * p->y_stride,
            .y_stride = p->y_stride,
        };
        if (span->count == 0) continue;
        /* Whether tiles take a matrix depends on its type and shape alone. */
        int rc = span->tiles ? kern_cuda_product_tiles(&args, cuda->stream) : -EINVAL;
        if (rc == -EINVAL) rc = kern_cuda_product(&args, cuda->stream);
        eng_cuda_keep(cuda, rc, p->what);
    }
}

static void embed(struct eng_cuda *cuda)
{
    const struct kern_cuda_embed_args args = {
        .w = cuda->core->weights.embed,
        .rows = cuda->step.batch->count,
        .first = eng_ranks_share(&cuda->core->ranks, cuda->core->shape->vocab).begin,
        .tokens = cuda->step.tokens,
        .out = cuda->work.hidden,
    };
    if (cuda->rc == 0)
        eng_cuda_keep(cuda, kern_cuda_embed(&args, cuda->stream), "embedding");
    if (cuda->core->ranks.tensor > 1) eng_cuda_join_embeddings(cuda);
}

static void norm(struct eng_cuda *cuda, const float *weight)
{
    const uint32_t hidden = cuda->core->shape->hidden;
    const struct kern_cuda_rmsnorm_args args = {
        .rows = cuda->step.batch->count,
        .n = hidden,
        .x = cuda->work.hidden,
        .weight = weight,
        .x_stride = hidden,
        .y_stride = hidden,
        .y = cuda->work.normed,
        .eps = (float)cuda->core->shape->rms_eps,
    };
    if (cuda->rc < 0) return;
    eng_cuda_keep(cuda, kern_cuda_rmsnorm(&args, cuda->stream), "a norm");
}

static void add(struct eng_cuda *cuda)
{
    const struct kern_cuda_add_args args = {
        .n = (size_t)cuda->step.batch->count * cuda->core->shape->hidden,
        .to = cuda->work.hidden,
        .from = cuda->work.branch,
    };
    if (cuda->rc < 0) return;
    eng_cuda_keep(cuda, kern_cuda_add(&args, cuda->stream), "adding to the stream");
}

/* Whoever looks at the step's routing finds experts that exist, also where a layer chose none. */
static void fill_routes(struct eng_cuda *cuda)
{
    const struct model_shape *s = cuda->core->shape;
    struct eng_plan *plan = &cuda->core->plan;
    const size_t layer = (size_t)cuda->step.batch->count * s->top_k;
    const size_t end = model_shape_moe_layers(s) * layer;
    for (size_t i = cuda->step.routed * layer; i < end; i++) {
        plan->route_ids[i] = (uint32_t)(i % s->top_k);
        plan->route_weights[i] = 0;
    }
}

/* After a failure nothing of the step may still be under way: the wires are written again. */
static int end(struct eng_cuda *cuda, struct base_err *err)
{
    if (cuda->rc == 0) return 0;
    fill_routes(cuda);
    dev_stream_settle(cuda->dev);
    if (!cuda->told || cuda->dev->lost) eng_cuda_say(cuda, cuda->why, sizeof cuda->why);
    return base_err_set(err, cuda->dev->lost ? BASE_EDEVICE : cuda->rc, "%s", cuda->why);
}

int eng_cuda_forward(struct eng_cuda *cuda, const struct eng_batch *batch, struct base_err *err)
{
    struct eng_core *core = cuda->core;
    begin(cuda, batch);
    embed(cuda);
    for (uint32_t i = 0; i < core->shape->layers && eng_cuda_goes_on(cuda); i++) {
        const struct eng_layer *layer = &core->weights.layers[i];
        norm(cuda, layer->attention_norm);
        eng_cuda_attend(cuda, layer, i);
        add(cuda);
        norm(cuda, layer->ffn_norm);
        if (layer->moe_layer >= 0)
            eng_cuda_experts(cuda, layer, i);
        else
            eng_cuda_mlp(cuda, layer, i);
        add(cuda);
        tier_poll(core->tier);
    }
    if (core->ranks.count > 1 && !cuda->told) eng_cuda_agree(cuda, NULL);
    return end(cuda, err);
}

/* -------------------------------------------------------------------------------------- head -- */

/* Norms of rows[first...] as long as they are neighbours; returns how many. */
static uint32_t head_norm(struct eng_cuda *cuda, const uint32_t *rows, uint32_t first,
                          uint32_t count)
{
    const uint32_t hidden = cuda->core->shape->hidden;
    uint32_t run = 1;
    while (first + run < count && rows[first + run] == rows[first] + run)
        run++;
    const struct kern_cuda_rmsnorm_args args = {
        .rows = run,
        .n = hidden,
        .x = cuda->work.hidden + (size_t)rows[first] * hidden,
        .weight = cuda->core->weights.norm,
        .x_stride = hidden,
        .y_stride = hidden,
        .y = cuda->work.head_in + (size_t)first * hidden,
        .eps = (float)cuda->core->shape->rms_eps,
    };
    if (cuda->rc == 0)
        eng_cuda_keep(cuda, kern_cuda_rmsnorm(&args, cuda->stream), "the head's norm");
    return run;
}

/* The rows that the host needs, neighbours together. */
static void bring_logits(struct eng_cuda *cuda, uint32_t count)
{
    const struct eng_plan *plan = &cuda->core->plan;
    const size_t vocab = cuda->core->shape->vocab;
    for (uint32_t first = 0, next; first < count && cuda->rc == 0; first = next) {
        next = first + 1;
        if (!plan->head_whole[first]) continue;
        while (next < count && plan->head_whole[next])
            next++;
        eng_cuda_keep(cuda,
                      dev_stream_copy(cuda->dev, DEV_DOWN, plan->logits + first * vocab,
                                      cuda->work.logits + first * vocab,
                                      (next - first) * vocab * sizeof(float)),
                      "copying logits");
    }
}

/* Of the other rows which logit is the largest. */
static void bring_best(struct eng_cuda *cuda, uint32_t count)
{
    const struct eng_plan *plan = &cuda->core->plan;
    const struct kern_cuda_greedy_args args = {
        .rows = count,
        .n = cuda->core->shape->vocab,
        .logits = cuda->work.logits,
        .ids = cuda->work.head_best,
    };
    uint32_t whole = 0;
    for (uint32_t i = 0; i < count; i++)
        whole += plan->head_whole[i];
    if (whole == count || cuda->rc < 0) return;
    eng_cuda_keep(cuda, kern_cuda_greedy(&args, cuda->stream), "choosing tokens");
    if (cuda->rc < 0) return;
    eng_cuda_keep(cuda,
                  dev_stream_copy(cuda->dev, DEV_DOWN, plan->head_best, cuda->work.head_best,
                                  count * sizeof *plan->head_best),
                  "copying tokens");
}

/* Every rank's share of the logits, for rank 0, which goes on alone. Whether that succeeded is told
 * to all. */
static bool join_logits(struct eng_cuda *cuda, uint32_t count)
{
    const struct eng_cuda_gather logits = { cuda->work.rank_send, cuda->work.logits, count,
                                            cuda->core->shape->vocab, 1 };
    eng_cuda_gather(cuda, &logits);
    return eng_cuda_agree(cuda, NULL) && cuda->core->ranks.rank == 0;
}

int eng_cuda_head(struct eng_cuda *cuda, const uint32_t *rows, uint32_t count, struct base_err *err)
{
    struct eng_core *core = cuda->core;
    const struct kern_matrix *w = &core->weights.head;
    const bool joint = core->ranks.tensor > 1;
    cuda->rc = 0;
    for (uint32_t i = 0; i < count;)
        i += head_norm(cuda, rows, i, count);
    const struct kern_cuda_product_args args = {
        .w = *w,
        .m = count,
        .rows = w->rows,
        .k_blocks = 1,
        .group = w->rows,
        .x = cuda->work.head_in,
        .x_stride = w->cols,
        .y = joint ? cuda->work.rank_send : cuda->work.logits,
        .y_stride = w->rows,
    };
    if (cuda->rc == 0 && w->rows > 0)
        eng_cuda_keep(cuda, kern_cuda_product(&args, cuda->stream), "the head");
    if (joint && !join_logits(cuda, count)) return end(cuda, err);
    bring_logits(cuda, count);
    bring_best(cuda, count);
    if (cuda->rc == 0) eng_cuda_keep(cuda, dev_stream_note(cuda->dev), "waiting for logits");
    if (cuda->rc == 0) eng_cuda_keep(cuda, dev_stream_reach(cuda->dev), "waiting for logits");
    return end(cuda, err);
}
