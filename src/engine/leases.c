#include "engine/leases.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/log.h"

void eng_poll(struct eng_core *core)
{
    uint64_t begin_ns = eng_op_begin(core->profile);
    tier_poll(core->tier);
    eng_op_end(core->profile, ENG_OP_POLL, begin_ns);
}

uint32_t eng_leases_wait(struct eng_core *core, struct tier_lease *leases, uint32_t count,
                         enum tier_wait_mode mode, uint64_t deadline_ns)
{
    uint64_t start = base_now_ns();
    uint32_t settled = tier_wait(core->tier, leases, count, mode, deadline_ns);
    core->wait_ns += base_now_ns() - start;
    return settled;
}

void eng_leases_why(struct eng_core *core, const struct tier_lease *lease, char *why, size_t size)
{
    if (tier_failure_text(core->tier, lease->layer, lease->expert, why, size) == 0) {
        snprintf(why, size, "expert %u of moe layer %u could not be read: %s", lease->expert,
                 lease->layer, base_err_name(lease->status));
    }
}

void eng_leases_fail(struct eng_core *core, const struct eng_batch *batch,
                     const struct tier_lease *lease)
{
    const struct eng_plan *plan = &core->plan;
    uint32_t first = plan->expert_first[lease->expert];
    char why[BASE_ERR_TEXT / 2];
    eng_leases_why(core, lease, why, sizeof why);
    if (core->ranks.count > 1) {
        base_log(BASE_LOG_WARN, "ranks", "rank %u: requests end: %s", core->ranks.rank, why);
    }
    for (uint32_t i = 0; i < plan->expert_count[lease->expert]; i++) {
        uint32_t row = plan->pair_row[first + i];
        struct eng_seq *seq = batch->members[batch->row_member[row]];
        base_err_set(&seq->error, lease->status, "%s: this answer cannot be computed: %s",
                     core->shape->name, why);
    }
}
