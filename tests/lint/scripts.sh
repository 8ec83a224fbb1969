#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every shell script passes shellcheck.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

command -v shellcheck >/dev/null || {
    echo "SKIP: shellcheck is not installed"
    exit 77
}
mapfile -t files < <(tests/lint/files.sh sh)
shellcheck --external-sources --source-path=SCRIPTDIR dev .ci/run "${files[@]}"
