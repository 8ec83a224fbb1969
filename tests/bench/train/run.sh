#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs what tests/bench/train/pack.sh packed, on a machine with a GPU and PyTorch: nothing is installed.
#
#   run.sh tests                the tests of the Python package that a GPU is for
#   run.sh bench [ARG...]       gpu_torch.py, whose --help tells the rest
#   run.sh activations [ARG...] activations_gpu.py, the same
#   run.sh gpt [ARG...]         gpt.py, the same: a GPT whose states are in memory, on a disk, or both
#   run.sh adam [ARG...]        adam_torch.py, the same: spw_adam beside torch's fused AdamW on the CPUs
#   run.sh snapshot [ARG...]    snapshot_torch.py, the same: for how long a snapshot blocks
#   run.sh python3 [ARG...]     Python, as these have it
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
export SPILLWAY_BIN=$here/bin SPILLWAY_SOURCE=$here SPILLWAY_COMMIT SPILLWAY_TEST_GPU=1 PYTHONDONTWRITEBYTECODE=1
export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} PYTHONPATH=$here/python:$here/tests
SPILLWAY_COMMIT=$(cat "$here/commit")

what=${1:-}
shift || true
case $what in
tests)
    status=0
    for test in "$here"/tests/test_*.py; do
        printf '\n── %s\n' "$(basename "$test")"
        timeout 300 python3 "$test" 2>&1 || status=1
    done
    exit "$status"
    ;;
bench) exec python3 "$here/gpu_torch.py" "$@" ;;
activations) exec python3 "$here/activations_gpu.py" "$@" ;;
gpt) exec python3 "$here/gpt.py" "$@" ;;
adam) exec python3 "$here/tests/bench/train/adam_torch.py" "$here/lib/libspillway.so.0" "$@" ;;
snapshot) exec python3 "$here/tests/bench/train/snapshot_torch.py" "$@" ;;
python3) exec python3 "$@" ;;
*)
    sed -n '5,11p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
