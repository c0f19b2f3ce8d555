#include "server/queue.h"

#include <errno.h>
#include <stdlib.h>

int srv_queue_init(struct srv_queue *queue, size_t count)
{
    size_t size = 2;
    while (size < count) {
        size *= 2;
    }
    *queue = (struct srv_queue){ .cells = calloc(size, sizeof *queue->cells), .mask = size - 1 };
    if (!queue->cells) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < size; i++) {
        atomic_init(&queue->cells[i].turn, i);
    }
    return 0;
}

void srv_queue_fini(struct srv_queue *queue)
{
    free(queue->cells);
    queue->cells = NULL;
}

bool srv_queue_put(struct srv_queue *queue, void *item)
{
    size_t at = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    for (;;) {
        struct srv_queue_cell *cell = &queue->cells[at & queue->mask];
        size_t turn = atomic_load_explicit(&cell->turn, memory_order_acquire);
        if (turn == at) {
            if (atomic_compare_exchange_weak_explicit(&queue->tail, &at, at + 1,
                                                      memory_order_relaxed,
                                                      memory_order_relaxed)) {
                cell->item = item;
                atomic_store_explicit(&cell->turn, at + 1, memory_order_release);
                return true;
            }
        } else if ((ptrdiff_t)(turn - at) < 0) {
            return false;
        } else {
            at = atomic_load_explicit(&queue->tail, memory_order_relaxed);
        }
    }
}

void *srv_queue_take(struct srv_queue *queue)
{
    struct srv_queue_cell *cell = &queue->cells[queue->head & queue->mask];
    if (atomic_load_explicit(&cell->turn, memory_order_acquire) != queue->head + 1) {
        return NULL;
    }
    void *item = cell->item;
    atomic_store_explicit(&cell->turn, queue->head + queue->mask + 1, memory_order_release);
    queue->head++;
    return item;
}
