#!/usr/bin/env bash
# tier-replay report makes one page: four labelled plots, its numbers those of run and predict,
# nothing fetched from elsewhere.
set -euo pipefail
bin=${EXPERTIER_BUILD:?}/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*"; exit 1; }

# Skewed routing of 12 sequences; the model's name tries to get out of the text. Experts begin with layer 5.
awk 'BEGIN { srand(5)
    print "{\"format\":\"routing-jsonl\",\"version\":1,\"model\":\"<b>a&b\",\"layers\":8,\"first_moe_layer\":5,\"experts\":16,\"top_k\":2}"
    for (s = 0; s < 12; s++) for (t = 0; t < 40; t++) {
        line = sprintf("{\"seq\":%d,\"phase\":\"%s\",\"token\":%d,\"experts\":[", s, t < 4 ? "prefill" : "decode", int(rand() * 50))
        for (l = 0; l < 3; l++) { a = int(16 * rand() ^ 3); do b = int(16 * rand() ^ 2); while (b == a)
            line = line (l ? "," : "") "[" a "," b "]" }
        print line "]}" } }' >"$work/t.jsonl"
"$bin/tier-replay" import --from jsonl "$work/t.jsonl" -o "$work/t" --quiet
TMPDIR=$work "$bin/tier-replay" report "$work/t" -o "$work/out.html" --quiet || fail 'report failed'
page=$work/out.html
[ "$(grep -c '<svg ' "$page")" = 4 ] && [ "$(grep -c '</svg>' "$page")" = 4 ] || fail 'not four plots'
if grep -nEi '<script|https?:|src=|href=|@import|url\(' "$page"; then fail 'the page fetches something'; fi
grep -q '&lt;b&gt;a&amp;b' "$page" || fail "the model's name is not in it as text"
if grep -q '<b>a' "$page"; then fail "the model's name got out of the text"; fi
for text in 'Resident rate by capacity and policy' 'What prediction could save' 'How unevenly each layer' \
    'Resident rate over time' 'lookups found resident' 'tokens replayed' 'belady' 'blend'; do
    grep -q "$text" "$page" || fail "\"$text\" is not on the page"
done
grep -q 'text-anchor="end">5<' <<<"$(sed -n '/How unevenly/,/<.svg>/p' "$page")" || fail "the first layer's number is not the model's"
if grep -Eq '[^a-z](nan|inf)[^a-z]' "$page"; then fail 'a number is no number'; fi
# Balanced tags, where a parser is there.
if command -v python3 >/dev/null 2>&1; then
    python3 - "$page" <<'PY' || fail 'the page is not well-formed'
import re, sys
import xml.etree.ElementTree as tree
for svg in re.findall(r"<svg .*?</svg>", open(sys.argv[1]).read(), re.S):
    tree.fromstring(svg)
PY
fi
# The numbers are those of the other commands.
run=$("$bin/tier-replay" run "$work/t" --policy lfu,belady --capacity 25% --set policy.prefill_share=100% --quiet |
    awk 'NR > 1 { print $1, $5 }')
shown=$(sed -n 's|<tr><td>\(lfu\)</td>.*|&|p; s|<tr><td>\(belady\)</td>.*|&|p' "$page" | sed 's|</td><td>| |g; s|<[^>]*>||g' |
    awk '$1 == "lfu" && NF == 7 && !l { print $1, $3; l = 1 } $1 == "belady" && NF == 7 { b = $1 " " $3 } END { print b }')
[ "$(sort <<<"$run")" = "$(sort <<<"$shown")" ] || fail "run says $run, the page $shown"
ls "$work" | grep -v -E '^(t|t.jsonl|out.html)$' && fail 'temporary files are left'
"$bin/tier-replay" cut "$work/t" --sequences 3 -o "$work/one" --quiet
"$bin/tier-replay" report "$work/one" -o "$work/one.html" --quiet || fail 'report of one sequence failed'
grep -q 'No predictor was scored' "$work/one.html" || fail 'one sequence: nothing is said of predictors'
echo "four plots, $(wc -c <"$page") bytes; $run"
