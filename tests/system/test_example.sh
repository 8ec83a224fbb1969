#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The C example of docs/client.md: it is what the page quotes, no longer than 40 lines, compiles with nothing but the
# installed headers and library, and runs against a daemon.
set -euo pipefail

bin=${SPILLWAY_BIN:?} source=${SPILLWAY_SOURCE:?}
dir=$(mktemp -d /var/tmp/spillway-example-XXXXXX)
daemon=
cleanup() {
    if [[ -n $daemon ]]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    rm -rf "$dir"
}
trap cleanup EXIT

lines=$(wc -l <"$source/docs/example.c")
((lines <= 40)) || { echo "docs/example.c has $lines lines"; exit 1; }
awk '/^```c$/ && !done { on = 1; next } /^```$/ { done = done || on; on = 0 } on' "$source/docs/client.md" >"$dir/quoted.c"
diff -u "$source/docs/example.c" "$dir/quoted.c" || { echo "docs/client.md does not quote docs/example.c"; exit 1; }

flags=()
case ${SPILLWAY_SANITIZE:-} in
'') ;;
thread) flags=(-fsanitize=thread) ;;
*) flags=("-fsanitize=address,undefined") ;;
esac
mkdir -p "$dir/include"
cp -r "$source/include/spillway" "$dir/include/spillway"
cc -std=c11 -Wall -Wextra -Werror "${flags[@]}" -I "$dir/include" "$source/docs/example.c" -o "$dir/example" \
    -L "$bin" -lspillway -Wl,-rpath,"$bin"

cat >"$dir/conf" <<CONF
[tier.dram]
size = 64 MiB
CONF
"$bin/spillwayd" --user --config "$dir/conf" --socket "$dir/socket" 2>"$dir/log" &
daemon=$!
for _ in $(seq 100); do
    grep -q 'ready:' "$dir/log" && break
    sleep 0.1
done
SPILLWAY_SOCKET="$dir/socket" "$dir/example" || {
    cat "$dir/log"
    exit 1
}
