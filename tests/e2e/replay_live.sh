#!/usr/bin/env bash
# What you replay is what you get: tier-replay gives the live server's own counts, exactly.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

runs=0
# One server, asked alone and by several at once; its counts against those of the replay.
live() { # TITLE [--set KEY=VALUE...]
    local title=$1 trace=$work/$runs.trace pids='' pid prompt; shift
    start_server --trace "$trace" "$@"
    # Alone, and beside others: batches make events with more than top-k experts.
    complete 'In the beginning God created' 24 '"temperature": 0' >"$work/alone.json"
    for prompt in 'The kernel allocates memory' '#include <stdio.h>' 'Le système de paquets Debian'; do
        complete "$prompt" 16 '"temperature": 0.7, "seed": 3' >/dev/null & pids+=" $!"
    done
    for pid in $pids; do wait "$pid" || fail 'a completion failed'; done
    grep -q '"text"' "$work/alone.json" || fail "no text in the answer: $(cat "$work/alone.json")"
    "$bin/tier-stats" --once --json --url "$url" >"$work/stats.json" || fail 'tier-stats failed'
    stop_server
    "$bin/tier-replay" run "$trace" --as-recorded --json >"$work/replay.json" 2>"$work/replay.err" ||
        fail "$title: replay differs: $(cat "$work/replay.json" "$work/replay.err")"
    # The counts compared must be real ones.
    grep -Eq '"lookups": ?[1-9]' "$work/replay.json" || fail "no lookups in $(cat "$work/replay.json")"
    grep -Eq '"misses": ?[1-9]' "$work/replay.json" || fail "no misses in $(cat "$work/replay.json")"
    runs=$((runs + 1))
    echo "$title: replay equals live"
}

# A what-if of the newest trace begins with the recorded configuration, whatever else is set.
base() { # SETTING-AS-RECORDED
    local trace=$work/$((runs - 1)).trace
    "$bin/tier-replay" run "$trace" --json --quiet >"$work/base.json" || fail 'run failed'
    "$bin/tier-replay" run "$trace" --json --quiet --set "$1" | cmp - "$work/base.json" || fail "$1, as recorded, changes the rest"
    [ "$(slots "$work/base.json" | head -n 1)" = "$(slots "$work/replay.json" | head -n 1)" ] ||
        fail "not the recorded slots: $(cat "$work/base.json" "$work/replay.json")"
    "$bin/tier-replay" run "$trace" --json --quiet --set "$1" --machine "$source_dir/configs/machines/8xh20.yaml" >"$work/clock.json" ||
        fail 'run on the clock failed'
    [ "$(slots "$work/clock.json")" = "$(slots "$work/replay.json")" ] ||
        fail "not the recorded slots: $(cat "$work/clock.json" "$work/replay.json")"
}
slots() { grep -Eo '"slots":[0-9]+' "$1"; }

for policy in lru lru_global; do
    for capacity in 15% 25% 60%; do
        live "$policy at $capacity" --set "policy.eviction=$policy" --set "tiers.dram.capacity=$capacity"
    done
done

# With hints: they steer eviction and bring experts in. A fixed governor prefetches from the first
# step; the automatic one begins off. One tier, and an emulated card's above it.
hints=(--set predictor.kind=blend --set policy.eviction=lru_with_prediction)
fetched() { grep -Eq '"prefetch_reads": ?[1-9]' "$work/stats.json" || fail "nothing was prefetched: $(cat "$work/stats.json")"; }
live 'lru in 8MiB, nothing predicted' --set policy.eviction=lru --set predictor.kind=none --set tiers.dram.capacity=8MiB
base policy.half_life=16
if grep -q '"predictor"' "$work/clock.json"; then fail "hints that no server gave: $(cat "$work/clock.json")"; fi
for capacity in 15% 25% 60%; do
    live "lru_with_prediction, blend, at $capacity" "${hints[@]}" --set "tiers.dram.capacity=$capacity"
done
live 'lru_with_prediction, blend, prefetch from the start' "${hints[@]}" --set prefetch.governor=fixed --set tiers.dram.capacity=25%
fetched
for policy in lru lfu lru_with_frequency slru s3fifo sieve arc; do
    live "$policy with prefetch from the start" --set "policy.eviction=$policy" --set predictor.kind=blend --set prefetch.governor=fixed --set tiers.dram.capacity=25%
done
for inclusion in exclusive inclusive; do
    live "three tiers, $inclusion" "${hints[@]}" --set prefetch.governor=fixed --set tiers.hbm.capacity=15% --set "tiers.inclusion=$inclusion" --set tiers.dram.capacity=40%
    base prefetch.governor=fixed
    grep -q "\"inclusive\":$([ $inclusion = inclusive ] && echo true || echo false)" "$work/clock.json" || fail "not $inclusion: $(cat "$work/clock.json")"
    grep -q '"predictor":"blend"' "$work/clock.json" || fail "no hints: $(cat "$work/clock.json")"
done
# A trace holds the live counts every 256 steps too: they are of that moment, with all events before them.
for governor in auto fixed; do
    "$bin/tier-bench" decode --model "$model" --quiet --rounds 3 --tokens 200 --set "tiers.nvme.index=$work/expertier.index" \
        --set "trace.path=$work/long.$governor" --set tiers.dram.capacity=25% --set "prefetch.governor=$governor" >/dev/null
    "$bin/tier-replay" run "$work/long.$governor" --as-recorded --json >"$work/replay.json" 2>"$work/replay.err" ||
        fail "600 steps: replay differs: $(cat "$work/replay.json" "$work/replay.err")"
    grep -q '"checks":3,"differing":0' "$work/replay.json" || fail "not three places to compare: $(cat "$work/replay.json")"
done
[ "$runs" = 20 ] || fail "only $runs of 20 settings ran"
