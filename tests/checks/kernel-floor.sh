#!/usr/bin/env bash
# matrix-vector products of every weight type at 0.90 or more of reading from DRAM, one and two threads
set -eu
exec "$EXPERTIER_BUILD/tests/kernels/kcheck" --floor
