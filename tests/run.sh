#!/usr/bin/env bash
# run.sh PROGRAM...: runs test programs and scripts, some at a time, and counts what they say.
#
# A program that ends in .sh prints "ok - name", "not ok - name" and "skip - name: why"; any other
# is a cmocka program, whose summary is read. A program fails as a whole when it crashes, runs out
# of time, reports a sanitizer's finding or runs no test at all.
#
#   INFERD_BUILD         folder of the built programs (build)
#   INFERD_TEST_JOBS     how many at a time (one more than processors, as some wait for clocks)
#   INFERD_TEST_TIMEOUT  seconds for one program (180; three times that under sanitizers)
#
# The last line of the output is exactly "N passed, N failed, N skipped".
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

export INFERD_BUILD=${INFERD_BUILD:-build}
export CONFIGURATION_DIRECTORY=/nonexistent # the machine's own inferd.conf plays no part
logs=$INFERD_BUILD/tests/log

# One program: its output goes to a log, its counts to a file beside it, one line to the terminal.
run_one() {
    local program=$1 name log limit start status took note=""
    local passed failed skipped
    name=${program#"$INFERD_BUILD"/}
    name=${name#tests/}
    log=$logs/${name//\//_}.log
    limit=${INFERD_TEST_TIMEOUT:-180}
    case $INFERD_BUILD in *san*) limit=$((limit * 3)) ;; esac

    start=${EPOCHREALTIME/[.,]/}
    timeout -k 5 "$limit" "$program" >"$log" 2>&1 </dev/null
    status=$?
    took=$(((${EPOCHREALTIME/[.,]/} - start) / 1000))

    if [ "${program%.sh}" != "$program" ]; then
        passed=$(grep -c '^ok - ' "$log")
        failed=$(grep -c '^not ok - ' "$log")
        skipped=$(grep -c '^skip - ' "$log")
    else
        passed=$(grep -cF '[       OK ] ' "$log")
        # A test whose own setup or teardown fails is an error, listed one by one.
        failed=$(($(sum_of 'FAILED  ' "$log") + $(grep -c '\[  ERROR   \] [a-z_]' "$log")))
        skipped=$(sum_of 'SKIPPED ' "$log")
    fi

    case $status in
    0) ;;
    124 | 137) note="no end within $limit s" ;;
    13[0-9] | 14[0-9]) note="killed by signal $((status - 128))" ;;
    *) [ "$failed" -gt 0 ] || note="exit status $status" ;;
    esac
    if grep -qE '(Address|Leak|Thread|Memory)Sanitizer: |: runtime error: ' "$log"; then
        note="${note:+$note, }a sanitizer's finding"
    fi
    if [ -z "$note" ] && [ $((passed + failed + skipped)) = 0 ]; then
        note="ran no test"
    fi
    [ -z "$note" ] || failed=$((failed + 1))

    echo "$passed $failed $skipped" >"${log%.log}.counts"
    printf '%-4s %-44s %3d passed%s%s %6d.%03d s%s\n' \
        "$([ "$failed" = 0 ] && echo ok || echo FAIL)" "$name" "$passed" \
        "$([ "$failed" = 0 ] || printf ', %d failed' "$failed")" \
        "$([ "$skipped" = 0 ] || printf ', %d skipped' "$skipped")" \
        $((took / 1000)) $((took % 1000)) "${note:+  ($note)}"
}

# The sum of the numbers in "[  FAILED  ] N test(s)": a program may run several groups.
sum_of() {
    sed -n "s/.*\[  $1\] \([0-9][0-9]*\) test.*/\1/p" "$2" | awk '{n += $1} END {print n + 0}'
}

if [ "${1:-}" = --one ]; then
    run_one "$2"
    exit 0
fi

if [ $# = 0 ]; then
    echo "run.sh: no test program given" >&2
    exit 2
fi
mkdir -p "$logs" || exit 2
rm -f "$logs"/*

jobs=${INFERD_TEST_JOBS:-$(($(nproc) + 1))}
# Those that compute take longest: they begin first, so that nobody waits for one of them at the end.
order=()
for pattern in kernel/ golden/ sim/ ''; do
    for program in "$@"; do
        case $program in
        */kernel/*) class=kernel/ ;;
        */golden/*) class=golden/ ;;
        */sim/*) class=sim/ ;;
        *) class='' ;;
        esac
        [ "$class" != "$pattern" ] || order+=("$program")
    done
done
printf '%s\0' "${order[@]}" | xargs -0 -n 1 -P "$jobs" "$0" --one

passed=0 failed=0 skipped=0 missing=0
for program in "$@"; do
    name=${program#"$INFERD_BUILD"/}
    name=${name#tests/}
    counts=$logs/${name//\//_}.counts
    if ! read -r p f s 2>/dev/null <"$counts"; then
        echo "FAIL $name: gave no result"
        missing=$((missing + 1))
        continue
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    log=${counts%.counts}.log
    if [ "$f" -gt 0 ]; then
        printf '\n---- %s\n' "$name"
        if [ "$(wc -l <"$log")" -gt 2000 ]; then
            tail -n 2000 "$log"
        else
            cat "$log"
        fi
        printf -- '----\n\n'
    fi
    # Why something was skipped is worth a line.
    [ "$s" = 0 ] || grep -E '^skip - |^skipped: ' "$log" | sed "s|^|     $name: |"
done
failed=$((failed + missing))
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
