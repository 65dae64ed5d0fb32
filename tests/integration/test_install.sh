#!/usr/bin/env bash
# make install, uninstall and bundle; the units; the completions; --check-config.
# shellcheck source=tests/support/sh.bash
source tests/support/sh.bash

unset MAKEFLAGS MAKELEVEL MFLAGS
options=(-s)
case $INFERD_BUILD in *san*) options+=(SAN=1) ;; esac
case $INFERD_BUILD in *clang*) options+=(CC=clang) ;; esac
root=$folder/root
place=(DESTDIR="$root" prefix=/opt/inferd)

# ---- install ------------------------------------------------------------------------------------

mkdir -p "$root/opt/inferd/bin" && echo mine >"$root/opt/inferd/bin/other"
check "install: succeeds" make "${options[@]}" install "${place[@]}"
at=$root/opt/inferd
for file in bin/inferd bin/inferctl lib/libinferclient.so lib/inferd/inferd-backend-cpu.so \
    include/inferd/client.h lib/pkgconfig/libinferclient.pc share/man/man5/inferd.conf.5 \
    share/man/man8/inferd.8 lib/systemd/system/inferd.service lib/systemd/system/inferd.socket \
    lib/systemd/system/inferd-manage.socket lib/systemd/system/inferd-metrics.socket lib/systemd/system/inferd-metrics@.service lib/systemd/user/inferd.service \
    lib/sysusers.d/inferd.conf lib/tmpfiles.d/inferd.conf \
    share/bash-completion/completions/inferd share/zsh/site-functions/_inferctl \
    share/inferd/inferd.conf.example share/inferd/inferd-gpu.conf; do
    [ -s "$at/$file" ] || missing+=" $file"
done
is "install: every kind of file is there" "${missing:-}" ""
is "install: nothing is left to fill in" "$(grep -rlE '@[a-z]+@' "$at/lib/systemd" "$at/lib/pkgconfig" "$at/share/inferd")" ""
matches "install: the unit starts what was installed" "$(cat "$at/lib/systemd/system/inferd.service")" '^ExecStart=/opt/inferd/bin/inferd$'
is "install: nothing can be written by others" "$(find "$root/opt" ! -type l -perm /022 | head -3)" ""
is "install: the library's links lead to it" "$(basename "$(readlink -f "$at/lib/libinferclient.so")")" \
    "libinferclient.so.$(sed -n 's/^VERSION := //p' Makefile)"

# ---- it runs from there -------------------------------------------------------------------------

mkdir "$folder/elsewhere"
inferd=$at/bin/inferd inferctl=$at/bin/inferctl
model=$PWD/$model
cd "$folder/elsewhere" || exit 1
daemon_start --config none
run "$inferctl" prompt --raw --max-tokens 4 --temp 0 hello
is "installed: inferctl gets an answer" "$status" 0
is "installed: the backend is the installed one" \
    "$(grep -o '/[^ ]*inferd-backend-cpu[^ ]*' "/proc/$daemon_pid/maps" | sort -u | xargs -r readlink -f)" \
    "$(readlink -f "$at/lib/inferd/inferd-backend-cpu.so")"
daemon_stop
cd "$OLDPWD" || exit 1

if command -v pkg-config >/dev/null; then
    flags=$(PKG_CONFIG_PATH=$at/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$root pkg-config --cflags --libs libinferclient)
    # shellcheck disable=SC2086
    [ "$sanitized" = 1 ] || check "installed: a program builds with pkg-config's flags" \
        gcc -o "$folder/hello" client/examples/hello.c $flags
else
    skip "installed: a program builds with pkg-config's flags" "pkg-config is not installed"
fi

# ---- units --------------------------------------------------------------------------------------

# As systemd sees them: the program's path must exist, the manual pages need not.
units=$folder/units
mkdir -p "$units"
cp "$at"/lib/systemd/system/inferd* "$units"
sed -i -e "s|^ExecStart=.*|ExecStart=$at/bin/inferd|" -e '/^Documentation=/d' "$units"/*
if command -v systemd-analyze >/dev/null; then
    run systemd-analyze verify "$units"/inferd.service "$units"/inferd.socket "$units"/inferd-manage.socket
    is "units: systemd-analyze verify says nothing" "$status: $err" "0: "
    run systemd-analyze verify "$units"/inferd-metrics.socket "$units"/inferd-metrics@.service
    is "units: systemd-analyze verify says nothing of those for metrics" "$status: $err" "0: "
    run systemd-analyze security --offline=yes --threshold=5 "$units/inferd-metrics@.service"
    is "units: exposure of the one for metrics: $(grep -oE '[0-9.]+ [A-Z]+' <<<"${out##*Overall}")" "$status" 0
    mkdir -p "$folder/user-units"
    cp "$at"/lib/systemd/user/inferd* "$folder/user-units"
    sed -i -e "s|^ExecStart=.*|ExecStart=$at/bin/inferd|" -e '/^Documentation=/d' "$folder"/user-units/*
    if XDG_RUNTIME_DIR=$folder systemd-analyze --user --version >/dev/null 2>&1; then
        run env XDG_RUNTIME_DIR="$folder" systemd-analyze --user verify "$folder"/user-units/inferd.service \
            "$folder"/user-units/inferd.socket "$folder"/user-units/inferd-manage.socket
        is "units of a user: systemd-analyze verify says nothing" "$status: $err" "0: "
    fi
    # exposure NAME TENTHS DROP-IN...: the unit with the drop-ins is exposed by so many tenths at most
    exposure() {
        local name=$1 most=$2 unit="$units/inferd-with.service" drop
        shift 2
        sed '/^\[Install\]/,$d' "$units/inferd.service" >"$unit"
        for drop in "$@"; do cat "$at/share/inferd/$drop" >>"$unit"; done
        run systemd-analyze security --offline=yes --threshold="$most" "$unit"
        is "units: exposure $name: $(grep -oE '[0-9.]+ [A-Z]+' <<<"${out##*Overall}")" "$status" 0
    }
    exposure "without a GPU, threads placed" 5
    exposure "without a GPU, strict" 4 inferd-strict.conf
    exposure "with a GPU" 7 inferd-gpu.conf
else
    skip "units: systemd-analyze verify" "systemd-analyze is not installed"
fi
if command -v systemd-sysusers >/dev/null && systemd-sysusers --help | grep -q -- --dry-run; then
    check "sysusers: the file is taken" systemd-sysusers --dry-run "$at/lib/sysusers.d/inferd.conf"
fi

# ---- completions --------------------------------------------------------------------------------

for name in inferd inferctl; do
    check "completion of $name: bash parses it" bash -n "$at/share/bash-completion/completions/$name"
    if command -v zsh >/dev/null; then
        check "completion of $name: zsh parses it" zsh -n "$at/share/zsh/site-functions/_$name"
    else
        skip "completion of $name: zsh parses it" "zsh is not installed"
    fi
done
# completes NAME WORD...: what bash offers for the last word
completes() {
    bash -c 'source "$1/$2"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _$1; echo "${COMPREPLY[*]}"' \
        bash "$at/share/bash-completion/completions" "$@"
}
is "completion: an option" "$(completes inferd --model-d)" "--model-directory"
is "completion: an option's values" "$(completes inferd --cache-type-k q)" "q8_0 q4_0"
is "completion: a command" "$(completes inferctl tok)" "tokenize"
is "completion: a command's option" "$(completes inferctl prompt --max)" "--max-tokens"
missing=
for option in $("$inferd" --help | sed -nE 's/^  (--[a-z-]+) .*/\1/p'); do
    grep -q -- "'$option\[\|\*$option\[" "$at/share/zsh/site-functions/_inferd" || missing+=" $option"
done
is "completion of inferd: zsh has every option" "$missing" ""
matches "completion of inferctl: zsh says what an option is for" \
    "$(cat "$at/share/zsh/site-functions/_inferctl")" '--deadline\[give up unless '

# ---- the example and --check-config -------------------------------------------------------------

sed -E 's/^#([a-z[])/\1/' "$at/share/inferd/inferd.conf.example" >"$folder/example.conf"
sed -i "s|^path = .*|path = $model|" "$folder/example.conf"
chmod 644 "$folder/example.conf"
run "$inferd" --check-config --config "$folder/example.conf" --socket /tmp/s
is "--check-config: takes the example with all its lines" "$status: $err" "0: "
matches "--check-config: says where a value comes from" "$out" "^running = 4 +# $folder/example.conf:[0-9]+, reloads"
echo 'parallel = many' >>"$folder/example.conf"
run "$inferd" --check-config --config "$folder/example.conf" --socket /tmp/s
is "--check-config: refuses a mistake" "$status" 2
matches "--check-config: one line with file and line" "$err" "^inferd: $folder/example.conf:[0-9]+: 'parallel' belongs into \[daemon\], not into \[user\]$"

# ---- uninstall ----------------------------------------------------------------------------------

check "uninstall: succeeds" make "${options[@]}" uninstall "${place[@]}"
is "uninstall: takes all that install put there" "$(find "$root" ! -type d)" "$at/bin/other"
is "uninstall: takes its own folders" "$(find "$root" -type d -name inferd | grep -v '/opt/inferd$')" ""

# ---- bundle -------------------------------------------------------------------------------------

check "bundle: is made" make "${options[@]}" bundle
cp -a "$INFERD_BUILD/bundle" "$folder/a bundle"
bundle="$folder/a bundle"
inferd="$bundle/bin/inferd" inferctl="$bundle/bin/inferctl"
outside=$(ldd "$inferd" "$inferctl" "$bundle"/lib/inferd/*.so | awk '$2 == "=>" {print $3}' | grep -v "^$folder" |
    grep -vE '/lib(c|m|dl|rt|pthread|resolv|asan|ubsan|gcc_s|stdc\+\+)\.so[.0-9]*$' | sort -u)
is "bundle: nothing but libc's family comes from the machine" "$outside" ""
# The machine's own copies are hidden below a file that is no library.
cat >"$folder/hidden.sh" <<'SCRIPT'
set -e
bundle=$1 model=$2 folder=$3
for library in $(ls "$bundle/lib/inferd" | grep -v inferd-backend); do
    for path in /lib/*-linux-gnu/$library /usr/lib/*-linux-gnu/$library; do
        [ ! -e "$path" ] || mount --bind "$folder/hidden.sh" "$(readlink -f "$path")" 2>/dev/null || true
    done
done
if python3 -c 'import ctypes, sys; ctypes.CDLL("libhwloc.so.15")' 2>/dev/null; then
    echo "the machine's libhwloc is still visible"
    exit 1
fi
cd /
export INFERD_SOCKET="$folder/bundle.sock"
"$bundle/bin/inferd" --config none --model "unix=$model" --log-level warning &
pid=$!
for _ in $(seq 400); do [ -S "$INFERD_SOCKET" ] && break; sleep 0.05; done
result=0
"$bundle/bin/inferctl" prompt --raw --max-tokens 4 --temp 0 hello || result=$?
kill $pid
wait $pid
exit $result
SCRIPT
if [ "$sanitized" = 1 ]; then
    skip "bundle: runs where the libraries are not" "the sanitizers have libraries of their own"
elif unshare -m true 2>/dev/null; then
    check "bundle: runs where the libraries are not" unshare -m bash "$folder/hidden.sh" "$bundle" "$model" "$folder"
elif unshare -rm true 2>/dev/null; then
    check "bundle: runs where the libraries are not" unshare -rm bash "$folder/hidden.sh" "$bundle" "$model" "$folder"
else
    skip "bundle: runs where the libraries are not" "no mount namespace can be made here"
fi
finish
