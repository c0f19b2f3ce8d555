# Jobs of several ranks, for scripts that have read tests/e2e/support.sh.
# shellcheck shell=bash disable=SC2154

stopped=''      # a rank that hangs; nobody else would end it if mpirun died
# mpirun ends its processes only if it is given the time.
stop_job() {
    if [ -n "$server" ]; then kill -TERM "$server" 2>/dev/null || true; sleep 2; fi
    if [ -n "$stopped" ]; then kill -KILL "$stopped" 2>/dev/null || true; fi
    finish
}
trap stop_job EXIT

ranks() { bash "$source_dir/tests/support/ranks.sh" "$@"; }
code=0
ranks 2 true || code=$?
[ "$code" = 77 ] && exit 77
[ "$code" = 0 ] || fail "mpirun cannot start two processes here (exit code $code)"

make_wide() { # KIND
    mkdir "$work/$1"
    "$EXPERTIER_BUILD/tests/support/tiny_model" "$work/$1" "$1"
    cp "$source_dir/models/pebble"/tokenizer*.json "$work/$1"
}

# A folder for each of two ranks, $work/of0/NAME and of1/NAME, with the index of an undamaged model.
# Where rank $victim has it, a bit is wrong in the gates of 16 experts of a layer: it cannot read them.
make_damaged() { # MODEL LAYER
    local name victim=$victim shard base at
    name=$(basename "$1")
    rm -rf "$work/of0" "$work/of1"
    mkdir "$work/of0" "$work/of1"
    cp -a "$1" "$work/of0/$name"
    cp -a "$1" "$work/of1/$name"
    for shard in "$work/of$victim/$name"/*.safetensors; do
        base=$((8 + $(od -An -tu8 -N8 "$shard")))
        touch -r "$shard" "$work/stamp"
        for at in $(head -c $base "$shard" | grep -aoE "layers\.$2\.mlp\.experts\.(.|1[0-5])\.gate_proj\.weight\"[^}]*" |
            sed 's/.*data_offsets":\[\([0-9]*\),.*/\1/'); do
            at=$((base + at + 100))
            printf '%b' "\\x$(printf %02x $(($(od -An -tu1 -j $at -N1 "$shard") ^ 1)))" |
                dd of="$shard" bs=1 seek=$at conv=notrunc status=none
        done
        touch -r "$work/stamp" "$shard"
    done
    cat >"$work/each" <<END
#!/usr/bin/env bash
exec "\$@" "$work/of\$OMPI_COMM_WORLD_RANK/$name"
END
}

# A server of two ranks of $program, tier-server if that is not set.
start_ranks() { # [argument...]
    : >"$work/server.log"
    bash "$source_dir/tests/support/ranks.sh" 2 "${program:-$bin/tier-server}" --model "$model" --port 0 \
        --set "tiers.nvme.index=$work/i" "$@" >"$work/server.log" 2>&1 &
    server=$!
    await_server
}
rank_pid() { # RANK: its process, found by what mpirun told it
    local pid
    for pid in $(cat "/proc/$server/task/"*/children); do
        tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qx "OMPI_COMM_WORLD_RANK=$1" &&
            echo "$pid" && return
    done
    fail "rank $1 has no process"
}
# Waits for the end of the job; prints the time it took.
ended_within() { # SECONDS SINCE
    local code=0
    while kill -0 "$server" 2>/dev/null; do
        [ $(($(date +%s%N) / 1000000 - $2)) -le $(($1 * 1000)) ] || fail "the job is still there after $1 s"
        sleep 0.1
    done
    wait "$server" || code=$?
    server=''
    [ "$code" != 0 ] || fail 'the job ended with 0 although a rank was lost'
    # 128 + 9 is what mpirun gives for a rank that was killed.
    case $code in 134 | 135 | 136 | 139) fail "mpirun itself crashed (signal $((code - 128)))" ;; esac
    if grep ORTE_ERROR_LOG "$work/server.log"; then fail 'a rank told mpirun what it cannot read'; fi
    stopped=''
    echo "ended after $(($(date +%s%N) / 1000000 - $2)) ms: $(grep -E 'error +ranks|exited on signal' "$work/server.log" | tail -n 1)"
}
now_ms() { echo $(($(date +%s%N) / 1000000)); }
answer() { sed -n 's/.*"text": *"\([^"]*\)".*/\1/p'; }
