#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiering/decide_priv.h"

/* decide.tiers=96/lfu/16x6,300/lru/- decide.adaptive=0 decide.half_life=16 decide.prefill_share=0.5
 * decide.prefetch=0; a tier is slots/policy/quotas, quotas are QUOTAxLAYERS+..., "-" = equal. */

struct text {
    char *to;
    size_t size, used;
    bool full;
};

static void put(struct text *text, const char *format, ...) BASE_PRINTF(2, 3);
static void put(struct text *text, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text->to + text->used, text->size - text->used, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= text->size - text->used) {
        text->full = true;
        return;
    }
    text->used += (size_t)n;
}

static void put_quotas(struct text *text, const uint32_t *quotas, uint32_t layers)
{
    for (uint32_t l = 0; l < layers && !text->full;) {
        uint32_t run = 1;
        while (l + run < layers && quotas[l + run] == quotas[l])
            run++;
        put(text, "%s%" PRIu32 "x%" PRIu32, l ? "+" : "", quotas[l], run);
        l += run;
    }
}

int tier_decide_change_format(const struct tier_decide_change *change, uint32_t layers,
                              uint32_t tiers, char *to, size_t size)
{
    struct text text = { .to = to, .size = size };
    put(&text, "decide.tiers=");
    for (uint32_t t = 0; t < tiers; t++) {
        const struct tier_decide_tier *tier = &change->tiers[t];
        put(&text, "%s%" PRIu64 "/%s/", t ? "," : "", tier->slots, tier->policy);
        if (tier->quotas && !change->adaptive) {
            put_quotas(&text, tier->quotas, layers);
        } else {
            put(&text, "-");
        }
    }
    put(&text,
        " decide.adaptive=%d decide.half_life=%.17g decide.prefill_share=%.17g "
        "decide.prefetch=%d",
        change->adaptive, change->half_life_tokens, change->prefill_share, change->prefetch);
    return text.full ? -ENOSPC : 0;
}

static bool take(const char **at, const char *word)
{
    size_t size = strlen(word);
    if (strncmp(*at, word, size) != 0) return false;
    *at += size;
    return true;
}

static bool take_number(const char **at, uint64_t max, uint64_t *to)
{
    char *end;
    if (**at < '0' || **at > '9') return false;
    errno = 0;
    unsigned long long value = strtoull(*at, &end, 10);
    if (errno || value > max) return false;
    *at = end;
    *to = value;
    return true;
}

static bool take_real(const char **at, double *to)
{
    char *end;
    if (**at < '0' || **at > '9') return false;
    *to = strtod(*at, &end);
    *at = end;
    return *to >= 0 && *to < 1e300;
}

static bool take_quotas(const char **at, uint32_t *quotas, uint32_t layers)
{
    uint32_t l = 0;
    do {
        uint64_t quota, run;
        if (!take_number(at, UINT32_MAX, &quota) || !take(at, "x") ||
            !take_number(at, layers - l, &run) || run == 0) {
            return false;
        }
        while (run-- > 0)
            quotas[l++] = (uint32_t)quota;
    } while (l < layers && take(at, "+"));
    return l == layers;
}

static bool take_tier(const char **at, struct tier_decide_tier *tier, uint32_t *quotas,
                      uint32_t layers)
{
    if (!take_number(at, UINT64_MAX, &tier->slots) || !take(at, "/")) return false;
    size_t size = strcspn(*at, "/ ,");
    if (size >= sizeof tier->policy) return false;
    memcpy(tier->policy, *at, size);
    tier->policy[size] = '\0';
    *at += size;
    if (!take(at, "/")) return false;
    if (take(at, "-")) return true;
    tier->quotas = quotas;
    return take_quotas(at, quotas, layers);
}

static bool take_change(const char **at, struct tier_decide_change *change, uint32_t *quotas,
                        uint32_t layers, uint32_t tiers)
{
    uint64_t adaptive, prefetch;
    if (!take(at, "decide.tiers=")) return false;
    for (uint32_t t = 0; t < tiers; t++) {
        if (t > 0 && !take(at, ",")) return false;
        if (!take_tier(at, &change->tiers[t], quotas + (size_t)t * layers, layers)) return false;
    }
    if (!take(at, " decide.adaptive=") || !take_number(at, 1, &adaptive) ||
        !take(at, " decide.half_life=") || !take_real(at, &change->half_life_tokens) ||
        !take(at, " decide.prefill_share=") || !take_real(at, &change->prefill_share) ||
        !take(at, " decide.prefetch=") || !take_number(at, 1, &prefetch)) {
        return false;
    }
    change->adaptive = adaptive;
    change->prefetch = prefetch;
    return **at == '\0';
}

int tier_decide_change_parse(struct tier_decide_change *change, uint32_t layers, uint32_t tiers,
                             const char *text, uint32_t *quotas, struct base_err *err)
{
    const char *at = text;
    *change = (struct tier_decide_change){ 0 };
    if (take_change(&at, change, quotas, layers, tiers)) return 0;
    return base_err_set(err, BASE_EFORMAT,
                        "setting \"%.200s\": no change of %" PRIu32 " tiers of "
                        "%" PRIu32 " layers, from byte %zu on",
                        text, tiers, layers, (size_t)(at - text));
}
