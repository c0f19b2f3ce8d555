#!/usr/bin/env bash
# decode in RAM as it grows: threads 1 -> 2, batch 1 -> 32, context 128 -> 4,096, experts 64 -> 256, beside the floor
# usage: growth-decode [FOLDER]: keeps the models there for another run (about 10 GB)
# All cells in turns, ROUNDS (5) times; medians. A disturbed minute so meets every cell alike.
set -euo pipefail
cd "$EXPERTIER_SOURCE"
. tests/peers/random_models.sh
random_model 64 64
random_model 256 256
rounds=${ROUNDS:-5}
cells=$work/growth-decode
: >"$cells"

cell() { # NAME EXPERTS [argument...]: a line of NAME, tokens/s, floor, floor_fraction
    local name=$1 experts=$2; shift 2
    "$bin/tier-bench" decode --json --quiet --model "$work/$experts" --rounds 1 --tokens 16 "$@" >"$work/out"
    sed -E 's/.*"tokens_per_second":([0-9.]+),"spread.*"floor_tokens_per_second":([0-9.]+),"floor_fraction":([0-9.]+).*/'"$name"' \1 \2 \3/' \
        "$work/out" >>"$cells"
}
for round in $(seq "$rounds"); do
    cell threads-1 64 --set engine.threads=1
    cell threads-2 64 --set engine.threads=2
    for batch in 1 2 4 8 16 32; do
        # The first sequences still run when the last have read their prompts.
        cell "batch-$batch" 64 --batch "$batch" --tokens "$((16 + batch))" --set scheduler.max_num_seqs=32
    done
    cell context-128 64 --prompt-tokens 128
    cell context-4096 64 --prompt-tokens 4096 --set scheduler.max_model_len=4224
    cell experts-64 64
    cell experts-256 256
    echo "round $round of $rounds" >&2
done

median() { # NAME FIELD
    awk -v name="$1" -v field="$2" '$1 == name { print $field }' "$cells" | sort -g |
        awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}
range() { awk -v name="$1" -v field="$2" '$1 == name { print $field }' "$cells" | sort -g | sed -n '1p;$p' | paste -sd ' ' | sed 's/ / to /'; }
awk '!seen[$1]++ { print $1 }' "$cells" | while read -r name; do
    printf '%-13s %8.2f tokens/s, floor %8.2f, floor_fraction %.2f (%s)\n' "$name" "$(median "$name" 2)" \
        "$(median "$name" 3)" "$(median "$name" 4)" "$(range "$name" 4)"
done
bad=0
holds() { # SENTENCE CONDITION
    awk "BEGIN { exit !($2) }" && echo "holds: $1" || { echo "DOES NOT HOLD: $1"; bad=1; }
}
share() { awk "BEGIN { printf \"%.2f\", $1 / $2 }"; }
one=$(median threads-1 2) two=$(median threads-2 2) fraction=$(median threads-2 4)
holds "two threads at 1.6 times one, or at 0.90 of the rate of memory: $(share "$two" "$one") times, $fraction" \
    "$two >= 1.6 * $one || $fraction >= 0.9"
last=0
for batch in 1 2 4 8 16 32; do
    now=$(median "batch-$batch" 2)
    holds "batch $batch: no fewer tokens/s than the batch before: $now" "$now >= $last"
    last=$now
done
for pair in 'context-128 context-4096' 'experts-64 experts-256'; do
    read -r small large <<<"$pair"
    few=$(median "$small" 4) many=$(median "$large" 4)
    holds "$small to $large: time follows the bytes within 20%: $(share "$many" "$few")" "$many >= 0.8 * $few"
done
exit "$bad"
