#!/usr/bin/env bash
# decode in RAM as it grows: threads 1 -> 2, batch 1 -> 32, context 128 -> 4,096, experts 64 -> 256, beside the floor
# usage: growth-decode [FOLDER]: keeps the models there for another run (about 10 GB)
set -euo pipefail
cd "$EXPERTIER_SOURCE"
. tests/peers/random_models.sh
random_model 64 64
random_model 256 256
rate= fraction=
cell() { # WHAT EXPERTS [argument...]
    local what=$1 experts=$2; shift 2
    "$bin/tier-bench" decode --json --quiet --model "$work/$experts" --rounds "${ROUNDS:-3}" --tokens 16 "$@" >"$work/out"
    read -r rate floor fraction <<<"$(sed -E 's/.*"tokens_per_second":([0-9.]+),"spread.*"floor_tokens_per_second":([0-9.]+),"floor_fraction":([0-9.]+).*/\1 \2 \3/' "$work/out")"
    printf '%-16s %8.2f tokens/s, floor %8.2f, floor_fraction %.2f\n' "$what" "$rate" "$floor" "$fraction"
}
bad=0
holds() { # SENTENCE CONDITION
    awk "BEGIN { exit !($2) }" && echo "  holds: $1" || { echo "  DOES NOT HOLD: $1"; bad=1; }
}
cell '1 thread' 64 --set engine.threads=1; one=$rate
cell '2 threads' 64 --set engine.threads=2
holds "1.6 times one thread, or 0.90 of the rate of memory: $(awk "BEGIN { print $rate / $one }")" "$rate >= 1.6 * $one || $fraction >= 0.9"
last=0
for batch in 1 2 4 8 16 32; do
    # The first sequences still run when the last have read their prompts.
    cell "batch $batch" 64 --batch "$batch" --tokens "$((16 + batch))" --set scheduler.max_num_seqs=32
    holds "no fewer tokens/s than the batch before" "$rate >= $last"
    last=$rate
done
cell 'context 128' 64 --prompt-tokens 128; short=$fraction
cell 'context 4,096' 64 --prompt-tokens 4096 --set scheduler.max_model_len=4224
holds "time follows the bytes within 20%: $(awk "BEGIN { print $fraction / $short }")" "$fraction >= 0.8 * $short"
cell '64 experts' 64; few=$fraction
cell '256 experts' 256
holds "time follows the bytes within 20%: $(awk "BEGIN { print $fraction / $few }")" "$fraction >= 0.8 * $few"
exit "$bad"
