#!/usr/bin/env bash
# on 8 x H20 at least 0.70 of the time of copies that prediction issues in time hides behind compute (needs EXPERTIER_DATA)
set -eu
data=${EXPERTIER_DATA:-}/routing
[ -d "$data" ] || { echo "skip: $data is not there (EXPERTIER_DATA)"; exit 77; }
command -v jq >/dev/null || { echo 'skip: jq is not installed'; exit 77; }
replay=$EXPERTIER_BUILD/bin/tier-replay
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Routing of gpt-oss-20b with experts of DeepSeek-V3's size: there is no public trace of that model.
# Learned from 20,000 tokens of the even sequences, judged on 4,000 of the odd.
"$replay" import --from jsonl "$data/gptoss20b_dev.jsonl.xz" -o "$work/all" --quiet
"$replay" cut "$work/all" --sequences even -o "$work/even" --quiet
"$replay" cut "$work/all" --sequences odd -o "$work/odd" --quiet
"$replay" cut "$work/even" --steps 0-19999 -o "$work/train" --quiet
"$replay" cut "$work/odd" --steps 0-3999 -o "$work/judged" --quiet
status=0
for capacity in 25% 50%; do
    "$replay" run "$work/judged" --machine "$EXPERTIER_SOURCE/configs/machines/8xh20.yaml" --top hbm \
        --capacity $capacity --predictor blend --train "$work/train" --policy lru_with_prediction \
        --quiet --json --layers >"$work/out"
    jq -r --arg c "$capacity" '.runs[0] as $r | ($r.hinted_bytes.useful + $r.hinted_bytes.late) as $used |
        "\($c) of the experts in HBM: of the copies that prediction issued and that were looked up, "
        + "\(100 * $r.hinted_bytes.useful / $used | floor)% by time were hidden whole; "
        + "\(100 * $used / $r.hinted_bytes.all | floor)% of what it issued was looked up; "
        + "\(100 * $used / $r.bytes.copy_up | floor)% of all copies up were its",
        "  layer  copied ahead MB  hidden %  compute ms  waited ms",
        ($r.by_layer | to_entries[] | (.value.hinted_bytes.useful + .value.hinted_bytes.late) as $h |
            "  \(.key)  \($h / 1e6 | floor)  \(if $h > 0 then 100 * .value.hinted_bytes.useful / $h | floor else "-" end)"
            + "  \(1000 * .value.compute_seconds | floor)  \(1000 * .value.wait_seconds | floor)")' "$work/out" |
        awk '/^  / { printf "%7s %16s %9s %11s %10s\n", $1, ($1 == "layer" ? "ahead MB" : $2), ($1 == "layer" ? "hidden %" : $3), ($1 == "layer" ? "compute ms" : $4), ($1 == "layer" ? "waited ms" : $5); next } { print }'
    jq -e '.runs[0].hinted_bytes | .useful / (.useful + .late) >= 0.70' "$work/out" >/dev/null || status=1
done
exit $status
