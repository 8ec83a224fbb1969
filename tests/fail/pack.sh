#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Packs a release build and what its calls are made to fail with, for a machine with many cores and nothing else: no compiler,
# no binutils, no libraries. `./dev torture fail-pack` builds first.
#
#   tests/fail/pack.sh BUILD FILE.tar.gz
#
# There, as root or as somebody who may lock memory: unpack, and spillway-fail-pack/run.sh, which takes what failcalls.py takes.
# It wants python3, setpriv (util-linux), 400 MiB of memory for each of its --jobs, and a C library as new as this machine's.
set -euo pipefail
(($# == 2)) || {
    echo "usage: tests/fail/pack.sh BUILD FILE.tar.gz" >&2
    exit 2
}
build=$(realpath "$1") file=$(realpath -m "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pack=$work/spillway-fail-pack
mkdir -p "$pack/bin/tests/fake" "$pack/fail"

# Where the programs look: beside themselves.
cp "$build"/{spillwayd,spillway-gpu,spillctl} "$pack/bin/"
cp -L "$build"/libspillway.so.0 "$pack/bin/"
cp "$build"/tests/{fail_workload,libfailcalls.so} "$pack/bin/tests/"
cp -P "$build"/tests/fake/* "$pack/bin/tests/fake/"
tests/pack_libraries.sh "$pack/bin" "$pack"/bin/spill* "$pack"/bin/tests/fail_workload
# Names of call sites need what is stripped.
python3 tests/fail/sites.py "$pack"/bin/{spillwayd,spillway-gpu,libspillway.so.0}
strip --strip-unneeded "$pack"/bin/spill{wayd,way-gpu,ctl} "$pack"/bin/*.so.*[0-9] "$pack"/bin/tests/{fail_workload,libfailcalls.so}
ln -s libspillway.so.0 "$pack/bin/libspillway.so"
cp tests/fail/*.py "$pack/fail/"
git describe --always --dirty >"$pack/commit" 2>/dev/null || echo unknown >"$pack/commit"
cat >"$pack/run.sh" <<'END'
#!/usr/bin/env bash
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
echo "commit $(cat "$here/commit"), $(nproc) cores"
SPILLWAY_BIN=$here/bin exec python3 "$here/fail/failcalls.py" "$@"
END
chmod 755 "$pack/run.sh"

mkdir -p "$(dirname "$file")"
tar -C "$work" -czf "$file" spillway-fail-pack
du -h "$file"
