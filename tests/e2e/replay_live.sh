#!/usr/bin/env bash
# What you replay is what you get: tier-replay gives the live server's own counts, exactly.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

runs=0
for policy in lru lru_global; do
    for capacity in 15% 25% 60%; do
        trace=$work/$policy-$capacity.trace
        start_server --trace "$trace" --set "policy.eviction=$policy" \
            --set "tiers.dram.capacity=$capacity"
        # Alone, and beside others: batches make events with more than top-k experts.
        complete 'In the beginning God created' 24 '"temperature": 0' >"$work/alone.json"
        pids=''
        for prompt in 'The kernel allocates memory' '#include <stdio.h>' 'Le système de paquets Debian'; do
            complete "$prompt" 16 '"temperature": 0.7, "seed": 3' >/dev/null & pids+=" $!"
        done
        for pid in $pids; do wait "$pid" || fail 'a completion failed'; done
        grep -q '"text"' "$work/alone.json" || fail "no text in the answer: $(cat "$work/alone.json")"
        "$bin/tier-stats" --once --json --url "$url" >"$work/stats.json" || fail 'tier-stats failed'
        stop_server
        "$bin/tier-replay" run "$trace" --as-recorded --json >"$work/replay.json" 2>"$work/replay.err" ||
            fail "$policy at $capacity: replay differs: $(cat "$work/replay.json" "$work/replay.err")"
        # The counts compared must be real ones.
        grep -Eq '"lookups": ?[1-9]' "$work/replay.json" || fail "no lookups in $(cat "$work/replay.json")"
        grep -Eq '"misses": ?[1-9]' "$work/replay.json" || fail "no misses in $(cat "$work/replay.json")"
        runs=$((runs + 1))
        echo "$policy at $capacity: replay equals live"
    done
done
[ "$runs" = 6 ] || fail "only $runs of 6 settings ran"
