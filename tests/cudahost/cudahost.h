/* The emulated CUDA machine, as the tests see it: seeds, failures, sites.
 *
 * A failure is anything a kernel or a caller of the runtime did that a real card would answer with
 * nonsense or an error: it is kept as text, the first one wins, and execution goes on. A site is a
 * place in a source file with a barrier, a wait or an event: every one that ran is listed, and one
 * of them can be muted, which makes it do nothing. One thread.
 */
#ifndef CUDAHOST_H
#define CUDAHOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDAHOST_SITES_MAX = 128 };

/* Orders of threads, blocks and streams follow from the seed alone. */
void cudahost_seed(uint64_t seed);

/* The first failure since the last call, or NULL; forgets it. Valid until the next failure. */
const char *cudahost_failure(void);

/* "file:line" of each site that ran, in order of first use. */
unsigned cudahost_sites(const char *const **names);
void cudahost_site_mute(const char *name);      /* NULL: none */

/* ---- the machine ---- */

/* Calls that can fail: all, launches of kernels, copies on streams that have run kernels. */
enum cudahost_calls { CUDAHOST_ALL, CUDAHOST_KERNELS, CUDAHOST_COPIES };

struct cudahost_machine {
    int devices;
    size_t memory_bytes;        /* of each */
    /* The n-th of these calls from now on fails, with this code; 0: none. */
    unsigned fail_at;
    int fail_code;
    enum cudahost_calls fail_of;
    bool fail_waits;            /* counts from the first kernel on, not from now */
};
extern struct cudahost_machine cudahost_machine;

/* Launches a kernel that copies bytes (keep.cc). */
void cudahost_keep(void *to, const void *from, size_t bytes, void *stream);

/* Other libraries' work on a stream: `call` when the stream comes to it, again and again until it
 * says that it is over, then `drop`; `drop` alone if the context is lost. */
void cudahost_call(const char *name, void *stream, bool (*call)(void *context), void *context,
                   void (*drop)(void *context));
/* Lets the card work for a while, as it would beside a host that does something else. */
void cudahost_works(void);
int cudahost_lost(void);                        /* the sticky error, or 0 */
/* Called at the beginning of every reset; may be NULL. */
extern void (*cudahost_at_reset)(void);
bool cudahost_stream_known(const void *stream);
bool cudahost_device_memory(const void *memory, size_t bytes);
/* Tells of a failure, as the machine itself does. */
void cudahost_tell(const char *text);

/* Forgets streams, events, memory and sticky errors; all must have been given back. Returns how
 * many things were not. */
unsigned cudahost_reset(void);
uint64_t cudahost_operations(void);             /* run so far */
/* Of all bytes that came down to the host on streams that ran kernels, in their order. */
uint64_t cudahost_down_hash(void);
uint64_t cudahost_down_bytes(void);             /* how many those were */
uint64_t cudahost_kernels(void);                /* launched so far */

#ifdef __cplusplus
}
#endif

#endif
