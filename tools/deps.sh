#!/usr/bin/env bash
# deps.sh [try|check]: sees to it that the packages are installed that the build (try) or the
# build and its tests (check) need. Silent when nothing is missing. INFERD_NO_DEPS=1 skips it.
#
# Knows Debian and its relatives; elsewhere it says what is wanted and leaves the rest to you.
set -euo pipefail

want=${1:-try}
[ "${INFERD_NO_DEPS:-0}" = 1 ] && exit 0

# package, then why it is needed
packages=$(
    cat <<'LIST'
gcc             the C compiler
make            the build
libc6-dev       the C library's headers
liburing-dev    io_uring, the daemon's event loop
libhwloc-dev    the machine's cores, for thread placement
libseccomp-dev  the daemon's filter of system calls
libpcre2-dev    the tokenizers' regular expressions
libsystemd-dev  the service manager's sockets, the journal
libedit-dev     line editing in inferctl chat
libjansson-dev  JSON in inferctl
LIST
    [ "$want" != check ] || cat <<'LIST'
libcmocka-dev   the test framework
g++             CUDA kernels, which the tests run on the processor
clang           the second compiler
clang-format    the format check
mandoc          the check of the man pages
LIST
    [ "$want" != check ] || [ "$(id -u)" != 0 ] || cat <<'LIST'
systemd-container  a systemd of its own for the tests of the service
debootstrap     the disk that it runs from
LIST
)

case "$want" in
try | check) ;;
*)
    echo "deps.sh: '$want' is neither 'try' nor 'check'" >&2
    exit 2
    ;;
esac

names=$(awk '{print $1}' <<<"$packages")

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "deps.sh: no apt-get here; install what corresponds to these Debian packages: ${names//$'\n'/ }" >&2
    exit 0
fi

# "ii" in the first column: installed. A package that dpkg has never heard of gives no line.
# shellcheck disable=SC2086
installed=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' $names 2>/dev/null |
    awk '$1 == "ii" {print $2}' || true)
missing=()
while read -r name; do
    grep -qx -- "$name" <<<"$installed" || missing+=("$name")
done <<<"$names"
[ ${#missing[@]} -gt 0 ] || exit 0

echo "Installing what is missing, with apt-get (INFERD_NO_DEPS=1 skips this):"
for name in "${missing[@]}"; do
    awk -v name="$name" '$1 == name {printf "  %-18s", $1; $1 = ""; print $0}' <<<"$packages"
done

as_root=()
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "deps.sh: not root and no sudo; ask an administrator to run: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    echo "Not root: sudo may ask for your password."
    as_root=(sudo)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1
}
# The lists may be absent or stale: refresh them only when the first attempt fails.
if ! apt install -y --no-install-recommends "${missing[@]}"; then
    if ! apt update || ! apt install -y --no-install-recommends "${missing[@]}"; then
        tail -n 20 "$log" >&2
        echo "deps.sh: apt-get could not install ${missing[*]}; the lines above say why" >&2
        exit 1
    fi
fi
echo "Installed: ${missing[*]}"
