#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs in the guest of test_vm_numa.sh: nodes 0 and 1 have a CPU and memory, node 2 has memory alone, and there are two
# raw NVMe drives. What the daemon says about its memory is checked against what the kernel says about the process.
set -euo pipefail

bin=${SPILLWAY_BIN:?}
config=/run/spillwayd.conf log=/run/spillwayd.log socket=/run/spillwayd.sock
daemon=
output=

step() { echo "── $*"; }
fail() {
    echo "FAILED: $*"
    echo "── what was said last"
    echo "$output"
    echo "── the daemon's log"
    cat "$log"
    dmesg | tail -n 20
    exit 1
}
# expect STATUS COMMAND…: its output is in $output.
expect() {
    local want=$1 status=0
    shift
    output=$("$@" 2>&1) || status=$?
    ((status == want)) || fail "$*: status $status instead of $want"
}
says() { grep -qF -- "$1" <<<"$output" || fail "'$1' is missing"; }
logged() { grep -qF -- "$1" "$log" || fail "the log does not say '$1'"; }
equal() { [[ $2 == "$3" ]] || fail "$1: $2 instead of $3"; }
above() { (($2 > $3)) || fail "$1: $2 is not above $3"; }

ctl() { "$bin/spillctl" --socket "$socket" "$@"; }
# members QUESTION NAME: the values of all members of that name in the daemon's answer.
members() { ctl "$1" -o json | sed -n "s/.*\"$2\":\([0-9a-z]*\).*/\1/p"; }

# configure EXTRA-DRAM-LINES CXL-SIZE
configure() {
    cat >"$config" <<CONFIG
[daemon]
socket = $socket
max_sessions = 64
[tier.dram]
size = 64 MiB
$1
[tier.cxl]
size = $2
[device first]
path = /dev/nvme0n1
[device second]
path = /dev/nvme1n1
[pool default]
users = root
CONFIG
}

start() {
    "$bin/spillwayd" --config "$config" >"$log" 2>&1 &
    daemon=$!
    for _ in $(seq 2000); do
        ! ctl status >/dev/null 2>&1 || return 0
        kill -0 "$daemon" 2>/dev/null || fail "the daemon ended while starting"
        sleep 0.1
    done
    fail "the daemon does not become ready"
}

# stop SIGNAL STATUS
stop() {
    local status=0
    kill "-$1" "$daemon"
    wait "$daemon" 2>/dev/null || status=$?
    ((status == $2)) || fail "SIG$1: the daemon's status is $status instead of $2"
}

# refuses TEXT: the daemon does not start, and says why.
refuses() {
    expect 1 "$bin/spillwayd" --config "$config"
    says "$1"
}

# replay CPU ARG…: a client on that CPU, and so on the node of the same number. Every byte is compared; status 0 says
# that none was wrong. Sets $nvme_hits.
nvme_hits=
replay() {
    local cpu=$1
    shift
    expect 0 taskset -c "$cpu" "$bin/spillbench" replay --trace /trace.jsonl --socket "$socket" --quiet "$@"
    nvme_hits=$(sed -n 's/.*hits on NVMe *\([0-9]*\).*/\1/p' <<<"$output")
    grep -E 'hits|computed|verified' <<<"$output"
}

# A line for each node of a tier: TIER NODE BYTES HUGEPAGE-BYTES, after checking that all pages looked up lie there.
tier_nodes() {
    local table
    table=$(ctl tiers -o json | tr -d ' ",' | awk -F: '
        $1 == "tier" { tier = $2 }
        $1 == "node" { node = $2 }
        $1 == "allocated_bytes" { bytes = $2 }
        $1 == "hugepage_bytes" { huge = $2 }
        $1 == "pages_sampled" { sampled = $2 }
        $1 == "pages_on_node" { print tier, node, bytes, huge, (sampled > 0 && sampled == $2) ? "there" : "elsewhere" }')
    ! grep -F elsewhere <<<"$table" || fail "pages are not on their nodes"
    sort <<<"${table// there/}"
}

# The same from outside: a line for each node with the bytes that the process's chunks really have there.
kernel_nodes() {
    awk '/spillway-chunk/ {
            for (i = 1; i <= NF; i++) {
                if ($i ~ /^N[0-9]+=/) { split(substr($i, 2), pair, "="); pages[pair[1]] = pair[2] }
                if ($i ~ /^kernelpagesize_kB=/) kib = substr($i, 19)
            }
            for (node in pages) { bytes[node] += pages[node] * kib * 1024; delete pages[node] }
        }
        END { for (node in bytes) print node, bytes[node] }' "/proc/$daemon/numa_maps" | sort
}

mib=$((1024 * 1024))

step "the machine"
equal "nodes with CPUs" "$(cat /sys/devices/system/node/has_cpu)" 0-1
equal "nodes with memory" "$(cat /sys/devices/system/node/has_memory)" 0-2
touch "$log"
expect 0 ctl doctor
says "Linux $(uname -r)"
says "3 nodes, some of them memory only: they can be tier cxl"

step "both drives are formatted"
for drive in /dev/nvme0n1 /dev/nvme1n1; do
    expect 0 ctl device format "$drive"
    says "in 2 partitions" # one for each engine
done

step "an engine a node, and memory where it belongs"
configure 'hugepages = never' '64 MiB'
start
equal "engines" "$(members status number | wc -l)" 2
equal "degraded" "$(members status degraded_memlock | sort -u)" false
equal "notes" "$(members status note | sort -u)" null
equal "the daemon's nodes" "$(tier_nodes)" "cxl 2 $((64 * mib)) 0
dram 0 $((32 * mib)) 0
dram 1 $((32 * mib)) 0"
equal "the kernel's nodes" "$(kernel_nodes)" "0 $((32 * mib))
1 $((32 * mib))
2 $((64 * mib))"
expect 0 ctl doctor

step "a working set that neither DRAM nor CXL holds, of a client on node 1"
replay 1
replay 1 --block 160KiB
replay 1
equal "who was asked" "$(members status items | sed 's/[1-9][0-9]*/some/')" "0
some"
above "hits on NVMe" "$nvme_hits" 0
above "hits in CXL" "$(members pools hits_cxl)" 0
step "another space, of a client on node 0"
replay 0 --block 96KiB
for items in $(members status items); do
    above "items of an engine" "$items" 0
done
equal "checksum errors" "$(members device checksum_errors | sort -u)" 0
for written in $(members device put_bytes); do
    above "bytes put into a partition" "$written" 0
done

step "a clean restart finds the cache again"
stop TERM 0
start
replay 0
above "hits on NVMe" "$nvme_hits" 0

step "SIGKILL in the middle of a run"
"$bin/spillbench" replay --trace /trace.jsonl --socket "$socket" --quiet --block 40KiB >/dev/null 2>&1 &
client=$!
for _ in $(seq 600); do
    (($(members pools commits) < 200)) || break
    sleep 0.05
done
above "commits before the kill" "$(members pools commits)" 199
stop KILL 137
! wait "$client" || fail "the client did not notice that the daemon was killed"
start
replay 0
above "hits on NVMe" "$nvme_hits" 0
replay 0 --block 40KiB
equal "checksum errors" "$(members device checksum_errors | sort -u)" 0
stop TERM 0

step "hugepages"
for node in 0 1; do
    echo 20 >"/sys/devices/system/node/node$node/hugepages/hugepages-2048kB/nr_hugepages"
done
configure 'hugepages = require' '64 MiB'
start
logged 'on node 0 in 2 MiB hugepages'
logged 'on node 1 in 2 MiB hugepages'
# Those set aside are on the nodes with CPUs; CXL memory is in transparent ones, for which the daemon asks.
equal "the daemon's nodes" "$(tier_nodes)" "cxl 2 $((64 * mib)) $((64 * mib))
dram 0 $((32 * mib)) $((32 * mib))
dram 1 $((32 * mib)) $((32 * mib))"
equal "the kernel's nodes" "$(kernel_nodes)" "0 $((32 * mib))
1 $((32 * mib))
2 $((64 * mib))"
replay 0
above "hits on NVMe" "$nvme_hits" 0
stop TERM 0

step "hugepages that are required and not there"
echo 8 >/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages
refuses 'hugepages = require: 16 pages of 2 MiB are needed, 8 are free, 8 are missing: raise /sys/devices/system/node/node1'
for node in 0 1; do
    echo 0 >"/sys/devices/system/node/node$node/hugepages/hugepages-2048kB/nr_hugepages"
done

step "more than a node has is refused, and does not wake the OOM killer"
configure '' '1 GiB'
start
logged 'on node 1 in transparent hugepages (not enough free 2 MiB hugepages'
logged 'CXL memory was refused: the pool goes on with less'
equal "the daemon's DRAM" "$(tier_nodes | grep dram)" "dram 0 $((32 * mib)) $((32 * mib))
dram 1 $((32 * mib)) $((32 * mib))"
above "what the node has given" "$(tier_nodes | awk '/cxl 2/ { print $3 }')" $((64 * mib))
expect 1 ctl doctor
says 'of 544 MiB'
replay 0
stop TERM 0
! dmesg | grep -i 'out of memory' || fail "the OOM killer was there"

step "nodes that are none"
configure 'nodes = 2' '64 MiB'
refuses '[tier.dram] nodes'

step "everything at once, on a daemon of its own"
TMPDIR=/scratch expect 0 "$bin/spillbench" mix --seconds 3 --dram 64MiB --device 256MiB --quiet
grep -F 'wrong bytes' <<<"$output"
