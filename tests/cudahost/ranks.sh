#!/usr/bin/env bash
# Several ranks, each with an emulated card and a share of the model, give the bits of one rank with a
# card; a call that fails on one rank ends the same requests on all, and the next ones are answered; a
# card that is lost, and a rank that is killed, end the job with the reason. All of it both ways in which
# cards exchange: through the hosts (ranks.comm: mpi), and on their streams (nccl, a stand-in of it).
#   ranks.sh [long]
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"
# shellcheck source=tests/support/rank_jobs.sh
. "$source_dir/tests/support/rank_jobs.sh"
long=${1:-}
bits=$EXPERTIER_BUILD/tests/cudahost/rank_bits-emulated
# Ranks that die leave theirs.
export TMPDIR=$work
export CUDAHOST_DEVICES=4 CUDAHOST_MEMORY=64
card='tiers.hbm.device=cuda engine.threads=1 scheduler.max_model_len=128 scheduler.max_chunked_prefill_tokens=24'
tight='tiers.hbm.capacity=100% tiers.dram.capacity=50% tiers.inclusion=exclusive'
if [ -z "$long" ]; then export RANK_BITS_SHORT=1; fi

# COUNT PROGRAM...: $fail is what goes wrong on $victim alone.
cat >"$work/rank" <<'END'
#!/usr/bin/env bash
if [ -n "${fail:-}" ] && [ "$OMPI_COMM_WORLD_RANK" = "$victim" ]; then export CUDAHOST_FAIL=$fail; fi
if [ -n "${refuse:-}" ] && [ "$OMPI_COMM_WORLD_RANK" = "$victim" ]; then export NCCL_STUB_FAIL=$refuse; fi
export CUDAHOST_SEED=$((${seed:-1} * 8 + OMPI_COMM_WORLD_RANK))
exec "$@"
END
card_ranks() { local n=$1; shift; ranks "$n" bash "$work/rank" "$bits" "$@"; }

echo '== the same bits'
make_wide wide
make_wide wide-fp8
models=$work/wide-fp8
if [ -n "$long" ]; then models+=" $work/wide"; fi
# shellcheck disable=SC2086
{
    "$bits" $card tiers.hbm.capacity=100% tiers.dram.capacity=100% $models >"$work/want" 2>"$work/err" ||
        fail "one rank: $(cat "$work/err")"
    for by in mpi nccl; do
        for n in 2 4; do
            RANK_BITS_NUMBERS=1 card_ranks $n $card ranks.comm=$by tiers.hbm.capacity=100% tiers.dram.capacity=100% $models \
                >"$work/have" 2>"$work/err" || fail "$n ranks, $by: $(cat "$work/err")"
            diff "$work/want" "$work/have" || fail "$n ranks over $by give other bits than one"
            [ "$(grep -c "wide-fp8, experts of a layer $((12 / n)) of 12" "$work/err")" = "$n" ] ||
                fail "a rank does not hold 1/$n of the experts: $(cat "$work/err")"
            # One all-to-all for each group of rows of a moe layer.
            grep -q 'rank 1: wide-fp8.* all_to_all [1-9]' "$work/err" || fail "nothing was exchanged: $(cat "$work/err")"
            echo "$n ranks over $by: $(wc -l <"$work/want") models, the bits of one"
        done
        # Experts alone, or everything else alone; in dram half of a rank's.
        for set in parallel.tensor=1 parallel.expert=1; do
            card_ranks 2 $card ranks.comm=$by $tight $set "$work/wide-fp8" >"$work/have" 2>"$work/err" ||
                fail "$by, $set: $(cat "$work/err")"
            head -n 1 "$work/want" | diff - "$work/have" || fail "$set over $by gives other bits"
        done
    done
}
if [ -n "$long" ]; then
    # Too few heads, or scales, to be cut: their experts alone.
    models=''
    for name in v3-bf16 v3-fp8-yarn v3-fp8-plain-q v3-f16-tied v3-f32 v2-greedy v2-groups; do
        models+=" $source_dir/tests/golden/$name"
    done
    # shellcheck disable=SC2086
    {
        "$bits" $card tiers.hbm.capacity=100% tiers.dram.capacity=100% $models >"$work/golden" 2>"$work/err" ||
            fail "one rank: $(cat "$work/err")"
        for n in 2 4; do
            for by in mpi nccl; do
                card_ranks $n $card ranks.comm=$by parallel.tensor=1 tiers.hbm.capacity=100% tiers.dram.capacity=100% \
                    $models >"$work/have" 2>"$work/err" || fail "$n ranks, $by: $(cat "$work/err")"
                diff "$work/golden" "$work/have" || fail "$n ranks over $by give other bits than one"
            done
        done
    }
    pebble="$card scheduler.max_num_seqs=4"
    # shellcheck disable=SC2086
    {
        "$bits" $pebble tiers.hbm.capacity=25% tiers.dram.capacity=50% "$model" >"$work/want.pebble" 2>"$work/err" ||
            fail "pebble: $(cat "$work/err")"
        for n in 2 4; do
            share=''
            if [ $n = 4 ]; then share=parallel.tensor=1; fi # four heads: one a rank
            for by in mpi nccl; do
                card_ranks $n $pebble ranks.comm=$by $share tiers.hbm.capacity=40% tiers.dram.capacity=40% "$model" \
                    >"$work/have" 2>"$work/err" || fail "pebble on $n ranks, $by: $(cat "$work/err")"
                diff "$work/want.pebble" "$work/have" || fail "$n ranks of pebble over $by give other bits than one"
            done
        done
    }
fi

echo '== a call that fails on one rank'
# HOW:RANK:CUDA's numbers: 1 an invalid value, 2 no memory.
fails='mpi:0:1@kernel:30 mpi:1:2@copy:75 nccl:1:1@kernel:30 nccl:0:2@copy:20'
if [ -n "$long" ]; then
    for at in $(seq 1 37 900); do
        for by in mpi nccl; do fails+=" $by:$((at % 2)):1@kernel:$at $by:$(((at + 1) % 2)):2@copy:$at"; done
    done
fi
model=$work/wide-fp8
ended=0 late=0
# shellcheck disable=SC2086
RANK_BITS_SHORT=1 "$bits" $card tiers.hbm.capacity=100% tiers.dram.capacity=100% "$model" >"$work/next" 2>"$work/err" ||
    fail "one rank: $(cat "$work/err")"
for each in $fails; do
    by=${each%%:*} fail=${each#*:}
    victim=${fail%%:*} fail=${fail#*:}
    export victim fail
    # shellcheck disable=SC2086
    RANK_BITS_SHORT=1 RANK_BITS_TWICE=1 timeout 120 bash "$source_dir/tests/support/ranks.sh" 2 bash "$work/rank" "$bits" \
        $card ranks.comm=$by tiers.hbm.capacity=100% tiers.dram.capacity=100% "$model" >"$work/have" 2>"$work/err" ||
        fail "$by, rank $victim, $fail: $(cat "$work/err")"
    # Over nccl there are fewer copies: so late a one may be among the next answers'.
    grep -q '^  failed the second time: .*device cuda: rank' "$work/err" && [ -n "$long" ] && late=$((late + 1)) ||
        diff "$work/next" "$work/have" || fail "$by, rank $victim, $fail: the next answers have other bits"
    grep -q "failed: .*device cuda: rank $victim: .* failed in this step" "$work/err" && ended=$((ended + 1))
    unset victim fail
done
[ $ended = "$(echo "$fails" | wc -w)" ] || [ -n "$long" ] || fail "no request says which rank failed: $(cat "$work/err")"
echo "$(echo "$fails" | wc -w) jobs, in each a call failed on one rank: the next requests were answered ($late: it was among those)"

# A job over the stand-in of NCCL: its bits in have, what it was told in err.
short_nccl() {
    # shellcheck disable=SC2086
    RANK_BITS_SHORT=1 timeout 60 bash "$source_dir/tests/support/ranks.sh" 2 bash "$work/rank" "$bits" $card \
        ranks.comm=nccl tiers.hbm.capacity=100% tiers.dram.capacity=100% "$model" >"$work/have" 2>"$work/err"
}

echo '== what NCCL itself refuses, or loses'
# ncclResult_t: 2 a system error, 6 a remote one.
for each in 'call:2@30 all_gather .* failed, and this rank ends: NCCL: unhandled system error' \
    "async:6@40 on the card's stream, .*NCCL: remote process exited"; do
    victim=1 refuse=${each%% *}
    export victim refuse
    since=$(now_ms)
    short_nccl && fail "$refuse: the job went on"
    grep "rank 1 of 2: .*${each#* }" "$work/err" || fail "$refuse: $(cat "$work/err")"
    [ $(($(now_ms) - since)) -le 10000 ] || fail "$refuse: the job took more than 10 s to end"
    unset victim refuse
done

echo '== what would be noticed'
line_of() { grep -nF "$1" "$source_dir/src/device/device_cuda.c" | cut -d: -f1; }
noticed() { # WHAT
    for seed in 1 2 3; do
        export seed
        if ! short_nccl; then
            echo "$1: noticed, $(grep -oE 'rank [0-9] (sends|has).*|the gate.* failed.*|.*Assertion.*|Signal: .*' "$work/err" | head -n 1)"
        elif ! diff -q "$work/next" "$work/have" >/dev/null; then
            echo "$1: other bits"
        else
            continue
        fi
        unset seed
        return
    done
    fail "$1: nothing changes"
}
export NCCL_STUB_STREAM=side
noticed 'collectives on another stream'
unset NCCL_STUB_STREAM
for what in 'cudaEventRecord(c->note' 'return cudaEventQuery(event)'; do
    CUDAHOST_MUTE=device_cuda.c:$(line_of "$what")
    export CUDAHOST_MUTE
    noticed "without $what"
    unset CUDAHOST_MUTE
done

echo '== experts that cannot be read'
# shellcheck disable=SC2086
RANK_BITS_TWICE=1 card_ranks 2 $card tiers.hbm.capacity=100% tiers.dram.capacity=100% io.faults=seed=3,eio=0.3 "$model" \
    >"$work/have" 2>"$work/err" || fail "a job ends because of an expert: $(cat "$work/err")"
grep 'failed: .*which rank [01] could not read' "$work/err" | head -n 1 | grep . || fail "no request failed: $(cat "$work/err")"

echo '== experts that one rank alone cannot read, where each has all of them'
for victim in 0 1; do
    make_damaged "$model" 3
    for by in mpi nccl; do
        # shellcheck disable=SC2086
        RANK_BITS_SHORT=1 RANK_BITS_TWICE=1 ranks 2 bash "$work/each" "$bits" $card ranks.comm=$by tiers.hbm.capacity=100% \
            tiers.dram.capacity=100% parallel.expert=1 >"$work/have" 2>"$work/err" ||
            fail "$by: a job ends because of an expert: $(cat "$work/err")"
        [ "$(grep -c 'failed.*could not be read\|failed.*rank 1 could not read' "$work/err")" = 6 ] ||
            fail "$by, rank $victim lacks experts, and there are answers: $(cat "$work/have" "$work/err")"
    done
done

echo '== what ranks with cards cannot have'
refuse() { # SAYS SETTING...
    local says=$1; shift
    # shellcheck disable=SC2086
    if card_ranks 2 $card tiers.hbm.capacity=100% tiers.dram.capacity=100% "$@" "$model" >"$work/out" 2>&1; then
        fail "not refused: $*"
    fi
    grep -qF -- "$says" "$work/out" || fail "no '$says' in: $(cat "$work/out")"
}
refuse 'take parallel.tensor: 1' "$source_dir/tests/golden/v3-bf16"
CUDAHOST_DEVICES=1 refuse 'ranks 0 and 1 have the same card'
"$bin/tier-server" --check-config --set ranks.comm=nccl >"$work/out" 2>&1 && fail 'nccl without cards is not refused'
grep -q 'which takes tiers.hbm.device: cuda; take mpi' "$work/out" || fail "nccl without cards: $(cat "$work/out")"

echo '== a card that is lost'
program=$work/server
cat >"$program" <<END
#!/usr/bin/env bash
exec bash "$work/rank" "$EXPERTIER_BUILD/tests/cudahost/tier-server-emulated" "\$@"
END
chmod +x "$program"
serve() { # [setting...]
    local sets=() set
    for set in $card tiers.hbm.capacity=100% tiers.dram.capacity=100% "$@"; do sets+=(--set "$set"); done
    start_ranks "${sets[@]}"
}
victims='mpi:1 nccl:1'
if [ -n "$long" ]; then victims='mpi:1 nccl:1 mpi:0 nccl:0'; fi
for each in $victims; do
    victim=${each#*:}
    export victim fail=700@kernel:400 # an illegal address
    rm -f "$work"/warm*
    serve "ranks.comm=${each%:*}" "tiers.warm.path=$work/warm"
    complete 'The kernel' 100 '"ignore_eos": true' >"$work/lost"
    since=$(now_ms)
    ended_within 10 "$since"
    grep -q 'the CUDA device cannot go on: .*cudaError' "$work/lost" || fail "the client was not told: $(cat "$work/lost")"
    grep -q "rank $victim: the CUDA device" "$work/lost" || fail "not which rank: $(cat "$work/lost")"
    [ "$(find "$work" -name 'warm.rank*' | wc -l)" = 2 ] || fail "not every rank saved its warm set: $(ls "$work")"
    unset victim fail
done

for by in mpi nccl; do
    echo "== a rank is killed while it serves ($by)"
    serve ranks.comm=$by
    complete 'The kernel' 100 '"ignore_eos": true' >/dev/null 2>&1 & client=$!
    sleep 0.5
    since=$(now_ms)
    kill -KILL "$(rank_pid 1)"
    ended_within 10 "$since"
    grep -q 'rank 1 with PID .*exited on signal 9' "$work/server.log" || fail 'nobody says which rank died'
    wait $client || true
done

echo '== a rank hangs while the others wait for their streams'
serve ranks.comm=nccl ranks.timeout=2s
complete 'The kernel' 100 '"ignore_eos": true' >/dev/null 2>&1 & client=$!
sleep 0.5
since=$(now_ms)
stopped=$(rank_pid 1)
kill -STOP "$stopped"
who="rank 1 (process $stopped on"
ended_within 10 "$since"
grep -q "rank 0 of 2: .* was not joined by every rank .*; $who .*) is stopped" "$work/server.log" ||
    fail "nobody says which rank hangs: $(cat "$work/server.log")"
wait $client || true
