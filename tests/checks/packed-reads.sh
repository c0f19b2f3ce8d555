#!/usr/bin/env bash
# cold packed experts through the tiers: >= 0.95 of fio at its size and depth, >= 1.7x one reader (needs fio)
#
# Held on a disk of a set rate and latency, 1 GB/s and 1 ms (tests/support/paced_disk.c, below all readers;
# needs root and FUSE), and told for the folder that TMPDIR names: a virtual disk whose rate differs by 40%
# from one second to the next decides nothing about 5%, and gains nothing by depth. With arguments, such as
# `--dir /nvme` or `--file F`, that disk is held to the same instead.
set -euo pipefail
command -v fio >/dev/null 2>&1 || { echo 'skip: fio is not installed'; exit 77; }
bench=$EXPERTIER_BUILD/bin/tier-bench
work=$(mktemp -d)
pool=/proc/sys/vm/nr_hugepages
before=$(cat "$pool" 2>/dev/null || true)
cleanup() {
    umount "$work/disk" 2>/dev/null || true
    rm -rf "$work"
    [ ! -w "$pool" ] || echo "$before" >"$pool"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
# The tiers read into huge pages; fio gets them only where some are set aside.
[ ! -w "$pool" ] || echo $((before + 80)) >"$pool"

# One reader can be outrun only as far as the disk gains from more reads at once: where fio gains less
# than 1.7 / 0.95 times by depth, what fio gains is the measure.
judge() { # HOLD JSON
    sed 's/{"size":/\n&/g' "$2" | awk -v hold="$1" '
        function field(name) {
            if (!match($0, "\"" name "\":[0-9.]+")) return 0
            return substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) + 0
        }
        /^[{]"size"/ {
            ours = field("fio_fraction"); one = field("one_reader_ratio"); gain = field("fio_depth_gain")
            if (ours == 0 || one == 0 || gain == 0) { print "a rate is missing: " $0; bad = 1; next }
            printf "%d KiB, depth %d: %.3f of fio%s, %.2f times one reader%s (fio gains %.2f by depth)\n",
                field("size") / 1024, field("depth"), ours, hold ? " (>= 0.95 wanted)" : "", one,
                hold ? " (>= 1.7 wanted)" : "", gain
            n++
            if (ours < 0.95) bad = 1
            if (gain * 0.95 >= 1.7) { able++; if (one < 1.7) bad = 1 }
            else if (one < 0.95 * gain) bad = 1
        }
        END {
            if (n == 0) exit 1
            if (!hold) exit 0
            if (bad) exit 1
            if (able == 0) { print "skip: this disk gains too little by depth to show 1.7 times one reader; all else holds"; exit 77 }
        }'
}
read_all() { # JSON ARGUMENT...
    "$bench" io --tiers --json --quiet --depth 8,32 "${@:2}" >"$1"
}

if [ $# -gt 0 ]; then
    read_all "$work/json" --size 512KiB,2MiB --rounds 9 --time 400ms "$@"
    judge 1 "$work/json"
    exit
fi
echo "== ${TMPDIR:-/tmp}, told"
read_all "$work/json" --dir "${TMPDIR:-/tmp}" --bytes 1GiB --size 64KiB,512KiB --rounds 3 --time 300ms
judge 0 "$work/json"
paced=$EXPERTIER_BUILD/tests/support/paced_disk
if [ "$(id -u)" != 0 ] || [ ! -w /dev/fuse ] || [ ! -x "$paced" ]; then
    echo 'skip: a disk of a set rate needs root and /dev/fuse; name a disk (--dir FOLDER) to hold that one'
    exit 77
fi
echo '== a disk of 1 GB/s and 1 ms, held'
mkdir "$work/disk"
head -c 768M /dev/urandom >"$work/bytes"
"$paced" "$work/bytes" "$work/disk" 1000000000 1000
read_all "$work/json" --file "$work/disk/disk" --size 512KiB,2MiB --rounds 3 --time 400ms
judge 1 "$work/json"
