#include "device/device.h"

#include <errno.h>
#include <string.h>

#include "base/must.h"

static const struct dev_ops *const registry[] = {
    &dev_sim_ops,
    &dev_host_ops,
#ifdef EXPERTIER_CUDA
    &dev_cuda_ops,
#endif
};

const struct dev_ops *dev_find(const char *name)
{
    for (size_t i = 0; i < sizeof registry / sizeof registry[0]; i++) {
        if (strcmp(registry[i]->name, name) == 0) return registry[i];
    }
    return NULL;
}

int dev_create(struct dev **out, const struct dev_ops *ops, const struct dev_config *config,
               struct base_clock *clock, struct base_err *err)
{
    *out = NULL;
    int rc = ops->create(out, config, clock, err);
    if (rc < 0) return rc;
    (*out)->ops = ops;
    (*out)->clock = clock;
    return 0;
}

void dev_destroy(struct dev *dev)
{
    if (dev) dev->ops->destroy(dev);
}

int dev_memory_alloc(struct dev *dev, size_t bytes, void **out, struct base_err *err)
{
    return dev->ops->memory_alloc(dev, bytes, out, err);
}

bool dev_memory_give(struct dev *dev, void *memory, size_t bytes)
{
    if (!dev->ops->memory_give) return false;
    dev->ops->memory_give(dev, memory, bytes);
    return true;
}

int dev_host_register(struct dev *dev, void *memory, size_t bytes)
{
    return dev->ops->host_register ? dev->ops->host_register(dev, memory, bytes) : -ENOTSUP;
}

void dev_host_unregister(struct dev *dev, void *memory)
{
    if (dev->ops->host_unregister) dev->ops->host_unregister(dev, memory);
}

void *dev_stream(struct dev *dev)
{
    return dev->ops->stream ? dev->ops->stream(dev) : NULL;
}

void dev_mark(struct dev *dev)
{
    if (dev->ops->mark) dev->ops->mark(dev);
}

int dev_stream_copy(struct dev *dev, enum dev_queue way, void *to, const void *from, size_t bytes)
{
    MUST(way < DEV_QUEUE_COUNT && dev->ops->stream_copy);
    return bytes > 0 ? dev->ops->stream_copy(dev, way, to, from, bytes) : 0;
}

int dev_stream_note(struct dev *dev)
{
    return dev->ops->stream_note(dev);
}

int dev_stream_reach(struct dev *dev)
{
    return dev->ops->stream_reach(dev);
}

int dev_stream_settle(struct dev *dev)
{
    return dev->ops->stream_settle(dev);
}

void dev_submit(struct dev *dev, struct dev_copy *copy)
{
    MUST(copy->queue < DEV_QUEUE_COUNT && copy->piece_count <= DEV_PIECES_MAX);
    copy->submit_ns = base_clock_now_ns(dev->clock);
    copy->next = NULL;
    dev->in_flight++;
    dev->ops->submit(dev, copy);
}

int dev_reap(struct dev *dev, struct dev_copy **done, unsigned max, unsigned min,
             uint64_t deadline_ns)
{
    if (min > dev->in_flight) min = dev->in_flight;
    if (min > max) min = max;
    if (dev->in_flight == 0) return 0;
    int count = dev->ops->reap(dev, done, max, min, deadline_ns);
    MUST(count >= 0 && (unsigned)count <= dev->in_flight);
    dev->in_flight -= (unsigned)count;
    return count;
}
