#!/usr/bin/env bash
# tier-replay tune: the server takes the tuned YAML as it is, and its live counts equal the replay.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

prompts=('In the beginning God created' 'The kernel allocates memory' '#include <stdio.h>' 'apt-get install'
    'And it came to pass in those days' 'This manual page describes' 'struct inode' 'The king said unto them')
ask_all() { # TOKENS
    local i=0
    for prompt in "${prompts[@]}"; do
        i=$((i + 1))
        complete "$prompt" "$1" "\"temperature\": 0.7, \"seed\": $i" >"$work/answer.json"
        grep -q '"text"' "$work/answer.json" || fail "no text in the answer: $(cat "$work/answer.json")"
    done
}
counts() { # FILE KEY: the key's numbers, in order
    grep -Eo "\"$2\": ?[0-9]+" "$1" | grep -Eo '[0-9]+$' | tr '\n' ' '
}

printf 'tiers:\n  dram:\n    capacity: "20%%"\npolicy:\n  eviction: lru\npredictor:\n  kind: none\n' >"$work/base.yaml"
# Time to read ahead in, and reads that are worth it.
printf 'machine:\n  name: e2e\nnvme:\n  bandwidth: 2GB\n  latency: 150us\ncompute:\n  layer_time: 400us\n' \
    >"$work/machine.yaml"
start_server --config "$work/base.yaml" --trace "$work/day.trace"
ask_all 48
stop_server

"$bin/tier-replay" tune "$work/day.trace" --config "$work/base.yaml" -o "$work/tuned.yaml" --explain \
    >"$work/told" 2>"$work/tune.err" || fail "tune: $(cat "$work/tune.err")"
cat "$work/told"
if grep -q 'not closed in order' "$work/tune.err"; then fail 'a trace that was closed in order is said not to be'; fi
head -c -40 "$work/day.trace" >"$work/torn.trace"
"$bin/tier-replay" tune "$work/day.trace" "$work/torn.trace" --config "$work/base.yaml" -o "$work/torn.yaml" --json \
    >/dev/null 2>"$work/torn.err" || fail "tune of a torn trace: $(cat "$work/torn.err")"
[ "$(grep -c 'torn.trace was not closed in order' "$work/torn.err")" = 1 ] &&
    ! grep -q 'day.trace was not' "$work/torn.err" || fail "the torn trace is not named alone: $(cat "$work/torn.err")"
grep -q 'bootstrap over the held-out sequences' "$work/told" || fail 'no interval was told'
grep -Eq 'Turning policy.|the base stays' "$work/told" || fail 'nothing was explained'
"$bin/tier-replay" tune "$work/day.trace" --config "$work/base.yaml" -o "$work/again.yaml" --json --quiet \
    >"$work/tune.json" 2>"$work/tune.err" || fail "tune: $(cat "$work/tune.err")"
cmp "$work/tuned.yaml" "$work/again.yaml" || fail 'the same traces gave another YAML'
mkdir "$work/tmp"
TMPDIR=$work/tmp "$bin/tier-replay" tune "$work/day.trace" --config "$work/base.yaml" -o "$work/timed.yaml" --json --quiet \
    --machine "$work/machine.yaml" >"$work/timed.json" 2>"$work/tune.err" ||
    fail "tune on the clock: $(cat "$work/tune.err")"
grep -q '"objective":"time in ns"' "$work/timed.json" || fail 'the clock did not judge'
[ -z "$(ls "$work/tmp")" ] || fail 'temporary files are left'
grep -Eq '"knob":"predictor.kind"' "$work/timed.json" || fail "no predictor was found: $(cat "$work/timed.json")"
"$bin/tier-replay" tune "$work/day.trace" --config "$work/base.yaml" -o "$work/timed-again.yaml" --explain \
    --machine "$work/machine.yaml" >"$work/timed.told" 2>"$work/tune.err" || fail "tune: $(cat "$work/tune.err")"
cmp "$work/timed.yaml" "$work/timed-again.yaml" || fail 'the same traces gave another YAML on the clock'
cat "$work/timed.told"
grep -q 'Turning predictor.kind from none to' "$work/timed.told" || fail 'the predictor was not explained'
"$bin/tier-server" --config "$work/timed.yaml" --check-config >/dev/null || fail 'the server refuses the timed YAML'
better=$(grep -Eo '"better":(true|false)' "$work/tune.json")
if [ "$better" = '"better":false' ]; then
    grep -Eq '^ *eviction: lru$' "$work/tuned.yaml" || fail 'the base was not kept'
fi
"$bin/tier-server" --config "$work/tuned.yaml" --check-config >/dev/null || fail 'the server refuses the tuned YAML'

# Both serve as they are; what the server counted is what replay counts.
for name in tuned timed; do
    start_server --config "$work/$name.yaml" --trace "$work/$name.trace"
    ask_all 24
    "$bin/tier-stats" --once --json --url "$url" >"$work/stats.json" || fail 'tier-stats failed'
    stop_server
    "$bin/tier-replay" run "$work/$name.trace" --as-recorded --json >"$work/replay.json" 2>"$work/replay.err" ||
        fail "replay differs from live: $(cat "$work/replay.json" "$work/replay.err")"
    grep -Eq '"misses": ?[1-9]' "$work/replay.json" || fail "no misses in $(cat "$work/replay.json")"
    for key in resident misses evictions; do
        echo "$name: $key, live and replayed: $(counts "$work/replay.json" "$key")"
    done
done
if grep -q '"better":true' "$work/timed.json"; then
    [ "$(counts "$work/stats.json" prefetch_reads | tr ' ' '\n' | sort -n | tail -n 1)" -gt 0 ] ||
        fail 'nothing was read ahead'
fi
"$bin/tier-replay" tune "$work/day.trace" --config "$work/base.yaml" --set policy.eviction=mru -o "$work/bad.yaml" \
    >/dev/null 2>"$work/bad.err" && fail 'an unknown policy was taken'
[ ! -e "$work/bad.yaml" ] || fail 'a YAML was written in spite of the error'
echo "tuned, served and replayed: by bytes $better, by time $(grep -Eo '"better":(true|false)' "$work/timed.json")"
