#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every header compiles alone, so that no file depends on the order of its includes. Installed ones compile as strict
# C11 and as C++ too, from the folder where they will lie: they may use nothing else of ours.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

bad=0
# check HEADER COMPILER FLAGS...
check() {
    local header=$1
    shift
    printf '#include "%s"\n' "$header" | "$@" -Wall -Wextra -Werror -fsyntax-only - || {
        echo "$header does not compile alone: $*"
        bad=1
    }
}

while IFS= read -r header; do
    case $header in
    include/spillway/*)
        check "${header#include/}" gcc -x c -std=c11 -pedantic -I include
        check "${header#include/}" g++ -x c++ -std=c++17 -I include
        ;;
    esac
    check "$header" gcc -x c -std=gnu17 -D_GNU_SOURCE -Wno-unused-function -I .
done < <(tests/lint/files.sh h)
exit $bad
