#!/usr/bin/env bash
# The HTTP API over the real model: completions, chat, streams, errors in the API's shape, metrics.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

# Asks and checks the HTTP status; the body is left in $body.
body=''
ask() { # STATUS PATH [curl argument...]
    local want=$1 path=$2 got; shift 2
    got=$(curl -sS --max-time 60 -o "$work/body" -w '%{http_code}' "$url$path" "$@") ||
        fail "curl $path $*"
    body=$(tr -d '\0' <"$work/body")
    [ "$got" = "$want" ] || fail "$path $*: status $got, not $want: $body"
}
post() { # STATUS PATH JSON [curl argument...]
    ask "$1" "$2" -H 'Content-Type: application/json' --data-binary "$3" "${@:4}"
}
has() { # TEXT...
    local t
    for t in "$@"; do
        case $body in *"$t"*) ;; *) fail "no '$t' in: $body" ;; esac
    done
}

start_server --set server.body_max=64KiB --set server.requests_max=4 \
    --set server.cors_origins=http://localhost:3000,https://chat.example
grep -q 'dense' "$work/server.log" || fail 'no memory table at start'
for feature in io.backend io.direct tiers.verify tiers.dram.pin tiers.dram.numa bits engine.cpu_mask; do
    grep -Eq "^  (active|degraded|refused) +$feature: " "$work/server.log" || fail "no $feature in the report at start"
done

ask 200 /v1/models; has '"object":"list"' '"id":"pebble"' '"max_model_len":4096'
ask 200 /v1/models/pebble; has '"id":"pebble"'
ask 404 /v1/models/other; has '"code":"model_not_found"'
ask 200 /health; has '"status":"ready"'

echo '== completions'
post 200 /v1/completions '{"prompt":"In the beginning God","max_tokens":12,"temperature":0}'
has '"object":"text_completion"' '"finish_reason":"length"' '"completion_tokens":12' '"index":0'
first=${body#*\"text\":\"}; first=${first%%\",*}
[ -n "$first" ] || fail "no text in: $body"
post 200 /v1/completions '{"model":"pebble","prompt":"In the beginning God","max_tokens":12,"temperature":0,"user":"x"}'
has "$first"
post 200 /v1/completions '{"prompt":"The","max_tokens":20,"temperature":1,"seed":5}'
sampled=${body#*\"text\":\"}; sampled=${sampled%%\",\"logprobs*}
post 200 /v1/completions '{"prompt":"The","max_tokens":20,"temperature":1,"seed":5}'
has "$sampled"
post 200 /v1/completions '{"prompt":[0,5,6,7],"max_tokens":1}'; has '"prompt_tokens":4'
post 200 /v1/completions '{"prompt":"In the beginning God","max_tokens":3,"temperature":0,"logprobs":0}'
has '"token_logprobs":[-' '"text_offset":[0,'
# In characters, each token by its own text, though "zz" may begin a stop string and waits.
post 200 /v1/completions '{"prompt":"é é é é é é","max_tokens":24,"temperature":1,"seed":4,"logprobs":0,"ignore_eos":true,"stop":["zzz"," éx"]}'
if command -v python3 >/dev/null 2>&1; then
    python3 - "$work/body" <<'PY' || fail "text_offset: $body"
import json, sys
choice = json.load(open(sys.argv[1]))["choices"][0]
logprobs, text = choice["logprobs"], choice["text"]
assert any(ord(c) > 127 for c in text), text
at = 0
for token, offset in zip(logprobs["tokens"], logprobs["text_offset"]):
    assert "\ufffd" in token or (offset == at and text.startswith(token, offset)), (token, offset, at, text)
    at = offset + len(token)
PY
fi
# Without max_tokens the API gives 16.
post 200 /v1/completions '{"prompt":"The kernel","ignore_eos":true}'; has '"completion_tokens":16'

echo '== stop strings'
word=$(printf '%s' "$first" | cut -c 4-8)
post 200 /v1/completions "{\"prompt\":\"In the beginning God\",\"max_tokens\":12,\"temperature\":0,\"stop\":[\"$word\",\"zzz\"]}"
has '"finish_reason":"stop"'
case $body in *"$word"*) fail "the stop string is in the answer: $body" ;; esac

echo '== chat'
post 200 /v1/chat/completions '{"messages":[{"role":"user","content":"And God said"}],"max_tokens":8,"temperature":0}'
has '"object":"chat.completion"' '"role":"assistant"' '"content":"' '"completion_tokens":8' '"id":"chatcmpl-'
post 200 /v1/chat/completions '{"messages":[{"role":"user","content":"And God said"}],"max_completion_tokens":2,"temperature":0,"logprobs":true}'
has '"logprobs":{"content":[{"token":"' '"bytes":['

echo '== streams'
post 200 /v1/completions '{"prompt":"In the beginning God","max_tokens":12,"temperature":0,"stream":true,"stream_options":{"include_usage":true}}'
has 'data: {' 'data: [DONE]' '"finish_reason":"length"' '"usage":{"prompt_tokens":' '"usage":null'
joined=$(sed -n 's/^data: .*"text":"\(.*\)","logprobs".*/\1/p' "$work/body" | tr -d '\n')
[ "$joined" = "$first" ] || fail "the stream's text '$joined' differs from '$first'"
post 200 /v1/chat/completions '{"messages":[{"role":"user","content":"And God said"}],"max_tokens":5,"temperature":0,"stream":true}'
has '"delta":{"role":"assistant","content":""}' '"delta":{"content":"' '"delta":{}' '[DONE]'
curl -sS --max-time 60 -D "$work/head" -o /dev/null "$url/v1/completions" \
    -d '{"prompt":"a","max_tokens":2,"stream":true}'
grep -qi '^content-type: text/event-stream' "$work/head" || fail 'a stream is no event stream'

echo '== errors'
post 400 /v1/completions '{"prompt":"x","n":2}'; has '"error":{"message":"' '"param":"n"' '"code":"unsupported_value"'
post 400 /v1/completions '{"prompt":'; has '"code":"invalid_json"'
post 400 /v1/completions ''; has '"code":"invalid_json"'
post 400 /v1/completions '{"prompt":[]}'; has 'empty array'
post 404 /v1/completions '{"model":"gpt-4","prompt":"x"}'; has '"code":"model_not_found"' "'pebble' is"
post 400 /v1/completions '{"prompt":"x","max_tokens":5000}'; has '"code":"context_length_exceeded"' '4096'
long=$(printf 'kernel %.0s' $(seq 6000))
post 400 /v1/chat/completions "{\"messages\":[{\"role\":\"user\",\"content\":\"$long\"}]}"; has '"code":"context_length_exceeded"'
post 400 /v1/completions '{"prompt":[0,4096],"max_tokens":1}'; has "end at 4095"
head -c 70000 /dev/zero | tr '\0' 'a' >"$work/large"
post 413 /v1/completions "@$work/large"; has '"code":"request_too_large"'
ask 413 /v1/completions -H 'Transfer-Encoding: chunked' -H 'Expect:' --data-binary "@$work/large"
ask 405 /v1/completions; has 'takes POST, not GET'
ask 405 /v1/models/pebble -X DELETE; has 'takes GET, not DELETE'
ask 405 /health -X DELETE; has '"code":"method_not_allowed"'
ask 404 /nothing; has '/v1/chat/completions'
ask 400 '/tier/stats?by=rows'; has "'by' must name"
code=$(curl -sS -o /dev/null -w '%{http_code}' -H "X-Long: $(head -c 60000 /dev/zero | tr '\0' 'a')" "$url/health" || true)
case $code in 4*) ;; *) fail "a header of 60 kB got status $code" ;; esac

echo '== pages of other origins'
page='http://localhost:3000'
asks() { # STATUS ORIGIN: what a browser asks before it posts JSON; headers in $work/head
    ask "$1" /v1/chat/completions -X OPTIONS -D "$work/head" -H "Origin: $2" -H 'Access-Control-Request-Method: POST' \
        -H 'Access-Control-Request-Headers: authorization,content-type'
}
named() { # TEXT: an allowed origin or list of headers is told
    grep -qi "^$1"$'\r'"*\$" "$work/head" || fail "no '$1' in: $(cat "$work/head")"
}
asks 204 "$page"
named "access-control-allow-origin: $page"
named 'access-control-allow-methods: GET, HEAD, POST'
named 'access-control-allow-headers: authorization,content-type'
asks 405 'http://localhost:3001'
for stream in true false; do
    post 200 /v1/completions "{\"prompt\":\"a\",\"max_tokens\":2,\"stream\":$stream}" -H "Origin: $page" -D "$work/head"
    named "access-control-allow-origin: $page"
done
post 400 /v1/completions '{' -H "Origin: $page" -D "$work/head"
named "access-control-allow-origin: $page"
for other in 'Origin: http://localhost:3001' 'X-Nothing: x'; do
    ask 200 /v1/models -H "$other" -D "$work/head"
    if grep -qi '^access-control' "$work/head"; then fail "'$other' is allowed: $(cat "$work/head")"; fi
done

echo '== one request too many'
long_ask='{"prompt":"In the beginning","max_tokens":1500,"ignore_eos":true,"temperature":1}'
pids=''
for _ in 1 2 3 4; do
    curl -sN --max-time 60 -o /dev/null "$url/v1/completions" -d "${long_ask%\}},\"stream\":true}" & pids+=" $!"
done
for _ in $(seq 100); do
    ask 200 /metrics
    case $body in *'expertier_server_active_generations 4'*) break ;; esac
    sleep 0.05
done
post 429 /v1/completions '{"prompt":"x","max_tokens":1}'; has '"code":"too_many_requests"' 'server.requests_max'
# shellcheck disable=SC2086
kill $pids; wait $pids 2>/dev/null || true
for _ in $(seq 100); do
    ask 200 /health
    case $body in *'"active_generations":0'*) break ;; esac
    sleep 0.05
done
has '"active_generations":0'

echo '== metrics'
ask 200 /metrics
# Each line is a comment or "name{labels} number"; each name has HELP and TYPE before it.
awk '/^# HELP /{help[$3]=1; next} /^# TYPE /{if (!help[$3]) exit 1; type[$3]=1; next}
     !/^[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [-+0-9.eEINaf]+$/ {print "bad line: " $0; exit 1}
     {name=$1; sub(/\{.*/, "", name); base=name; sub(/_(bucket|sum|count)$/, "", base)
      if (!type[name] && !type[base]) {print "no TYPE: " $0; exit 1}}' "$work/body" || fail 'bad metrics'
has 'expertier_tier_lookups_total{tier="dram"}' 'expertier_tier_phase_lookups_total{tier="dram",phase="decode"}' \
    'expertier_wait_seconds_total{cause="demand_read"}' 'expertier_engine_generated_tokens_total' \
    'expertier_server_first_token_latency_seconds_bucket' 'expertier_build_info{'
lookups=$(sed -n 's/^expertier_tier_phase_lookups_total{tier="dram",phase="decode"} //p' "$work/body")
[ "$lookups" -gt 0 ] || fail 'no decode lookups were counted'

echo '== tier-stats'
for by in phase tier layer expert; do
    "$bin/tier-stats" --once --url "$url" --by "$by" >"$work/stats" || fail "tier-stats --by $by"
    grep -q 'demand reads' "$work/stats" || fail "tier-stats --by $by: $(cat "$work/stats")"
done
grep -q ' dram ' "$work/stats" || fail 'no expert is resident'
"$bin/tier-stats" --once --url "$url" | sed -n '1,12p'
"$bin/tier-stats" --json --url "$url" --by layer >"$work/stats"
grep -q '"layers":\[{"layer":1,' "$work/stats" || fail 'no layers in the JSON'
grep -q '"cold_start":{"lookups":' "$work/stats" || fail 'no phases in the JSON'
"$bin/tier-stats" --json --url "$url" >"$work/stats"
for feature in io.backend io.buffers io.direct tiers.verify layout tiers.dram.pin tiers.dram.huge_pages tiers.dram.numa \
    tiers.hbm.device tiers.inclusion tiers.warm_experts bits policy.eviction policy.quotas prefetch.enabled \
    prefetch.governor tiers.warm.path predictor.kind trace.path engine.cpu_mask engine.activations server.admin_listen; do
    grep -Eq "\"feature\":\"$feature\",\"requested\":\"[^\"]*\",\"state\":\"(active|degraded|refused|off)\"" "$work/stats" ||
        fail "no $feature in the report: $(cat "$work/stats")"
done
echo '== the log has a line a request'
post 200 /v1/completions '{"prompt":"In the beginning God","max_tokens":12,"temperature":0}'
id=${body#*\"id\":\"}; id=${id%%\"*}
logged() { # REGEX
    for _ in $(seq 100); do if grep -Eq "$1" "$work/server.log"; then return; fi; sleep 0.05; done
    fail "no log line $1"
}
logged "info +request +/v1/completions id=$id status=200 finish=length prompt_tokens=[1-9][0-9]* cached_tokens=0 answer_tokens=12 first_token_ms=[0-9.]+ total_ms=[0-9.]+\$"
logged 'info +request +/v1/chat/completions id=chatcmpl-[0-9a-f]+ status=200 finish=length .* answer_tokens=5 '
logged 'info +request +/v1/completions id=.* status=(0|200) finish=client_left '
stop_server

echo '== with --log-json all of it is JSON'
start_json() { start_server --log-json --log-level debug "$@"; }
rm -f "$work/expertier.index"
start_json
post 200 /v1/completions '{"prompt":"The","max_tokens":3,"stream":true}'
post 404 /v1/nothing '{}'
logged '"level":"info","area":"request","text":"/v1/completions id=cmpl-[0-9a-f]+ status=200 finish=length .*"}'
logged '"level":"debug","area":"request","text":"/v1/nothing refused status=404 total_ms='
stop_server
grep -q '"area":"memory","text":"dense' "$work/server.log" || fail 'no memory table in the JSON log'
grep -q '"area":"report","text":"active *io.backend' "$work/server.log" || fail 'no report in the JSON log'
if grep -v '^{"time":".*"}$' "$work/server.log"; then fail 'lines that are no JSON'; fi
code=0
"$bin/tier-server" --log-json --model "$work/none" 2>"$work/err" || code=$?
[ "$code" != 0 ] && grep -q '"level":"error","area":"server"' "$work/err" || fail "a start that fails: $(cat "$work/err")"
if grep -v '^{"time":".*"}$' "$work/err"; then fail 'lines that are no JSON'; fi
if "$bin/tier-stats" --once --url "$url" 2>"$work/err"; then fail 'tier-stats without a server says 0'; fi
grep -q 'is tier-server running' "$work/err" || fail "tier-stats without a server: $(cat "$work/err")"
