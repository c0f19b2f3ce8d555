#!/usr/bin/env bash
# The engine on a card: greedy answers of models/pebble are the CPU's, in tiers that are too small;
# then what a token costs. The last line is the summary.
#
#   tests/gpu/product.sh BUILD      a build folder made with -Dcuda=enabled
set -euo pipefail
bin=$(cd "${1:?usage: product.sh BUILD}" && pwd)/bin
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/card.yaml" <<YAML
tiers:
  hbm:
    device: cuda
    capacity: 25%
  dram:
    capacity: 50%
  nvme:
    index: $work/experts.index
YAML
answer() { # PROMPT NAME OPTION...
    local prompt=$1 name=$2
    shift 2
    timeout 30 "$bin/tier-run" --model models/pebble --prompt "$prompt" --max-tokens 40 "$@" \
        >"$work/$name" 2>"$work/$name.err" || { cat "$work/$name.err"; echo "$name: failed"; exit 1; }
}
same=0 all=0
for prompt in 'In the beginning God created' '#include <' 'The LORD said unto' 'int main(' 'mount -t'; do
    answer "$prompt" cpu --set "tiers.nvme.index=$work/experts.index"
    answer "$prompt" card --config "$work/card.yaml"
    answer "$prompt" tight --config "$work/card.yaml" --set tiers.hbm.capacity=10% \
        --set scheduler.max_chunked_prefill_tokens=3
    cmp -s "$work/card" "$work/tight" ||
        { echo "'$prompt': other tokens with a smaller cache"; exit 1; }
    all=$((all + 1))
    if cmp -s "$work/cpu" "$work/card"; then same=$((same + 1)); else
        echo "'$prompt': the card says $(cat "$work/card"), the CPU $(cat "$work/cpu")"
    fi
done
cat "$work/card.err"
timeout 60 "$bin/tier-bench" decode --model models/pebble --config "$work/card.yaml" 2>&1 || exit 1
rate=$(grep -o -m 1 '[0-9.]* tokens/s' "$work/card.err" | sed -n 1p)
echo "$same of $all greedy answers are the CPU's (40 tokens), $rate"
[ "$same" = "$all" ]
