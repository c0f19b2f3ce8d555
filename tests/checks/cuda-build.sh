#!/usr/bin/env bash
# nvcc builds the kernels for sm_80, sm_90, sm_100 and PTX: no warning, no spill (needs nvcc)
set -eu
cd "$EXPERTIER_BUILD"
ninja -t targets all | grep -q '^cuda-kernels:' || { echo 'skip: this build found no nvcc'; exit 77; }
ninja cuda-kernels >cuda-kernels.log 2>&1 || { cat cuda-kernels.log; exit 1; }
# One line a kernel and target: registers, static shared memory, stack, spills.
cat kernels/cuda/*.o.txt | "$(command -v c++filt || echo cat)" | awk '
    /Compiling entry function/ {
        line = $0; sub(/.*Compiling entry function ./, "", line); sub(/. for .sm_[0-9a]+.*/, "", line)
        name = line; arch = $0; sub(/.* for ./, "", arch); sub(/[^0-9a-z_].*/, "", arch)
    }
    /spill stores/ { stack = $1; spills = $5 + $9 }
    /Used [0-9]+ registers/ {
        match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5) + 0
        shared = 0; if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH) + 0
        printf "%-7s %4d registers %6d B shared %4d B stack %3d B spilled  %s\n", arch, registers, shared, stack, spills, name
        rows++; bad += spills > 0
    }
    /warning/ { print; warnings++ }
    END { printf "%d kernels x targets, %d with spills, %d warnings (0 and 0 wanted)\n", rows, bad, warnings
          exit !(rows > 0 && bad == 0 && warnings == 0) }'
# The programs of a machine with a card build here, too.
built=$("$EXPERTIER_SOURCE/tests/gpu/run.sh" --build-only --out "$EXPERTIER_BUILD/gpu-build" 2>/dev/null | grep ' build ')
echo "$built"
[ "${built#ok}" != "$built" ]
