#!/usr/bin/env bash
# Other settings while requests stream: by SIGHUP and by PUT on the admin socket. Answers keep every
# byte and none is lost, what is wrong changes nothing, memory comes back, and the trace of it all
# replays to the live counts.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

export XDG_RUNTIME_DIR=$work/runtime
mkdir -m 700 "$XDG_RUNTIME_DIR"

prompts=('In the beginning God created' '#include <stdio.h>' 'The kernel is the part of'
         'Pour installer le paquet' 'And the evening and the morning')
ask_all() { # FOLDER: streams all prompts at once, keeps the events' texts
    local i pids=()
    for i in "${!prompts[@]}"; do
        curl -sSN --max-time 120 "$url/v1/completions" -H 'Content-Type: application/json' \
            -d "{\"prompt\": \"${prompts[$i]}\", \"max_tokens\": 120, \"temperature\": 0, \"stream\": true, \"ignore_eos\": true}" |
            sed -n 's/.*"text":"\(.*\)","index".*/\1/p; s/^data: \[DONE\]/DONE/p; /"error"/p' >"$1/$i" &
        pids+=("$!")
    done
    asked=("${pids[@]}")
}
wait_all() { for pid in "${asked[@]}"; do wait "$pid" || fail 'a request was lost'; done; }
put() { # BODY: prints the status; the answer is in $work/put
    curl -sS --max-time 60 -o "$work/put" -w '%{http_code}' --unix-socket "$admin" -X PUT \
        http://localhost/tier/config -d "$1"
}
config() { curl -sS --max-time 60 --unix-socket "$admin" http://localhost/tier/config; }
find_admin() { admin=$(sed -n 's/^admin socket //p' "$work/server.log"); }
number() { curl -sS "$url/metrics" | awk -v name="$1" '$1 == name { print $2 }'; }

echo '== answers without any change'
mkdir "$work/plain" "$work/changed"
start_server
ask_all "$work/plain"; wait_all
for i in "${!prompts[@]}"; do grep -q '^DONE$' "$work/plain/$i" || fail "prompt $i did not end"; done
stop_server

echo '== the same while settings change'
cat >"$work/a.yaml" <<'YAML'
tiers:
  hbm: {capacity: 15%, sim_bandwidth: 4GiB}
  dram: {capacity: 40%}
YAML
cp "$work/a.yaml" "$work/live.yaml"
start_server --config "$work/live.yaml" --trace "$work/routing.trace"
find_admin
[ "$(stat -c '%a %F' "$admin")" = '600 socket' ] || fail "admin socket: $(stat -c '%a %F' "$admin")"
ask_all "$work/changed"
changes=0
for round in 1 2 3 4 5 6; do
    for body in '{"tiers": {"dram": {"capacity": "20%"}}, "policy": {"eviction": "lfu"}}' \
        'policy: {eviction: s3fifo, eviction_dram: lru, quotas: adaptive}' \
        'tiers: {hbm: {capacity: 30%}, dram: {capacity: 60%}}' \
        'policy: {prefill_share: 20%, quotas: "1,2,1,1,3,1"}' \
        'tiers: {hbm: {capacity: 10%}}'; do
        [ "$(put "$body")" = 200 ] || fail "round $round: PUT $body: $(cat "$work/put")"
        changes=$((changes + 1))
        [ "$(put 'tiers: {hbm: {capacity: 1%}}')" = 409 ] || fail "a budget too small: $(cat "$work/put")"
    done
    kill -HUP "$server"         # back to the file
    sleep 0.2
done
wait_all
for i in "${!prompts[@]}"; do
    cmp "$work/plain/$i" "$work/changed/$i" || fail "prompt $i has another answer: $(cat "$work/changed/$i")"
done
for _ in $(seq 50); do
    curl -sS "$url/tier/stats" >"$work/stats"
    grep -q '"reconfigurations":[1-9]' "$work/stats" && break
    sleep 0.1
done
counted=$(number expertier_io_reconfigurations_total)
[ "$counted" -ge $((changes)) ] || fail "$counted changes counted, $changes made"
[ "$(number expertier_server_refused_changes_total)" -ge "$changes" ] || fail 'refused changes are not counted'
echo "$counted changes while ${#prompts[@]} answers streamed"

echo '== what is wrong changes nothing'
config >"$work/before"
[ "$(put 'tiers: {dram: {capacty: 50%}}')" = 400 ] || fail "unknown key: $(cat "$work/put")"
grep -q 'request body:1:16' "$work/put" || fail "no place in: $(cat "$work/put")"
[ "$(put 'io: {depth: 5}')" = 409 ] || fail "a restart key: $(cat "$work/put")"
grep -q 'io.depth: a change of it needs a restart' "$work/put" || fail "restart: $(cat "$work/put")"
[ "$(put 'tiers: {hbm: {capacity: "0"}}')" = 409 ] || fail "no hbm any more: $(cat "$work/put")"
[ "$(put '{"tiers": ')" = 400 ] || fail "half a body: $(cat "$work/put")"
printf 'tiers:\n  dram:\n    capcity: 40%%\n' >"$work/live.yaml"
kill -HUP "$server"
for _ in $(seq 50); do grep -q 'live.yaml:3:5' "$work/server.log" && break; sleep 0.1; done
grep -q 'live.yaml:3:5.*by=SIGHUP' "$work/server.log" || fail 'the bad file is not named by line and column'
rm "$work/live.yaml"
kill -HUP "$server"
sleep 0.3
config | diff "$work/before" - || fail 'something changed'
kill -0 "$server" || fail 'the server is gone'
[ "$(curl -sS -o "$work/put" -w '%{http_code}' "$url/tier/config")" = 404 ] || fail 'on the public port'
[ "$(curl -sS -o "$work/put" -w '%{http_code}' -X PUT "$url/tier/config" -d 'x: 1')" = 404 ] ||
    fail 'PUT on the public port'
[ "$(curl -sS -o "$work/put" -w '%{http_code}' --unix-socket "$admin" -X POST http://x/tier/config)" = 405 ] ||
    fail 'POST'
[ "$(curl -sS -o "$work/put" -w '%{http_code}' --unix-socket "$admin" http://x/health)" = 200 ] ||
    fail 'health on the admin socket'

echo '== --check-config and --diff'
cp "$work/a.yaml" "$work/b.yaml"
printf 'policy: {eviction: lfu}\nio: {depth: 8}\n' >>"$work/b.yaml"
"$bin/tier-server" --diff "$work/b.yaml" --set "server.admin_listen=$admin" >"$work/out" 2>"$work/err" ||
    fail "--diff: $(cat "$work/err")"
grep -q 'the running server' "$work/err" || fail "--diff asked nobody: $(cat "$work/err")"
grep -qx 'live *policy.eviction: lru_with_prediction -> lfu' "$work/out" || fail "--diff: $(cat "$work/out")"
grep -qx 'restart *io.depth: 32 -> 8' "$work/out" || fail "--diff: $(cat "$work/out")"
! grep -q 'tiers.dram.capacity' "$work/out" || fail "--diff names what is the same: $(cat "$work/out")"
# The running server's command line stays over the file, as at SIGHUP, and what finds it is no setting.
! grep -q 'tiers.nvme.index\|trace.path\|server.' "$work/out" || fail "--diff: $(cat "$work/out")"
[ "$(curl -sS --unix-socket "$admin" 'http://x/tier/config?from=command_line')" = \
    "tiers.nvme.index=$work/expertier.index
server.port=0
trace.path=$work/routing.trace" ] || fail 'what the command line says'
port=${url##*:}
"$bin/tier-server" --diff "$work/a.yaml" --port "$port" >"$work/out" 2>"$work/err" || fail "--diff: $(cat "$work/err")"
[ ! -s "$work/out" ] || fail "nothing is other than at the start: $(cat "$work/out")"
"$bin/tier-server" --diff "$work/a.yaml" --port "$port" --set io.depth=8 --set tiers.nvme.index= >"$work/out" 2>"$work/err"
grep -qx 'restart *io.depth: 32 -> 8' "$work/out" && grep -q '^restart *tiers.nvme.index' "$work/out" ||
    fail "--diff with settings of its own: $(cat "$work/out")"
"$bin/tier-server" --check-config --config "$work/b.yaml" --model "$model" \
    --set "tiers.nvme.index=$work/expertier.index" >"$work/out" || fail '--check-config with the model'
refuse() { # SAYS [argument...]
    local says=$1 code=0; shift
    "$bin/tier-server" --check-config "$@" >"$work/out" 2>&1 || code=$?
    [ "$code" = 2 ] || fail "exit code $code: $(cat "$work/out")"
    grep -qF -- "$says" "$work/out" || fail "no '$says' in: $(cat "$work/out")"
}
refuse 'policy.quotas' --set policy.quotas=adaptive --set policy.eviction=lru_global
refuse 'policy.eviction_dram' --set policy.eviction_dram=lfu
refuse 'server.admin_listen' --set server.admin_listen=127.0.0.1:9
refuse 'give it' --set tiers.dram.capacity=1% --model "$model" --set "tiers.nvme.index=$work/expertier.index"
refuse 'policy.quotas' --set policy.quotas=1,2 --model "$model" --set "tiers.nvme.index=$work/expertier.index"

echo '== the socket goes with the server; the trace replays to the live counts'
stop_server
[ ! -e "$admin" ] || fail 'the admin socket is still there'
"$bin/tier-replay" run "$work/routing.trace" --as-recorded >"$work/out" 2>&1 || fail "replay: $(cat "$work/out")"
grep -q 'replayed counts equal the live ones' "$work/out" || fail "replay: $(cat "$work/out")"
"$bin/tier-server" --diff "$work/a.yaml" --set "server.admin_listen=$admin" >"$work/out" 2>"$work/err" ||
    fail "--diff without a server: $(cat "$work/err")"
grep -q 'the defaults: no server answers' "$work/err" || fail "--diff: $(cat "$work/err")"
grep -qx 'live *tiers.dram.capacity: 25% -> 40%' "$work/out" || fail "--diff: $(cat "$work/out")"

echo '== memory of a smaller tier goes back to the system, without a step'
start_server --set tiers.dram.capacity=100% --set tiers.dram.pin=off
find_admin
ask_all "$work/plain"; wait_all
resident() { awk '/^VmRSS/ { print $2 }' "/proc/$server/status"; }
# A sanitizer's own tables come and go beside ours.
sanitized=0
if grep -q '__[at]san_init' "$bin/tier-server"; then sanitized=1; fi
full=$(resident)
slots() { curl -sS "$url/metrics" | awk '/^expertier_tier_slots\{tier="dram"\}/ { print $2 }'; }
all=$(slots)
[ "$(put 'tiers: {dram: {capacity: 25%}}')" = 200 ] || fail "shrinking: $(cat "$work/put")"
small=$full
for _ in $(seq 50); do
    small=$(resident)
    [ $((full - small)) -lt 8000 ] && [ "$sanitized" = 0 ] || break
    sleep 0.1
done
# A quarter of 384, and those of the staging row for what is on its way.
spare=4
for _ in $(seq 50); do [ "$(slots)" != $((96 + spare)) ] || break; sleep 0.1; done
[ "$(slots)" = $((96 + spare)) ] || fail "$(slots) slots are left, not 96 and $spare to spare"
# 384 slots of 56 KiB are 21 MiB; three quarters of those that were used go.
[ $((full - small)) -ge 8000 ] || [ "$sanitized" = 1 ] || fail "resident $full KiB before, $small KiB after"
echo "resident $full KiB with all experts, $small KiB with a quarter of the slots"
[ "$all" = 384 ] || fail "$all slots at first"
[ "$(put 'tiers: {dram: {capacity: 100%}}')" = 200 ] || fail "growing: $(cat "$work/put")"
ask_all "$work/changed"; wait_all
for i in "${!prompts[@]}"; do cmp "$work/plain/$i" "$work/changed/$i" || fail "prompt $i after it grew again"; done
stop_server

echo '== a PUT keeps what a SIGHUP changed before it'
# Steps of some reads' time: both changes wait for one, the PUT behind the SIGHUP.
cp "$work/a.yaml" "$work/slow.yaml"
start_server --config "$work/slow.yaml" --set io.throttle_latency=100ms
find_admin
curl -sN --max-time 60 -o /dev/null "$url/v1/completions" \
    -d '{"prompt": "In the beginning", "max_tokens": 400, "ignore_eos": true, "stream": true}' & client=$!
for _ in $(seq 100); do [ "$(number expertier_engine_running_requests)" != 1 ] || break; sleep 0.05; done
changed() { grep -c "setting changed: $1" "$work/server.log" || true; }
for round in 1 2 3; do
    policy=lru; [ $((round % 2)) = 1 ] && policy=lfu
    printf 'policy: {eviction: %s}\n' "$policy" | cat "$work/a.yaml" - >"$work/slow.yaml"
    kill -HUP "$server"; sleep 0.02
    [ "$(put "prefetch: {inflight: $((10 + round))MiB}")" = 200 ] || fail "PUT: $(cat "$work/put")"
    for _ in $(seq 100); do [ "$(changed 'policy.eviction: .*by=SIGHUP')" != "$round" ] || break; sleep 0.05; done
    config | grep -qx "  eviction: $policy" || fail "round $round: the PUT undid the SIGHUP: $(config | grep eviction)"
done
kill "$client"; wait "$client" 2>/dev/null || true
stop_server
echo 'all holds'
