#!/usr/bin/env bash
# install.sh install|uninstall|bundle: puts what was built where it belongs, takes exactly that away
# again, or makes one folder that holds all and runs wherever it lies.
#
# `make install`, `make uninstall` and `make bundle` call it with the folders in its environment:
# B (the built files), VERSION, DESTDIR, prefix, bindir, libdir, includedir, datadir, mandir,
# unitdir, userunitdir, sysusersdir, tmpfilesdir. One list, files(), serves all three.
#
# Without DESTDIR, as root, on a machine that systemd runs, install makes the user and group and tells
# systemd of the units, so that they can be enabled at once; uninstall stops them first.
#
# A bundle holds, beside bin and lib, the shared libraries that the programs need in lib/inferd,
# where they look first; libc and its family are the machine's.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."

what=${1:?install, uninstall or bundle}
: "${B:?}" "${VERSION:?}" "${bindir:?}" "${libdir:?}" "${includedir:?}" "${datadir:?}" "${mandir:?}"
: "${unitdir:?}" "${userunitdir:?}" "${sysusersdir:?}" "${tmpfilesdir:?}"
prefix=${prefix-} DESTDIR=${DESTDIR-}
umask 022
private=("$libdir/inferd" "$includedir/inferd" "$datadir/inferd")

# All that were built, but for what only tests load.
backends() {
    local f
    for f in "$B"/inferd-backend-*.so; do
        case $f in *-emulated.so) ;; *) echo "$f" ;; esac
    done
}

# "MODE SOURCE DESTINATION" for each file, "link TARGET DESTINATION" for each link. No path of the
# sources has a blank; a destination may.
files() {
    local f
    echo "755 $B/inferd $bindir/inferd"
    echo "755 $B/inferctl $bindir/inferctl"
    echo "755 $B/libinferclient.so.0 $libdir/libinferclient.so.$VERSION"
    echo "link libinferclient.so.$VERSION $libdir/libinferclient.so.0"
    echo "link libinferclient.so.0 $libdir/libinferclient.so"
    for f in $(backends); do
        echo "755 $f $libdir/inferd/${f##*/}"
    done
    for f in include/inferd/*.h; do
        echo "644 $f $includedir/inferd/${f##*/}"
    done
    echo "made client/libinferclient.pc.in $libdir/pkgconfig/libinferclient.pc"
    for f in man/*.[1-9]; do
        echo "644 $f $mandir/man${f##*.}/${f##*/}"
    done
    echo "644 $B/completions/inferd.bash $datadir/bash-completion/completions/inferd"
    echo "644 $B/completions/inferctl.bash $datadir/bash-completion/completions/inferctl"
    echo "644 $B/completions/_inferd $datadir/zsh/site-functions/_inferd"
    echo "644 $B/completions/_inferctl $datadir/zsh/site-functions/_inferctl"
    echo "644 systemd/inferd.conf.example $datadir/inferd/inferd.conf.example"
    [ "$what" != bundle ] || return 0
    for f in systemd/*.socket; do
        echo "644 $f $unitdir/${f##*/}"
    done
    for f in systemd/user/*.socket; do
        echo "644 $f $userunitdir/${f##*/}"
    done
    echo "made systemd/inferd.service.in $unitdir/inferd.service"
    echo "made systemd/inferd-metrics@.service.in $unitdir/inferd-metrics@.service"
    echo "made systemd/user/inferd.service.in $userunitdir/inferd.service"
    echo "644 systemd/sysusers.conf $sysusersdir/inferd.conf"
    echo "644 systemd/tmpfiles.conf $tmpfilesdir/inferd.conf"
    echo "made systemd/inferd-gpu.conf.in $datadir/inferd/inferd-gpu.conf"
    echo "made systemd/inferd-strict.conf.in $datadir/inferd/inferd-strict.conf"
}

# In the right part of sed's s|||.
escaped() {
    sed 's/[\\&|]/\\&/g' <<<"$1"
}

put_all() {
    local mode source to
    while read -r mode source to; do
        mkdir -p "$(dirname "$DESTDIR$to")"
        case $mode in
        link) ln -sfn "$source" "$DESTDIR$to" ;;
        made)
            sed -e "s|@bindir@|$(escaped "$bindir")|g; s|@prefix@|$(escaped "$prefix")|g" \
                -e "s|@libdir@|$(escaped "$libdir")|g; s|@includedir@|$(escaped "$includedir")|g" \
                -e "s|@datadir@|$(escaped "$datadir")|g; s|@version@|$VERSION|g" \
                "$source" >"$DESTDIR$to.new"
            chmod 644 "$DESTDIR$to.new"
            mv -f "$DESTDIR$to.new" "$DESTDIR$to"
            ;;
        *) install -m "$mode" "$source" "$DESTDIR$to" ;;
        esac
    done < <(files)
    # The daemon loads nothing from a folder that others may write.
    chmod go-w "$DESTDIR$libdir/inferd"
}

# On a running system: the user and group, the sockets' folder, the units, the library.
enter_all() {
    [ -z "$DESTDIR" ] && [ "$(id -u)" = 0 ] || return 0
    ! command -v ldconfig >/dev/null || ldconfig
    [ -d /run/systemd/system ] || return 0
    systemd-sysusers "$sysusersdir/inferd.conf"
    systemd-tmpfiles --create "$tmpfilesdir/inferd.conf"
    systemctl daemon-reload
}

# Units that run what is about to be taken away are stopped; the user, the group and what they own
# stay, as with every package.
leave_all() {
    [ -z "$DESTDIR" ] && [ "$(id -u)" = 0 ] && [ -d /run/systemd/system ] || return 0
    systemctl disable --now inferd.socket inferd-manage.socket inferd.service 2>/dev/null || true
}

take_all() {
    local mode source to folder
    while read -r mode source to; do
        rm -f "$DESTDIR$to"
    done < <(files)
    for folder in "${private[@]}"; do
        [ ! -d "$DESTDIR$folder" ] || rmdir --ignore-fail-on-non-empty "$DESTDIR$folder"
    done
}

# "NAME PATH" of the shared libraries that the files need, directly or not, without libc's family.
needed() {
    ldd "$@" | awk '$2 == "=>" {if ($3 == "not") {print "missing " $1; next} print $1, $3}' | sort -u |
        grep -vE '^(linux-vdso|ld-linux[^ ]*|lib(c|m|dl|rt|pthread|resolv|util|anl|nsl|inferclient))\.' || true
}

bundle() {
    DESTDIR=$B/bundle
    rm -rf "$DESTDIR"
    mkdir -p "$DESTDIR"
    put_all
    local name path list
    mapfile -t list < <(backends)
    while read -r name path; do
        [ "$name" != missing ] || {
            echo "install.sh: $path is needed and not installed" >&2
            exit 1
        }
        install -m 644 "$(readlink -f "$path")" "$DESTDIR$libdir/inferd/$name"
    done < <(needed "$B/inferd" "$B/inferctl" "${list[@]}")
    sed -i -e 's|^prefix=.*|prefix=${pcfiledir}/../..|' -e 's|^\(libdir\|includedir\)=|&${prefix}|' \
        "$DESTDIR$libdir/pkgconfig/libinferclient.pc"
    install -m 644 LICENSE "$DESTDIR/LICENSE"
    du -sh "$DESTDIR" | awk '{print "bundle: " $2 ", " $1}'
}

case $what in
install)
    put_all
    enter_all
    ;;
uninstall)
    leave_all
    take_all
    ;;
bundle) bundle ;;
*)
    echo "install.sh: '$what' is none of install, uninstall, bundle" >&2
    exit 2
    ;;
esac
