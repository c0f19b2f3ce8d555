#!/usr/bin/env bash
# The demo: serves models/pebble with DRAM for a quarter of its experts, asks two questions through
# the HTTP API, shows the tiers' hit rates, stops the server.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=build/bin
work=$(mktemp -d)
server=''
stop() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap stop EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say '1. Start the server: the experts stay on disk, a quarter fits in DRAM, an eighth in (simulated) HBM'
echo "\$ tier-server --model models/pebble --port 0 --set tiers.hbm.capacity=12.5% --set tiers.dram.capacity=25% --trace $work/demo.trace"
"$bin/tier-server" --model models/pebble --port 0 \
    --set tiers.hbm.capacity=12.5% --set tiers.dram.capacity=25% \
    --trace "$work/demo.trace" >"$work/log" 2>&1 &
server=$!
url=''
for _ in $(seq 300); do
    url=$(sed -n '/.*listening on \(http:[^ ]*\).*/{s//\1/p;q}' "$work/log")
    [ -n "$url" ] && break
    kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
done
[ -n "$url" ] || { cat "$work/log" >&2; echo 'the server did not start' >&2; exit 1; }
sed 's/^/   /' "$work/log"

# Prints the text of a streamed answer as it arrives.
ask() { # PROMPT MAX_TOKENS
    printf '\033[36m%s\033[0m' "$1"
    curl -sN "$url/v1/completions" -H 'Content-Type: application/json' \
        -d "{\"prompt\": \"$1\", \"max_tokens\": $2, \"stream\": true, \"temperature\": 0.6, \"seed\": 7}" |
        sed -un 's/^data: \({.*\)/\1/p' | jq -rj --unbuffered '.choices[0].text // empty'
    echo
}

say '2. Ask it something (it knows the King James Bible, Linux documentation and C headers)'
ask 'And it came to pass in those days, that' 64
ask 'The kernel allocates memory for the device' 64

say '3. Where did the experts come from?'
echo '$ tier-stats --once'
"$bin/tier-stats" --once --url "$url"

say '4. Stop; then replay the recorded routing: it must give the same counts'
kill -TERM "$server"
wait "$server"
server=''
"$bin/tier-replay" run "$work/demo.trace" --as-recorded
