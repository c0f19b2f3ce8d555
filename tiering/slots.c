#include "tiering/slots.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "base/must.h"
#include "base/str.h"

enum { HUGE_PAGE = 2 << 20 };

/* Locks pages as they come in: start stays fast, and nothing that is there leaves again. */
static int lock_pages(struct tier_slots *s)
{
    if (mlock2(s->memory, s->bytes, MLOCK_ONFAULT) == 0) return 0;
    if (errno != ENOSYS && errno != EINVAL) return -errno;
    return mlock(s->memory, s->bytes) == 0 ? 0 : -errno;
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
    int rc = lock_pages(s);
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

int tier_slots_create_at(struct tier_slots *s, uint32_t count, uint64_t slot_bytes, void *memory,
                         struct base_err *err)
{
    MUST(count > 0 && slot_bytes > 0 && slot_bytes % TIER_PAGE == 0 && slot_bytes <= UINT32_MAX);
    *s = (struct tier_slots){ .slot_bytes = slot_bytes, .count = count, .borrowed = true };
    s->bytes = count * slot_bytes;
    s->memory = memory;
    s->at = calloc(count, sizeof *s->at);
    s->free = calloc(count, sizeof *s->free);
    if (!s->at || !s->free) {
        tier_slots_destroy(s);
        return base_err_set(err, -ENOMEM, "no memory for the table of %u slots", count);
    }
    for (uint32_t i = 0; i < count; i++) s->free[s->free_count++] = count - 1 - i;
    return 0;
}

int tier_slots_create(struct tier_slots *s, uint32_t count, uint64_t slot_bytes, enum tier_pin mode,
                      struct base_err *err)
{
    char size[16];
    uint64_t bytes = count * slot_bytes;
    *s = (struct tier_slots){ 0 };
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return base_err_set(err, -ENOMEM, "cannot map %s for %u slots: the system has not so much "
                            "memory to give", base_str_bytes(size, sizeof size, bytes), count);
    }
    int rc = tier_slots_create_at(s, count, slot_bytes, memory, err);
    if (rc < 0) {
        munmap(memory, bytes);
        return rc;
    }
    s->borrowed = false;
    /* Large pages spare the TLB where a slot spans several; with small slots they would only round
     * resident memory up. */
    if (slot_bytes >= HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
    madvise(memory, bytes, MADV_DONTDUMP);
    rc = pin(s, mode, err);
    if (rc < 0) tier_slots_destroy(s);
    return rc;
}

void tier_slots_destroy(struct tier_slots *s)
{
    if (s->memory && !s->borrowed) munmap(s->memory, s->bytes);
    free(s->at);
    free(s->free);
    *s = (struct tier_slots){ 0 };
}

uint32_t tier_slots_take(struct tier_slots *s, uint32_t key)
{
    if (s->free_count == 0) return TIER_NO_SLOT;
    uint32_t slot = s->free[--s->free_count];
    struct tier_slot *at = &s->at[slot];
    MUST(at->state == TIER_SLOT_FREE);
    at->key = key;
    at->epoch++;
    at->state = TIER_SLOT_QUEUED;
    at->prefetch = false;
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
