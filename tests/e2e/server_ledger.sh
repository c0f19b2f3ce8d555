#!/usr/bin/env bash
# The account of memory is one: what is counted as used, by purpose, adds up to what the kernel says
# is resident within 3% while eight clients generate, and what does not fit is refused, at start and live.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

if grep -q '__[at]san_init' "$bin/tier-server"; then
    echo 'skip: a sanitizer keeps memory of its own that no account of ours holds'
    exit 77
fi

# meson's setting makes malloc write to buffers that nobody has used yet.
unset MALLOC_PERTURB_

# A model in which the tiers outweigh the rest: without them 3% would be a few pages of the C library.
big=$work/big
mkdir "$big"
"$EXPERTIER_BUILD/tests/support/tiny_model" "$big"
cp "$source_dir"/models/pebble/tokenizer*.json "$big/"
model=$big

generate_and_look() { # ROUND: eight clients; what the server counts meanwhile, and once more at the end, is added to $work/all
    local client clients='' more=1
    for client in 1 2 3 4 5 6 7 8; do
        curl -sS --max-time 200 "$url/v1/completions" -H 'Content-Type: application/json' -d "{
            \"prompt\": \"In the beginning of part $client God created the heaven and\", \"seed\": $1$client,
            \"max_tokens\": 60, \"temperature\": 1, \"ignore_eos\": true}" >"$work/answer.$client" &
        clients+=" $!"
    done
    while [ "$more" = 1 ]; do
        more=0
        # shellcheck disable=SC2086
        kill -0 $clients 2>/dev/null && more=1
        curl -sS --max-time 10 "$url/metrics" >"$work/metrics"
        awk '/^expertier_memory_bytes.*state="used"/ { used += $2 }
            /^expertier_memory_bytes.*state="planned"/ { planned += $2 }
            /^expertier_memory_bytes.tag="(hbm_slots|dram_slots|staging)",state="used"/ { slots += $2 }
            /^expertier_memory_resident_bytes/ { rss = $2 }
            END { printf "%.2f %d %d %d %d\n", 100 * (used - rss) / rss, used / 1048576, rss / 1048576,
                planned / 1048576, slots / 1048576 }' "$work/metrics" >>"$work/all"
        [ "$more" = 1 ] && sleep 0.2
    done
    for client in 1 2 3 4 5 6 7 8; do
        grep -q '"finish_reason":"length"' "$work/answer.$client" ||
            fail "request $client: $(head -c 300 "$work/answer.$client")"
    done
}

measure() { # NAME [server argument...]
    local name=$1 looks=0 worst=0 round; shift
    start_server "$@"
    # The slots fill at the disk's speed, and the counters are some milliseconds old: only looks at tiers
    # that have all but stopped growing are compared. A round that gave too few of them is followed by
    # another, over tiers that are full by then.
    for round in 1 2 3 4; do
        generate_and_look "$round"
        awk -v full="$(awk 'END { print $5 }' "$work/all")" '$5 >= 0.97 * full' "$work/all" >"$work/looks"
        read -r worst looks <<<"$(awk '{ d = $1 < 0 ? -$1 : $1; if (d > worst) worst = d } END { print worst, NR }' "$work/looks")"
        [ "$looks" -ge 3 ] && break
    done
    local kernel
    kernel=$(awk '/^VmRSS/ { print int($2 / 1024) }' "/proc/$server/status")
    echo "$name: used $(awk 'END { print $2 " MiB, resident " $3 " MiB, planned " $4 " MiB" }' "$work/looks");" \
        "at most $worst% apart in $looks looks"
    [ "$looks" -ge 3 ] || fail "$name: only $looks looks: $(cat "$work/all")"
    awk -v a="$(awk 'END { print $3 }' "$work/looks")" -v b="$kernel" \
        'BEGIN { d = a - b; exit !(d * d <= 4 || d * d <= 0.0001 * b * b) }' ||
        fail "$name: the server says other resident memory than the kernel's $kernel MiB"
    awk -v w="$worst" 'BEGIN { exit !(w <= 3) }' ||
        fail "$name: the account is more than 3% off: $(grep '^expertier_memory' "$work/metrics")"
    awk '$3 > $4 { exit 1 }' "$work/looks" || fail "$name: resident memory went over the planned sum"
    rm "$work/looks" "$work/all"
    stop_server
}

measure 'dram' --set tiers.dram.capacity=60%
measure 'dram, all experts' --set tiers.dram.capacity=100%
measure 'hbm over dram' --set tiers.hbm.capacity=25% --set tiers.dram.capacity=50%
measure 'with a trace and a warm start' --set tiers.dram.capacity=80% --trace "$work/trace" \
    --set "tiers.warm.path=$work/warm"
measure 'with a predictor' --set tiers.dram.capacity=60% --set predictor.kind=blend

echo '== what does not fit is refused with the arithmetic'
code=0
"$bin/tier-server" --model "$model" --set "tiers.nvme.index=$work/expertier.index" --dry-run \
    --set kv.capacity=2TiB >"$work/refused" 2>&1 || code=$?
cat "$work/refused"
[ "$code" = 1 ] || fail "exit code $code"
grep -Eq 'dense weights .* \+ kv cache .* = .*, but .* allows .*: lower' "$work/refused" ||
    fail 'no arithmetic'

echo '== growth while it runs is held against the same limit'
metric() { curl -sS "$url/metrics" | awk -v name="$1" 'index($1, name) == 1 { sum += $2 } END { printf "%.0f\n", sum }'; }
start_server --set tiers.dram.capacity=10% --set kv.capacity=64MiB
planned=$(curl -sS "$url/metrics" | awk '/^expertier_memory_bytes.*state="planned"/ { sum += $2 } END { printf "%.0f", sum }')
allowed=$(metric expertier_memory_allowed_bytes)
stop_server
# All but 24 MiB of what is allowed is set aside for the KV cache: another tenth fits, all does not.
kv=$(awk -v p="$planned" -v a="$allowed" 'BEGIN { printf "%d", (a - p) / 1048576 + 64 - 24 }')
export XDG_RUNTIME_DIR=$work/runtime
mkdir -m 700 "$XDG_RUNTIME_DIR"
start_server --set tiers.dram.capacity=10% --set "kv.capacity=${kv}MiB"
admin=$(sed -n 's/^admin socket //p' "$work/server.log")
put() { curl -sS --max-time 60 -o "$work/put" -w '%{http_code}' --unix-socket "$admin" -X PUT http://localhost/tier/config -d "$1"; }
slots() { metric 'expertier_tier_slots{tier="dram"}'; }
before=$(slots)
[ "$(put 'tiers: {dram: {capacity: 100%}}')" = 409 ] || fail "growth beyond the machine: $(cat "$work/put")"
cat "$work/put"; echo
grep -q 'dram slots .* = .*, but .* allows' "$work/put" || fail 'no arithmetic'
[ "$(slots)" = "$before" ] || fail "a refused change made $before slots $(slots)"
[ "$(put 'tiers: {dram: {capacity: 12%}}')" = 200 ] || fail "growth that fits: $(cat "$work/put")"
[ "$(slots)" -gt "$before" ] || fail 'a change that fits did nothing'
complete 'In the beginning' 4 | grep -q '"text"' || fail 'no answer after it'
stop_server
