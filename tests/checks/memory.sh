#!/usr/bin/env bash
# the server's resident memory stays below the printed sum under load (EXPERTIER_BIG_MODEL adds a model)
set -eu
exec bash "$EXPERTIER_SOURCE/tests/e2e/server_memory.sh"
