#!/usr/bin/env bash
# test_sim.sh: many simulated days, the same day twice, and faults on purpose.
#
#   SEEDS=N   how many days (10,000; 400 under sanitizers)
#   SEED=N    the first of them (1)
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
build=${INFERD_BUILD:-build}
sim=$build/tests/sim/sim
case $build in *san*) seeds=400 ;; *) seeds=10000 ;; esac
seeds=${SEEDS:-$seeds}
first=${SEED:-1}

# good NAME COMMAND...: what it says follows the line.
good() {
    local name=$1 out
    shift
    if out=$("$@" 2>&1); then
        printf 'ok - %s\n%s\n' "$name" "$out"
    else
        printf 'not ok - %s\n%s\n' "$name" "$out"
    fi
}

good "$seeds days from seed $first" "$sim" "$first" "$seeds"

# Else the days would not show what becomes of those who end while a step is under way.
goes_ahead() {
    local n
    n=$("$sim" "$first" 100 | sed -n 's/.* \([0-9]*\) of them ahead.*/\1/p')
    [ "${n:-0}" -ge 1000 ] || {
        echo "${n:-no} steps were ahead in 100 days"
        return 1
    }
}
good "steps are one ahead" goes_ahead

same_trace() {
    local a b
    a=$("$sim" -t "$first" 20) && b=$("$sim" -t "$first" 20) || return 1
    [ "$a" = "$b" ] || {
        diff <(echo "$a") <(echo "$b")
        return 1
    }
    # Another seed is another day, and a day does not depend on those before it.
    [ "$("$sim" -t $((first + 1)) 1 | grep -o 'trace.*' | head -n 1)" = \
        "$(grep "seed $((first + 1)) trace" <<<"$a" | grep -o 'trace.*')" ] &&
        [ "$(grep -o 'trace .*' <<<"$a" | sort -u | wc -l)" -ge 20 ]
}
good "the same seed is the same day" same_trace

# found FAULT WORDS: the fault is found among a few hundred days, and named so.
found() {
    local out
    out=$("$sim" -p "$1" 1 400 2>&1)
    [ $? = 1 ] && grep -qE "FAILED: .*($2)" <<<"$out" || {
        tail -n 2 <<<"$out"
        return 1
    }
}
good "a wrong token is found" found token 'alone it is'
good "a page that was not zeroed is found" found page 'came to domain'
good "a user who gets less than a share is found" found share 'is its share|are its share'
good "a request that does not age is found" found starve 'is on rung'
good "an answer without an end is found" found silent 'waits for somebody|no end|is over or never was'
good "a leak is found" found leak 'blocks of memory'
