/* Inside of a store, shared by store.c (indexes), lib_table.c (tables that callers make). */
#ifndef TIERING_STORE_PRIV_H
#define TIERING_STORE_PRIV_H

#include "tiering/store_image.h"
#include "tiering/store_table.h"

enum { TIER_STORE_MAGIC = 0x53544f52 };

struct tier_store {
    unsigned magic;
    char *index_path;           /* a table's name, for messages */
    char **paths;               /* [file_count] */
    char *bytes;                /* the index but for the experts; `image` points into it */
    size_t size;
    struct tier_image image;
    struct tier_table table;    /* the experts */
    struct tier_kind *kinds;    /* of a table: what its image points to */
    struct tier_part parts[TIER_PARTS];
    uint64_t slot_bytes;
    uint32_t held, sharers;     /* tier_store_share; 0 = never called */
};

/* Makes the table of the image's experts, and lets go of them. 0 or -ENOMEM. */
int tier_store_settle(struct tier_store *store);
/* Bytes of the largest slot that any record needs. */
void tier_store_slot_derive(struct tier_store *store);

#endif
