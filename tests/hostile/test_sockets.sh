#!/usr/bin/env bash
# Sockets that are in the way: of a daemon that lives, of one that is dead, of no daemon at all.
# shellcheck source=tests/support/sh.bash
source tests/support/sh.bash

one_line() { # NAME: what `run` wrote to standard error is one line that a person can act on
    is "$1: one line" "$(grep -c . <<<"$err")" 1
}

daemon_start --backend null

run timeout 10 "$inferd" --model "unix=$model" --backend null --socket "$INFERD_SOCKET"
is "busy socket: exit status" "$status" 3
one_line "busy socket"
matches "busy socket: names it and another way" "$err" "$INFERD_SOCKET.*--socket|--socket.*$INFERD_SOCKET"
check "busy socket: the first daemon serves on" "$inferctl" prompt --raw --max-tokens 2 --quiet hello

# A stale socket: its daemon was killed and could not remove it.
kill -9 "$daemon_pid"
wait "$daemon_pid" 2>/dev/null
daemon_pid=
check "stale socket: is there" test -S "$INFERD_SOCKET"
run "$inferctl" status
is "no daemon: exit status" "$status" 3
one_line "no daemon"
matches "no daemon: says what to do" "$err" 'start inferd'
daemon_start --backend null
check "stale socket: is taken over" "$inferctl" prompt --raw --max-tokens 2 --quiet hello

# At once after the death: the kernel may hold the dead one's listening socket for a moment.
for _ in 1 2 3 4 5; do
    kill -9 "$daemon_pid"
    wait "$daemon_pid" 2>/dev/null
    daemon_start --backend null || break
done
check "killed and started at once, five times" "$inferctl" prompt --raw --max-tokens 2 --quiet hello
daemon_stop
check "an orderly end removes the socket" test ! -e "$INFERD_SOCKET"

# What is no socket is never removed.
echo precious >"$folder/file"
run timeout 10 "$inferd" --model "unix=$model" --backend null --socket "$folder/file"
check "a file in the way: refused" test "$status" -ne 0
check "a file in the way: not a crash" test "$status" -lt 100
one_line "a file in the way"
is "a file in the way: untouched" "$(cat "$folder/file")" precious

mkdir "$folder/folder"
run timeout 10 "$inferd" --model "unix=$model" --backend null --socket "$folder/folder"
check "a folder in the way: refused" test "$status" -ne 0 -a "$status" -lt 100
one_line "a folder in the way"

run timeout 10 "$inferd" --model "unix=$model" --backend null --socket "$folder/absent/i.sock"
check "no such folder: refused" test "$status" -ne 0 -a "$status" -lt 100
one_line "no such folder"

long=$folder/$(printf 'x%.0s' $(seq 120))
run timeout 10 "$inferd" --model "unix=$model" --backend null --socket "$long"
is "path too long for a socket: exit status" "$status" 2
one_line "path too long for a socket"
run "$inferctl" --socket "$long" status
check "path too long, client: refused" test "$status" -ne 0 -a "$status" -lt 100
one_line "path too long, client"

run "$inferctl" --socket "$folder/file" status
is "client at a file: exit status" "$status" 3
one_line "client at a file"

finish
