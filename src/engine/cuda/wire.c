#include "base/must.h"
#include "engine/cuda/room.h"

enum { WIRE_ALIGN = 16 };

void eng_wire_reset(struct eng_wire *wire)
{
    wire->used = wire->sent = 0;
}

void *eng_wire_take(struct eng_wire *wire, size_t bytes, const void **device)
{
    const size_t at = wire->used;
    wire->used += (bytes + WIRE_ALIGN - 1) / WIRE_ALIGN * WIRE_ALIGN;
    MUST(wire->used <= wire->bytes);
    *device = wire->device + at;
    return wire->host + at;
}

void eng_wire_send(struct eng_cuda *cuda, struct eng_wire *wire)
{
    if (cuda->rc == 0) {
        eng_cuda_keep(cuda,
                      dev_stream_copy(cuda->dev, DEV_UP, wire->device + wire->sent,
                                      wire->host + wire->sent, wire->used - wire->sent),
                      "copying to the device");
    }
    wire->sent = wire->used;
}

bool eng_cuda_keep(struct eng_cuda *cuda, int rc, const char *what)
{
    if (rc < 0 && cuda->rc == 0) {
        cuda->rc = rc;
        cuda->what = what;
    }
    return cuda->rc == 0;
}
