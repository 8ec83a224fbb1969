#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The Python package says what its types are (py.typed), and mypy agrees. What torch has is of any type here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

command -v mypy >/dev/null || {
    echo "SKIP: mypy is not installed"
    exit 77
}
mypy --version
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
mypy --config-file client/python/pyproject.toml --cache-dir "$cache" client/python/spillway
