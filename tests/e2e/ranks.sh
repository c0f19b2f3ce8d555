#!/usr/bin/env bash
# Several ranks give the bits of one, whatever is shared and wherever experts lie; each rank's trace
# replays exactly; when a rank dies or hangs the others end, and say why.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

# shellcheck source=tests/support/rank_jobs.sh
. "$source_dir/tests/support/rank_jobs.sh"
bits=$EXPERTIER_BUILD/tests/support/rank_bits

# ---- the same bits ----

make_wide wide
make_wide wide-fp8
"$bin/tier-pack" quantize --quiet --to int8 --dense "$work/wide" "$work/wide-int8" >/dev/null
small='scheduler.max_model_len=128 scheduler.max_chunked_prefill_tokens=24'
models="$work/wide $work/wide-fp8 $work/wide-int8"
for name in v3-bf16 v3-fp8-yarn v3-fp8-plain-q v3-f16-tied v3-fp8-odd v3-f32 v2-greedy v2-groups; do
    models+=" $source_dir/tests/golden/$name"
done

# A rank's share of pebble's tiers holds less than a token may ask it for, and then some.
tight='tiers.hbm.capacity=40% tiers.dram.capacity=20% tiers.hbm.sim_bandwidth=0'
# shellcheck disable=SC2086
{
    "$bits" $small tiers.dram.capacity=70% $models >"$work/want"
    "$bits" $small tiers.dram.capacity=20% "$model" >"$work/want.pebble"
    [ "$(wc -l <"$work/want")" = 11 ] || fail 'not every model ran'
    for n in 2 4; do
        echo "== $n ranks"
        ranks $n "$bits" $small tiers.dram.capacity=100% $models >"$work/have" 2>"$work/err" ||
            fail "$n ranks: $(cat "$work/err")"
        diff "$work/want" "$work/have" || fail "$n ranks give other bits than one"
        RANK_BITS_NUMBERS=1 ranks $n "$bits" $small $tight "$model" >"$work/have" 2>"$work/err" ||
            fail "$n ranks: $(cat "$work/err")"
        diff "$work/want.pebble" "$work/have" || fail "$n ranks of pebble give other bits than one"
        [ "$(grep -c "experts of a layer $((64 / n)) of 64" "$work/err")" = "$n" ] ||
            fail "a rank does not hold 1/$n of the experts: $(cat "$work/err")"
    done
    echo '== activations in bf16'
    rounded="$work/wide $work/wide-fp8 $source_dir/tests/golden/v3-bf16 $source_dir/tests/golden/v3-fp8-yarn"
    "$bits" $small engine.activations=bf16 tiers.dram.capacity=100% $rounded >"$work/want.bf16"
    "$bits" $small engine.activations=bf16 tiers.dram.capacity=20% "$model" >>"$work/want.bf16"
    if grep -qxFf "$work/want" "$work/want.bf16"; then fail 'bf16 activations change nothing'; fi
    for n in 2 4; do
        RANK_BITS_NUMBERS=1 ranks $n "$bits" $small engine.activations=bf16 tiers.dram.capacity=100% \
            $rounded "$model" >"$work/have" 2>"$work/err" || fail "$n ranks in bf16: $(cat "$work/err")"
        diff "$work/want.bf16" "$work/have" || fail "$n ranks give other bits than one in bf16"
    done
    grep -q 'wide, .*all_to_all [1-9]' "$work/err" || fail "no sums by blocks: $(cat "$work/err")"
    echo '== beginnings that were computed before'
    RANK_BITS_TWICE=1 RANK_BITS_NUMBERS=1 ranks 2 "$bits" $small tiers.dram.capacity=100% kv.block_tokens=4 \
        scheduler.enable_prefix_caching=true $models >"$work/have" 2>"$work/err" || fail "$(cat "$work/err")"
    diff "$work/want" "$work/have" || fail 'what was there from before gives other bits'
    [ "$(grep -c 'rank 0: .* reused 72,' "$work/err")" = 11 ] || fail "tokens reused: $(cat "$work/err")"
    echo '== what is shared'
    for set in parallel.tensor=1 parallel.expert=1; do
        RANK_BITS_NUMBERS=1 ranks 2 "$bits" $small tiers.dram.capacity=100% $set "$work/wide" "$model" >"$work/have" \
            2>"$work/err" || fail "$set: $(cat "$work/err")"
        { grep '^wide ' "$work/want"; cat "$work/want.pebble"; } | diff - "$work/have" ||
            fail "$set gives other bits"
    done
    # Only the sums by blocks are left of what goes from all to all, and pebble's are too narrow.
    grep -q 'wide, .*all_to_all [1-9]' "$work/err" || fail "no sums by blocks: $(cat "$work/err")"
    grep -q 'pebble, .*all_to_all 0,' "$work/err" || fail "sums by blocks: $(cat "$work/err")"
}

# Experts that one rank cannot read end requests, the same ones on all ranks, and nothing else.
echo '== experts that cannot be read'
# shellcheck disable=SC2086
ranks 2 "$bits" $small tiers.dram.capacity=40% io.faults=seed=3,eio=0.3 "$model" >"$work/have" \
    2>"$work/err" || fail "a job ends because of an expert: $(cat "$work/err")"
grep -q 'expert given up' "$work/err" || fail 'no expert was given up'
[ "$(awk '{ print $3 + $5 + $7 }' "$work/have")" -lt 80 ] || fail "no request failed: $(cat "$work/have")"

echo '== experts that one rank alone cannot read, where each has all of them'
cp -a "$model" "$work/pebble"
"$bin/tier-run" --model "$work/pebble" --prompt x --max-tokens 1 >/dev/null 2>"$work/err" || fail "$(cat "$work/err")"
for victim in 0 1; do
    make_damaged "$work/pebble" 3
    code=0
    ranks 2 bash "$work/each" "$bin/tier-run" --prompt 'The kernel' --max-tokens 20 --set parallel.expert=1 --model \
        >"$work/have" 2>"$work/err" || code=$?
    [ "$code" != 0 ] || fail "rank $victim lacks experts, and the answer is: $(cat "$work/have")"
    grep -q "rank $victim: requests end: expert" "$work/err" || fail "rank $victim does not say why: $(cat "$work/err")"
    if [ $victim = 1 ]; then
        grep -q 'needs an expert that rank 1 could not read' "$work/err" || fail "no reason: $(cat "$work/err")"
    fi
    # The same requests on both ranks, or one would wait for the other.
    # shellcheck disable=SC2086
    ranks 2 bash "$work/each" "$bits" $small tiers.dram.capacity=100% parallel.expert=1 >"$work/have" 2>"$work/err" ||
        fail "a job ends because of an expert: $(cat "$work/err")"
done

# ---- where experts lie; traces ----

echo '== placement by load, replicas, traces'
prompt='The kernel is the part of the system that'
run() { "$bin/tier-run" --model "$model" --prompt "$prompt" --max-tokens 40 "$@"; }
run --set tiers.dram.capacity=30% --trace "$work/one.trace" >"$work/text" 2>"$work/err" ||
    fail "tier-run: $(cat "$work/err")"
# shellcheck disable=SC2086
for set in '' 'ranks.replicas=6'; do
    ranks 2 "$bits" $small $tight "ranks.placement=file:$work/one.trace" $set "$model" \
        >"$work/have" 2>"$work/err" || fail "placement by load: $(cat "$work/err")"
    diff "$work/want.pebble" "$work/have" || fail "placement by load, $set: other bits"
done
ranks 2 "$bin/tier-run" --model "$model" --prompt "$prompt" --max-tokens 40 \
    --set tiers.dram.capacity=40% --set predictor.kind=blend --set ranks.replicas=4 \
    --set "ranks.placement=file:$work/one.trace" --trace "$work/two.trace" \
    >"$work/have" 2>"$work/err" || fail "tier-run: $(cat "$work/err")"
diff "$work/text" "$work/have" || fail 'two ranks of tier-run write another text'
for r in 0 1; do
    "$bin/tier-replay" run "$work/two.trace.rank$r" --as-recorded >"$work/out" 2>&1 ||
        fail "the trace of rank $r does not replay exactly: $(cat "$work/out")"
done

# ---- refusals ----

refuse() { # SAYS COMMAND...
    local says=$1; shift
    if "$@" >"$work/out" 2>&1 </dev/null; then fail "not refused: $*"; fi
    grep -qF -- "$says" "$work/out" || fail "no '$says' in: $(cat "$work/out")"
}
refuse 'start it with mpirun -n 2' run --set parallel.tensor=2
refuse 'it can be 1 or 2' ranks 2 "$bin/tier-run" --model "$model" --prompt x --set parallel.expert=4
refuse 'would all do the same' ranks 2 "$bin/tier-run" --model "$model" --prompt x \
    --set parallel.expert=1 --set parallel.tensor=1
refuse 'ranks.replicas: 3 cannot take effect' run --set ranks.replicas=3

# Another revision at the same path of another machine, one part at a time. PART COMMAND: $1 is the folder.
differs() {
    rm -rf "$work/of0" "$work/of1"
    mkdir "$work/of0" "$work/of1"
    cp -a "$work/pebble" "$work/of0"
    cp -a "$work/pebble" "$work/of1"
    bash -c "$2" - "$work/of1/pebble"
    refuse "rank 1 was started with another $1 than rank 0" ranks 2 bash "$work/each" "$bin/tier-run" --prompt x --model
}
# shellcheck disable=SC2016
differs 'config.json of the model' 'sed -i s/10000.0/20000.0/ "$1/config.json"'
differs tokenizer "sed -i '4211{h;d};4212G' \"\$1/tokenizer.json\"" # two merges in another order
# Embeddings come right behind the first shard's header; half way through it lie experts.
set_at() { echo "echo 12345 | dd of=\"\$1/$shard\" bs=1 seek=$1 conv=notrunc status=none; rm \"\$1/expertier.index\""; }
shard='model-00001-of-00003.safetensors'
differs "revision of the model's dense weights" "$(set_at $((8 + $(od -An -tu8 -N8 "$model/$shard"))))"
differs "revision of the model's experts" "$(set_at $(($(stat -c %s "$model/$shard") / 2)))"
# Another build, which has another version in its place.
version=$("$bin/tier-run" --version | awk '{ print $3 }')
other=${version%?}x
LC_ALL=C sed "s/$version/$other/g" "$bin/tier-run" >"$work/of1/tier-run"
cp "$bin/tier-run" "$work/of0/tier-run"
chmod +x "$work/of0/tier-run" "$work/of1/tier-run"
[ "$("$work/of1/tier-run" --version | awk '{ print $3 }')" = "$other" ] || fail 'no build of another version'
refuse "rank 1 was started with another version of Expertier than rank 0" ranks 2 bash -c \
    "exec \"$work/of\$OMPI_COMM_WORLD_RANK/tier-run\" --model \"$model\" --prompt x"

# ---- a server, and the end of a rank ----

start_server
want=$(complete "$prompt" 24 '"temperature": 0' | answer)
[ -n "$want" ] || fail 'one rank gives no text'
curl -sS "$url/metrics" >"$work/metrics"
asked=$(sed -n 's/^expertier_tier_lookups_total{tier="dram"} //p' "$work/metrics")
[ "${asked:-0}" -gt 0 ] || fail 'one rank asked for no expert'
if grep -q 'rank=' "$work/metrics"; then fail 'one rank has the label of several'; fi
stop_server

echo '== a server of two ranks'
start_ranks
have=$(complete "$prompt" 24 '"temperature": 0' | answer)
[ "$have" = "$want" ] || fail "two ranks answer '$have', one '$want'"
# Rank 1 tells rank 0 within a second or two; each asks its tiers for the experts that it holds.
sample() { sed -n "s/^expertier_$1 //p" "$work/metrics"; }
for _ in $(seq 100); do
    curl -sS "$url/metrics" >"$work/metrics"
    first=$(sample 'tier_lookups_total{tier="dram",rank="0"}') second=$(sample 'tier_lookups_total{tier="dram",rank="1"}')
    [ "$((${first:-0} + ${second:-0}))" != "$asked" ] || break
    sleep 0.1
done
echo "rank 0 asked for ${first:-nothing}, rank 1 for ${second:-nothing}, one rank alone for $asked"
[ "${first:-0}" -gt 0 ] && [ "${second:-0}" -gt 0 ] && [ $((first + second)) = "$asked" ] || fail 'experts of rank 1 are missing in /metrics'
for r in 0 1; do
    for name in "rank_seconds{kind=\"all_gather\",rank=\"$r\"}" "rank_compute_seconds{rank=\"$r\"}" \
        "rank_collective_seconds{rank=\"$r\"}" "rank_collective_ratio{rank=\"$r\"}" "memory_resident_bytes{rank=\"$r\"}" \
        "memory_bytes{tag=\"dense\",state=\"used\",rank=\"$r\"}" "io_demand_reads_total{rank=\"$r\"}"; do
        sample "$name" | grep -q '[1-9]' || fail "no $name: $(grep 'rank="' "$work/metrics" | head -n 40)"
    done
done
grep -q '^expertier_engine_collective_seconds [0-9.e-]*[1-9]' "$work/metrics" || fail 'no collective_seconds'
kill -TERM "$(rank_pid 0)"      # in order: rank 0 tells the others
code=0
wait "$server" || code=$?
server=''
[ "$code" = 0 ] || fail "two ranks ended with $code after SIGTERM to rank 0"

echo '== a rank is killed while it serves'
start_ranks
complete "$prompt" 2000 '"ignore_eos": true' >/dev/null 2>&1 &
client=$!
sleep 0.5
since=$(now_ms)
kill -KILL "$(rank_pid 1)"
ended_within 10 "$since"
grep -q 'rank 1 with PID .*exited on signal 9' "$work/server.log" || fail 'nobody says which rank died'
wait $client || true

echo '== a rank hangs while it serves, and while nothing happens'
for busy in 1 0; do
    start_ranks --set ranks.timeout=3s
    if [ $busy = 1 ]; then complete "$prompt" 2000 '"ignore_eos": true' >/dev/null 2>&1 & client=$!; sleep 0.5; fi
    since=$(now_ms)
    stopped=$(rank_pid $busy)
    kill -STOP "$stopped"
    ended_within 10 "$since"
    grep -q "was not joined by every rank within 3.* rank $busy (process .*) is stopped" "$work/server.log" ||
        fail "nobody says that rank $busy hangs"
    if [ $busy = 1 ]; then wait $client || true; fi
done

echo '== a rank hangs while the job ends'
start_ranks --set ranks.timeout=3s
since=$(now_ms)
stopped=$(rank_pid 1)
kill -STOP "$stopped"
kill -TERM "$(rank_pid 0)"
who="rank 1 (process $stopped on"
ended_within 10 "$since"
grep -q "rank 0 of 2: the end was not joined by every rank within 3.*; $who .*) is stopped" \
    "$work/server.log" || fail "nobody says that rank 1 hangs: $(cat "$work/server.log")"
