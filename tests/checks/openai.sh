#!/usr/bin/env bash
# the openai Python client completes, chats and streams
set -eu
meson test -C "$EXPERTIER_BUILD" --no-rebuild --verbose openai_client 2>&1 | grep -Ev '^(ninja|Full log|$)' | grep -E 'openai|:F:|passed|Checks:|skip|Skip|OK|FAIL|SKIP|TIMEOUT|^(Ok|Fail|Skipped):'
exit "${PIPESTATUS[0]}"
