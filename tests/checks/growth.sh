#!/usr/bin/env bash
# 1,000 to 1,000,000 experts: acquire at most twice as dear, tables under 128 bytes an expert; start under 1 s
set -euo pipefail
bench=$EXPERTIER_BUILD/bin/tier-bench
dir=${TMPDIR:-/tmp}
field() { sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p"; }
# Twofold is held both ways: back to back, where the tables of few experts stay in the processor's caches
# and those of a million do not, and with 64 MiB of other memory read between two acquires, as an engine
# reads weights. Few and many take turns; medians.
measure() { # LAYERS EXPERTS ARGUMENT...
    "$bench" cache --json --dir "$dir" --layers "$1" --experts "$2" "${@:3}"
}
printf '%-44s %12s %14s\n' 'a lookup that hits, median ns' '1,000' '1,000,000'
for how in 'even' 'skewed' 'even, caches swept' 'skewed, caches swept'; do
    more=(--draw "${how%%,*}")
    [[ $how != *swept ]] || more+=(--sweep 64MiB --lookups 4000)
    for _ in 1 2 3 4 5; do
        for size in '8 125' '8 125000'; do
            # shellcheck disable=SC2086
            printf '%s ' "$(measure $size "${more[@]}" | field median)"
        done
        echo
    done >"$dir/growth-rounds.$$"
    few=$(cut -d' ' -f1 "$dir/growth-rounds.$$" | sort -n | sed -n 3p)
    many=$(cut -d' ' -f2 "$dir/growth-rounds.$$" | sort -n | sed -n 3p)
    printf '%-44s %12s %14s\n' "$how" "$few" "$many"
    echo "$how $few $many" >&3
done 3>"$dir/growth.$$"
rm -f "$dir/growth-rounds.$$"
bad=0
awk '{ r = $NF / $(NF - 1); sub(/,/, "", $1); printf "%s, %s: %.2f times (<= 2 wanted)\n", $1, /swept/ ? "between reads of weights" : "back to back", r; if (r > 2) bad = 1; n++ }
    END { exit bad || n != 4 }' "$dir/growth.$$" || bad=1
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
