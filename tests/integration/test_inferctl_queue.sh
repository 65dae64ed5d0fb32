#!/bin/bash
# inferctl's view of the queue, against a daemon with the embedded model: ps, top and cancel, and
# that priorities and deadlines reach the scheduler. How they are drawn on a terminal is the
# business of tests/unit/client/test_inferctl.c.
cd "$(dirname "$0")/../.." || exit 1
# shellcheck source=tests/support/sh.bash
source tests/support/sh.bash
export XDG_STATE_HOME=$folder/state TERM=xterm
unset NO_COLOR

if [ ! -x "$inferd" ]; then
    not_ok "inferd is built"
    exit 1
fi
[ -r "$model" ] || { skip "inferctl's queue" "$model is missing"; exit 0; }
# One request runs at a time, so that a second one waits.
daemon_start --backend cpu --parallel 1 || finish

# until_ps REGEX: waits until ps --json matches; its output is in $out
until_ps() {
    local i
    for ((i = 0; i < 250 * slowness; i++)); do
        run "$inferctl" ps --json
        grep -qE -- "$1" <<<"$out" && return 0
        sleep 0.02
    done
    return 1
}

# endless FILE [OPTION...]: an answer that goes on until the context is full, in the background
endless() {
    local file=$1
    shift
    "$inferctl" prompt --raw --ignore-eos -n 0 "$@" "tar" >"$file" 2>"$file.err" &
}

# id_of STATE: of the first request in that state, from $out
id_of() { grep -oE '\{[^}]*"state": "'"$1"'"' <<<"$out" | head -1 | grep -oE '"id": [0-9]+' | grep -oE '[0-9]+'; }

run "$inferctl" ps
is "nothing runs: ps prints the heading alone" "$status/$(wc -l <<<"$out")" 0/1
run "$inferctl" ps --json
is "ps --json is an empty array" "$out" "[]"
run "$inferctl" top --once
is "top --once succeeds" "$status" 0
matches "top names the model" "$out" '^Models: unix \('
run "$inferctl" top --once --json
matches "top --json has the daemon's pid" "$out" "^\{\"status\": .*\"pid\": $daemon_pid"

endless "$folder/one" --priority interactive
one=$!
check "a running request is listed" until_ps '"state": "(decode|prefill)"'
matches "with its program, model and class" "$out" '"client": "inferctl", "model": "unix", .*"priority": "interactive"'
matches "and its user" "$out" "\"uid\": $(id -u), \"user\": \"$(id -un)\", \"pid\": $one,"
first=$(id_of '(decode|prefill)')
run "$inferctl" top --once
matches "top lists it" "$out" "^ +$first $(id -un | cut -c1-10)"

endless "$folder/two" --priority batch
two=$!
check "the next one waits" until_ps '"state": "waiting", "priority": "batch"'
second=$(id_of waiting)
run "$inferctl" prompt --deadline 0.05 --raw -n 1 "tar"
is "a deadline that passes in the queue is an error" "$status" 5
matches "which says so" "$err" 'did not start before its deadline'

run "$inferctl" cancel "$second"
is "a waiting request can be cancelled" "$status" 0
wait "$two"
is "its program got no answer" "$(cat "$folder/two")" ""
run "$inferctl" cancel "$second"
is "once only" "$status" 4
run "$inferctl" cancel "$first" 999999999
is "an unknown id does not hinder the others" "$status/$err" "4/inferctl: no such request or conversation; it may be over: 999999999"
wait "$one"
check "and then nothing runs" until_ps '^\[\]$'
run "$inferctl" prompt --temp 0 -n 4 "tar"
is "the daemon goes on" "$status" 0
finish
