#!/usr/bin/env bash
# gpu.sh [--sanitize[=TOOL,...]] PROGRAM...: what `make check-gpu` runs: the tests of the CUDA backend,
# built for the real thing, on this machine's GPU. Without programs (no nvcc) or without a GPU it
# says so and is done.
#
# With --sanitize each program runs once under each TOOL of NVIDIA's compute-sanitizer (memcheck,
# racecheck and initcheck), where that is installed: tens of times slower. A finding fails the program.
# What the runtime's own calls return is not a finding: tests provoke errors and look at them.
#
#   INFERD_BUILD          folder of the built programs (build)
#   INFERD_TEST_TIMEOUT   seconds for one program (180; 1800 with --sanitize)
#   INFERD_TEST_JOBS      how many at a time (run.sh; with --sanitize 2: they share the GPU)
#
# The last line of the output is exactly "N passed, N failed, N skipped".
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
build=${INFERD_BUILD:-build}

skip() {
    echo "check-gpu: skipped: $1"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
}

tools=
case ${1:-} in
--sanitize) tools=memcheck,racecheck,initcheck ;;
--sanitize=*) tools=${1#*=} ;;
esac
[ -z "$tools" ] || shift

[ $# -gt 0 ] || skip "nvcc was not found, or CUDA=0, SAN=1 or another compiler than gcc was asked for"
gpus=$(nvidia-smi -L 2>/dev/null) || gpus=
[ -n "$gpus" ] || compgen -G '/dev/nvidia[0-9]*' >/dev/null || skip "this machine has no NVIDIA GPU, or no driver for it"

echo "${gpus:-$(compgen -G '/dev/nvidia[0-9]*')}"
export INFERD_TEST_CUDA=1
[ -n "$tools" ] || exec tests/run.sh "$@"

sanitizer=$(command -v compute-sanitizer) || sanitizer=
for path in /usr/local/cuda/bin /usr/local/cuda/compute-sanitizer; do
    [ -n "$sanitizer" ] || [ ! -x "$path/compute-sanitizer" ] || sanitizer=$path/compute-sanitizer
done
[ -n "$sanitizer" ] || skip "compute-sanitizer was not found; it comes with the CUDA toolkit"

# racecheck knows that a thread which has come to a barrier in shared memory has done its writes, but
# not those of its warp, for which one lane comes after __syncwarp(), as products do: it would call
# every such read a race. Programs with products are memcheck's and initcheck's.
beyond_racecheck='^test_(cuda|cuda_product|mixed|pages|parts|arch)$'
# And it watches every access to shared memory, of which attention and sampling live: with all their
# cases they did not end in 130 s on an H200, in brief they take less than 30.
brief_racecheck='export INFERD_TEST_BRIEF=1'

# A script for each, with the program's name, so that run.sh counts what it says.
rm -rf "$build/tests/sanitize"
scripts=()
for tool in ${tools//,/ }; do
    for program in "$@"; do
        [[ $tool != racecheck || ! ${program##*/} =~ $beyond_racecheck ]] || continue
        script=$build/tests/sanitize/$tool/${program##*/}
        mkdir -p "${script%/*}"
        cat >"$script" <<SCRIPT
#!/bin/sh
$([ "$tool" != racecheck ] || echo "$brief_racecheck")
exec '$sanitizer' --tool $tool --error-exitcode 86 --report-api-errors no --print-limit 20 '$program'
SCRIPT
        chmod +x "$script"
        scripts+=("$script")
    done
done
export INFERD_TEST_TIMEOUT=${INFERD_TEST_TIMEOUT:-1800} INFERD_TEST_JOBS=${INFERD_TEST_JOBS:-2}
exec tests/run.sh "${scripts[@]}"
