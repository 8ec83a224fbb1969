#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Planted bugs: each patch of mutants/ puts one into a copy of the tree, and the simulator, or the unit test that the patch
# names, must see it.
#
#   mutate.sh [NAME...]    builds and runs all of them, or these; prints who caught what, and when
#   mutate.sh --check      do the patches still apply? For every test run
#
# A patch begins with two lines, "bug: what it does" and "by: sim" or the name of a unit test's program. For the simulator
# it may take SPILLWAY_MUTANT_SEEDS seeds (10,000), two side by side, from 1 on, or from what a third line, "from:", says.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
MUTANTS=$PWD/tests/sim/mutants
SEEDS=${SPILLWAY_MUTANT_SEEDS:-10000}
TREE=${SPILLWAY_MUTANT_TREE:-$PWD/build/mutants}

check() {
    local patch failed=0
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    cp -r io tiering daemon "$copy/"
    for patch in "$MUTANTS"/*.patch; do
        if ! patch -p1 --dry-run --silent -d "$copy" <"$patch" >/dev/null; then
            echo "FAILED: $(basename "$patch") does not apply any more"
            failed=1
        fi
    done
    echo "$(find "$MUTANTS" -name '*.patch' | wc -l) planted bugs"
    return "$failed"
}

# What a patch says of itself.
says() { sed -n "s/^$2: //p;/^---/q" "$1" | head -n 1; }

copy_tree() {
    mkdir -p "$TREE"
    # Only what differs is copied, so that what was built is not built again.
    local file
    while IFS= read -r -d '' file; do
        [[ -f $file ]] || continue
        cmp -s "$file" "$TREE/$file" || install -D -p "$file" "$TREE/$file"
    done < <(git ls-files -z --cached --others --exclude-standard)
    (cd "$TREE" && cmake --preset release >/dev/null)
}

# Runs what must see it; its words go to a file.
run_catcher() {
    local by=$1 first=$2 out=$3
    if [[ $by == sim ]]; then
        (cd "$TREE" && cmake --build build/release --target spillsim) >"$out" 2>&1 || return 99
        "$TREE/build/release/spillsim" --first "$first" --seeds "$SEEDS" --jobs 2 --no-prefix >"$out" 2>&1
    else
        (cd "$TREE" && cmake --build build/release --target "$by") >"$out" 2>&1 || return 99
        "$TREE/build/release/tests/$by" >"$out" 2>&1
    fi
}

mutate_one() {
    local patch=$1 name by first seed='' status=0 since out=$TREE/out.txt
    name=$(basename "$patch" .patch)
    by=$(says "$patch" by)
    first=$(says "$patch" from)
    patch -p1 --silent -d "$TREE" <"$patch"
    since=$SECONDS
    run_catcher "$by" "${first:-1}" "$out" || status=$?
    patch -p1 --silent -R -d "$TREE" <"$patch"
    if ((status == 99)); then
        printf '%-28s does not build\n' "$name"
        tail -n 20 "$out"
        return 1
    fi
    seed=$(sed -n 's/^seed \([0-9]*\) step.*/\1/p' "$out" | head -n 1)
    if ((status == 0)); then
        printf '%-28s NOT CAUGHT by %s   (%s)\n' "$name" "$by" "$(says "$patch" bug)"
        return 1
    fi
    printf '%-28s %-26s %8s %6d s   %s\n' "$name" "$by" "${seed:--}" "$((SECONDS - since))" "$(says "$patch" bug)"
}

if [[ ${1:-} == --check ]]; then
    check
    exit
fi
copy_tree
printf '%-28s %-26s %8s %8s   %s\n' 'planted bug' 'caught by' 'at seed' 'time' 'what it does'
failed=0 n=0
for patch in "$MUTANTS"/*.patch; do
    (($# == 0)) || [[ " $* " == *" $(basename "$patch" .patch) "* ]] || continue
    mutate_one "$patch" || failed=$((failed + 1))
    n=$((n + 1))
done
echo "$((n - failed)) of $n caught"
((n > 0 && failed == 0))
