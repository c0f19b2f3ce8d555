#!/usr/bin/env bash
# pebble live on a slow disk: prediction and governed prefetch are never slower than the better of lru and lfu without
#
# The three settings and lfu once more take turns over the same tokens; each round is compared with itself, and
# the median of the rounds counts. What lfu differs from lfu by is the noise, and is allowed.
set -eu
bin=$EXPERTIER_BUILD/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$EXPERTIER_SOURCE"
rounds=${1:-7}
bad=0

rate() { # SEED SETTING...
    local seed=$1 sets=() s; shift
    for s in "$@"; do sets+=(--set "$s"); done
    "$bin/tier-bench" decode --quiet --json --rounds 2 --tokens 64 --seed "$seed" --set tiers.dram.capacity=25% \
        --set "tiers.nvme.index=$work/index" "${sets[@]}" |
        sed 's/.*"tokens_per_second":\([0-9.]*\).*/\1/'
}

for speed in 30MB 90MB; do
    slow=io.throttle_bandwidth=$speed
    for seed in $(seq "$rounds"); do
        echo "$(rate "$seed" "$slow" policy.eviction=lru predictor.kind=none) $(rate "$seed" "$slow" policy.eviction=lfu predictor.kind=none)" \
            "$(rate "$seed" "$slow" policy.eviction=lru_with_prediction predictor.kind=blend)" \
            "$(rate "$seed" "$slow" policy.eviction=lfu predictor.kind=none)"
    done >"$work/rounds"
    awk -v speed="$speed" '
        function middle(a,  i, j, t) {
            for (i = 1; i <= NR; i++) for (j = i + 1; j <= NR; j++) if (a[j] < a[i]) { t = a[i]; a[i] = a[j]; a[j] = t }
            return a[int((NR + 1) / 2)] }
        { lru[NR] = $1; lfu[NR] = ($2 + $4) / 2; ours[NR] = $3; with[NR] = $3 / (lfu[NR] > $1 ? lfu[NR] : $1)
          noise[NR] = $2 > $4 ? $2 / $4 - 1 : $4 / $2 - 1 }
        END { w = middle(with); n = middle(noise)
              printf "%5s/s: lru %.2f tokens/s, lfu %.2f, with prediction %.2f: %.3f of the better (>= 0.99 wanted; lfu against itself differs by %.3f)\n",
                  speed, middle(lru), middle(lfu), middle(ours), w, n
              exit !(w >= 0.99 - n) }' "$work/rounds" || bad=1
done
exit "$bad"
