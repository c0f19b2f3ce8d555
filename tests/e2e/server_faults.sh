#!/usr/bin/env bash
# What goes wrong stays with the request it hits: a client that does not read, an expert that cannot
# be read, many clients at once that come and go.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

metric() { curl -sS --max-time 10 "$url/metrics" | sed -n "s/^$1 //p"; }
until_metric() { # NAME VALUE
    local got=''
    for _ in $(seq 2400); do
        got=$(metric "$1")
        if [ "$got" = "$2" ]; then return; fi
        sleep 0.05
    done
    fail "$1 is $got, not $2, after 120 s"
}

echo '== a client that does not read loses its request, and only that'
start_server --set server.answer_buffer=8KiB
port=${url##*:}
alone=$(complete 'In the beginning God' 40 '"temperature": 0')
alone=${alone#*\"choices\":}
ask='{"messages":[{"role":"user","content":"In the beginning"}],"max_tokens":3900,"ignore_eos":true,"stream":true,"logprobs":true}'
exec 3<>"/dev/tcp/127.0.0.1/$port"
printf 'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s' "${#ask}" "$ask" >&3
until_metric expertier_engine_running_requests 1
beside=$(complete 'In the beginning God' 40 '"temperature": 0')
[ "${beside#*\"choices\":}" = "$alone" ] || fail "the text beside a stuck client differs: $beside"
until_metric expertier_server_slow_clients_total 1
until_metric expertier_engine_running_requests 0
# What it missed is told as an error, once it reads.
timeout 10 cat <&3 >"$work/stuck" || true
exec 3>&-
grep -q '"code":"client_too_slow"' "$work/stuck" || fail "no error event: $(tail -c 300 "$work/stuck")"

echo '== sixty clients in waves: some whole, some streamed, some gone early'
wave() { # N
    local pids='' i
    for i in $(seq "$1"); do
        case $((i % 3)) in
            0) complete "The kernel $i" 8 '"seed": 1' >"$work/w$i" & ;;
            1) complete "And he said $i" 8 '"seed": 1, "stream": true' >"$work/w$i" & ;;
            2) curl -s --max-time 0.1 "$url/v1/completions" \
                   -d '{"prompt":"x","max_tokens":2000,"ignore_eos":true,"stream":true}' >/dev/null & ;;
        esac
        pids+=" $!"
    done
    # shellcheck disable=SC2086
    wait $pids || true
    for i in $(seq "$1"); do
        case $((i % 3)) in
            0) grep -q '"finish_reason":"' "$work/w$i" || fail "answer $i: $(cat "$work/w$i")" ;;
            1) grep -q 'data: \[DONE\]' "$work/w$i" || fail "stream $i: $(cat "$work/w$i")" ;;
        esac
    done
}
wave 30; wave 30
until_metric expertier_server_active_generations 0
until_metric expertier_engine_kv_used_blocks 0
stop_server

echo '== experts that cannot be read: the request fails by name, the server lives on'
start_server --set io.faults=seed=3,eio=1
code=$(curl -sS --max-time 60 -o "$work/body" -w '%{http_code}' "$url/v1/completions" \
    -d '{"prompt":"In the beginning","max_tokens":4}')
[ "$code" = 503 ] || fail "status $code: $(cat "$work/body")"
grep -q '"code":"expert_unreadable"' "$work/body" || fail "no code: $(cat "$work/body")"
grep -Eqi 'layer [0-9]+.*expert [0-9]+|expert [0-9]+.*layer [0-9]+' "$work/body" || fail "no expert's name: $(cat "$work/body")"
curl -sSN --max-time 60 "$url/v1/completions" -d '{"prompt":"a","max_tokens":4,"stream":true}' >"$work/body"
grep -q '"error":{"message":"' "$work/body" || fail "no error in the stream: $(cat "$work/body")"
[ "$(curl -sS "$url/health" | grep -c ready)" = 1 ] || fail 'the server did not live on'
until_metric expertier_server_failed_generations_total 2
stop_server
