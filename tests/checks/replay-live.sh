#!/usr/bin/env bash
# replay gives the live server's resident, miss and eviction counts exactly: every policy, with prefetch and without, two tiers and three
set -eu
exec bash "$EXPERTIER_SOURCE/tests/e2e/replay_live.sh"
