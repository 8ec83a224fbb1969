#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copies what programs are linked with into a folder, for a machine that has no packages to install. Not libspillway, which
# their packer takes from the build, nor the C library: that is the machine's own, as its parts fit only each other and the loader.
#
#   tests/pack_libraries.sh FOLDER PROGRAM...
set -euo pipefail
(($# >= 2)) || {
    echo "usage: tests/pack_libraries.sh FOLDER PROGRAM..." >&2
    exit 2
}
folder=$1
shift

ldd "$@" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
    grep -Ev '/(libc|libm|libdl|librt|libpthread|libresolv|libspillway|ld-linux[^/]*)\.so' |
    while read -r library; do cp -L "$library" "$folder/"; done
