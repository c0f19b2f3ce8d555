#include "base/mem.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/asan.h"
#include "base/must.h"

enum { HUGE_BYTES = 2 * 1024 * 1024 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct base_mem_tag *first_tag;
static uint64_t total_bytes, heap_bytes;
static atomic_bool frozen;

static size_t round_up(size_t size, size_t to)
{
    return (size + to - 1) & ~(to - 1);
}

/* Under ASan every block comes from malloc, so that the first byte beyond it is known as such. */
static bool is_mapped(size_t size)
{
    return !BASE_ASAN && size >= HUGE_BYTES;
}

/* A mapping at a huge-page boundary: maps more, gives both ends back. */
static void *map_huge(size_t size, size_t align)
{
    if (align < HUGE_BYTES) align = HUGE_BYTES;
    size_t length = round_up(size, HUGE_BYTES), reserved;
    if (length < size || __builtin_add_overflow(length, align, &reserved)) return NULL;
    char *memory = mmap(NULL, reserved, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    size_t before = round_up((size_t)memory, align) - (size_t)memory;
    size_t after = reserved - before - length;
    if (before > 0) munmap(memory, before);
    if (after > 0) munmap(memory + before + length, after);
    memory += before;
    /* Advice only: a kernel without huge pages serves small ones. */
    madvise(memory, length, MADV_HUGEPAGE);
    return memory;
}

static void *take_from_heap(size_t size, size_t align)
{
    if (align < sizeof(void *)) align = sizeof(void *);
    void *memory;
    if (posix_memalign(&memory, align, size ? size : 1) != 0) return NULL;
    memset(memory, 0, size);
    return memory;
}

static void list_locked(struct base_mem_tag *tag)
{
    struct base_mem_tag **end = &first_tag;
    for (; *end; end = &(*end)->next) {
        MUST(strcmp((*end)->name, tag->name) != 0);
    }
    *end = tag;
    tag->listed = true;
}

void *base_mem_alloc(struct base_mem_tag *tag, size_t size, size_t align)
{
    MUST(align > 0 && (align & (align - 1)) == 0);
    MUST(tag->cold || !base_mem_frozen());
    void *memory = is_mapped(size) ? map_huge(size, align) : take_from_heap(size, align);
    if (!memory) return NULL;
    pthread_mutex_lock(&lock);
    if (!tag->listed) list_locked(tag);
    tag->bytes += size;
    if (tag->bytes > tag->bytes_max) tag->bytes_max = tag->bytes;
    total_bytes += size;
    if (!is_mapped(size)) heap_bytes += size;
    pthread_mutex_unlock(&lock);
    return memory;
}

void base_mem_free(struct base_mem_tag *tag, void *memory, size_t size)
{
    if (!memory) return;
    pthread_mutex_lock(&lock);
    MUST(tag->listed && tag->bytes >= size);
    tag->bytes -= size;
    total_bytes -= size;
    if (!is_mapped(size)) heap_bytes -= size;
    pthread_mutex_unlock(&lock);
    if (is_mapped(size)) {
        MUST(munmap(memory, round_up(size, HUGE_BYTES)) == 0);
    } else {
        free(memory);
    }
}

void base_mem_freeze(void)
{
    atomic_store(&frozen, true);
}

void base_mem_thaw(void)
{
    atomic_store(&frozen, false);
}

bool base_mem_frozen(void)
{
    return atomic_load(&frozen);
}

uint64_t base_mem_total(void)
{
    pthread_mutex_lock(&lock);
    uint64_t total = total_bytes;
    pthread_mutex_unlock(&lock);
    return total;
}

uint64_t base_mem_heap(void)
{
    pthread_mutex_lock(&lock);
    uint64_t bytes = heap_bytes;
    pthread_mutex_unlock(&lock);
    return bytes;
}

static pthread_once_t huge_once = PTHREAD_ONCE_INIT;
static bool huge_given;

static void huge_look(void)
{
    char text[64] = "";
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");
    if (!file) return;
    huge_given = fgets(text, sizeof text, file) && !strstr(text, "[never]");
    fclose(file);
}

bool base_mem_huge_given(void)
{
    pthread_once(&huge_once, huge_look);
    return huge_given;
}

size_t base_mem_touched(size_t size, size_t written)
{
    if (!is_mapped(size)) return size;
    size_t touched = round_up(written, base_mem_huge_given() ? HUGE_BYTES : 4096);
    size = round_up(size, HUGE_BYTES);
    return touched < size ? touched : size;
}

void base_mem_each(void (*each)(void *context, const char *name, uint64_t bytes,
                                uint64_t bytes_max),
                   void *context)
{
    pthread_mutex_lock(&lock);
    for (const struct base_mem_tag *tag = first_tag; tag; tag = tag->next) {
        each(context, tag->name, tag->bytes, tag->bytes_max);
    }
    pthread_mutex_unlock(&lock);
}
