/* Any bytes as settings: accepted values lie within their limits and print to what reads back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "port/yaml.h"
#include "tests/fuzz/fuzz.h"

#define SAMPLE_OPTIONS(O)                                                                          \
    O(capacity, BYTES, "tiers.dram.capacity", "1GiB", "1MiB..1TiB", "bytes", "memory")             \
    O(pin, ENUM, "tiers.dram.pin", "auto", "auto|on|off", "", "lock it")                           \
    O(depth, UINT, "io.depth", "32", "1..4096", "reads", "reads in flight")                        \
    O(latency, TIME, "io.latency", "80us", "", "", "how long")                                     \
    O(share, SHARE, "io.share", "25%", "", "", "how much")                                         \
    O(offset, INT, "io.offset", "-1", "-10..10", "", "where")                                      \
    O(rate, REAL, "io.rate", "0.1", "", "", "how often")                                           \
    O(quick, BOOL, "io.quick", "false", "", "", "whether")                                         \
    O(name, TEXTLINE, "name", "", "", "", "whose")                                                 \
    O(paths, LIST, "tiers.nvme.paths", "/a,/b", "", "", "folders")
struct sample {
    BASE_OPTION_STRUCT(SAMPLE_OPTIONS)
};
#define BASE_OPTION_OWNER struct sample
static const struct base_option table[] = { SAMPLE_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER

const char *const fuzz_words[] = {
    "tiers:\n", "  dram:\n", "    capacity: ", "pin: on\n", "io:\n", "  depth: ", "latency: 1ms\n",
    "share: 25%\n", "name: ", "paths: [", "]", "{", "}", "- ", ": ", "\n", "  ", "&a ", "*a",
    "!!str ",
    "---\n", "...\n", "%YAML 1.2\n", "? ", "| \n", "> \n", "\"", "'", "\\0", "\\x00", "16G",
    "16GiB",
    "~", "null", "<<: ", "#", "\t", "\xff", "\xe2\x80\xa8", "\xef\xbb\xbf",
    "tiers.dram.pin: ", NULL,
};

static const char *const seeds[] = {
    "tiers:\n  dram:\n    capacity: 16GiB\n    pin: auto\n  nvme:\n    paths: [\"/x\", '/y']\n",
    "io:\n  depth: 64\n  latency: 1.5ms\n  share: 50%\n  offset: -3\n  rate: 1e-3\n  quick: true\n",
    "# nothing\nname: \"a \\\"b\\\" \\\\ c\"\ntiers.nvme.paths:\n  - /one\n  - /two\n",
    "{io: {depth: 1}, name: x}\n",
};

size_t fuzz_seed(unsigned index, uint8_t *to, size_t room)
{
    if (index >= sizeof seeds / sizeof seeds[0]) return 0;
    size_t size = strlen(seeds[index]);
    MUST(size <= room);
    memcpy(to, seeds[index], size);
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static struct sample sample, again;
    const struct base_option_group group = { "sample", table, sizeof table / sizeof table[0],
                                             &sample };
    const struct base_option_group group_again = { "sample", table, group.count, &again };
    memset(&sample, 0, sizeof sample);
    memset(&again, 0, sizeof again);
    base_option_defaults(&group, 1);
    base_option_defaults(&group_again, 1);
    struct base_err err = { 0 };
    int rc = port_yaml_parse((const char *)bytes, size, "input", &group, 1, &err);
    if (rc < 0) {
        fuzz_check_refusal(rc, &err);
        return 0;
    }
    MUST(sample.capacity >= 1ull << 20 && sample.capacity <= 1ull << 40);
    MUST(sample.pin >= 0 && sample.pin <= 2);
    MUST(sample.depth >= 1 && sample.depth <= 4096);
    MUST(sample.share >= 0.0 && sample.share <= 1.0);
    MUST(sample.offset >= -10 && sample.offset <= 10);
    MUST(sample.paths.count <= BASE_OPTION_LIST_MAX);

    char *text = NULL;
    size_t text_size;
    FILE *to = open_memstream(&text, &text_size);
    MUST(to);
    base_option_print_yaml(to, &group, 1, true);
    fclose(to);
    MUST(port_yaml_parse(text, text_size, "printed", &group_again, 1, NULL) == 0);
    free(text);
    MUST(again.capacity == sample.capacity && again.pin == sample.pin);
    MUST(again.depth == sample.depth && again.latency == sample.latency);
    MUST(again.share == sample.share && again.rate == sample.rate);
    MUST(again.offset == sample.offset && again.quick == sample.quick);
    MUST(strcmp(again.name, sample.name) == 0 && again.paths.count == sample.paths.count);
    for (unsigned i = 0; i < sample.paths.count; i++) {
        MUST(strcmp(again.paths.text[i], sample.paths.text[i]) == 0);
    }
    return 0;
}
