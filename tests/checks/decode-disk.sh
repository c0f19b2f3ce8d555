#!/usr/bin/env bash
# decode with 30% of the model's bytes as memory: 0.85 of the disk's limit; gpt-oss-20b's routing beside Belady's bytes
# usage: PYTHON=... decode-disk [FOLDER]: keeps the models there for another run (21 GB); root, for a memory cgroup
# (tests/peers/decode_disk says what is measured, and how; the ratio to llama.cpp is the check `peers`)
set -euo pipefail
python=${PYTHON:-python3}
cd "$EXPERTIER_SOURCE"
command -v fio >/dev/null 2>&1 || { echo 'skipped: fio is not installed'; exit 77; }
[ "$(id -u)" = 0 ] || { echo 'skipped: a memory cgroup and huge pages for fio need root'; exit 77; }
"$python" -c 'import numpy' 2>/dev/null ||
    { echo "skipped: $python has no numpy to make a model with (PYTHON=... names another)"; exit 77; }
work=${1:-}
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
random_model() { # FOLDER GEOMETRY
    [ -d "$work/$1" ] && return
    "$python" tests/peers/make_model.py "$work/$1.part" --geometry "$2" --tokenizer models/pebble >/dev/null 2>&1
    mv "$work/$1.part" "$work/$1"
}
if [ ! -d "$work/int8" ]; then
    random_model model baseline
    "$EXPERTIER_BUILD/bin/tier-pack" quantize --quiet "$work/model" "$work/int8" --to int8 --group 128 --allow-larger >/dev/null
fi
bad=0
"$python" tests/peers/decode_disk uniform "$work/int8" --build "$EXPERTIER_BUILD" --rounds "${ROUNDS:-5}" \
    --set engine.activations=int8 || bad=1
routing=${EXPERTIER_DATA:-/nowhere}/routing/gptoss20b_dev.jsonl.xz
if [ -f "$routing" ]; then
    random_model gptoss gptoss
    [ -f "$work/gptoss20b.trace" ] ||
        "$EXPERTIER_BUILD/bin/tier-replay" import --quiet --from jsonl "$routing" -o "$work/gptoss20b.trace"
    "$python" tests/peers/decode_disk routing "$work/gptoss" "$work/gptoss20b.trace" --build "$EXPERTIER_BUILD" \
        --rounds "${ROUNDS:-5}" --set engine.activations=bf16 || bad=1
else
    echo 'the half with imposed routing was left out: EXPERTIER_DATA names no folder with routing/gptoss20b_dev.jsonl.xz'
fi
exit "$bad"
