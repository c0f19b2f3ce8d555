#!/usr/bin/env bash
# several ranks give the logits of one, bit for bit, with a half or a quarter of the experts each
set -euo pipefail
bits=$EXPERTIER_BUILD/tests/support/rank_bits
ranks() { bash "$EXPERTIER_SOURCE/tests/support/ranks.sh" "$@"; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ninja -C "$EXPERTIER_BUILD" tests/support/rank_bits tests/support/tiny_model >/dev/null
code=0
ranks 2 true || code=$?
[ "$code" = 0 ] || exit "$code"
models=''
for kind in wide wide-fp8; do
    mkdir "$work/$kind"
    "$EXPERTIER_BUILD/tests/support/tiny_model" "$work/$kind" $kind
    cp "$EXPERTIER_SOURCE"/models/pebble/tokenizer*.json "$work/$kind"
    models+=" $work/$kind"
done
for name in v3-bf16 v3-fp8-yarn v3-fp8-plain-q v3-bf16-yarn-sharded v3-f16-tied v3-fp8-odd v3-f32 v2-greedy v2-groups; do
    models+=" $EXPERTIER_SOURCE/tests/golden/$name"
done
small='scheduler.max_model_len=128 scheduler.max_chunked_prefill_tokens=24'
tight='tiers.hbm.capacity=40% tiers.dram.capacity=20% tiers.hbm.sim_bandwidth=0'
# shellcheck disable=SC2086
{
    "$bits" $small tiers.dram.capacity=70% $models >"$work/want"
    "$bits" $small tiers.dram.capacity=20% "$EXPERTIER_SOURCE/models/pebble" >>"$work/want"
    echo 'model, then a hash of all logits and the tokens of three answers:'
    cat "$work/want"
    for n in 2 4 8; do
        # A rank of 8 holds 8 experts of pebble's layers, and a token asks for up to 6.
        if [ $n = 8 ]; then tight=${tight/40%/80%}; fi
        RANK_BITS_NUMBERS=1 ranks $n "$bits" $small tiers.dram.capacity=100% $models >"$work/have" 2>"$work/numbers"
        RANK_BITS_NUMBERS=1 ranks $n "$bits" $small $tight "$EXPERTIER_SOURCE/models/pebble" >>"$work/have" 2>>"$work/numbers"
        diff "$work/want" "$work/have" >"$work/diff" || { echo "$n ranks: OTHER BITS"; cat "$work/diff"; exit 1; }
        echo "$n ranks: the same bits, $(wc -l <"$work/have") models"
        grep ' pebble,' "$work/numbers" | sort
    done
}
