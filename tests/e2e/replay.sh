#!/usr/bin/env bash
# tier-replay as its user meets it: what a composed trace, a prediction and a replay on the clock report, and what is
# refused.
set -euo pipefail
bin=${EXPERTIER_BUILD:?}/bin
machines=${EXPERTIER_SOURCE:?}/configs/machines
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*"; exit 1; }
command -v python3 >/dev/null 2>&1 || { echo 'skip: python3 is not installed'; exit 77; }
replay() { "$bin/tier-replay" "$@"; }
# Exits 1 or 2 and says TEXT.
refused() { # TEXT ARGUMENT...
    local text=$1 code=0; shift
    replay "$@" >"$work/said" 2>&1 || code=$?
    [ "$code" = 1 ] || [ "$code" = 2 ] || fail "tier-replay $*: exit code $code: $(cat "$work/said")"
    grep -qF -- "$text" "$work/said" || fail "tier-replay $* does not say \"$text\": $(cat "$work/said")"
}
# The expression must hold of the JSON in the file, d.
holds() { # FILE EXPRESSION
    python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); sys.exit(not eval("(" + sys.argv[2] + ")"))' "$1" "$2" ||
        fail "$2: $(head -c 2000 "$1")"
}

# Skewed routing of 24 sequences.
awk 'BEGIN { srand(6)
    print "{\"format\":\"routing-jsonl\",\"version\":1,\"model\":\"m\",\"layers\":3,\"first_moe_layer\":0,\"experts\":16,\"top_k\":2}"
    for (s = 0; s < 24; s++) for (t = 0; t < 40; t++) {
        line = sprintf("{\"seq\":%d,\"phase\":\"decode\",\"token\":%d,\"experts\":[", s, int(rand() * 50))
        for (l = 0; l < 3; l++) { a = int(16 * rand() ^ 3); do b = int(16 * rand() ^ 2); while (b == a)
            line = line (l ? "," : "") "[" a "," b "]" }
        print line "]}" } }' >"$work/t.jsonl"
replay import --from jsonl "$work/t.jsonl" -o "$work/t" --quiet
replay cut "$work/t" --sequences even -o "$work/even" --quiet
replay cut "$work/t" --sequences odd -o "$work/odd" --quiet
grep -q '^events *none$' <<<"$(replay info "$work/t")" || fail 'info does not say that there are no events'

# A prediction: these members and no others, the same from the same traces.
replay predict "$work/odd" --train "$work/even" --capacity 25% --json --quiet >"$work/p.json"
holds "$work/p.json" 'list(d) == ["predictors"] and [p["name"] for p in d["predictors"]] == ["none", "frequency",
    "previous_token", "token_table", "transition", "context", "blend", "oracle"]'
holds "$work/p.json" 'all(list(p) == ["name", "recall_k", "recall_2k", "covered", "precision", "wasted_per_useful"] and
    list(p["covered"]) == list(p["precision"]) == ["1", "2", "4"] and
    0 < p["covered"]["1"] <= p["covered"]["2"] <= p["covered"]["4"] <= 1 for p in d["predictors"])'
replay predict "$work/odd" --train "$work/even" --capacity 25% --json --quiet | cmp - "$work/p.json"
# Where nothing was right, all was wasted, and no number says how much that is for each right one.
for pair in 8,9 14,15; do
    head -n 1 "$work/t.jsonl"
    for _ in $(seq 20); do echo "{\"seq\":0,\"phase\":\"decode\",\"token\":1,\"experts\":[[$pair],[$pair],[$pair]]}"; done
done | split -l 21 - "$work/pair."
replay import --from jsonl "$work/pair.aa" -o "$work/learned" --quiet
replay import --from jsonl "$work/pair.ab" -o "$work/other" --quiet
replay predict "$work/other" --train "$work/learned" --json --quiet >"$work/p.json"
holds "$work/p.json" '{p["name"] for p in d["predictors"] if p["wasted_per_useful"] is None} ==
    {p["name"] for p in d["predictors"] if p["covered"]["4"] == 0} and d["predictors"][0]["wasted_per_useful"] is None'
grep -q ' all ' <<<"$(replay predict "$work/other" --train "$work/learned" --predictor frequency --quiet)" || fail 'the table does not say that all was wasted'

# Batches that nobody ran: every report says so.
printf 'TIMESTAMP,ContextTokens,GeneratedTokens\n' >"$work/arrivals.csv"
for i in $(seq 10 33); do echo "2023-11-16 18:17:$i.0000000,1,39"; done >>"$work/arrivals.csv"
replay compose "$work/t" --arrivals "$work/arrivals.csv" --users 4 -o "$work/c" --quiet
for command in "run $work/c" "run $work/c --machine $machines/8xh20.yaml" "tune $work/c -o $work/c.yaml" \
    "predict $work/c --train $work/t"; do
    # shellcheck disable=SC2086
    replay $command --json >"$work/c.json" 2>"$work/c.err" || fail "$command: $(cat "$work/c.err")"
    grep -q '^composed: ' "$work/c.err" || fail "$command does not say that it was composed: $(cat "$work/c.err")"
    case $command in predict*) ;; *) holds "$work/c.json" 'd["composed"] is True' ;; esac
done
replay report "$work/c" -o "$work/c.html" --quiet
grep -q composed "$work/c.html" || fail 'the page does not say that it was composed'
replay run "$work/t" --json >"$work/t.json" 2>"$work/t.err"
holds "$work/t.json" 'd["composed"] is False'
if grep -q composed "$work/t.err"; then fail 'a trace of a server is called composed'; fi

# On the clock: the parts of the time, the bytes, the bounds, on every machine that ships.
for machine in "$machines"/*.yaml; do
    for kind in none blend oracle; do
        replay run "$work/t" --machine "$machine" --policy lfu,belady --capacity 50% --predictor "$kind" --layers --json \
            >"$work/r.json" 2>"$work/r.err" || fail "$machine, $kind: $(cat "$work/r.err")"
        holds "$work/r.json" 'all(abs(r["seconds"] - r["compute_seconds"] - sum(r["wait_seconds"].values())) < 1e-5 and
            list(r["wait_seconds"]) == ["demand", "late", "copy", "slot"] and 0 <= r["overlap"] <= 1 and
            {"demand", "prefetch", "prefetch_wasted", "copy_up", "copy_down"} == set(r["bytes"]) and
            len(r["by_layer"]) == 3 and 0 < r["of_bandwidth_bound"] <= 1 and r["of_belady"] > 0 for r in d["runs"]) and
            d["runs"][1]["of_belady"] == 1'
        cp "$work/r.json" "$work/$kind.json"
    done
done
python3 - "$work" <<'PY' || fail 'the oracle knows less than blend'
import json, sys
hits = {k: json.load(open(f"{sys.argv[1]}/{k}.json"))["runs"][0]["hits"] for k in ("none", "blend", "oracle")}
print(hits)
sys.exit(not hits["oracle"] > max(hits["none"], hits["blend"]))
PY
replay run "$work/t" --machine "$machines/8xh20.yaml" --policy lfu --capacity 50% --predictor oracle >"$work/told" 2>&1
for text in 'tokens/s' 'late wait %' 'of Belady' 'of bound' 'ahead' 'wasted' 'overlap %' 'bound: oracle'; do
    grep -q "$text" "$work/told" || fail "the table has no \"$text\": $(cat "$work/told")"
done

# Layers have the model's numbers, as in tier-stats, where its first ones have no experts.
sed '1s/"layers":3,"first_moe_layer":0/"layers":7,"first_moe_layer":4/' "$work/t.jsonl" >"$work/high.jsonl"
replay import --from jsonl "$work/high.jsonl" -o "$work/high" --quiet
for clock in '' "--machine $machines/8xh20.yaml"; do
    # shellcheck disable=SC2086
    replay run "$work/high" --policy lru --capacity 50% --layers --quiet $clock >"$work/high.txt"
    # shellcheck disable=SC2086
    replay run "$work/high" --policy lru --capacity 50% --layers --quiet --json $clock >"$work/high.json"
    numbers=$(awk '$1 == "policy" || $1 == "layer" { for (i = 1; i <= NF; i++) if ($i == "layer") at = i } at && $at ~ /^[0-9]+$/ { printf "%s ", $at }' \
        "$work/high.txt")
    [ "$numbers" = '4 5 6 ' ] || fail "layers are numbered $numbers"
    holds "$work/high.json" '[(l["layer"], l["moe_layer"]) for l in d["runs"][0]["by_layer"]] == [(4, 0), (5, 1), (6, 2)]'
done

# What is set changes that alone: an import has nothing set aside for decode, whatever else is set.
awk 'NR > 1 { n[$1]++ } NR > 1 && n[$1] <= 12 { sub(/"decode"/, "\"prefill\"") } { print }' FS=, "$work/t.jsonl" >"$work/prompts.jsonl"
replay import --from jsonl "$work/prompts.jsonl" -o "$work/prompts" --quiet
replay run "$work/prompts" --json --quiet >"$work/plain.json"
holds "$work/plain.json" '[r["policy"] for r in d["runs"]] == ["lru_with_prediction", "lru", "lru_global", "belady"]'
replay run "$work/prompts" --json --quiet --set predictor.kind=none | cmp - "$work/plain.json" || fail 'one setting changed the rest'
replay run "$work/prompts" --json --quiet --set policy.prefill_share=50% | cmp -s - "$work/plain.json" && fail 'the prefill share has no effect'
replay run "$work/prompts" --json --quiet --set policy.eviction=lru >"$work/one.json"
holds "$work/one.json" '[r["policy"] for r in d["runs"]] == ["lru"]'

# The cache of a YAML, as tune has it: both tiers, what lies in both, the policy below.
printf 'tiers:\n  hbm:\n    capacity: "25%%"\n  dram:\n    capacity: "50%%"\npolicy:\n  eviction: lru\npredictor:\n  kind: none\n' \
    >"$work/cache.yaml"
clock() { replay run "$@" --machine "$machines/8xh20.yaml" --json --quiet; }
clock "$work/odd" --config "$work/cache.yaml" >"$work/cache.json"
holds "$work/cache.json" 'd["runs"][0]["top"] == "hbm" and d["runs"][0]["slots"] == 12 and
    d["runs"][0]["below"] == {"tier": "dram", "slots": 24, "policy": "lru", "inclusive": False}'
clock "$work/odd" --policy lru --capacity 25% --dram 50% --predictor none --set policy.prefill_share=50% | cmp - "$work/cache.json" ||
    fail 'the same cache in other words gives something else'
for key in tiers.inclusion=inclusive policy.eviction_dram=s3fifo tiers.dram.capacity=37.5%; do
    clock "$work/odd" --config "$work/cache.yaml" --set "$key" >"$work/other.json"
    python3 - "$work/cache.json" "$work/other.json" <<'PY' || fail "$key has no effect: $(cat "$work/other.json")"
import json, sys
one, other = (json.load(open(path))["runs"][0] for path in sys.argv[1:])
sys.exit(one["below"] == other["below"] or one["bytes"] == other["bytes"])
PY
done
# Every second sequence is what tune holds out.
for key in tiers.inclusion=inclusive policy.eviction_dram=s3fifo; do
    clock "$work/odd" --config "$work/cache.yaml" --set "$key" >"$work/run.json"
    replay tune "$work/t" --config "$work/cache.yaml" --set "$key" --machine "$machines/8xh20.yaml" -o "$work/tuned.yaml" --json \
        --quiet >"$work/tune.json"
    python3 - "$work/run.json" "$work/tune.json" <<'PY' || fail "run and tune differ with $key"
import json, sys
run, tune = (json.load(open(path)) for path in sys.argv[1:])
run, tune = run["runs"][0], tune["path"][0]["held_out"]
print(run["lookups"], run["hits"], run["seconds"], tune)
sys.exit(not (run["lookups"] == tune["lookups"] and run["hits"] == tune["hits"] and
              abs(run["seconds"] - tune["cost"] / 1e9) < 2e-6))
PY
done
# A capacity that is not used needs no sense.
replay run "$work/t" --capacity 25% --policy lru --set tiers.dram.capacity=16GiB --quiet >/dev/null || fail 'a size stands in the way of a share'
refused 'how large a slot is' run "$work/t" --policy lru --set tiers.dram.capacity=16GiB
# Without the clock the top tier is replayed, and that is said.
replay run "$work/t" --config "$work/cache.yaml" --json >"$work/top.json" 2>"$work/top.err"
holds "$work/top.json" '[(r["policy"], r["slots"]) for r in d["runs"]] == [("lru", 12)]'
grep -q 'note: hbm alone is replayed' "$work/top.err" || fail "nothing is said of dram: $(cat "$work/top.err")"
if grep -q 'hbm alone' "$work/t.err"; then fail 'an import has no hbm'; fi

# What cannot work is refused in words.
refused 'prefetch.experts_per_layer_max' run "$work/t" --machine "$machines/8xh20.yaml" --policy lru --capacity 25% \
    --predictor blend --set prefetch.enabled=true
refused 'hidden states' run "$work/t" --machine "$machines/8xh20.yaml" --predictor lookahead
refused 'crystal_ball' run "$work/t" --machine "$machines/8xh20.yaml" --predictor crystal_ball
refused 'model.expert_bytes' run "$work/t" --machine "$machines/8xh20.yaml" --machine-set model.expert_bytes=0
refused 'expert of layer 4 has' run "$work/high" --machine "$machines/8xh20.yaml" --machine-set model.expert_bytes=0
refused 'expert of layer 4 has' run "$work/high" --policy lru --budget 1MiB
refused "no events of a server's cache (it is from: part of jsonl)" run "$work/even" --as-recorded
refused '--train' predict "$work/t"
refused 'crystal_ball' predict "$work/t" --train "$work/t" --predictor crystal_ball
refused 'lookahead' predict "$work/t" --train "$work/t" --predictor lookahead
refused 'composed' compose "$work/c" --arrivals "$work/arrivals.csv" -o "$work/d"
refused "$work/none" info "$work/none"
refused 'not a trace' info "$work/t.jsonl"
refused 'batch' export "$work/c" --to csv -o "$work/c.csv"
[ ! -e "$work/c.csv" ] && [ ! -e "$work/d" ] || fail 'what was refused left a file'
# What was misunderstood is repeated, with what there is instead.
misused() { # TEXT ARGUMENT...
    refused "$@"
    code=0
    replay "${@:2}" >/dev/null 2>&1 || code=$?
    [ "$code" = 2 ] || fail "tier-replay ${*:2}: exit code $code, not 2"
}
misused 'an argument is missing' merge "$work/t" -o "$work/none.trace"
misused 'the arguments are missing' merge -o "$work/none.trace"
misused '--to xml: expected jsonl or csv' export "$work/t" --to xml -o "$work/none.xml"
misused '--from xml: expected jsonl or csv' import "$work/t" --from xml -o "$work/none.trace"
misused '--share half: expected' sample "$work/t" --share half -o "$work/none.trace"
for clock in '' "--machine $machines/8xh20.yaml"; do
    # shellcheck disable=SC2086
    misused '--slots 0: expected 1 to 16' run "$work/t" --slots 0 $clock
    # shellcheck disable=SC2086
    misused '--slots 17: expected 1 to 16' run "$work/t" --slots 17 $clock
    # shellcheck disable=SC2086
    misused 'exclude each other' run "$work/t" --slots 0 --capacity 25% $clock
    # shellcheck disable=SC2086
    misused '--capacity 250%' run "$work/t" --capacity 250% $clock
done
misused '--adaptive has no effect with --budget' run "$work/t" --policy lru --budget 1MiB --adaptive
misused '--budget knows no slots' run "$work/t" --policy lru --budget 1MiB --machine "$machines/8xh20.yaml"
misused '--top nvme: expected hbm or dram' run "$work/t" --machine "$machines/8xh20.yaml" --top nvme
misused '--dram 150%: expected a share' run "$work/t" --machine "$machines/8xh20.yaml" --capacity 25% --dram 150%
misused '--dram says what lies below hbm' run "$work/t" --machine "$machines/8xh20.yaml" --top dram --dram 50%
misused '--top hbm: the configuration has none' run "$work/t" --machine "$machines/8xh20.yaml" --top hbm
misused 'without a device' run "$work/t" --machine "$machines/cpu-only.yaml" --config "$work/cache.yaml"
misused '--train has no effect' run "$work/t" --machine "$machines/8xh20.yaml" --predictor none --train "$work/t"
misused 'bandwith' run "$work/t" --machine "$machines/8xh20.yaml" --machine-set nvme.bandwith=1GB
for key in tiers.inclusion=inclusive tiers.warm_experts=compute policy.eviction_dram=lfu; do
    misused "${key%=*}: ${key#*=} has no effect without hbm" run "$work/t" --machine "$machines/8xh20.yaml" --top dram --set "$key"
    refused "${key%=*}: ${key#*=} has no effect without hbm" tune "$work/t" --set "$key" -o "$work/none.yaml"
done
[ ! -e "$work/none.yaml" ] || fail 'what was refused left a file'
misused 'no policy is called "foo"; there are lru' run "$work/t" --policy lru,foo --capacity 25%
misused 'belady' run "$work/t" --policy foo --budget 1MiB
for part in 'cut --sequences 77' 'sample --share 0.0001%'; do
    # shellcheck disable=SC2086
    replay $part "$work/t" -o "$work/empty" --quiet 2>"$work/empty.err" || fail "$part: $(cat "$work/empty.err")"
    grep -q 'warning: .*empty: none of the tokens of .*/t was kept' "$work/empty.err" ||
        fail "$part does not say that it kept nothing: $(cat "$work/empty.err")"
done

# An output takes the place of a file, whole, and of nothing else; what is read stays as it is.
cp "$work/t" "$work/kept"
ln -s t "$work/link"
ln "$work/t" "$work/twin"
for to in t link twin; do
    refused 'which is read' export "$work/t" --to jsonl -o "$work/$to"
    refused 'which is read' export "$work/link" --to csv -o "$work/$to"
    refused 'which is read' cut "$work/t" --sequences even -o "$work/$to"
    refused 'which is read' sample "$work/t" --share 50% -o "$work/$to"
    refused 'which is read' merge "$work/even" "$work/t" -o "$work/$to"
    refused 'which is read' compose "$work/t" --arrivals "$work/arrivals.csv" -o "$work/$to"
    refused 'which is read' report "$work/t" -o "$work/$to"
    refused 'which is read' report "$work/even" --train "$work/t" -o "$work/$to"
    refused 'which is read' tune "$work/even" "$work/t" -o "$work/$to"
    cmp "$work/t" "$work/kept"
    [ -L "$work/link" ] || fail 'a link was replaced'
done
refused 'which is read' import --from jsonl "$work/t.jsonl" -o "$work/t.jsonl"
refused 'which is read' compose "$work/t" --arrivals "$work/arrivals.csv" -o "$work/arrivals.csv"
# What lies beside it, whatever it is called, is somebody else's.
cp "$work/t" "$work/u.tmp"
replay export "$work/u.tmp" --to jsonl -o "$work/u" --quiet
replay cut "$work/t" -o "$work/u" --quiet
replay report "$work/t" -o "$work/u" --quiet
cmp "$work/t" "$work/u.tmp"
replay export "$work/t" --to jsonl -o "$work/out.jsonl" --quiet
ln -s out.jsonl "$work/out.link"
replay export "$work/even" --to jsonl -o "$work/out.link" --quiet
replay export "$work/even" --to jsonl -o - | cmp - "$work/out.jsonl"
replay export "$work/even" --to jsonl -o /dev/stdout --quiet | cmp - "$work/out.jsonl"
[ -L "$work/out.link" ] || fail 'a link was replaced'
mkfifo "$work/pipe"
cat "$work/pipe" >"$work/piped" & reader=$!
replay export "$work/even" --to jsonl -o "$work/pipe" --quiet
wait $reader
cmp "$work/piped" "$work/out.jsonl"
refused 'a trace needs a file' cut "$work/t" --sequences even -o "$work/pipe"
refused 'a trace needs a file' import --from jsonl "$work/t.jsonl" -o -
[ -p "$work/pipe" ] || fail 'a pipe was replaced'
replay report "$work/t" -o - --quiet >"$work/t.html"
grep -q '<!DOCTYPE html>' <<<"$(head -n 1 "$work/t.html")" || fail 'no page on standard output'
for command in "export $work/t --to jsonl" "cut $work/t" "report $work/t" "import --from jsonl $work/t.jsonl" "tune $work/t"; do
    # shellcheck disable=SC2086
    refused "$work/none/x: cannot write: No such file" $command -o "$work/none/x"
done
# Before the work: these two would have failed at its begin.
replay cut "$work/t" --sequences 3 -o "$work/one" --quiet
refused 'at least 2 are needed' tune "$work/one" -o "$work/one.yaml"
refused "$work/none/x: cannot write: No such file" tune "$work/one" -o "$work/none/x"
refused 'nothing to report' report "$work/empty" -o "$work/empty.html"
refused "$work/none/x: cannot write: No such file" report "$work/empty" -o "$work/none/x"
if ls "$work"/*.tmp | grep -v '/u.tmp$'; then fail 'temporary files are left'; fi

# Stopped on the way nothing stays: not of the result, and no copy of the trace in TMPDIR.
mkdir "$work/tmp"
stopped() { # FOLDER ARGUMENT...
    local folder=$1; shift
    TMPDIR=$work/tmp "$bin/tier-replay" "$@" >"$work/said" 2>&1 & pid=$!
    for _ in $(seq 2000); do
        [ -z "$(ls "$folder")" ] && kill -0 $pid 2>/dev/null || break
        sleep 0.005
    done
    kill -TERM $pid 2>/dev/null || true
    code=0
    wait $pid || code=$?
    [ "$code" = 143 ] || [ "$code" = 0 ] || fail "stopped, tier-replay $* exits $code: $(cat "$work/said")"
    [ -z "$(ls "$work/tmp")" ] || fail "stopped, tier-replay $* leaves $(ls -R "$work/tmp")"
}
mkdir "$work/out"
mkfifo "$work/slow"
exec 9<>"$work/slow"
head -n 20 "$work/t.jsonl" >&9
stopped "$work/out" import --from jsonl "$work/slow" -o "$work/out/trace"
exec 9>&-
[ "$code" = 143 ] || fail "import was not stopped: $code"
[ -z "$(ls "$work/out")" ] || fail "a stopped import leaves $(ls "$work/out")"
stopped "$work/tmp" report "$work/t" -o "$work/out/page"
stopped "$work/tmp" tune "$work/t" --machine "$machines/8xh20.yaml" -o "$work/out/yaml"
if ls "$work/out"/*.tmp 2>/dev/null; then fail 'temporary files are left'; fi

# On a terminal a remark never stands in the line of the progress, where work is long enough for a bar.
cat >"$work/terminal.py" <<'PY'
import os, pty, re, sys
text = b""
def read(fd):
    global text
    data = os.read(fd, 65536)
    text += data
    return data
pty.spawn(sys.argv[1:], read)
print(text.count(b"left\x1b[K"), "pictures of progress", file=sys.stderr)
sys.exit(b"what-if:" not in text or re.search(rb"left\x1b\[K[^\r\n]", text) is not None)
PY
bar_of() { python3 "$work/terminal.py" "$bin/tier-replay" "$@" >/dev/null || fail "a remark stands in the line of the progress: tier-replay $*"; }

for i in $(seq 24); do tail -n +2 "$work/t.jsonl" | sed "s/^{\"seq\":/&$i/"; done | cat <(head -n 1 "$work/t.jsonl") - >"$work/long.jsonl"
replay import --from jsonl "$work/long.jsonl" -o "$work/long" --quiet
replay export "$work/long" --to jsonl -o "$work/long.jsonl" --quiet
all=lru,lfu,lru_with_frequency,slru,s3fifo,sieve,arc,belady
bar_of run "$work/long" --policy "$all" --capacity 25%,37.5%,50%,75% --machine "$machines/8xh20.yaml"
# Whoever makes a trace of one that lacks something hears of it.
head -c -70 "$work/long" >"$work/torn"
for command in "cut $work/torn" "sample $work/torn --share 50%" "merge $work/torn $work/long" "export $work/torn --to jsonl" \
    "compose $work/torn --arrivals $work/arrivals.csv"; do
    # shellcheck disable=SC2086
    replay $command -o "$work/derived" 2>"$work/derived.err" || fail "$command: $(cat "$work/derived.err")"
    grep -q 'torn: the last [0-9]* bytes are no whole chunk' "$work/derived.err" || fail "$command: $(cat "$work/derived.err")"
    grep -q 'torn was not closed in order' "$work/derived.err" || fail "$command: $(cat "$work/derived.err")"
done
replay cut "$work/t" --steps 0-3 -o "$work/derived" 2>"$work/derived.err"
if grep -q 'not closed' "$work/derived.err"; then fail "what was not read to its end: $(cat "$work/derived.err")"; fi
# A source is text like any other.
replay info "$work/derived" --json --quiet >"$work/derived.json"
holds "$work/derived.json" 'd["source"] == "part of jsonl"'

# Of a damaged trace cut keeps what stands before the damage, and says where that is.
cp "$work/long" "$work/damaged"
printf '\377\377' | dd of="$work/damaged" bs=1 seek=300000 conv=notrunc status=none
refused 'tier-replay cut keeps what stands before it' info "$work/damaged"
refused 'do not match their checksum' sample "$work/damaged" --share 50% -o "$work/none.trace"
replay cut "$work/damaged" -o "$work/saved" --quiet 2>"$work/cut.err" || fail "cut of a damaged trace: $(cat "$work/cut.err")"
last=$(sed -n 's/.*: step \([0-9]*\) is the last whole one.*/\1/p' "$work/cut.err")
[ "${last:-0}" -gt 100 ] || fail "cut does not say where the damage begins: $(cat "$work/cut.err")"
replay info "$work/saved" --json --quiet >"$work/saved.json"
holds "$work/saved.json" "d['steps'] == $last + 1 and d['ended'] is True"
replay export "$work/saved" --to jsonl -o - --quiet | cmp - <(head -n $((last + 2)) "$work/long.jsonl")
replay cut "$work/damaged" --steps "0-$last" -o "$work/saved" --quiet 2>"$work/cut.err"
[ ! -s "$work/cut.err" ] || fail "what was asked for is whole: $(cat "$work/cut.err")"
printf '\377\377' | dd of="$work/damaged" bs=1 seek=3000 conv=notrunc status=none
refused 'do not match their checksum' cut "$work/damaged" -o "$work/none.trace"
[ ! -e "$work/none.trace" ] || fail 'what was refused left a file'

echo 'predict, compose, clock and refusals as they should be'
