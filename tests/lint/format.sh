#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every C file is as clang-format would write it. `./dev fmt` puts it right.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

command -v clang-format >/dev/null || {
    echo "SKIP: clang-format is not installed"
    exit 77
}
mapfile -t files < <(tests/lint/files.sh c h)
((${#files[@]} == 0)) || clang-format --dry-run -Werror "${files[@]}"
