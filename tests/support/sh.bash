# sh.bash: what test scripts share: a private inferd, and lines for tests/run.sh to count.
#
#   source tests/support/sh.bash        (from the repository's root)
#   daemon_start --backend null         a daemon on the embedded model; INFERD_SOCKET is its socket
#   check "name" COMMAND...             ok when the command succeeds; its output is shown otherwise
#   run COMMAND...                      sets $status, $out and $err
#   is "name" GOT WANTED                ok when equal
#   matches "name" TEXT REGEX           ok when TEXT holds the extended regular expression
#   skip "name" WHY
#
# The script's exit status is set by `finish`, which also stops the daemon and looks at its log.
# shellcheck shell=bash disable=SC2034

INFERD_BUILD=${INFERD_BUILD:-build}
export INFERD_BUILD
inferd=$INFERD_BUILD/inferd
inferctl=$INFERD_BUILD/inferctl
model=models/unix-46m-Q6_K.gguf
folder=$(mktemp -d "${TMPDIR:-/tmp}/inferd-test.XXXXXX")
daemon_pid=
failures=0
case $INFERD_BUILD in *san*) sanitized=1 slowness=8 ;; *) sanitized=0 slowness=1 ;; esac
status=0 out="" err=""

ok() {
    echo "ok - $1"
}

not_ok() {
    echo "not ok - $1"
    failures=$((failures + 1))
}

skip() {
    echo "skip - $1: $2"
}

run() {
    "$@" >"$folder/out" 2>"$folder/err" </dev/null
    status=$?
    # A NUL cannot live in a variable; whoever needs one looks at the file.
    out=$(tr -d '\0' <"$folder/out")
    err=$(tr -d '\0' <"$folder/err")
    return 0
}

check() {
    local name=$1
    shift
    if "$@" >"$folder/check" 2>&1; then
        ok "$name"
    else
        not_ok "$name"
        sed 's/^/    /' "$folder/check"
    fi
}

is() {
    if [ "$2" = "$3" ]; then
        ok "$1"
    else
        not_ok "$1"
        printf '    got:    %s\n    wanted: %s\n' "$2" "$3"
    fi
}

matches() {
    if grep -qE -- "$3" <<<"$2"; then
        ok "$1"
    else
        not_ok "$1"
        printf '    got:    %s\n    wanted: /%s/\n' "$2" "$3"
    fi
}

# daemon_start [ARGUMENT...]: --model and --socket are given unless they are among the arguments.
daemon_start() {
    local arguments=("$@") i before
    before=$(grep -c "ready at " "$folder/log" 2>/dev/null)
    INFERD_SOCKET=$folder/inferd.sock
    export INFERD_SOCKET
    [[ " $* " == *" --model "* ]] || arguments+=(--model "unix=$model")
    [[ " $* " == *" --socket "* ]] || arguments+=(--socket "$INFERD_SOCKET")
    "$inferd" "${arguments[@]}" >>"$folder/log" 2>&1 </dev/null &
    daemon_pid=$!
    for ((i = 0; i < 1000 * slowness; i++)); do
        if [ "$(grep -c "ready at " "$folder/log")" -gt "${before:-0}" ]; then
            return 0
        fi
        if ! kill -0 "$daemon_pid" 2>/dev/null; then
            break
        fi
        sleep 0.02
    done
    not_ok "inferd starts"
    sed 's/^/    /' "$folder/log"
    daemon_pid=
    return 1
}

# Stops it and counts a failure when it does not end with 0 or a sanitizer complains.
daemon_stop() {
    local ended=0
    [ -n "$daemon_pid" ] || return 0
    kill "$daemon_pid" 2>/dev/null
    wait "$daemon_pid"
    ended=$?
    daemon_pid=
    if [ "$ended" != 0 ]; then
        not_ok "inferd ends with 0 (it was $ended)"
        sed 's/^/    /' "$folder/log"
    elif grep -qE 'Sanitizer: |: runtime error: ' "$folder/log"; then
        not_ok "no sanitizer complains of inferd"
        sed 's/^/    /' "$folder/log"
    fi
}

cleanup() {
    [ -z "$daemon_pid" ] || kill -9 "$daemon_pid" 2>/dev/null
    rm -rf "$folder"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

finish() {
    daemon_stop
    [ "$failures" = 0 ]
    exit
}
