#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests and measures on a machine with a GPU, from what tests/bench/gpu/pack.sh packed: nothing is installed, nothing is
# downloaded. No stage takes longer than ten minutes; what a stage found stays in the folder, and a run that was cut off goes
# on where it was.
#
#   run.sh --results FOLDER [--quick] [--list] [STAGE...]
#
# Stages, in this order: check; a test each; compute-sanitizer's memcheck and racecheck; a row of `spillbench gpu` each;
# safetensors, beside the rows of weights; table. Without a STAGE all are run that are not done; one that is named is run again.
# Status: 0 all went well; 1 something failed; 2 it cannot run here.
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")

STAGE_SECONDS=590
HUGEPAGES_KIB=2048
REGISTER_PAGES=33024 # 64 GiB, and a little
ROWS=(blocks calls clients latency idle neighbours disk weights stored-weights safetensors register)

results='' quick=() list='' wanted=()
while (($# > 0)); do
    case $1 in
    --results) results=${2:?--results FOLDER} && shift ;;
    --quick) quick=(--quick) ;;
    --list) list=yes ;;
    -*)
        sed -n '7p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
    *) wanted+=("$1") ;;
    esac
    shift
done

passed=0 failed=0 skipped=0
say() { printf '\n── %s\n' "$*"; }
count() { # RESULT WHAT [WHY]
    case $1 in
    passed) passed=$((passed + 1)) ;;
    skipped) skipped=$((skipped + 1)) ;;
    *) failed=$((failed + 1)) ;;
    esac
    printf '%s: %s%s\n' "$2" "$1" "${3:+: $3}"
}

# Our programs alone see our libraries; the machine's tools would stumble over them.
ours() {
    env LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" SPILLWAY_BIN="$here/bin" SPILLWAY_TEST_GPU=1 "$@"
}

# ── check ───────────────────────────────────────────────────────────────────────────────────────────────────────────

stage_check() {
    {
        date -u +'%F %T UTC'
        echo "commit $(cat "$here/commit")"
        uname -a
        nvidia-smi || echo "nvidia-smi: not here"
        grep -E 'MemTotal|MemAvailable|HugePages|Hugepagesize' /proc/meminfo
        df -h "${TMPDIR:-/tmp}" /var/tmp
        nproc
        ldd --version | sed -n 1p
    } >"$results/check.txt" 2>&1
    cat "$results/check.txt"
    if command -v python3 >/dev/null; then
        SPILLWAY_COMMIT=$(cat "$here/commit") python3 "$here/results.py" machine >"$results/machine.json"
    fi
    ours "$here/bin/spillctl" --version
}

# ── tests ───────────────────────────────────────────────────────────────────────────────────────────────────────────

# One test's name without its file's prefix.
tests_list() {
    local file
    for file in "$here"/tests/*; do
        basename "$file"
    done
}

# run_counted NAME COMMAND...: one of ours; by the tests' own convention, 77 is skipped.
run_counted() {
    local name=$1 status=0 why
    shift
    ours timeout "$STAGE_SECONDS" "$@" >"$results/$name.log" 2>&1 || status=$?
    why=$(grep -hm 1 '^SKIP' "$results/$name.log" || true)
    case $status in
    0) echo passed >"$results/$name.done" ;;
    77) echo "skipped ${why#SKIP: }" >"$results/$name.done" ;;
    *)
        echo "failed with status $status" >"$results/$name.done"
        tail -n 15 "$results/$name.log"
        ;;
    esac
}

stage_test() { run_counted "$1" "$here/tests/$1"; }

stage_sanitizer() {
    local tool=$1 program
    program=$(PATH=$PATH:/usr/local/cuda/bin:/opt/cuda/bin command -v compute-sanitizer || true)
    if [[ -z $program ]]; then
        echo "skipped compute-sanitizer is not here" >"$results/$tool.done"
        return
    fi
    # One process, as the tool wants it.
    run_counted "$tool" env CK_FORK=no "$program" --tool "$tool" --error-exitcode 9 "$here/tests/unit_test_gpu_kernels"
}

# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# Pages that are set aside for one row; what was there comes back.
pages_file=/proc/sys/vm/nr_hugepages pages_before=''
pages_back() {
    [[ -z $pages_before ]] || echo "$pages_before" >"$pages_file" || true
    pages_before=''
}
pages_set() {
    local pages=$1 most
    [[ -w $pages_file ]] || return 0
    most=$(awk -v kib=$HUGEPAGES_KIB '/^MemAvailable/ { print int($2 * 0.8 / kib) }' /proc/meminfo)
    pages_before=$(cat "$pages_file")
    trap pages_back EXIT
    echo $((pages < most ? pages : most)) >"$pages_file" || true
}

# The command that prints a row's figures.
row_run() {
    if [[ $1 == safetensors ]]; then
        timeout "$STAGE_SECONDS" python3 "$here/safetensors_load.py" "${quick[@]}"
    else
        ours timeout "$STAGE_SECONDS" "$here/bin/spillbench" gpu --only "$1" "${quick[@]}" -o json
    fi
}

stage_row() {
    local row=$1 status=0
    if [[ $row == safetensors ]] && ! command -v python3 >/dev/null; then
        echo "skipped no python3" >"$results/$row.done"
        return
    fi
    [[ $row != register || ${#quick[@]} != 0 ]] || pages_set "$REGISTER_PAGES"
    row_run "$row" >"$results/rows/$row.new" 2> >(tee "$results/$row.log" >&2) || status=$?
    pages_back
    if ((status == 77)); then
        echo "skipped $(sed -n 's/^SKIP: //p' "$results/rows/$row.new")" >"$results/$row.done"
        return
    fi
    if ((status > 1)) || [[ ! -s $results/rows/$row.new ]]; then
        echo "failed with status $status" >"$results/$row.done"
        return
    fi
    mv "$results/rows/$row.new" "$results/rows/$row.json"
    ((status == 0)) && echo passed >"$results/$row.done" || echo "failed what must hold does not" >"$results/$row.done"
}

stage_table() {
    local row files=()
    for row in "${ROWS[@]}"; do
        [[ ! -s $results/rows/$row.json ]] || files+=("$results/rows/$row.json")
    done
    ((${#files[@]} > 0)) || return 0
    if ! command -v python3 >/dev/null; then
        echo "SKIP: no python3: no table"
        return
    fi
    python3 "$here/results.py" join "${files[@]}" >"$results/gpu.json"
    : >"$results/gpu.md"
    python3 "$here/results.py" tables "$results" "$results/gpu.md"
    cat "$results/gpu.md"
}

# ── all of it ───────────────────────────────────────────────────────────────────────────────────────────────────────

mapfile -t tests < <(tests_list)
stages=(check "${tests[@]}" memcheck racecheck "${ROWS[@]}" table)
if [[ -n $list ]]; then
    printf '%s\n' "${stages[@]}"
    exit
fi
[[ -n $results ]] || {
    sed -n '7p' "${BASH_SOURCE[0]}" >&2
    exit 2
}
mkdir -p "$results/rows"
results=$(realpath "$results")
for stage in "${wanted[@]}"; do
    [[ " ${stages[*]} " == *" $stage "* ]] || {
        echo "run.sh: there is no stage '$stage'; --list lists them" >&2
        exit 2
    }
    rm -f "$results/$stage.done"
done
for stage in "${stages[@]}"; do
    ((${#wanted[@]} == 0)) || [[ " ${wanted[*]} " == *" $stage "* ]] || continue
    case $stage in
    check | table)
        say "$stage"
        "stage_$stage" || exit 2
        continue
        ;;
    esac
    if [[ ! -s $results/$stage.done ]]; then
        say "$stage"
        case $stage in
        memcheck | racecheck) stage_sanitizer "$stage" ;;
        unit_* | system_*) stage_test "$stage" ;;
        *) stage_row "$stage" ;;
        esac
    fi
    read -r result why <"$results/$stage.done"
    count "$result" "$stage" "$why"
done
printf '\n%d passed, %d failed, %d skipped; %s\n' "$passed" "$failed" "$skipped" "$results"
((failed == 0))
