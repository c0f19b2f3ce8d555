#!/usr/bin/env bash
# lru_global and Belady agree with published hit rates within 0.2 points (needs EXPERTIER_DATA)
set -eu
meson test -C "$EXPERTIER_BUILD" --no-rebuild --verbose replay 2>&1 | grep -Ev '^(ninja|Full log|$)' | grep -E 'points|:F:|Checks:|skip|Skip|OK|FAIL|SKIP|TIMEOUT|^(Ok|Fail|Skipped):'
exit "${PIPESTATUS[0]}"
