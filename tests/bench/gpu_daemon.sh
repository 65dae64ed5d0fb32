#!/usr/bin/env bash
# gpu_daemon.sh [load] [serve]: what the daemon makes of this machine's GPU. Both parts by default.
#
#   load    a cold file to a model that is ready: MB/s beside what the disk gives (raw reads past the
#           page cache, the weight streamer alone) and what the bus does (a copy of pinned memory);
#           first: by a daemon that begins with the device then, too
#   serve   64 client processes that decode, each through its rings, beside the backend alone at the
#           same batch and context
#
#   INFERD_BENCH_FILE      a GGUF file of that shape and type; made anew, in TMPDIR, when not set
#   INFERD_BENCH_SHAPE     8b, 1b or tiny (8b); INFERD_BENCH_TYPE  q4_0, q4_k, q8_0, f16 (q4_0)
#   INFERD_BENCH_BACKEND   cuda; cuda-emulated tries this script where there is no GPU
#   INFERD_BENCH_CLIENTS   64
#   INFERD_REPEATS         of load (3)
#
# Needs nothing but the driver and what `make gpu` put into INFERD_BUILD (build): bundle, tests/bench
# and tests/gpu may be carried to a machine without compilers.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/bench/bench.bash
source tests/bench/bench.bash

build=${INFERD_BUILD:-build}
shape=${INFERD_BENCH_SHAPE:-8b}
type=${INFERD_BENCH_TYPE:-q4_0}
backend=${INFERD_BENCH_BACKEND:-cuda}
clients=${INFERD_BENCH_CLIENTS:-64}
repeats=${INFERD_REPEATS:-3}
parts=${*:-load serve}
bench=$build/tests/bench

# The bundle's daemon finds its libraries by itself; the bench programs are told.
programs=$build
if [ -x "$build/bundle/bin/inferd" ]; then
    programs=$build/bundle/bin
    export LD_LIBRARY_PATH=$PWD/$build/tests/gpu:$PWD/$build/bundle/lib:$PWD/$build/bundle/lib/inferd
fi
export INFERD_BUILD=$programs
object=$build/bundle/lib/inferd/inferd-backend-$backend.so
[ -e "$object" ] || object=$build/inferd-backend-$backend.so

made=
log=$(mktemp)
trap 'rm -f "$log" ${made:+"$made"}' EXIT
file=${INFERD_BENCH_FILE:-}
if [ -z "$file" ]; then
    made=$(mktemp "${TMPDIR:-/tmp}/inferd-$shape-$type.XXXXXX.gguf")
    file=$made
    "$bench/bench_model" "$shape" "$type" "$file"
fi

tell() { # WHAT VALUES
    printf '%-44s %s\n' "$@"
}
calculate() {
    awk "BEGIN {$1}"
}

load() {
    local i raw=() streamer=() first=() loaded=() bytes disk bus rate took
    bytes=$(stat -c %s "$file")
    for ((i = 0; i < repeats; i++)); do
        raw+=("$("$bench/bench_load" raw "$file")")
        dd if="$file" iflag=nocache count=0 status=none
        took=$("$bench/bench_load" read "$file")
        streamer+=("${took%% *}")
        took=$("$bench/bench_load" load "$file" "$backend" 2>"$log")
        first+=("${took% *}")
        loaded+=("${took#* }")
        grep -E 'debug: bench: (.* ms|read)' "$log" | sed 's/^[^ ]* inferd debug: bench: /# /' || cat "$log" >&2
    done
    disk=$(calculate "a = $(median "${raw[@]}"); b = $(median "${streamer[@]}"); print 1.048576 * (a > b ? a : b)")
    bus=$("$bench/bench_cuda" --copy yes 2>/dev/null | awk '{print $1 / 1e6}') || true
    took=$(median "${loaded[@]}")
    rate=$(calculate "print $bytes / 1e3 / $took")
    tell "file, MB" "$(calculate "printf \"%.0f\", $bytes / 1e6")"
    tell "raw read, MB/s (of $repeats)" "$(for i in "${raw[@]}"; do calculate "printf \"%.0f \", $i * 1.048576"; done)"
    tell "weight streamer alone, MB/s" "$(for i in "${streamer[@]}"; do calculate "printf \"%.0f \", $i * 1.048576"; done)"
    tell "copy of pinned memory, MB/s" "${bus:-no GPU}"
    tell "load through the daemon, first, ms" "${first[*]}"
    tell "load through the daemon, ms" "${loaded[*]}"
    tell "load through the daemon, MB/s" "$(calculate "printf \"%.0f\", $rate")"
    tell "load / min(raw read, pinned copy), goal 0.9" \
        "$(calculate "m = $disk; b = ${bus:-0}; if (b > 0 && b < m) m = b; printf \"%.3f\", $rate / m")"
}

alone() {
    "$bench/bench_cuda" --backend "$object" --shape "$shape" --type "$type" --cases batch --sequences "$clients" |
        tee -a "$log" | awk '/ decode / {for (i = 1; i < NF; i++) if ($(i + 1) == "tok/s,"  || $(i + 1) == "tok/s") print $i}'
}

serve() {
    local before after rows through
    : >"$log"
    before=$(alone) || { cat "$log" >&2; return 1; }
    rows=$("$bench/bench_serve" crowd "$file" "$backend" "$clients")
    after=$(alone)
    # shellcheck disable=SC2046 # a word each
    through=$(median $(awk '{print $1}' <<<"$rows"))
    tell "backend alone, $clients sequences at 128, tok/s" "$before $after"
    tell "$clients client processes, tok/s" "$(awk '{printf "%s ", $1}' <<<"$rows")"
    tell "sequences per step, all of a round" "$(awk '{printf "%s ", $2}' <<<"$rows")"
    tell "through the daemon / alone, goal 0.95" "$(calculate "printf \"%.3f\", $through / (($before + $after) / 2)")"
}

for part in $parts; do
    case $part in
    load | serve) "$part" ;;
    *)
        echo "gpu_daemon.sh: what is $part?" >&2
        exit 2
        ;;
    esac
done
