#!/usr/bin/env bash
# perplexity of pebble with INT8 and INT4 experts, with INT8 dense weights beside them, and with bf16 and INT8 activations, on three texts of its kinds
set -eu
model=$EXPERTIER_SOURCE/models/pebble
bin=$EXPERTIER_BUILD/bin
work=$(mktemp -d "$EXPERTIER_BUILD/quality_XXXXXX")
trap 'rm -rf "$work"' EXIT

# The kinds of text that pebble learned, past what its recipe took: of C headers it cut everything
# behind the 12,000th character, and these documents did not exist. Its recipe does not say which
# chapters of the Bible it held aside, so those may have been seen.
for header in stdlib.h stdio.h string.h; do tail -c +12001 "/usr/include/$header"; done | head -c 20000 >"$work/headers"
cat "$EXPERTIER_SOURCE"/docs/*.md | head -c 20000 >"$work/documents"
cp "$EXPERTIER_SOURCE/tests/checks/kjv.txt" "$work/bible"

perplexity() { # MODEL TEXT ACTIVATIONS
    "$bin/tier-run" --model "$1" --perplexity "$work/$2" --set "tiers.nvme.index=$work/$(basename "$1").index" \
        --set "engine.activations=$3" --quiet | awk '{ print $2 }'
}
cp -r "$model" "$work/native"
for rung in int8 int4; do
    "$bin/tier-pack" quantize --to $rung --allow-larger --quiet "$model" "$work/$rung" |
        sed -n "s/.*relative RMS error/$rung: relative RMS error/p"
done
"$bin/tier-pack" quantize --to int8 --dense --allow-larger --quiet "$model" "$work/dense" |
    sed -n "s/.*dense weights.*relative RMS error/dense: relative RMS error/p"
for text in headers documents bible; do
    native=$(perplexity "$work/native" "$text" f32)
    echo "$text fp8 $native $native $(perplexity "$work/native" "$text" bf16) $native"
    for rung in int8 int4 dense; do
        echo "$text $rung $native $(perplexity "$work/$rung" "$text" f32)" \
            "$(perplexity "$work/$rung" "$text" bf16) $(perplexity "$work/$rung" "$text" int8)"
    done
done | awk '
    BEGIN { most["fp8"] = 0.5; most["int8"] = 0.5; most["dense"] = 0.5; most["int4"] = 3 }
    { weights = 100 * ($4 / $3 - 1); bf16 = 100 * ($5 / $4 - 1); int8 = 100 * ($6 / $4 - 1)
      good = weights < most[$2] && bf16 < 0.5 && int8 < 0.5
      printf "%-9s %-5s weights: perplexity %.3f, %.3f before: %+.3f%% (< %g%% wanted); bf16 activations %+.3f%% more (< 0.5%% wanted)%s%s\n", \
          $1, toupper($2), $4, $3, weights, most[$2], bf16,
          $2 == "fp8" ? "" : sprintf(", INT8 %+.3f%% (< 0.5%%)", int8), good ? "" : "  FAILED"
      rows++; bad += !good }
    END { exit !(rows == 12 && bad == 0) }'
