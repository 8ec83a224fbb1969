#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The unit says what systemd understands, and exposes at most what was promised (1.5 of 10, `least privilege`).
set -euo pipefail

units=$SPILLWAY_BIN/systemd
command -v systemd-analyze >/dev/null || {
    echo "SKIP: systemd-analyze is not installed"
    exit 77
}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Verified as if installed: with a program that exists.
sed 's,^ExecStart=.*,ExecStart=/bin/true,' "$units/spillwayd.service" >"$scratch/spillwayd.service"
cp "$units/spillwayd.socket" "$scratch/"

# It exits 0 on a key that it does not know: what it writes is the verdict. Other units' faults are not ours.
complaints=$(SYSTEMD_LOG_LEVEL=warning systemd-analyze verify --man=no --recursive-errors=no "$scratch"/spillwayd.* \
    2>&1 | grep -F "spillwayd." || true)
if [[ -n $complaints ]]; then
    echo "$complaints"
    exit 1
fi
exposure() { systemd-analyze security --offline=true --threshold=15 --no-pager "$1" >"$scratch/table" 2>&1; }
# It measures: without one of its lines the unit is worse than that.
grep -v '^CapabilityBoundingSet=' "$scratch/spillwayd.service" >"$scratch/weaker.service"
if exposure "$scratch/weaker.service"; then
    echo "a unit that keeps every capability passes: systemd-analyze does not measure"
    exit 1
fi
exposure "$scratch/spillwayd.service" || {
    cat "$scratch/table"
    exit 1
}
tail -n 1 "$scratch/table"
