/* The order of the experts' weights where they run. A checkpoint keeps experts row by row; the CPU
 * multiplies INT8 and INT4 from tiles (kernels/tile.h), and FP8, where inputs are f32 and the
 * processor gains by it, from woven rows (kernels/weave.h). So what is read is rearranged in its
 * slot as it lands (tiering/landing.h), and leases of the CPU read that from then on, in dram and
 * in an hbm that is memory of the host. A card's kernels take rows: there is no landing, as with
 * the other types, and with a pack that has experts in tiles or woven already.
 *
 * Owns scratch: what the parts of an expert save of each other, and for each compute thread two
 * tiles or a group of woven rows. The hook is called by the tiers on the engine thread; while an
 * engine is open its compute threads help: what arrived last is waited for.
 */
#ifndef ENGINE_LANDING_H
#define ENGINE_LANDING_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "engine/limits.h"
#include "engine/work.h"
#include "kernels/kern.h"
#include "model/expert.h"
#include "model/shape.h"
#include "tiering/landing.h"
#include "tiering/store.h"

enum { ENG_LANDING_CUTS = 8 };  /* at most: more parts save more of each other */

struct eng_landing {
    struct kern_matrix stored[MODEL_MATRIX_COUNT];  /* as the store has them, without addresses */
    struct kern_matrix landed[MODEL_MATRIX_COUNT];  /* as leases have them */
    bool needed;                /* else experts stay as they are */
    bool saves;                 /* some matrix becomes tiles */
    uint32_t cuts;              /* of each matrix's rows */
    /* What each part of a matrix saves in scratch, and behind that each thread's own. NULL where
     * experts stay as they are. */
    void *scratch;
    size_t saved_at[MODEL_MATRIX_COUNT][ENG_LANDING_CUTS + 1];
    size_t thread_bytes;
    unsigned threads;
    const struct eng_work *work;        /* borrowed; NULL: the caller works alone */
};

/* Bytes of scratch. */
size_t eng_landing_bytes(const struct tier_store *store, const struct model_shape *shape,
                         const struct eng_config *config);
/* For products on the CPU by up to eng_limits_threads. -ENOMEM. */
int eng_landing_init(struct eng_landing *landing, const struct tier_store *store,
                     const struct model_shape *shape, const struct eng_config *config,
                     struct base_err *err);
void eng_landing_fini(struct eng_landing *landing);     /* accepts a zeroed one */

/* For tier_open: lands nothing if the experts stay as they are, but the threads of the time help to
 * check them. Borrows `landing`. */
struct tier_landing eng_landing_hook(struct eng_landing *landing);
/* These threads help from now on, not more than init was told of; NULL: they go. By the thread that
 * calls the tiers. */
void eng_landing_share(struct eng_landing *landing, const struct eng_work *work);
/* Whether FP8 is woven where that is possible, here and in the dense weights. */
bool eng_landing_weaves(const struct eng_config *config);

#endif
