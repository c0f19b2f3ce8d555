#!/usr/bin/env bash
# Everything about one machine's CUDA card in under 8 minutes, unattended: builds the kernels and
# their tests with nvcc and the host's compiler (nothing else is needed), runs each kernel beside its
# reference, compute-sanitizer, bandwidths, the cuda device, rooflines; one table at the end.
#
#   tests/gpu/run.sh [--out DIR] [--build DIR] [--disk DIR] [--seeds N] [--only STAGE,...]
#                    [--arch NN] [--build-only] [--quick]
#
#   --out DIR     results.jsonl, table.txt, log.txt; default gpu-results
#   --build DIR   a build folder of the product: its tier-run is run on device cuda
#   --disk DIR    a folder on the disk to measure
#   --only        of build,kernels,sanitizers,bandwidth,device,roofline,product (build always runs)
#   --arch NN     build for sm_NN, with --build-only on a machine without a card
#
# Each stage has its own time limit and none stops the next. Exit status 0: all ok; 1: something
# failed; 77: no card.
set -uo pipefail
cd "$(dirname "$0")/../.."

out=gpu-results product='' disk='' seeds=200 only='' arch='' build_only='' quick=''
while [ $# -gt 0 ]; do
    case $1 in
    --out | --build | --disk | --seeds | --only | --arch)
        [ $# -ge 2 ] || { echo "run.sh: $1 wants a value" >&2; exit 2; } ;;&
    --out) out=$2; shift ;;
    --build) product=$2; shift ;;
    --disk) disk=$2; shift ;;
    --seeds) seeds=$2; shift ;;
    --only) only=$2; shift ;;
    --arch) arch=$2; shift ;;
    --build-only) build_only=1 ;;
    --quick) quick=1 ;;
    *) sed -n '2,17s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift
done
[ -z "$quick" ] || seeds=20
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
bin=$out/bin log=$out/log.txt
export CARD_ROWS=$out/results.jsonl
rm -rf "$bin"
mkdir -p "$bin"
: >"$CARD_ROWS"
: >"$log"
: >"$out/table.txt"
started=$SECONDS
failed=0

say() { printf '== %3d s  %s\n' $((SECONDS - started)) "$*" | tee -a "$log" >&2; }
result() { printf '%s\n' "$*" | tee -a "$out/table.txt" >>"$log"; }
json_text() { printf '%s' "$1" | tr -d '"\\\n' | tr '\t' ' ' | cut -c1-180; }

# A row for what no program of ours reports itself.
row() { # STAGE NAME ok|FAIL|skip NOTE
    local ok=true
    case $3 in FAIL) ok=false; failed=1 ;; skip) ok=null ;; esac
    printf '{"stage":"%s","name":"%s","ok":%s,"note":"%s"}\n' "$1" "$2" "$ok" \
        "$(json_text "$4")" >>"$CARD_ROWS"
    result "$(printf '%-4s %-9s %-38s  %s' "$3" "$1" "$2" "$4")"
}

wanted() { [ -z "$only" ] || case ",$only," in *",$1,"*) ;; *) return 1 ;; esac; }

# At most what is left of the whole: 450 s.
limit_of() { # SECONDS
    local left=$((450 - SECONDS + started))
    [ "$left" -ge 2 ] || left=2
    echo $(($1 < left ? $1 : left))
}

# Runs a program of ours under a limit; its rows go to the table, the rest to the log.
rows_of() { # STAGE NAME SECONDS COMMAND...
    local stage=$1 name=$2 limit status said
    limit=$(limit_of "$3")
    shift 3
    said=$bin/said.$$
    timeout --kill-after=5 "$limit" "$@" >"$said" 2>&1
    status=$?
    cat "$said" >>"$log"
    grep -E '^(ok  |FAIL) (kernels|device|memory|copies|roofline|disk) ' "$said" >>"$out/table.txt"
    case $status in
    0) ;;
    1) failed=1 ;;
    # Only a disk or NCCL may be skipped: nvidia-smi found a card.
    77)
        case $stage,$name in
        disk,* | *,check_nccl_card) row "$stage" "$name" skip "$(grep -m1 skipped "$said")" ;;
        *) row "$stage" "$name" FAIL "$(grep -m1 skipped "$said")" ;;
        esac
        ;;
    124 | 137) row "$stage" "$name" FAIL "over its $limit s" ;;
    *) row "$stage" "$name" FAIL "status $status: $(grep -v '^ok ' "$said" | tail -n 1)" ;;
    esac
    rm -f "$said"
}

# ---- build: objects beside each other, one program each ----

find_nvcc() { command -v nvcc || { [ -x /usr/local/cuda/bin/nvcc ] && echo /usr/local/cuda/bin/nvcc; }; }

compile_all() {
    local cuda cflags kernels objects=() pids=() pid ok=0 name
    cuda=$(cd "$(dirname "$nvcc")/.." && pwd)
    cflags=(-std=gnu11 -O2 -g -ffp-contract=off -Wall -Wextra -Wno-missing-field-initializers
        -D_GNU_SOURCE -DEXPERTIER_CUDA -I. -Isrc -isystem "$cuda/include" -c)
    # The kernels as kernels/cuda/meson.build has them, for this card alone.
    kernels=(-std=c++17 -O3 -fmad=false -lineinfo -Xcompiler -Wall,-Wextra -D_GNU_SOURCE -I. -Isrc
        -gencode "arch=compute_$arch,code=sm_$arch" -Xptxas -v -c)
    job() { # OBJECT COMMAND...
        local object=$bin/$1
        shift
        objects+=("$object")
        "$@" -o "$object" >"$object.txt" 2>&1 &
        pids+=($!)
        # About as many at a time as there are processors.
        while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n 2>/dev/null || break; done
    }
    for name in slabs rows heads tiles mla gate vector step; do
        job "cuda_$name.o" "$nvcc" "${kernels[@]}" "kernels/cuda/$name.cu"
    done
    # NCCL's header, where one is; the library is found when it runs.
    local nccl=() name_of
    for name_of in "${NCCL_HOME:-/nonexistent}/include" "$cuda/include" /usr/include /usr/local/include; do
        if [ ${#nccl[@]} = 0 ] && [ -e "$name_of/nccl.h" ]; then nccl=(-isystem "$name_of"); fi
    done
    job stream.o "$nvcc" "${kernels[@]}" tests/gpu/stream.cu
    for name in kernels/kern.c kernels/cpu/ref_*.c \
        src/base/{clock,err,must,rng,str}.c src/device/device{,_cuda,_host,_memory,_sim}.c \
        tests/cudahost/cases{,_mla,_product,_step,_vector}.c \
        tests/gpu/{card,guard_card,check_card,check_device_card,bench_card,bench_products,bench_attention,bench_rows,bench_disk}.c; do
        job "$(echo "${name%.c}" | tr / _).o" "$cc" "${cflags[@]}" "$name"
    done
    if [ ${#nccl[@]} -gt 0 ]; then
        for name in src/base/{log,option}.c src/comm/{cards,comm,comm_self,comm_nccl}.c \
            tests/support/card_collectives.c tests/gpu/check_nccl_card.c; do
            job "$(echo "${name%.c}" | tr / _).o" "$cc" "${cflags[@]}" -DEXPERTIER_NCCL "${nccl[@]}" "$name"
        done
    fi
    if [ "$(uname -m)" = x86_64 ]; then
        local wide=(-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512vbmi2 -mavx512vnni -mgfni -mfma -mf16c)
        for name in kernels/cpu/*avx2.c; do
            job "$(basename "$name" .c).o" "$cc" "${cflags[@]}" -mavx2 -mfma -mf16c "$name"
        done
        for name in kernels/cpu/*avx512.c; do
            case $name in *x16*) wide+=(-mavx512bf16) ;; esac
            job "$(basename "$name" .c).o" "$cc" "${cflags[@]}" "${wide[@]}" "$name"
        done
    fi
    for pid in "${pids[@]}"; do wait "$pid" || ok=1; done
    cat "$bin"/*.o.txt >>"$log"
    [ "$ok" = 0 ] || return 1
    local mains='check_card|check_device_card|check_nccl_card|bench_card|bench_disk' parts=() object
    for object in "${objects[@]}"; do
        [[ $object =~ tests_gpu_($mains)\.o$ ]] || parts+=("$object")
    done
    local bench=() check=() ranks=() lib=()
    for object in "${parts[@]}"; do
        case $object in
        *tests_gpu_bench_*) bench+=("$object") ;;
        *tests_cudahost_* | *guard_card*) check+=("$object") ;;
        *src_comm_* | *base_log* | *base_option* | *card_collectives*) ranks+=("$object") ;;
        *) lib+=("$object") ;;
        esac
    done
    link() { # PROGRAM OBJECT...
        local program=$1
        shift
        "$nvcc" -o "$bin/$program" "$bin/tests_gpu_$program.o" "$@" "${lib[@]}" \
            -Xcompiler -pthread -lm -ldl >>"$log" 2>&1
    }
    link check_card "${check[@]}" && link check_device_card && link bench_card "${bench[@]}" &&
        link bench_disk || return 1
    [ ${#nccl[@]} = 0 ] || link check_nccl_card "${ranks[@]}"
}

nvcc=$(find_nvcc)
cc=$(command -v cc || command -v gcc)
card=''
if command -v nvidia-smi >/dev/null 2>&1; then
    card=$(nvidia-smi --query-gpu=name,compute_cap,memory.total,driver_version --format=csv,noheader 2>/dev/null | sed -n 1p)
fi
[ -n "$nvcc" ] || { echo 'run.sh: no nvcc here (CUDA toolkit)' >&2; exit 77; }
[ -n "$cc" ] || { echo 'run.sh: no C compiler here' >&2; exit 77; }
if [ -z "$arch" ] && [ -n "$card" ]; then arch=$(echo "$card" | cut -d, -f2 | tr -d ' .'); fi
if [ -z "$card" ] && [ -z "$build_only" ]; then
    echo 'run.sh: no CUDA card here (nvidia-smi finds none); --build-only builds without one' >&2
    exit 77
fi
say "${card:-no card}; $("$nvcc" --version | grep release); commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
say "building for sm_${arch:=90}"
if ! compile_all; then
    row build 'nvcc and host compiler' FAIL "$(grep -m1 -E 'error|Error' "$log")"
    cat "$out/table.txt"
    exit 1
fi
spills=$(cat "$bin"/cuda_*.o.txt | awk '/spill stores/ { s += $5 + $9 } END { print s + 0 }')
warnings=$(cat "$bin"/*.o.txt | grep -c 'warning' || true)
row build "sm_$arch" "$([ "$warnings" = 0 ] && echo ok || echo FAIL)" \
    "$((SECONDS - started)) s, $spills bytes spilled, $warnings warnings"
if [ -n "$build_only" ]; then
    cat "$out/table.txt"
    "$bin/bench_card"
    "$bin/check_card"
    "$bin/check_device_card"
    say "built in $bin"
    exit 0
fi

# ---- kernels beside their reference; a process each, as a sticky error ends one ----

kernels='rmsnorm rope latent gate combine greedy experts experts_tiles product product_tiles absorb mla embed add columns pages'
if wanted kernels; then
    say "kernels: $seeds shapes each"
    for k in $kernels; do rows_of kernels "$k" 40 "$bin/check_card" --seeds "$seeds" "$k"; done
fi

if wanted device; then
    say 'the cuda device'
    rows_of device check_device_card 60 "$bin/check_device_card"
    if [ -x "$bin/check_nccl_card" ]; then
        # An empty part would be the current folder.
        nccl_path=${NCCL_HOME:+$NCCL_HOME/lib}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        LD_LIBRARY_PATH=${nccl_path#:} rows_of device check_nccl_card 60 "$bin/check_nccl_card"
    else
        row device check_nccl_card skip 'no nccl.h here (NCCL_HOME names where it is)'
    fi
fi

if wanted bandwidth; then
    say 'bandwidths'
    rows_of copies bench_card 40 "$bin/bench_card" copies
    if [ -n "$disk" ]; then
        rows_of disk bench_disk 60 "$bin/bench_disk" "$disk"
    else
        row disk reading skip 'skipped: no folder given (--disk DIR)'
    fi
fi

if wanted roofline; then
    say 'rooflines'
    rows_of roofline products 80 "$bin/bench_card" ${quick:+--quick} products
    rows_of roofline attention 40 "$bin/bench_card" ${quick:+--quick} attention
    rows_of roofline rows 30 "$bin/bench_card" ${quick:+--quick} rows
fi

# ---- compute-sanitizer on a slice ----

sanitize() { # TOOL NAME SECONDS COMMAND...
    local tool=$1 name=$2 limit status said=$bin/sanitizer.$1.${2%% *}.txt
    limit=$(limit_of "$3")
    shift 3
    CARD_EXACT=1 CARD_ROWS='' timeout --kill-after=5 "$limit" compute-sanitizer --tool "$tool" \
        --error-exitcode 9 --print-limit 5 "$@" >"$said" 2>&1
    status=$?
    cat "$said" >>"$log"
    case $status in
    0) row sanitizer "$tool, $name" ok "$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$said" | tail -n 1 | sed 's/=* *//')" ;;
    124 | 137) row sanitizer "$tool, $name" FAIL "over its $limit s" ;;
    *) row sanitizer "$tool, $name" FAIL "status $status: $(grep -m1 -E 'Invalid|Race|Error|error|Uninit|Barrier|FAIL' "$said" | sed 's/=* *//')" ;;
    esac
}

if wanted sanitizers; then
    if command -v compute-sanitizer >/dev/null 2>&1; then
        say 'compute-sanitizer'
        # Each tool on cases of each kernel; beside each other, for they are bound by the host.
        {
            sanitize memcheck cases 70 "$bin/check_card" --seeds 6 &
            sanitize racecheck cases 70 "$bin/check_card" --seeds 3 &
            sanitize synccheck cases 70 "$bin/check_card" --seeds 3 &
            sanitize initcheck 'V3 shapes' 70 "$bin/bench_card" --quick products attention rows &
            sanitize memcheck 'V3 shapes' 70 "$bin/bench_card" --quick products attention rows &
            wait
        }
        grep -q '"stage":"sanitizer".*"ok":false' "$CARD_ROWS" && failed=1
    else
        row sanitizer all skip 'skipped: no compute-sanitizer here'
    fi
fi

# ---- the product on the card ----

if wanted product; then
    if [ -z "$product" ]; then
        row product tier-run skip 'skipped: no build folder of the product given (--build DIR)'
    elif [ ! -x "$product/bin/tier-run" ]; then
        row product tier-run skip "skipped: no bin/tier-run in $product"
    else
        say 'the product'
        timeout 60 tests/gpu/product.sh "$product" >"$bin/product.txt" 2>&1
        status=$?
        cat "$bin/product.txt" >>"$log"
        row product tier-run "$([ $status = 0 ] && echo ok || echo FAIL)" \
            "$(tail -n 1 "$bin/product.txt")"
    fi
fi

grep -q '"ok":false' "$CARD_ROWS" && failed=1
say 'done'
printf '\n%s\n' "${card:-no card}"
cat "$out/table.txt"
printf '%d ok, %d failed, %d skipped in %d s; %s\n' "$(grep -c '"ok":true' "$CARD_ROWS")" \
    "$(grep -c '"ok":false' "$CARD_ROWS")" "$(grep -c '"ok":null' "$CARD_ROWS")" \
    $((SECONDS - started)) "$CARD_ROWS"
rm -rf "$bin"
exit "$failed"
