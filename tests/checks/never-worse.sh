#!/usr/bin/env bash
# lru_with_prediction is nowhere more than 0.2 points below lru or lfu (needs EXPERTIER_DATA)
set -eu
folder=${EXPERTIER_DATA:-}/routing
[ -d "$folder" ] || { echo "skip: $folder is not there (EXPERTIER_DATA)"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
replay=$EXPERTIER_BUILD/bin/tier-replay
"$replay" import --from jsonl "$folder/gptoss20b_dev.jsonl.xz" -o "$work/gptoss20b_dev" --quiet
for model in gemma gptoss qwen; do
    "$replay" import --from csv "$folder/bigmoeonedge/$model.route.csv" -o "$work/$model" --quiet
done
for trace in "$work"/*; do
    "$replay" run "$trace" --policy lru,lfu,lru_with_prediction \
        --capacity 12.5%,25%,37.5%,50%,62.5%,75% --quiet |
        awk -v trace="${trace##*/}" 'NR > 1 { rate[$1, $2] = $5; at[$2] = 1 }
            END { for (c in at) { own = rate["lru_with_prediction", c]
                      best = rate["lru", c] > rate["lfu", c] ? rate["lru", c] : rate["lfu", c]
                      if (own - best < worst || worst == "") { worst = own - best; where = c }; n++ }
                  printf "%-14s %d capacities, worst against the better of lru and lfu: %+.2f points at %s (>= -0.2 wanted)\n",
                      trace, n, worst, where
                  exit !(n == 6 && worst >= -0.2) }'
done
