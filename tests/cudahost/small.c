#include "tests/cudahost/small.h"

#include <check.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/support/make_tiny.h"
#include "tests/support/run_stack.h"

const char *const small_prompts[SMALL_PROMPTS] = {
    "In the beginning", "#include <", "The LORD said", "int main(", "ls -l", "And God",
    "the file", "struct", "of the", "return -1;", "David", "#define", "kernel", "the king",
    "void", "memory", "Jesus", "static", "mount", "He said",
};

void small_model(char *dir, size_t size, const char *name)
{
    static const char *const files[] = { "tokenizer.json", "tokenizer_config.json" };
    struct tiny_options options = tiny_defaults();
    char from[3100], to[3100];
    options.vocab = SMALL_VOCAB;
    options.experts = 16;
    options.top_k = 4;
    tiny_folder(dir, size, name);
    tiny_write(dir, &options);
    for (int i = 0; i < 2; i++) {
        snprintf(from, sizeof from, "%s/%s", run_pebble(), files[i]);
        snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        ck_assert_int_eq(symlink(from, to), 0);
    }
}

void small_model_spoil(const char *dir)
{
    enum { HEADER_MAX = 1 << 20 };
    static const uint16_t no_number = 0x7fc1;   /* BF16 */
    char path[3100];
    uint64_t size, begin;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *file = fopen(path, "r+b");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fread(&size, sizeof size, 1, file), 1);
    ck_assert_uint_lt(size, HEADER_MAX);
    char *header = calloc(1, size + 1);
    ck_assert_uint_eq(fread(header, size, 1, file), 1);
    const char *head = strstr(header, "\"lm_head.weight\":{\"dtype\":\"BF16\"");
    const char *at = head ? strstr(head, "\"data_offsets\":[") : NULL;
    ck_assert_msg(at, "no head of BF16 in %s", path);
    begin = strtoull(at + strlen("\"data_offsets\":["), NULL, 10);
    ck_assert_int_eq(fseek(file, (long)(sizeof size + size + begin), SEEK_SET), 0);
    ck_assert_uint_eq(fwrite(&no_number, sizeof no_number, 1, file), 1);
    ck_assert_int_eq(fclose(file), 0);
    free(header);
}
