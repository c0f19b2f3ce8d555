#!/usr/bin/env bash
# 1,000 to 1,000,000 experts: acquire at most twice as dear, tables under 128 bytes an expert; start under 1 s
set -euo pipefail
bench=$EXPERTIER_BUILD/bin/tier-bench
dir=${TMPDIR:-/tmp}
field() { sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p"; }
# Between two acquires an engine reads weights, many times the processor's caches: that is the claim.
# Back to back the tables of few experts stay in the caches, those of a million do not: told beside it.
measure() { # LAYERS EXPERTS ARGUMENT...
    "$bench" cache --json --dir "$dir" --layers "$1" --experts "$2" "${@:3}"
}
printf '%-44s %12s %14s\n' 'a lookup that hits, median ns' '1,000' '1,000,000'
for how in 'even' 'skewed' 'even, caches swept' 'skewed, caches swept'; do
    more=(--draw "${how%%,*}")
    [[ $how != *swept ]] || more+=(--sweep 64MiB --lookups 4000)
    for size in '8 125' '8 125000'; do
        # shellcheck disable=SC2086
        for _ in 1 2 3; do measure $size "${more[@]}" | field median; done | sort -n | sed -n 2p
    done | paste -sd' ' | { read -r few many; printf '%-44s %12s %14s\n' "$how" "$few" "$many"; echo "$how $few $many" >&3; }
done 3>"$dir/growth.$$"
bad=0
awk '/swept/ { r = $NF / $(NF - 1); sub(/,/, "", $1); printf "%s, between reads of weights: %.2f times (<= 2 wanted)\n", $1, r; if (r > 2) bad = 1; n++ }
    END { exit bad || n != 2 }' "$dir/growth.$$" || bad=1
rm -f "$dir/growth.$$"
for policy in lru lru_global lfu lru_with_frequency lru_with_prediction slru s3fifo sieve arc; do
    bytes=$(measure 58 17241 --policy "$policy" --lookups 8000 | field bytes_per_expert)
    printf '%-20s %.1f bytes an expert besides slots (< 128 wanted)\n' "$policy" "$bytes"
    awk -v b="$bytes" 'BEGIN { exit !(b > 0 && b < 128) }' || bad=1
done
ms=$(measure 58 256 --start --lookups 8000 | field start_ms)
echo "start with a ready index of 14,848 experts: $ms ms (< 1000 wanted)"
awk -v ms="$ms" 'BEGIN { exit !(ms > 0 && ms < 1000) }' || bad=1
exit "$bad"
