#!/usr/bin/env bash
# repack killed at 50 moments ends with the same bytes; verify catches 1,000 flipped bits; a full disk
set -euo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
code=0
meson test -C "$EXPERTIER_BUILD" --no-rebuild --verbose --suite tiering pack named_faults >"$log" 2>&1 || code=$?
grep -E ' flipped |^killed |:F:|:E:|Checks:| OK | FAIL | TIMEOUT ' "$log" || true
[ "$code" = 0 ] || exit "$code"
[ "$(sed -n 's/^\([0-9]*\) bits flipped.* \([0-9]*\) caught.*/\2/p' "$log" | awk '{ n += $1 } END { print n + 0 }')" = 1000 ] ||
    { echo 'not 1,000 flipped bits were caught'; exit 1; }
grep -q '^killed 50 times' "$log" || { echo 'not killed 50 times'; exit 1; }
