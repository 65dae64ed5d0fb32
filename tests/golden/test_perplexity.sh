#!/usr/bin/env bash
# Perplexity of the embedded model on tests/data/heldout.txt, on the CPU backend.
#
# All of it (INFERD_LONG=1, minutes) must lie within 0.5% of 18.57, which llama.cpp's tool gives for
# this file. The first windows alone must lie within 0.5% of what kernels/ref, the scalar oracle,
# gives for the same windows; those figures were measured with
#   inferd --backend ref ... ; inferctl perplexity tests/data/heldout.txt --ctx 512 --max-windows N
# shellcheck source=tests/support/sh.bash
source tests/support/sh.bash

text=tests/data/heldout.txt
ref_windows_8=26.5626
ref_windows_2=21.9077

# within NAME GOT WANTED: relative difference of at most 0.5%
within() {
    if awk -v got="$2" -v want="$3" 'BEGIN {exit !(got > 0 && (got - want) / want <= 0.005 && (want - got) / want <= 0.005)}'; then
        ok "$1 ($2, wanted $3)"
    else
        not_ok "$1: got $2, wanted $3 within 0.5%"
    fi
}

perplexity() { # ARGUMENT...
    run "$inferctl" perplexity "$text" --ctx 512 --json "$@"
    [ "$status" = 0 ] || echo "    $err"
    sed -n 's/.*"perplexity": *\([0-9.]*\).*/\1/p' "$folder/out" | head -n 1
}

daemon_start --backend cpu
if [ "${INFERD_LONG:-0}" = 1 ]; then
    within "perplexity of the whole text" "$(perplexity)" 18.57
elif [ "$sanitized" = 1 ]; then
    within "perplexity of the first 2 windows" "$(perplexity --max-windows 2)" "$ref_windows_2"
else
    within "perplexity of the first 8 windows" "$(perplexity --max-windows 8)" "$ref_windows_8"
fi
finish
