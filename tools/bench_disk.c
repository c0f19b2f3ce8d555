/* What the disk gives: the floor of decode and prefill when experts are missed. */
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tiering/io.h"
#include "tiering/store.h"
#include "tools/bench_stack.h"

enum { DEPTH = 16, PART = 1 << 20, BUFFERS = DEPTH * PART, TIME_NS = 1000000000 };

/* Of huge pages, as slots are: small ones halve the rate of a virtual disk. */
static struct base_mem_tag buffers_tag = { .name = "bench_disk", .cold = true };

struct part {
    uint32_t file;
    uint64_t offset, bytes;
};

struct parts {
    struct part *at;
    size_t count, room;
};

static uint32_t loads_of(const struct bench_stack *b, size_t key)
{
    uint32_t experts = b->stack.shape.experts;
    return tier_expert_loads(b->stack.tier, (uint32_t)(key / experts), (uint32_t)(key % experts))
        .loads;
}

static size_t key_count(const struct bench_stack *b)
{
    return (size_t)model_shape_moe_layers(&b->stack.shape) * b->stack.shape.experts;
}

int bench_loads_note(struct bench_stack *b)
{
    if (!b->loads) b->loads = malloc(key_count(b) * sizeof *b->loads);
    for (size_t i = 0; b->loads && i < key_count(b); i++) b->loads[i] = loads_of(b, i);
    return b->loads ? 0 : -ENOMEM;
}

static int parts_add(struct parts *parts, const struct tier_extent *extent)
{
    struct tier_extent_read read = tier_extent_read(extent);
    for (uint64_t at = 0; at < read.bytes; at += PART) {
        if (parts->count == parts->room) {
            size_t room = parts->room ? 2 * parts->room : 1024;
            struct part *grown = realloc(parts->at, room * sizeof *grown);
            if (!grown) return -1;
            parts->at = grown;
            parts->room = room;
        }
        uint64_t bytes = read.bytes - at < PART ? read.bytes - at : PART;
        parts->at[parts->count++] = (struct part){ extent->file, read.offset + at, bytes };
    }
    return 0;
}

/* The parts of every expert that was read since the loads were noted. */
static int collect(struct bench_stack *b, struct parts *parts)
{
    uint32_t experts = b->stack.shape.experts;
    int rc = b->loads ? 0 : -1;
    for (size_t i = 0; rc == 0 && i < key_count(b); i++) {
        if (loads_of(b, i) == b->loads[i]) continue;
        struct tier_record record;
        tier_store_record(b->stack.store, (uint32_t)(i / experts), (uint32_t)(i % experts),
                          &record);
        for (uint32_t e = 0; e < record.extent_count && rc == 0; e++) {
            rc = parts_add(parts, &record.extents[e]);
        }
    }
    return rc;
}

/* Has the part read into the memory that the request has already; opens its file at first. */
static int submit(struct tier_io *io, const struct bench_stack *b, int *handles,
                  struct tier_io_req *req, const struct part *part)
{
    struct base_err err = { 0 };
    if (handles[part->file] < 0) {
        handles[part->file] = tier_io_file_add(
            io, tier_store_file_path(b->stack.store, part->file), &err);
        if (handles[part->file] < 0) return handles[part->file];
    }
    *req = (struct tier_io_req){ .file = (uint32_t)handles[part->file], .to = req->to,
                                 .bytes = part->bytes, .offset = part->offset };
    tier_io_submit(io, &req, 1);
    return 0;
}

static double read_again(struct bench_stack *b, struct tier_io *io, const struct parts *parts,
                         int *handles, unsigned char *memory)
{
    struct tier_io_req reqs[DEPTH], *done[DEPTH];
    uint64_t begin = base_now_ns(), now = begin, bytes = 0;
    size_t next = 0;
    int rc = 0;
    for (int i = 0; i < DEPTH && rc == 0; i++) {
        reqs[i].to = memory + (size_t)i * PART;
        rc = submit(io, b, handles, &reqs[i], &parts->at[next++ % parts->count]);
    }
    while (io->in_flight > 0) {
        int count = tier_io_reap(io, done, DEPTH, 1, UINT64_MAX);
        now = base_now_ns();
        for (int i = 0; i < count; i++) {
            if (done[i]->result > 0) bytes += (uint64_t)done[i]->result;
            if (rc == 0 && now < begin + TIME_NS) {
                rc = submit(io, b, handles, done[i], &parts->at[next++ % parts->count]);
            }
        }
    }
    return rc == 0 ? (double)bytes * 1e9 / (double)(now - begin) : 0;
}

double bench_disk_rate(struct bench_stack *b)
{
    struct base_err err = { 0 };
    struct parts parts = { 0 };
    struct tier_io *io = NULL;
    double rate = 0;
    uint32_t files = tier_store_files(b->stack.store);
    int *handles = malloc(files * sizeof *handles);
    unsigned char *memory = base_mem_alloc(&buffers_tag, BUFFERS, TIER_PAGE);
    for (uint32_t i = 0; handles && i < files; i++) handles[i] = -1;
    if (handles && memory && collect(b, &parts) == 0 && parts.count > 0 &&
        tier_io_create(&io, &b->stack.config.io, base_clock_real(), &err) == 0) {
        rate = read_again(b, io, &parts, handles, memory);
        tier_io_destroy(io);
    }
    free(parts.at);
    free(handles);
    base_mem_free(&buffers_tag, memory, BUFFERS);
    return rate;
}
