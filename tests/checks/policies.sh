#!/usr/bin/env bash
# resident rates of every policy on gptoss20b_dev at 25, 37.5 and 50%; lru to the last lookup (needs EXPERTIER_DATA)
set -euo pipefail
data=${EXPERTIER_DATA:-}/routing/gptoss20b_dev.jsonl.xz
[ -f "$data" ] || { echo "skip: $data is not there"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$EXPERTIER_BUILD/bin/tier-replay" import --from jsonl "$data" -o "$work/trace" >/dev/null 2>&1
"$EXPERTIER_BUILD/bin/tier-replay" run "$work/trace" --capacity 25%,37.5%,50% --json --quiet --policy \
    belady,belady_global,lru,lru_global,lfu,lru_with_frequency,lru_with_prediction,slru,s3fifo,sieve,arc,pinned >"$work/json"
# One line a run: policy, slots a layer, lookups, misses.
sed 's/{"policy":/\n&/g' "$work/json" |
    sed -n 's/^{"policy":"\([a-z0-9_]*\)".*"slots_per_layer":\([0-9]*\),.*"slots":[0-9]*,"lookups":\([0-9]*\),.*"misses":\([0-9]*\),"evictions":[0-9]*,"by_phase".*/\1 \2 \3 \4/p' >"$work/runs"
xz -dc "$data" >"$work/jsonl"
for slots in 8 12 16; do
    printf 'plain %s %s\n' "$slots" "$("$EXPERTIER_BUILD/tests/support/plain_lru" "$slots" <"$work/jsonl")" >>"$work/runs"
done
awk '
    { lookups[$1, $2] = $3; misses[$1, $2] = $4; rate[$1, $2] = 100 * (1 - $4 / $3)
      if (!($1 in seen)) { seen[$1] = 1; order[++n] = $1 } runs++ }
    END {
        printf "%-20s %8s %8s %8s\n", "resident rate", "25%", "37.5%", "50%"
        for (i = 1; i <= n; i++)
            printf "%-20s %8.2f %8.2f %8.2f\n", order[i], rate[order[i], 8], rate[order[i], 12], rate[order[i], 16]
        bad = runs != 13 * 3
        if (bad) print runs " runs, not 39"
        for (i = 1; i <= n; i++) for (s = 8; s <= 16; s += 4) {
            best = order[i] ~ /_global$/ ? "belady_global" : "belady"
            if (misses[order[i], s] < misses[best, s]) { print order[i] " beats " best " at " s " slots"; bad = 1 }
        }
        gain = rate["lfu", 8] - rate["lru", 8]
        printf "lfu - lru at 25%%: %.2f points (>= 1 wanted)\n", gain
        if (gain < 1) bad = 1
        for (s = 8; s <= 16; s += 4) {
            printf "lru with %d slots a layer: %d lookups, %d misses; an independent simulator: %d, %d\n", s,
                lookups["lru", s], misses["lru", s], lookups["plain", s], misses["plain", s]
            if (lookups["lru", s] != lookups["plain", s] || misses["lru", s] != misses["plain", s]) bad = 1
        }
        exit bad
    }' "$work/runs"
