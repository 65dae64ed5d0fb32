#!/usr/bin/env bash
# run.sh [ring] [start] [peer]: the figures that README quotes, as one table. All of them by default.
#
#   INFERD_PEER_PYTHON   a python3 that has llama_cpp; otherwise an environment is made in
#                        build/peer and llama-cpp-python is built into it (needs python3-venv,
#                        cmake, g++ and some minutes)
#   INFERD_SYNTHETIC     more models for the peer comparison, separated by ":"
#   INFERD_REPEATS       repeats of the peer comparison (5)
#   INFERD_THREADS       threads of both sides (the number of processors, at most 16)
#
# Sides take turns, repeat by repeat, so that a machine that slows down slows both.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/bench/bench.bash
source tests/bench/bench.bash

export INFERD_BUILD=${INFERD_BUILD:-build}
repeats=${INFERD_REPEATS:-5}
threads=$(bench_threads)
parts=${*:-ring start peer}
rows=$(mktemp)
folder=$(mktemp -d "${TMPDIR:-/tmp}/inferd-bench.XXXXXX")
daemon=
cleanup() {
    [ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
    rm -rf "$rows" "$folder"
}
trap cleanup EXIT

wants() {
    [[ " $parts " == *" $1 "* ]]
}

peer_python() {
    local python=${INFERD_PEER_PYTHON:-build/peer/bin/python}
    if [ ! -x "$python" ]; then
        say "making build/peer and building llama-cpp-python in it; this takes some minutes"
        python3 -m venv build/peer >&2 || return 1
        build/peer/bin/pip install --quiet llama-cpp-python >&2 || return 1
        python=build/peer/bin/python
    fi
    "$python" -c 'import llama_cpp' 2>/dev/null || return 1
    echo "$python"
}

start_daemon() { # MODEL
    export INFERD_SOCKET=$folder/s
    "$INFERD_BUILD/inferd" --model "bench=$1" --socket "$INFERD_SOCKET" --backend cpu \
        --threads "$threads" --ctx 2048 --parallel 1 --log-level error &
    daemon=$!
    for _ in $(seq 3000); do
        if "$INFERD_BUILD/inferctl" status >/dev/null 2>&1; then
            return 0
        fi
        kill -0 "$daemon" 2>/dev/null || return 1
        sleep 0.02
    done
    return 1
}

# One sample of each kind out of inferctl's JSON: its "test" names lead their "median".
ours() { # JSON KIND
    tr -d '\n ' <<<"$1" | grep -o "\"test\":\"$2[0-9]*\"[^}]*" | sed 's/.*"median":\([0-9.e+-]*\).*/\1/'
}
compare() { # MODEL PYTHON
    local model=$1 python=$2 name json peer our_pp=() our_tg=() peer_pp=() peer_tg=() ratio_pp=() ratio_tg=()
    name=$(basename "$model" .gguf)
    start_daemon "$model" || {
        say "inferd does not serve $model"
        return 1
    }
    for ((i = 0; i < repeats; i++)); do
        say "$name, repeat $((i + 1)) of $repeats"
        json=$("$INFERD_BUILD/inferctl" bench --prompt-tokens 512 --tokens 128 --repeats 1 --json)
        peer=$("$python" tests/bench/peer.py "$model" --prompt-tokens 512 --tokens 128 --threads "$threads")
        our_pp+=("$(ours "$json" pp)") our_tg+=("$(ours "$json" tg)")
        peer_pp+=("$(theirs "$peer" pp)") peer_tg+=("$(theirs "$peer" tg)")
        ratio_pp+=("$(quotient "${our_pp[i]}" "${peer_pp[i]}")")
        ratio_tg+=("$(quotient "${our_tg[i]}" "${peer_tg[i]}")")
    done
    kill "$daemon"
    wait "$daemon" || true
    daemon=
    row "$name: prefill 512, inferd" "tokens/s" "" "${our_pp[@]}"
    row "$name: prefill 512, llama.cpp" "tokens/s" "" "${peer_pp[@]}"
    row "$name: prefill 512, ratio" x ">= 0.8" "${ratio_pp[@]}"
    row "$name: decode 128, inferd" "tokens/s" "" "${our_tg[@]}"
    row "$name: decode 128, llama.cpp" "tokens/s" "" "${peer_tg[@]}"
    row "$name: decode 128, ratio" x ">= 0.8" "${ratio_tg[@]}"
}

for part in ring start; do
    if wants $part; then
        make --no-print-directory -s "$INFERD_BUILD/tests/bench/bench_$part" >&2
        say "$part"
        "$INFERD_BUILD/tests/bench/bench_$part" >>"$rows"
    fi
done
if wants peer; then
    if python=$(peer_python); then
        IFS=: read -r -a models <<<"models/unix-46m-Q6_K.gguf${INFERD_SYNTHETIC:+:$INFERD_SYNTHETIC}"
        for model in "${models[@]}"; do
            compare "$model" "$python"
        done
    else
        say "no llama_cpp for python3: the peer comparison is left out"
    fi
fi

table 52 "$threads"
