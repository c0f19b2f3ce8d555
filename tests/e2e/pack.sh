#!/usr/bin/env bash
# tier-pack from the shell: index, verify, info, repack over two folders; the answer of a model is
# the same from the checkpoint and from its pack; exit codes; the bench leaves no file behind.
set -euo pipefail
bin=${EXPERTIER_BUILD:?}/bin
model=${EXPERTIER_SOURCE:?}/models/pebble
work=$(mktemp -d "$EXPERTIER_BUILD/pack_XXXXXX")
trap 'rm -rf "$work"' EXIT

fail() { echo "FAILED: $*"; exit 1; }
refuse() { # CODE SAYS COMMAND...
    local wanted=$1 says=$2 code=0; shift 2
    "$@" >"$work/out" 2>&1 || code=$?
    [ "$code" = "$wanted" ] || fail "exit code $code, not $wanted, of $*: $(cat "$work/out")"
    grep -qF -- "$says" "$work/out" || fail "no '$says' in: $(cat "$work/out")"
}
answer() { # INDEX
    "$bin/tier-run" --model "$model" --prompt 'In the beginning' --max-tokens 24 --quiet \
        --set "tiers.nvme.index=$1"
}

index=$work/own.index
refuse 1 'tier-pack index' "$bin/tier-pack" verify "$model" --index "$index"
"$bin/tier-pack" index "$model" --index "$index" --quiet
grep -q '"bad":0' <<<"$("$bin/tier-pack" verify "$model" --index "$index" --json)" || fail 'verify'
grep -q '384: 6 layers' <<<"$("$bin/tier-pack" info "$model" --index "$index")" || fail 'info'

for mode in stripe mirror; do
    "$bin/tier-pack" repack "$model" --index "$index" --to "$work/$mode-a/" --to "$work/$mode-b//" \
        --mode "$mode" 2>"$work/out"
    grep -qF "$work/$mode-a/expertier.index: set" "$work/out" || fail "$mode: $(cat "$work/out")"
    pack=$work/$mode-a/expertier.index
    grep -q '"bad":0' <<<"$("$bin/tier-pack" verify "$model" --index "$pack" --json)" || fail "$mode"
    [ "$(answer "$index")" = "$(answer "$pack")" ] || fail "another answer from the $mode pack"
done

printf '\xff' | dd of="$work/stripe-b/experts.pack" bs=1 seek=50000 conv=notrunc status=none
refuse 1 'do not match their checksum' "$bin/tier-pack" verify "$model" \
    --index "$work/stripe-a/expertier.index"
refuse 1 'experts of F8_E4M3 cannot be packed in tiles' "$bin/tier-pack" repack "$model" --index "$index" \
    --to "$work/c" --order tiles
refuse 1 'experts cannot be packed woven' "$bin/tier-pack" repack "$model" --index "$index" \
    --to "$work/c" --order woven
refuse 2 'rows, tiles or woven' "$bin/tier-pack" repack "$model" --to "$work/c" --order columns
refuse 2 '--to' "$bin/tier-pack" repack "$model" --index "$index"
refuse 2 'stripe or mirror' "$bin/tier-pack" repack "$model" --to "$work/c" --mode both
refuse 2 '' "$bin/tier-pack" index
refuse 1 'config.json' "$bin/tier-pack" info "$work"

"$bin/tier-bench" kernels --only f16 --json --quiet >"$work/kernels" || fail 'tier-bench kernels'
grep -Eq '^\{"ops":"[a-z0-9]+","batch":1,"kernels":\[\{"weights":"f16",.*"floor_bytes_per_second":[1-9].*"floor_fraction":[0-9.]+\}$' \
    "$work/kernels" || fail "tier-bench kernels: $(cat "$work/kernels")"
if "$bin/tier-bench" kernels --only f16 --quiet --at-least 100 >"$work/kernels"; then fail 'a hundred times what memory gives'; fi
grep -q '^smallest share of reading' "$work/kernels" || fail "tier-bench kernels: $(cat "$work/kernels")"
"$bin/tier-bench" io --json --quiet --no-fio --dir "$work" --bytes 16MiB --size 64KiB --depth 4 \
    --rounds 1 --time 20ms >"$work/bench.json"
grep -q '"fio_skipped":"--no-fio"' "$work/bench.json" || fail "bench: $(cat "$work/bench.json")"
refuse 2 '--depth' "$bin/tier-bench" io --depth none
# Before the file is made; a bad size of a given file alike.
refuse 2 '--size 1000: reads are multiples of 4096' "$bin/tier-bench" io --no-fio --dir "$work/none" --size 1000
refuse 2 'at most a quarter of the file (32768 bytes)' "$bin/tier-bench" io --no-fio --dir "$work/none" --bytes 32KiB --size 16KiB
refuse 2 'at most a quarter of the file' "$bin/tier-bench" io --no-fio --file "$work/bench.json" --size 1MiB
refuse 1 "$work/none: No such file" "$bin/tier-bench" io --no-fio --file "$work/none"
[ -z "$(find "$work" -name 'tier-bench*')" ] || fail 'the bench left its file'
# A folder's name is any text.
odd="$work/we\"ird"
mkdir "$odd"
for file in "$model"/*.json "$model"/*.safetensors; do ln -s "$file" "$odd"; done
for what in 'decode --tokens 2' 'prefill --tokens 4'; do
    # shellcheck disable=SC2086
    "$bin/tier-bench" $what --model "$odd" --rounds 1 --quiet --json --set "tiers.nvme.index=$work/odd.index" >"$work/bench.json"
    grep -qF '{"model":"we\"ird","threads":' "$work/bench.json" || fail "$what: $(cat "$work/bench.json")"
done
# Interrupted, it takes its folder along. A script's children begin deaf to SIGINT, not to SIGTERM.
"$bin/tier-bench" cache --dir "$work" --lookups 100000000 >"$work/out" 2>&1 & bench=$!
for _ in $(seq 200); do
    [ -n "$(find "$work" -name zeros -path '*tier-bench-cache*')" ] && break
    sleep 0.02
done
kill -TERM "$bench"
code=0; wait "$bench" || code=$?
[ "$code" = 1 ] && grep -q 'stopped on request' "$work/out" || fail "exit code $code: $(cat "$work/out")"
[ -z "$(find "$work" -name 'tier-bench*')" ] || fail 'the interrupted bench left its folder'
echo ok
