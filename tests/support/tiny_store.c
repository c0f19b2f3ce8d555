#include "tests/support/tiny_store.h"

#include <stdio.h>
#include <stdlib.h>

struct tiny_options tiny_moe(uint32_t moe_layers, uint32_t experts, uint32_t top_k)
{
    struct tiny_options options = tiny_defaults();
    options.layers = moe_layers + 1;
    options.dense_layers = 1;
    options.experts = experts;
    options.top_k = top_k;
    options.groups = options.top_groups = 1;
    return options;
}

struct tier_store *tiny_store_open(char *dir, size_t size, const char *name,
                                   const struct tiny_options *options)
{
    struct tier_store *store = NULL;
    struct model_shape shape;
    struct base_err err = { 0 };
    tiny_folder(dir, size, name);
    tiny_write(dir, options);
    int rc = model_shape_load(&shape, dir, &err);
    if (rc == 0) rc = tier_store_index(dir, NULL, &shape, 1, NULL, &err);
    if (rc == 0) rc = tier_store_open(&store, dir, NULL, &shape, &err);
    if (rc == 0) return store;
    fprintf(stderr, "%s: %s\n", name, err.text);
    exit(EXIT_FAILURE);
}
