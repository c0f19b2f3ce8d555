#!/usr/bin/env bash
# resident rates of every policy on gptoss20b_dev at 25, 37.5 and 50% (needs EXPERTIER_DATA)
set -eu
data=${EXPERTIER_DATA:-}/routing/gptoss20b_dev.jsonl.xz
[ -f "$data" ] || { echo "skip: $data is not there"; exit 77; }
trace=$(mktemp -u)
trap 'rm -f "$trace"' EXIT
"$EXPERTIER_BUILD/bin/tier-replay" import --from jsonl "$data" -o "$trace" >/dev/null
"$EXPERTIER_BUILD/bin/tier-replay" run "$trace" --capacity 25%,37.5%,50% \
    --policy belady,lfu,lru_with_frequency,s3fifo,slru,sieve,arc,lru,lru_global | tee /dev/stderr |
    awk '$2 == "25%" { rate[$1] = $5 }
        END { printf "lfu - lru at 25%%: %.2f points (>= 1 wanted)\n", rate["lfu"] - rate["lru"]
              for (p in rate) if (rate[p] > rate["belady"] && p != "lru_global") { print p " beats belady"; exit 1 }
              exit !(rate["lfu"] - rate["lru"] >= 1) }'
