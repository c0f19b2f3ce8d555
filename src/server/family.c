#include "server/family.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/must.h"

int srv_family_init(struct srv_family *f, size_t room, bool ranks)
{
    *f = (struct srv_family){ .room = room, .ranks = ranks };
    f->samples = calloc(room, sizeof *f->samples);
    f->labels = calloc(room, sizeof *f->labels);
    return f->samples && f->labels ? 0 : -ENOMEM;
}

void srv_family_fini(struct srv_family *f)
{
    free(f->samples);
    free(f->labels);
    *f = (struct srv_family){ 0 };
}

void srv_family_add(struct srv_family *f, const void *values, uint32_t rank, const char *labels,
                    ...)
{
    va_list list;
    MUST(f->count < f->room);
    char *text = f->labels[f->count];
    va_start(list, labels);
    int used = vsnprintf(text, SRV_FAMILY_LABELS, labels, list);
    va_end(list);
    MUST(used >= 0 && used < SRV_FAMILY_LABELS - 16);   /* a rank's number has room */
    if (f->ranks) {
        snprintf(text + used, SRV_FAMILY_LABELS - (size_t)used, "%srank=\"%u\"", used ? "," : "",
                 rank);
    }
    f->samples[f->count++] = (struct base_metric_sample){ values, text };
}

void srv_family_put(struct srv_family *f, struct base_buf *to, const char *module,
                    const struct base_metric *metrics, size_t metric_count)
{
    base_metric_prometheus(to, module, metrics, metric_count, f->samples, f->count);
    f->count = 0;
}
