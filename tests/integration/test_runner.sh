#!/usr/bin/env bash
# tests/run.sh itself: whatever goes wrong in a test program must show in the totals and the status.
# shellcheck source=tests/support/sh.bash
source tests/support/sh.bash

program() { # NAME TEXT: a test program that does this
    mkdir -p "$folder/tests"
    printf '#!/usr/bin/env bash\n%s\n' "$2" >"$folder/tests/$1"
    chmod +x "$folder/tests/$1"
}

totals() { # NAME WANTED STATUS PROGRAM...
    local name=$1 wanted=$2 wanted_status=$3
    shift 3
    INFERD_BUILD=$folder INFERD_TEST_TIMEOUT=2 tests/run.sh "${@/#/$folder/tests/}" >"$folder/run" 2>&1
    status=$?
    is "$name: totals" "$(tail -n 1 "$folder/run")" "$wanted"
    is "$name: status" "$status" "$wanted_status"
}

program good.sh 'echo "ok - one"; echo "ok - two"; echo "skip - three: not here"'
program bad.sh 'echo "ok - one"; echo "not ok - two"; exit 1'
program lying.sh 'echo "not ok - one"; exit 0'
program empty.sh 'exit 0'
program status.sh 'echo "ok - one"; exit 3'
program crash.sh 'echo "ok - one"; kill -SEGV $$'
program hang.sh 'echo "ok - one"; sleep 60'
program leak.sh 'echo "ok - one"; echo "==1==ERROR: LeakSanitizer: detected memory leaks"'
program cmocka 'echo "[       OK ] a" >&2; echo "[  FAILED  ] b"; echo "[  PASSED  ] 1 test(s)."; echo "[  SKIPPED ] 2 test(s), listed below:"; echo "[  FAILED  ] 1 test(s), listed below:"; exit 1'

totals "good" "2 passed, 0 failed, 1 skipped" 0 good.sh
totals "a failure" "1 passed, 1 failed, 0 skipped" 1 bad.sh
totals "a failure with status 0" "0 passed, 1 failed, 0 skipped" 1 lying.sh
totals "no test at all" "0 passed, 1 failed, 0 skipped" 1 empty.sh
totals "a status that nothing explains" "1 passed, 1 failed, 0 skipped" 1 status.sh
totals "a crash" "1 passed, 1 failed, 0 skipped" 1 crash.sh
[ "$sanitized" = 1 ] || totals "no end" "1 passed, 1 failed, 0 skipped" 1 hang.sh
totals "a sanitizer's finding" "1 passed, 1 failed, 0 skipped" 1 leak.sh
totals "cmocka" "1 passed, 1 failed, 2 skipped" 1 cmocka
totals "a program that is not there" "0 passed, 1 failed, 0 skipped" 1 nothing.sh
totals "several" "4 passed, 2 failed, 1 skipped" 1 good.sh bad.sh crash.sh
check "a failing log is shown" grep -q '^not ok - two' "$folder/run"
finish
