# Shared by the end-to-end tests: start a server on a free loopback port, ask it, stop it.
# shellcheck shell=bash
set -euo pipefail

source_dir=${EXPERTIER_SOURCE:?}
bin=${EXPERTIER_BUILD:?}/bin
model=$source_dir/models/pebble
work=$(mktemp -d)
server='' program=''

finish() {
    if [ -n "$server" ]; then kill -KILL "$server" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap finish EXIT

skip() { echo "skip: $*"; exit 77; }
fail() {
    echo "FAILED: $*"
    if [ -f "$work/server.log" ]; then sed 's/^/    server: /' "$work/server.log"; fi
    exit 1
}

command -v curl >/dev/null 2>&1 || skip 'curl is not installed'

# Sets url once $server says in its log that it listens.
await_server() {
    url=''
    for _ in $(seq 600); do
        url=$(sed -n '/.*listening on \(http:[^ "]*\).*/{s//\1/p;q}' "$work/server.log")
        if [ -n "$url" ]; then return; fi
        kill -0 "$server" 2>/dev/null || { server=''; fail 'the server did not start'; }
        sleep 0.05
    done
    fail 'the server did not say that it listens within 30 s'
}

# Starts $program, tier-server if that is not set, with these arguments; sets $url.
start_server() {
    # Here, not by the redirection: that happens when the child runs, and the last server's address
    # would be read until then.
    : >"$work/server.log"
    "${program:-$bin/tier-server}" --model "$model" --port 0 --set "tiers.nvme.index=$work/expertier.index" \
        "$@" >"$work/server.log" 2>&1 &
    server=$!
    await_server
}

# Stops it in order and checks that it says 0.
stop_server() {
    kill -TERM "$server"
    local code=0
    wait "$server" || code=$?
    server=''
    [ "$code" = 0 ] || fail "the server ended with exit code $code after SIGTERM"
}

# One completion; prints the JSON. answer_s: how long it may take, in seconds, where that is not a minute.
complete() { # PROMPT MAX_TOKENS [more JSON members]
    curl -sS --max-time "${answer_s:-60}" "$url/v1/completions" -H 'Content-Type: application/json' \
        -d "{\"prompt\": \"$1\", \"max_tokens\": $2${3:+, $3}}"
}
