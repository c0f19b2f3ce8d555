#!/usr/bin/env bash
# A server that comes back is warm: after SIGTERM and after a kill the first tokens find more of
# their experts readable than in a cold start, in two tiers and in three, and replay stays exact.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

# Experts that the answer of 8 tokens had to wait for; lookups that were readable at once.
first_tokens() {
    complete 'In the beginning God created' 8 '"temperature": 0' >"$work/answer.json"
    grep -q '"finish_reason":"length"' "$work/answer.json" || fail "$(cat "$work/answer.json")"
    curl -sS --max-time 10 "$url/metrics" >"$work/metrics"
    awk '/^expertier_io_demand_reads_total / { reads = $2 }
         /^expertier_tier_hits_total/ { hits += $2 }
         /^expertier_tier_lookups_total/ { if (!lookups) lookups = $2 }
         END { print reads, 100 * hits / lookups }' "$work/metrics"
}
restored() {
    for _ in $(seq 200); do
        if grep -q 'restored in' "$work/server.log"; then return; fi
        sleep 0.05
    done
    fail 'the saved set was not restored within 10 s'
}

for tiers in 'tiers.hbm.capacity=0' 'tiers.hbm.capacity=20%'; do
    rm -f "$work/warm" "$work/trace" "$work/trace2"
    arguments=(--set "tiers.warm.path=$work/warm" --set "$tiers" --set tiers.dram.capacity=40%)
    start_server "${arguments[@]}"
    read -r cold_reads cold_rate <<<"$(first_tokens)"
    complete 'In the beginning God created' 40 '"temperature": 0' >/dev/null
    stop_server
    grep -q 'resident set saved' "$work/server.log" || fail 'nothing was saved'

    start_server "${arguments[@]}" --trace "$work/trace"
    restored
    read -r reads rate <<<"$(first_tokens)"
    stop_server
    "$bin/tier-replay" run "$work/trace" --as-recorded >"$work/replay" 2>&1 ||
        fail "replay differs: $(cat "$work/replay")"
    echo "$tiers: first 8 tokens: $cold_reads demand reads and $cold_rate% readable cold," \
        "$reads and $rate% after a restart; replay equals live"
    awk -v c="$cold_reads" -v w="$reads" -v a="$cold_rate" -v b="$rate" \
        'BEGIN { exit !(c > 0 && w < 0.8 * c && b > a) }' || fail 'it did not start warm'
    # Requests that come while it is being restored are served first; the counts stay exact.
    start_server "${arguments[@]}" --trace "$work/trace2" --set io.backend=sim --set io.sim_latency=3ms
    first_tokens >/dev/null
    stop_server
    "$bin/tier-replay" run "$work/trace2" --as-recorded >"$work/replay" 2>&1 ||
        fail "replay differs: $(cat "$work/replay")"
done

echo '== a killed server comes back with the set it saved last'
rm -f "$work/warm"
start_server --set "tiers.warm.path=$work/warm" --set tiers.warm.save_every=20ms
complete 'The kernel allocates' 60 '"temperature": 0' >/dev/null
for _ in $(seq 100); do
    [ ! -f "$work/warm" ] || break
    sleep 0.05
done
kill -KILL "$server"; wait "$server" 2>/dev/null || true
server=''
start_server --set "tiers.warm.path=$work/warm"
restored
stop_server

echo '== pinned keeps what was saved'
rm -f "$work/warm" "$work/trace"
pinned=(--set "tiers.warm.path=$work/warm" --set policy.eviction=pinned)
report_row() { "$bin/tier-stats" --csv --by report --url "$url" | grep ',policy.eviction,'; }
start_server "${pinned[@]}" --set tiers.dram.capacity=25%
report_row | grep -q ',degraded,.*,pinned_experts,0,' || fail "begun with nothing: $(report_row)"
complete 'In the beginning God created' 40 '"temperature": 0' >/dev/null
stop_server
# Room beside it for a step and for what a prompt may take.
start_server "${pinned[@]}" --set tiers.dram.capacity=60% --trace "$work/trace"
complete 'The kernel allocates' 40 '"temperature": 0' >/dev/null
report_row | grep -q ',active,.*,pinned_experts,96,' || fail "not the 96 that were saved: $(report_row)"
stop_server
"$bin/tier-replay" run "$work/trace" --as-recorded >"$work/replay" 2>&1 || fail "replay differs: $(cat "$work/replay")"

echo '== a damaged file means a cold start, with a sentence'
printf 'x' | dd of="$work/warm" bs=1 seek=70 conv=notrunc 2>/dev/null
start_server --set "tiers.warm.path=$work/warm"
grep -q 'started cold: .*checksum is wrong' "$work/server.log" || fail 'no sentence about the damaged file'
complete 'The' 2 >/dev/null
stop_server

echo '== a file that is something else stops the start and stays'
echo precious >"$work/notes"
"$bin/tier-server" --model "$model" --port 0 --set "tiers.nvme.index=$work/expertier.index" \
    --set "tiers.warm.path=$work/notes" >"$work/refused" 2>&1 &&
    fail 'it started'
grep -q "tiers.warm.path: $work/notes: .*should begin with EXPTWARM.* name another file" "$work/refused" ||
    fail "no sentence: $(cat "$work/refused")"
[ "$(cat "$work/notes")" = precious ] || fail 'the file was overwritten'
