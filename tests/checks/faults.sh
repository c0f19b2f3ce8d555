#!/usr/bin/env bash
# faults under load: no crash, hang or wrong token, every failure told (argument: seeds, 20; the line's 100 take minutes)
set -euo pipefail
seeds=${1:-20}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
code=0
meson test -C "$EXPERTIER_BUILD" --no-rebuild --verbose named_faults server_faults >"$log" 2>&1 || code=$?
grep -E ':F:|:E:|Checks:|^==|FAILED| OK | FAIL | TIMEOUT ' "$log" || true
[ "$code" = 0 ] || exit "$code"
[ "$seeds" -ge 100 ] || echo "a slice of $seeds seeds; the whole campaign: ./run check faults 100, and in ./run soak"
EXPERTIER_SOAK_MINUTES=0 "$EXPERTIER_BUILD/tests/faults/check_campaign" "$seeds" | tee "$log"
awk -v seeds="$seeds" '/faults injected/ { sub(/.*: /, "", $0); sub(/ faults injected.*/, "", $0); n = $NF }
    END { printf "%d faults over %d seeds (>= %d wanted)\n", n, seeds, 100 * seeds; exit !(n >= 100 * seeds) }' "$log"
