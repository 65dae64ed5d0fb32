#!/usr/bin/env bash
# inferctl metrics and logs from a shell: the text, the endpoint behind systemd's own socket
# activation, starts that are counted, and how journalctl is called.
cd "$(dirname "$0")/../.." || exit 1
# shellcheck source=tests/support/sh.bash
source tests/support/sh.bash

mkdir "$folder/state"
daemon_start --backend null --state-directory "$folder/state" || finish

# ---- metrics ------------------------------------------------------------------------------------

"$inferctl" prompt --raw --temp 0 -n 5 hello >/dev/null
run "$inferctl" metrics
is "metrics succeeds" "$status/$err" "0/"
is "metrics: the last line" "$(tail -1 <<<"$out")" "# EOF"
matches "metrics: tokens of a model" "$out" '^inferd_tokens_total\{model="unix"\} 5$'
matches "metrics: a histogram" "$out" '^inferd_first_token_seconds_bucket\{model="unix",le="\+Inf"\} 1$'
matches "metrics: the version" "$out" "^inferd_build_info\{version=\"$("$inferctl" --version | cut -d' ' -f2)\""
matches "metrics: this start" "$out" '^inferd_starts_total 1$'
missing=
for name in $(sed -n 's/^# TYPE \([a-z_]*\) .*/\1/p' <<<"$out"); do
    grep -qE "^\.It Ql (.* )?$name( |\$)" man/inferctl.1 || missing+=" $name"
done
is "metrics: inferctl(1) has every family" "$missing" ""
run "$inferctl" metrics --json
is "metrics --json is refused" "$status" 2
run "$inferctl" metrics more
is "metrics takes no argument" "$status" 2
if command -v promtool >/dev/null; then
    # What it imports must have times; nothing but this command of it reads OpenMetrics.
    "$inferctl" metrics | sed -E '/^#/!s/$/ 1700000000.0/' >"$folder/text"
    check "promtool takes the metrics" promtool tsdb create-blocks-from openmetrics "$folder/text" "$folder/blocks"
else
    skip "promtool takes the metrics" "promtool is not installed"
fi

# An idle daemon does nothing for having been asked.
ticks() { awk '/^voluntary_ctxt_switches/ {n += $2} END {print n}' /proc/"$daemon_pid"/task/*/status; }
"$inferctl" metrics >/dev/null
sleep 0.5
before=$(ticks)
sleep 2
is "idle: no thread wakes up after metrics were asked for" "$(($(ticks) - before))" 0

# ---- status -------------------------------------------------------------------------------------

run "$inferctl" status --json
missing=
for name in n_preempted n_preemptions n_conversations request_bytes conversation_bytes \
    swap_memory_bytes swap_file_bytes; do
    grep -q "\"$name\": 0" <<<"$out" || missing+=" $name"
done
is "status --json has what metrics have of pressure" "$missing" ""

daemon_stop
daemon_start --backend null --state-directory "$folder/state" || finish
matches "metrics: the second start" "$("$inferctl" metrics)" '^inferd_starts_total 2$'

# ---- the endpoint -------------------------------------------------------------------------------

if ! command -v systemd-socket-activate >/dev/null || ! command -v curl >/dev/null; then
    skip "http: behind systemd's socket activation" "systemd-socket-activate or curl is not installed"
else
    port=
    for try in 1 2 3 4 5; do
        port=$((20000 + (RANDOM + try) % 30000))
        systemd-socket-activate --accept --inetd -l "127.0.0.1:$port" -E INFERD_SOCKET \
            -E ASAN_OPTIONS "$inferctl" metrics --http 2>"$folder/activate" &
        activate=$!
        for ((i = 0; i < 50 * slowness; i++)); do
            grep -q '^Listening on' "$folder/activate" && break 2
            kill -0 "$activate" 2>/dev/null || break
            sleep 0.02
        done
        kill "$activate" 2>/dev/null
        wait "$activate" 2>/dev/null
    done
    run curl -sS --max-time $((10 * slowness)) -D "$folder/head" "http://127.0.0.1:$port/metrics"
    is "http: curl gets an answer" "$status/$err" "0/"
    matches "http: it is OpenMetrics" "$(cat "$folder/head")" \
        '^Content-Type: application/openmetrics-text; version=1\.0\.0'
    is "http: the whole text" "$(tail -1 <<<"$out")" "# EOF"
    run curl -sS --max-time $((10 * slowness)) -o /dev/null -w '%{http_code}' "http://127.0.0.1:$port/"
    is "http: another path" "$out" 404
    run curl -sS --max-time $((10 * slowness)) -o /dev/null -w '%{http_code}' -X DELETE "http://127.0.0.1:$port/metrics"
    is "http: another method" "$out" 405
    run curl -sS --max-time $((10 * slowness)) -I -w '%{http_code}' "http://127.0.0.1:$port/metrics"
    matches "http: HEAD" "$out" '200$'
    kill "$activate"
    wait "$activate" 2>/dev/null
fi

# ---- logs ---------------------------------------------------------------------------------------

# A journalctl that says how it was called.
mkdir "$folder/bin" "$folder/none"
printf '#!/bin/sh\nprintf "%%s|" "$@"\nexit 7\n' >"$folder/bin/journalctl"
chmod +x "$folder/bin/journalctl"
# logs SOCKET ARGUMENT...
logs() {
    local socket=$1
    shift
    run env PATH="$folder/bin:$PATH" XDG_RUNTIME_DIR="$folder/run" INFERD_SOCKET="$socket" "$inferctl" logs "$@"
}
logs /run/inferd/inferd.sock
is "logs: of the system's unit" "$out" "--unit=inferd.service|"
is "logs: journalctl's exit status is inferctl's" "$status" 7
logs "$folder/run/inferd.sock" -f -n 20
is "logs: of the user's unit, following" "$out" "--user-unit=inferd.service|--follow|--lines=20|"
logs "" -n 0 --json -q
is "logs: without a socket by name" "$out" "--unit=inferd.service|--lines=0|--output=json|--quiet|"
mkdir "$folder/run" && touch "$folder/run/inferd.sock"
logs ""
is "logs: a user's own daemon comes first, as for every command" "$out" "--user-unit=inferd.service|"
logs "$folder/inferd.sock"
is "logs: a daemon that no unit started" "$status/$out" "1/"
matches "logs: it says where to look" "$err" 'its log is where its standard error goes'
logs /run/inferd/inferd.sock -n -1
is "logs: a number of lines is a number" "$status" 2
logs "/run/inferdx/inferd.sock"
is "logs: a folder of a similar name is another" "$status" 1
run env PATH="$folder/none" INFERD_SOCKET=/run/inferd/inferd.sock "$inferctl" logs
is "logs: without journalctl" "$status" 1
matches "logs: it says so" "$err" 'journalctl is not installed'

finish
