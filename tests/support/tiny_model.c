/* tiny_model DIR: a random checkpoint whose experts outweigh all else: 4 layers of 64 experts of
 * 0.75 MiB, 193 MiB in all, with pebble's vocabulary size so that its tokenizer fits. */
#include <stdio.h>

#include "tests/support/make_tiny.h"

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: tiny_model DIR\n");
        return 2;
    }
    struct tiny_options options = tiny_defaults();
    options.fp8 = true;
    options.layers = 5;
    options.dense_layers = 1;
    options.hidden = options.expert_width = options.dense_width = 512;
    options.experts = 64;
    options.top_k = 6;
    options.groups = options.top_groups = 1;
    options.vocab = 4096;
    options.block = 128;
    tiny_write(argv[1], &options);
    return 0;
}
