#!/usr/bin/env bash
# serve.sh [together] [stutter] [users] [prefix] [steps]: how well the daemon serves many users, as
# one table. All parts by default; bench_serve.c says what each of them measures.
#
#   INFERD_PEER_PYTHON   a python3 that has llama_cpp, for "together" beside llama.cpp's batched
#                        bench; build/peer, which tests/bench/run.sh makes, when it is not set
#   INFERD_REPEATS       repeats of "together" (5)
#   INFERD_THREADS       threads of both sides (the number of processors, at most 16)
#
# Sides take turns, repeat by repeat, so that a machine that slows down slows both. "users" needs
# root, for a second user.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/bench/bench.bash
source tests/bench/bench.bash

export INFERD_BUILD=${INFERD_BUILD:-build}
repeats=${INFERD_REPEATS:-5}
threads=$(bench_threads)
export INFERD_THREADS=$threads
model=models/unix-46m-Q6_K.gguf
bench=$INFERD_BUILD/tests/bench/bench_serve
parts=${*:-together stutter users prefix steps}
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT

# The value after a name, of bench_serve's line.
ours() { # LINE NAME
    sed "s/.*$2 \([0-9.]*\).*/\1/" <<<"$1"
}
together() {
    local python=${INFERD_PEER_PYTHON:-build/peer/bin/python} i line peer
    local answer=() whole=() decode=() alone=() gain=()
    local peer_answer=() peer_whole=() peer_decode=() r_whole=() r_decode=()
    if ! "$python" -c 'import llama_cpp' 2>/dev/null; then
        say "no llama_cpp for $python: the peer comparison is left out"
        python=
    fi
    for ((i = 0; i < repeats; i++)); do
        say "together, repeat $((i + 1)) of $repeats"
        line=$("$bench" together)
        answer+=("$(ours "$line" answer)") whole+=("$(ours "$line" whole)")
        decode+=("$(ours "$line" decode)") alone+=("$(ours "$line" alone)")
        gain+=("$(quotient "${answer[i]}" "${alone[i]}")")
        [ -n "$python" ] || continue
        peer=$("$python" tests/bench/peer_batch.py "$model" --threads "$threads")
        peer_decode+=("$(theirs "$peer" tg)")
        peer_answer+=("$(theirs "$peer" answer)") peer_whole+=("$(theirs "$peer" whole)")
        r_whole+=("$(quotient "${whole[i]}" "${peer_whole[i]}")")
        r_decode+=("$(quotient "${decode[i]}" "${peer_decode[i]}")")
    done
    row "32 clients, 128+128: answers, one after the other" "tokens/s" "" "${alone[@]}"
    row "32 clients, 128+128: answers, together" "tokens/s" "" "${answer[@]}"
    row "32 clients: together / one after the other" x ">= 4" "${gain[@]}"
    [ -n "$python" ] || return 0
    row "32 sequences, 128+128: answers, llama.cpp" "tokens/s" "" "${peer_answer[@]}"
    row "32 clients, prompts and answers: inferd" "tokens/s" "" "${whole[@]}"
    row "32 sequences, prompts and answers: llama.cpp" "tokens/s" "" "${peer_whole[@]}"
    row "prompts and answers: inferd / llama.cpp" x ">= 1.3" "${r_whole[@]}"
    row "32 clients, decoding alone: inferd" "tokens/s" "" "${decode[@]}"
    row "32 sequences, decoding alone: llama.cpp" "tokens/s" "" "${peer_decode[@]}"
    row "decoding alone: inferd / llama.cpp" x ">= 1.3" "${r_decode[@]}"
}

make --no-print-directory -s all "$bench" >&2
for part in $parts; do
    if [ "$part" = together ]; then
        together
    else
        say "$part"
        "$bench" "$part" >>"$rows"
    fi
done

table 52 "$threads"
