#!/usr/bin/env bash
# replay gives the live server's resident, miss and eviction counts exactly (3 budgets, 2 policies)
set -eu
exec bash "$EXPERTIER_SOURCE/tests/e2e/replay_live.sh"
