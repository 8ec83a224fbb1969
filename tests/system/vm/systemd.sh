#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs where systemd is PID 1, with the project installed as `cmake --install` does, as a unit of its own. Waits for
# states, never for times: what does not come ends with the whole test's time.
set -euo pipefail

export PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin
config=/etc/spillway/spillwayd.conf device=/var/lib/spillway/fast0.spill
output=

step() { echo "── $*"; }
journal() {
    journalctl --sync
    journalctl -u spillwayd -o cat --no-pager
}
fail() {
    echo "FAILED: $*"
    echo "── what was said last"
    echo "$output"
    systemctl status --no-pager -n 0 spillwayd.service spillwayd.socket || true
    journalctl --no-pager -b -n 60 || true
    exit 1
}
# expect STATUS COMMAND…: its output is in $output.
expect() {
    local want=$1 status=0
    shift
    output=$("$@" 2>&1) || status=$?
    ((status == want)) || fail "$*: status $status instead of $want"
}
says() { grep -qF -- "$1" <<<"$output" || fail "'$1' is missing"; }
equal() { [[ $2 == "$3" ]] || fail "$1: '$2' instead of '$3'"; }
# until_true COMMAND…
until_true() {
    for _ in $(seq 600); do
        ! "$@" || return 0
        sleep 0.1
    done
    fail "it does not come: $*"
}
logged() { grep -qF -- "$1" <<<"$(journal)"; }
property() { systemctl show -P "$1" spillwayd.service; }
has() { [[ $(property "$1") == "$2" ]]; }
member() { spillctl "$1" -o json | sed -n "s/.*\"$2\":\"\{0,1\}\([0-9a-z_]*\).*/\1/p"; }
answers() { output=$(spillctl status 2>&1); }
as() { setpriv --reuid "$1" --regid "$1" --init-groups "${@:2}"; }

# configure LINES-OF-DAEMON [ANOTHER-POOL]
configure() {
    cat >"$config" <<CONFIG
[daemon]
max_sessions = 64
$1
[tier.dram]
size = 128 MiB
[device fast0]
path = $device
[pool shared]
groups = spillway
${2:-[pool alice]
users = alice}
CONFIG
}

# replay USER POOL: sets $nvme_hits and $computed.
nvme_hits='' computed=''
replay() {
    until_true answers
    expect 0 as "$1" spillbench replay --trace /trace.jsonl --pool "$2" --quiet
    nvme_hits=$(sed -n 's/.*hits on NVMe *\([0-9]*\).*/\1/p' <<<"$output")
    computed=$(sed -n 's/.*computed *\([0-9]*\).*/\1/p' <<<"$output")
    grep -E 'hits|computed|verified' <<<"$output"
}

step "sysusers and tmpfiles"
expect 0 id spillway
equal "the socket's folder" "$(stat -c '%U:%G %a' /run/spillway)" 'spillway:spillway 755'
equal "the state's folder" "$(stat -c '%U:%G %a' /var/lib/spillway)" 'spillway:spillway 700'

step "as docs/admin.md has it"
expect 0 spillctl device format --capacity 256MiB "$device"
equal "the device" "$(stat -c '%U:%G %a' "$device")" 'spillway:spillway 600'
configure ''
expect 0 spillwayd --check "$config"
expect 0 systemctl enable spillwayd
expect 0 systemctl is-enabled spillwayd.service spillwayd.socket

step "a connection starts it"
expect 0 systemctl start spillwayd.socket
equal "the socket" "$(stat -c '%U:%G %a' /run/spillway/spillwayd.sock)" 'spillway:spillway 660'
equal "the service" "$(property ActiveState)" inactive
until_true answers # a client gives up after 5 s, and a start may take longer
says ready
equal "the service" "$(property ActiveState)" active
equal "the status text" "$(property StatusText)" serving
equal "the socket in use" "$(member status socket)" systemd

step "what the unit allows is enough"
pid=$(property MainPID)
equal "user" "$(stat -c %U "/proc/$pid")" spillway
equal "capabilities" "$(sed -n 's/^CapEff:\t*//p' "/proc/$pid/status")" 0000000000004000
equal "no new privileges" "$(sed -n 's/^NoNewPrivs:\t*//p' "/proc/$pid/status")" 1
threads=0
for thread in "/proc/$pid/task/"*; do
    # The unit's and the thread's own, beside those that systemd makes of RestrictNamespaces= and the like.
    equal "system call filter of $(cat "$thread/comm")" "$(sed -n 's/^Seccomp:\t*//p' "$thread/status")" 2
    threads=$((threads + 1))
done
equal "threads with a filter of their own" "$(member status seccomp_threads)" "$threads"
equal "its mode" "$(member status seccomp)" on
equal "degraded" "$(member status degraded_memlock)" false
equal "restricted io_uring" "$(member status io_uring_restricted)" true
equal "note" "$(member status note)" null
equal "bytes locked" "$(member tiers locked_bytes)" $((128 * 1024 * 1024))
equal "pages off their node" "$(member tiers pages_sampled)" "$(member tiers pages_on_node)"
equal "sanitizers' reports" "$(journal | grep -c 'Sanitizer' || true)" 0

step "members of the group use pools, others do not"
replay alice shared
equal "hits on NVMe" "$nvme_hits" 0
replay alice alice
expect 2 as mallory spillbench replay --trace /trace.jsonl --pool shared --quiet
says 'Permission denied'
expect 2 setpriv --reuid mallory --regid mallory --groups spillway \
    spillbench replay --trace /trace.jsonl --pool alice --quiet
says 'this user and these groups are not in its users and groups'

step "stop writes back, and the next connection finds it"
expect 0 systemctl stop spillwayd.service
equal "result" "$(property Result)" success
equal "exit status" "$(property ExecMainStatus)" 0
equal "the socket" "$(systemctl is-active spillwayd.socket)" active
replay alice shared
equal "computed anew" "$computed" 0
[[ $nvme_hits != 0 ]] || fail "nothing came from the device"

step "reload"
pid=$(property MainPID)
configure 'spin_us = 40'
expect 0 systemctl reload spillwayd
until_true logged '[daemon] spin_us: 40, was 100'
until_true logged 'reloaded'
until_true has ActiveState active
configure 'spin_su = 50'
expect 0 systemctl reload spillwayd
until_true logged "$config:3: unknown key 'spin_su'"
until_true logged 'not reloaded: the old configuration stays in force'
until_true has ActiveState active
equal "the process" "$(property MainPID)" "$pid"
expect 0 spillctl status

step "a configuration that is refused is not tried again"
expect 0 systemctl stop spillwayd.service
expect 1 systemctl start spillwayd.service
equal "exit status" "$(property ExecMainStatus)" 78
equal "restarts" "$(property NRestarts)" 0
equal "the service" "$(property ActiveState)" failed
configure ''
expect 0 systemctl reset-failed spillwayd.service

step "active means ready: not before the device is free"
exec 9<"$device"
flock 9
expect 0 systemctl start --no-block spillwayd.service
until_true logged "$device is in use: waiting"
equal "the service" "$(property ActiveState)" activating
flock -u 9
exec 9<&-
until_true has ActiveState active
expect 0 spillctl status

step "killed, it comes back"
pid=$(property MainPID)
kill -KILL "$pid"
until_true has NRestarts 1
until_true has ActiveState active
expect 0 spillctl status
replay alice shared
equal "computed anew" "$computed" 0

step "the watchdog"
mkdir -p /etc/systemd/system/spillwayd.service.d
printf '[Service]\nWatchdogSec=5s\n' >/etc/systemd/system/spillwayd.service.d/watchdog.conf
expect 0 systemctl daemon-reload
expect 0 systemctl restart spillwayd.service
equal "restarts" "$(property NRestarts)" 0
pid=$(property MainPID)
kill -STOP "$pid"
until_true logged 'Watchdog timeout'
until_true has NRestarts 1
until_true has ActiveState active
[[ $(property MainPID) != "$pid" ]] || fail "it is the same process"
expect 0 spillctl status

step "the journal"
expect 0 journalctl -u spillwayd --no-pager -o cat -p notice
says 'ready: 1 engine, 2 pools, socket of the service manager'
says 'stopping: SIGTERM'
expect 0 journalctl -u spillwayd --no-pager -o cat _COMM=spillwayd -p err
says 'not reloaded'
! grep -qF 'ready:' <<<"$output" || fail "what is no error is logged as one"
! grep -q '^spillwayd: ' <<<"$(journal)" || fail "lines say twice who speaks"


# rounds N: the client has got through N rounds more, or has ended.
rounds() { grep -c '^round' /tmp/client || true; }
more_rounds() {
    local want=$(($(rounds) + $1))
    enough_rounds() { (($(rounds) >= want)) || ! kill -0 "$client" 2>/dev/null; }
    until_true enough_rounds
    kill -0 "$client" 2>/dev/null || fail "the client has ended: $(cat /tmp/client)"
}
# another PID: it is up again, as another process
another() { [[ $(property MainPID) != "$1" && $(property MainPID) != 0 ]] && has ActiveState active; }

step "a client rides out whatever becomes of it"
configure '' '[pool default]
users = alice'
rm /etc/systemd/system/spillwayd.service.d/watchdog.conf
expect 0 systemctl daemon-reload
expect 0 systemctl restart spillwayd.service
# It is not installed, so it looks for the library where it was built, which may lie in a /tmp that is not there here.
for library in /usr/local/lib/libspillway.so.0 /usr/local/lib/*/libspillway.so.0; do
    [[ -e $library ]] && break
done
LD_LIBRARY_PATH=${library%/*} setpriv --reuid alice --regid alice --init-groups hot_client /run/spillway/spillwayd.sock \
    >/tmp/client 2>&1 &
client=$!
more_rounds 2
session=$(member status sessions_ever)
((session > 0)) || fail "there is no session"
[[ $(property NFileDescriptorStore) -ge 3 ]] || fail "the store has $(property NFileDescriptorStore) descriptors"
for how in KILL restart KILL reload KILL restart watchdog restart; do
    pid=$(property MainPID)
    echo "$how"
    expect 0 systemctl reset-failed spillwayd.service # it is tried five times in ten seconds
    case $how in
    KILL) kill -KILL "$pid" ;;
    restart) expect 0 systemctl restart spillwayd.service ;;
    reload) expect 0 systemctl reload spillwayd.service ;;
    watchdog)
        printf '[Service]\nWatchdogSec=5s\n' >/etc/systemd/system/spillwayd.service.d/watchdog.conf
        expect 0 systemctl daemon-reload
        expect 0 systemctl restart spillwayd.service
        pid=$(property MainPID)
        kill -STOP "$pid"
        ;;
    esac
    [[ $how == reload ]] || until_true another "$pid"
    more_rounds 3
done
logged 'the last process left' || fail "nothing was left in the store"
output=$(journal | grep -F 'the last process left')
! grep -qvF ' 0 objects are lost' <<<"$output" || fail "objects are lost"
kill -TERM "$client"
status=0
wait "$client" || status=$?
equal "the client's status: $(tail -n 5 /tmp/client)" "$status" 0
grep -F 'none failed' /tmp/client || fail "the client says: $(tail -n 5 /tmp/client)"

step "nothing of all this needed a call that is not in a list"
equal "system calls" "$(member status seccomp_refused)" 0
! grep -qF 'the system call' <<<"$(journal)" || fail "$(journal | grep -F 'the system call')"

step "the descriptor store"
equal "room" "$(property FileDescriptorStoreMax)" 16384
[[ $(property NFileDescriptorStore) -ge 3 ]] || fail "it is empty"
expect 0 systemctl stop spillwayd.service
equal "descriptors after a stop" "$(property NFileDescriptorStore)" 0

expect 0 systemctl stop spillwayd.service spillwayd.socket
