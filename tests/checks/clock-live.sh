#!/usr/bin/env bash
# the virtual clock predicts pebble's live tokens/s within 15% at three disk speeds, DRAM tier 25%
set -eu
bin=$EXPERTIER_BUILD/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$EXPERTIER_SOURCE"
worst=0
for speed in 10MB 30MB 90MB; do
    # The description is measured on its own, then the engine runs with the same disk.
    throttle="io.throttle_bandwidth=$speed"
    "$bin/tier-bench" machine --quiet --set "$throttle" -o "$work/$speed.yaml"
    "$bin/tier-bench" decode --quiet --json --rounds 3 --tokens 64 --set "$throttle" \
        --set tiers.dram.capacity=25% --set "trace.path=$work/$speed.trace" >/dev/null
    "$bin/tier-replay" run "$work/$speed.trace" --machine "$work/$speed.yaml" --json --quiet >"$work/out"
    live=$(sed 's/.*"live_tokens_per_second":\([0-9.]*\).*/\1/' "$work/out")
    clock=$(sed 's/.*"tokens_per_second":\([0-9.]*\),"steps".*/\1/' "$work/out")
    worst=$(awk -v live="$live" -v clock="$clock" -v speed="$speed" -v worst="$worst" 'BEGIN {
        off = live > 0 ? 100 * (clock / live - 1) : 100
        printf "%5s/s: live %.2f tokens/s, virtual clock %.2f (%+.1f%%)\n", speed, live, clock, off > "/dev/stderr"
        off = off < 0 ? -off : off
        print (off > worst ? off : worst) }')
done
awk -v worst="$worst" 'BEGIN { printf "largest difference %.1f%% (<= 15%% wanted)\n", worst; exit !(worst <= 15) }'
