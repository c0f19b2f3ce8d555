#!/usr/bin/env bash
# blend covers at most 0.5 points less than the best of its parts, anywhere; tables alone cover 83 / 64% on gpt-oss-20b at 4 / 2 a layer
#
# Every data set of routing, learned from much and from little, with the layer before known and not;
# and models/pebble live, where lookahead takes part: a trace has no hidden states.
set -eu
bin=$EXPERTIER_BUILD/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$EXPERTIER_SOURCE"
status=0

# Lines "predictor covers1 covers2 covers4": blend against the best of the others at each depth.
judge() { # TITLE
    awk -v title="$1" '
        $1 == "blend" { for (d = 2; d <= 4; d++) own[d] = $d; next }
        { for (d = 2; d <= 4; d++) if ($d > best[d]) { best[d] = $d; by[d] = $1 } n++ }
        END { printf "%-38s", title
              for (d = 2; d <= 4; d++) {
                  printf "  %4.1f (%s %.1f)", own[d], by[d], best[d]
                  if (!(own[d] >= best[d] - 0.5)) bad = 1
              }
              print bad || n == 0 ? "  more than 0.5 below" : ""
              exit bad || n == 0 }' || status=1
}

score() { # TRAIN TEST LEAD
    "$bin/tier-replay" predict "$2" --train "$1" --lead "$3" --quiet --json \
        --predictor frequency,previous_token,token_table,transition,context,blend |
        sed 's/{"name"/\n&/g' | sed -n 's/^{"name":"\([a-z_]*\)".*"covered":{"1":\([0-9.]*\),"2":\([0-9.]*\),"4":\([0-9.]*\)}.*/\1 \2 \3 \4/p' |
        awk '{ print $1, 100 * $2, 100 * $3, 100 * $4 }'
}

echo "blend covers 1, 2, 4 a layer, in % of the misses at 25% (the best of its parts)"
data=${EXPERTIER_DATA:-}/routing
if [ -d "$data" ]; then
    import() { "$bin/tier-replay" import --from "$1" "$data/$2" -o "$work/$3" --quiet; }
    part() { "$bin/tier-replay" cut "$work/$1" "$2" "$3" -o "$work/$4" --quiet; }
    import jsonl gptoss20b_dev.jsonl.xz all
    part all --sequences even even
    part all --sequences odd odd
    part odd --steps 0-7999 short
    for tokens in 50 500 5000; do part even --steps "0-$((tokens - 1))" "$tokens"; done
    # One chat each: one half learned from, the other scored, and the other way round.
    for model in gemma gptoss qwen; do
        import csv "bigmoeonedge/$model.route.csv" "$model"
        steps=$("$bin/tier-replay" info "$work/$model" --json | sed 's/.*"steps":\([0-9]*\).*/\1/')
        part "$model" --steps "0-$((steps / 2))" "$model.1"
        part "$model" --steps "$((steps / 2 + 1))-$((steps - 1))" "$model.2"
    done
    for lead in 0 1; do
        for model in gemma gptoss qwen; do
            score "$work/$model.1" "$work/$model.2" "$lead" | judge "$model, later half, lead $lead"
            score "$work/$model.2" "$work/$model.1" "$lead" | judge "$model, earlier half, lead $lead"
        done
        for tokens in 50 500 5000; do
            score "$work/$tokens" "$work/short" "$lead" | judge "gpt-oss-20b, $tokens tokens, lead $lead"
        done
        score "$work/even" "$work/odd" "$lead" >"$work/full.$lead"
        judge "gpt-oss-20b, even sequences, lead $lead" <"$work/full.$lead"
    done
    awk '$1 == "blend" { printf "gpt-oss-20b from tables alone: %.1f%% at 4 (>= 83 wanted, 88 the aim), %.1f%% at 2 (>= 64 wanted)\n", $4, $3
             exit !($4 >= 83 && $3 >= 64) }' "$work/full.0" || status=1
else
    echo "skip: $data is not there (EXPERTIER_DATA); only the live part runs"
fi

# 40 beginnings, verses and legal text. Tables are learned on every other one and frozen.
{ head -n 20 tests/checks/kjv.txt | cut -c 1-120; awk 'length > 40' LICENSE | head -n 20; } >"$work/prompts"
live() { # TITLE PREDICTOR TOKENS LEAD [--set KEY=VALUE...]
    local title=$1 kind=$2 tokens=$3 lead=$4; shift 4
    local common=(--prompts "$work/prompts" --quiet --lead "$lead" --set tiers.dram.capacity=100% --set "predictor.kind=$kind" --set predictor.lead=2 --set "predictor.path=$work/tables" "$@")
    rm -f "$work/tables"
    "$bin/tier-bench" foresight "${common[@]}" --only even --tokens "$tokens" >/dev/null
    "$bin/tier-bench" foresight "${common[@]}" --only odd --tokens 48 --set predictor.learn=false |
        sed -n "s|.*covers 1 / 2 / 4: \([0-9.]*\) / \([0-9.]*\) / \([0-9.]*\)%.*|$title \1 \2 \3|p"
}
ahead='--set predictor.lookahead=2'
for lead in 0 1; do
    for tokens in 8 48 250; do
        for kind in frequency previous_token transition token_table context; do live "$kind" "$kind" "$tokens" "$lead"; done >"$work/parts"
        { cat "$work/parts"; live blend blend "$tokens" "$lead" --set predictor.lookahead=0; } | judge "pebble, 20 x $tokens tokens, lead $lead"
        # shellcheck disable=SC2086
        { cat "$work/parts"; live lookahead lookahead "$tokens" "$lead" $ahead; live blend blend "$tokens" "$lead" $ahead; } |
            judge "the same with lookahead"
    done
done
exit "$status"
