#!/usr/bin/env bash
# tokens/s with activations in bf16 and in INT8 beside f32, decode and prefill in RAM, in turns, for FP8, INT8, INT4
# usage: activations [FOLDER]: keeps the models there for another run (about 4 GB)
set -euo pipefail
cd "$EXPERTIER_SOURCE"
. tests/peers/random_models.sh
random_model fp8 16
quantised_models fp8
index=$(mktemp -d "$EXPERTIER_BUILD/activations_XXXXXX")
if [ $# -gt 0 ]; then trap 'rm -rf "$index"' EXIT; else trap 'rm -rf "$index" "$work"' EXIT; fi
rounds=${ROUNDS:-5}
for weights in fp8 int8 int4; do
    for bench in decode prefill; do
        modes='f32 bf16 int8'
        [ "$weights" = fp8 ] && modes='f32 bf16'
        for round in $(seq "$rounds"); do
            for mode in $modes; do
                "$bin/tier-bench" "$bench" --json --quiet --model "$work/$weights" --rounds 1 --seed "$round" \
                    --tokens "$([ $bench = decode ] && echo 24 || echo "${PROMPT:-256}")" \
                    --set "tiers.nvme.index=$index/$weights" --set "engine.activations=$mode" |
                    sed "s/^/$weights $bench $mode /"
            done
        done
    done
done | awk '
    function field(name) { match($0, "\"" name "\":[0-9.]+"); return substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) + 0 }
    function median(list, n,    i, j, t) {
        for (i = 2; i <= n; i++) for (j = i; j > 1 && list[j] < list[j - 1]; j--) { t = list[j]; list[j] = list[j - 1]; list[j - 1] = t }
        return (list[int((n + 1) / 2)] + list[int(n / 2) + 1]) / 2
    }
    { cell = $1 " " $2; mode = $3; n[cell, mode]++
      rate[cell, mode, n[cell, mode]] = field("tokens_per_second"); share[cell, mode, n[cell, mode]] = field("floor_fraction")
      if (!((cell, mode) in seen)) { seen[cell, mode]; order[++rows] = cell; which[rows] = mode } }
    END {
        for (i = 1; i <= rows; i++) {
            cell = order[i]; mode = which[i]; count = n[cell, mode]
            for (j = 1; j <= count; j++) { rates[j] = rate[cell, mode, j]; shares[j] = share[cell, mode, j]; ratios[j] = rates[j] / rate[cell, "f32", j] }
            least = most = ratios[1]
            for (j = 1; j <= count; j++) { if (ratios[j] < least) least = ratios[j]; if (ratios[j] > most) most = ratios[j] }
            ratio = median(ratios, count)
            printf "%-13s %-4s %7.2f tokens/s, %.2f of its floor; %.2f x f32 (%.2f to %.2f)\n", cell, mode, median(rates, count), median(shares, count), ratio, least, most
            if (mode == "bf16" && cell ~ /prefill/ && ratio < 1) bad++
        }
        if (bad) print "bf16 is slower than f32 in a prefill"
        exit bad > 0 || rows != 16
    }'
