/* Memory of devices that live in host memory; for the device kinds only. */
#ifndef DEVICE_DEVICE_MEMORY_H
#define DEVICE_DEVICE_MEMORY_H

#include "device/device.h"

enum { DEV_REGIONS_MAX = 16 };

struct dev_memory {
    uint64_t bytes_max, bytes;
    unsigned count;
    struct {
        void *at;
        size_t bytes;
    } regions[DEV_REGIONS_MAX];
};

int dev_memory_map(struct dev_memory *memory, size_t bytes, void **out, struct base_err *err);
/* Whole pages whose content is not needed any more. */
void dev_memory_drop(void *memory, size_t bytes);
void dev_memory_unmap(struct dev_memory *memory);

#endif
