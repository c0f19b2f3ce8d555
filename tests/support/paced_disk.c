/* A disk of a set rate and latency: shows FILE as FOLDER/disk through the kernel's FUSE.
 *
 *      paced_disk FILE FOLDER BYTES_PER_SECOND LATENCY_US
 *
 * Reads go one after another over a wire of that rate, and each takes the latency more, so that
 * what nobody asked for in time is lost, as with a disk, and a reader with one read in flight gets
 * less than the rate. Below io_uring, threads and fio alike: none of them knows. For direct reads
 * of up to 1 MiB; runs until it is unmounted. Needs root.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { READ_MAX = 1 << 20, PENDING_MAX = 4096, ROOT = 1, DISK = 2 };

struct pending {
    uint64_t unique, offset, due_ns;
    uint32_t bytes;
};

static struct {
    int fd;
    char *bytes;
    uint64_t size, rate, latency_ns, free_ns;
    struct pending pending[PENDING_MAX];    /* ring; they fall due in order */
    unsigned first, count;
} disk;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void answer(uint64_t unique, int error, const void *data, size_t bytes)
{
    struct fuse_out_header head = {
        .len = (uint32_t)(sizeof head + bytes), .error = error, .unique = unique,
    };
    struct iovec parts[2] = { { &head, sizeof head }, { (void *)(uintptr_t)data, bytes } };
    /* An interrupted request is known no more: nothing to be done. */
    if (writev(disk.fd, parts, bytes ? 2 : 1) < 0 && errno != ENOENT) perror("paced_disk: answer");
}

static struct fuse_attr attributes(uint64_t node)
{
    return (struct fuse_attr){
        .ino = node, .nlink = 1, .mtime = 1000000000, .blksize = 4096,
        .size = node == DISK ? disk.size : 0,
        .blocks = node == DISK ? disk.size / 512 : 0,
        .mode = node == DISK ? S_IFREG | 0444 : S_IFDIR | 0555,
    };
}

static void take_read(uint64_t unique, const struct fuse_read_in *in)
{
    uint64_t left = in->offset < disk.size ? disk.size - in->offset : 0, now = now_ns();
    uint32_t bytes = in->size < left ? in->size : (uint32_t)left;
    if (disk.count == PENDING_MAX) {
        answer(unique, -EBUSY, NULL, 0);
        return;
    }
    if (disk.free_ns < now) disk.free_ns = now;
    disk.free_ns += (uint64_t)((double)bytes * 1e9 / (double)disk.rate);
    disk.pending[(disk.first + disk.count++) % PENDING_MAX] = (struct pending){
        .unique = unique, .offset = in->offset, .bytes = bytes,
        .due_ns = disk.free_ns + disk.latency_ns,
    };
}

static void serve(const struct fuse_in_header *in, const void *body)
{
    switch (in->opcode) {
    case FUSE_INIT: {
        struct fuse_init_out out = {
            .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION,
            .flags = FUSE_ASYNC_READ | FUSE_ASYNC_DIO | FUSE_MAX_PAGES, .max_background = 256,
            .congestion_threshold = 256, .max_write = READ_MAX, .time_gran = 1,
            .max_pages = READ_MAX / 4096,
        };
        answer(in->unique, 0, &out, sizeof out);
        break;
    }
    case FUSE_LOOKUP: {
        struct fuse_entry_out out = { .nodeid = DISK, .entry_valid = 3600, .attr_valid = 3600,
                                      .attr = attributes(DISK) };
        bool known = in->nodeid == ROOT && strcmp(body, "disk") == 0;
        answer(in->unique, known ? 0 : -ENOENT, &out, known ? sizeof out : 0);
        break;
    }
    case FUSE_GETATTR: {
        struct fuse_attr_out out = { .attr_valid = 3600, .attr = attributes(in->nodeid) };
        answer(in->unique, 0, &out, sizeof out);
        break;
    }
    case FUSE_OPEN: {
        struct fuse_open_out out = { .open_flags = FOPEN_DIRECT_IO };
        answer(in->unique, 0, &out, sizeof out);
        break;
    }
    case FUSE_READ:
        take_read(in->unique, body);
        break;
    case FUSE_STATFS: {
        struct fuse_statfs_out out = { .st = { .bsize = 4096, .frsize = 4096, .namelen = 255 } };
        answer(in->unique, 0, &out, sizeof out);
        break;
    }
    case FUSE_RELEASE:
    case FUSE_FLUSH:
        answer(in->unique, 0, NULL, 0);
        break;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        break;                  /* want no answer */
    default:
        answer(in->unique, -ENOSYS, NULL, 0);
    }
}

static void give_due(void)
{
    while (disk.count > 0 && disk.pending[disk.first].due_ns <= now_ns()) {
        struct pending *p = &disk.pending[disk.first];
        disk.first = (disk.first + 1) % PENDING_MAX;
        disk.count--;
        answer(p->unique, 0, disk.bytes + p->offset, p->bytes);
    }
}

static int run(void)
{
    enum { REQUEST_MAX = READ_MAX + 65536 };
    char *request = malloc(REQUEST_MAX);
    struct pollfd ready = { .fd = disk.fd, .events = POLLIN };
    while (request) {
        uint64_t now = now_ns(), due = disk.count ? disk.pending[disk.first].due_ns : 0;
        uint64_t wait = due > now ? due - now : 0;
        struct timespec limit = { (time_t)(wait / 1000000000), (long)(wait % 1000000000) };
        if (ppoll(&ready, 1, disk.count ? &limit : NULL, NULL) < 0 && errno != EINTR) break;
        ssize_t got;
        while ((got = read(disk.fd, request, REQUEST_MAX)) > 0) {
            serve((void *)request, request + sizeof(struct fuse_in_header));
        }
        if (got < 0 && errno == ENODEV) break;      /* unmounted */
        give_due();
    }
    free(request);
    return 0;
}

int main(int count, char **arguments)
{
    char options[128];
    struct stat st;
    int file = count == 5 ? open(arguments[1], O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0 || fstat(file, &st) < 0 || (disk.rate = strtoull(arguments[3], NULL, 10)) == 0) {
        fprintf(stderr, "usage: paced_disk FILE FOLDER BYTES_PER_SECOND LATENCY_US\n");
        return 2;
    }
    disk.size = (uint64_t)st.st_size;
    disk.latency_ns = strtoull(arguments[4], NULL, 10) * 1000;
    disk.bytes = mmap(NULL, disk.size, PROT_READ, MAP_SHARED | MAP_POPULATE, file, 0);
    disk.fd = open("/dev/fuse", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", disk.fd);
    if (disk.bytes == MAP_FAILED || disk.fd < 0 ||
        mount("paced_disk", arguments[2], "fuse", MS_NODEV | MS_NOSUID | MS_RDONLY, options) < 0) {
        perror("paced_disk: cannot mount");
        return 1;
    }
    prctl(PR_SET_TIMERSLACK, 1);
    /* Mounted: whoever waits for it may go on while this goes to the background. */
    pid_t child = fork();
    if (child != 0) return child < 0;
    return run();
}
