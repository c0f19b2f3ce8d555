#!/usr/bin/env bash
# decode with everything in RAM: 0.90 of the rate of memory for FP8, INT8 and INT4 experts, f32 and int8 activations; INT8 also with
# all dense weights in INT8
# usage: decode-ram [FOLDER]: keeps the models there for another run (about 4 GB)
set -euo pipefail
cd "$EXPERTIER_SOURCE"
. tests/peers/random_models.sh
random_model fp8 16
quantised_models fp8
[ -d "$work/dense" ] || "$bin/tier-pack" quantize --quiet "$work/fp8" "$work/dense" --to int8 --dense --group 128 --allow-larger >/dev/null
bad=0
for cell in 'fp8 f32' 'int8 f32' 'int8 int8' 'dense f32' 'dense int8' 'int4 f32' 'int4 int8'; do
    read -r weights activations <<<"$cell"
    "$bin/tier-bench" decode --json --quiet --model "$work/$weights" --tokens 24 --rounds "${ROUNDS:-5}" \
        --set "engine.activations=$activations" >"$work/out"
    awk -v cell="$cell" '
        function field(name) { match($0, "\"" name "\":[0-9.]+"); return substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) + 0 }
        { printf "experts %-10s %6.2f tokens/s, floor %6.2f (memory %.1f GB/s), floor_fraction %.2f (0.90 wanted; spread %.2f)\n", cell,
              field("tokens_per_second"), field("floor_tokens_per_second"), field("memory_bytes_per_second") / 1e9,
              field("floor_fraction"), field("floor_fraction_spread")
          exit !(field("floor_fraction") >= 0.90) }' "$work/out" || bad=1
done
exit "$bad"
