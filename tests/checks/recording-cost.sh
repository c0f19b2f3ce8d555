#!/usr/bin/env bash
# recording costs under 1% of a token's decode time, and a full disk loses trace records, never an answer
set -eu
bin=$EXPERTIER_BUILD/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$EXPERTIER_SOURCE"
status=0
out=$("$bin/tier-bench" predict --json)
field() { printf '%s' "$out" | sed "s/.*\"$1\":\([0-9.]*\).*/\1/"; }
awk -v r="$(field record_ns)" -v floor="$(field floor_ns)" 'BEGIN {
    share = 100 * r / floor
    printf "recording a token of 58 layers x 256 experts: %.1f us, %.4f%% of the floor of its decode (< 1%% wanted)\n", r / 1e3, share
    exit !(share < 1) }' || status=1

# A disk that is full after 16 KiB: the shell bounds every file that the program writes.
ask() { # [argument...]
    "$bin/tier-run" --model models/pebble --set "tiers.nvme.index=$work/index" --quiet --seed 3 --temperature 0.8 \
        --max-tokens 200 --prompt 'The kernel is the part of the system that' "$@"
}
ask >"$work/plain" 2>"$work/err"
(trap '' XFSZ; ulimit -f 16; ask --trace "$work/full.trace" >"$work/full" 2>"$work/err.full")
size=$(stat -c %s "$work/full.trace")
cmp "$work/plain" "$work/full" || { echo 'the answer is not the same with a full disk'; status=1; }
[ "$size" -le 16384 ] || { echo "the trace has $size bytes: the disk was not full"; status=1; }
grep -q 'trace' "$work/err.full" || { echo "nothing is said of the lost records: $(cat "$work/err.full")"; status=1; }
if "$bin/tier-replay" run "$work/full.trace" --as-recorded >"$work/replay" 2>&1; then
    echo 'exact replay took a trace with gaps'; status=1
fi
echo "full disk at 16 KiB: the answer of $(wc -c <"$work/full") bytes is the same; said: $(grep -h trace "$work/err.full" | head -1); exact replay refuses it: $(tail -1 "$work/replay")"
exit "$status"
