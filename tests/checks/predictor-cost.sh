#!/usr/bin/env bash
# prediction, learning and gates asked a layer ahead cost under 2% of a token's decode at 58 layers x 256 experts
set -eu
out=$("$EXPERTIER_BUILD/bin/tier-bench" predict --lookahead 1 --json)
field() { printf '%s' "$out" | sed "s/.*\"$1\":\([0-9.]*\).*/\1/"; }
awk -v p="$(field predict_ns)" -v l="$(field learn_ns)" -v floor="$(field floor_ns)" -v gates="$(field gates_ns)" -v rate="$(field memory_bytes_per_second)" 'BEGIN {
    share = 100 * (p + l) / floor
    printf "blend: %.2f ms to predict, %.2f ms to learn a token; floor of the decode %.0f ms (37 GB at %.1f GB/s)\n", p / 1e6, l / 1e6, floor / 1e6, rate / 1e9
    printf "share of decode time %.2f%%; with each gate of 7168 x 256 asked a layer ahead %.2f%% (< 2%% wanted)\n", share, share + 100 * gates / floor
    exit !(share + 100 * gates / floor < 2) }'
