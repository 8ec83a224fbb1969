#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sourced after vm.sh by tests that need systemd as PID 1: a root of this machine's own Debian packages, unpacked but
# not configured, which is enough for systemd and needs neither root nor a chroot. The packages are fetched once and
# kept in build/vm/; what the programs under test link with comes from this machine, so both are of one release.
#
#   debian_root DIR               the root, or SKIP
#   debian_install DIR            what `cmake --install` installs, with its libraries
#   debian_add DIR PROGRAM NAME   a program of this machine as /usr/local/bin/NAME, with its libraries
set -euo pipefail

: "${vm_cache:?}"
debian_packages=(systemd-sysv bash coreutils util-linux mount grep sed passwd)

# Downloads what the packages and all that they need are, as if nothing were installed.
debian_fetch() {
    local scratch=$1
    mkdir -p "$scratch/archives/partial"
    : >"$scratch/status"
    apt-get -o "Dir::State::status=$scratch/status" -o "Dir::Cache::archives=$scratch/archives" \
        -o Debug::NoLocking=1 -o APT::Sandbox::User=root -o APT::Install-Recommends=0 \
        -q -y --download-only install "${debian_packages[@]}" >"$scratch/log" 2>&1
}

debian_unpack() {
    local scratch=$1 package
    mkdir -p "$scratch/root/usr"/{bin,sbin,lib,lib64}
    # The links of a merged /usr, which a package's script would make.
    ln -s usr/bin usr/sbin usr/lib usr/lib64 "$scratch/root/"
    for package in "$scratch"/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink --no-same-owner -C "$scratch/root" \
            --exclude './usr/share/doc' --exclude './usr/share/locale' --exclude './usr/share/man' || return
    done
}

debian_root() {
    local scratch tarball=$vm_cache/debian.tar
    if [[ ! -e $tarball ]]; then
        mkdir -p "$vm_cache"
        scratch=$(mktemp -d "$vm_cache/fetch.XXXXXX")
        if ! debian_fetch "$scratch" || ! debian_unpack "$scratch"; then
            tail -n 3 "$scratch/log"
            rm -rf "$scratch"
            skip "the packages of a minimal Debian cannot be downloaded"
        fi
        tar -cf "$scratch/tar" -C "$scratch/root" .
        mv "$scratch/tar" "$tarball"
        rm -rf "$scratch"
    fi
    mkdir -p "$1"
    tar -xf "$tarball" --no-same-owner -C "$1"
    # A machine that has an identity is not asked for one at its first boot.
    echo 0123456789abcdef0123456789abcdef >"$1/etc/machine-id"
    ln -sf bash "$1/usr/bin/sh"
    mkdir -p "$1"/{dev,proc,sys,run,tmp,root,var/tmp}
}

debian_libraries() {
    local root=$1 program=$2 library
    ldd "$program" | sed -nE 's,.*[[:blank:]](/[^ ]*) \(0x.*,\1,p' | while read -r library; do
        [[ $library == "$root"/* || -e $root$library ]] || cp -L --parents "$library" "$root"
    done
}

debian_add() {
    cp "$2" "$1/usr/local/bin/$3"
    debian_libraries "$1" "$2"
}

debian_install() {
    local root=$1 program
    DESTDIR=$root cmake --install "${SPILLWAY_BIN:?}" >"$root.install" 2>&1 || {
        cat "$root.install"
        return 1
    }
    for program in "$root"/usr/local/bin/*; do
        debian_libraries "$root" "$program"
    done
}
