#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints our files with one of the given endings, one a line: what git tracks or would, or in an unpacked archive what
# is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    list() { git ls-files --cached --others --exclude-standard; }
else
    list() { find . -name build -prune -o -type f -print | sed 's,^\./,,'; }
fi
endings=$(
    IFS='|'
    echo "$*"
)
# A file that is deleted but not committed yet is still in git's list.
list | sort -u | { grep -E "\.($endings)\$" || true; } | while IFS= read -r file; do
    [[ ! -e $file ]] || printf '%s\n' "$file"
done
