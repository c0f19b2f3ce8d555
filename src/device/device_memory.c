#include "device/device_memory.h"

#include <errno.h>
#include <sys/mman.h>

#include "base/str.h"

int dev_memory_map(struct dev_memory *m, size_t bytes, void **out, struct base_err *err)
{
    char want[16], have[16];
    *out = NULL;
    if (bytes > m->bytes_max - m->bytes || m->count == DEV_REGIONS_MAX) {
        return base_err_set(err, BASE_EBUDGET, "the device has %s left, not the %s asked of it",
                            base_str_bytes(have, sizeof have, m->bytes_max - m->bytes),
                            base_str_bytes(want, sizeof want, bytes));
    }
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        return base_err_set(err, -ENOMEM, "no %s of memory for the emulated device",
                            base_str_bytes(want, sizeof want, bytes));
    }
    m->regions[m->count].at = at;
    m->regions[m->count++].bytes = bytes;
    m->bytes += bytes;
    *out = at;
    return 0;
}

void dev_memory_drop(void *memory, size_t bytes)
{
    madvise(memory, bytes, MADV_DONTNEED);
}

void dev_memory_unmap(struct dev_memory *m)
{
    for (unsigned i = 0; i < m->count; i++) munmap(m->regions[i].at, m->regions[i].bytes);
    m->count = 0;
}
