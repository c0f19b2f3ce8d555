/* A bounded queue of pointers: any thread puts, one thread takes. Neither side locks.
 *
 * Each cell carries the turn in which it may be used next (D. Vyukov's bounded queue): a putter
 * claims a cell by moving `tail`, writes, then advances the cell's turn, which lets the taker in.
 */
#ifndef SERVER_QUEUE_H
#define SERVER_QUEUE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

struct srv_queue_cell {
    _Atomic size_t turn;
    void *item;
};

struct srv_queue {
    struct srv_queue_cell *cells;
    size_t mask;
    _Atomic size_t tail;        /* putters */
    size_t head;                /* the taker's own */
};

/* Room for at least `count` items. 0 or -ENOMEM. */
int srv_queue_init(struct srv_queue *queue, size_t count);
void srv_queue_fini(struct srv_queue *queue);

bool srv_queue_put(struct srv_queue *queue, void *item);   /* false when full */
void *srv_queue_take(struct srv_queue *queue);             /* NULL when empty */

#endif
