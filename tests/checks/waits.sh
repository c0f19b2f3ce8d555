#!/usr/bin/env bash
# compute by operation + waits by cause = time of the steps within 2%, in every benchmark of the engine
set -euo pipefail
bin=$EXPERTIER_BUILD/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$EXPERTIER_SOURCE"
model=${1:-models/pebble}
bad=0
bench() { # WHAT SETTING...
    local what=$1 sets=(); shift
    for s in "$@"; do sets+=(--set "$s"); done
    "$bin/tier-bench" "$what" --json --quiet --rounds 3 --model "$model" --set "tiers.nvme.index=$work/index" \
        "${sets[@]}" >"$work/out"
    sed -E 's/.*"accounted":([0-9.]+).*/\1/' "$work/out" | awk -v what="$what, $*" '{
        printf "%-70s %.2f%% of the time of the steps is known (98 to 102 wanted)\n", what, 100 * $1
        exit !($1 >= 0.98 && $1 <= 1.02) }' || bad=1
}
for capacity in 100% 25% 15%; do
    for what in decode prefill; do
        bench "$what" "tiers.dram.capacity=$capacity"
    done
done
bench decode tiers.dram.capacity=25% predictor.kind=blend
bench decode tiers.hbm.capacity=20% tiers.dram.capacity=40%
bench decode tiers.dram.capacity=25% io.throttle_bandwidth=30MB

# What it costs: runs without, with, and without again, in turn.
rate() { # [argument...]
    "$bin/tier-run" --model "$model" --set "tiers.nvme.index=$work/index" --set tiers.dram.capacity=100% \
        --prompt 'The kernel is the part' --max-tokens 400 "$@" 2>&1 >/dev/null |
        sed -nE 's/.* tokens, ([0-9.]+) tokens\/s.*/\1/p'
}
for _ in 1 2 3 4 5; do echo "$(rate) $(rate --profile "$work/p.json") $(rate)"; done >"$work/rates"
awk '{ off[NR] = ($1 + $3) / 2; on[NR] = $2 / off[NR]; same[NR] = $1 / $3 }
    function middle(a, n,  i, j, t) { for (i = 1; i <= n; i++) for (j = i + 1; j <= n; j++) if (a[j] < a[i]) { t = a[i]; a[i] = a[j]; a[j] = t } return a[int((n + 1) / 2)] }
    END { printf "with --profile %.3f of the tokens/s without (medians of %d); twice without: %.3f\n", middle(on, NR), NR, middle(same, NR) }' "$work/rates"
exit "$bad"
