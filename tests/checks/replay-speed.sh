#!/usr/bin/env bash
# replay: >= 20 million lookups/s demand-only, >= 2 million with all predictors, constant memory
# Medians of 5 rounds, each over all policies and predictors in turn.
set -eu
data=${EXPERTIER_DATA:-}/routing/gptoss20b_dev.jsonl.xz
[ -f "$data" ] || { echo "skip: $data is not there"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
replay=$EXPERTIER_BUILD/bin/tier-replay bench=$EXPERTIER_BUILD/bin/tier-bench
export TMPDIR=$work
"$replay" import --from jsonl "$data" -o "$work/x1" --quiet
"$bench" replay "$work/x1" --policy lru,lfu,lru_with_frequency,lru_with_prediction,slru,s3fifo,sieve,arc,lru_global,belady \
    --predictors all --rounds 5 | tee "$work/speed"
# 1, 10 and 100 times as long, as files (the last one needs 1 GB); a process each, for the peak memory. What is short is
# measured more often.
ten() { "$replay" merge "$1" "$1" "$1" "$1" "$1" "$1" "$1" "$1" "$1" "$1" -o "$2" --quiet; }
ten "$work/x1" "$work/x10"
ten "$work/x10" "$work/x100"
for policy in lru belady; do
    for times in 1 10 100; do
        case $times in 1) rounds=5 ;; 10) rounds=3 ;; *) rounds=1 ;; esac
        "$bench" replay "$work/x$times" --policy "$policy" --rounds "$rounds" --json |
            sed -E 's/.*"name":"([a-z]+)","lookups":([0-9]+),"seconds":([0-9.]+),.*"lookups_per_second":([0-9]+),.*"peak_bytes":([0-9]+),"index_bytes":([0-9]+).*/\1 \2 \4 \5 \6/' |
            awk -v times="$times" '{ printf "%-7s %4dx %11d lookups  %6.2f million/s  peak memory %8.1f MiB, of it index at most %7.1f MiB\n",
                $1, times, $2, $3 / 1e6, $4 / 1048576, $5 / 1048576; print $1, times, $3, $4 > "/dev/stderr" }' 2>>"$work/length"
    done
done
awk 'NR == FNR { if ($2 == "+") { name = $1 " + " $3; v = $7 } else { name = $1; v = $5 }
        if (name ~ /^(belady|what)/) next
        if (name == "lru + all") all = v; else if (name !~ /\+/ && (least == "" || v < least)) { least = v; who = name }
        next }
    $1 == "lru" { speed[$2] = $3; peak[$2] = $4 }
    END { printf "slowest demand-only policy: %s, %.1f million lookups/s (>= 20 wanted); all predictors: %.2f (>= 2 wanted)\n", who, least, all
          printf "lru at 100x: %.2f of the speed at 1x (>= 0.7 wanted), %.1f MiB more memory (<= 4 wanted)\n",
              speed[100] / speed[1], (peak[100] - peak[1]) / 1048576
          exit !(least >= 20 && all >= 2 && speed[100] >= 0.7 * speed[1] && peak[100] - peak[1] <= 4194304) }' "$work/speed" "$work/length"
