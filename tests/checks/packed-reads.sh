#!/usr/bin/env bash
# cold packed experts through the tiers: >= 0.95 of fio at its size and depth, >= 1.7x one reader (needs fio)
set -euo pipefail
command -v fio >/dev/null 2>&1 || { echo 'skip: fio is not installed'; exit 77; }
out=$(mktemp)
pool=/proc/sys/vm/nr_hugepages
before=$(cat "$pool" 2>/dev/null || true)
trap 'rm -f "$out"; [ ! -w "$pool" ] || echo "$before" >"$pool"' EXIT
trap 'exit 1' INT TERM
# The tiers read into huge pages; fio gets them only where some are set aside.
[ ! -w "$pool" ] || echo $((before + 80)) >"$pool"
"$EXPERTIER_BUILD/bin/tier-bench" io --tiers --json --size 512KiB,2MiB --depth 8,32 --rounds 9 --time 400ms "$@" >"$out"
# One reader can be outrun only as far as the disk gains from more reads at once. Where fio gains less
# than 1.7 / 0.95 times by depth, 1.7 cannot be shown; then what fio gains is the measure.
rc=0
sed 's/{"size":/\n&/g' "$out" | awk '
    function field(name) {
        if (!match($0, "\"" name "\":[0-9.]+")) return 0
        return substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) + 0
    }
    /^[{]"size"/ {
        ours = field("fio_fraction"); one = field("one_reader_ratio"); gain = field("fio_depth_gain")
        if (ours == 0 || one == 0 || gain == 0) { print "a rate is missing: " $0; bad = 1; next }
        printf "%d KiB, depth %d: %.3f of fio (>= 0.95 wanted), %.2f times one reader (>= 1.7 wanted; fio gains %.2f by depth), first pass %.0f MiB/s\n",
            field("size") / 1024, field("depth"), ours, one, gain, field("first_pass_bytes_per_second") / 1048576
        n++
        if (ours < 0.95) bad = 1
        if (gain * 0.95 >= 1.7) { able++; if (one < 1.7) bad = 1 }
        else if (one < 0.95 * gain) bad = 1
    }
    END {
        if (bad || n == 0) exit 1
        if (able == 0) { print "skip: this disk gains too little by depth to show 1.7 times one reader; all else holds"; exit 77 }
    }' || rc=$?
exit "$rc"
