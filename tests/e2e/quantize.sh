#!/usr/bin/env bash
# tier-pack quantize: what it writes, experts and dense weights, runs like any model, with the same bits at any thread count, op
# set, cache size and cut, also from a pack and with INT8 and bf16 activations; it refuses what is no gain and
# leaves nothing half done.
set -euo pipefail
bin=${EXPERTIER_BUILD:?}/bin
model=${EXPERTIER_SOURCE:?}/models/pebble
work=$(mktemp -d "$EXPERTIER_BUILD/quantize_XXXXXX")
trap 'rm -rf "$work"' EXIT

fail() { echo "FAILED: $*"; exit 1; }
refuse() { # CODE SAYS COMMAND...
    local wanted=$1 says=$2 code=0; shift 2
    "$@" >"$work/out" 2>&1 || code=$?
    [ "$code" = "$wanted" ] || fail "exit code $code, not $wanted, of $*: $(cat "$work/out")"
    grep -qF -- "$says" "$work/out" || fail "no '$says' in: $(cat "$work/out")"
}
quantize() { "$bin/tier-pack" quantize --quiet "$@"; }
nats() { # MODEL SETTING...
    local from=$1; shift
    "$bin/tier-run" --model "$from" --perplexity "$work/text" --quiet "${@/#/--set=}"
}

head -c 800 "$EXPERTIER_SOURCE/README.md" >"$work/text"
for group in 32 128; do
    quantize --to int4 --group $group --json --text "$work/text" "$model" "$work/int4-$group" >"$work/report"
    grep -q '"group":'$group',"expert_bytes_before":49176,' "$work/report" || fail "$(cat "$work/report")"
    grep -q '"perplexity":{"tokens":[1-9]' "$work/report" || fail "$(cat "$work/report")"
    # The error of 15 or 16 levels over a normal distribution's range is 6 to 12 percent.
    grep -Eq '"rms":0\.(0[6-9]|1[01])' "$work/report" || fail "$(cat "$work/report")"
    quantize --to int8 --group $group --allow-larger "$model" "$work/int8-$group" >"$work/report"
    grep -Eq 'RMS error 0\.[5-9]' "$work/report" || fail "$(cat "$work/report")"
done

# Dense weights alone: of pebble only the head is no FP8.
quantize --dense --json "$model" "$work/dense" >"$work/report"
grep -q '"group":32,"dense":{"bytes_before":2097152,"bytes":1114112,"rms":0\.00[45]' "$work/report" || fail "$(cat "$work/report")"
if grep -q '"to"' "$work/report"; then fail 'experts were quantised'; fi
grep -q '"bad":0' <<<"$("$bin/tier-pack" verify "$work/dense" --json)" || fail 'dense: verify'
quantize --to int8 --dense --allow-larger "$model" "$work/all" >"$work/report"
grep -Eq '^ +3( +0\.[45][0-9]+%){7}$' "$work/report" || fail "$(cat "$work/report")"

for kind in int4-32 all; do
    grep -q '"bad":0' <<<"$("$bin/tier-pack" verify "$work/$kind" --json)" || fail "$kind: verify"
    for mode in f32 bf16 int8; do
        first=$(nats "$work/$kind" engine.threads=1 engine.activations=$mode)
        for setting in engine.threads=2 engine.cpu_mask=avx2 tiers.dram.capacity=10% \
            scheduler.max_chunked_prefill_tokens=7; do
            [ "$first" = "$(nats "$work/$kind" $setting engine.activations=$mode)" ] ||
                fail "$kind with activations in $mode: other bits with $setting"
        done
    done
    [ "$first" != "$(nats "$work/$kind")" ] || fail "$kind: int8 activations change nothing"
    [ "$(nats "$work/$kind" engine.activations=bf16)" != "$(nats "$work/$kind")" ] ||
        fail "$kind: bf16 activations change nothing"
done
# The reference is slow: a piece of the text.
head -c 300 "$EXPERTIER_SOURCE/README.md" >"$work/text"
for mode in f32 bf16 int8; do
    [ "$(nats "$work/int4-32" engine.activations=$mode)" = \
        "$(nats "$work/int4-32" engine.cpu_mask=reference engine.activations=$mode)" ] || fail 'reference'
done
"$bin/tier-pack" repack "$work/int4-32" --to "$work/pack" --quiet
[ "$(nats "$work/int4-32")" = "$(nats "$work/int4-32" "tiers.nvme.index=$work/pack/expertier.index")" ] ||
    fail 'other bits from the pack'
"$bin/tier-pack" repack "$work/int4-32" --to "$work/tiles-a" --to "$work/tiles-b" --order tiles --quiet
tiles=$work/tiles-a/expertier.index
grep -q '"bad":0' <<<"$("$bin/tier-pack" verify "$work/int4-32" --index "$tiles" --json)" || fail 'verify in tiles'
grep -q '"order":"tiles"' <<<"$("$bin/tier-pack" info "$work/int4-32" --index "$tiles" --json)" || fail 'info'
[ "$(nats "$work/int4-32")" = "$(nats "$work/int4-32" "tiers.nvme.index=$tiles")" ] ||
    fail 'other bits from the pack in tiles'
refuse 1 'holds an index or a pack of something else' "$bin/tier-pack" repack "$work/int4-32" \
    --to "$work/tiles-a" --to "$work/tiles-b" --quiet

# The same command writes the same bytes, whatever the threads.
quantize --to int4 --threads 1 "$model" "$work/again" >/dev/null
for file in "$work"/again/*.safetensors; do
    cmp "$file" "$work/int4-32/${file##*/}" || fail 'other bytes with one thread'
done

refuse 1 'nothing to make smaller' quantize --dense "$work/dense" "$work/no"
refuse 1 'that is no smaller rung' quantize --to int8 "$model" "$work/no"
refuse 1 'is there already' quantize --to int4 "$model" "$work/again"
refuse 1 'quantize reads F32' quantize --to int4 "$work/int8-32" "$work/no"
refuse 1 'no-such-text' quantize --to int4 --text "$work/no-such-text" "$model" "$work/no"
printf a >"$work/short"
refuse 1 'says nothing about a model' quantize --to int4 --text "$work/short" "$model" "$work/no"
[ ! -e "$work/no" ] || fail 'a model was written whose text says nothing'
refuse 1 'engine.activations: int8 cannot take effect' "$bin/tier-run" --model "$model" --prompt a \
    --set engine.activations=int8
refuse 2 '--to int5: wanted int8 or int4' quantize --dense --to int5 "$model" "$work/no"
refuse 2 '--to int3: wanted int8 or int4' quantize --to int3 "$model" "$work/no"
refuse 2 '--to int8 or --to int4' quantize "$model" "$work/no"
refuse 2 'groups have 32 or 128' quantize --to int4 --group 64 "$model" "$work/no"
refuse 2 '--perplexity reads its file' "$bin/tier-run" --model "$model" --perplexity a --prompt b

# A damaged source: refused by name, nothing left.
mkdir "$work/bad"
cp "$model"/*.json "$work/bad"
for file in "$model"/*.safetensors; do cp "$file" "$work/bad"; done
chmod u+w "$work/bad"/*
truncate -s -100 "$work/bad/model-00002-of-00003.safetensors"
refuse 1 'model-00002' quantize --to int4 "$work/bad" "$work/no"

# Killed: no folder of that name, and what was left is taken over by the next run (a slash at the
# end changes nothing), while a second one beside it is refused. A stop leaves nothing at all.
"$bin/tier-pack" quantize --to int4 --quiet "$model" "$work/killed" >/dev/null 2>&1 &
for _ in $(seq 500); do
    [ -z "$(find "$work"/killed.part -name '*.safetensors' 2>/dev/null)" ] || break
    sleep 0.01
done
kill -STOP $! 2>/dev/null || true
if [ -e "$work/killed.part" ]; then
    refuse 1 'killed.part: another tier-pack is writing it' quantize --to int4 "$model" "$work/killed/"
fi
kill -KILL $! 2>/dev/null || true
wait $! 2>/dev/null || true
if [ -e "$work/killed" ]; then
    "$bin/tier-pack" verify "$work/killed" --quiet >/dev/null || fail 'half a model'
    rm -r "$work/killed"
fi
quantize --to int4 "$model" "$work/killed//" >/dev/null || fail 'after a killed run'
cmp "$work/killed/model-00001-of-00003.safetensors" "$work/again/model-00001-of-00003.safetensors"
[ "$(echo "$work"/killed*)" = "$work/killed" ] || fail "left by a killed run: $(echo "$work"/killed*)"
"$bin/tier-pack" quantize --to int4 --quiet "$model" "$work/stopped" >"$work/out" 2>&1 &
for _ in $(seq 100); do
    [ -z "$(find "$work"/stopped.part* -name '*.safetensors' 2>/dev/null)" ] || break
    sleep 0.02
done
kill -INT $! 2>/dev/null || true
code=0
wait $! 2>/dev/null || code=$?
[ "$code" = 0 ] || grep -q 'stopped on request' "$work/out" || fail "why it stopped: $(cat "$work/out")"
# What stops while it is measured was written: its errors are told all the same.
"$bin/tier-pack" quantize --to int4 --quiet --text "$EXPERTIER_SOURCE/README.md" "$model" "$work/told" >"$work/out" 2>&1 &
for _ in $(seq 1000); do
    [ ! -e "$work/told" ] || break
    sleep 0.02
done
kill -TERM $! 2>/dev/null || true
code=0
wait $! 2>/dev/null || code=$?
if [ "$code" != 0 ]; then grep -q 'stopped on request' "$work/out" || fail "why it stopped: $(cat "$work/out")"; fi
grep -q 'told: experts of .*relative RMS error' "$work/out" || fail "no word about what was written: $(cat "$work/out")"
# Files of at most 4 MiB stand for a disk that is full. The limit's signal is not for us.
refuse 1 '.safetensors: cannot be written: File too large' bash -c \
    'trap "" XFSZ; ulimit -f 4096; exec "$0" quantize --to int4 --quiet "$1" "$2"' "$bin/tier-pack" "$model" "$work/no"
[ -z "$(find "$work" -name 'stopped.part*' -o -name 'no*' -type d)" ] || fail 'a folder was left behind'
echo ok
