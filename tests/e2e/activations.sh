#!/usr/bin/env bash
# engine.activations: bf16 gives the same bits at any cache size, thread count, op set, cut and batch,
# by tier-run and by a server that is asked for several answers at once; other bits than f32; and is
# refused where it could have no effect.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

nats() { # MODEL SETTING...
    local from=$1; shift
    "$bin/tier-run" --model "$from" --perplexity "$work/text" --quiet \
        --set "tiers.nvme.index=$work/$(basename "$from").index" "${@/#/--set=}"
}
refuse() { # SAYS COMMAND...
    local says=$1 code=0; shift
    "$@" >"$work/out" 2>&1 || code=$?
    [ "$code" = 1 ] || fail "exit code $code of $*: $(cat "$work/out")"
    grep -qF -- "$says" "$work/out" || fail "no '$says' in: $(cat "$work/out")"
}

echo '== tier-run'
head -c 1200 "$source_dir/README.md" >"$work/text"
exact=$(nats "$model")
first=$(nats "$model" engine.activations=bf16 engine.threads=1 tiers.dram.capacity=100%)
[ "$first" != "$exact" ] || fail 'bf16 changes nothing'
for settings in engine.threads=2 engine.cpu_mask=avx2 tiers.dram.capacity=10% 'tiers.dram.capacity=25% engine.threads=3' \
    scheduler.max_chunked_prefill_tokens=1 'scheduler.max_chunked_prefill_tokens=5 tiers.dram.capacity=40%'; do
    # shellcheck disable=SC2086
    [ "$first" = "$(nats "$model" engine.activations=bf16 $settings)" ] || fail "other bits with $settings"
done
head -c 300 "$source_dir/README.md" >"$work/text"
for shape in v3-bf16 v3-fp8-yarn; do
    sharp=$(nats "$source_dir/tests/golden/$shape" tiers.dram.capacity=100%)
    [ "$sharp" != \
        "$(nats "$source_dir/tests/golden/$shape" tiers.dram.capacity=100% engine.activations=bf16)" ] || fail "$shape: f32's bits"
done
head -c 120 "$source_dir/README.md" >"$work/text"
[ "$(nats "$model" engine.activations=bf16)" = \
    "$(nats "$model" engine.activations=bf16 engine.cpu_mask=reference)" ] || fail 'other bits than the reference'

echo '== tier-server'
# Log probabilities of every token, so that one wrong bit shows; the rest differs by id and time.
answers() { # FILE SETTING...
    local to=$1 asked=(); shift
    start_server --set engine.activations=bf16 "${@/#/--set=}"
    grep -Eq 'active +engine.activations: bf16: |degraded +engine.activations: bf16: .*vdpbf16ps' "$work/server.log" ||
        fail 'bf16 is not in the report'
    for i in 1 2 3; do
        complete "The kernel has $i" 12 '"temperature":0.9,"seed":4,"logprobs":0,"ignore_eos":true' \
            >"$work/answer.$i" &
        asked+=($!)
    done
    wait "${asked[@]}" || fail 'no answer'
    for i in 1 2 3; do
        grep -o '"logprobs":{.*\]}' "$work/answer.$i" >>"$to" || fail "no log probabilities: $(cat "$work/answer.$i")"
    done
    stop_server
}
answers "$work/want" engine.threads=1 tiers.dram.capacity=100% scheduler.max_num_seqs=1
for settings in 'engine.threads=1 tiers.dram.capacity=10%' 'engine.threads=2 tiers.dram.capacity=25%' \
    'engine.threads=2 tiers.hbm.capacity=20% tiers.dram.capacity=30%' 'engine.threads=3 tiers.dram.capacity=100%'; do
    rm -f "$work/have"
    # shellcheck disable=SC2086
    answers "$work/have" $settings
    diff "$work/want" "$work/have" || fail "other bits with $settings"
done

echo '== refused'
refuse 'engine.activations: bf16 cannot take effect: no matrix of' \
    "$bin/tier-run" --model "$source_dir/tests/golden/v3-f32" --prompt a --max-tokens 1 \
    --set engine.activations=bf16 --set tiers.dram.capacity=100% --set "tiers.nvme.index=$work/plain.index"
"$bin/tier-server" --check-config --set engine.activations=bf16 >/dev/null || fail '--check-config'
if "$bin/tier-server" --check-config --set engine.activations=bf8 2>"$work/err"; then fail 'bf8 is accepted'; fi
grep -q 'f32|bf16|int8' "$work/err" || fail "what can be said instead: $(cat "$work/err")"
echo ok
