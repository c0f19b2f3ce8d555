#include "predictor/machine.h"

#include <stdbool.h>

#include "port/yaml.h"

#define BASE_OPTION_OWNER struct pred_machine
const struct base_option pred_machine_options[] = { PRED_MACHINE_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
const size_t pred_machine_option_count =
    sizeof pred_machine_options / sizeof pred_machine_options[0];

static struct base_option_group group_of(struct pred_machine *machine)
{
    return (struct base_option_group){ "machine", pred_machine_options, pred_machine_option_count,
                                       machine };
}

int pred_machine_load(struct pred_machine *machine, const char *path, struct base_err *err)
{
    struct base_option_group group = group_of(machine);
    base_option_defaults(&group, 1);
    return path ? port_yaml_load(path, &group, 1, err) : 0;
}

int pred_machine_set(struct pred_machine *machine, const char *pair, struct base_err *err)
{
    struct base_option_group group = group_of(machine);
    return base_option_set_pair(&group, 1, pair, err);
}

uint64_t pred_machine_compute_ns(const struct pred_machine *m, enum pred_machine_part part,
                                 uint64_t bytes, uint64_t rows)
{
    uint64_t time = 0, token_time = 0;
    bool cpu = part == PRED_PART_WARM_EXPERT;
    uint64_t bandwidth = cpu ? m->cpu_bandwidth : m->compute_bandwidth;
    double rate = cpu ? m->cpu_rate : m->compute_rate;
    if (rows == 0) return 0;
    switch (part) {
    case PRED_PART_LAYER:
        time = m->layer_time;
        token_time = m->layer_token_time;
        bytes = m->layer_bytes;
        break;
    case PRED_PART_SHARED:
        time = m->shared_time;
        token_time = m->shared_token_time;
        bytes = m->shared_bytes;
        break;
    case PRED_PART_EXPERT:
        time = m->expert_time;
        token_time = m->expert_token_time;
        break;
    case PRED_PART_WARM_EXPERT:
        time = m->cpu_expert_time;
        token_time = m->cpu_expert_token_time;
        break;
    case PRED_PART_STEP:
        time = m->step_time;
        token_time = m->step_token_time;
        bytes = m->step_bytes;
        break;
    }
    double reading = 0, adding = 0;
    if (bandwidth > 0) reading = (double)bytes * 1e9 / (double)bandwidth;
    if (rate > 0) adding = (double)rows * (double)bytes / m->weight_bytes * 1e9 / rate;
    return time + rows * token_time + (uint64_t)(reading > adding ? reading : adding);
}
