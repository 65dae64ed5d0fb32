#!/usr/bin/env bash
# inferd as systemd runs it: installed as a user would, in a guest with a systemd of its own (see
# tests/support/guest.bash). Sockets and their rights, start on first use, READY and STATUS, reload,
# watchdog, restart under running clients, stop, the journal, one user's own daemon, uninstall.
# shellcheck source=tests/support/sh.bash
source tests/support/sh.bash
# shellcheck source=tests/support/guest.bash
source tests/support/guest.bash

why=$(guest_missing)
[ -z "$why" ] || {
    skip "inferd under systemd" "$why"
    exit 0
}
guest_start || {
    skip "inferd under systemd" "the guest does not start: $(tail -n 1 "$folder/boot" "$folder/debootstrap" 2>/dev/null)"
    exit 0
}

property() {
    guest systemctl show --value -p "$1" "${2:-inferd.service}"
}

# gets NAME COMMAND...: sets $status, $out, $err of a command in the guest, with a bound of time.
gets() {
    run timeout --signal=KILL 60 bash -c "$(declare -f guest guest_as); guest_init=$guest_init; \"\$@\"" bash "$@"
}

# What the daemon writes of itself, when a test fails.
journal() {
    guest journalctl --no-pager -o cat -u inferd.service | tail -n 15 | sed 's/^/    /'
}

ask=(inferctl prompt --raw --temp 0 --max-tokens 8 "The kernel")

# ---- installation and first use -----------------------------------------------------------------

check "install: succeeds" guest make -s -C /src install
[ "$failures" = 0 ] || { guest_stop && finish; }
is "install: the daemon is not started by it" "$(property ActiveState)" inactive
check "install: the user inferd is there" guest id inferd
guest useradd --create-home --groups inferd alice
guest useradd --create-home bob
guest sh -c 'mkdir -p /etc/inferd && printf "[model unix]\npath = /src/'"$model"'\nkeep-alive = 2s\n" >/etc/inferd/inferd.conf'
check "install: the units have nothing that systemd does not know" \
    guest systemd-analyze verify --man=no inferd.service inferd.socket inferd-manage.socket
check "sockets: enabled and started" guest systemctl enable --now inferd.socket inferd-manage.socket
is "sockets: the daemon waits for its first use" "$(property ActiveState)" inactive
gets guest_as alice "${ask[@]}"
is "first use: a member of the group gets an answer" "$status" 0
[ "$status" = 0 ] || { echo "    $err" && journal; }
is "first use: the daemon runs" "$(property ActiveState)" active
[ "$(property ActiveState)" = active ] || { guest_stop && finish; }
gets guest_as bob "${ask[@]}"
is "rights: who is not in the group is refused" "$status" 3
matches "rights: and told what to do" "$err" 'group.*inferd'
gets guest_as alice inferctl unload unix
matches "rights: models are for the administrator" "$err" 'root|permission|administrator'
is "rights: nothing of root's is left to it" "$(guest cat "/proc/$(property MainPID)/status" | awk '/^(CapEff|NoNewPrivs|Seccomp):/ {print $2}' | xargs)" \
    "0000000000000000 1 2"

# ---- what systemd knows of it -------------------------------------------------------------------

matches "status: says what it serves" "$(property StatusText)" 'model'
guest_as alice inferctl prompt --raw --ignore-eos --max-tokens 20000 --window 256 "The kernel" >"$folder/stream" 2>&1 &
stream=$!
sleep 1.5
matches "status: says how many requests run" "$(property StatusText)" '1 request'
before=$(property MainPID)
check "reload: succeeds" guest systemctl reload inferd.service
is "reload: the daemon is the same" "$(property MainPID)" "$before"
guest sh -c 'echo "nonsense = 1" >>/etc/inferd/inferd.conf'
guest systemctl reload inferd.service >/dev/null 2>&1
matches "reload: a wrong file is told of, with its line" "$(guest journalctl --no-pager -o cat -u inferd.service)" 'inferd.conf:4'
is "reload: and changes nothing" "$(property MainPID) $(property ActiveState)" "$before active"
guest sed -i '/nonsense/d' /etc/inferd/inferd.conf
check "reload: the stream went on" kill -0 "$stream"
guest pkill -INT inferctl
wait "$stream"

# ---- idle ---------------------------------------------------------------------------------------

check "keep-alive: the model leaves" guest_until 20 sh -c 'inferctl models --json | grep -q "\"listed\""'
gets guest_as alice "${ask[@]}"
is "keep-alive: and comes back for the next request" "$status" 0

# ---- the watchdog -------------------------------------------------------------------------------

guest mkdir -p /run/systemd/system/inferd.service.d
guest sh -c 'printf "[Service]\nWatchdogSec=2\n" >/run/systemd/system/inferd.service.d/watchdog.conf'
guest systemctl daemon-reload
guest systemctl restart inferd.service
before=$(property MainPID)
sleep 4
is "watchdog: an idle daemon is left alone" "$(property MainPID) $(property NRestarts)" "$before 0"
[ "$before" = 0 ] || guest kill -STOP "$before"
# shellcheck disable=SC2016
check "watchdog: one that hangs is started again" guest_until 20 sh -c \
    '[ "$(systemctl show --value -p MainPID inferd.service)" != '"$before"' ] && systemctl is-active inferd.service'
gets guest_as alice "${ask[@]}"
is "watchdog: and serves" "$status" 0

# ---- restart under running clients --------------------------------------------------------------

guest_as alice sh -c '{ echo "What is tar?"; sleep 16; echo "What is a pipe?"; } | inferctl chat' >"$folder/chat" 2>&1 &
chat=$!
guest_as alice inferctl prompt --raw --ignore-eos --max-tokens 100000 --window 256 "The kernel" >"$folder/stream" 2>"$folder/stream.err" &
stream=$!
sleep 2
check "restart: succeeds" guest systemctl restart inferd.service
gets guest_as alice "${ask[@]}"
is "restart: a newcomer is served" "$status" 0
wait "$stream"
is "restart: the running request ended with an error of its own" "$?" 5
matches "restart: which says so" "$(cat "$folder/stream.err")" 'stop|restart|again'
wait "$chat"
is "restart: a client that was connected goes on, in its own connection" \
    "$? $(grep -c 'inferctl:' "$folder/chat") $(($(grep -c . "$folder/chat") >= 2))" "0 0 1"

# ---- the journal --------------------------------------------------------------------------------

is "journal: lines of a model bear its name" \
    "$(guest journalctl --no-pager -o cat INFERD_MODEL=unix | head -n 1 | wc -l)" 1
check "journal: levels are the journal's" guest sh -c 'journalctl --no-pager -o cat -u inferd.service -p info | grep -q .'
gets guest inferctl logs -n 5
is "inferctl logs: shows them" "$status" 0
matches "inferctl logs: the daemon's lines" "$out" 'inferd'

# ---- one user's own daemon ----------------------------------------------------------------------

guest loginctl enable-linger bob
if guest_until 20 test -S "/run/user/$(guest id -u bob)/systemd/private"; then
    guest_as bob mkdir -p /home/bob/.config/inferd
    guest_as bob sh -c 'printf "[model unix]\npath = /src/'"$model"'\n" >~/.config/inferd/inferd.conf'
    gets guest_as bob systemctl --user enable --now inferd.socket
    is "user: the socket is enabled without root" "$status" 0
    gets guest_as bob "${ask[@]}"
    is "user: the daemon starts on first use" "$status" 0
    [ "$status" = 0 ] || echo "    $err"
    is "user: it is his" "$(guest ps -o user= -C inferd 2>/dev/null | sort -u | xargs || true)" "bob inferd"
else
    skip "user: a daemon of one's own" "the guest starts no user manager"
fi

# ---- stop and uninstall -------------------------------------------------------------------------

before=$SECONDS
check "stop: succeeds" guest systemctl stop inferd.service
is "stop: in time, and with 0" "$((SECONDS - before < 25)) $(property Result) $(property ExecMainStatus)" "1 success 0"
gets guest_as alice "${ask[@]}"
is "stop: the next use starts it again" "$status" 0
check "uninstall: succeeds" guest make -s -C /src uninstall
is "uninstall: nothing is left but the configuration" "$(guest find /usr/local -name '*infer*')" ""

guest_stop
finish
