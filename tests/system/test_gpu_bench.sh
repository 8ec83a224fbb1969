#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every row of `spillbench gpu` runs, checks its bytes, and says what it found in the common form. On the fake driver what it
# says of speed means nothing, but what was counted must hold. Without a GPU it says what is missing.
set -euo pipefail

bin=${SPILLWAY_BIN:?}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export FAKE_CUDA_HBM=$((4 << 30))

# row NAME FIGURE…
row() {
    local name=$1 status=0
    shift
    "$bin/spillbench" gpu --only "$name" --quick --quiet -o json >"$work/out" 2>"$work/log" || status=$?
    grep '^SKIP' "$work/log" || true
    ((status == 0)) || {
        cat "$work/log"
        echo "FAILED: spillbench gpu --only $name: status $status"
        exit 1
    }
    python3 "${SPILLWAY_SOURCE:?}/tests/system/support/figures.py" "$work/out" "gpu --only $name" "$@"
}

row blocks 'spill, pieces of 16 KiB, objects of 2048 KiB' 'both ways, pieces of 2048 KiB, objects of 2048 KiB' \
    "client's CPU, spill, 16 KiB in objects of 2048 KiB" "helper's CPU, fetch, 2048 KiB in objects of 2048 KiB" \
    "daemon's CPU, both ways, 16 KiB in objects of 2048 KiB"
row calls 'a loop of cuMemcpyAsync, out, pieces of 4 KiB' 'cuMemcpyBatchAsync, in, pieces of 2048 KiB'
row clients 'spill of 4 clients at once, all together' "fetch of 4 clients at once, the slowest's share of the fastest's"
row latency 'one block of 128 KiB in memory, stream to stream' 'one block of 128 KiB, of this: spw_fetch() returns' \
    'a kernel that does nothing, launched and waited for'
row idle "client's CPU, idle after work, the driver's thread aside" \
    "helper's CPU, idle after work, the driver's thread aside" "daemon's CPU, idle after work"
row neighbours 'beside a spill: reading memory' 'beside a spill: products of bf16 in registers' \
    'the spill beside: reading memory' 'beside a spill: cuBLAS, bf16, a product of square matrices' \
    'beside a spill: cuBLAS, bf16, a matrix times one column'
row disk 'GPU to NVMe, 96 MiB in objects of 2 MiB' 'NVMe to GPU, 96 MiB in objects of 2 MiB' 'staging memory of the GPU'
row weights 'weights, memory to GPU, staged, 16 MiB in tensors of 8 MiB' \
    'weights, memory to GPU, spw_gpu_alloc(), 16 MiB in tensors of 8 MiB'
row stored-weights 'weights, NVMe to GPU, spw_gpu_alloc(), 96 MiB in tensors of 8 MiB'
row register 'pinned again, an engine killed and started again'

status=0
FAKE_CUDA_DEVICES=0 "$bin/spillbench" gpu --quick >"$work/out" 2>"$work/log" || status=$?
if ((status != 2)) || ! grep -q '^SKIP: gpu: CUDA_ERROR_NO_DEVICE' "$work/log"; then
    cat "$work/log"
    echo "FAILED: without a GPU: status $status, not 2 with a word about it"
    exit 1
fi
