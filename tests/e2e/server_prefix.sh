#!/usr/bin/env bash
# With scheduler.enable_prefix_caching a conversation's next turn computes only what is new: the same
# answers as without, the tokens that were there told in `usage`, the log and the metrics, and replay
# stays exact; also when the blocks are so few that what was kept is given up.
# shellcheck source=tests/e2e/support.sh
. "${EXPERTIER_SOURCE:?}/tests/e2e/support.sh"

field() { # KEY: a number of the answer in $work/answer.json
    grep -o "\"$1\":[0-9]*" "$work/answer.json" | tail -1 | cut -d: -f2
}
text_of() { # as JSON wrote it, ready for the next prompt
    sed 's/.*"text":"\(.*\)","logprobs".*/\1/' "$work/answer.json"
}

# Turns of one conversation, each prompt the last one, its answer and a line more; twice over, with
# somebody else's long text in between.
other="#include $(seq -s ' ' 50)"
converse() { # FILE: "prompt_tokens cached_tokens answer" lines
    local prompt turn round
    : >"$1"
    for round in 1 2; do
        prompt='In the beginning God created the heaven and the earth. And the earth was without form, and void;'
        for turn in 1 2 3 4; do
            complete "$prompt" 24 '"temperature": 0, "ignore_eos": true' >"$work/answer.json"
            grep -q '"finish_reason":"length"' "$work/answer.json" || fail "round $round: $(cat "$work/answer.json")"
            echo "$(field prompt_tokens) $(field cached_tokens) $(text_of)" >>"$1"
            prompt="$prompt$(text_of)\\nAnd God said, Let there be $turn lights."
        done
        complete "$other" 8 '"temperature": 0' >"$work/answer.json"
        echo "$(field prompt_tokens) $(field cached_tokens) $(text_of)" >>"$1"
    done
}
metric() { curl -sS --max-time 10 "$url/metrics" | sed -n "s/^$1 //p"; }

start_server
converse "$work/plain"
[ "$(metric expertier_engine_reused_tokens_total)" = 0 ] || fail 'tokens are reused though nobody asked for it'
stop_server
if grep -q 'enable_prefix_caching' "$work/server.log"; then fail 'the report has what was not asked for'; fi
awk '$2 != 0 { exit 1 }' "$work/plain" || fail "cached tokens where nothing is kept: $(cat "$work/plain")"

# Where experts are imposed a text alone does not say what its KV holds.
if "$bin/tier-bench" decode --model "$model" --routing uniform --rounds 1 --tokens 2 --quiet \
    --set scheduler.enable_prefix_caching=true >"$work/out" 2>&1; then fail 'blocks are shared though experts are imposed'; fi
grep -q 'enable_prefix_caching: true cannot take effect' "$work/out" || fail "no reason: $(cat "$work/out")"

for room in auto 400KiB; do
    rm -f "$work/trace"
    start_server --set scheduler.enable_prefix_caching=true --set kv.capacity=$room --trace "$work/trace" \
        --set scheduler.batch_wait_timeout=5ms
    grep -Eq '^  active +scheduler.enable_prefix_caching: true' "$work/server.log" || fail 'not in the report'
    converse "$work/kept"
    cut -d' ' -f1,3- "$work/plain" >"$work/a"
    cut -d' ' -f1,3- "$work/kept" >"$work/b"
    diff "$work/a" "$work/b" || fail "kv.capacity $room: other answers than without"
    # Whole blocks of 16, never the last token: what the turn before had; in the second round everything, unless the
    # other text took the room.
    awk -v all="$([ $room = auto ] && echo 1)" '$2 % 16 || $2 >= $1 { exit 1 } NR % 5 > 1 && $2 < before - 15 { exit 1 }
         { before = $1 } all && NR > 5 && $2 != int(($1 - 1) / 16) * 16 { exit 1 } !all && NR == 10 && $2 >= $1 - 17 { exit 1 }' \
        "$work/kept" || fail "kv.capacity $room, prompts and what is kept of them: $(cut -d' ' -f1,2 "$work/kept")"
    total=$(awk '{ n += $2 } END { print n }' "$work/kept")
    [ "$total" -gt 0 ] && [ "$(metric expertier_engine_reused_tokens_total)" = "$total" ] ||
        fail "$total cached tokens were told, $(metric expertier_engine_reused_tokens_total) are counted"
    [ "$(metric expertier_engine_kv_used_blocks)" = 0 ] || fail 'blocks are in use though nobody runs'
    [ "$(metric expertier_engine_kv_idle_blocks)" -gt 0 ] || fail 'nothing is kept'
    # Several at once that begin alike.
    pids=''
    for i in 1 2 3 4; do
        complete "And God called the light Day, and the darkness he called Night. And then $i came" 16 '"temperature": 0' \
            >"$work/at-once-$i" & pids+=" $!"
    done
    for pid in $pids; do wait "$pid" || fail 'a request of four at once failed'; done
    for i in 1 2 3 4; do grep -q '"finish_reason"' "$work/at-once-$i" || fail "$(cat "$work/at-once-$i")"; done
    "$bin/tier-stats" --once --url "$url" >"$work/stats"
    grep -q 'not computed again' "$work/stats" || fail "tier-stats: $(cat "$work/stats")"
    "$bin/tier-stats" --once --url "$url" --by report >"$work/stats"
    grep -Eq 'active +scheduler.batch_wait_timeout' "$work/stats" || fail "no wait for company: $(cat "$work/stats")"
    stop_server
    "$bin/tier-replay" run "$work/trace" --as-recorded >"$work/replay" 2>&1 || fail "replay differs: $(cat "$work/replay")"
    echo "kv.capacity $room: $total of $(awk '{ n += $1 } END { print n }' "$work/kept") prompt tokens were there already"
done
