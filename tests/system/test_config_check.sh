#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every mistake that an admin can make in a config: `spillwayd --check` ends with 78 and says file, line and what to do.
set -u
bin=${SPILLWAY_BIN:?}
source=${SPILLWAY_SOURCE:?}
folder=$(mktemp -d /tmp/spillway-test-XXXXXX)
trap 'rm -rf "$folder"' EXIT
conf=$folder/spillwayd.conf
failed=0

# refused LINE WORDS: standard input is a config that must be refused, with this line number and these words.
refused() {
    cat >"$conf"
    "$bin/spillwayd" --check "$conf" >"$folder/out" 2>"$folder/err"
    local status=$? where=$conf:$1:
    [ "$1" = 0 ] && where=$conf:
    if [ $status -ne 78 ] || [ -s "$folder/out" ] || ! grep -aF -- "$where" "$folder/err" | grep -aqF -- "$2"; then
        printf 'status %d, wanted 78 and "%s … %s"; config:\n%s\nit says:\n%s\n\n' $status "$where" "$2" \
            "$(tr -d '\0' <"$conf" | cut -c1-200)" "$(cat "$folder/err")"
        failed=1
    fi
}

pool=$'[pool p]\nusers = root'

# Keys and sections.
refused 2 "did you mean 'size'" <<<$'[tier.dram]\nsise = 1 GiB\n'"$pool"
refused 2 "it belongs in [pool NAME]" <<<$'[tier.dram]\nlinger = 1 s\n'"$pool"
refused 3 "already set on line 2" <<<$'[tier.dram]\nsize = 1 GiB\nsize = 2 GiB\n'"$pool"
refused 3 "indented" <<<$'[tier.dram]\nsize = 1 GiB\n  size = 2 GiB\n'"$pool"
refused 3 "indented" <<<$'[daemon]\nsocket = /run/a\n\t/b\n'"$pool"
refused 1 "did you mean 'tier.dram'" <<<$'[tier.dam]\nsize = 1 GiB\n'"$pool"
refused 3 "already given on line 1" <<<"$pool"$'\n[pool p]\nusers = root'
refused 1 "before the first [section]" <<<$'size = 1 GiB\n'"$pool"
refused 1 "ends in ']'" <<<$'[daemon\n'"$pool"
refused 2 "neither [section] nor key = value" <<<$'[daemon]\nsocket\n'"$pool"
refused 2 "no value" <<<$'[daemon]\nsocket =\n'"$pool"
refused 2 "more than 255 characters" <<<$'[daemon]\nsocket = /'"$(printf 'x%.0s' $(seq 300))"$'\n'"$pool"
refused 2 "at most" <<<$'[daemon]\nsocket = /'"$(printf 'x%.0s' $(seq 6000))"$'\n'"$pool"

# Values.
refused 2 "GiBB" <<<$'[tier.dram]\nsize = 12 GiBB\n'"$pool"
refused 2 "size" <<<$'[tier.dram]\nsize = 12 GB\n'"$pool"
refused 2 "size" <<<$'[tier.dram]\nsize = -1 GiB\n'"$pool"
refused 2 "size" <<<$'[tier.dram]\nsize = 99999999999999999999 GiB\n'"$pool"
refused 2 "64 MiB" <<<$'[tier.dram]\nsize = 1 MiB\n'"$pool"
refused 2 "hugepages" <<<$'[tier.dram]\nhugepages = maybe\n'"$pool"
refused 2 "max_sessions" <<<$'[daemon]\nmax_sessions = many\n'"$pool"
refused 2 "max_sessions" <<<$'[daemon]\nmax_sessions = 0\n'"$pool"
refused 3 "linger" <<<"$pool"$'\nlinger = 3 fortnights'
refused 2 "did you mean 's3-fifo'" <<<$'[class kv]\npolicy = s3fifo\n'"$pool"
refused 2 "spillway-no-such-user" <<<$'[pool p]\nusers = spillway-no-such-user'

# Sums and absences.
refused 6 "dram" <<<$'[pool p]\nusers = root\ndram = 70 %\n[pool q]\nusers = root\ndram = 40 %'
refused 3 "there is no device" <<<"$pool"$'\nnvme = 1 GiB'
refused 1 "users" <<<$'[pool p]\ndram = 10 %'
refused 1 "path" <<<$'[device d]\nweight = 10\n'"$pool"

# More than one mistake: all are told.
printf '[tier.dram]\nsise = 1 GiB\n[daemon]\nmax_sessions = many\n[pool p]\nusers = root\n' >"$conf"
"$bin/spillwayd" --check "$conf" 2>"$folder/err"
if [ $? -ne 78 ] || ! grep -qF "$conf:2:" "$folder/err" || ! grep -qF "$conf:4:" "$folder/err"; then
    printf 'not both mistakes are told:\n%s\n' "$(cat "$folder/err")"
    failed=1
fi

# No file, and a file that is none.
"$bin/spillwayd" --check "$folder/none" 2>"$folder/err"
if [ $? -ne 78 ] || ! grep -qF "$folder/none: cannot read: No such file" "$folder/err"; then
    printf 'a missing file: %s\n' "$(cat "$folder/err")"
    failed=1
fi
refused 2 "not a text file" < <(printf '[daemon]\nsock\0et = /a\n')
refused 1 "" < <(printf '\177ELF\2\1\1\n')

# A daemon that is started with a bad config says the same, and does not start.
printf '[tier.dram]\nsise = 1 GiB\n' >"$conf"
"$bin/spillwayd" --user --config "$conf" 2>"$folder/err" &
wait $!
if [ $? -ne 78 ] || ! grep -qF "$conf:2:" "$folder/err"; then
    printf 'started with a bad config: %s\n' "$(cat "$folder/err")"
    failed=1
fi

# The example works as it is.
if ! "$bin/spillwayd" --check "$source/docs/spillwayd.conf"; then
    echo "docs/spillwayd.conf is refused"
    failed=1
fi
exit $failed
