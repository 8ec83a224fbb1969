#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# spillctl and spillbench as a person uses them: formatting refuses what it must, every question is answered, the small
# benchmarks check their bytes, and mistakes end with the status that the man pages promise.
set -euo pipefail

bin=${SPILLWAY_BIN:?}
folder=$(mktemp -d)
daemon=
cleanup() {
    [[ -z $daemon ]] || kill "$daemon" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$folder"
}
trap cleanup EXIT

# expect STATUS COMMAND…: runs it, keeps its output in $output.
output=
expect() {
    local want=$1 status=0
    shift
    output=$("$@" 2>&1) || status=$?
    ((status == want)) || {
        printf 'FAILED: %s\n  status %d instead of %d\n%s\n' "$*" "$status" "$want" "$output"
        exit 1
    }
}
says() {
    grep -qF -- "$1" <<<"$output" || {
        printf 'FAILED: "%s" is missing in:\n%s\n' "$1" "$output"
        exit 1
    }
}
ctl() { "$bin/spillctl" --socket "$folder/socket" "$@"; }

# ── without a daemon
expect 0 "$bin/spillctl"
says usage
expect 64 "$bin/spillctl" frobnicate
expect 69 ctl status
says "$folder/socket"
says 'spillwayd --user'
expect 0 "$bin/spillbench"
expect 64 "$bin/spillbench" frobnicate

# ── formatting
device=$folder/disk
expect 64 "$bin/spillctl" device format "$device"
says --capacity
expect 64 "$bin/spillctl" device format "$device" --capacity 12GB
expect 0 "$bin/spillctl" device format "$device" --capacity 256MiB --partitions 1 --label one
expect 1 "$bin/spillctl" device format "$device"
says "label 'one'"
expect 0 "$bin/spillctl" -o json device format "$device" --force --partitions 1 --label two
says '"label":"two"'
head -c 64M /dev/zero >"$folder/foreign"
printf 'precious' | dd of="$folder/foreign" bs=1 seek=1080 conv=notrunc status=none
expect 1 "$bin/spillctl" device format "$folder/foreign"
says 'not Spillway'
printf 'precious' | cmp -s - <(tail -c +1081 "$folder/foreign" | head -c 8)
expect 0 "$bin/spillctl" device format "$folder/foreign" --force
[[ -z $(find "$folder" -name disk -not -perm 600) ]]

# ── memory that is not there
printf '[daemon]\nsocket = %s/socket\n[tier.dram]\nsize = 64 MiB\nnodes = 63\n' "$folder" >"$folder/config"
expect 1 "$bin/spillwayd" --user --config "$folder/config"
says '[tier.dram] nodes'
huge=$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages 2>/dev/null || echo 0)
if ((huge < 32)); then
    sed -i 's/^nodes.*/hugepages = require/' "$folder/config"
    expect 1 "$bin/spillwayd" --user --config "$folder/config"
    says 'pages of 2 MiB are needed'
fi

# ── with one
cat >"$folder/config" <<END
[daemon]
socket = $folder/socket
engines = 1
[tier.dram]
size = 128 MiB
[device disk]
path = $device
[pool bench]
END
"$bin/spillwayd" --user --config "$folder/config" >"$folder/log" 2>&1 &
daemon=$!
for _ in $(seq 600); do
    ctl status >/dev/null 2>&1 && break
    sleep 0.1
done
expect 0 ctl status
says ready
for question in status pools tiers sessions gpus device 'device list' 'config show' iostat 'iostat 0.2 2'; do
    # shellcheck disable=SC2086 # words on purpose
    expect 0 ctl $question
    # shellcheck disable=SC2086
    expect 0 ctl $question -o json
    says '{'
done
expect 1 "$bin/spillctl" device format "$device" --force
says 'in use'
expect 0 ctl doctor -o json
says '"check":"daemon"'
LD_LIBRARY_PATH=$bin/tests/fake FAKE_CUDA_DEVICES=2 expect 0 ctl doctor
says 'GPU-fa4ec0da-0000-4000-8000-000000000001: Fake GPU 1, 1 GiB, driver for CUDA 13.0'
LD_LIBRARY_PATH=$bin/tests/fake FAKE_CUDA_WITHOUT=cuMemMap expect 0 ctl doctor
says 'lacks cuMemMap'
for benchmark in ring hit; do
    expect 0 "$bin/spillbench" "$benchmark" --socket "$folder/socket" --pool bench --seconds 0.3 -o json
    says '"unit":"ns"'
done
expect 2 "$bin/spillbench" ring --socket "$folder/socket" --pool none
says 'none'
kill "$daemon"
wait "$daemon"
daemon=
