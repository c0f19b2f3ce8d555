#!/usr/bin/env bash
# decode with 30% of the model's bytes as memory: 0.85 of the disk's limit, routed evenly; gpt-oss-20b's routing beside Belady's bytes
# usage: PYTHON=... decode-disk [FOLDER]: keeps the models there for another run (28 GB); root, for a memory cgroup
# (tests/peers/decode_disk says what is measured, and how; the ratio to llama.cpp is the check `peers`)
set -euo pipefail
cd "$EXPERTIER_SOURCE"
command -v fio >/dev/null 2>&1 || { echo 'skipped: fio is not installed'; exit 77; }
[ "$(id -u)" = 0 ] || { echo 'skipped: a memory cgroup and huge pages for fio need root'; exit 77; }
. tests/peers/random_models.sh
if [ ! -d "$work/int8" ]; then
    model_of model baseline
    "$bin/tier-pack" quantize --quiet "$work/model" "$work/int8" --to int8 --dense --group 128 --allow-larger >/dev/null
fi
[ -f "$work/int8-tiles/expertier.index" ] ||
    "$bin/tier-pack" repack "$work/int8" --to "$work/int8-tiles" --order tiles --quiet
bad=0
for gates in own draws; do
    "$python" tests/peers/decode_disk "$gates" "$work/int8" --pack "$work/int8-tiles" --build "$EXPERTIER_BUILD" \
        --rounds "${ROUNDS:-5}" --set engine.activations=int8 || bad=1
done
routing=${EXPERTIER_DATA:-/nowhere}/routing/gptoss20b_dev.jsonl.xz
if [ -f "$routing" ]; then
    model_of gptoss gptoss
    [ -f "$work/gptoss20b.trace" ] ||
        "$bin/tier-replay" import --quiet --from jsonl "$routing" -o "$work/gptoss20b.trace"
    "$python" tests/peers/decode_disk routing "$work/gptoss" "$work/gptoss20b.trace" --build "$EXPERTIER_BUILD" \
        --rounds "${ROUNDS:-5}" --set engine.activations=bf16 || bad=1
else
    echo 'the half with imposed routing was left out: EXPERTIER_DATA names no folder with routing/gptoss20b_dev.jsonl.xz'
fi
exit "$bad"
