#!/usr/bin/env bash
# the account of memory adds up to what the kernel says is resident within 3%, under load
set -eu
exec bash "$EXPERTIER_SOURCE/tests/e2e/server_ledger.sh"
