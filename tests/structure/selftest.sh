#!/bin/sh
# Every structure check passes a small clean tree and names file and line of each planted violation.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
failed=0

plant() { # FILE LINE...
    mkdir -p "$tree/$(dirname "$1")"
    file=$tree/$1
    shift
    printf '%s\n' "$@" >"$file"
}

check() { # NAME -> output in $said, status in $status
    status=0
    said=$(sh "$here/structure.sh" "$1" "$tree" "$tree/build") || status=$?
}

expect_clean() {
    check "$1"
    [ "$status" = 77 ] && return 0
    if [ "$status" != 0 ] || [ -n "$said" ]; then
        printf '%s: a clean tree is refused (%s):\n%s\n' "$1" "$status" "$said"
        failed=1
    fi
}

expect_caught() { # NAME START-OF-A-LINE
    check "$1"
    if [ "$status" = 77 ]; then
        printf '%s\n' "$said"
        return 0
    fi
    if [ "$status" != 1 ] || ! printf '%s\n' "$said" | grep -qF "$2"; then
        printf '%s: not caught (%s): %s\nit said:\n%s\n' "$1" "$status" "$2" "$said"
        failed=1
    fi
}

expect_missed() { # NAME START-OF-A-LINE
    check "$1"
    if printf '%s\n' "$said" | grep -F "$2"; then
        printf '%s: caught what is in order\n' "$1"
        failed=1
    fi
}

plant src/base/err.h '#ifndef BASE_ERR_H' '#define BASE_ERR_H' '#include <stdint.h>' \
    'int32_t base_err_code(void);' '#endif'
plant src/base/err.c '#include "base/err.h"' 'int32_t base_err_code(void)' '{' '    return 0;' '}'
plant tiering/store.h '#ifndef TIERING_STORE_H' '#define TIERING_STORE_H' '#include "base/err.h"' '#endif'
plant tiering/io_uring.c '#include <liburing.h>' '#include "tiering/store.h"'
plant predictor/trace.h '#ifndef PREDICTOR_TRACE_H' '#define PREDICTOR_TRACE_H' '#endif'
mkdir -p "$tree/build/src/base"
archive() {
    for compiler in cc gcc clang; do
        command -v "$compiler" >/dev/null 2>&1 || continue
        (cd "$tree" && "$compiler" -Isrc -c src/base/err.c -o build/err.o &&
            rm -f build/src/base/libbase.a && ar rc build/src/base/libbase.a build/err.o)
        return
    done
}
archive
for name in floors libraries prefixes headers lines paths pipes; do
    expect_clean "$name"
done

plant tiering/store.c '#include "base/err.h"' '' '#include "predictor/trace.h"' '#include "store.h"'
expect_caught floors 'tiering/store.c:3: tiering may not include "predictor/trace.h"'
expect_caught floors 'tiering/store.c:4: "store.h" does not begin with a folder of the tree'
plant src/base/err.h '#include "tiering/store.h"'
expect_caught floors 'src/base/err.h:1: src/base may not include "tiering/store.h"'

plant tiering/store.c '#include <stdlib.h>' '#include <liburing.h>' '#include <zstd.h>'
expect_caught libraries 'tiering/store.c:2: <liburing.h> may be included in tiering/io_uring.c only'
expect_caught libraries 'tiering/store.c:3: <zstd.h> is neither of the system nor a library'

plant src/base/err.c 'int base_fine(void);' 'int stray_name(void);' 'int base_fine(void) { return 0; }' \
    'int stray_name(void) { return 0; }'
archive
expect_caught prefixes 'src/base/err.c:2: stray_name is exported without the prefix base_'

plant tiering/lease.h '#ifndef TIERING_LEASE_H' '#define TIERING_LEASE_H' 'struct tier_lease {' \
    '    uint32_t layer;' '};' '#endif'
expect_caught headers 'tiering/lease.h:4: tiering/lease.h alone, '
plant tiering/twice.h 'struct tier_twice {' '    int a;' '};'
expect_caught headers 'tiering/twice.h:1: tiering/twice.h alone, '

long=$(printf '%0101d' 0)
plant tools/main.c '// fine' "// $long" "$(printf '\tint a;')" 'int b; '
expect_caught lines 'tools/main.c:2: 104 columns; at most 100'
expect_caught lines 'tools/main.c:3: a tab'
expect_caught lines 'tools/main.c:4: blanks at the end'
plant tests/a.sh 'set -euo pipefail' 'a || grep -q x y' 'a | grep -q x' 'a | grep -c -q x' 'a |' '    head -n 1'
plant tests/b.sh 'set -eu' 'a | grep -q x'
expect_caught pipes 'tests/a.sh:3: a pipe into what stops'
expect_caught pipes 'tests/a.sh:4: a pipe into what stops'
expect_caught pipes 'tests/a.sh:6: a pipe into what stops'
expect_missed pipes 'tests/a.sh:2:'
expect_missed pipes 'tests/b.sh'

plant docs/use.md 'Put the model' "into /$(printf work)/models now"
expect_caught paths 'docs/use.md:2: a path of one machine: '

exit "$failed"
