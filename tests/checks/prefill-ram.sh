#!/usr/bin/env bash
# prefill of 512 tokens with everything in RAM, f32 activations: 0.60 of the peak of the cores for FP8 and INT8 experts
# usage: prefill-ram [FOLDER]: keeps the models there for another run (about 4 GB)
# INT4 and int8 activations are told beside them; how the latter stand to other programs says the check `peers`.
set -euo pipefail
cd "$EXPERTIER_SOURCE"
. tests/peers/random_models.sh
random_model fp8 16
quantised_models fp8
bad=0
for cell in 'fp8 f32 0.60' 'int8 f32 0.60' 'int4 f32 0' 'int8 int8 0' 'int4 int8 0'; do
    read -r weights activations wanted <<<"$cell"
    "$bin/tier-bench" prefill --json --quiet --model "$work/$weights" --tokens 512 --rounds "${ROUNDS:-5}" \
        --set "engine.activations=$activations" >"$work/out"
    awk -v cell="$weights $activations" -v wanted="$wanted" '
        function field(name) { match($0, "\"" name "\":[0-9.]+"); return substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) + 0 }
        { printf "experts %-10s %6.1f tokens/s, floor %6.1f (cores %.1f G multiply-adds/s, usually %.2f of that), floor_fraction %.2f (%sspread %.2f)\n", cell,
              field("tokens_per_second"), field("floor_tokens_per_second"), field("multiply_adds_per_second") / 1e9,
              field("usual_share_of_peak"), field("floor_fraction"), (wanted > 0 ? wanted " wanted; " : ""),
              field("floor_fraction_spread")
          exit !(field("floor_fraction") >= wanted) }' "$work/out" || bad=1
done
exit "$bad"
