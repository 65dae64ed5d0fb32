#!/bin/bash
# inferctl's commands against a daemon with the embedded model: what each prints, in both forms,
# and that the forms agree with each other. Answers themselves are tests/golden's business.
cd "$(dirname "$0")/../.." || exit 1
# shellcheck source=tests/support/sh.bash
source tests/support/sh.bash
export XDG_STATE_HOME=$folder/state TERM=xterm
unset NO_COLOR

if [ ! -x "$inferd" ]; then
    not_ok "inferd is built"
    exit 1
fi
[ -r "$model" ] || { skip "inferctl's commands" "$model is missing"; exit 0; }
daemon_start --backend cpu || finish

# field TEXT NAME: the value of a flat JSON member, as written
field() { grep -oE "\"$2\": (\"([^\"\\]|\\\\.)*\"|\[[^]]*\]|[^,}]+)" <<<"$1" | head -1 | sed -E "s/^\"$2\": //"; }

# ---- status, models ----

run "$inferctl" status
is "status succeeds" "$status" 0
matches "status names the version and the event loop" "$out" 'inferd [0-9.]+ .*event loop (io_uring|epoll)'
matches "status lists the model" "$out" '^unix +ready +llama'
run "$inferctl" status --json
matches "status --json is one object" "$out" '^\{"version": .*"models": \[\{"name": "unix".*\}\]\}$'
is "status --json has the daemon's pid" "$(field "$out" pid)" "$daemon_pid"
run "$inferctl" --json models
matches "models --json" "$out" '^\[\{"name": "unix", "architecture": "llama".*"chat_template": "[a-z]'
run "$inferctl" models -m unix
is "models -m takes a name that is served" "$status" 0
run "$inferctl" models -m other
is "models -m refuses another" "$status" 4
matches "and says which are served" "$err" "'other'; served: unix"

# ---- tokens ----

text=$'The kernel\n\tdoes h\xc3\xa9llo  \xf0\x9f\x8c\x8d <|im_start|>'
printf '%s' "$text" >"$folder/text"
run "$inferctl" tokenize --json --file "$folder/text"
matches "tokenize --json is an array" "$out" '^\[[0-9]+(,[0-9]+)+\]$'
ids=$out
is "tokenize in plain form has the same ids" "$("$inferctl" tokenize "$text" | tr ' ' ,)" "${ids//[][]/}"
is "detokenize takes tokenize --json" "$("$inferctl" detokenize <<<"$ids"; echo x)" "${text}x"
is "detokenize takes arguments" "$("$inferctl" detokenize "${ids//[],[]/ }"; echo x)" "${text}x"
is "detokenize takes --ids" "$("$inferctl" detokenize --ids "${ids//[][]/}"; echo x)" "${text}x"
run "$inferctl" tokenize --special "<|im_start|>"
matches "a special token is one token with --special" "$out" '^[0-9]+$'
is "its text is shown with --special" "$("$inferctl" detokenize --special "$out")" "<|im_start|>"
is "and not without" "$("$inferctl" detokenize "$out")" ""
run "$inferctl" tokenize --text "tar x"
matches "tokenize --text shows the text" "$out" "^ +[0-9]+  '"
run "$inferctl" tokenize ""
is "an empty text has no tokens" "$status/$out" "0/"
run "$inferctl" detokenize 99999999
is "an id outside the vocabulary is refused" "$status" 4

escape=$'\033[31mred\033[0m \302\23331m \a'
escape_ids=$("$inferctl" tokenize "$escape")
is "a file gets every control character" "$("$inferctl" detokenize "$escape_ids")" "$escape"
if command -v script >/dev/null; then
    script -qec "$inferctl detokenize $escape_ids" /dev/null >"$folder/out" 2>&1 </dev/null
    matches "a terminal gets the text" "$(cat "$folder/out")" 'red'
    is "but no control character" "$(LC_ALL=C tr -d '\n\r -~' <"$folder/out" | od -An -tx1 | tr -d ' \n' | sed 's/efbfbd//g')" ""
else
    skip "a terminal gets no control character" "script is not installed"
fi

# ---- prompt ----

run "$inferctl" prompt --temp 0 -n 12 "What is tar?"
is "prompt succeeds" "$status" 0
plain=$out
run "$inferctl" prompt --temp 0 -n 12 --json "What is tar?"
is "prompt --json says why it ended" "$(field "$out" finish)" '"length"'
is "prompt --json counts tokens" "$(field "$out" completion_tokens)" 12
is "prompt --json has an id for each" "$(field "$out" ids | tr -cd , | wc -c)" 11
is "prompt --json names the model" "$(field "$out" model)" '"unix"'
prompt_ids=$(field "$out" prompt_ids | tr -d '[] ')
is "the plain answer is the same" "$("$inferctl" detokenize --ids "$(field "$out" ids | tr -d '[] ')")" "$plain"
is "standard input is taken" "$(echo "What is tar?" | "$inferctl" prompt --temp 0 -n 12)" "$plain"
is "'-' is standard input" "$(echo "What is tar?" | "$inferctl" prompt --temp 0 -n 12 -)" "$plain"
is "--ids of the rendered prompt gives the same answer" "$("$inferctl" prompt --ids "$prompt_ids" --temp 0 -n 12)" "$plain"
run "$inferctl" prompt --raw --temp 0 -n 3 --json --logprobs 2 "The kernel"
matches "--logprobs gives the best beside each" "$out" '"logprobs": \[\{"id": [0-9]+, "logprob": -[0-9.e-]+, "top": \[\{"id": [0-9]+, "logprob": [-0-9.e]+\}, \{'
run "$inferctl" prompt --raw --temp 0 -n 3 --json --special "<|im_start|>"
is "--raw --special parses special tokens" "$(field "$out" prompt_tokens)" \
    "$("$inferctl" tokenize --bos --special "<|im_start|>" | wc -w)"
first=${prompt_ids%%,*}
run "$inferctl" prompt -n 4 --seed 7 --json "tar"
one=$(field "$out" ids)
run "$inferctl" prompt -n 4 --seed 7 --json "tar"
is "the same seed gives the same tokens" "$(field "$out" ids)" "$one"
run "$inferctl" prompt --temp 0 -n 4 -v "tar"
matches "-v prints timings on standard error" "$err" '^prompt [0-9]+ tokens .* answer [0-9]+ tokens'
run "$inferctl" prompt -m other x
is "an unknown model is refused" "$status" 4
matches "with the names of those that are served" "$err" 'unix'
run "$inferctl" prompt --top-p 1.5 x
is "a parameter out of range is refused" "$status/$(wc -l <<<"$err")" "4/1"
matches "with its name and value" "$err" 'top_p is 1\.5'
run "$inferctl" prompt --ids "$first,99999999" --json
is "a failed answer is still one object" "$status/$(field "$out" finish)" '4/"error"'
"$inferctl" prompt --ignore-eos --temp 0 -n 0 "tell me more" >"$folder/long" 2>&1 &
pid=$!
for ((i = 0; i < 200 * slowness; i++)); do [ -s "$folder/long" ] && break; sleep 0.02; done
kill -INT "$pid"
wait "$pid"
is "Ctrl-C ends with 130" "$?" 130

if [ -w /dev/full ]; then
    "$inferctl" prompt --temp 0 -n 4 "tar" >/dev/full 2>"$folder/err"
    is "a full disk ends an answer" "$?/$(grep -c 'cannot write the output' "$folder/err")" "1/1"
fi
"$inferctl" prompt --raw --ignore-eos --temp 0 -n 0 "tar" 2>"$folder/err" | head -c 1 >"$folder/one"
is "a reader that goes away ends it quietly" "${PIPESTATUS[0]}/$(cat "$folder/err")" "141/"

# ---- score, perplexity, bench ----

run "$inferctl" score --json --top 3 "The quick brown fox"
matches "score --json: the first token has no log-probability" "$out" '^\{"tokens": \[\{"id": [0-9]+, "logprob": null'
scored=$(field "$out" total_logprob)
sum=$(grep -oE '"id": [0-9]+, "logprob": (-[0-9.e-]+), "top"' <<<"$out" | sed -E 's/.*: (-[^,]+), .*/\1/' | awk '{ s += $1 } END { print s }')
is "score --json: the total is their sum" "$(awk -v a="$scored" -v b="$sum" 'BEGIN { d = a - b; print (d < 0.001 && d > -0.001) }')" 1
matches "score for a person shows texts and a total" "$("$inferctl" score "The quick brown fox")" '^total -[0-9.]+ over 4 tokens, perplexity'
run "$inferctl" score --json --text "tar x"
matches "score --json --text adds texts" "$out" '"text": "'
head -c 3000 LICENSE >"$folder/words"
run "$inferctl" perplexity --ctx 64 --json "$folder/words"
tokens=$(field "$out" tokens)
is "perplexity uses every whole window" "$(field "$out" windows)" $((tokens / 64))
is "perplexity scores the second halves" "$(field "$out" scored)" $(((tokens / 64) * 31))
is "its error is smaller than the figure" \
    "$(awk -v a="$(field "$out" perplexity)" -v b="$(field "$out" error)" 'BEGIN { print (b > 0 && b < a && a > 1) }')" 1
figure=$(field "$out" perplexity)
matches "the plain form has the same figure" "$("$inferctl" perplexity --ctx 64 "$folder/words")" \
    "^PPL = $(printf '%.4f' "$figure") "
is "--max-windows" "$(field "$("$inferctl" perplexity --ctx 64 --max-windows 2 --json "$folder/words")" windows)" 2
run "$inferctl" perplexity --ctx 512 "$folder/text"
is "a text shorter than a window is refused" "$status" 1
run "$inferctl" bench -p 32 -n 8 -r 2 --json
matches "bench --json has both rows" "$out" '"results": \[\{"test": "pp32".*"test": "tg8"'
matches "bench prints a table" "$("$inferctl" bench -p 0 -n 8 -r 2)" '^tg8 +[0-9.]+ +[0-9.]+ +[0-9.]+'

# ---- chat ----

printf '/system Be brief.\nWhat is\\\ntar?\n/stats\n/save %s\n/reset\n/stats\n/load %s\n/stats\n/quit\nnever\n' \
    "$folder/saved" "$folder/saved" >"$folder/typed"
"$inferctl" chat --temp 0 -n 8 <"$folder/typed" >"$folder/out" 2>"$folder/err"
is "a conversation from a pipe succeeds" "$?" 0
out=$(cat "$folder/out")
is "/reset forgets and /load brings back" "$(grep -oE '[0-9]+ messages' <<<"$out" | tr '\n' ' ')" "3 messages 1 messages 3 messages "
matches "/save writes the question with its line break" "$(cat "$folder/saved")" '"content": "What is\\ntar\?"'
printf 'hi\n/bogus\nnever\n' | "$inferctl" chat --temp 0 -n 2 >"$folder/out" 2>"$folder/err"
is "an unknown slash command ends a script" "${PIPESTATUS[1]}" 2
is "a pipe leaves no history" "$(ls "$XDG_STATE_HOME" 2>/dev/null)" ""
if command -v script >/dev/null; then
    (sleep 1; printf '/help\n'; sleep 1; printf '\004') |
        script -qec "$inferctl chat" /dev/null >"$folder/out" 2>&1
    matches "a conversation on a terminal" "$(tr -d '\r' <"$folder/out")" '/reset .*forget'
    matches "keeps its history for its owner" "$(stat -c %a "$XDG_STATE_HOME/inferd/history" 2>&1)" '^600$'
else
    skip "a conversation on a terminal" "script is not installed"
fi
finish
