/* The runtime calls: streams that run late, events, memory that is watched, errors on demand. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <deque>
#include <map>
#include <vector>

#include "tests/cudahost/emulate.h"

namespace
{

enum kind { POISON, COPY, RECORD, WAIT, KERNEL, CALL };

struct operation {
    enum kind kind;
    uint64_t id;
    void *to;
    const void *from;
    size_t bytes;
    enum cudaMemcpyKind way;
    uint64_t record; /* RECORD: its own; WAIT: the awaited one */
    cudahost_grid grid;         /* CALL: name and context of it */
    bool (*call)(void *context);
    void (*drop)(void *context);
};

} // namespace

struct CUstream_st {
    std::deque<operation> list;
    bool destroyed; /* what was asked of it still runs */
    bool computes;  /* ran kernels */
};

struct CUevent_st {
    uint64_t record; /* 0: never recorded */
};

namespace
{

struct record_place {
    CUstream_st *stream;
    uint64_t operation;
    bool done;
};

struct region {
    size_t bytes;
    bool device;
};

uint64_t random_state = 1, operations_queued, operations_run, records, kernels;
uint64_t down_hash = 0xcbf29ce484222325u, down_bytes;
CUstream_st default_stream;
std::vector<CUstream_st *> streams = { &default_stream };
std::vector<CUevent_st *> events;
std::map<uint64_t, record_place> places;
std::map<char *, region> regions; /* device memory and registered host memory */
int sticky, last_error;

bool code_sticky(int code)
{
    return code == cudaErrorIllegalAddress || code == cudaErrorLaunchFailure ||
           code == cudaErrorECCUncorrectable || code == cudaErrorMisalignedAddress ||
           code == cudaErrorIllegalInstruction || code == cudaErrorAssert ||
           code == cudaErrorContained;
}

/* The context is gone: nothing that was asked for happens any more. */
void lose(int code)
{
    sticky = code;
    for (CUstream_st *stream : streams) {
        for (operation &op : stream->list)
            if (op.drop) op.drop(op.grid.context);
        stream->list.clear();
    }
}

/* What a call answers before it does anything. */
cudaError_t refuse(enum cudahost_calls of = CUDAHOST_ALL)
{
    int code = sticky;
    struct cudahost_machine &m = cudahost_machine;
    const bool counted = !m.fail_waits && (m.fail_of == CUDAHOST_ALL || m.fail_of == of);
    if (!code && counted && m.fail_at > 0 && --m.fail_at == 0) code = m.fail_code;
    if (code_sticky(code) && !sticky) lose(code);
    if (code) last_error = code;
    return (cudaError_t)code;
}

cudaError_t give(int code)
{
    last_error = code;
    return (cudaError_t)code;
}

bool inside(const void *memory, size_t bytes, bool device)
{
    auto it = regions.upper_bound((char *)memory);
    if (it == regions.begin()) return false;
    --it;
    return it->second.device == device && (char *)memory + bytes <= it->first + it->second.bytes;
}

bool copy_allowed(const operation &op)
{
    const bool up = op.way == cudaMemcpyHostToDevice;
    if (!inside(up ? op.to : op.from, op.bytes, true)) {
        cudahost_report("a copy of %zu bytes touches device memory that is not allocated",
                        op.bytes);
        return false;
    }
    if (!inside(up ? op.from : op.to, op.bytes, false)) {
        cudahost_report("a copy of %zu bytes touches host memory that is not registered: it would "
                        "not run beside anything",
                        op.bytes);
        return false;
    }
    return true;
}

/* FNV-1a */
void came_down(const operation &op)
{
    const unsigned char *bytes = (const unsigned char *)op.to;
    down_bytes += op.bytes;
    for (size_t i = 0; i < op.bytes; i++)
        down_hash = (down_hash ^ bytes[i]) * 0x100000001b3u;
}

void operation_run(const CUstream_st *stream, operation &op)
{
    operations_run++;
    switch (op.kind) {
    case POISON:
        if (copy_allowed(op)) memset(op.to, 0xa5, op.bytes);
        break;
    case COPY:
        if (!copy_allowed(op)) break;
        memcpy(op.to, op.from, op.bytes);
        if (stream->computes && op.way == cudaMemcpyDeviceToHost) came_down(op);
        break;
    case RECORD:
        places[op.record].done = true;
        break;
    case WAIT:
        break;
    case KERNEL:
        cudahost_grid_run(op.grid);
        op.drop(op.grid.context);
        break;
    case CALL:
        op.drop(op.grid.context);
        break;
    }
}

bool head_ready(CUstream_st *stream)
{
    if (stream->list.empty()) return false;
    const operation &op = stream->list.front();
    return op.kind != WAIT || places[op.record].done;
}

/* False: it is begun, but not over. */
bool head_run(CUstream_st *stream)
{
    operation op = stream->list.front();
    if (op.kind == CALL && !op.call(op.grid.context)) return false;
    stream->list.pop_front();
    operation_run(stream, op);
    return true;
}

/* Runs the stream up to and with that operation, and what it waits for, and no more. */
void drain(CUstream_st *stream, uint64_t last)
{
    while (!stream->list.empty() && stream->list.front().id <= last) {
        const operation &op = stream->list.front();
        if (op.kind == WAIT && !places[op.record].done) {
            const record_place place = places[op.record];
            drain(place.stream, place.operation);
        }
        /* Another process is not there yet: as on a card, however long that takes. */
        while (!head_run(stream))
            usleep(50);
    }
}

/* A card works whenever it likes, and for a while on anything but one of its streams. */
void some_time_passes()
{
    static uint64_t lazy, calls;
    if (calls++ % 256 == 0) lazy = cudahost_random(streams.size());
    for (uint64_t steps = cudahost_random(8); steps > 0; steps--) {
        const uint64_t at = cudahost_random(streams.size());
        if (at != lazy && head_ready(streams[(size_t)at])) head_run(streams[(size_t)at]);
    }
}

void push(cudaStream_t stream, operation op)
{
    op.id = ++operations_queued;
    (stream ? stream : &default_stream)->list.push_back(op);
}

} // namespace

struct cudahost_machine cudahost_machine = { 1, 64u << 20, 0, 0, CUDAHOST_ALL, false };

uint64_t cudahost_random(uint64_t bound)
{
    /* splitmix64 */
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint64_t)((unsigned __int128)(z ^ (z >> 31)) * bound >> 64);
}

void cudahost_seed(uint64_t seed)
{
    random_state = seed;
}

uint64_t cudahost_operations(void)
{
    return operations_run;
}

uint64_t cudahost_down_hash(void)
{
    return down_hash;
}

uint64_t cudahost_down_bytes(void)
{
    return down_bytes;
}

uint64_t cudahost_kernels(void)
{
    return kernels;
}

int cudahost_lost(void)
{
    return sticky;
}

void cudahost_works(void)
{
    some_time_passes();
}

void (*cudahost_at_reset)(void);

unsigned cudahost_reset(void)
{
    if (cudahost_at_reset) cudahost_at_reset();
    /* The work of destroyed streams comes to its end, whatever it touches now. */
    for (CUstream_st *stream : streams)
        if (stream->destroyed) drain(stream, UINT64_MAX);
    unsigned left = (unsigned)(events.size() + regions.size());
    for (CUstream_st *stream : streams) {
        left += stream != &default_stream && !stream->destroyed;
        left += (unsigned)stream->list.size();
        for (operation &op : stream->list)
            if (op.drop) op.drop(op.grid.context);
        stream->list.clear();
        if (stream != &default_stream) delete stream;
    }
    for (CUevent_st *event : events)
        delete event;
    for (auto &it : regions)
        if (it.second.device) free(it.first);
    streams.assign(1, &default_stream);
    events.clear();
    regions.clear();
    places.clear();
    sticky = last_error = 0;
    cudahost_machine.devices = 1;
    cudahost_machine.memory_bytes = 64u << 20;
    cudahost_machine.fail_at = 0;
    cudahost_machine.fail_of = CUDAHOST_ALL;
    cudahost_machine.fail_waits = false;
    return left;
}

void cudahost_launch(const char *name, dim3 blocks, dim3 threads, size_t dynamic_bytes,
                     cudaStream_t stream, void (*run)(void *context), void *context,
                     void (*drop)(void *context))
{
    cudahost_machine.fail_waits = false;
    if (refuse(CUDAHOST_KERNELS)) {
        drop(context);
        return;
    }
    kernels++;
    (stream ? stream : &default_stream)->computes = true;
    operation op = {};
    op.kind = KERNEL;
    op.grid = cudahost_grid{ name, blocks, threads, dynamic_bytes, run, context };
    op.drop = drop;
    push(stream, op);
}

void cudahost_call(const char *name, void *stream, bool (*call)(void *context), void *context,
                   void (*drop)(void *context))
{
    operation op = {};
    op.kind = CALL;
    op.grid = cudahost_grid{ name, dim3(1), dim3(1), 0, NULL, context };
    op.call = call;
    op.drop = drop;
    push((cudaStream_t)stream, op);
    some_time_passes();
}

void cudahost_tell(const char *text)
{
    cudahost_report("%s", text);
}

bool cudahost_stream_known(const void *stream)
{
    for (CUstream_st *each : streams)
        if (each == stream && !each->destroyed) return true;
    return false;
}

bool cudahost_device_memory(const void *memory, size_t bytes)
{
    return inside(memory, bytes, true);
}

cudaError_t cudaGetDeviceCount(int *count)
{
    if (cudaError_t code = refuse()) return code;
    *count = cudahost_machine.devices;
    return *count ? cudaSuccess : give(cudaErrorNoDevice);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device)
{
    if (cudaError_t code = refuse()) return code;
    if (device < 0 || device >= cudahost_machine.devices) return give(cudaErrorInvalidDevice);
    memset(prop, 0, sizeof *prop);
    snprintf(prop->name, sizeof prop->name, "emulated card %d", device);
    prop->uuid.bytes[0] = (char)(1 + device);
    prop->totalGlobalMem = cudahost_machine.memory_bytes;
    prop->major = 9;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    if (cudaError_t code = refuse()) return code;
    return device >= 0 && device < cudahost_machine.devices ? cudaSuccess
                                                            : give(cudaErrorInvalidDevice);
}

static size_t device_bytes()
{
    size_t bytes = 0;
    for (auto &it : regions)
        bytes += it.second.device ? it.second.bytes : 0;
    return bytes;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    if (cudaError_t code = refuse()) return code;
    *total_bytes = cudahost_machine.memory_bytes;
    *free_bytes = cudahost_machine.memory_bytes - device_bytes();
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    *out = NULL;
    if (cudaError_t code = refuse()) return code;
    if (bytes > cudahost_machine.memory_bytes - device_bytes())
        return give(cudaErrorMemoryAllocation);
    /* A card aligns to 256; more would hide who relies on more. */
    char *memory = (char *)aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(memory, 0xa5, bytes);
    regions[memory] = { bytes, true };
    *out = memory;
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory)
{
    if (!memory) return cudaSuccess;
    auto it = regions.find((char *)memory);
    if (it == regions.end() || !it->second.device) {
        cudahost_report("cudaFree of what is not device memory");
        return give(cudaErrorInvalidValue);
    }
    for (CUstream_st *stream : streams)
        for (const operation &op : stream->list)
            if (op.drop) cudahost_report("cudaFree while %s may still run", op.grid.name);
    memset(memory, 0xdd, it->second.bytes);
    regions.erase(it);
    free(memory);
    return (cudaError_t)sticky;
}

cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned flags)
{
    (void)flags;
    if (cudaError_t code = refuse()) return code;
    if (regions.count((char *)memory)) return give(cudaErrorHostMemoryAlreadyRegistered);
    regions[(char *)memory] = { bytes, false };
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *memory)
{
    auto it = regions.find((char *)memory);
    if (it == regions.end() || it->second.device) {
        cudahost_report("cudaHostUnregister of what is not registered");
        return give(cudaErrorInvalidValue);
    }
    regions.erase(it);
    return (cudaError_t)sticky;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    *out = NULL;
    if (cudaError_t code = refuse()) return code;
    if (!(flags & cudaStreamNonBlocking))
        cudahost_report("a stream that waits for the default stream");
    streams.push_back(*out = new CUstream_st());
    return cudaSuccess;
}

/* Returns at once, as on a card: what was asked of the stream runs on. */
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    for (CUstream_st *each : streams) {
        if (each != stream || stream->destroyed || stream == &default_stream) continue;
        stream->destroyed = true;
        return (cudaError_t)sticky;
    }
    cudahost_report("cudaStreamDestroy of what is no stream");
    return give(cudaErrorInvalidValue);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    (void)flags;
    *out = NULL;
    if (cudaError_t code = refuse()) return code;
    events.push_back(*out = new CUevent_st());
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    for (size_t i = 0; i < events.size(); i++) {
        if (events[i] != event) continue;
        events.erase(events.begin() + (long)i);
        delete event;
        return (cudaError_t)sticky;
    }
    cudahost_report("cudaEventDestroy of what is no event");
    return give(cudaErrorInvalidValue);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    const bool computes = (stream ? stream : &default_stream)->computes;
    if (cudaError_t code = refuse(computes ? CUDAHOST_COPIES : CUDAHOST_ALL)) return code;
    operation op = {};
    op.to = to;
    op.from = from;
    op.bytes = bytes;
    op.way = kind;
    op.kind = POISON;
    push(stream, op);
    op.kind = COPY;
    push(stream, op);
    some_time_passes();
    return cudaSuccess;
}

cudaError_t cudahost_event_record(cudaEvent_t event, cudaStream_t stream, const char *file,
                                  int line)
{
    if (cudahost_site_muted(file, line)) return cudaSuccess;
    if (cudaError_t code = refuse()) return code;
    operation op = {};
    op.kind = RECORD;
    op.record = event->record = ++records;
    push(stream, op);
    places[op.record] = { stream ? stream : &default_stream, operations_queued, false };
    some_time_passes();
    return cudaSuccess;
}

cudaError_t cudahost_stream_wait(cudaStream_t stream, cudaEvent_t event, unsigned flags,
                                 const char *file, int line)
{
    (void)flags;
    if (cudahost_site_muted(file, line)) return cudaSuccess;
    if (cudaError_t code = refuse()) return code;
    if (event->record == 0) return cudaSuccess;
    operation op = {};
    op.kind = WAIT;
    op.record = event->record;
    push(stream, op);
    return cudaSuccess;
}

cudaError_t cudahost_event_query(cudaEvent_t event, const char *file, int line)
{
    if (cudahost_site_muted(file, line)) return cudaSuccess;
    if (cudaError_t code = refuse()) return code;
    some_time_passes();
    return event->record == 0 || places[event->record].done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudahost_event_sync(cudaEvent_t event, const char *file, int line)
{
    if (cudahost_site_muted(file, line)) return cudaSuccess;
    if (cudaError_t code = refuse()) return code;
    if (event->record == 0) return cudaSuccess;
    const record_place place = places[event->record];
    if (!place.done) drain(place.stream, place.operation);
    return cudaSuccess;
}

cudaError_t cudahost_stream_sync(cudaStream_t stream, const char *file, int line)
{
    if (cudahost_site_muted(file, line)) return cudaSuccess;
    drain(stream ? stream : &default_stream, UINT64_MAX);
    return refuse();
}

cudaError_t cudahost_stream_query(cudaStream_t stream, const char *file, int line)
{
    if (cudahost_site_muted(file, line)) return cudaSuccess;
    if (cudaError_t code = refuse()) return code;
    some_time_passes();
    return (stream ? stream : &default_stream)->list.empty() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaDeviceSynchronize(void)
{
    for (CUstream_st *stream : streams)
        drain(stream, UINT64_MAX);
    return refuse();
}

cudaError_t cudaGetLastError(void)
{
    const int code = sticky ? sticky : last_error;
    last_error = 0;
    return (cudaError_t)code;
}

const char *cudaGetErrorName(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return "cudaSuccess";
    case cudaErrorMemoryAllocation:
        return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice:
        return "cudaErrorNoDevice";
    case cudaErrorIllegalAddress:
        return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure:
        return "cudaErrorLaunchFailure";
    case cudaErrorECCUncorrectable:
        return "cudaErrorECCUncorrectable";
    default:
        return "another error";
    }
}

const char *cudaGetErrorString(cudaError_t error)
{
    return cudaGetErrorName(error);
}
