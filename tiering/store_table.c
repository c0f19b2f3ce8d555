#include "tiering/store_table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "port/hash.h"

enum { NO_LAYOUT = UINT32_MAX, SEATS_MIN = 64 };

_Static_assert(sizeof(struct tier_entry) == 24 && sizeof(struct tier_layout) == 72, "as told");

static struct tier_layout layout_of(const struct tier_format_expert *expert)
{
    struct tier_layout layout = { .kind = expert->zero };
    for (unsigned p = 0; p < TIER_FORMAT_PARTS; p++) {
        layout.offset[p] = expert->offset[p] - expert->offset[0];
        layout.file[p] = (uint16_t)(expert->file[p] - expert->file[0]);
    }
    return layout;
}

/* The seat of this layout, or the empty one where it belongs. */
static uint32_t *seat_of(const struct tier_table *t, const struct tier_layout *layout)
{
    uint64_t hash = port_hash64(layout, sizeof *layout);
    for (uint32_t i = (uint32_t)hash;; i++) {
        uint32_t *seat = &t->seats[i & (t->seat_count - 1)];
        if (*seat == NO_LAYOUT) return seat;
        if (memcmp(&t->layouts[*seat], layout, sizeof *layout) == 0) return seat;
    }
}

/* Room for one layout more; at most half of the seats are taken. */
static int make_room(struct tier_table *t)
{
    if (t->layout_count < t->layout_room) return 0;
    uint32_t room = t->layout_room ? 2 * t->layout_room : SEATS_MIN / 2;
    struct tier_layout *layouts = realloc(t->layouts, room * sizeof *layouts);
    if (!layouts) return -ENOMEM;
    t->layouts = layouts;
    uint32_t *seats = malloc(2 * (size_t)room * sizeof *seats);
    if (!seats) return -ENOMEM;
    memset(seats, 0xff, 2 * (size_t)room * sizeof *seats);
    free(t->seats);
    t->seats = seats;
    t->seat_count = 2 * room;
    t->layout_room = room;
    for (uint32_t i = 0; i < t->layout_count; i++) *seat_of(t, &t->layouts[i]) = i;
    return 0;
}

static int fill(struct tier_table *t, const struct tier_format_expert *experts)
{
    for (uint64_t i = 0; i < t->count; i++) {
        struct tier_layout layout = layout_of(&experts[i]);
        int rc = make_room(t);
        if (rc < 0) return rc;
        uint32_t *seat = seat_of(t, &layout);
        if (*seat == NO_LAYOUT) {
            *seat = t->layout_count;
            t->layouts[t->layout_count++] = layout;
        }
        t->entries[i] = (struct tier_entry){ .hash = experts[i].hash,
                                             .offset = experts[i].offset[0],
                                             .layout = *seat,
                                             .file = experts[i].file[0] };
        if (t->record_hashes) t->record_hashes[i] = experts[i].record_hash;
    }
    return 0;
}

int tier_table_make(struct tier_table *t, const struct tier_format_expert *experts, uint64_t count,
                    bool records)
{
    *t = (struct tier_table){ .count = count };
    t->entries = malloc(count * sizeof *t->entries);
    t->record_hashes = records ? malloc(count * sizeof *t->record_hashes) : NULL;
    int rc = t->entries && (!records || t->record_hashes) ? fill(t, experts) : -ENOMEM;
    free(t->seats);
    t->seats = NULL;
    if (rc < 0) {
        tier_table_free(t);
        return rc;
    }
    struct tier_layout *exact = realloc(t->layouts, t->layout_count * sizeof *exact);
    if (exact) t->layouts = exact;
    t->layout_room = t->layout_count;
    return 0;
}

void tier_table_free(struct tier_table *t)
{
    free(t->entries);
    free(t->layouts);
    free(t->record_hashes);
    free(t->seats);
    *t = (struct tier_table){ 0 };
}

void tier_table_expert(const struct tier_table *t, uint64_t at, struct tier_format_expert *expert)
{
    MUST(at < t->count);
    const struct tier_entry *entry = &t->entries[at];
    const struct tier_layout *layout = &t->layouts[entry->layout];
    *expert = (struct tier_format_expert){
        .hash = entry->hash,
        .record_hash = t->record_hashes ? t->record_hashes[at] : 0,
        .zero = layout->kind,
    };
    for (unsigned p = 0; p < TIER_FORMAT_PARTS; p++) {
        expert->offset[p] = entry->offset + layout->offset[p];
        expert->file[p] = (uint16_t)(entry->file + layout->file[p]);
    }
}
