#!/usr/bin/env bash
# prediction beats every demand-only policy by 8 points of hits at 25% on the 8 x H20 server, with at most 1.3x the bytes
set -eu
data=${EXPERTIER_DATA:-}/routing
[ -d "$data" ] || { echo "skip: $data is not there (EXPERTIER_DATA)"; exit 77; }
replay=$EXPERTIER_BUILD/bin/tier-replay
machines=$EXPERTIER_SOURCE/configs/machines
command -v jq >/dev/null || { echo 'skip: jq is not installed'; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# gpt-oss-20b: tables from 20,000 tokens of the even sequences, judged on 8,000 of the odd. The
# others are one chat each: nothing to learn from beforehand.
"$replay" import --from jsonl "$data/gptoss20b_dev.jsonl.xz" -o "$work/all" --quiet
"$replay" cut "$work/all" --sequences even -o "$work/even" --quiet
"$replay" cut "$work/all" --sequences odd -o "$work/odd" --quiet
"$replay" cut "$work/even" --steps 0-19999 -o "$work/gpt-oss-20b.train" --quiet
"$replay" cut "$work/odd" --steps 0-7999 -o "$work/gpt-oss-20b" --quiet
for model in gemma gptoss qwen; do
    "$replay" import --from csv "$data/bigmoeonedge/$model.route.csv" -o "$work/$model" --quiet
done
# The same routing with experts of DeepSeek-V3's size: the description's own.
ln -s gpt-oss-20b "$work/gpt-oss-20b.44MB"
ln -s gpt-oss-20b.train "$work/gpt-oss-20b.44MB.train"
sizes() { # bytes of one expert, of a layer before its experts, of the rest of a step
    case $1 in
        gpt-oss-20b) set -- 13219200 53MB 1158MB ;;
        gpt-oss-20b.44MB) return ;;
        gemma) set -- 4336640 44MB 800MB ;;
        gptoss) set -- 13219200 23MB 1158MB ;;
        qwen) set -- 3059712 12MB 622MB ;;
    esac
    printf -- '--machine-set model.expert_bytes=%s --machine-set model.layer_bytes=%s ' "$1" "$2"
    printf -- '--machine-set model.shared_bytes=0 --machine-set model.step_bytes=%s' "$3"
}

clock() { # MODEL MACHINE PREDICTOR POLICIES [FLAG...]
    local model=$1 machine=$2 predictor=$3 policies=$4; shift 4
    local flags=()
    [ "$predictor" = none ] || [ ! -f "$work/$model.train" ] || flags=(--train "$work/$model.train")
    # shellcheck disable=SC2046
    "$replay" run "$work/$model" --machine "$machines/$machine.yaml" $(sizes "$model") --quiet \
        --capacity 25%,37.5%,50% --predictor "$predictor" --policy "$policies" "${flags[@]}" "$@" --json |
        jq -r --arg p "$predictor" '.runs[] | "\($p) \(.policy) \(100 * .capacity)% \(.tokens_per_second) \(100 * .hit_rate) " +
            "\(.bytes.demand + .bytes.prefetch + .bytes.copy_up)"'
}

echo "hits at lookup in %, tokens/s; bytes as a multiple of the best demand-only policy's"
status=0
for setting in '8xh20 hbm' 'desktop-pcie5 dram'; do
    read -r machine top <<<"$setting"
    for model in gpt-oss-20b gpt-oss-20b.44MB gemma gptoss qwen; do
        { clock "$model" "$machine" none belady,lru,lfu,lru_with_frequency,slru,s3fifo,sieve,arc --top "$top"
          clock "$model" "$machine" blend lfu,lru_with_frequency,lru_with_prediction --top "$top"
        } | awk -v name="$machine ($top) $model" -v must="$([ "$setting" = '8xh20 hbm' ] && [ "${model%.44MB}" = gpt-oss-20b ] && echo 8)" '
            $2 == "belady" { belady[$3] = $5; next }
            $1 == "none" { if (!($3 in base)) order[++n] = $3
                if ($5 > base[$3]) { base[$3] = $5; policy[$3] = $2; rate[$3] = $4; bytes[$3] = $6 }; next }
            $6 <= 1.3 * bytes[$3] && $5 > best[$3] { best[$3] = $5; by[$3] = $2; fast[$3] = $4; moved[$3] = $6 }
            END { for (i = 1; i <= n; i++) { c = order[i]
                printf "%-37s %6s: %s %.2f (%.2f/s), Belady %.2f, blend with %s %.2f (%.2f/s, %.2fx bytes): %+.2f points\n",
                    name, c, policy[c], base[c], rate[c], belady[c], by[c], best[c], fast[c], moved[c] / bytes[c], best[c] - base[c]
                if (must != "" && c == "25%" && best[c] - base[c] < must) bad = 1
                if (must != "" && c == "25%") printf "  wanted at least +%d points: %s; above Belady: %s\n", must, bad ? "no" : "yes", (best[c] > belady[c] ? "yes" : "no") }
                exit bad }' || status=1
    done
done
exit "$status"
