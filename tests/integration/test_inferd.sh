#!/usr/bin/env bash
# inferd's own command line: help, version, --inspect; ending by signal; quietness.
# shellcheck source=tests/support/sh.bash
source tests/support/sh.bash

run "$inferd" --help
is "--help: exit status" "$status" 0
matches "--help: names --model" "$out" '--model'
is "--help: nothing on standard error" "$err" ""
check "--help: fits a screen or two" test "$(wc -l <<<"$out")" -le 60

run "$inferd" --version
is "--version: exit status" "$status" 0
matches "--version: a number" "$out" '^inferd [0-9]+\.[0-9]+'

run "$inferd" --inspect "$model"
is "--inspect: exit status" "$status" 0
matches "--inspect: architecture" "$out" 'llama'
matches "--inspect: parameters" "$out" '46\.[0-9]+ ?M'
matches "--inspect: type" "$out" 'Q6_K'
matches "--inspect: context" "$out" '2,?048'
matches "--inspect: what it takes in memory" "$out" '[0-9] ?[KMG]i?B'

text='The quick brown fox: naïve café, 日本語 🙂  two  spaces'
printf '%s' "$text" >"$folder/text"
"$inferd" --inspect "$model" --tokenize <"$folder/text" >"$folder/ids" 2>"$folder/err"
is "--inspect --tokenize: exit status" $? 0
matches "--inspect --tokenize: a JSON array" "$(cat "$folder/ids")" '^\[[0-9]+(, ?[0-9]+)*\]$'

daemon_start --backend null
run "$inferctl" tokenize --json --file "$folder/text"
is "the daemon's tokenizer agrees with --inspect" "$(tr -dc '0-9,' <<<"$out")" "$(tr -dc '0-9,' <"$folder/ids")"
run "$inferctl" detokenize --ids "$(tr -dc '0-9,' <"$folder/ids")"
is "detokenize gives the text back" "$out" "$text"

run "$inferctl" status --json
is "status --json: exit status" "$status" 0
matches "status --json: an object" "$out" '^\{'
matches "status --json: the event loop" "$out" '"event_loop": ?"(io_uring|epoll)"'
run "$inferctl" models
matches "models: lists it" "$out" 'unix'
run "$inferctl" status --topology
is "status --topology: exit status" "$status" 0
matches "status --topology: a core and its processors" "$out" '^  core [0-9]+ +cpu [0-9]+'
matches "status --topology: memory by node" "$out" '^  node [0-9]+ +[0-9.]+ GiB, inferd has [0-9.]+ MiB'
matches "status --topology: the threads" "$out" 'inferd-prepare'
run "$inferctl" status --topology --json
matches "status --topology --json: an object" "$out" '^\{ *"topology": *"[0-9]+ core'

for signal in INT TERM; do
    kill -$signal "$daemon_pid"
    wait "$daemon_pid"
    is "SIG$signal: ends with 0" $? 0
    check "SIG$signal: the socket is gone" test ! -e "$INFERD_SOCKET"
    daemon_pid=
    [ "$signal" = TERM ] || daemon_start --backend null
done

# Two models at once, the first one is the default.
daemon_start --backend null --model "first=$model" --model "second=$model"
run "$inferctl" models --json
matches "two models: first" "$out" 'first'
matches "two models: second" "$out" 'second'
run "$inferctl" prompt --raw --max-tokens 1 --json hello
matches "two models: the first is the default" "$out" '"model": ?"first"'
run "$inferctl" --model second prompt --raw --max-tokens 1 --json hello
matches "two models: the other by name" "$out" '"model": ?"second"'
daemon_stop

# A list of backends: devices, and lists that are none.
daemon_start --backend null,cpu --backend-options memory=67108864,reads=1000000000000 --ctx 2048
run "$inferctl" models
matches "devices: a column of models" "$out" '^NAME .* DEVICE +BACKEND'
matches "devices: the model's" "$out" '^unix +ready .* null:0 +null: '
run "$inferctl" models --json
matches "devices: models --json" "$out" '"device": ?"null:0"'
run "$inferctl" status
matches "devices: status tells its memory" "$out" 'null:0 has 64\.0M, [0-9.]+M free: weights 36\.1M, state [0-9.]+K, scratch [0-9.]+[KB]$'
matches "devices: status tells what its model takes" "$out" '^ +unix: weights 36\.1M \(36\.1M in the file\), state [0-9.]+K, scratch [0-9.]+[KB]$'
run "$inferctl" prompt --raw --ignore-eos --max-tokens 200 --json hello
run "$inferctl" status
matches "devices: status tells how fast its weights were read" "$out" 'unix: .*; read at [0-9.]+[MGT]/s, [0-9]+ % of the 931\.3G/s that it gives$'
run "$inferctl" models --json
matches "devices: the speeds as numbers" "$out" '"device_read_bytes_per_s": ?1000000000000, ?"weights_read_bytes_per_s": ?[1-9]'
matches "devices: the journal names the device" "$(cat "$folder/log")" 'unix: .* loaded on null:0 in '
daemon_stop

# A device that holds some of the layers.
daemon_start --backend null,cpu --backend-options memory=33554432 --ctx 2048
run "$inferctl" models
matches "layers: models tells which are where" "$out" '^unix +ready .* null:0 +null: .*; layers 0-[0-9]+ of 12 on null:0, the rest on cpu$'
run "$inferctl" models --json
matches "layers: models --json" "$out" '"device": ?"null:0".*"rest_device": ?"cpu", ?"device_layers": ?[0-9]+, ?"rest_weights_bytes": ?[1-9]'
run "$inferctl" status
matches "layers: status tells the device's memory" "$out" 'null:0 has 32\.0M, [0-9.]+M free: weights [12][0-9.]+M, state '
matches "layers: status tells the host's" "$out" '^ +weights [12][0-9.]+M, state [1-9][0-9.]*M, scratch '
matches "layers: the journal tells" "$(cat "$folder/log")" 'unix: .* loaded on null:0 \(layers 0 to [0-9]+ of 12\) and cpu in '
daemon_stop

# unstartable NAME STATUS REGEX ARGUMENT...
unstartable() {
    local name=$1 wanted=$2 regex=$3
    shift 3
    run "$inferd" --config none --model "$model" --socket "$folder/other.sock" "$@"
    is "$name: exit status" "$status" "$wanted"
    matches "$name: says why" "$err" "$regex"
}
unstartable "a backend twice" 2 "'null' stands there twice" --backend null,null
unstartable "auto beside others" 2 'auto stands alone' --backend auto,null
unstartable "a backend that there is not" 6 'no inferd-backend-absent\.so' --backend null,absent
unstartable "options of a backend that is not named" 2 "does not name" --backend null --backend-options cpu.isa=plain
unstartable "a device that is not open" 6 "the device 'cuda:0', which is not open \(null\)" --backend null --device cuda:0
finish
