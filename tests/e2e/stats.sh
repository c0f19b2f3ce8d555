#!/usr/bin/env bash
# tier-stats: every view readable, as CSV and as JSON, orders of experts, rates while it watches; the
# numbers of a view add up to those of another.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

stats() { "$bin/tier-stats" --url "$url" "$@"; }
# The column of that name in the CSV on stdin, without its head.
column() { awk -F, -v name="$1" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) at = i; if (!at) exit 1; next } { print $at }'; }
sum() { awk '{ s += $1 } END { printf "%.0f\n", s }'; }

start_server --set tiers.hbm.capacity=15% --set tiers.dram.capacity=25% --set tiers.warm_experts=compute
for prompt in 'In the beginning God created' '#include <stdio.h>' 'The kernel is'; do
    complete "$prompt" 40 '"temperature": 0, "ignore_eos": true' | grep -q '"text"' || fail "$prompt"
done

echo '== every view, three ways'
for by in phase tier layer expert wait lookup overlap report; do
    stats --once --by "$by" >"$work/$by.txt" || fail "--by $by"
    grep -q '^requests: ' "$work/$by.txt" || fail "--by $by: $(cat "$work/$by.txt")"
    limit=()
    [ "$by" != expert ] || limit=(--limit 0)
    stats --csv --by "$by" "${limit[@]}" >"$work/$by.csv" || fail "--csv --by $by"
    grep -q '^time_seconds,' "$work/$by.csv" || fail "--csv --by $by: $(head -n 2 "$work/$by.csv")"
    [ "$by" = report ] || awk -F, 'NR == 1 { n = NF } NF != n { exit 1 }' "$work/$by.csv" || fail "--csv --by $by: uneven rows"
    stats --json --by "$by" | grep -q '"wait_latency":{"demand_read":{"count":' || fail "--json --by $by"
done
cat "$work/tier.txt" "$work/wait.txt"
stats --csv --by tier | column time_seconds | awk -v now="$(date +%s)" '{ n++; if ($1 < now - 60 || $1 > now + 60) exit 1 } END { exit !n }' ||
    fail "the time is not Unix time: $(cat "$work/tier.csv")"
[ "$(column lookups <"$work/layer.csv" | sum)" = "$(column lookups <"$work/tier.csv" | head -n 1)" ] ||
    fail "layers do not add up to the tier: $(cat "$work/layer.csv" "$work/tier.csv")"
[ "$(column lookups <"$work/expert.csv" | sum)" = "$(column lookups <"$work/layer.csv" | sum)" ] || fail 'experts do not add up to layers'
[ "$(column misses <"$work/expert.csv" | sum)" = "$(column misses <"$work/tier.csv" | sed -n 2p)" ] ||
    fail "the experts' misses are not dram's: $(cat "$work/tier.csv")"
[ "$(column loads <"$work/expert.csv" | sum)" = "$(column loads <"$work/layer.csv" | sum)" ] || fail 'loads do not add up'
[ "$(column in_place <"$work/tier.csv" | sum)" -gt 0 ] || fail 'nothing was computed in place'
paste -d ' ' <(column load_seconds_p50 <"$work/layer.csv") <(column load_seconds_p99 <"$work/layer.csv") \
    <(column load_seconds_max <"$work/layer.csv") | awk '!($1 > 0 && $1 <= $2 && $2 <= $3 * 1.0001) { print; exit 1 }' ||
    fail 'percentiles of loads are out of order'
paste -d ' ' <(column load_seconds_min <"$work/expert.csv") <(column load_seconds_mean <"$work/expert.csv") \
    <(column load_seconds_max <"$work/expert.csv") <(column loads <"$work/expert.csv") |
    awk '$4 > 0 { n++; if (!($1 <= $2 * 1.0001 + 1e-6 && $2 <= $3 * 1.0001 + 1e-6)) { print; exit 1 } } END { exit !n }' ||
    fail 'shortest, mean and longest loads of experts are out of order'
[ "$(column count <"$work/wait.csv" | sum)" -gt 0 ] || fail 'no wait was counted'
[ "$(column lookups <"$work/lookup.csv" | sum)" = "$(column lookups <"$work/tier.csv" | head -n 1)" ] ||
    fail "where lookups were found does not add up: $(cat "$work/lookup.csv" "$work/tier.csv")"
column count <"$work/lookup.csv" | awk '$1 > 0 { n++ } END { exit n != 3 }' || fail "not all tiers are timed: $(cat "$work/lookup.csv")"
# A hit is no more than a look into a table. Of dram and nvme a busy machine says who is slower (only those few are timed that
# are on their way down or up): check_lookups knows it, on a clock of its own.
column p50_seconds <"$work/lookup.csv" | awk '{ t[NR] = $1 } END { exit !(t[1] < t[3]) }' ||
    fail "a hit takes as long as a read: $(cat "$work/lookup.csv")"
for tier in 1 2 3; do
    for name in p50_seconds p90_seconds p99_seconds max_seconds; do column $name <"$work/lookup.csv" | sed -n ${tier}p; done |
        awk '!($1 >= 0 && $1 >= last && $1 < 60) { exit 1 } { last = $1 * 0.9999 }' || fail "lookups take that long: $(cat "$work/lookup.csv")"
done
paste -d ' ' <(column busy_seconds <"$work/overlap.csv") <(column overlap <"$work/overlap.csv") |
    awk '{ t[NR] = $1; if ($2 < 0 || $2 > 1) exit 1 } END { exit !(t[3] >= t[1] && t[3] >= t[2] && t[1] > 0 && t[2] > 0) }' ||
    fail "times under way: $(cat "$work/overlap.csv")"
curl -sS "$url/metrics" >"$work/metrics"
for name in 'lookup_latency_seconds_count{tier="nvme"}' 'lookup_latency_seconds_count{tier="dram"}' \
    'wait_latency_seconds_count{cause="demand_read"}' 'io_transfer_busy_seconds'; do
    awk -v name="expertier_$name" 'index($0, name " ") == 1 && $2 > 0 { n++ } END { exit !n }' "$work/metrics" || fail "no $name in /metrics"
done
# Of a busy machine the waits may be longer than what they wait for.
awk '/^expertier_io_wait_[a-z]*_seconds / { waited += $2; causes++ }
    $1 == "expertier_io_transfer_busy_seconds" { busy = $2 } $1 == "expertier_io_overlap_ratio" { ratio = $2; ratios++ }
    END { want = waited < busy ? 1 - waited / busy : 0; exit !(causes == 4 && ratios == 1 && (ratio - want) ^ 2 < 1e-12) }' "$work/metrics" ||
    fail "io_overlap_ratio is not the share that nobody waited for: $(grep '^expertier_io_' "$work/metrics")"
grep -Eq '^[0-9.]+,active,tiers.warm_experts,compute,in_place,[1-9]' "$work/report.csv" || fail "report: $(cat "$work/report.csv")"

echo '== experts in an order'
sorted() { column "$1" | sort -c "$2" || fail "not in the order of $1"; }
stats --top 12 --csv | sorted lookups -nr
stats --top 12 --order cold --csv | sorted lookups -n
stats --top 12 --order missed --csv | sorted misses -nr
stats --top 12 --order slow --csv | column load_seconds_p50 | sort -gr -c || fail 'not in the order of p50'
[ "$(stats --top 5 --csv | wc -l)" = 6 ] || fail '--top 5 does not list 5'

echo '== rates while it watches'
(for _ in 1 2 3 4 5 6; do complete 'And the evening' 30 '"ignore_eos": true' >/dev/null; done) & load=$!
stats --watch --by tier --csv --interval 150ms --count 4 >"$work/watch.csv"
wait "$load"
[ "$(wc -l <"$work/watch.csv")" = 9 ] || fail "4 pictures of 2 tiers: $(cat "$work/watch.csv")"
column lookups_per_second <"$work/watch.csv" | awk 'NR <= 2 && $1 != "" { exit 1 } $1 > 0 { n++ } END { exit !n }' ||
    fail "no rates: $(cat "$work/watch.csv")"
stats --watch --interval 50ms --count 2 | grep -q 'generated tok/s' || fail 'no tokens a second'

echo '== misuse says what would be right'
refused() { local code=0; stats "$@" >"$work/out" 2>"$work/err" || code=$?; [ "$code" = 2 ] || fail "$*: exit code $code"; cat "$work/err"; }
refused --by rows
refused --order fast --by expert
refused --top 3 --by layer
refused --limit 24 --by layer
refused --limit 0
refused --limit 5 --top 3
refused --json --csv
refused --once --watch
refused --count 2
stats --help | grep -q 'missed' || fail 'no help on orders'
stop_server

echo '== too few KV blocks are told'
start_server --set kv.capacity=320KiB --set kv.block_tokens=16
pids=''
for prompt in 'In the beginning God created' '#include <stdio.h>' 'The kernel is'; do
    complete "$prompt" 80 '"temperature": 0, "ignore_eos": true' >/dev/null & pids+=" $!"
done
# shellcheck disable=SC2086
wait $pids
stats --once >"$work/once"
grep -E '^requests: .* 3 finished, .*, [1-9][0-9]* times one lost its KV blocks$' "$work/once" || fail "$(cat "$work/once")"
stop_server
