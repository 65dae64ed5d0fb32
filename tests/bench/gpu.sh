#!/usr/bin/env bash
# gpu.sh [PLAN]: the CUDA backend's figures on this machine's GPU, with the clocks and power seen.
#
# Needs nothing but the driver and what `make gpu` put into INFERD_BUILD (build): it may be
# carried to a machine without compilers. PLAN is a list of words:
#   check       the tests of tests/gpu
#   sanitize    those of its kernels under compute-sanitizer, where that is (tests/gpu.sh): long
#   q4_0 q4_k f16   the 8B shape in that type: decode, depth, batches, prefill
#   1b          the 1B shape in F16
#   profile     where the time of the 8B shape in Q4_0 goes, kernel by kernel
#   launches    the same without captured steps
# Without it: all but sanitize and launches. Figures are of normally distributed weights (bench_cuda.c); the tests run
# first, because a wrong result's speed is of no interest.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
build=${INFERD_BUILD:-build}
export INFERD_BUILD=$build
plan=${*:-check q4_0 q4_k f16 1b profile}
bench=$build/tests/bench/bench_cuda
status=0

# While the GPU works, once a second: clocks, power, temperature.
watch_gpu() {
    command -v nvidia-smi >/dev/null || return 0
    nvidia-smi --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu \
        --format=csv,noheader,nounits -l 1 >"$1" 2>/dev/null &
    watcher=$!
}

saw() {
    [ -n "${watcher:-}" ] || return 0
    kill "$watcher" 2>/dev/null
    wait "$watcher" 2>/dev/null
    awk -F', *' '$1 > 0 {
            if (!n++ || $1 < low) low = $1
            if ($1 > high) high = $1
            if ($3 > power) power = $3
            mem = $2; if ($4 > hot) hot = $4
        } END {
            if (n) printf "# clocks %d .. %d MHz, memory %d MHz, up to %d W, %d C\n", low, high, mem, power, hot
        }' "$1"
    rm -f "$1"
    watcher=
}

measure() {
    local seen
    seen=$(mktemp)
    watch_gpu "$seen"
    "$bench" --backend "$build/inferd-backend-cuda.so" "$@" || status=1
    saw "$seen"
}

for word in $plan; do
    case $word in
    check)
        # cmocka's library may lie beside the programs, where the machine has none.
        export LD_LIBRARY_PATH=$build/tests/gpu:$build/bundle/lib:$build/bundle/lib/inferd${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        for program in "$build"/tests/gpu/*/test_* "$build/tests/golden/test_greedy"; do
            log=$(mktemp)
            built=$build
            case $program in */test_greedy) built=$build/bundle/bin ;; esac # through the daemon
            INFERD_BUILD=$built INFERD_TEST_CUDA=1 timeout 300 "$program" >"$log" 2>&1
            code=$?
            echo "# $program"
            grep -vE '^\[ (RUN|==)' "$log"
            rm -f "$log"
            [ $code = 0 ] || { echo "FAIL $program: $code"; status=1; }
        done
        ;;
    sanitize)
        export LD_LIBRARY_PATH=$build/tests/gpu:$build/bundle/lib/inferd${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        tests/gpu.sh --sanitize "$build"/tests/gpu/kernel/test_cuda* "$build"/tests/gpu/kernel/test_pages || status=1
        ;;
    q4_0 | q4_k | f16) measure --shape 8b --type "$word" ;;
    1b) measure --shape 1b --type f16 --cases decode,deep ;;
    profile) measure --shape 8b --type q4_0 --options profile=16 --steps 20 --repeats 3 ;;
    launches) measure --shape 8b --type q4_0 --options graphs=0,profile=16 --steps 20 --repeats 3 ;;
    *)
        echo "gpu.sh: what is $word?" >&2
        exit 2
        ;;
    esac
done
exit $status
