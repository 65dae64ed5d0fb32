#!/usr/bin/env bash
# load.sh [read] [start]: how fast weights come from a cold disk, as one table. Both by default.
#
#   read    MiB/s of the weight streamer alone beside fio (io_uring, O_DIRECT, registered buffers,
#           the same size and depth of reads) on the same file
#   start   from exec to the first token, beside llama.cpp with its default load (mmap); the time
#           that its interpreter takes to start is subtracted
#
#   INFERD_SYNTHETIC     models to load, separated by ":", for example of 1 GiB and of 4.5 GiB; the
#                        embedded model when it is not set
#   INFERD_PEER_PYTHON   a python3 that has llama_cpp; build/peer, which tests/bench/run.sh makes
#   INFERD_REPEATS       repeats (5)
#   INFERD_THREADS       threads of both sides (the number of processors, at most 16)
#
# Sides take turns, repeat by repeat, and so does who is first: a disk has a cache of its own, which
# no one here can drop. The page cache is dropped before each, which needs root;
# without that the file alone is dropped from it, as far as the kernel agrees.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/bench/bench.bash
source tests/bench/bench.bash

export INFERD_BUILD=${INFERD_BUILD:-build}
repeats=${INFERD_REPEATS:-5}
threads=$(bench_threads)
export INFERD_THREADS=$threads
parts=${*:-read start}
IFS=: read -r -a models <<<"${INFERD_SYNTHETIC:-models/unix-46m-Q6_K.gguf}"
bench=$INFERD_BUILD/tests/bench/bench_load
read_bytes=2097152
depth=16
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
dropped="caches dropped before each"

now_ms() {
    awk "BEGIN {printf \"%.3f\", ${EPOCHREALTIME/,/.} * 1000}"
}

drop_caches() { # MODEL
    sync
    if ! echo 3 2>/dev/null >/proc/sys/vm/drop_caches; then
        dropped="not root: only the model itself was dropped from the page cache"
        dd if="$1" iflag=nocache count=0 status=none
    fi
}

fio_mib() { # MODEL
    drop_caches "$1"
    fio --name=load --filename="$1" --readonly --rw=read --direct=1 --ioengine=io_uring --fixedbufs=1 \
        --bs=$read_bytes --iodepth=$depth --output-format=terse --terse-version=3 |
        awk -F ';' 'END {print $7 / 1024}'
}

read_part() { # MODEL
    local i line ours=() theirs=() ratio=()
    if ! command -v fio >/dev/null; then
        say "no fio (Debian: apt-get install fio): the comparison with it is left out"
        return 0
    fi
    for ((i = 0; i < repeats; i++)); do
        say "$(basename "$1"): read, repeat $((i + 1)) of $repeats"
        [ $((i % 2)) = 1 ] || theirs+=("$(fio_mib "$1")")
        drop_caches "$1"
        line=$("$bench" read "$1" $read_bytes $depth)
        say "MiB/s, MiB direct, MiB buffered, way: $line"
        ours+=("${line%% *}")
        [ $((i % 2)) = 0 ] || theirs+=("$(fio_mib "$1")")
        ratio+=("$(quotient "${ours[i]}" "${theirs[i]}")")
    done
    row "$2: streamer" MiB/s "" "${ours[@]}"
    row "$2: fio" MiB/s "" "${theirs[@]}"
    row "$2: streamer / fio" x ">= 0.9" "${ratio[@]}"
}

# Milliseconds that a command takes.
timed() {
    local start
    start=$(now_ms)
    "$@" >&2
    awk "BEGIN {print $(now_ms) - $start}"
}

# What the programs themselves consist of is read beforehand: it is not what is measured.
our_start() { # MODEL
    drop_caches "$1"
    "$INFERD_BUILD/inferd" --version >/dev/null
    cat "$INFERD_BUILD"/inferd-backend-cpu.so >/dev/null
    "$bench" start "$1"
}

their_start() { # MODEL PYTHON
    local nothing whole
    drop_caches "$1"
    "$2" -c 'import llama_cpp'
    nothing=$(timed "$2" tests/bench/peer_load.py "$1" --nothing)
    whole=$(timed "$2" tests/bench/peer_load.py "$1" --threads "$threads")
    awk "BEGIN {print $whole - $nothing}"
}

start_part() { # MODEL NAME
    local i ours=() theirs=() ratio=() python=${INFERD_PEER_PYTHON:-build/peer/bin/python}
    if ! "$python" -c 'import llama_cpp' 2>/dev/null; then
        say "no llama_cpp for $python: the peer comparison is left out"
        python=
    fi
    for ((i = 0; i < repeats; i++)); do
        say "$2: start, repeat $((i + 1)) of $repeats"
        [ $((i % 2)) = 1 ] || ours+=("$(our_start "$1")")
        [ -z "$python" ] || theirs+=("$(their_start "$1" "$python")")
        [ $((i % 2)) = 0 ] || ours+=("$(our_start "$1")")
        [ -n "$python" ] || continue
        ratio+=("$(quotient "${ours[i]}" "${theirs[i]}")")
    done
    row "$2: cold start to first token, inferd" ms "" "${ours[@]}"
    [ -n "$python" ] || return 0
    row "$2: cold load to first token, llama.cpp" ms "" "${theirs[@]}"
    row "$2: inferd / llama.cpp" x "<= 0.7" "${ratio[@]}"
}

make --no-print-directory -s all "$bench" >&2
for model in "${models[@]}"; do
    name="$(basename "$model" .gguf), $(($(stat -c %s "$model") / 1048576)) MiB"
    for part in $parts; do
        "${part}_part" "$model" "$name"
    done
done

table 64 "$threads" "$dropped"
