#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The service as an administrator installs it, under a real systemd as PID 1: in a container (systemd-nspawn) for root,
# else, or with SPILLWAY_SYSTEMD_IN=vm, in a virtual machine. What happens there is in vm/systemd.sh.
set -euo pipefail

# shellcheck source=tests/system/vm/vm.sh
source "${SPILLWAY_SOURCE:?}/tests/system/vm/vm.sh"
# shellcheck source=tests/system/vm/debian.sh
source "$SPILLWAY_SOURCE/tests/system/vm/debian.sh"

where=${SPILLWAY_SYSTEMD_IN:-}
if [[ -z $where ]]; then
    where=vm
    if ((EUID == 0)) && command -v systemd-nspawn >/dev/null; then
        where=nspawn
    fi
fi
command -v apt-get >/dev/null || skip "not a Debian system"
if [[ $where == vm ]]; then
    vm_need
    vm_kernel
fi

folder=$(mktemp -d)
machine=spillway-test-$$
trap 'rm -rf "$folder"; rmdir "/run/systemd/nspawn/propagate/$machine" 2>/dev/null || true' EXIT
root=$folder/root
debian_root "$root"
debian_install "$root"
debian_add "$root" "$SPILLWAY_BIN/tests/system_hot_client" hot_client
cp "$SPILLWAY_SOURCE/tests/system/vm/systemd.sh" "$root/test.sh"
head -n 100 "$SPILLWAY_SOURCE/tests/data/chat_small.jsonl" >"$root/trace.jsonl"
mkdir -p "$root/etc/spillway" "$root/etc/sysusers.d" "$root/etc/systemd/system/multi-user.target.wants"
# Two people, one of them in the group.
cat >"$root/etc/sysusers.d/people.conf" <<'PEOPLE'
u alice 1500
u mallory 1501
m alice spillway
PEOPLE
# A container's console is a pipe here, which nobody in it can open: what is said goes to a file then.
console=/dev/console
output='tty
TTYPath=/dev/console'
if [[ $where == nspawn ]]; then
    console=/test.console
    output=append:$console
fi
cat >"$root/etc/systemd/system/test.service" <<UNIT
[Unit]
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart=/bin/bash /test.sh
ExecStopPost=/bin/bash -c 'echo "vm: status \$\$EXIT_STATUS" >>$console'
StandardOutput=$output
StandardError=inherit
TimeoutStartSec=infinity
Environment=ASAN_OPTIONS=detect_leaks=0
UNIT
# Leaks are looked for elsewhere: it takes ptrace, which the unit does not allow.
if [[ -n ${SPILLWAY_SANITIZE:-} ]]; then
    mkdir -p "$root/etc/systemd/system/spillwayd.service.d"
    printf '[Service]\nEnvironment=ASAN_OPTIONS=detect_leaks=0\n' \
        >"$root/etc/systemd/system/spillwayd.service.d/sanitizer.conf"
fi
ln -s ../test.service "$root/etc/systemd/system/multi-user.target.wants/test.service"

if [[ $where == vm ]]; then
    vm_run "$root" 'rdinit=/usr/lib/systemd/systemd systemd.show_status=0' -m 2G -smp 2
else
    status=0
    # CAP_IPC_LOCK is what a container does not have by itself, and what the unit asks for.
    vm_leash systemd-nspawn -D "$root" -M "$machine" -b --register=no --keep-unit --console=pipe --quiet \
        --capability=CAP_IPC_LOCK >"$folder/nspawn" 2>&1 || status=$?
    [[ -e $root$console ]] || cp "$folder/nspawn" "$root$console"
    vm_result "$root$console" "$status"
fi
