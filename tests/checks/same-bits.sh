#!/usr/bin/env bash
# 200 tokens' logits are the same bits for any tier size, backend, thread count, batch and chunk
set -eu
meson test -C "$EXPERTIER_BUILD" --no-rebuild --verbose bits 2>&1 | grep -Ev '^(ninja|Full log|$)' | grep -E ':F:|other bits|Checks:|skip|Skip|OK|FAIL|SKIP|TIMEOUT|^(Ok|Fail|Skipped):'
exit "${PIPESTATUS[0]}"
