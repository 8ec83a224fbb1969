#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Packs a release build, its tests that run on a real GPU, and every library but the C library's, for a machine with a GPU
# and no packages to install. `./dev bench gpu-pack` builds first.
#
#   tests/bench/gpu/pack.sh BUILD FILE.tar.gz
#
# There: unpack, and spillway-gpu-pack/run.sh --results FOLDER. Its C library must be at least as new as this machine's.
set -euo pipefail
(($# == 2)) || {
    echo "usage: tests/bench/gpu/pack.sh BUILD FILE.tar.gz" >&2
    exit 2
}
build=$(realpath "$1") file=$(realpath -m "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pack=$work/spillway-gpu-pack
mkdir -p "$pack/bin" "$pack/lib" "$pack/tests"

cp "$build"/{spillwayd,spillway-gpu,spillctl,spillbench} "$pack/bin/"
cp -L "$build/libspillway.so.0" "$pack/lib/"
cp "$build/tests/unit_test_gpu_kernels" "$pack/tests/"
# Those that say so run on a real driver; the others need one that fails on command.
mapfile -t sources < <(grep -l SPILLWAY_TEST_GPU tests/system/test_gpu_*.c)
for source in "${sources[@]}"; do
    cp "$build/tests/system_$(basename "$source" .c)" "$pack/tests/"
done
tests/pack_libraries.sh "$pack/lib" "$pack"/bin/* "$pack"/tests/*
strip --strip-unneeded "$pack"/bin/* "$pack"/tests/* "$pack"/lib/*
cp tests/bench/gpu/{run.sh,safetensors_load.py} tests/bench/results.py "$pack/"
git describe --always --dirty >"$pack/commit" 2>/dev/null || echo unknown >"$pack/commit"

mkdir -p "$(dirname "$file")"
tar -C "$work" -czf "$file" spillway-gpu-pack
du -h "$file"
