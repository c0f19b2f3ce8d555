#!/usr/bin/env bash
# cold packed experts through the tiers: >= 0.95 of fio at its size and depth, >= 1.7x one reader (needs fio)
set -euo pipefail
command -v fio >/dev/null 2>&1 || { echo 'skip: fio is not installed'; exit 77; }
out=$(mktemp)
trap 'rm -f "$out"' EXIT
"$EXPERTIER_BUILD/bin/tier-bench" io --tiers --json --size 2MiB --depth 8,32 --rounds 7 "$@" >"$out"
sed 's/{"size":/\n&/g' "$out" | awk '
    function rate(way) {
        if (!match($0, "\"" way "\":[{]\"bytes_per_second\":[0-9]+")) return 0
        return substr($0, RSTART + length(way) + 23, RLENGTH - length(way) - 23) + 0
    }
    /^[{]"size"/ {
        match($0, /"size":[0-9]+/); size = substr($0, 9, RLENGTH - 7) + 0
        match($0, /"depth":[0-9]+/); depth = substr($0, RSTART + 8, RLENGTH - 8) + 0
        ours = rate("io_uring"); one = rate("threads_1"); fio = rate("fio")
        if (ours == 0 || one == 0 || fio == 0) { print "a rate is missing: " $0; bad = 1; next }
        printf "%d KiB, depth %d: io_uring %.0f MiB/s, fio %.0f (%.3f, >= 0.95 wanted), one reader %.0f (%.2fx, >= 1.7 wanted)\n",
            size / 1024, depth, ours / 1048576, fio / 1048576, ours / fio, one / 1048576, ours / one
        n++
        if (ours / fio < 0.95 || ours / one < 1.7) bad = 1
    }
    END { exit bad || n == 0 }'
