#include "base/ledger.h"

#include <inttypes.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/must.h"
#include "base/str.h"

enum { PATH_BYTES = 1024 };

#define ROW(tag, name, title, text) { name, title, text },
static const struct {
    const char *name, *title, *text;
} tags[BASE_LEDGER_COUNT] = { BASE_LEDGER_TAGS(ROW) };
#undef ROW

const char *base_ledger_name(enum base_ledger_tag tag)
{
    MUST(tag < BASE_LEDGER_COUNT);
    return tags[tag].name;
}

const char *base_ledger_title(enum base_ledger_tag tag)
{
    MUST(tag < BASE_LEDGER_COUNT);
    return tags[tag].title;
}

const char *base_ledger_text(enum base_ledger_tag tag)
{
    MUST(tag < BASE_LEDGER_COUNT);
    return tags[tag].text;
}

uint64_t base_ledger_planned(const struct base_ledger *ledger)
{
    uint64_t sum = 0;
    for (int t = 0; t < BASE_LEDGER_COUNT; t++) sum += ledger->rows[t].planned;
    return sum;
}

uint64_t base_ledger_used(const struct base_ledger *ledger)
{
    uint64_t sum = 0;
    for (int t = 0; t < BASE_LEDGER_COUNT; t++) sum += ledger->rows[t].used;
    return sum;
}

/* -- limits ----------------------------------------------------------------------------------- */

/* A file that holds one number; "max" and what cannot be read are no limit. */
static void limit_by(struct base_ledger_limit *limit, const char *path)
{
    unsigned long long bytes;
    FILE *file = fopen(path, "re");
    if (!file) return;
    if (fscanf(file, "%llu", &bytes) == 1 && bytes > 0 && bytes < limit->bytes) {
        limit->bytes = bytes;
        snprintf(limit->what, sizeof limit->what, "%.190s", path);
    }
    fclose(file);
}

/* The group and all above it, up to the root of the hierarchy. In a container the path may not be
 * visible under its full name: then the root is the container's own group. */
static void limit_groups(struct base_ledger_limit *limit, const char *mount, const char *group,
                         const char *file)
{
    char path[PATH_BYTES], at[PATH_BYTES];
    if (base_str_format(at, sizeof at, "%s", group) < 0) return;
    for (;;) {
        size_t size = strlen(at);
        while (size > 0 && at[size - 1] == '/') at[--size] = '\0';
        if (base_str_format(path, sizeof path, "%s%s/%s", mount, at, file) >= 0) {
            limit_by(limit, path);
        }
        char *slash = strrchr(at, '/');
        if (!slash) return;
        *slash = '\0';
    }
}

/* Lines of /proc/self/cgroup: "0::/path" is v2, "4:memory:/path" is v1. */
static void limit_line(struct base_ledger_limit *limit, const char *root, char *line)
{
    char mount[PATH_BYTES];
    char *kinds = strchr(line, ':'), *group = kinds ? strchr(kinds + 1, ':') : NULL;
    if (!group) return;
    *group++ = '\0';
    kinds++;
    group[strcspn(group, "\n")] = '\0';
    if (*kinds == '\0') {
        static const char *const mounts[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
        for (size_t i = 0; i < sizeof mounts / sizeof mounts[0]; i++) {
            if (base_str_format(mount, sizeof mount, "%s%s", root, mounts[i]) < 0) continue;
            limit_groups(limit, mount, group, "memory.max");
        }
        return;
    }
    if (strcmp(kinds, "memory") != 0) return;
    if (base_str_format(mount, sizeof mount, "%s/sys/fs/cgroup/memory", root) < 0) return;
    limit_groups(limit, mount, group, "memory.limit_in_bytes");
}

void base_ledger_limit(struct base_ledger_limit *limit, const char *root)
{
    char path[PATH_BYTES], line[PATH_BYTES];
    *limit = (struct base_ledger_limit){ .bytes = UINT64_MAX, .what = "nothing that is known" };
    if (base_str_format(path, sizeof path, "%s/proc/meminfo", root) < 0) return;
    FILE *file = fopen(path, "re");
    unsigned long long kib;
    if (file) {
        if (fscanf(file, "MemTotal: %llu kB", &kib) == 1) {
            limit->bytes = kib * 1024;
            snprintf(limit->what, sizeof limit->what, "this machine's memory");
        }
        fclose(file);
    }
    if (base_str_format(path, sizeof path, "%s/proc/self/cgroup", root) < 0) return;
    file = fopen(path, "re");
    if (!file) return;
    while (fgets(line, sizeof line, file)) limit_line(limit, root, line);
    fclose(file);
}

const char *base_ledger_sum(const struct base_ledger *ledger, char text[BASE_LEDGER_SUM])
{
    char bytes[16];
    size_t used = 0;
    text[0] = '\0';
    for (int t = 0; t <= BASE_LEDGER_COUNT; t++) {
        bool all = t == BASE_LEDGER_COUNT;
        uint64_t part = all ? base_ledger_planned(ledger) : ledger->rows[t].planned;
        if (part == 0 && !all) continue;
        int n = snprintf(text + used, BASE_LEDGER_SUM - used, "%s%s%s%s",
                         all ? " = " : used ? " + " : "", all ? "" : tags[t].title,
                         all ? "" : " ", base_str_bytes(bytes, sizeof bytes, part));
        MUST(n > 0 && (size_t)n < BASE_LEDGER_SUM - used);
        used += (size_t)n;
    }
    return text;
}

int base_ledger_check(const struct base_ledger *ledger, const struct base_ledger_limit *limit,
                      struct base_err *err)
{
    char text[BASE_LEDGER_SUM], may[16];
    if (base_ledger_planned(ledger) <= limit->bytes) return 0;
    return base_err_set(err, BASE_EBUDGET, "%s, but %s allows %s: lower tiers.dram.capacity or "
                        "kv.capacity", base_ledger_sum(ledger, text), limit->what,
                        base_str_bytes(may, sizeof may, limit->bytes));
}

/* -- this process ----------------------------------------------------------------------------- */

static uint32_t thread_count(void)
{
    char line[256];
    unsigned count = 1;
    FILE *file = fopen("/proc/self/status", "re");
    if (!file) return 1;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "Threads: %u", &count) == 1) break;
    }
    fclose(file);
    return count;
}

void base_ledger_process(struct base_ledger_process *out)
{
    unsigned long long all, resident = 0, files = 0;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    *out = (struct base_ledger_process){ .threads = thread_count() };
    FILE *file = fopen("/proc/self/statm", "re");
    if (file) {
        if (fscanf(file, "%llu %llu %llu", &all, &resident, &files) != 3) resident = files = 0;
        fclose(file);
    }
    out->resident = resident * page;
    out->files = files * page;
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
    struct mallinfo2 info = mallinfo2();
    out->heap = info.arena + info.hblkhd;
#endif
}
