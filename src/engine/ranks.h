/* One model over several ranks (src/comm): who holds what, and the sums that cross ranks.
 *
 *   dense parts (parallel.tensor)   attention by heads, matrices by rows of their output. A product
 *       whose input lies over the ranks (o, down) goes whichever way moves fewer bytes:
 *         rows     the input is gathered, each rank computes its rows, the outputs are gathered
 *         blocks   each rank multiplies its whole ones of the 8 fixed blocks of columns
 *                  (KERN_RANK_BLOCKS); each rank adds all 8 up, in ascending order, for its share
 *                  of the outputs; the outputs are gathered
 *   routed experts (parallel.expert)   each rank holds some of every layer's experts
 *       (placement.h), computes their pairs, and sends each rank its share of the columns; that
 *       rank adds a token's experts up in ascending id (exchange.h)
 *
 * Everything else, the gate's choice too, is computed by every rank alike. So each number comes
 * from the same operations in the same order as with one rank: bits do not depend on the ranks
 * (invariant 1).
 *
 * Rank 0 takes requests, schedules and samples; the others do what it says (lead.h). Engine thread.
 */
#ifndef ENGINE_RANKS_H
#define ENGINE_RANKS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/option.h"
#include "comm/comm.h"
#include "engine/placement.h"
#include "kernels/kern.h"

#define ENG_RANK_OPTIONS(O)                                                                       \
    O(tensor, UINT, "parallel.tensor", "0", "0..64", "ranks",                                     \
      "ranks that share attention and dense layers: all that were started, or 1 = each computes "  \
      "them whole; 0 = all that were started")                                                    \
    O(expert, UINT, "parallel.expert", "0", "0..64", "ranks",                                     \
      "ranks that share the routed experts, each with tiers for its own: all that were started, "  \
      "or 1 = each holds all; 0 = all that were started")                                         \
    O(placement, TEXTLINE, "ranks.placement", "round_robin", "", "",                              \
      "which rank holds which expert: round_robin, or file:PATH of a trace or of tier-stats "      \
      "--json --by expert, from which each rank gets the same number and as much load")            \
    O(replicas, UINT, "ranks.replicas", "0", "0..65536", "experts",                               \
      "experts of each layer, those asked for most, that every rank holds; needs a measured "      \
      "ranks.placement")

struct eng_rank_config {
    BASE_OPTION_STRUCT(ENG_RANK_OPTIONS)
};
extern const struct base_option eng_rank_options[];
extern const size_t eng_rank_option_count;

struct eng_core;

struct eng_ranks {
    struct comm *comm;          /* NULL: one rank */
    uint32_t rank, count;
    uint32_t tensor, expert;    /* 1, or count */
    const struct eng_placement *placement;      /* NULL: every rank holds every expert */
    bool rows_only;             /* no product goes by blocks: cards have no sum of them */
};

/* What the configuration comes to with these ranks (NULL = one): BASE_ECONFIG when they are not
 * those it asks for. The placement is not set. */
int eng_ranks_init(struct eng_ranks *ranks, const struct eng_rank_config *config,
                   struct comm *comm, struct base_err *err);
/* Settings that contradict each other, whatever the ranks. */
int eng_ranks_check(const struct eng_rank_config *config, struct base_err *err);

/* Units of a dense part that one rank holds: ceil(all / ranks) each, so the last may have fewer. */
struct eng_share {
    uint32_t begin, end, each;
};
struct eng_share eng_ranks_share_of(uint32_t all, uint32_t count, uint32_t rank);
/* Of this rank; `ranks` may be NULL. */
struct eng_share eng_ranks_share(const struct eng_ranks *ranks, uint32_t all);

/* A product [rows x cols] whose input lies over the ranks goes by blocks: fewer bytes to receive,
 * and its scales (0 = none) are cut where the blocks are. `units` are what the input is dealt out
 * in (heads), and have to divide. */
bool eng_ranks_by_blocks(const struct eng_ranks *ranks, uint32_t rows, uint32_t cols,
                         uint32_t scale_cols, uint32_t units);
/* Columns of the fixed blocks that this rank holds, and of one block. */
struct eng_share eng_ranks_blocks(const struct eng_ranks *ranks, uint32_t cols);
static inline uint32_t eng_ranks_block_edge(uint32_t cols, uint32_t block)
{
    return (uint32_t)((uint64_t)cols * block / KERN_RANK_BLOCKS);
}

/* Floats of plan.rank_send, rank_recv, rank_part and rank_whole. */
struct eng_rank_room {
    size_t send, recv, part, whole;
};
struct model_shape;
struct eng_plan_size;
void eng_ranks_room(const struct eng_ranks *ranks, const struct model_shape *shape,
                    const struct eng_plan_size *size, struct eng_rank_room *room);

/* whole[rows][units * unit] from every rank's part[rows][its units * unit]. The part's rows lie
 * `each` units apart; whole may not lie in plan.rank_send or rank_recv. */
void eng_ranks_gather(struct eng_core *core, const float *part, float *whole, uint32_t rows,
                      uint32_t units, uint32_t unit);
/* y[rows][cols] = w x, w being split by rows (`part`) and x whole. */
void eng_ranks_rows(struct eng_core *core, const struct kern_matrix *part, const float *x,
                    size_t x_stride, float *y, uint32_t rows, uint32_t cols);
/* y[rows][hidden] = w x by blocks of `cols` columns: x holds those of this rank's blocks. */
void eng_ranks_blocks_sum(struct eng_core *core, const struct kern_matrix *list, uint32_t cols,
                          const float *x, size_t x_stride, float *y, uint32_t rows);

/* Cores of this machine that a rank's threads get, when the launcher has not bound it to its own:
 * the first, and how many. Collective. */
void eng_ranks_cores(struct comm *comm, uint32_t *first, uint32_t *count);
/* Whether all ranks run with the same `what`, of which each has a hash; BASE_EMISMATCH names one
 * that does not. Collective. */
int eng_ranks_agree(struct comm *comm, const char *what, uint64_t hash, struct base_err *err);
/* PATH becomes PATH.rankN where there are several. -ENAMETOOLONG. */
int eng_ranks_path(const struct eng_ranks *ranks, char path[BASE_OPTION_TEXT],
                   struct base_err *err);

#endif
