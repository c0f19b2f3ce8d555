#!/usr/bin/env bash
# broken files, settings and requests each give one sentence
set -eu
meson test -C "$EXPERTIER_BUILD" --no-rebuild --verbose safetensors shape tokenizer json yaml store trace ask option cli 2>&1 | grep -Ev '^(ninja|Full log|$)' | grep -E ':F:|Checks:|skip|Skip|OK|FAIL|SKIP|TIMEOUT|^(Ok|Fail|Skipped):'
exit "${PIPESTATUS[0]}"
