#!/usr/bin/env bash
# try.sh [QUESTION]: starts a private daemon on the embedded model, asks it a question through
# inferctl, and stops it. Leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${INFERD_BUILD:-build}
model=models/unix-46m-Q6_K.gguf
question=${*:-What is tar?}

for file in "$build/inferd" "$build/inferctl" "$model"; do
    [ -e "$file" ] || {
        echo "try.sh: $file is not there; run 'make try', which builds first" >&2
        exit 1
    }
done

folder=$(mktemp -d "${TMPDIR:-/tmp}/inferd-try.XXXXXX")
daemon=
stop() {
    [ -z "$daemon" ] || { kill "$daemon" && wait "$daemon"; } 2>/dev/null || true
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT TERM

export INFERD_SOCKET=$folder/inferd.sock
"$build/inferd" --config none --model "unix=$model" --socket "$INFERD_SOCKET" 2>"$folder/log" &
daemon=$!
for _ in $(seq 1000); do
    [ -S "$INFERD_SOCKET" ] && break
    kill -0 "$daemon" 2>/dev/null || break
    sleep 0.01
done
if [ ! -S "$INFERD_SOCKET" ]; then
    cat "$folder/log" >&2
    echo "try.sh: inferd did not start; the lines above say why" >&2
    exit 1
fi

printf '\n> %s\n' "$question"
"$build/inferctl" prompt --temp 0 "$question"
printf '\n'
