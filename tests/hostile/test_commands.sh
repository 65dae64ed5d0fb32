#!/usr/bin/env bash
# What a person can get wrong at the command line: each is one line that says what to do, a status
# that is not 0, and a daemon that is alive afterwards.
# shellcheck source=tests/support/sh.bash
source tests/support/sh.bash

daemon_start --backend null

# refused NAME STATUS REGEX COMMAND...
refused() {
    local name=$1 wanted=$2 regex=$3
    shift 3
    run "$@"
    is "$name: exit status" "$status" "$wanted"
    if [ "$wanted" = 2 ]; then
        check "$name: at most two lines" test "$(grep -c . <<<"$err")" -le 2
    else
        is "$name: one line" "$(grep -c . <<<"$err")" 1
    fi
    matches "$name: says what to do" "$err" "$regex"
}

refused "unknown model" 4 'unix' "$inferctl" --model nonesuch prompt hello
refused "temperature below 0" 4 'temperature' "$inferctl" prompt --temp -1 hello
refused "temperature above 100" 4 'temperature' "$inferctl" prompt --temp 101 hello
refused "top-p of 0" 4 'top_p' "$inferctl" prompt --top-p 0 hello
refused "min-p above 1" 4 'min_p' "$inferctl" prompt --min-p 1.5 hello
refused "repeat penalty of 0" 4 'repetition_penalty' "$inferctl" prompt --repeat-penalty 0 hello
refused "temperature that is no number" 2 'temp' "$inferctl" prompt --temp warm hello
refused "token beyond the vocabulary" 4 '99999999' "$inferctl" prompt --ids 5,99999999 --raw

text=$(printf 'lorem ipsum %.0s' $(seq 3000))
refused "prompt longer than the context" 4 '2048' "$inferctl" prompt --raw "$text"
tokens=$("$inferctl" tokenize --json "$text" | tr ',' '\n' | grep -c '[0-9]')
matches "prompt longer than the context: says how long it is" "$err" "(^|[^0-9])$tokens([^0-9]|$)"

refused "unknown command" 2 'prompt' "$inferctl" promtp hello
refused "unknown option" 2 'help' "$inferctl" prompt --no-such-option hello
refused "file that is not there" 1 'nonesuch' "$inferctl" prompt --file "$folder/nonesuch"

printf 'caf\351 \377\376 na\303\257ve' >"$folder/latin1"
run "$inferctl" prompt --raw --max-tokens 2 --file "$folder/latin1"
is "invalid UTF-8: taken as bytes" "$status" 0

refused "inferd without a model" 2 'model' timeout 10 "$inferd" --socket "$folder/other.sock"
refused "inferd with an unknown backend" 6 'backend' timeout 10 "$inferd" --model "unix=$model" --backend abacus --socket "$folder/other.sock"
refused "inferd with a backend's path" 2 'backend' timeout 10 "$inferd" --model "unix=$model" --backend ../../tmp/x --socket "$folder/other.sock"
refused "inferd with an unknown option" 2 '\-\-model' timeout 10 "$inferd" --modle x
refused "inferd with two models of one name" 2 'unix' timeout 10 "$inferd" --model "unix=$model" --model "unix=$model" --socket "$folder/other.sock"
refused "inferd with unknown backend options" 6 'abacus' timeout 10 "$inferd" --model "unix=$model" --backend null --backend-options abacus=1 --socket "$folder/other.sock"
refused "inferd with a backend that cannot take the memory" 6 '.' timeout 10 "$inferd" --model "unix=$model" --log-level error --backend null --backend-options refuse=1 --socket "$folder/other.sock"

check "the daemon serves on" "$inferctl" prompt --raw --max-tokens 2 hello
finish
