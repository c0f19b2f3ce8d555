#!/usr/bin/env bash
# every recording of data/routing: imported, exported as JSONL and CSV, imported again: no value of routing differs
set -eu
data=${EXPERTIER_DATA:-}/routing
[ -d "$data" ] || { echo "skip: $data is not there"; exit 77; }
command -v python3 >/dev/null 2>&1 || { echo 'skip: python3 is not installed'; exit 77; }
replay=$EXPERTIER_BUILD/bin/tier-replay
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Its own reading of both formats: one line a token with phase, token and each layer's experts.
cat >"$work/read.py" <<'PY'
import json, lzma, sys
path = sys.argv[1]
text = lzma.open(path, "rt") if path.endswith(".xz") else open(path)
if "csv" in path.rsplit("/", 1)[-1]:
    # The last two columns say what a cache of theirs had and read: no routing. Gates have six digits.
    for line in text:
        if line.startswith("#"):
            if "expert_bytes=" in line:
                print(line.split(" dense_bytes=")[0].strip())
        elif line[0].isdigit():
            v = line.strip().split(",")
            print(*v[:6], "%.6g" % float(v[6]))
else:
    header = json.loads(text.readline())
    print(sorted((k, v) for k, v in header.items() if k in ("layers", "first_moe_layer", "experts", "top_k", "model")))
    for line in text:
        t = json.loads(line)
        print(t["seq"], t["phase"], t["token"], t["experts"])
PY

same() { # WHAT A B
    python3 "$work/read.py" "$2" >"$work/a"
    python3 "$work/read.py" "$3" >"$work/b"
    cmp -s "$work/a" "$work/b" || { echo "$1: they differ:"; diff "$work/a" "$work/b" | head -n 6; exit 1; }
    echo "$1: $(wc -l <"$work/a") lines, equal"
}

for file in "$data"/*.jsonl.xz "$data"/*/*.csv; do
    case $file in *.csv) from=csv other=jsonl ;; *) from=jsonl other=csv ;; esac
    name=$(basename "$file")
    "$replay" import --from "$from" "$file" -o "$work/1" --quiet
    "$replay" export "$work/1" --to "$from" -o "$work/1.$from" --quiet
    same "$name -> trace -> $from" "$file" "$work/1.$from"
    # Through the other format and back.
    "$replay" export "$work/1" --to "$other" -o "$work/1.$other" --quiet
    "$replay" import --from "$other" "$work/1.$other" -o "$work/2" --quiet
    "$replay" export "$work/2" --to "$other" -o "$work/2.$other" --quiet
    cmp "$work/1.$other" "$work/2.$other"
    echo "$name -> $other -> trace -> $other: the same bytes"
    rm -f "$work"/[12]*
done
