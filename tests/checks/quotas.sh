#!/usr/bin/env bash
# adaptive quotas against equal ones on recorded routing: never worse by more than 0.1 point (needs EXPERTIER_DATA)
set -eu
data=${EXPERTIER_DATA:-}/routing
[ -f "$data/gptoss20b_dev.jsonl.xz" ] || { echo "skip: $data is not there"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
replay=$EXPERTIER_BUILD/bin/tier-replay
"$replay" import --from jsonl "$data/gptoss20b_dev.jsonl.xz" -o "$work/gpt-oss-20b.trace" >/dev/null
for csv in "$data"/bigmoeonedge/*.route.csv; do
    name=$(basename "$csv" .route.csv)
    "$replay" import --from csv "$csv" -o "$work/$name.trace" >/dev/null
done
for trace in "$work"/*.trace; do
    for kind in equal adaptive; do
        flag=''; [ "$kind" = equal ] || flag=--adaptive
        # shellcheck disable=SC2086
        "$replay" run "$trace" --capacity 25%,37.5%,50% --policy lru,lfu $flag --quiet |
            awk -v model="$(basename "$trace" .trace)" -v kind="$kind" '$2 ~ /%/ { print model, $1, $2, kind, $5 }'
    done
done | awk '{ rate[$1 " " $2 " " $3, $4] = $5; seen[$1 " " $2 " " $3] = 1 }
    END {
        for (run in seen) {
            gain = rate[run, "adaptive"] - rate[run, "equal"]
            printf "%s: equal %.2f adaptive %.2f (%+.2f)\n", run, rate[run, "equal"], rate[run, "adaptive"], gain | "sort"
            if (gain < -0.1) bad = 1
            count++
        }
        close("sort")
        exit bad || count < 24
    }'
