#include "port/xz.h"

#include <errno.h>
#include <lzma.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"

struct port_xz {
    lzma_stream stream;
};

bool port_xz_begins(const void *bytes, size_t size)
{
    static const unsigned char magic[6] = { 0xfd, '7', 'z', 'X', 'Z', 0 };
    return size >= sizeof magic && memcmp(bytes, magic, sizeof magic) == 0;
}

int port_xz_create(struct port_xz **out, uint64_t memory_max)
{
    *out = NULL;
    struct port_xz *xz = calloc(1, sizeof *xz);
    if (!xz) return -ENOMEM;
    xz->stream = (lzma_stream)LZMA_STREAM_INIT;
    if (lzma_stream_decoder(&xz->stream, memory_max, LZMA_CONCATENATED) != LZMA_OK) {
        port_xz_destroy(xz);
        return -ENOMEM;
    }
    *out = xz;
    return 0;
}

void port_xz_destroy(struct port_xz *xz)
{
    if (!xz) return;
    lzma_end(&xz->stream);
    free(xz);
}

int port_xz_unpack(struct port_xz *xz, struct port_xz_io *io)
{
    lzma_stream *stream = &xz->stream;
    stream->next_in = io->in;
    stream->avail_in = io->in_size;
    stream->next_out = io->out;
    stream->avail_out = io->out_size;
    lzma_ret rc = LZMA_OK;
    /* With nothing more to come the library must be asked to finish, or it waits for more. */
    lzma_action action = io->in_ends ? LZMA_FINISH : LZMA_RUN;
    while (rc == LZMA_OK && stream->avail_out > 0 && (stream->avail_in > 0 || io->in_ends)) {
        rc = lzma_code(stream, action);
    }
    io->in = stream->next_in;
    io->in_size = stream->avail_in;
    io->out = stream->next_out;
    io->out_size = stream->avail_out;
    switch (rc) {
    case LZMA_OK: return 0;
    case LZMA_STREAM_END: return 1;
    case LZMA_BUF_ERROR: return BASE_ETORN;
    case LZMA_MEM_ERROR:
    case LZMA_MEMLIMIT_ERROR: return -ENOMEM;
    default: return BASE_EFORMAT;
    }
}
