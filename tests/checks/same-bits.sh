#!/usr/bin/env bash
# 200 tokens' logits are the same bits for any tier size, backend, thread count, batch and chunk
set -eu
"$EXPERTIER_BUILD/tests/unit/engine/check_engine_bits" 200
