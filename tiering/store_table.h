/* The experts of a store as they are kept in memory: on disk each names the place of every part,
 * but nearly all of them are laid out alike. An entry holds what is its own, and the number of a
 * layout.
 *
 * 24 bytes an expert, 32 with record hashes, and 72 for every layout that there is. Immutable once
 * made; any thread. Pure but for memory.
 */
#ifndef TIERING_STORE_TABLE_H
#define TIERING_STORE_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "tiering/format.h"

struct tier_entry {
    uint64_t hash;
    uint64_t offset;            /* of part 0, or of where it would be */
    uint32_t layout;
    uint32_t file;              /* of part 0 */
};

/* Places of the parts from those of part 0 on; what lies before it wraps. */
struct tier_layout {
    uint64_t offset[TIER_FORMAT_PARTS];
    uint16_t file[TIER_FORMAT_PARTS];
    uint32_t kind;              /* a caller's table: sizes of the parts; else 0 */
    uint64_t zero;
};

struct tier_table {
    struct tier_entry *entries;
    struct tier_layout *layouts;
    uint64_t *record_hashes;    /* of a pack; else NULL */
    uint64_t count;
    uint32_t layout_count, layout_room;
    uint32_t *seats;            /* while it is made: layouts by hash */
    uint32_t seat_count;
};

/* Of experts as on disk; `records`: with their record hashes. 0 or -ENOMEM. */
int tier_table_make(struct tier_table *table, const struct tier_format_expert *experts,
                    uint64_t count, bool records);
void tier_table_free(struct tier_table *table);         /* accepts a zeroed one */

/* The expert as on disk. */
void tier_table_expert(const struct tier_table *table, uint64_t at,
                       struct tier_format_expert *expert);

#endif
