#!/bin/bash
# The man pages: well-formed, and complete where completeness can be checked: every error of the
# table with its code and exit status, every function of client.h, every record of the protocol.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
failed=0

ok() { echo "ok - $1"; }
not_ok() {
    echo "not ok - $1"
    shift
    printf '# %s\n' "$@"
    failed=1
}
# verdict NAME MISSING: ok when MISSING is empty
verdict() { if [ -z "$2" ]; then ok "$1"; else not_ok "$1" "missing: $2"; fi; }

pages="inferctl.1 inferd.8 inferd.conf.5 libinferclient.3 inferd-protocol.7"
for page in $pages; do
    if ! command -v mandoc >/dev/null; then
        echo "skip - $page is well-formed: mandoc is not installed"
    elif out=$(mandoc -Tlint -W warning "$root/man/$page" 2>&1) && [ -z "$out" ]; then
        ok "$page is well-formed"
    else
        not_ok "$page is well-formed" "$out"
    fi
done

# Rows of the error table, as "NAME CODE STATUS".
rows=$(sed -nE 's/^ *X\(([A-Z_]+), *([0-9]+), *([0-9]+), ".*/\1 \2 \3/p' "$root/include/inferd/errors.h")
missing=
while read -r name code status; do
    grep -qE "^\.It Dv INFER_E_$name Pq $code, exit status $status\$" \
        "$root/man/libinferclient.3" || missing+=" $name"
done <<<"$rows"
[ "$(wc -l <<<"$rows")" -ge 30 ] || missing+=" (the table was not read)"
verdict "libinferclient.3 lists every error with its code and exit status" "$missing"

missing=
for name in $(grep -oE '^\.It Dv INFER_E_[A-Z_]+' "$root/man/libinferclient.3" | sed 's/.*INFER_E_//'); do
    grep -qE "^$name " <<<"$rows" || missing+=" $name"
done
verdict "libinferclient.3 lists no error that does not exist" "$missing"

missing=
functions=$(grep -oE '\binfer_[a-z_]+\(' "$root/include/inferd/client.h" | tr -d '(' | sort -u)
for name in $functions; do
    grep -qE "^\.F[no] $name( |\$)" "$root/man/libinferclient.3" || missing+=" $name"
done
[ "$(wc -w <<<"$functions")" -ge 15 ] || missing+=" (client.h was not read)"
verdict "libinferclient.3 declares every function of client.h" "$missing"

missing=
names=$(grep -oE '\bINFER_ABI_(SUBMIT|DATA|CANCEL|GENERATE|SCORE|TOKENIZE|DETOKENIZE|STATUS|MODELS|END|FORGET|METRICS|EV_[A-Z]+|AWAKE|FUTEX|EVENTFD) =' \
    "$root/include/inferd/abi.h" | tr -d ' =' | sort -u)
for name in $names; do
    grep -q "^\.It Dv $name\b" "$root/man/inferd-protocol.7" || missing+=" $name"
done
[ "$(wc -w <<<"$names")" -ge 14 ] || missing+=" (abi.h was not read)"
verdict "inferd-protocol.7 lists every record, operation and way to sleep" "$missing"

missing=
for status in $(awk '{print $3}' <<<"$rows" | sort -u); do
    grep -q "^\.It $status\$" "$root/man/inferctl.1" || missing+=" $status"
done
verdict "inferctl.1 lists every exit status of the error table" "$missing"

# inferd's own help names its options; the page must know each.
inferd=${INFERD_BUILD:-$root/build}/inferd
case $inferd in /*) ;; *) inferd=$root/$inferd ;; esac
if [ -x "$inferd" ]; then
    missing=
    options=$("$inferd" --help 2>&1 | grep -oE '(^|[ ,[|])--[a-z][a-z-]+' | sed 's/.*--//' | sort -u)
    for name in $options; do
        grep -qE "Fl \\\\-${name//-/[-]}( |\$)" "$root/man/inferd.8" || missing+=" --$name"
    done
    [ "$(wc -w <<<"$options")" -ge 5 ] || missing+=" (inferd --help was not read)"
    verdict "inferd.8 has every option of inferd --help" "$missing"
    missing=
    for name in $(grep -oE '^\.It Fl \\-[a-z\\-]+' "$root/man/inferd.8" | sed 's/.*Fl //; s/\\//g; s/^-//'); do
        grep -qE "^  --$name( |\$)" <<<"$("$inferd" --help)" || missing+=" --$name"
    done
    verdict "inferd.8 has no option that inferd --help lacks" "$missing"
else
    echo "skip - inferd.8 has every option of inferd --help: inferd is not built"
fi
exit $failed
