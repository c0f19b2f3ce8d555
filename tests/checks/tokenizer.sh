#!/usr/bin/env bash
# ids equal Hugging Face tokenizers on 10,000 strings, for DeepSeek-V3's tokenizer and pebble's
set -eu
meson test -C "$EXPERTIER_BUILD" --no-rebuild --verbose tokenizer_golden tokenizer tokenizer_llm 2>&1 | grep -Ev '^(ninja|Full log|$)' | grep -E 'strings|:F:|Checks:|skip|Skip|OK|FAIL|SKIP|TIMEOUT|^(Ok|Fail|Skipped):'
exit "${PIPESTATUS[0]}"
