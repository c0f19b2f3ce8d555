#!/usr/bin/env bash
# lru_with_prediction is nowhere more than 0.2 points below lru or lfu, with hints or without (needs EXPERTIER_DATA)
set -eu
folder=${EXPERTIER_DATA:-}/routing
[ -d "$folder" ] || { echo "skip: $folder is not there (EXPERTIER_DATA)"; exit 77; }
command -v jq >/dev/null || { echo 'skip: jq is not installed'; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
replay=$EXPERTIER_BUILD/bin/tier-replay
capacities=12.5%,25%,37.5%,50%,62.5%,75%
"$replay" import --from jsonl "$folder/gptoss20b_dev.jsonl.xz" -o "$work/gptoss20b_dev" --quiet
for model in gemma gptoss qwen; do
    "$replay" import --from csv "$folder/bigmoeonedge/$model.route.csv" -o "$work/$model" --quiet
done

# Lines "policy capacity resident": the worst against the better of lru and lfu.
judge() { # TITLE
    awk -v title="$1" '{ rate[$1, $2] = $3; at[$2] = 1 }
        END { for (c in at) { own = rate["lru_with_prediction", c]
                  best = rate["lru", c] > rate["lfu", c] ? rate["lru", c] : rate["lfu", c]
                  if (own - best < worst || worst == "") { worst = own - best; where = c }; n++ }
              printf "%-44s %d capacities, worst against the better of lru and lfu: %+.2f points at %s (>= -0.2 wanted)\n",
                  title, n, worst, where
              exit !(n == 6 && worst >= -0.2) }'
}

status=0
for trace in gptoss20b_dev gemma gptoss qwen; do
    "$replay" run "$work/$trace" --policy lru,lfu,lru_with_prediction --capacity "$capacities" --quiet |
        awk 'NR > 1 { print $1, $2, $5 }' | judge "$trace, no hints" || status=1
done

# With hints only the clock knows what prefetch brings in: where there is time for it, with the sizes of
# two models; and where every read is waited for. Resident: there when asked for, or on its way.
"$replay" cut "$work/gptoss20b_dev" --steps 40000-47999 -o "$work/gptoss20b_part" --quiet
resident() { # TRACE PREDICTOR POLICIES FLAG...
    local trace=$1 predictor=$2 policies=$3; shift 3
    "$replay" run "$work/$trace" --policy "$policies" --predictor "$predictor" --capacity "$capacities" --quiet --json "$@" |
        jq -r '.runs[] | "\(.policy) \(100 * .capacity)% \(100 * (.hits + .late) / .lookups)"'
}
for setting in '8xh20 hbm 44050944' '8xh20 hbm 13219200' 'desktop-pcie5 hbm 13219200' 'cpu-only dram 13219200'; do
    read -r machine top bytes <<<"$setting"
    flags=(--machine "$EXPERTIER_SOURCE/configs/machines/$machine.yaml" --top "$top" --machine-set "model.expert_bytes=$bytes")
    for trace in gptoss20b_part gemma gptoss qwen; do
        { resident "$trace" none lru,lfu "${flags[@]}"; resident "$trace" blend lru_with_prediction "${flags[@]}"; } |
            judge "$trace, hints, $machine, $((bytes / 1000000)) MB experts" || status=1
    done
done
exit "$status"
