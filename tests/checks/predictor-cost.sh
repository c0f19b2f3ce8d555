#!/usr/bin/env bash
# prediction and learning cost under 2% of a token's decode time at 58 layers x 256 experts, against the floor of that time
set -eu
out=$("$EXPERTIER_BUILD/bin/tier-bench" predict --json)
field() { printf '%s' "$out" | sed "s/.*\"$1\":\([0-9.]*\).*/\1/"; }
awk -v p="$(field predict_ns)" -v l="$(field learn_ns)" -v floor="$(field floor_ns)" -v rate="$(field memory_bytes_per_second)" 'BEGIN {
    share = 100 * (p + l) / floor
    printf "blend: %.2f ms to predict, %.2f ms to learn a token; floor of the decode %.0f ms (37 GB at %.1f GB/s)\n", p / 1e6, l / 1e6, floor / 1e6, rate / 1e9
    printf "share of decode time %.2f%% (< 2%% wanted)\n", share
    exit !(share < 2) }'
