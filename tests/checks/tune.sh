#!/usr/bin/env bash
# a tuned YAML serves as it is, live counts equal the replay; what tuning saves on gptoss20b_dev
set -eu
bash "$EXPERTIER_SOURCE/tests/e2e/tune.sh"
data=${EXPERTIER_DATA:-}/routing/gptoss20b_dev.jsonl.xz
[ -f "$data" ] || { echo "skip: $data is not there"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$EXPERTIER_BUILD/bin/tier-replay" import --from jsonl "$data" -o "$work/t" --quiet
"$EXPERTIER_BUILD/bin/tier-replay" tune "$work/t" --set policy.eviction=lru --set predictor.kind=none \
    -o "$work/tuned.yaml" --explain | tee "$work/told"
awk '/^saved/ { sub(/%/, "", $2); found = 1; exit !($2 + 0 >= 5) } END { if (!found) exit 1 }' "$work/told"
