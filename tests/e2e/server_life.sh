#!/usr/bin/env bash
# A client that hangs up frees its sequence; SIGTERM drains; a second signal and the drain's limit
# stop after the running step, and clients are told.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

metric() { # NAME
    curl -sS --max-time 10 "$url/metrics" | sed -n "s/^$1 //p"
}
until_metric() { # NAME VALUE
    local got=''
    for _ in $(seq 200); do
        got=$(metric "$1")
        if [ "$got" = "$2" ]; then return; fi
        sleep 0.05
    done
    fail "$1 is $got, not $2, after 10 s"
}
long='{"prompt":"In the beginning","max_tokens":3000,"ignore_eos":true,"temperature":1,"seed":1'

start_server
echo '== hang up while a stream runs, and while a whole answer is waited for'
curl -sN --max-time 60 "$url/v1/completions" -d "$long,\"stream\":true}" >"$work/stream" &
client=$!
until_metric expertier_engine_running_requests 1
kill "$client"; wait "$client" 2>/dev/null || true
until_metric expertier_engine_running_requests 0
until_metric expertier_server_active_generations 0
[ "$(metric expertier_engine_cancelled_requests_total)" = 1 ] || fail 'the hang-up was not counted'
curl -s --max-time 60 "$url/v1/completions" -d "$long}" >/dev/null &
client=$!
until_metric expertier_engine_running_requests 1
kill "$client"; wait "$client" 2>/dev/null || true
until_metric expertier_engine_running_requests 0
until_metric expertier_server_hangups_total 2
until_metric expertier_engine_kv_used_blocks 0

echo '== SIGTERM lets a running answer finish and refuses new ones'
curl -sN --max-time 60 "$url/v1/completions" \
    -d '{"prompt":"In the beginning","max_tokens":150,"ignore_eos":true,"stream":true}' >"$work/stream" &
client=$!
until_metric expertier_engine_running_requests 1
kill -TERM "$server"
sleep 0.2
if kill -0 "$client" 2>/dev/null; then
    refused=$(curl -sS --max-time 10 "$url/v1/completions" -d '{"prompt":"x"}' || true)
    case $refused in *'"code":"draining"'*) ;; *) fail "while draining: '$refused'" ;; esac
    health=$(curl -sS --max-time 10 "$url/health" || true)
    case $health in *'"status":"draining"'*) ;; *) fail "/health while draining: '$health'" ;; esac
fi
code=0; wait "$server" || code=$?
server=''
[ "$code" = 0 ] || fail "exit code $code after SIGTERM"
wait "$client" || fail 'the stream was cut'
grep -q '"finish_reason":"length"' "$work/stream" || fail "the stream has no end: $(tail -c 300 "$work/stream")"
grep -q 'data: \[DONE\]' "$work/stream" || fail 'the stream has no [DONE]'

echo '== the drain ends at server.drain_timeout, and the client is told'
start_server --set server.drain_timeout=300ms
curl -sN --max-time 60 "$url/v1/completions" -d "$long,\"stream\":true}" >"$work/stream" &
client=$!
until_metric expertier_engine_running_requests 1
stop_server
wait "$client" || true
grep -q '"code":"shutting_down"' "$work/stream" || fail "no error event: $(tail -c 300 "$work/stream")"

echo '== a second signal stops after the running step'
start_server --set server.drain_timeout=60s
curl -sN --max-time 60 "$url/v1/completions" -d "$long,\"stream\":true}" >"$work/stream" &
client=$!
until_metric expertier_engine_running_requests 1
begin=$(date +%s)
kill -TERM "$server"; sleep 0.3; kill -TERM "$server"
code=0; wait "$server" || code=$?
server=''
[ "$code" = 0 ] || fail "exit code $code after two signals"
[ $(($(date +%s) - begin)) -lt 10 ] || fail 'two signals did not stop it soon'
grep -q 'a second signal stops after the step that runs' "$work/server.log" || fail 'what a second signal does is not told'
wait "$client" || true
