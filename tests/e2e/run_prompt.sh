#!/usr/bin/env bash
# tier-run: one answer and its costs; what it refuses; stopped in the middle.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

run() { # EXIT ARGUMENT...: into $work/out and $work/err
    local wanted=$1 code=0; shift
    timeout 60 "$bin/tier-run" --model "$model" --set "tiers.nvme.index=$work/expertier.index" "$@" \
        >"$work/out" 2>"$work/err" </dev/null || code=$?
    [ "$code" = "$wanted" ] || fail "exit code $code, not $wanted, of $*: $(cat "$work/err")"
}
says() { grep -q -- "$1" "$work/err" || fail "nothing says '$1': $(cat "$work/err")"; }
tells_not() { ! grep -q -- "$1" "$work/err" || fail "it says '$1': $(cat "$work/err")"; }

echo '== an answer'
run 0 --prompt 'In the beginning' --max-tokens 4
says 'prompt [0-9]* tokens, first token after .*s; 4 tokens, '
[ -s "$work/out" ] || fail 'no answer'

echo '== what cannot be answered'
run 2 --prompt hi --max-tokens 0
says '--max-tokens: at least 1'
run 1 --prompt 'In the beginning God created' --set scheduler.max_model_len=2
says 'scheduler.max_model_len'
tells_not 'first token after'
tells_not 'lookups'
[ ! -s "$work/out" ] || fail "an answer: $(cat "$work/out")"

echo '== stopped in the middle'
"$bin/tier-run" --model "$model" --set "tiers.nvme.index=$work/expertier.index" --prompt hello --max-tokens 400 \
    --set io.backend=sim --set io.sim_latency=5ms --set tiers.dram.capacity=10% >"$work/out" 2>"$work/err" &
server=$!
for _ in $(seq 400); do [ -s "$work/out" ] && break; sleep 0.02; done
kill -INT "$server"
code=0; wait "$server" || code=$?
server=''
[ "$code" = 1 ] || fail "exit code $code: $(cat "$work/err")"
says 'stopped on request'
says 'first token after'
