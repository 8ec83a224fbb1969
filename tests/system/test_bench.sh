#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The benchmarks run against a real daemon and say what they found in the common form; how fast it was is no matter.
set -euo pipefail

bin=${SPILLWAY_BIN:?}
out=$(mktemp)
trap 'rm -f "$out"' EXIT

# form NAME FIGURE…: the file is a list of figures, and these are among them.
form() { python3 "${SPILLWAY_SOURCE:?}/tests/system/support/figures.py" "$out" "$@"; }

# lacks NAME PATTERN: no figure is of these.
lacks() {
    if grep -q "$2" "$out"; then
        echo "FAILED: spillbench $1: it measured more than it was asked for"
        exit 1
    fi
}

# run NAME FIGURE…
run() {
    "$bin/spillbench" "$1" --quick --quiet -o json >"$out"
    form "$@"
}

run ring 'nop, both sides spinning' 'nop, both sides asleep, beside futex' "the daemon's CPU, 50 idle sessions"
run hit 'acquire and release of a block' 'keys a second, lists of 64' 'bytes that the daemon copied meanwhile'
run policy 'hits, optimum, 2 %, chats' 'hits, chain, 10 %, chats' 'cost, adaptive, 2 %, chats'
run adam 'step, fp32, a thread a CPU' 'step, bf16, a thread a CPU, parameters' 'gradients, fp32, a thread a CPU'
run optimizer 'step, all in memory' 'step, 50 % in memory' 'step, 50 % in memory, read' 'step, on the device, written'
run plan 'groups in turn, 50 %, stay, declared' 'layers forward and backward, 50 %, found, learned'
run footprint 'Llama-3.1-8B, class pools' 'Llama-3.1-8B, pinned'
run recover 'recovery, 20000 pieces' 'first answer after SIGKILL, 20000 pieces' 'not found again, of 20000 pieces'
run copy 'put, trusted pool, 64 KiB, lists of 64' 'get, shared pool, 1 MiB, lists of 4'

# Single rows, and words that no row has.
"$bin/spillbench" mix --figures --only budget --quick --quiet -o json >"$out"
form mix "a pool's write budget, off by" 'written for a pool with a budget of 64 MiB/s'
lacks mix 'saturating\|demotion'
if command -v fio >/dev/null; then
    "$bin/spillbench" nvme --only fetch --devices file --block 32KiB --depth 4 --quick --quiet -o json >"$out"
    form nvme 'XXH3, 4 to 32 KiB, file' 'fetch 4 to 32 KiB, file, depth 4' 'fetch 4 to 32 KiB, file, depth 4, p99'
    lacks nvme 'spill\|loop\|depth 32'
else
    echo 'SKIP: fio is not installed: no row of nvme'
fi
for wrong in '--only nothing' '--devices tape' '--depth 33' '--block 5KiB'; do
    status=0
    # shellcheck disable=SC2086 # two words
    "$bin/spillbench" nvme $wrong >"$out" 2>&1 || status=$?
    ((status == 64)) || { echo "FAILED: spillbench nvme $wrong: status $status, not 64"; exit 1; }
done
