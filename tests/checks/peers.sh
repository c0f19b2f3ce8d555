#!/usr/bin/env bash
# decode and prefill beside llama.cpp and ik_llama.cpp on the same 8-bit weights: in RAM 1.0, in 30% of it decode 8.0
# usage: PYTHON=... peers [FOLDER]: keeps the models there for another run (23 GB); PYTHON has numpy, gguf and a peer's
# package (tests/peers/compare says how). The half with 30% of RAM needs root, for a memory cgroup.
set -euo pipefail
python=${PYTHON:-python3}
cd "$EXPERTIER_SOURCE"
"$python" -c 'import numpy, gguf' 2>/dev/null ||
    { echo "skipped: $python has no numpy and gguf to make a model with (PYTHON=... names another)"; exit 77; }
"$python" -c 'import llama_cpp' 2>/dev/null || "$python" -c 'import ik_llama_cpp' 2>/dev/null ||
    { echo "skipped: $python has neither llama_cpp nor ik_llama_cpp"; exit 77; }
work=${1:-}
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
if [ ! -f "$work/model.gguf" ]; then
    "$python" tests/peers/make_model.py "$work/model" --geometry baseline --tokenizer models/pebble --gguf "$work/part.gguf"
    mv "$work/part.gguf" "$work/model.gguf"
fi
[ -d "$work/int8" ] ||
    "$EXPERTIER_BUILD/bin/tier-pack" quantize --quiet "$work/model" "$work/int8" --to int8 --dense --group 128 --allow-larger >/dev/null
compare() {
    tests/peers/compare "$work/int8" "$work/model.gguf" --build "$EXPERTIER_BUILD" --python "$python" \
        --rounds "${ROUNDS:-5}" --set engine.activations=int8 "$@"
}
bad=0
compare --tokens 24 --at-least decode=1.0 --at-least prefill=1.0 || bad=1
if [ "$(id -u)" = 0 ]; then
    # 256 MiB of the limit are what tier-bench measures the rate of memory with.
    compare --tokens 12 --warm 2 --prompt 0 --memory "$(($(du -sb "$work/int8" | cut -f 1) * 3 / 10))" \
        --set tiers.dram.capacity=9% --set kv.capacity=64MiB --at-least decode=8.0 || bad=1
else
    echo 'the half with 30% of RAM was left out: it needs root'
fi
exit "$bad"
