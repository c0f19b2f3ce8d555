/* The samples of one table of metrics: which labels each has, and of several ranks its rank. */
#ifndef SERVER_FAMILY_H
#define SERVER_FAMILY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/metric.h"

enum { SRV_FAMILY_LABELS = 96 };

struct srv_family {
    struct base_metric_sample *samples;
    char (*labels)[SRV_FAMILY_LABELS];
    size_t count, room;
    bool ranks;                 /* samples say whose they are */
};

int srv_family_init(struct srv_family *family, size_t room, bool ranks);
void srv_family_fini(struct srv_family *family);

/* One more sample: values stay the caller's, labels are copied; "" = none but the rank. */
void srv_family_add(struct srv_family *family, const void *values, uint32_t rank,
                    const char *labels, ...) BASE_PRINTF(4, 5);
/* Appends what was added, and forgets it. */
void srv_family_put(struct srv_family *family, struct base_buf *to, const char *module,
                    const struct base_metric *metrics, size_t metric_count);

#endif
