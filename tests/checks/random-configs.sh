#!/usr/bin/env bash
# 500 random configurations, half of them changed while requests run: same bits, and counts that replay
set -eu
"$EXPERTIER_BUILD/tests/sim/check_configs" 500
