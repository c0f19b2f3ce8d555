#!/usr/bin/env bash
# settings change by SIGHUP and PUT while answers stream: the same bytes, none lost, memory comes back
set -eu
bash "$EXPERTIER_SOURCE/tests/e2e/server_reconfigure.sh"
