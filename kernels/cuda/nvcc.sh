#!/bin/sh
# nvcc.sh NVCC OUTPUT ARGUMENT...: runs nvcc and keeps what the assembler said of registers, spills
# and shared memory in OUTPUT.txt, for `./run check cuda-build`.
set -eu
nvcc=$1 output=$2
shift 2
"$nvcc" "$@" 2>"$output.txt" || { cat "$output.txt" >&2; exit 1; }
