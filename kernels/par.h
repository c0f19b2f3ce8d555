/* Fork-join over a fixed set of worker threads: split work into chunks, run, return when all are
 * done. The caller works too. Which thread runs a chunk never changes a result (kern.h's order).
 *
 * A pool belongs to one submitting thread. Workers spin briefly, then sleep; kern_par_run costs a
 * few microseconds when they sleep, none with one thread. No allocation after create.
 */
#ifndef KERNELS_PAR_H
#define KERNELS_PAR_H

#include <stdint.h>

struct kern_par;

/* `threads` >= 1 counts the caller. `bind` (may be NULL) is called once on each worker with its
 * index 1..threads-1, to pin it, before this returns. */
int kern_par_create(struct kern_par **out, unsigned threads,
                    void (*bind)(void *context, unsigned index), void *context);
void kern_par_destroy(struct kern_par *par);
unsigned kern_par_threads(const struct kern_par *par);

/* Calls work(context, chunk, thread) for every chunk in [0, chunks), in any order, on any of the
 * pool's threads; `thread` in [0, threads) tells which, for scratch memory. */
void kern_par_run(struct kern_par *par, uint32_t chunks,
                  void (*work)(void *context, uint32_t chunk, unsigned thread), void *context);

#endif
