#!/usr/bin/env bash
# Runs a program as several ranks of one machine: ranks.sh COUNT PROGRAM [ARGUMENT...]
# Exits 77, after saying why, where there is no MPI.
set -eu
count=$1
shift
command -v mpirun >/dev/null 2>&1 || { echo 'skip: mpirun is not installed (Debian package openmpi-bin)'; exit 77; }
if [ -n "${EXPERTIER_BUILD:-}" ] && ! grep -q '^#define EXPERTIER_HAS_MPI' "$EXPERTIER_BUILD/tests/ranks.h"; then
    echo 'skip: this build has no MPI (Debian package libopenmpi-dev)'
    exit 77
fi
# More ranks than cores, root in containers, and no copies out of another process's memory, which
# containers forbid.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_btl=self,vader OMPI_MCA_plm=isolated
# What Open MPI keeps for its life is no leak of ours.
export LSAN_OPTIONS=${LSAN_OPTIONS:+$LSAN_OPTIONS:}exitcode=0
exec mpirun -n "$count" "$@"
