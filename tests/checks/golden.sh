#!/usr/bin/env bash
# logits and greedy tokens equal Hugging Face transformers on nine tiny models, and pebble's reference
set -eu
meson test -C "$EXPERTIER_BUILD" --no-rebuild --verbose golden pebble 2>&1 | grep -Ev '^(ninja|Full log|$)' | grep -E 'largest|:F:|Checks:|skip|Skip|OK|FAIL|SKIP|TIMEOUT|^(Ok|Fail|Skipped):'
exit "${PIPESTATUS[0]}"
