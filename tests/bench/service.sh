#!/usr/bin/env bash
# service.sh: what the service costs when nobody uses it, and how soon it is there when somebody
# does, under a systemd of its own (tests/support/guest.bash; needs root), as one table:
#
#   - resident memory of the idle daemon, once its model has left it;
#   - how often its threads were woken meanwhile, beside the watchdog's share of that;
#   - connection to a socket whose daemon does not run yet, to the first token of the answer;
#   - restart with clients at work: how many of them had to connect again by hand, how many hung,
#     how long until the first of them was answered again.
#
#   INFERD_REPEATS   of activation and restart (5)
#   INFERD_IDLE_S    how long the idle daemon is watched (60)
set -u
cd "$(dirname "$0")/../.." || exit 1
# shellcheck source=tests/support/sh.bash
source tests/support/sh.bash
# shellcheck source=tests/support/guest.bash
source tests/support/guest.bash
# shellcheck source=tests/bench/bench.bash
source tests/bench/bench.bash
repeats=${INFERD_REPEATS:-5}
idle_s=${INFERD_IDLE_S:-60}
watchdog_s=10
clients=16

why=$(guest_missing)
[ -z "$why" ] || {
    echo "bench: the service cannot be measured here: $why" >&2
    exit 1
}
rows=$folder/rows

property() {
    guest systemctl show --value -p "$1" inferd.service
}

# Voluntary switches of all threads: each is a sleep, and so a wake-up.
switches() {
    guest sh -c 'cat /proc/'"$1"'/task/*/status' | awk '/^voluntary/ {n += $2} END {print n}'
}

say "starting the guest"
guest_start && guest make -s -C /src install || {
    echo "bench: the guest does not start, or cannot install what was built" >&2
    exit 1
}
guest useradd --create-home --groups inferd alice
guest sh -c 'mkdir -p /etc/inferd && printf "[model unix]\npath = /src/'"$model"'\nkeep-alive = 2s\n" >/etc/inferd/inferd.conf'
guest mkdir -p /run/systemd/system/inferd.service.d
guest sh -c 'printf "[Service]\nWatchdogSec='$watchdog_s'\nStartLimitBurst=1000\n" >/run/systemd/system/inferd.service.d/bench.conf'
guest systemctl daemon-reload
guest systemctl enable --now inferd.socket inferd-manage.socket 2>/dev/null

say "activation"
activation=()
# shellcheck disable=SC2016
for ((i = 0; i < repeats; i++)); do
    guest systemctl stop inferd.service
    activation+=("$(guest_as alice bash -c 'a=$(date +%s%N)
        inferctl prompt --raw --temp 0 --max-tokens 1 "The kernel" >/dev/null
        echo $((($(date +%s%N) - a) / 1000000))')")
done
row "first use of the socket to first token" ms "< 1000" "${activation[@]}"

say "idle, $idle_s s"
guest_until 30 sh -c 'inferctl models --json | grep -q "\"listed\""' || say "the model stays loaded"
sleep 3
pid=$(property MainPID)
before=$(switches "$pid")
sleep "$idle_s"
after=$(switches "$pid")
# shellcheck disable=SC2016
row "idle daemon, resident memory" MiB "< 20" \
    "$(guest awk '/^VmRSS/ {print $2 / 1024}' "/proc/$pid/status")"
row "idle daemon, wake-ups in $idle_s s, of which the watchdog's $((2 * idle_s / watchdog_s))" "" \
    "= the watchdog's" "$((after - before))"

say "restart, $clients clients"
again=() hung=() took=()
for ((i = 0; i < repeats; i++)); do
    for ((c = 0; c < clients; c++)); do
        guest_as alice sh -c '{ echo "What is tar?"; sleep 3; echo "What is a pipe?"; sleep 1; } |
            timeout 60 inferctl chat --max-tokens 400; echo "status $?"' >"$folder/client$c" 2>&1 &
    done
    sleep 1.5
    a=$(date +%s%N)
    guest systemctl restart inferd.service
    guest_as alice inferctl prompt --raw --max-tokens 1 "The kernel" >/dev/null
    took+=($((($(date +%s%N) - a) / 1000000)))
    for c in $(jobs -p); do
        [ "$c" = "$guest_pid" ] || wait "$c" || true
    done
    again+=("$(grep -L -e '^status 0$' -e '^status 124$' "$folder"/client* | wc -l)")
    hung+=("$(grep -l '^status 124$' "$folder"/client* | wc -l)")
done
row "restart with $clients clients: ended, or to be started again by hand" "" "= 0" "${again[@]}"
row "the same: hung" "" "= 0" "${hung[@]}"
row "restart to the next answer's first token" ms "" "${took[@]}"

guest_stop
column -t -s '|' -N "figure,unit,median,lowest,highest,n,goal" <"$rows"
