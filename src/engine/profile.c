#include "engine/profile.h"

#include <string.h>

#include "base/must.h"

static const char *const names[ENG_OP_COUNT] = {
#define NAME(op, name) name,
    ENG_OPS(NAME)
#undef NAME
};

const char *eng_op_name(enum eng_op op)
{
    MUST(op < ENG_OP_COUNT);
    return names[op];
}

static void span(struct eng_profile *profile, const char *name, uint64_t begin_ns, uint64_t end_ns,
                 uint32_t rows)
{
    if (!profile->timeline) return;
    base_timeline_add(profile->timeline, &(struct base_timeline_event){
        .begin_ns = begin_ns, .end_ns = end_ns, .name = name, .track = "engine",
        .layer = profile->layer, .expert = BASE_TIMELINE_NONE, .count = rows, .share = -1,
        .kind = BASE_TIMELINE_SPAN,
    });
}

void eng_profile_begin(struct eng_profile *profile)
{
    memset(profile->op_ns, 0, sizeof profile->op_ns);
    profile->layer = BASE_TIMELINE_NONE;
}

uint64_t eng_profile_op(struct eng_profile *profile, enum eng_op op, uint64_t begin_ns)
{
    uint64_t now = base_now_ns();
    profile->op_ns[op] += now - begin_ns;
    span(profile, names[op], begin_ns, now, 0);
    return now;
}

void eng_profile_layer(struct eng_profile *profile, uint64_t begin_ns)
{
    span(profile, "layer", begin_ns, base_now_ns(), 0);
    profile->layer = BASE_TIMELINE_NONE;
}

void eng_profile_step(struct eng_profile *profile, uint64_t begin_ns, uint64_t end_ns,
                      uint32_t rows)
{
    profile->layer = BASE_TIMELINE_NONE;
    span(profile, "step", begin_ns, end_ns, rows);
}
