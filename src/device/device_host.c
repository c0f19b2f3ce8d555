/* The CPU as a device: its memory is memory, a copy is done when it is submitted. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/device_memory.h"

struct host_dev {
    struct dev base;
    struct dev_memory memory;
    struct dev_copy *head, *tail;       /* done, not reaped */
};

static int host_create(struct dev **out, const struct dev_config *config, struct base_clock *clock,
                       struct base_err *err)
{
    struct host_dev *h = calloc(1, sizeof *h);
    (void)clock;
    if (!h) return base_err_set(err, -ENOMEM, "no memory for device host");
    h->memory.bytes_max = config->memory_bytes;
    h->base.host_readable = true;
    snprintf(h->base.note, sizeof h->base.note, "host: the CPU is the device");
    *out = &h->base;
    return 0;
}

static void host_destroy(struct dev *dev)
{
    struct host_dev *h = (struct host_dev *)dev;
    dev_memory_unmap(&h->memory);
    free(h);
}

static int host_memory_alloc(struct dev *dev, size_t bytes, void **out, struct base_err *err)
{
    return dev_memory_map(&((struct host_dev *)dev)->memory, bytes, out, err);
}

static void host_memory_give(struct dev *dev, void *memory, size_t bytes)
{
    (void)dev;
    dev_memory_drop(memory, bytes);
}

static void host_submit(struct dev *dev, struct dev_copy *copy)
{
    struct host_dev *h = (struct host_dev *)dev;
    for (uint32_t i = 0; i < copy->piece_count; i++) {
        memcpy(copy->pieces[i].to, copy->pieces[i].from, copy->pieces[i].bytes);
    }
    copy->result = 0;
    copy->done_ns = base_clock_now_ns(dev->clock);
    if (h->tail) {
        h->tail->next = copy;
    } else {
        h->head = copy;
    }
    h->tail = copy;
}

static int host_reap(struct dev *dev, struct dev_copy **done, unsigned max, unsigned min,
                     uint64_t deadline_ns)
{
    struct host_dev *h = (struct host_dev *)dev;
    unsigned count = 0;
    (void)min, (void)deadline_ns;       /* nothing is ever under way */
    while (count < max && h->head) {
        done[count++] = h->head;
        h->head = h->head->next;
    }
    if (!h->head) h->tail = NULL;
    return (int)count;
}

const struct dev_ops dev_host_ops = {
    .name = "host",
    .create = host_create,
    .destroy = host_destroy,
    .memory_alloc = host_memory_alloc,
    .memory_give = host_memory_give,
    .submit = host_submit,
    .reap = host_reap,
};
