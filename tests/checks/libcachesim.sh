#!/usr/bin/env bash
# lru, lfu, arc, s3fifo and sieve miss exactly as the package libcachesim's, one request at a time
set -eu
exec python3 "$EXPERTIER_SOURCE/tests/e2e/libcachesim_misses.py" 0
