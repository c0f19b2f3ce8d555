#!/usr/bin/env bash
# a lookup that hits: median below 100 ns, p99 below 1 us at 58 x 256 experts; no allocation, no lock
set -euo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
meson test -C "$EXPERTIER_BUILD" --no-rebuild --verbose hot >"$log" 2>&1 || { cat "$log"; exit 1; }
grep 'no call of' "$log"
bad=0
for policy in lru lfu lru_with_prediction; do
    "$EXPERTIER_BUILD/bin/tier-bench" cache --json --policy "$policy" --dir "${TMPDIR:-/tmp}" "$@" >"$log"
    awk -v policy="$policy" '{
        match($0, /"median":[0-9.]+/); median = substr($0, RSTART + 9, RLENGTH - 9) + 0
        match($0, /"p99":[0-9.]+/); p99 = substr($0, RSTART + 6, RLENGTH - 6) + 0
        match($0, /"allocated_bytes":[0-9]+/); allocated = substr($0, RSTART + 18, RLENGTH - 18) + 0
        printf "%-20s median %.1f ns (< 100 wanted), p99 %.1f ns (< 1000 wanted), %d bytes allocated\n", policy, median, p99, allocated
        exit !(median > 0 && median < 100 && p99 < 1000 && allocated == 0) }' "$log" || bad=1
done
exit "$bad"
