#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# libspillway exports spw_ symbols in a version node, and nothing else; and its name carries the ABI's number.
set -euo pipefail

library=$SPILLWAY_BIN/libspillway.so
[[ -e $library ]] || {
    echo "SKIP: libspillway.so is not built"
    exit 77
}
soname=$(objdump -p "$library" | awk '$1 == "SONAME" { print $2 }')
[[ $soname =~ ^libspillway\.so\.[0-9]+$ ]] || {
    echo "SONAME is '$soname'"
    exit 1
}
exported=$(nm --dynamic --defined-only --with-symbol-versions "$library" | awk '$2 != "A" { print $3 }')
[[ -n $exported ]] || {
    echo "nothing is exported: is the public header's visibility attribute missing?"
    exit 1
}
if grep -Ev '^spw_[a-z0-9_]+@@SPILLWAY_[0-9]+$' <<<"$exported"; then
    echo "the symbols above must not be exported so"
    exit 1
fi
declared=$(sed 's,/\*.*\*/,,' "$SPILLWAY_SOURCE"/include/spillway/{spillway,gpu,train}.h | grep -oE '^[a-z][a-z0-9_ *]*\bspw_[a-z0-9_]+\(' |
    grep -oE 'spw_[a-z0-9_]+\(' | tr -d '(' | sort -u)
if ! diff <(cut -d@ -f1 <<<"$exported" | sort -u) <(echo "$declared"); then
    echo "above: < exported but not declared in a public header, > declared but not in client/libspillway.map"
    exit 1
fi
echo "$(wc -l <<<"$exported") symbols"
