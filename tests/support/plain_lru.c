/* LRU per layer by scanning for the oldest: written without anything of ours. */
#include "tests/support/plain_lru.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

int plain_lru(FILE *jsonl, unsigned slots, uint64_t *lookups, uint64_t *misses)
{
    static char line[1 << 16];
    static uint64_t used_at[64][64];                    /* 0 = absent */
    static unsigned resident[64];
    uint64_t now = 0;
    memset(used_at, 0, sizeof used_at);
    memset(resident, 0, sizeof resident);
    if (!fgets(line, sizeof line, jsonl)) return -1;    /* header */
    while (fgets(line, sizeof line, jsonl)) {
        char *at = strstr(line, "\"experts\":[") + 10;
        for (unsigned layer = 0; *at != ']'; layer++) {
            unsigned ids[16], n = 0;
            for (at = strchr(at, '[') + (layer == 0); *at != ']'; at += *at == ',') {
                if (*at == '[') at++;
                ids[n++] = (unsigned)strtoul(at, &at, 10);
            }
            at++;                                       /* past this layer's list */
            bool hit[16];
            for (unsigned i = 0; i < n; i++) hit[i] = used_at[layer][ids[i]] > 0;
            now += 100;
            /* Hits first, then what came in; none of them is as old as anybody else. */
            for (unsigned i = 0; i < n; i++) {
                if (hit[i]) used_at[layer][ids[i]] = now + i;
            }
            for (unsigned i = 0; i < n; i++) {
                ++*lookups;
                if (hit[i]) continue;
                ++*misses;
                if (resident[layer] == slots) {
                    unsigned oldest = 64;
                    for (unsigned e = 0; e < 64; e++) {
                        if (used_at[layer][e] == 0) continue;
                        if (oldest == 64 || used_at[layer][e] < used_at[layer][oldest]) oldest = e;
                    }
                    used_at[layer][oldest] = 0;
                    resident[layer]--;
                }
                used_at[layer][ids[i]] = now + 50 + i;
                resident[layer]++;
            }
        }
    }
    return 0;
}
