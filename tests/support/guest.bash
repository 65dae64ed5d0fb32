# guest.bash: a small Debian with systemd as its process 1, in namespaces of its own, for scripts
# that test what only a running systemd can show.
#
#   source tests/support/sh.bash
#   source tests/support/guest.bash
#   guest_missing                  prints why there can be no guest; nothing when there can
#   guest_start                    boots it; whatever it writes is forgotten at the end
#   guest COMMAND...               runs a command in it, as root
#   guest_as USER COMMAND...       the same, as one of the guest's users
#   guest_until SECONDS COMMAND... until the command succeeds, at most so long
#   guest_stop
#
# The guest's disk is made once with debootstrap, in $INFERD_GUEST or under ~/.cache/inferd (half a
# minute, 300 MB), and only read from then on: an overlay in memory takes what is written. What was
# built is installed in it as a user would: make install, sysusers, tmpfiles.
# shellcheck shell=bash disable=SC2154 # sh.bash has $folder and $sanitized

guest_root=${INFERD_GUEST:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/inferd/guest-2}
guest_packages=systemd,systemd-sysv,dbus,libpam-systemd,make,procps,liburing2,libhwloc15,libpcre2-8-0,libedit2,libjansson4,libseccomp2,libsystemd0
guest_pid="" guest_init=""

guest_missing() {
    [ "$(id -u)" = 0 ] || { echo "needs root" && return; }
    [ "$sanitized" = 0 ] || { echo "the sanitizers have libraries of their own" && return; }
    command -v systemd-nspawn >/dev/null || { echo "systemd-nspawn is not installed" && return; }
    [ -e "$guest_root/etc/debian_version" ] || command -v debootstrap >/dev/null ||
        { echo "debootstrap is not installed" && return; }
    unshare --mount --pid --fork --mount-proc true 2>/dev/null || echo "this machine allows no namespaces"
}

# Made under another name first, and one at a time: who is interrupted leaves no half of it.
guest_make_root() {
    mkdir -p "$(dirname "$guest_root")"
    exec 9>"$guest_root.lock"
    flock 9
    if [ ! -e "$guest_root/etc/debian_version" ]; then
        rm -rf "$guest_root.new"
        if ! debootstrap --variant=minbase --include="$guest_packages" bookworm "$guest_root.new" \
            >"$folder/debootstrap" 2>&1; then
            tail -n 3 "$folder/debootstrap" | sed 's/^/    /' >&2
            return 1
        fi
        rm -rf "$guest_root.new/var/cache/apt" "$guest_root.new/var/lib/apt/lists"
        mv "$guest_root.new" "$guest_root"
    fi
    exec 9>&-
}

guest() {
    nsenter --target "$guest_init" --mount --uts --ipc --net --pid --cgroup --root -- \
        env --chdir=/ -i PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin HOME=/root TERM=dumb "$@"
}

guest_as() {
    local user=$1
    shift
    guest setpriv --reuid="$user" --regid="$user" --init-groups env HOME="/home/$user" \
        XDG_RUNTIME_DIR="/run/user/$(guest id -u "$user")" "$@"
}

guest_until() {
    local until=$((SECONDS + $1))
    shift
    while ! guest "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.1
    done
}

guest_start() {
    guest_make_root || return 1
    systemd-nspawn --directory="$guest_root" --volatile=overlay --boot --register=no --keep-unit \
        --private-network --machine="inferd-test-$$" --bind-ro="$PWD:/src" --bind-ro="$folder:/host" --quiet \
        >"$folder/boot" 2>&1 </dev/null &
    guest_pid=$!
    trap 'guest_stop; cleanup' EXIT
    local i
    for ((i = 0; i < 300; i++)); do
        guest_init=$(pgrep -P "$guest_pid" | head -n 1)
        [ -z "$guest_init" ] || ! guest test -S /run/systemd/private 2>/dev/null || break
        kill -0 "$guest_pid" 2>/dev/null || break
        sleep 0.1
    done
    guest systemctl is-system-running --wait 2>/dev/null | grep -qE 'running|degraded' && return 0
    sed 's/^/    /' "$folder/boot" >&2
    return 1
}

guest_stop() {
    [ -n "$guest_pid" ] || return 0
    guest systemctl poweroff --force >/dev/null 2>&1
    local i
    for ((i = 0; i < 100; i++)); do
        kill -0 "$guest_pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 "$guest_init" "$guest_pid" 2>/dev/null
    wait "$guest_pid" 2>/dev/null
    guest_pid="" guest_init=""
}
