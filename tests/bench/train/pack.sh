#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Packs a release build, the Python package with what it needs, its tests and the measurements of training, for a machine with
# a GPU, PyTorch, and no packages to install. `./dev bench train-pack` builds first.
#
#   tests/bench/train/pack.sh BUILD FILE.tar.gz [PYTHON]
#
# PYTHON: the version there, 3.12 if not given; cffi for it comes from PyPI. There: unpack, and spillway-train-pack/run.sh.
# Its C library must be at least as new as this machine's.
set -euo pipefail
(($# == 2 || $# == 3)) || {
    echo "usage: tests/bench/train/pack.sh BUILD FILE.tar.gz [PYTHON]" >&2
    exit 2
}
build=$(realpath "$1") file=$(realpath -m "$2") python=${3:-3.12}
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pack=$work/spillway-train-pack
mkdir -p "$pack"/{bin,lib,python,tests}

cp "$build"/{spillwayd,spillway-gpu,spillctl} "$pack/bin/"
cp -L "$build/libspillway.so.0" "$pack/lib/"
cp -r "$build/python/spillway" "$pack/python/"
tests/pack_libraries.sh "$pack/lib" "$pack"/bin/* "$pack/python/spillway/_native.abi3.so"
strip --strip-unneeded "$pack"/bin/* "$pack"/lib/* "$pack/python/spillway/_native.abi3.so"
pip3 download -q --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$work/wheels" cffi
python3 -m zipfile -e "$work"/wheels/cffi-*.whl "$pack/python"
cp tests/python/{support,torch_rig,test_gpu,test_torch,test_torch_device,test_torch_gpu,test_torch_overlap}.py "$pack/tests/"
cp tests/python/test_activations{,_device,_gpu}.py "$pack/tests/"
cp tests/bench/train/{run.sh,gpu_torch.py,activations_gpu.py,gpt.py} docs/train_gpt.py "$pack/"
mkdir -p "$pack"/tests/bench/{train,peers}
cp tests/bench/train/{adam_torch,snapshot_torch}.py "$pack/tests/bench/train/"
cp tests/bench/peers/stats.py "$pack/tests/bench/peers/"
find "$pack" -name __pycache__ -prune -exec rm -rf {} +
git describe --always --dirty >"$pack/commit" 2>/dev/null || echo unknown >"$pack/commit"

mkdir -p "$(dirname "$file")"
tar -C "$work" -czf "$file" spillway-train-pack
du -h "$file"
