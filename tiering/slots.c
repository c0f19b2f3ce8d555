#include "tiering/slots.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/str.h"

/* Slots of so many bytes in so large a range are worth huge pages. */
enum { HUGE_PAGE = 2 << 20, HUGE_SLOT_MIN = 64 << 10, HUGE_RANGE_MIN = 64 << 20 };

_Static_assert(sizeof(struct tier_slot) == 64, "a cache line");

/* Locks pages as they come in: start stays fast, and nothing that is there leaves again. */
static int lock_pages(void *memory, uint64_t bytes)
{
    if (mlock2(memory, bytes, MLOCK_ONFAULT) == 0) return 0;
    if (errno != ENOSYS && errno != EINVAL) return -errno;
    return mlock(memory, bytes) == 0 ? 0 : -errno;
}

static void explain_refusal(const struct tier_slots *s, int rc, char *to, size_t size)
{
    struct rlimit limit = { 0 };
    char need[16];
    getrlimit(RLIMIT_MEMLOCK, &limit);
    snprintf(to, size, "%s for %s of slots with a memlock limit of %llu KiB: set `ulimit -l "
             "unlimited` or LimitMEMLOCK=infinity", base_err_name(rc),
             base_str_bytes(need, sizeof need, s->bytes),
             (unsigned long long)limit.rlim_cur / 1024);
}

static int pin(struct tier_slots *s, enum tier_pin mode, struct base_err *err)
{
    char why[160];
    if (mode == TIER_PIN_OFF) {
        snprintf(s->note, sizeof s->note, "not locked: tiers.dram.pin is off");
        return 0;
    }
    int rc = lock_pages(s->memory, s->bytes);
    if (rc == 0) {
        s->locked = true;
        snprintf(s->note, sizeof s->note, "locked in memory");
        return 0;
    }
    explain_refusal(s, rc, why, sizeof why);
    snprintf(s->note, sizeof s->note, "not locked: %s", why);
    if (mode == TIER_PIN_AUTO) return 0;
    return base_err_set(err, rc, "tiers.dram.pin: on: the system refused to lock memory: %s", why);
}

int tier_slots_create_at(struct tier_slots *s, uint32_t count, uint32_t most, uint64_t slot_bytes,
                         void *memory, struct base_err *err)
{
    MUST(count > 0 && slot_bytes > 0 && slot_bytes % TIER_PAGE == 0 && slot_bytes <= UINT32_MAX);
    MUST(most >= count);
    *s = (struct tier_slots){ .slot_bytes = slot_bytes, .count = count, .most = most,
                              .borrowed = true };
    s->bytes = count * slot_bytes;
    s->memory = memory;
    /* Zeroed by the system as it is used: a table for millions costs a start nothing. */
    s->at_memory = calloc((size_t)most + 1, sizeof *s->at);
    s->at = (void *)(((uintptr_t)s->at_memory + sizeof *s->at - 1) & ~(sizeof *s->at - 1));
    s->free = calloc(most, sizeof *s->free);
    if (!s->at_memory || !s->free) {
        tier_slots_destroy(s);
        return base_err_set(err, -ENOMEM, "no memory for the table of %u slots", count);
    }
    for (uint32_t i = 0; i < count; i++) s->free[s->free_count++] = count - 1 - i;
    for (uint32_t i = count; i < most; i++) s->free[i] = i;
    s->retired_count = most - count;
    return 0;
}

/* Huge pages spare the TLB, and more: a direct read into them is one run of memory for the disk,
 * not one of 4 KiB after another, which halved the rate of a virtual disk. In a small tier, and
 * with tiny slots, they would only round resident memory up. */
static bool huge_pays(const struct tier_slots *s)
{
    if (s->slot_bytes >= HUGE_PAGE) return true;
    return s->slot_bytes >= HUGE_SLOT_MIN && s->bytes >= HUGE_RANGE_MIN;
}

static void range_enlarge(struct tier_slots *s, void *at, uint64_t bytes)
{
    char size[16], all[16];
    if (!s->huge && !huge_pays(s)) {
        snprintf(s->huge_note, sizeof s->huge_note, "small pages: slots of %s, %s in all, are too "
                 "small for huge ones", base_str_bytes(size, sizeof size, s->slot_bytes),
                 base_str_bytes(all, sizeof all, s->bytes));
        return;
    }
    int rc = madvise(at, bytes, MADV_HUGEPAGE) == 0 ? 0 : -errno;
    s->huge = rc == 0 && base_mem_huge_given();
    s->huge_refused = !s->huge;
    if (s->huge) {
        snprintf(s->huge_note, sizeof s->huge_note, "huge pages, as far as the kernel has some");
    } else {
        snprintf(s->huge_note, sizeof s->huge_note,
                 "small pages: the kernel gives no huge ones: %s",
                 rc < 0 ? base_err_name(rc) : "transparent_hugepage is never");
    }
}

/* Puts memory behind a range of addresses. */
static int range_open(struct tier_slots *s, void *at, uint64_t bytes, struct base_err *err)
{
    char size[16];
    if (mprotect(at, bytes, PROT_READ | PROT_WRITE) < 0) {
        return base_err_set(err, -ENOMEM, "cannot map %s of slots: the system has not so much "
                            "memory to give", base_str_bytes(size, sizeof size, bytes));
    }
    range_enlarge(s, at, bytes);
    madvise(at, bytes, MADV_DONTDUMP);
    int rc = s->hold.place ? s->hold.place(s->hold.context, at, bytes) : 0;
    if (rc == 0) return 0;
    return base_err_set(err, rc, "tiers.dram.numa: the system refuses to place memory: %s; take "
                        "auto, which goes on without, or none", base_err_name(rc));
}

/* Takes it away, locked or not. Whoever still used it would fault. */
static void range_close(void *at, uint64_t bytes)
{
    void *got = mmap(at, bytes, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                     -1, 0);
    MUST(got == at || errno == ENOMEM);
    /* Too many pieces for the system's tables: the addresses stay mapped, the memory goes. */
    if (got != at && (munlock(at, bytes) < 0 || madvise(at, bytes, MADV_DONTNEED) < 0)) {
        base_log(BASE_LOG_WARN, "tiers", "memory of slots cannot be given back: %s",
                 strerror(errno));
    }
}

/* Addresses that begin where a huge page can: maps more, gives both ends back. */
static void *reserve(uint64_t bytes)
{
    char *all = mmap(NULL, bytes + HUGE_PAGE, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) return all;
    size_t before = -(uintptr_t)all % HUGE_PAGE;
    if (before > 0) munmap(all, before);
    if (before < HUGE_PAGE) munmap(all + before + bytes, HUGE_PAGE - before);
    return all + before;
}

int tier_slots_create(struct tier_slots *s, uint32_t count, uint32_t most, uint64_t slot_bytes,
                      const struct tier_slots_hold *hold, struct base_err *err)
{
    char size[16];
    uint64_t bytes = count * slot_bytes;
    *s = (struct tier_slots){ 0 };
    void *memory = reserve(most * slot_bytes);
    if (memory == MAP_FAILED) {
        most = count;
        memory = reserve(bytes);
    }
    if (memory == MAP_FAILED) {
        return base_err_set(err, -ENOMEM, "cannot map %s for %u slots: the system has not so much "
                            "memory to give", base_str_bytes(size, sizeof size, bytes), count);
    }
    int rc = tier_slots_create_at(s, count, most, slot_bytes, memory, err);
    if (rc < 0) {
        munmap(memory, most * slot_bytes);
        return rc;
    }
    s->borrowed = false;
    s->hold = *hold;
    rc = range_open(s, memory, bytes, err);
    if (rc == 0) rc = pin(s, hold->pin, err);
    if (rc < 0) tier_slots_destroy(s);
    return rc;
}

void tier_slots_destroy(struct tier_slots *s)
{
    if (s->memory && !s->borrowed) munmap(s->memory, s->most * s->slot_bytes);
    free(s->at_memory);
    free(s->free);
    *s = (struct tier_slots){ 0 };
}

/* -- in and out of service -------------------------------------------------------------------- */

static void moved(const struct tier_slots *s, uint32_t first, uint32_t n, bool in_service)
{
    if (s->moved) s->moved(s->context, tier_slots_memory(s, first), n * s->slot_bytes, in_service);
}

static int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* Length of the run of neighbours that begins at list[0]. */
static uint32_t run_of(const uint32_t *list, uint32_t n)
{
    uint32_t run = 1;
    while (run < n && list[run] == list[0] + run) run++;
    return run;
}

/* Memory for the slots of the list, neighbours at once. Returns 0, or an error and how many got
 * it. */
static int open_list(struct tier_slots *s, const uint32_t *list, uint32_t n, uint32_t *opened,
                     struct base_err *err)
{
    char why[160];
    for (uint32_t i = 0; i < n; i += run_of(list + i, n - i)) {
        uint64_t bytes = run_of(list + i, n - i) * s->slot_bytes;
        char *at = tier_slots_memory(s, list[i]);
        *opened = i;
        int rc = range_open(s, at, bytes, err);
        if (rc < 0) {
            range_close(at, bytes);
            return rc;
        }
        rc = s->locked ? lock_pages(at, bytes) : 0;
        if (rc == 0) continue;
        explain_refusal(s, rc, why, sizeof why);
        if (s->hold.pin == TIER_PIN_ON) {
            range_close(at, bytes);
            return base_err_set(err, rc, "tiers.dram.pin: on: the system refused to lock memory: "
                                "%s", why);
        }
        s->locked = false;
        snprintf(s->note, sizeof s->note, "not all locked: %s", why);
    }
    *opened = n;
    return 0;
}

int tier_slots_grow(struct tier_slots *s, uint32_t n, struct base_err *err)
{
    uint32_t opened = 0;
    if (n > s->retired_count) {
        return base_err_set(err, BASE_EBUDGET, "%u slots more: addresses were set aside for %u in "
                            "all at start, %u are in service", n, s->most, s->count);
    }
    /* The lowest numbers of all those out of service, so that neighbours come together. */
    uint32_t *list = s->free + s->most - s->retired_count;
    qsort(list, s->retired_count, sizeof *list, by_number);
    int rc = s->borrowed ? 0 : open_list(s, list, n, &opened, err);
    if (rc < 0) {
        for (uint32_t i = 0; i < opened; i++) range_close(tier_slots_memory(s, list[i]),
                                                          s->slot_bytes);
        return rc;
    }
    for (uint32_t i = 0; i < n; i += run_of(list + i, n - i)) {
        moved(s, list[i], run_of(list + i, n - i), true);
    }
    for (uint32_t i = 0; i < n; i++) s->free[s->free_count++] = list[i];
    s->retired_count -= n;
    s->count += n;
    s->bytes = s->count * s->slot_bytes;
    return 0;
}

uint32_t tier_slots_retire(struct tier_slots *s, uint32_t n)
{
    uint32_t done = 0;
    for (; done < n && s->free_count > 0; done++) {
        uint32_t slot = s->free[--s->free_count];
        MUST(s->at[slot].state == TIER_SLOT_FREE);
        moved(s, slot, 1, false);
        if (!s->borrowed) range_close(tier_slots_memory(s, slot), s->slot_bytes);
        s->touched -= s->at[slot].touched;
        s->at[slot].touched = 0;
        s->retired_count++;
        s->free[s->most - s->retired_count] = slot;
    }
    s->count -= done;
    s->bytes = s->count * s->slot_bytes;
    return done;
}

/* -- taken and given -------------------------------------------------------------------------- */

uint32_t tier_slots_take(struct tier_slots *s, uint32_t key)
{
    if (s->free_count == 0) return TIER_NO_SLOT;
    uint32_t slot = s->free[--s->free_count];
    struct tier_slot *at = &s->at[slot];
    MUST(at->state == TIER_SLOT_FREE);
    at->key = key;
    at->epoch++;
    at->state = TIER_SLOT_QUEUED;
    at->prefetch = at->restore = false;
    at->moving = at->tries = 0;
    return slot;
}

void tier_slots_give(struct tier_slots *s, uint32_t slot)
{
    struct tier_slot *at = &s->at[slot];
    MUST(at->state != TIER_SLOT_FREE);
    at->state = TIER_SLOT_FREE;
    at->epoch++;
    s->free[s->free_count++] = slot;
}
