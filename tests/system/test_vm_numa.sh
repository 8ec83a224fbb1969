#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The oldest kernel that must work, on a machine that few have: two nodes with CPUs, one with memory alone, two raw NVMe
# drives. What happens there is in vm/numa.sh.
set -euo pipefail

# shellcheck source=tests/system/vm/vm.sh
source "${SPILLWAY_SOURCE:?}/tests/system/vm/vm.sh"
vm_need
vm_kernel

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
bin=${SPILLWAY_BIN:?}
vm_root_new "$folder/root"
vm_root_add "$folder/root" "$bin/spillwayd" "$bin/spillctl" "$bin/spillbench"
head -n 350 "$SPILLWAY_SOURCE/tests/data/chat_small.jsonl" >"$folder/root/trace.jsonl"
truncate -s 512M "$folder/disk0" "$folder/disk1"

vm_boot "$folder/root" "$SPILLWAY_SOURCE/tests/system/vm/numa.sh" \
    -M q35,hmat=on -m 2G -smp 2,sockets=2,cores=1 \
    -object memory-backend-ram,id=m0,size=768M -object memory-backend-ram,id=m1,size=768M \
    -object memory-backend-ram,id=m2,size=512M \
    -numa node,nodeid=0,cpus=0,memdev=m0 -numa node,nodeid=1,cpus=1,memdev=m1 \
    -numa node,nodeid=2,memdev=m2,initiator=0 \
    -numa dist,src=0,dst=1,val=21 -numa dist,src=0,dst=2,val=30 -numa dist,src=1,dst=2,val=40 \
    -drive if=none,id=d0,format=raw,file="$folder/disk0" -device nvme,serial=spill0,drive=d0 \
    -drive if=none,id=d1,format=raw,file="$folder/disk1" -device nvme,serial=spill1,drive=d1
