/* Memory with an owner's name on it: aligned, zeroed, counted by tag, frozen after start.
 *
 *     static struct base_mem_tag slots_tag = { .name = "slots" };
 *     void *slots = base_mem_alloc(&slots_tag, bytes, 4096);
 *     ...
 *     base_mem_free(&slots_tag, slots, bytes);
 *
 * Budgets are computed at start; then base_mem_freeze() says that start is over, and from there on
 * an allocation under a tag that is not `cold` is our own mistake (MUST). Freeing stays allowed.
 * Blocks from 2 MiB up are mapped on their own at 2 MiB boundaries and advised for huge pages; what
 * was not written yet costs no memory.
 *
 * Any thread; takes a lock and calls the system: not for the step path.
 */
#ifndef BASE_MEM_H
#define BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One per owner, static, shared by nobody else. Names are unique in the program. */
struct base_mem_tag {
    const char *name;           /* label in metrics and in the ledger: "slots", "kv" */
    bool cold;                  /* may allocate after the freeze: requests, reconfiguration */

    uint64_t bytes;             /* the rest is kept by this file */
    uint64_t bytes_max;
    struct base_mem_tag *next;
    bool listed;
};

/* `size` zeroed bytes at a multiple of `align` (a power of two), or NULL when there is no memory.
 * Size 0 gives a block that can be freed like any other. */
void *base_mem_alloc(struct base_mem_tag *tag, size_t size, size_t align);

/* With the size it was asked with; NULL is accepted. */
void base_mem_free(struct base_mem_tag *tag, void *memory, size_t size);

void base_mem_freeze(void);
void base_mem_thaw(void);       /* before reconfiguration and at the end of a test */
bool base_mem_frozen(void);

uint64_t base_mem_total(void);
uint64_t base_mem_heap(void);   /* of it, what lies in malloc's heap */

/* The kernel gives huge pages to those who ask (transparent_hugepage is not never). */
bool base_mem_huge_given(void);

/* Of a block of `size` bytes, what is resident after its first `written` were written: whole huge
 * pages where the kernel gives them. */
size_t base_mem_touched(size_t size, size_t written);

/* Calls `each` for every tag that ever allocated, in order of first use. `each` must not allocate
 * here. */
void base_mem_each(void (*each)(void *context, const char *name, uint64_t bytes,
                                uint64_t bytes_max),
                   void *context);

#endif
