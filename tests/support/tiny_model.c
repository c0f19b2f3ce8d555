/* tiny_model DIR [KIND]: a random checkpoint with pebble's vocabulary size, so that its tokenizer
 * fits.
 *
 *     big (default)     experts outweigh all else: 4 layers of 64 of 0.75 MiB, 193 MiB in all
 *     wide, wide-fp8    dense parts far wider than the hidden state, for ranks; about 1 MB */
#include <stdio.h>
#include <string.h>

#include "tests/support/make_tiny.h"

static void make_big(struct tiny_options *options)
{
    options->fp8 = true;
    options->layers = 5;
    options->dense_layers = 1;
    options->hidden = options->expert_width = options->dense_width = 512;
    options->experts = 64;
    options->top_k = 6;
    options->groups = options->top_groups = 1;
    options->block = 128;
}

static void make_wide(struct tiny_options *options, bool fp8)
{
    options->fp8 = fp8;
    options->layers = 4;
    options->dense_layers = 2;
    options->hidden = 32;
    options->dense_width = 512;
    options->heads = 8;
    options->v_dim = 16;
    options->expert_width = 48;
    options->shared_experts = 4;
    options->experts = 12;
    options->top_k = 4;
    options->groups = 3;
    options->top_groups = 2;
    options->block = 8;
}

int main(int argc, char **argv)
{
    const char *kind = argc > 2 ? argv[2] : "big";
    struct tiny_options options = tiny_defaults();
    options.vocab = 4096;
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: tiny_model DIR [big|wide|wide-fp8]\n");
        return 2;
    }
    if (strncmp(kind, "wide", 4) == 0) make_wide(&options, strcmp(kind, "wide-fp8") == 0);
    else make_big(&options);
    tiny_write(argv[1], &options);
    return 0;
}
