#!/usr/bin/env bash
# Settings: wrong ones are refused by file, line and column with the nearest key; the shipped files
# are valid; configs/default.yaml is what the option tables say.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

refuse() { # SAYS [argument...]
    local says=$1 code=0; shift
    timeout 30 "$bin/tier-server" "$@" >"$work/out" 2>&1 || code=$?
    [ "$code" = 2 ] || fail "exit code $code, not 2, of tier-server $*: $(cat "$work/out")"
    grep -qF -- "$says" "$work/out" || fail "no '$says' in: $(cat "$work/out")"
}
yaml() { printf '%b' "$1" >"$work/x.yaml"; }

yaml 'tiers:\n  dram:\n    capcity: 25%%\n'
refuse "x.yaml:3:5" --config "$work/x.yaml" --model "$model"
grep -q 'capcity' "$work/out" || fail "the key is not named: $(cat "$work/out")"
grep -q 'tiers.dram.capacity' "$work/out" || fail "the nearest key is not named: $(cat "$work/out")"
yaml 'server:\n  port: 99999\n'
refuse 'x.yaml:2' --config "$work/x.yaml" --model "$model"
yaml 'server: [1, 2\n'
refuse 'x.yaml:' --config "$work/x.yaml" --model "$model"
yaml 'io:\n  depth: many\n'
refuse 'io.depth' --config "$work/x.yaml" --model "$model"
yaml 'server:\n  api_key: x\n'
refuse 'x.yaml:' --config "$work/x.yaml" --model "$model"
# Known keys of what is not there: refused with the reason, not silently accepted.
for pair in tiers.hbm.headroom=10% tiers.hbm.device=cuda; do
    refuse "${pair%%=*}: ${pair#*=} cannot take effect" --set "$pair" --model "$model"
    refuse 'cannot take effect' --set "$pair" --check-config
done
for pair in prefetch.enabled=true prefetch.bandwidth_share=50% prefetch.experts_per_layer_max=4; do
    refuse "${pair%%=*}: ${pair#*=} cannot take effect" --set predictor.kind=none --set "$pair" --model "$model"
    refuse 'cannot take effect' --set predictor.kind=none --set "$pair" --check-config
done
yaml 'predictor:\n  kind: none\nprefetch:\n  enabled: true\n'
refuse 'prefetch.enabled: true cannot take effect' --config "$work/x.yaml" --model "$model"
for check in '--model' '--check-config --model' '--check-config --schema-only --model'; do
    # shellcheck disable=SC2086
    refuse "server.cors_origins: 'localhost:3000' is no origin" --set server.cors_origins=http://a,localhost:3000 $check "$model"
done
refuse 'server.prot' --set server.prot=1 --model "$model"
refuse '--port' --port 70000 --model "$model"
refuse '--model DIR is missing'
refuse '--prot' --prot 1

# The whole deployment's file: every key is known and every value is one, on any machine.
whole=$source_dir/configs/deepseek-v3-8xh20.yaml
"$bin/tier-server" --check-config --schema-only --config "$whole" >"$work/out" 2>"$work/err" ||
    fail "configs/deepseek-v3-8xh20.yaml: $(cat "$work/err")"
code=0
"$bin/tier-server" --check-config --config "$whole" >"$work/out" 2>"$work/err" || code=$?
case $code in
0) grep -q 'valid$' "$work/out" || fail "plain --check-config: $(cat "$work/out")" ;;
2)  # a build without CUDA kernels
    grep -q 'each key and value is valid' "$work/err" && grep -q 'tiers.hbm.device: cuda cannot take effect' "$work/err" ||
        fail "plain --check-config: $(cat "$work/err")" ;;
*) fail "plain --check-config ends with $code: $(cat "$work/err")" ;;
esac
for key in tiers.hbm.capacity=40GiB tiers.dram.capacity=512GiB tiers.hbm.headroom=10% kv.block_tokens=16 \
    policy.eviction=lru_with_prediction prefetch.bandwidth_share=30% parallel.tensor=8 \
    scheduler.max_num_seqs=80 scheduler.max_num_batched_tokens=65536 scheduler.max_model_len=32768 \
    scheduler.enable_prefix_caching=true scheduler.batch_wait_timeout=10ms; do
    name=${key%%=*}
    case $name in *.capacity) ;; *)     # a text, looked at with the model
        "$bin/tier-server" --config "$whole" --schema-only --check-config --set "$name=nonsense-#" >/dev/null 2>&1 &&
            fail "$name: any value is valid" ;;
    esac
    grep -Eq "^ *${name##*.}: ${key#*=}\$" "$whole" || fail "configs/deepseek-v3-8xh20.yaml lacks $key"
done
sed 's/prefetch:/prefetchh:/' "$whole" >"$work/x.yaml"
refuse 'x.yaml:' --check-config --schema-only --config "$work/x.yaml"
refuse '--schema-only goes with --check-config' --schema-only --model "$model"

for name in cpu-only sim default; do
    "$bin/tier-server" --check-config --config "$source_dir/configs/$name.yaml" >/dev/null ||
        fail "configs/$name.yaml is not valid"
done

# default.yaml is generated: all after the comment at its head is --print-config of the defaults.
: >"$work/empty.yaml"
"$bin/tier-server" --config "$work/empty.yaml" --print-config >"$work/printed.yaml"
sed -n '/^tiers:/,$p' "$source_dir/configs/default.yaml" | diff "$work/printed.yaml" - >"$work/diff" ||
    fail "configs/default.yaml is not what the option tables say (regenerate it as its head says): $(cat "$work/diff")"
# What is printed, read again, is the same.
"$bin/tier-server" --config "$work/printed.yaml" --print-config | diff "$work/printed.yaml" - ||
    fail 'printing and reading the settings changes them'

echo '== an address of nobody, a port in use'
code=0
"$bin/tier-server" --model "$model" --listen 'no address' >"$work/out" 2>&1 || code=$?
[ "$code" = 1 ] || fail "exit code $code with a wrong address"
grep -q 'no address of this machine' "$work/out" || fail "wrong address: $(cat "$work/out")"
start_server
port=${url##*:}
code=0
"$bin/tier-server" --model "$model" --port "$port" >"$work/out" 2>&1 || code=$?
[ "$code" = 1 ] || fail "exit code $code with the port in use"
grep -q "port $port of 127.0.0.1 is in use" "$work/out" || fail "port in use: $(cat "$work/out")"
stop_server

echo '== --dry-run prints the memory table and stops'
"$bin/tier-server" --model "$model" --set "tiers.nvme.index=$work/expertier.index" --dry-run >"$work/out" ||
    fail '--dry-run failed'
grep -qi 'sum\|total' "$work/out" || fail "no sum in: $(cat "$work/out")"
"$bin/tier-server" --options >"$work/out"
grep -q '`server.port`' "$work/out" || fail 'no server.port in --options'
"$bin/tier-server" --metrics >"$work/out"
grep -q 'expertier_tier_lookups_total' "$work/out" || fail 'no lookups in --metrics'
