#!/bin/sh
# Guards what a machine can judge of how the tree is cut and written.
#
#   structure.sh CHECK [ROOT [BUILD]]
#
# CHECK is one of: floors, libraries, prefixes, headers, lines, paths, pipes. Every violation is printed as
# "file:line: what is wrong"; the exit status is 1 if there is one, 77 if the check cannot run here.
set -eu
LC_ALL=C
export LC_ALL
check=${1:?usage: structure.sh CHECK [ROOT [BUILD]]}
root=${2:-${EXPERTIER_SOURCE:?}}
build=${3:-${EXPERTIER_BUILD:-}}
cd "$root"

# Files of the tree, without build folders and what git keeps for itself.
files() { # NAME-PATTERN...
    for pattern; do
        find . \( -name .git -o -name 'build*' -o -name __pycache__ \) -prune -o \
            -type f -name "$pattern" -print
    done | sed 's|^\./||' | sort
}

# Sources of the product, by floor; tests may include anything.
sources() { files '*.c' '*.h' '*.cu' '*.cuh' | grep -E '^(src|kernels|tiering|predictor|tools)/' || true; }

# ---- floors: a folder includes only itself and what stands below it ----

# FOLDER: what it may include besides itself.
allowed_folders() {
    case $1 in
    src/base) echo '' ;;
    src/port) echo 'src/base' ;;
    src/model) echo 'src/base src/port' ;;
    kernels | src/device) echo 'src/base src/port src/model' ;;
    src/comm) echo 'src/base src/port src/model src/device' ;;
    # No arithmetic below the cache: it serves other engines, too.
    tiering) echo 'src/base src/port src/model src/device' ;;
    predictor) echo 'src/base src/port src/model src/device tiering' ;;
    src/engine) echo 'src/base src/port src/model src/device src/comm kernels tiering predictor' ;;
    src/server)
        echo 'src/base src/port src/model src/device src/comm kernels tiering predictor src/engine' ;;
    tools)
        echo 'src/base src/port src/model src/device src/comm kernels tiering predictor src/engine' \
            'src/server' ;;
    *) echo "?" ;;
    esac
}

# Includes in quotes of the files on stdin: "file:line header".
quoted_includes() {
    tr '\n' '\0' | xargs -0 -r grep -nHE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' |
        sed -E 's|^([^:]+:[0-9]+):[^"]*"([^"]*)".*|\1 \2|'
}

check_floors() {
    sources | quoted_includes | while read -r place header; do
        case $header in *.inc) continue ;; esac         # made by the build
        folder=${header%%/*}
        [ -d "src/$folder" ] && folder=src/$folder
        if [ ! -d "$folder" ]; then
            echo "$place: \"$header\" does not begin with a folder of the tree"
            continue
        fi
        path=${place%%:*}
        case $path in
        src/*/*) from=${path#src/} from=src/${from%%/*} ;;
        *) from=${path%%/*} ;;
        esac
        [ "$folder" = "$from" ] && continue
        allowed=$(allowed_folders "$from")
        case " $allowed " in
        *" $folder "*) ;;
        *) echo "$place: $from may not include \"$header\": $folder does not stand below it" ;;
        esac
    done
}

# ---- libraries: each third-party header is included in its one place ----

system_headers=' alloca assert complex cpuid ctype dirent dlfcn endian errno fcntl fenv float ftw getopt
 glob grp immintrin inttypes iso646 langinfo libgen limits locale malloc math mntent net netdb poll
 pthread pwd regex sched semaphore setjmp signal spawn stdalign stdarg stdatomic stdbool stddef stdint
 stdio stdlib stdnoreturn string strings syslog termios tgmath threads time uchar ucontext unistd utime
 wchar wctype x86intrin xmmintrin emmintrin '
system_headers=$(echo "$system_headers" | tr '\n' ' ')

# HEADER: glob of the files that may include it; empty for a system header; "?" if not known.
home_of_header() {
    case $1 in
    liburing.h | liburing/*) echo 'tiering/io_uring.c' ;;
    hwloc.h | hwloc/*) echo 'src/port/topo.c' ;;
    xxhash.h) echo 'src/port/hash.c' ;;
    yaml.h) echo 'src/port/yaml.c' ;;
    jansson.h) echo 'src/port/json.c' ;;
    pcre2.h) echo 'src/port/regex.c' ;;
    lzma.h) echo 'src/port/xz.c' ;;
    microhttpd.h) echo 'src/server/http.c' ;;
    check.h) echo 'tests/*' ;;
    libtiering.h) echo 'docs/examples/*' ;;     # as others see it: installed
    sanitizer/*) echo 'src/base/asan.h' ;;
    nccl.h) echo 'src/comm/comm_nccl.c' ;;
    mpi.h) echo 'src/comm/comm_mpi.c tests/cudahost/nccl.c' ;;
    cuda* | cublas* | nv* | mma.h) echo 'kernels/cuda/* src/device/device_cuda.c tests/cudahost/* tests/gpu/*' ;;
    sys/* | linux/* | netinet/* | arpa/* | net/* | asm/*) echo '' ;;
    *.h)
        case $system_headers in
        *" ${1%.h} "*) echo '' ;;
        *) echo '?' ;;
        esac
        ;;
    *) echo '?' ;;
    esac
}

matches() { # PATH GLOB...
    path=$1
    shift
    for glob; do
        # shellcheck disable=SC2254
        case $path in $glob) return 0 ;; esac
    done
    return 1
}

check_libraries() {
    set -f
    files '*.c' '*.h' '*.cu' '*.cuh' | tr '\n' '\0' |
        xargs -0 -r grep -nHE '^[[:space:]]*#[[:space:]]*include[[:space:]]*<[^>]*>' |
        sed -E 's|^([^:]+:[0-9]+):[^<]*<([^>]*)>.*|\1 \2|' |
        while read -r place header; do
            home=$(home_of_header "$header")
            [ -n "$home" ] || continue
            if [ "$home" = '?' ]; then
                echo "$place: <$header> is neither of the system nor a library with a place here"
            elif ! matches "${place%%:*}" $home; then
                echo "$place: <$header> may be included in $home only"
            fi
        done
}

# ---- prefixes: what a static library exports carries its folder's prefix ----

check_prefixes() {
    command -v nm >/dev/null 2>&1 || { echo 'skipped: no nm here'; exit 77; }
    found=0
    for entry in src/base/libbase.a:base src/port/libport.a:port src/model/libmodel.a:model \
        kernels/libkernels.a:kern src/device/libdevice.a:dev src/comm/libcomm.a:comm \
        tiering/libtiering.a:tier predictor/libpredictor.a:pred src/engine/libengine.a:eng \
        src/server/libserver.a:srv tools/libcli.a:cli; do
        archive=${entry%%:*} prefix=${entry##*:}
        [ -f "$build/$archive" ] || continue
        found=1
        # Names with two underscores come from the compiler (sanitizers, coverage).
        nm -g --defined-only "$build/$archive" | awk 'NF == 3 && $3 !~ /^__/ { print $3 }' |
            grep -vE "^${prefix}_" | sort -u | while read -r symbol; do
            folder=$(dirname "$archive")
            place=$(find "$folder" -name '*.c' -exec grep -nHE "(^|[^A-Za-z0-9_])$symbol([^A-Za-z0-9_]|\$)" {} + |
                head -n 1 | cut -d: -f1-2)
            echo "${place:-$archive}: $symbol is exported without the prefix ${prefix}_"
        done
    done
    [ "$found" = 1 ] || { echo "skipped: no static libraries under $build"; exit 77; }
}

# ---- headers: each compiles alone, and twice, with every compiler that is here ----

check_headers() {
    compilers=''
    for compiler in gcc clang; do
        command -v "$compiler" >/dev/null 2>&1 && compiler_works "$compiler" &&
            compilers="$compilers $compiler"
    done
    [ -n "$compilers" ] || { echo 'skipped: neither gcc nor clang here'; exit 77; }
    sources | grep '\.h$' | while read -r header; do
        name=${header#src/}
        case $header in
        kernels/cpu/simd*.h) continue ;;    # bodies over the lanes of vec_*.h, included after it
        *avx512*) flags='-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi -mavx512vnni -mgfni -mavx2 -mfma -mf16c' ;;
        *avx2*) flags='-mavx2 -mfma -mf16c' ;;
        *) flags='' ;;
        esac
        for compiler in $compilers; do
            # shellcheck disable=SC2086
            printf '#include "%s"\n#include "%s"\n' "$name" "$name" |
                "$compiler" -xc -std=gnu11 -D_GNU_SOURCE -DEXPERTIER_VERSION='"0"' -Wall -Wextra \
                    -Wno-unused-function -Werror $flags -I. -Isrc -fsyntax-only - 2>&1 |
                sed -n "s|^\([^:]*:[0-9]*\):[0-9]*: \(fatal \)\{0,1\}error: |\1: $name alone, $compiler: |p"
        done
    done
}

compiler_works() { echo 'int x;' | "$1" -xc -fsyntax-only - 2>/dev/null; }

# ---- lines: at most 100 columns, no tabs, no blanks at the end ----

check_lines() {
    files '*.c' '*.h' '*.cu' '*.cuh' | tr '\n' '\0' | xargs -0 -r awk '
        /\t/ { print FILENAME ":" FNR ": a tab; indent with blanks" }
        /[ \r]$/ { print FILENAME ":" FNR ": blanks at the end of the line" }
        {
            gsub(/[\200-\277]/, "")     # count characters, not bytes
            if (length($0) > 100) print FILENAME ":" FNR ": " length($0) " columns; at most 100"
        }'
}

# ---- paths: nothing in the tree names a folder of somebody's machine ----

check_paths() {
    roots='work root home'
    pattern=''
    for name in $roots; do
        pattern="$pattern|/$name/"
    done
    files '*' | tr '\n' '\0' |
        xargs -0 -r grep -nHIE "(^|[^A-Za-z0-9_.\$}~*)-])(${pattern#|})" |
        sed -E 's|^([^:]+:[0-9]+):(.{0,80}).*|\1: a path of one machine: \2|'
}

# ---- pipes: no script that minds its pipes feeds a reader that stops early ----

# Under pipefail the writer that is killed by SIGPIPE fails the pipeline, now and then.
check_pipes() {
    files '*.sh' run | tr '\n' '\0' | xargs -0 -r grep -lZE '^set .*pipefail' | xargs -0 -r awk '
        # The line counts on which a pipe stands, and what follows it may stand on the next.
        FNR == 1 { open = 0 }
        /^[ \t]*#/ { next }
        {
            line = (open ? "|" : "") $0
            open = line ~ /[^|]\|[ \t]*$/
            if (line ~ /(^|[^|])\|[ \t]*(grep[ \t]+(-[A-Za-z-]+[ \t]+)*(-[A-Za-z]*[qm]|--quiet|--max-count)|head([ \t]|$))/)
                print FILENAME ":" FNR ": a pipe into what stops reading early: SIGPIPE fails it now and then"
        }'
}

case $check in
floors | libraries | prefixes | headers | lines | paths | pipes) ;;
*) echo "structure.sh: unknown check $check" >&2; exit 2 ;;
esac
report=$(mktemp)
trap 'rm -f "$report"' EXIT
status=0
"check_$check" >"$report" || status=$?
cat "$report"
case $status in
77) exit 77 ;;
*) [ ! -s "$report" ] ;;
esac
