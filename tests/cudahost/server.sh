#!/usr/bin/env bash
# The whole server on the emulated card, models/pebble with a quarter of its experts in hbm and half in
# dram: the CPU's greedy tokens, the same bits under any schedule, counts that replay exactly; a call of
# CUDA that fails ends the step's requests, one after which nothing works ends the process, warm set saved.
#   server.sh [TOKENS of an answer [SCHEDULES]]       from 100 schedules on every prompt below
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"
tokens=${1:-2}
schedules=${2:-10}
answer_s=600 # kernels run thread by thread
emulated=$EXPERTIER_BUILD/tests/cudahost/tier-server-emulated
card=(--set tiers.hbm.device=cuda --set tiers.hbm.capacity=25% --set tiers.dram.capacity=50%
    --set scheduler.max_model_len=96 --set scheduler.max_num_seqs=4 --set engine.threads=1)
greedy='"temperature": 0, "logprobs": 0, "ignore_eos": true'

prompts=('In the beginning' '#include <' 'The LORD said' David 'ls -l' 'And God' 'the file' 'int main(' struct 'of the'
    'return -1;' '#define' kernel 'the king' void memory Jesus static mount 'He said')
david=3
if [ "$schedules" -lt 100 ]; then prompts=("${prompts[@]:0:8}"); fi

picked() { grep -o '"tokens":\[[^]]*\]' "$1" || fail "no tokens: $(cat "$1")"; }
plain='"temperature": 0, "ignore_eos": true'
text() { grep -oE '"text":"([^"\\]|\\.)*"' "$1" || fail "no text: $(cat "$1")"; }
ask() { complete "$1" "$2" "${4:-$greedy}" >"$3"; }
# So many prompts at once.
ask_all() { # AT_ONCE DIR
    local i pids=''
    mkdir "$2"
    for i in "${!prompts[@]}"; do
        ask "${prompts[i]}" "$tokens" "$2/$i" & pids+=" $!"
        # shellcheck disable=SC2086
        if [ $((i % $1)) = $(($1 - 1)) ]; then wait $pids; pids=''; fi
    done
}
metric() { sed -n "s/^$1 //p" "$work/metrics"; }
content() { grep 'nothing to complain of' "$work/server.log" >/dev/null || fail 'the emulated machine complains'; }

echo '== the tokens of the CPU'
start_server --set tiers.dram.capacity=50%
ask_all 4 "$work/cpu"
stop_server
program=$emulated
start_server "${card[@]}" --trace "$work/trace"
ask_all 4 "$work/card"
ask "${prompts[1]}" "$tokens" "$work/plain1" "$plain" & beside=$! # both chosen on the card
ask "${prompts[4]}" "$tokens" "$work/plain4" "$plain"
wait $beside
curl -sS --max-time 10 "$url/metrics" >"$work/metrics"
curl -sS --max-time 10 "$url/tier/stats" >"$work/stats"
stop_server
content
for i in "${!prompts[@]}"; do
    [ "$(picked "$work/cpu/$i")" = "$(picked "$work/card/$i")" ] ||
        fail "'${prompts[i]}': $(picked "$work/card/$i"), the CPU says $(picked "$work/cpu/$i")"
done
for i in 1 4; do
    [ "$(text "$work/cpu/$i")" = "$(text "$work/plain$i")" ] ||
        fail "'${prompts[i]}' without log probabilities: $(cat "$work/plain$i"), the CPU says $(cat "$work/cpu/$i")"
done

echo '== what the server says of its card'
grep -q 'active    tiers.hbm.device: cuda: cuda: card 0, emulated card 0' "$work/server.log" || fail 'no word about the card at start'
grep -q '"feature":"tiers.hbm.device","requested":"cuda","state":"active","note":"cuda: card 0' "$work/stats" ||
    fail "no word about the card in /tier/stats: $(cat "$work/stats")"
for tier in hbm dram; do
    n=$(metric "expertier_tier_lookups_total{tier=\"$tier\"}")
    parts=$(awk -v t="{tier=\"$tier\"}" '$1 ~ "^expertier_tier_(hits|late|misses)_total" && index($1, t) { s += $2 } END { print s }' "$work/metrics")
    echo "$tier: $n lookups, $(metric "expertier_tier_hits_total{tier=\"$tier\"}") hits, $(metric "expertier_tier_misses_total{tier=\"$tier\"}") misses"
    [ "$n" -gt 0 ] && [ "$n" = "$parts" ] || fail "$tier: $n lookups, but $parts hits, late and misses"
    grep -q "\"name\":\"$tier\",\"lookups\":$n,\"hits\":$(metric "expertier_tier_hits_total{tier=\"$tier\"}")," "$work/stats" ||
        fail "/tier/stats and /metrics differ: $(cat "$work/stats")"
done
up=$(metric expertier_io_copies_up_total) ahead=$(metric expertier_io_copies_ahead_total) misses=$(metric 'expertier_tier_misses_total{tier="hbm"}')
# Not for all: one that is asked for again while it is on its way down is still there.
asked=$((up - ahead))
[ "$asked" -gt $((misses / 2)) ] && [ "$asked" -le "$misses" ] ||
    fail "$misses experts were missing in hbm, $asked were copied up for them and $ahead ahead of need"
[ "$(metric expertier_io_copies_down_total)" -gt 0 ] || fail 'nothing was demoted'
[ "$(metric expertier_io_demand_reads_total)" -gt 0 ] || fail 'nothing came from disk'
[ "$(metric expertier_io_copy_errors_total)" = 0 ] || fail 'copies failed'
"$bin/tier-replay" run "$work/trace" --as-recorded >"$work/replay" 2>&1 || fail "replay differs: $(cat "$work/replay")"

if [ "$schedules" -ge 100 ]; then # it warms the cache first: half a minute here
    echo '== tier-bench does not hold a card against the memory of the CPU'
    CUDAHOST_MEMORY=256 "$EXPERTIER_BUILD/tests/cudahost/tier-bench-emulated" decode --model "$model" --rounds 1 --tokens 1 \
        --prompt-tokens 2 --quiet --set "tiers.nvme.index=$work/expertier.index" --set tiers.hbm.device=cuda \
        --set tiers.hbm.capacity=50% >"$work/bench" || fail 'tier-bench decode'
    grep 'floor: none: .*the card' "$work/bench" || fail "a floor where none was measured: $(cat "$work/bench")"
    CUDAHOST_MEMORY=256 "$EXPERTIER_BUILD/tests/cudahost/tier-bench-emulated" prefill --model "$model" --rounds 1 --tokens 2 \
        --quiet --set "tiers.nvme.index=$work/expertier.index" --set tiers.hbm.device=cuda --set tiers.hbm.capacity=50% \
        --json >"$work/bench" || fail 'tier-bench prefill'
    grep '"floor_tokens_per_second":null' "$work/bench" || fail "a floor where none was measured: $(cat "$work/bench")"
fi
code=0
CUDAHOST_MEMORY=256 "$EXPERTIER_BUILD/tests/cudahost/tier-bench-emulated" machine --model "$model" --quiet \
    --set "tiers.nvme.index=$work/expertier.index" --set tiers.hbm.device=cuda --set tiers.hbm.capacity=50% -o "$work/machine.yaml" \
    >"$work/bench" 2>&1 || code=$?
[ "$code" = 1 ] && [ ! -e "$work/machine.yaml" ] && grep -q 'not measured here' "$work/bench" ||
    fail "tier-bench machine describes a card: $code, $(cat "$work/bench")"

echo '== the same bits under any schedule'
one_schedule() { # SEED: what the client sees, and a hash of routing and logits as they came down
    local log=$work/seed$1.log url='' pid
    : >"$log"       # the server's shell may come to it after the first look
    CUDAHOST_SEED=$1 "$emulated" --model "$model" --port 0 --set "tiers.nvme.index=$work/expertier.index" \
        --set server.admin_listen=off "${card[@]}" >"$log" 2>&1 &
    pid=$!
    for _ in $(seq 1200); do
        url=$(sed -n 's/.*listening on \(http:[^ ]*\).*/\1/p' "$log")
        if [ -n "$url" ] || ! kill -0 "$pid" 2>/dev/null; then break; fi
        sleep 0.05
    done
    complete And 2 "$greedy" | grep -o '"logprobs":{[^}]*}' >"$work/seed$1"
    kill -TERM $pid
    wait $pid
    sed -n 's/.* kernels.* down \([0-9a-f]*\), nothing to complain of/\1/p' "$log" >>"$work/seed$1"
    [ "$(wc -l <"$work/seed$1")" = 2 ] || { echo "schedule $1: $(cat "$work/seed$1" "$log")" >"$work/seed$1"; return 1; }
}
for seed in $(seq 1 2 "$schedules"); do
    one_schedule "$seed" & beside=$!
    if [ "$seed" -lt "$schedules" ]; then one_schedule $((seed + 1)) || fail "$(cat "$work/seed$((seed + 1))")"; fi
    wait $beside || fail "$(cat "$work/seed$seed")"
done
for seed in $(seq 2 "$schedules"); do
    cmp -s "$work/seed1" "$work/seed$seed" || fail "schedule $seed: $(cat "$work/seed$seed"), schedule 1: $(cat "$work/seed1")"
done
echo "$schedules schedules, routing and logits hashed: $(tail -n 1 "$work/seed1")"

echo '== a call that fails ends the requests of its step; the next is answered'
# CUDA's numbers: 1 an invalid value, 2 no memory.
for fail in 1@kernel:700 2@copy:90; do
    CUDAHOST_FAIL=$fail start_server "${card[@]}"
    complete David 12 "$greedy" >"$work/failed"
    grep -q '"message":"pebble: device cuda: .* failed in this step","type":"server_error"' "$work/failed" || fail "$fail: no error with the reason: $(cat "$work/failed")"
    ask David "$tokens" "$work/next"
    [ "$(picked "$work/next")" = "$(picked "$work/cpu/$david")" ] || fail "$fail: after it $(cat "$work/next")"
    stop_server
    content
    echo "$fail: $(grep -o '"message":"[^"]*"' "$work/failed")"
done

echo '== no room on the card, no card'
for machine in CUDAHOST_MEMORY=8 CUDAHOST_DEVICES=0; do
    code=0
    env "$machine" timeout 60 "$emulated" --model "$model" --port 0 "${card[@]}" >"$work/refused" 2>&1 || code=$?
    [ $code -gt 0 ] && [ $code -lt 70 ] || fail "$machine: exit code $code: $(cat "$work/refused")"
    grep -E '(tiers.hbm.capacity|device cuda)' "$work/refused" | tail -n 1 | grep . || fail "$machine: $(cat "$work/refused")"
done

echo '== experts in tiles are the CPU'"'"'s alone'
"$bin/tier-pack" quantize --to int4 --quiet "$model" "$work/int4" >/dev/null
"$bin/tier-pack" repack "$work/int4" --to "$work/tiles" --order tiles --quiet
code=0
timeout 60 "$emulated" --model "$work/int4" --port 0 "${card[@]}" --set "tiers.nvme.index=$work/tiles/expertier.index" \
    >"$work/refused" 2>&1 || code=$?
[ $code = 1 ] && grep -q 'experts lie in tiles, as CPUs multiply them, and a card takes rows' "$work/refused" ||
    fail "tiles on a card: exit code $code: $(cat "$work/refused")"

echo '== nothing works any more: every request is told, the warm set saved, the process ends'
for fail in 700@kernel:900 719@copy:120; do # an illegal address, a launch that failed
    rm -f "$work/warm"
    CUDAHOST_FAIL=$fail start_server "${card[@]}" --set "tiers.warm.path=$work/warm"
    pids=''
    for i in 1 2 3 4 5 6; do
        complete "${prompts[i]}" 60 "$greedy" >"$work/lost$i" & pids+=" $!"
    done
    # shellcheck disable=SC2086
    wait $pids || true
    since=$(date +%s%N) code=0
    wait "$server" || code=$?
    server=''
    ms=$((($(date +%s%N) - since) / 1000000))
    [ $code = 1 ] && [ $ms -lt 8000 ] || fail "$fail: exit code $code, $ms ms after the clients were told"
    for i in 1 2 3 4 5 6; do
        grep -q 'the CUDA device cannot go on: .*cudaError.*has to be restarted","type":"server_error"' "$work/lost$i" ||
            fail "$fail: request $i was not told why: $(cat "$work/lost$i")"
    done
    grep -q 'the engine stopped: the CUDA device cannot go on' "$work/server.log" || fail "$fail: no word in the log"
    content
    saved=$(sed -n 's/.*resident set saved: \([0-9]*\) experts.*/\1/p' "$work/server.log")
    [ "${saved:-0}" -gt 20 ] || fail "$fail: the warm set was not saved"
    start_server "${card[@]}" --set "tiers.warm.path=$work/warm"
    for _ in $(seq 400); do
        if grep -q 'restored in' "$work/server.log"; then break; fi
        sleep 0.05
    done
    grep -q 'restored in' "$work/server.log" || fail "$fail: nothing was restored"
    ask David "$tokens" "$work/next"
    [ "$(picked "$work/next")" = "$(picked "$work/cpu/$david")" ] || fail "$fail: after the restart $(cat "$work/next")"
    stop_server
    content
    echo "$fail: exit code 1 after $ms ms, $saved experts saved; $(grep -o 'warm .*restored in.*' "$work/server.log")"
done

echo '== gates that a card does not ask ahead'
for setting in predictor.lookahead=1 predictor.lookahead_own=true predictor.lookahead_shared=true; do
    if "$emulated" --check-config --set tiers.hbm.device=cuda --set tiers.hbm.capacity=1GiB --set "$setting" \
        >"$work/out" 2>&1; then fail "$setting is not refused"; fi
    grep -qF "${setting%=*} cannot take effect with tiers.hbm.device: cuda" "$work/out" ||
        fail "$setting: $(cat "$work/out")"
done
