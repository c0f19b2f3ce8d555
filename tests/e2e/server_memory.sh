#!/usr/bin/env bash
# The sum of the memory table is a promise: the server's resident memory stays below it under load, with
# every slot in use and every place in the batch taken.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

if grep -q '__[at]san_init' "$bin/tier-server"; then
    echo 'skip: a sanitizer keeps memory of its own that no account of ours holds'
    exit 77
fi

# A size as the table prints it, in KiB.
kib() { # NUMBER UNIT
    awk -v n="$1" -v u="$2" 'BEGIN {
        f["B"] = 1 / 1024; f["KiB"] = 1; f["MiB"] = 1024; f["GiB"] = 1048576; f["TiB"] = 1073741824
        if (!(u in f)) exit 1
        printf "%d\n", n * f[u] + 0.5 }'
}

measure() { # NAME TOKENS [server argument...]
    local name=$1 tokens=$2 sum rss highest table client clients=''; shift 2
    start_server "$@"
    # shellcheck disable=SC2046
    sum=$(kib $(sed -n 's/^ *sum  *\([0-9.]*\) *\([KMGT]*i*B\).*/\1 \2/p' "$work/server.log")) ||
        fail 'no sum in the memory table'
    for client in 1 2 3 4 5 6 7 8; do
        curl -sS --max-time 500 "$url/v1/completions" -H 'Content-Type: application/json' -d "{
            \"prompt\": \"In the beginning of part $client God created the heaven and\", \"seed\": $client,
            \"max_tokens\": $tokens, \"temperature\": 1, \"ignore_eos\": true}" >"$work/answer.$client" &
        clients+=" $!"
    done
    highest=0
    # shellcheck disable=SC2086
    while kill -0 $clients 2>/dev/null; do
        rss=$(awk '/^VmRSS/ { print $2 }' "/proc/$server/status")
        [ "$rss" -le "$highest" ] || highest=$rss
        sleep 0.2
    done
    # The kernel's own highest mark covers what happened between two looks.
    rss=$(awk '/^VmHWM/ { print $2 }' "/proc/$server/status")
    [ "$rss" -le "$highest" ] || highest=$rss
    for client in 1 2 3 4 5 6 7 8; do
        grep -q '"finish_reason":"length"' "$work/answer.$client" ||
            fail "request $client: $(head -c 300 "$work/answer.$client")"
    done
    table=$(awk -v r="$highest" -v s="$sum" 'BEGIN { printf "%.1f", 100 * r / s }')
    echo "$name: resident $((highest / 1024)) MiB at most, the table's sum is $((sum / 1024)) MiB ($table%)"
    [ "$highest" -le "$sum" ] || fail "$name: resident memory went over the printed sum"
    stop_server
}

measure 'pebble, a quarter of its experts' 150 --set tiers.dram.capacity=25%
measure 'pebble, all experts' 100 --set tiers.dram.capacity=100%
measure 'pebble, KV cache full' 150 --set kv.capacity=3MiB --set engine.threads=2

# What clients send that is refused in the end, or never ends, is in the sum, too.
hostile() {
    local sum highest i fd line body held=() pids='' crowded=0
    start_server --set tiers.dram.capacity=100% --set kv.capacity=3MiB
    # shellcheck disable=SC2046
    sum=$(kib $(sed -n 's/^ *sum  *\([0-9.]*\) *\([KMGT]*i*B\).*/\1 \2/p' "$work/server.log"))
    { printf '{"prompt":"'; head -c 4190000 /dev/zero | tr '\0' 'a'; printf '"}'; } >"$work/letters"
    { printf '{"prompt":[1'; head -c 2080000 /dev/zero | sed 's/\x00/,1/g'; printf ']}'; } >"$work/ids"
    for i in 1 2; do
        for body in letters ids; do
            curl -sS --max-time 100 -o "$work/hostile.$body.$i" "$url/v1/completions" --data-binary "@$work/$body" & pids+=" $!"
        done
    done
    # shellcheck disable=SC2086
    wait $pids
    grep -q context_length_exceeded "$work/hostile.letters.1" || fail "letters: $(head -c 300 "$work/hostile.letters.1")"
    grep -qE 'JSON values|context_length' "$work/hostile.ids.1" || fail "ids: $(head -c 300 "$work/hostile.ids.1")"
    # Bodies that stay unfinished: as many as have room wait, the others are refused when they end.
    for i in $(seq 40); do
        exec {fd}<>"/dev/tcp/127.0.0.1/${url##*:}" || fail 'no connection'
        printf 'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000002\r\n\r\n' >&"$fd"
        head -c 1000000 /dev/zero >&"$fd"
        held+=("$fd")
    done
    complete 'In the beginning' 4 | grep '"text"' >/dev/null || fail 'others are not answered meanwhile'
    highest=$(awk '/^VmHWM/ { print $2 }' "/proc/$server/status")
    for fd in "${held[@]}"; do
        printf 'xx' >&"$fd"
        IFS= read -r -t 30 line <&"$fd" || true
        case $line in *' 503 '*) crowded=$((crowded + 1)) ;; *' 400 '*) ;; *) fail "a body that ended: $line" ;; esac
        exec {fd}>&-
    done
    echo "hostile: resident $((highest / 1024)) MiB at most, the table's sum is $((sum / 1024)) MiB; $crowded of 40 bodies refused"
    [ "$highest" -le "$sum" ] || fail 'hostile: resident memory went over the printed sum'
    [ "$crowded" -ge 20 ] && [ "$crowded" -le 26 ] || fail "$crowded of 40 bodies of 1 MB were refused; 16 MiB have room"
    stop_server
}
hostile

if [ -n "${EXPERTIER_BIG_MODEL:-}" ]; then
    model=$EXPERTIER_BIG_MODEL
    measure "$model, 30%" 12 --set tiers.dram.capacity=30% \
        --set "tiers.nvme.index=$model/expertier.index"
fi
