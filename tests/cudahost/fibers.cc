/* Blocks of threads as fibers: a seeded scheduler, barriers, warp operations, shadow words. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <vector>

#include "tests/cudahost/emulate.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBER_ASAN 1
#endif
#endif
#ifdef FIBER_ASAN
extern "C" void __sanitizer_start_switch_fiber(void **save, const void *bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void *save, const void **bottom, size_t *size);
extern "C" void __asan_unpoison_memory_region(const volatile void *memory, size_t size);
#endif

namespace
{

const size_t STACK_BYTES = 256 * 1024;
const unsigned THREADS_MAX = 1024, WARP = 32;
const size_t DYNAMIC_MAX = 227 * 1024;

enum state { READY, AT_BARRIER, IN_WARP, DONE };

struct async_copy {
    void *to;
    const void *from;
    size_t bytes, elements, index;
    cudahost_shadow *shadows;
    const char *name;
    unsigned group;
};

struct fiber : cudahost_thread {
    enum state state;
    void *stack, *sp;
#if !defined(__x86_64__)
    ucontext_t context;
#endif
    void *fake_stack;
    const char *where; /* of the barrier it waits at */
    int where_line;
    unsigned exchanges; /* warp operations done */
    unsigned groups;    /* cp.async groups committed */
    std::vector<async_copy> copies;
};

struct warp {
    uint64_t values[2][WARP];
    unsigned arrived[2], mask[2];
    const char *what[2];
};

fiber *fibers[THREADS_MAX];
warp warps[THREADS_MAX / WARP];
std::vector<unsigned> ready;
unsigned thread_count, done_count, barrier_count;
uint32_t serials;
const cudahost_grid *grid_now;
fiber *running;
bool abandoned;
bool from_main; /* the fiber that goes on next does so because main said so */

void *main_sp;
#if !defined(__x86_64__)
ucontext_t main_context;
#endif
#ifdef FIBER_ASAN
const void *main_bottom;
size_t main_size;
void *main_fake;
#endif

#if defined(__x86_64__)
extern "C" void cudahost_switch(void **from_sp, void *to_sp);
asm(".text\n"
    ".globl cudahost_switch\n"
    ".type cudahost_switch,@function\n"
    "cudahost_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size cudahost_switch,.-cudahost_switch\n");
#endif

/* A fiber goes on here, whoever ran before it. */
void arrived(fiber *self)
{
#ifdef FIBER_ASAN
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(self ? self->fake_stack : NULL, &bottom, &size);
    if (from_main) {
        main_bottom = bottom;
        main_size = size;
    }
#else
    (void)self;
#endif
    from_main = false;
}

/* Any of those that can go on; NULL when there is none. */
fiber *pick()
{
    if (ready.empty()) return NULL;
    const size_t at = (size_t)cudahost_random(ready.size());
    fiber *next = fibers[ready[at]];
    ready[at] = ready.back();
    ready.pop_back();
    return next;
}

/* The running fiber gives way to the next one, or to main when there is none. */
void leave(bool ends)
{
    fiber *self = running, *next = pick();
    if (next == self) return;
    cudahost_self = running = next;
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(ends ? NULL : &self->fake_stack, next ? next->stack : main_bottom,
                                   next ? STACK_BYTES : main_size);
#else
    (void)ends;
#endif
#if defined(__x86_64__)
    cudahost_switch(&self->sp, next ? next->sp : main_sp);
#else
    swapcontext(&self->context, next ? &next->context : &main_context);
#endif
    arrived(self);
}

/* Until no fiber can go on. */
void to_fibers(fiber *next)
{
    cudahost_self = running = next;
    from_main = true;
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(&main_fake, next->stack, STACK_BYTES);
#endif
#if defined(__x86_64__)
    cudahost_switch(&main_sp, next->sp);
#else
    swapcontext(&main_context, &next->context);
#endif
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(main_fake, NULL, NULL);
#endif
}

void fiber_main()
{
    fiber *self = running;
    arrived(NULL);
    grid_now->run(grid_now->context);
    for (const async_copy &copy : self->copies) {
        (void)copy;
        cudahost_report("%s: thread %u ends with a cp.async that it never waited for",
                        grid_now->name, self->linear);
        break;
    }
    self->state = DONE;
    done_count++;
    leave(true);
    abort(); /* nobody comes back here */
}

void fiber_start(unsigned linear)
{
    fiber *f = fibers[linear];
    const dim3 &size = cudahost_now.threads;
    if (!f) {
        f = fibers[linear] = new fiber();
        f->stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (f->stack == MAP_FAILED) {
            perror("cudahost: a stack");
            abort();
        }
    }
    f->index = { linear % size.x, linear / size.x % size.y, linear / size.x / size.y };
    f->linear = linear;
    f->warp = linear / WARP;
    f->lane = linear % WARP;
    f->warp_epoch = f->exchanges = f->groups = 0;
    f->copies.clear();
    f->state = READY;
#ifdef FIBER_ASAN
    /* The fiber before never returned from its frames: their red zones are still there. */
    __asan_unpoison_memory_region(f->stack, STACK_BYTES);
#endif
#if defined(__x86_64__)
    /* Not all at one place of their pages: they would push each other out of the cache. */
    void **top = (void **)((char *)f->stack + STACK_BYTES - linear % 128 * 192);
    *--top = NULL;
    *--top = (void *)fiber_main; /* entered with the stack as a call would leave it */
    for (int i = 0; i < 6; i++)
        *--top = NULL;
    f->sp = top;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK_BYTES;
    f->context.uc_link = NULL;
    makecontext(&f->context, fiber_main, 0);
#endif
}

void wake(unsigned linear)
{
    fibers[linear]->state = READY;
    ready.push_back(linear);
}

void barrier_release()
{
    cudahost_now.epoch++;
    barrier_count = 0;
    for (unsigned i = 0; i < thread_count; i++)
        if (fibers[i]->state == AT_BARRIER) wake(i);
}

/* Nobody can go on and not everybody is done: somebody waits for a thread that will not come. */
void stuck()
{
    for (unsigned i = 0; i < thread_count; i++) {
        const fiber *f = fibers[i];
        if (f->state == DONE || f->state == READY) continue;
        cudahost_report("%s: thread %u waits at %s:%d for threads that never come there",
                        grid_now->name, i, f->where, f->where_line);
        break;
    }
    abandoned = true;
}

void block_run()
{
    cudahost_now.serial = ++serials;
    cudahost_now.epoch = 0;
    done_count = barrier_count = 0;
    ready.clear();
    memset(warps, 0, sizeof warps);
    memset(cudahost_now.dynamic, 0xa5, cudahost_now.dynamic_bytes);
    for (unsigned i = 0; i < thread_count; i++) {
        fiber_start(i);
        ready.push_back(i);
    }
    while (done_count < thread_count) {
        if (ready.empty()) {
            stuck();
            return;
        }
        to_fibers(pick());
    }
}

/* ---- sites ---- */

char *sites[CUDAHOST_SITES_MAX];
unsigned site_count;
const char *muted;

char failure_kept[512], failure_given[512];
bool failed;

void wait_here(enum state state, const char *file, int line)
{
    running->state = state;
    running->where = file;
    running->where_line = line;
    leave(false);
}

/* Who did the access that clashes, in words. */
void race(const char *how, const char *name, size_t index, uint32_t other)
{
    cudahost_report("%s: %s[%zu]: thread %u %s thread %u, no barrier between them",
                    grid_now ? grid_now->name : "?", name, index, running->linear, how, other);
}

bool ordered(uint32_t other, uint32_t epoch, uint32_t warp_epoch)
{
    if (other == running->linear || epoch != cudahost_now.epoch) return true;
    return other / WARP == running->warp && warp_epoch < running->warp_epoch;
}

} // namespace

cudahost_thread *cudahost_self;
cudahost_block cudahost_now;

void cudahost_report(const char *format, ...)
{
    va_list args;
    if (failed) return;
    failed = true;
    va_start(args, format);
    vsnprintf(failure_kept, sizeof failure_kept, format, args);
    va_end(args);
}

const char *cudahost_failure(void)
{
    if (!failed) return NULL;
    failed = false;
    memcpy(failure_given, failure_kept, sizeof failure_given);
    return failure_given;
}

bool cudahost_site_muted(const char *file, int line)
{
    char name[256];
    const char *slash = strrchr(file, '/');
    snprintf(name, sizeof name, "%s:%d", slash ? slash + 1 : file, line);
    unsigned i = 0;
    while (i < site_count && strcmp(sites[i], name))
        i++;
    if (i == site_count && site_count < CUDAHOST_SITES_MAX) sites[site_count++] = strdup(name);
    return muted && strcmp(muted, name) == 0;
}

unsigned cudahost_sites(const char *const **names)
{
    *names = sites;
    return site_count;
}

void cudahost_site_mute(const char *name)
{
    muted = name;
}

void cudahost_grid_run(const cudahost_grid &grid)
{
    static uint8_t *dynamic;
    const uint64_t blocks = (uint64_t)grid.blocks.x * grid.blocks.y * grid.blocks.z;
    thread_count = grid.threads.x * grid.threads.y * grid.threads.z;
    if (thread_count == 0 || thread_count > THREADS_MAX || grid.dynamic_bytes > DYNAMIC_MAX ||
        blocks == 0 || blocks > UINT32_MAX || grid.blocks.y > 65535 || grid.blocks.z > 65535) {
        cudahost_report("%s: a launch of %llu blocks of %u threads with %zu bytes is not allowed",
                        grid.name, (unsigned long long)blocks, thread_count, grid.dynamic_bytes);
        return;
    }
    if (!dynamic) dynamic = (uint8_t *)aligned_alloc(16, (DYNAMIC_MAX + 15) / 16 * 16);
    grid_now = &grid;
    cudahost_now.threads = grid.threads;
    cudahost_now.blocks = grid.blocks;
    cudahost_now.dynamic_bytes = grid.dynamic_bytes;
    cudahost_now.dynamic = dynamic;
    abandoned = false;
    std::vector<uint32_t> order((size_t)blocks);
    for (uint32_t i = 0; i < blocks; i++)
        order[i] = i;
    for (size_t left = order.size(); left > 0 && !abandoned; left--) {
        const size_t at = (size_t)cudahost_random(left);
        const uint32_t b = order[at];
        order[at] = order[left - 1];
        cudahost_now.index = { b % grid.blocks.x, b / grid.blocks.x % grid.blocks.y,
                               b / grid.blocks.x / grid.blocks.y };
        block_run();
    }
    grid_now = NULL;
}

void cudahost_barrier(const char *file, int line)
{
    if (cudahost_site_muted(file, line)) return;
    if (++barrier_count == thread_count) {
        running->state = AT_BARRIER;
        barrier_release();
        leave(false);
        return;
    }
    wait_here(AT_BARRIER, file, line);
}

const uint64_t *cudahost_exchange(const char *what, unsigned mask, uint64_t value)
{
    fiber *self = running;
    warp *w = &warps[self->warp];
    const unsigned turn = self->exchanges++ & 1u;
    if (w->arrived[turn] == 0) {
        w->what[turn] = what;
        w->mask[turn] = mask;
    } else if (w->what[turn] != what && strcmp(w->what[turn], what)) {
        cudahost_report("%s: lanes of one warp meet in %s and in %s", grid_now->name, what,
                        w->what[turn]);
    } else if (w->mask[turn] != mask || !(mask >> self->lane & 1u)) {
        cudahost_report("%s: lane %u comes to %s with mask %08x, others with %08x", grid_now->name,
                        self->lane, what, mask, w->mask[turn]);
    }
    w->values[turn][self->lane] = value;
    w->arrived[turn] |= 1u << self->lane;
    if (w->arrived[turn] == w->mask[turn]) {
        w->arrived[turn] = 0;
        for (unsigned lane = 0; lane < WARP; lane++) {
            const unsigned linear = self->warp * WARP + lane;
            if (linear < thread_count && linear != self->linear &&
                fibers[linear]->state == IN_WARP && (mask >> lane & 1u))
                wake(linear);
        }
        return w->values[turn];
    }
    wait_here(IN_WARP, what, 0);
    return w->values[turn];
}

void cudahost_warp_barrier(unsigned mask, const char *file, int line)
{
    if (cudahost_site_muted(file, line)) return;
    cudahost_exchange("__syncwarp", mask, 0);
    if (mask == 0xffffffffu) running->warp_epoch++;
}

/* ---- shadow words ---- */

static void stamp(cudahost_shadow *s)
{
    if (s->serial == cudahost_now.serial) return;
    memset(s, 0, sizeof *s);
    s->serial = cudahost_now.serial;
    s->writer = s->reader = UINT32_MAX;
}

void cudahost_shared_read(cudahost_shadow *s, const char *name, size_t index)
{
    stamp(s);
    if (!s->written) {
        cudahost_report("%s: %s[%zu]: thread %u reads what no thread of the block wrote",
                        grid_now->name, name, index, running->linear);
        return;
    }
    if (!ordered(s->writer, s->write_epoch, s->write_warp_epoch))
        race("reads what was written by", name, index, s->writer);
    if (s->reader != UINT32_MAX && s->read_epoch == cudahost_now.epoch) {
        if (s->reader != running->linear) s->readers_many = true;
        if (s->reader / WARP != running->warp) s->reader_warps_many = true;
    } else {
        s->readers_many = s->reader_warps_many = false;
    }
    s->reader = running->linear;
    s->read_epoch = cudahost_now.epoch;
    s->read_warp_epoch = running->warp_epoch;
}

void cudahost_shared_write(cudahost_shadow *s, const char *name, size_t index)
{
    stamp(s);
    if (s->written && !ordered(s->writer, s->write_epoch, s->write_warp_epoch))
        race("writes what was written by", name, index, s->writer);
    if (s->reader != UINT32_MAX && s->read_epoch == cudahost_now.epoch) {
        const bool own = s->reader == running->linear && !s->readers_many;
        const bool warp_done = !s->reader_warps_many && s->reader / WARP == running->warp &&
                               s->read_warp_epoch < running->warp_epoch;
        if (!own && !warp_done) race("writes what was read by", name, index, s->reader);
    }
    s->written = true;
    s->writer = running->linear;
    s->write_epoch = cudahost_now.epoch;
    s->write_warp_epoch = running->warp_epoch;
}

void cudahost_shared_forget(cudahost_shadow *s)
{
    stamp(s);
    s->written = false;
}

size_t cudahost_shared_bounds(const char *name, size_t index, size_t count)
{
    if (index < count) return index;
    cudahost_report("%s: %s[%zu]: thread %u is outside, there are %zu", grid_now->name, name, index,
                    running->linear, count);
    return 0;
}

cudahost_shadow *cudahost_dynamic_shadows(size_t count)
{
    static std::vector<cudahost_shadow> shadows(DYNAMIC_MAX);
    return count <= shadows.size() ? shadows.data() : NULL;
}

/* ---- cp.async ---- */

void cudahost_async_copy(void *to, const void *from, size_t bytes, cudahost_shadow *shadows,
                         size_t elements, const char *name, size_t index)
{
    /* As good as written now, for whoever read it without a barrier; as bad as not written. */
    for (size_t i = 0; i < elements; i++) {
        cudahost_shared_write(shadows + i, name, index + i);
        cudahost_shared_forget(shadows + i);
    }
    memset(to, 0xa5, bytes);
    running->copies.push_back({ to, from, bytes, elements, index, shadows, name, running->groups });
}

void cudahost_async_commit()
{
    running->groups++;
}

void cudahost_async_wait(unsigned groups_left, const char *file, int line)
{
    if (cudahost_site_muted(file, line)) {
        running->copies.clear(); /* they never arrive in time */
        return;
    }
    std::vector<async_copy> &copies = running->copies;
    size_t kept = 0;
    for (size_t i = 0; i < copies.size(); i++) {
        const async_copy copy = copies[i];
        if (copy.group + groups_left >= running->groups) {
            copies[kept++] = copy;
            continue;
        }
        memcpy(copy.to, copy.from, copy.bytes);
        for (size_t e = 0; e < copy.elements; e++)
            cudahost_shared_write(copy.shadows + e, copy.name, copy.index + e);
    }
    copies.resize(kept);
}
