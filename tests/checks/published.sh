#!/usr/bin/env bash
# lru_global and Belady agree with published hit rates within 0.2 points (needs EXPERTIER_DATA)
set -eu
folder=${EXPERTIER_DATA:-}/routing/bigmoeonedge
[ -d "$folder" ] || { echo "skip: $folder is not there (EXPERTIER_DATA)"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
replay=$EXPERTIER_BUILD/bin/tier-replay
for model in gemma gptoss qwen; do
    "$replay" import --from csv "$folder/$model.route.csv" -o "$work/$model" >/dev/null 2>&1
    # Lines of the published table: budget in MiB, Belady, LRU, ...
    awk '$1 ~ /^[0-9]+$/ && NF >= 6 { print $1, $2, $3 }' "$folder/$model-curve.txt" >"$work/published"
    budgets=$(awk '{ printf "%s%sMiB", (NR > 1 ? "," : ""), $1 }' "$work/published")
    "$replay" run "$work/$model" --policy lru_global,belady --budget "$budgets" --phase decode \
        2>/dev/null >"$work/ours"
    awk -v model="$model" '
        NR == FNR { belady[$1] = $2; lru_global[$1] = $3; n++; next }
        $3 == "MiB" || $3 == "GiB" { at = $2 * ($3 == "GiB" ? 1024 : 1)
            for (b in belady) if (at - b < 6 && b - at < 6) {
                d = $6 - ($1 == "belady" ? belady[b] : lru_global[b]); if (d < 0) d = -d
                if (d > worst) worst = d; rows++ } }
        END { printf "%-7s %d budgets x 2 policies: largest difference %.2f points (<= 0.2 wanted)\n", model, n, worst
              exit !(rows == 2 * n && n > 0 && worst <= 0.2) }' "$work/published" "$work/ours"
done
