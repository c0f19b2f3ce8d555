#!/usr/bin/env bash
# demand reads reach at least 0.90 of what fio reads on the same file (needs fio)
set -eu
command -v fio >/dev/null 2>&1 || { echo 'skip: fio is not installed'; exit 77; }
# A shared disk's rate moves by a half from one second to the next: five rounds of 1 s left the median
# of a cell 10% and more of noise, and the worst of six cells is looked at.
out=$("$EXPERTIER_BUILD/bin/tier-bench" io --json --rounds 25 --time 500ms "$@")
printf '%s\n' "$out"
printf '%s\n' "$out" | awk -F'"fio_fraction": *' '
    { for (i = 2; i <= NF; i++) { v = $i + 0; n++; if (min == "" || v < min) min = v } }
    END { printf "smallest fio_fraction of %d rows: %.3f (>= 0.90 wanted)\n", n, min; exit !(n > 0 && min >= 0.90) }'
