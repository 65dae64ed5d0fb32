#!/usr/bin/env bash
# Perplexity of the embedded model with smaller caches, on the CPU backend: the first windows of
# tests/data/heldout.txt, keys and values as q8_0 and as q4_0, beside f16.
#
# So short a text says little about the types themselves (on 60 kB of prose q8_0 changes perplexity
# by under 0.1%, q4_0 by 0.6%): here a few thousand tokens may go either way. The bounds are
# several times what was measured (0.1% and 1.4%), and still far under what a broken cache does: a
# page of wrong scales or a rotation that is not undone multiplies it.
# shellcheck source=tests/support/sh.bash
source tests/support/sh.bash

text=tests/data/heldout.txt
windows=12
[ "$sanitized" = 0 ] || windows=1

# perplexity TYPE: of the first windows, with keys and values kept as TYPE
perplexity() {
    daemon_start --backend cpu --cache-type-k "$1" --cache-type-v "$1" || return
    run "$inferctl" perplexity "$text" --ctx 512 --json --max-windows "$windows"
    value=$(sed -n 's/.*"perplexity": *\([0-9.]*\).*/\1/p' "$folder/out" | head -n 1)
    daemon_stop
}

# near NAME GOT WANTED PERCENT
near() {
    if awk -v got="$2" -v want="$3" -v most="$4" \
        'BEGIN {r = want > 0 ? 100 * (got / want - 1) : 1e9; exit !(got > 0 && r <= most && -r <= most)}'; then
        ok "$1 ($2, f16 has $3)"
    else
        not_ok "$1: got '$2', f16 has '$3'; more than $4% apart"
        sed 's/^/    /' "$folder/log"
    fi
}

value=
perplexity f16
full=$value
value=
perplexity q8_0
near "perplexity with a q8_0 cache" "$value" "$full" 1
if "$inferd" --help | grep -q q4_0; then
    value=
    perplexity q4_0
    near "perplexity with a q4_0 cache" "$value" "$full" 6
else
    skip "perplexity with a q4_0 cache" "this inferd does not offer it"
fi
finish
