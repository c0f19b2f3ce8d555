#include "tests/support/card_collectives.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

enum { KINDS = 3, PART_MAX = 20000, PAGE = 4096 };

/* What one rank brings or gets at most, in whole pages. */
static size_t room_of(const struct comm *comm)
{
    return ((size_t)comm->size * PART_MAX + PAGE) / PAGE * PAGE;
}

struct check {
    struct comm *comm;
    struct dev *dev;
    card_move *keep;
    void *stream;
    size_t room;
    /* Of each kind: what goes up, and where it is sent from; what comes, and where that is kept. */
    char *up, *down, *raw, *send, *recv, *kept;
    unsigned char *want;
    size_t got[KINDS];
    bool say;
};

/* The bytes that `from` sends to `to` in this round. */
static void fill(unsigned char *bytes, size_t count, uint64_t seed, unsigned from, unsigned to)
{
    struct base_rng rng;
    base_rng_init(&rng, seed * 1000003 + from * 1009 + to);
    for (size_t i = 0; i < count; i++)
        bytes[i] = (unsigned char)base_rng_u64(&rng);
}

static size_t size_of(uint64_t seed, unsigned from, unsigned to)
{
    struct base_rng rng;
    base_rng_init(&rng, seed * 7919 + from * 131 + to + 1);
    const size_t size = base_rng_u64(&rng) % (base_rng_u64(&rng) % 4 ? 300 : PART_MAX);
    return base_rng_u64(&rng) % 2 ? size / 4 * 4 : size;
}

static unsigned refused(const struct check *c, int rc, const char *what)
{
    if (rc == 0) return 0;
    if (c->say)
        printf("rank %u: %s: %d, %s\n", c->comm->rank, what, rc, c->comm->library_error);
    return 1;
}

/* Kind by kind, what was put into `up` goes to `send`, as work of the stream. */
static void bring_up(const struct check *c, int kind, size_t bytes)
{
    const size_t at = (size_t)kind * c->room;
    dev_stream_copy(c->dev, DEV_UP, c->raw + at, c->up + at, bytes);
    if (bytes > 0) c->keep(c->send + at, c->raw + at, bytes, c->stream);
}

static void bring_down(struct check *c, int kind, const char *from, size_t bytes)
{
    const size_t at = (size_t)kind * c->room;
    c->got[kind] = bytes;
    if (bytes > 0) c->keep(c->kept + at, from, bytes, c->stream);
    dev_stream_copy(c->dev, DEV_DOWN, c->down + at, c->kept + at, bytes);
}

static unsigned reduce(struct check *c, uint64_t seed)
{
    const size_t count = size_of(seed, 1, 0) / 4 + 1;
    uint32_t *want = (uint32_t *)(void *)c->want, part;
    unsigned char *bytes = malloc(count * sizeof part);
    memset(want, 0, count * sizeof *want);
    for (unsigned r = 0; r < c->comm->size; r++) {
        fill(bytes, count * sizeof part, seed, r, 1);
        for (size_t i = 0; i < count; i++) {
            memcpy(&part, bytes + i * sizeof part, sizeof part);
            want[i] += part;
        }
    }
    free(bytes);
    fill((unsigned char *)c->up, count * sizeof *want, seed, c->comm->rank, 1);
    bring_up(c, 0, count * sizeof *want);
    unsigned wrong = refused(c, comm_cards_all_reduce(c->comm, (uint32_t *)(void *)c->send, count,
                                                      c->stream), "all_reduce");
    bring_down(c, 0, c->send, count * sizeof *want);
    return wrong;
}

static unsigned gather(struct check *c, uint64_t seed)
{
    const size_t bytes = size_of(seed, 0, 0) + 1;
    char *send = c->send + c->room, *recv = c->recv + c->room;
    for (unsigned r = 0; r < c->comm->size; r++)
        fill(c->want + c->room + r * bytes, bytes, seed, r, 0);
    fill((unsigned char *)c->up + c->room, bytes, seed, c->comm->rank, 0);
    bring_up(c, 1, bytes);
    if (seed % 2) {             /* in place */
        c->keep(recv + c->comm->rank * bytes, send, bytes, c->stream);
        send = recv + c->comm->rank * bytes;
    }
    unsigned wrong = refused(c, comm_cards_all_gather(c->comm, send, recv, bytes, c->stream),
                             "all_gather");
    bring_down(c, 1, recv, c->comm->size * bytes);
    return wrong;
}

static unsigned all_to_all(struct check *c, uint64_t seed)
{
    const size_t at = 2 * c->room;
    size_t sent[COMM_RANKS_MAX] = { 0 }, got[COMM_RANKS_MAX] = { 0 }, out = 0, in = 0;
    for (unsigned r = 0; r < c->comm->size; r++) {
        sent[r] = size_of(seed, c->comm->rank, r);
        got[r] = size_of(seed, r, c->comm->rank);
        fill((unsigned char *)c->up + at + out, sent[r], seed, c->comm->rank, r + 3);
        fill(c->want + at + in, got[r], seed, r, c->comm->rank + 3);
        out += sent[r];
        in += got[r];
    }
    bring_up(c, 2, out);
    unsigned wrong = refused(c, comm_cards_all_to_all(c->comm, c->send + at, sent, c->recv + at,
                                                      got, c->stream), "all_to_all");
    bring_down(c, 2, c->recv + at, in);
    return wrong;
}

static unsigned compare(const struct check *c, uint64_t seed)
{
    static const char *const kinds[KINDS] = { "all_reduce", "all_gather", "all_to_all" };
    unsigned wrong = 0;
    for (int k = 0; k < KINDS; k++) {
        if (memcmp(c->down + (size_t)k * c->room, c->want + (size_t)k * c->room, c->got[k]) == 0)
            continue;
        wrong++;
        if (c->say)
            printf("rank %u of %u: %s differs (seed %llu)\n", c->comm->rank, c->comm->size,
                   kinds[k], (unsigned long long)seed);
    }
    return wrong;
}

static unsigned round_of(struct check *c, uint64_t seed)
{
    memset(c->down, 0, KINDS * c->room);
    unsigned wrong = reduce(c, seed) + gather(c, seed) + all_to_all(c, seed);
    int rc = 0;
    if (seed % 4 == 0) {
        rc = dev_stream_settle(c->dev);
    } else {
        rc = dev_stream_note(c->dev);
        if (rc == 0) rc = dev_stream_reach(c->dev);
    }
    return wrong + refused(c, rc, "waiting for the stream") + compare(c, seed);
}

static int watch(void *context, bool first)
{
    return comm_cards_watch(context, first);
}

uint64_t card_collectives_bytes(const struct comm *comm)
{
    return 4 * KINDS * (uint64_t)room_of(comm);
}

unsigned card_collectives_check(struct comm *comm, struct dev *dev, card_move *keep,
                                unsigned rounds, bool say)
{
    const size_t all = KINDS * room_of(comm);
    struct check c = { .comm = comm, .dev = dev, .keep = keep, .stream = dev_stream(dev),
                       .room = room_of(comm), .say = say };
    struct base_err err = { 0 };
    char *host = aligned_alloc(PAGE, 2 * all);
    void *memory;
    c.want = malloc(all);
    if (dev_memory_alloc(dev, 4 * all, &memory, &err) < 0 ||
        dev_host_register(dev, host, 2 * all) < 0 || comm_cards_join(comm, &err) < 0) {
        printf("rank %u: %s\n", comm->rank, err.text);
        exit(EXIT_FAILURE);
    }
    c.up = host;
    c.down = host + all;
    c.raw = memory;
    c.send = c.raw + all;
    c.recv = c.send + all;
    c.kept = c.recv + all;
    dev->watch = watch;
    dev->watch_context = comm;
    unsigned wrong = 0;
    for (uint64_t seed = 1; seed <= rounds; seed++)
        wrong += round_of(&c, seed);
    /* A run without a wait leaves work behind, which the other ranks' needs. */
    for (int i = 0; i < 3; i++)
        dev_stream_settle(dev);
    comm_cards_leave(comm, wrong == 0);
    dev->watch = NULL;
    dev_host_unregister(dev, host);
    free(host);
    free(c.want);
    return wrong;
}
