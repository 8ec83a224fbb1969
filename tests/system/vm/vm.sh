#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by tests that need a machine of another shape: QEMU without KVM (nested or missing virtualisation is the rule
# where tests run), Debian's cloud kernel, and a root in memory that holds the programs under test at the very paths
# that they have here, so that what a script says about paths is true on both sides.
#
# The kernel is fetched once and kept in build/vm/. Nothing is installed, nothing needs root.
#
#   vm_need                       ends the test with SKIP unless QEMU and its companions are here
#   vm_kernel                     sets vm_kernel_image; SKIP if it cannot be had
#   vm_root_new DIR               begins the guest's root
#   vm_root_add DIR PATH…         adds files at the same paths, programs with their shared libraries
#   vm_boot DIR SCRIPT ARG…       boots with QEMU's further arguments, runs SCRIPT there with bash, shows the console,
#                                 and returns the script's exit status
#   vm_run DIR APPEND ARG…        the same for a root with an init of its own, which ends with a line `vm: status N`
#   vm_leash COMMAND…             a command that does not outlive this shell
set -euo pipefail

vm_cache=${SPILLWAY_VM_CACHE:-${SPILLWAY_SOURCE:?}/build/vm}
vm_seconds=${SPILLWAY_VM_SECONDS:-580}
vm_kernel_image=

skip() {
    echo "SKIP: $*"
    exit 77
}

vm_need() {
    local tool
    [[ $(uname -m) == x86_64 ]] || skip "the guest's kernel is for x86_64, this is $(uname -m)"
    for tool in qemu-system-x86_64 cpio dpkg-deb apt-get setpriv; do
        command -v "$tool" >/dev/null || skip "$tool is not installed (./dev setup)"
    done
    tool=$(command -v busybox) || skip "busybox is not installed (./dev setup)"
    ! ldd "$tool" >/dev/null 2>&1 || skip "busybox is not the static one (busybox-static)"
}

# The oldest kernel that Spillway promises to work on: Debian 12's.
vm_kernel() {
    local package scratch image
    image=$(find "$vm_cache/kernel/boot" -name 'vmlinuz-6.1.*' -print -quit 2>/dev/null || true)
    if [[ -z $image ]]; then
        package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
            sed -n 's/.*Depends: \(linux-image-6\.1\.[^ ]*\).*/\1/p' | head -n 1)
        [[ -n $package ]] || skip "apt knows no kernel 6.1 (linux-image-cloud-amd64 of Debian 12; apt-get update?)"
        mkdir -p "$vm_cache"
        scratch=$(mktemp -d "$vm_cache/fetch.XXXXXX")
        if ! (cd "$scratch" && apt-get download -q "$package" >log 2>&1 && dpkg-deb -x ./*.deb kernel); then
            tail -n 3 "$scratch/log" || true
            rm -rf "$scratch"
            skip "$package cannot be downloaded"
        fi
        rm -rf "$vm_cache/kernel"
        mv "$scratch/kernel" "$vm_cache/kernel"
        rm -rf "$scratch"
        image=$(find "$vm_cache/kernel/boot" -name 'vmlinuz-6.1.*' -print -quit)
    fi
    vm_kernel_image=$image
}

vm_root_new() {
    mkdir -p "$1"/{bin,dev,etc,proc,root,run,scratch,sys,tmp}
    cp "$(command -v busybox)" "$1/bin/busybox"
    echo 'root:x:0:0:root:/root:/bin/bash' >"$1/etc/passwd"
    echo 'root:x:0:' >"$1/etc/group"
    vm_root_add "$1" "$(command -v bash)"
}

vm_root_add() {
    local root=$1 path library
    shift
    for path in "$@"; do
        cp -L --parents "$path" "$root"
        { ldd "$path" 2>/dev/null || true; } | sed -nE 's,.*[[:blank:]](/[^ ]*) \(0x.*,\1,p' | while read -r library; do
            [[ -e $root$library ]] || cp -L --parents "$library" "$root"
        done
    done
}

# Its output goes to the console, and the console is what comes back.
vm_write_init() {
    cat >"$1/init" <<INIT
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /scratch # not over /tmp: the checkout may lie there
mount -t tmpfs tmpfs /run
export PATH=/bin HOME=/root
export SPILLWAY_BIN='$SPILLWAY_BIN' SPILLWAY_SOURCE='$SPILLWAY_SOURCE'
export ASAN_OPTIONS='${ASAN_OPTIONS:-}' UBSAN_OPTIONS='${UBSAN_OPTIONS:-}'
echo "vm: \$(uname -r), up after \$(cut -d' ' -f1 /proc/uptime) s"
$(command -v bash) '$2' </dev/null
echo "vm: status \$?"
poweroff -f
INIT
    chmod 755 "$1/init"
}

vm_boot() {
    local root=$1 script=$2
    shift 2
    vm_root_add "$root" "$script"
    vm_write_init "$root" "$script"
    vm_run "$root" 'rdinit=/init' "$@"
}

vm_run() {
    local root=$1 append=$2 console=$1.console status=0
    shift 2
    # Unpacking is the guest's time, and slow: uncompressed, and without what only a debugger reads.
    find "$root" -name '*.so*' -type f -exec strip --strip-debug {} + 2>/dev/null || true
    (cd "$root" && find . | cpio --quiet --owner=0:0 -o -H newc) >"$root.cpio"
    vm_leash qemu-system-x86_64 -nodefaults -display none -no-reboot -accel tcg,thread=multi -cpu max \
        -kernel "$vm_kernel_image" -initrd "$root.cpio" -serial "file:$console" \
        -append "console=ttyS0 panic=-1 edd=off quiet nvme.poll_queues=1 $append" "$@" || status=$?
    vm_result "$console" "$status"
}

# Runs a command that ends when it has had enough time, and when this shell ends, however that comes.
vm_leash() {
    setpriv --pdeathsig TERM timeout --foreground -k 5 "$vm_seconds" setpriv --pdeathsig KILL "$@" </dev/null
}

# Shows a console, and returns the status that was written there.
vm_result() {
    local status
    tr -d '\r' <"$1" | grep -v '^vm: status ' || true
    status=$(tr -d '\r' <"$1" | sed -n 's/^vm: status \([0-9]*\)$/\1/p' | tail -n 1)
    if [[ -z $status ]]; then
        echo "vm: it ended (with status $2) before the test did"
        status=125
    fi
    return "$status"
}
