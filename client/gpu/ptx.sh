#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes kernels.ptx from kernels.cu, or checks that it still is what that gives.
#
#   client/gpu/ptx.sh          builds it: after every change of kernels.cu or kernels.h
#   client/gpu/ptx.sh --check  the lint test: everywhere, that it was built from the sources as they are; where nvcc is,
#                              that building gives the same, and that every GPU that this nvcc knows takes it
#
# The lowest GPU is what nvcc 13 still knows, 7.5; the lowest version of the language is what that needs, 6.3, which every
# driver since CUDA 10.0 can translate. nvcc writes its own version there, which older drivers refuse.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PTX=client/gpu/kernels.ptx
SOURCES=(client/gpu/kernels.cu client/gpu/kernels.h)
COMPUTE=75
LANGUAGE=6.3

sources_digest() { cat "${SOURCES[@]}" | sha256sum | cut -d' ' -f1; }

# build FILE
build() {
    local raw
    raw=$(mktemp --suffix=.ptx)
    nvcc -ptx -O3 -arch="compute_$COMPUTE" -I . -o "$raw" client/gpu/kernels.cu
    # nvcc puts digests of paths and times into the names of internal symbols.
    {
        printf '// Made by client/gpu/ptx.sh from sources with SHA-256 %s\n' "$(sources_digest)"
        sed -E -e "s/^\.version .*/.version $LANGUAGE/" -e 's/_INTERNAL_[0-9a-f]+_([0-9]+_kernels_cu)_[0-9a-f]+/_\1_/g' "$raw"
    } >"$1"
    rm -f "$raw"
}

# The compiler that made a file, as the file says it.
compiler() { grep -m 1 '^// Cuda compilation tools' "$1"; }

case ${1:-} in
--check) ;;
'')
    build "$PTX"
    exit
    ;;
*)
    echo "usage: client/gpu/ptx.sh [--check]" >&2
    exit 2
    ;;
esac

grep -q "SHA-256 $(sources_digest)\$" "$PTX" || {
    echo "$PTX was not made from the kernels as they are: run client/gpu/ptx.sh where nvcc is"
    exit 1
}
if ! command -v nvcc >/dev/null || ! command -v ptxas >/dev/null; then
    echo "SKIP: nvcc is not installed: $PTX was not built again"
    exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for gpu in $(ptxas --help | grep -oE "'sm_[0-9]+'" | tr -d "'" | sort -u); do
    ptxas -arch="$gpu" -o "$work/cubin" "$PTX" || {
        echo "$gpu does not take $PTX"
        exit 1
    }
    # The benchmark's, written by hand, is for those with bf16.
    ((${gpu#sm_} < 80)) || ptxas -arch="$gpu" -o "$work/cubin" client/bench/gpu_load.ptx || {
        echo "$gpu does not take client/bench/gpu_load.ptx"
        exit 1
    }
done
build "$work/kernels.ptx"
if [[ $(compiler "$work/kernels.ptx") != "$(compiler "$PTX")" ]]; then
    echo "SKIP: $PTX is of another nvcc: not compared with what this one makes"
    exit 0
fi
diff "$PTX" "$work/kernels.ptx"
