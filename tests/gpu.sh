#!/usr/bin/env bash
# gpu.sh PROGRAM...: what `make check-gpu` runs: the tests of the CUDA backend, built for the real
# thing, on this machine's GPU. Without programs (no nvcc) or without a GPU it says so and is done.
#
#   INFERD_BUILD   folder of the built programs (build)
#
# The last line of the output is exactly "N passed, N failed, N skipped".
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

skip() {
    echo "check-gpu: skipped: $1"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
}

[ $# -gt 0 ] || skip "nvcc was not found, or CUDA=0, SAN=1 or another compiler than gcc was asked for"
gpus=$(nvidia-smi -L 2>/dev/null) || gpus=
[ -n "$gpus" ] || compgen -G '/dev/nvidia[0-9]*' >/dev/null || skip "this machine has no NVIDIA GPU, or no driver for it"

echo "${gpus:-$(compgen -G '/dev/nvidia[0-9]*')}"
export INFERD_TEST_CUDA=1
exec tests/run.sh "$@"
