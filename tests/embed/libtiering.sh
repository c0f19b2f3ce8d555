#!/usr/bin/env bash
# An engine that is not ours: the example of docs/examples, built with the installed header, library
# and pkg-config file alone, serves its toy model and a checkpoint's folder; only the names of
# libtiering.map are exported; no arithmetic is linked in.
set -euo pipefail
source_dir=${EXPERTIER_SOURCE:?} build=${EXPERTIER_BUILD:?}
read -ra cc <<<"${EXPERTIER_CC:-cc}"
sanitize=${EXPERTIER_SANITIZE:-none}
work=$(mktemp -d "$build/libtiering-XXXXXX")
trap 'rm -rf "$work"' EXIT
# The test runner points it at the build folder, before any rpath.
unset LD_LIBRARY_PATH
skip() { echo "skip: $*"; exit 77; }
fail() { echo "FAILED: $*"; exit 1; }
command -v meson >/dev/null 2>&1 || skip 'meson is not in the path'
command -v pkg-config >/dev/null 2>&1 || skip 'pkg-config is not installed'

# As the example has it; under a sanitizer adding up the bytes of all takes minutes.
tokens=$(sed -n 's/.* TOKENS = \([0-9]*\) .*/\1/p' "$source_dir/docs/examples/toy_engine.c")
[ "$sanitize" = none ] || tokens=$((tokens / 8))

# Where the toolchain of this build wants the runtime of a sanitizer first, so do its programs.
flags=(-std=c11 -D_POSIX_C_SOURCE=200809L -O1 -g -Wall -Wextra -Wpedantic -Werror)
[ "$sanitize" = none ] || flags+=("-fsanitize=$sanitize")

meson install -C "$build" --no-rebuild --quiet --tags devel,libtiering --destdir "$work/root" >"$work/log" 2>&1 ||
    { cat "$work/log"; fail 'meson install failed'; }
pc=$(find "$work/root" -name libtiering.pc)
library=$(find "$work/root" -name libtiering.so.1)
header=$(find "$work/root" -name libtiering.h)
[ -n "$pc" ] && [ -n "$library" ] && [ -n "$header" ] || fail "not installed: $(find "$work/root")"
[ "$(find "$work/root" -name '*.h' | wc -l)" = 1 ] || fail 'more than one header is installed'
prefix=$(sed -n 's/^prefix=//p' "$pc")
config() {
    PKG_CONFIG_PATH=$(dirname "$pc") pkg-config --define-variable="prefix=$work/root$prefix" "$@" libtiering
}
version=$(config --modversion)

# The names.
wanted=$(sed -n 's/^ *\(tier_[a-z_]*\);$/\1@@TIERING_1/p' "$source_dir/tiering/libtiering.map" | sort)
exported=$(nm -D --defined-only "$library" | awk '$2 == "T" || $2 == "D" || $2 == "B" { print $3 }' | sort)
[ "$wanted" = "$exported" ] || { diff <(echo "$wanted") <(echo "$exported") || true; fail 'exported names differ from libtiering.map'; }
# Each is declared, and nothing is declared that is not there.
declared=$(tr '\n' ' ' <"$header" | sed 's|/\*[^*]*\*\+\([^/*][^*]*\*\+\)*/||g' |
    grep -oE '\btier_[a-z_]+\(' | tr -d '(' | sort -u | sed 's/$/@@TIERING_1/')
[ "$wanted" = "$declared" ] || { diff <(echo "$wanted") <(echo "$declared") || true; fail 'libtiering.h declares other names than libtiering.map'; }
# grep reads to the end: with -q it could close the pipe on nm.
arithmetic=$(nm "$library" | grep -cE ' (kern|eng|pred|srv)_' || true)
[ "$arithmetic" = 0 ] || fail "$arithmetic names of kernels, engine, predictor or server are linked in"
echo "names: $(echo "$wanted" | wc -l) exported, 0 of kernels, engine, predictor or server"

# The example, with nothing of ours but what is installed; the header in C++ too, where there is one.
lines=$(wc -l <"$source_dir/docs/examples/toy_engine.c")
[ "$lines" -lt 120 ] || fail "the example has $lines lines"
sed "s/TOKENS = [0-9]*/TOKENS = $tokens/" "$source_dir/docs/examples/toy_engine.c" >"$work/toy_engine.c"
cd "$work"
# shellcheck disable=SC2046
"${cc[@]}" "${flags[@]}" toy_engine.c $(config --cflags --libs) -Wl,-rpath,"$(dirname "$library")" -o toy_engine
if command -v c++ >/dev/null 2>&1; then
    printf '#include <libtiering.h>\nint main() { return tier_lib_version() == nullptr; }\n' >header.cc
    # shellcheck disable=SC2046
    c++ -std=c++11 -Wall -Wextra -Werror $(config --cflags) -fsyntax-only header.cc
fi

./toy_engine toy.bin >toy.out || fail 'the example failed'
cat toy.out
# What it must have read: the sum of all bytes, counted again here.
expected=$(awk -v tokens="$tokens" 'BEGIN { for (t = 0; t < tokens; t++) for (l = 0; l < 4; l++) {
    noise = int((t * 2654435761 + l * 40503) % 4294967296 / 65536)
    for (i = 0; i < 4; i++) {
        e = (l * 7 + int(t / 50) + i) % 32
        if (i == 3) e = (e + noise % 29) % 32
        sum += (1000 + 8 * l + e) * ((l * 32 + e) % 256)
    } } printf "%.0f", sum }')
[ "$(awk '{ print $2 }' toy.out)" = "$expected" ] || fail "the sum should be $expected"
awk -v lookups=$((tokens * 4 * 4)) '{ exit !($4 == lookups && $6 > 0.7 * lookups && $6 + $NF == lookups) }' toy.out || fail 'the hit rate is not what it should be'

# A damaged file costs a sentence, not the process.
printf 'X' | dd of=toy.bin bs=1 seek=100000 conv=notrunc status=none
cat >damaged.c <<'END'
#include <libtiering.h>
#include <stdio.h>
int main(void)
{
    char why[640];
    const char *path = "toy.bin";
    struct tier_lib_expert expert = { .parts = { { .offset = 99000, .bytes = 2000 } }, .hash = 1 };
    struct tier_lib_table table = { "damaged", 1, 1, 1, &path, &expert };
    const char *settings[] = { "tiers.dram.capacity=100%" };
    struct tier_lib_options options = { .settings = settings, .setting_count = 1, .top_k = 1 };
    struct tier *tier;
    struct tier_lease lease;
    uint32_t id = 0;
    if (tier_lib_table_open(&options.store, &table, why, sizeof why) < 0) return puts(why), 1;
    if (tier_lib_open(&tier, &options, why, sizeof why) < 0) return puts(why), 1;
    tier_acquire(tier, 0, &id, 1, TIER_DECODE, &lease);
    tier_wait(tier, &lease, 1, TIER_WAIT_ALL, UINT64_MAX);
    tier_failure_text(tier, 0, 0, why, sizeof why);
    puts(why);
    tier_release(tier, &lease, 1);
    tier_close(tier);
    tier_store_close(options.store);
    return lease.status == 0;
}
END
# shellcheck disable=SC2046
"${cc[@]}" "${flags[@]}" damaged.c $(config --cflags --libs) -Wl,-rpath,"$(dirname "$library")" -o damaged
./damaged 2>/dev/null >damaged.out || fail "$(cat damaged.out)"
grep -q 'could not be read: checksum mismatch in toy.bin at byte 99000' damaged.out || fail "$(cat damaged.out)"

# A checkpoint's folder, prepared by our own tool.
"$build/bin/tier-pack" index "$source_dir/models/pebble" --index "$work/pebble.index" >pack.log 2>&1 || fail "$(cat pack.log)"
mkdir pebble
for file in "$source_dir"/models/pebble/*.safetensors; do ln -s "$file" pebble/; done
cp pebble.index pebble/expertier.index
./toy_engine --folder pebble >pebble.out || fail 'the example failed on a model folder'
cat pebble.out
awk -v tokens="$tokens" '{ exit !($4 > 15 * tokens && $6 > $4 / 2) }' pebble.out || fail 'the hit rate on pebble is not what it should be'
echo "libtiering $version: built and used from its installed files alone (sanitizers: $sanitize)"
