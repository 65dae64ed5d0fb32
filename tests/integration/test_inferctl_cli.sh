#!/bin/bash
# inferctl's command line where no daemon is needed: help, usage errors, exit statuses, and that
# every error is one line on standard error while nothing goes to standard output.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${INFERD_BUILD:-build}
case $build in /*) ;; *) build=$root/$build ;; esac
inferctl=$build/inferctl
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
unset INFERD_SOCKET NO_COLOR
export XDG_RUNTIME_DIR=$tmp TERM=xterm
failed=0

ok() { echo "ok - $1"; }
not_ok() {
    echo "not ok - $1"
    shift
    printf '# %s\n' "$@"
    failed=1
}

if [ ! -x "$inferctl" ]; then
    not_ok "inferctl is built" "$inferctl is missing"
    exit 1
fi

commands="prompt chat status top ps cancel models tokenize detokenize score perplexity bench"

# run ARG...: leaves $status, $tmp/out and $tmp/err; standard input is empty
run() {
    "$inferctl" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    status=$?
}

# refuses NAME STATUS PATTERN ARG...: exits with STATUS, one line that matches, empty output
refuses() {
    local name=$1 wanted=$2 pattern=$3
    shift 3
    run "$@"
    if [ "$status" -eq "$wanted" ] && [ "$(wc -l <"$tmp/err")" -eq 1 ] && [ ! -s "$tmp/out" ] &&
        grep -qE "^inferctl: " "$tmp/err" && grep -qE -- "$pattern" "$tmp/err"; then
        ok "$name"
    else
        not_ok "$name" "exit $status (wanted $wanted)" "stderr: $(cat "$tmp/err")" \
            "stdout: $(head -c 200 "$tmp/out")"
    fi
}

# ---- help ----

run --help
if [ "$status" -eq 0 ] && [ ! -s "$tmp/err" ]; then ok "--help succeeds"; else not_ok "--help succeeds"; fi
for command in $commands; do
    grep -q "^  $command " "$tmp/out" || not_ok "--help lists $command"
    "$inferctl" "$command" --help >"$tmp/command" 2>"$tmp/err"
    if [ $? -eq 0 ] && grep -q "^Usage: inferctl $command" "$tmp/command" && [ ! -s "$tmp/err" ]; then
        ok "$command --help succeeds"
    else
        not_ok "$command --help succeeds" "$(cat "$tmp/err")"
    fi
    "$inferctl" help "$command" >"$tmp/help" 2>&1
    if cmp -s "$tmp/command" "$tmp/help"; then ok "help $command is the same"; else not_ok "help $command is the same"; fi
    missing=
    for option in $(grep -oE '^ +(-[a-zA-Z] )? *--[a-z-]+' "$tmp/command" | grep -oE -- '--[a-z-]+'); do
        grep -q "Fl \\\\-${option#--}\b" "$root/man/inferctl.1" || missing+=" $option"
    done
    if [ -z "$missing" ]; then ok "inferctl.1 has the options of $command"; else not_ok "inferctl.1 has the options of $command" "$missing"; fi
done
if awk 'length > 100 { exit 1 }' "$tmp/command"; then ok "help fits 100 columns"; else not_ok "help fits 100 columns"; fi

run --version
if [ "$status" -eq 0 ] && grep -qE '^inferctl [0-9]+\.[0-9]+' "$tmp/out"; then ok "--version"; else not_ok "--version"; fi
run
if [ "$status" -eq 2 ] && [ ! -s "$tmp/out" ] && grep -q '^Usage' "$tmp/err"; then
    ok "no command prints the help on standard error"
else
    not_ok "no command prints the help on standard error" "exit $status"
fi

# ---- usage ----

refuses "an unknown command gets a suggestion" 2 "unknown command 'promt'; did you mean 'prompt'\?" promt
refuses "a strange command gets none" 2 "unknown command 'zzzzzz'; 'inferctl --help'" zzzzzz
refuses "an unknown option gets a suggestion" 2 "'--tmep'; did you mean '--temp'\? 'inferctl prompt --help'" prompt --tmep 1 x
refuses "an unknown global option" 2 "unknown option '--sokcet'; did you mean '--socket'" --sokcet x status
refuses "an unknown letter" 2 "unknown option '-Z'" prompt -Z x
refuses "an option of another command" 2 "unknown option '--top-k'" status --top-k 3
refuses "a flag takes no value" 2 "--raw takes no value" prompt --raw=1 x
refuses "a missing value" 2 "--temp needs T" prompt x --temp
refuses "a number that is none" 2 "--temp takes a number, not 'warm'" prompt --temp warm x
refuses "an empty number" 2 "--top-p takes a number" prompt --top-p "" x
refuses "a negative count" 2 "--top-k takes a whole number" prompt --top-k -3 x
refuses "a count that overflows" 2 "--max-tokens takes a whole number" prompt -n 4294967296 x
refuses "a seed that overflows" 2 "--seed takes a whole number" prompt -s 18446744073709551616 x
refuses "a bias without a value" 2 "--logit-bias takes ID=VALUE" prompt --logit-bias 5 x
refuses "a bias without a token" 2 "--logit-bias takes ID=VALUE" prompt --logit-bias =5 x
refuses "a bias on a token that cannot be" 2 "--logit-bias takes" prompt --logit-bias 4294967296=1 x
stops=()
for i in {1..17}; do stops+=(--stop "$i"); done
refuses "too many stop strings" 2 "at most 16 times --stop" prompt "${stops[@]}" x
refuses "ids that are none" 2 "'1x' is no token id" prompt --ids 1,1x
refuses "ids that overflow" 2 "is no token id" prompt --ids 99999999999
refuses "negative ids" 2 "'-1' is no token id" score --ids 3,-1
refuses "no ids" 2 "--ids names no token" prompt --ids ,
refuses "ids and a text" 2 "either --ids or a text" prompt --ids 1 x
refuses "a system message without a template" 2 "--system needs" prompt --raw --system s x
refuses "special tokens without --raw" 2 "--special goes with --raw" prompt --special x
refuses "logprobs without --json" 2 "--logprobs goes with --json" prompt --logprobs 2 x
refuses "an empty prompt" 2 "the text is empty" prompt ""
refuses "an empty standard input" 2 "the text is empty" prompt -
refuses "--json in a conversation" 2 "unknown option '--json'" chat --json
refuses "--json before a conversation" 2 "json is not for a conversation" --json chat
refuses "an argument to status" 2 "unexpected argument 'x'" status x
refuses "perplexity without a file" 2 "give one FILE" perplexity
refuses "a window that is too small" 2 "--ctx is 4; it must be at least" perplexity --ctx 4 "$0"
refuses "no repeats" 2 "--repeats is 0" bench --repeats 0
refuses "nothing to measure" 2 "nothing to measure" bench -p 0 -n 0
refuses "too many tops" 2 "--top is 99; at most 20" score --top 99 x
printf '[1, 2' >"$tmp/bad.json"
"$inferctl" detokenize <"$tmp/bad.json" >"$tmp/out" 2>"$tmp/err"
if [ $? -eq 2 ] && grep -q "is no JSON" "$tmp/err"; then ok "bad JSON ids"; else not_ok "bad JSON ids" "$(cat "$tmp/err")"; fi
printf '[1, "x"]' >"$tmp/bad.json"
"$inferctl" detokenize - <"$tmp/bad.json" >"$tmp/out" 2>"$tmp/err"
if [ $? -eq 2 ] && grep -q "entry 1 of the input is no token id" "$tmp/err"; then ok "JSON of another kind"; else not_ok "JSON of another kind" "$(cat "$tmp/err")"; fi

refuses "a priority that is none" 2 "--priority takes interactive, normal or batch, not 'high'" prompt --priority high x
refuses "a priority in a conversation" 2 "unknown option '--priority'" chat --priority batch
refuses "a negative deadline" 2 "--deadline takes seconds from 0" prompt --deadline -1 x
refuses "a deadline that is none" 2 "--deadline takes a number, not 'soon'" prompt --deadline soon x
refuses "an interval that is too short" 2 "--interval takes seconds from 0.1" top --interval 0.01
refuses "--json without --once" 2 "--json goes with --once" top --json
refuses "an argument to top" 2 "unexpected argument 'x'" top x
refuses "an argument to ps" 2 "unexpected argument '5'" ps 5
refuses "nothing to cancel" 2 "give the ids of requests" cancel
refuses "an id that is none" 2 "'7x' is not the id of a request" cancel 7 7x
refuses "an id that overflows" 2 "is not the id of a request" cancel 18446744073709551616

# ---- local files ----

refuses "a file that is not there" 1 "cannot open '$tmp/none': No such file" prompt --file "$tmp/none"
refuses "a folder as text" 1 "cannot read $tmp: Is a directory" prompt --file "$tmp"
refuses "a file and a text" 2 "either --file or a text" tokenize --file "$tmp/none" x
refuses "perplexity of a file that is not there" 1 "cannot open" perplexity "$tmp/none"
head -c 4194305 /dev/zero | tr '\0' a >"$tmp/long"
refuses "a text that no request carries" 4 "longer than 4194304 bytes" tokenize --file "$tmp/long"
refuses "an endless text" 4 "longer than 4194304 bytes" tokenize --file /dev/zero
if [ -w /dev/full ]; then
    "$inferctl" --help >/dev/full 2>"$tmp/err"
    if [ $? -eq 1 ] && grep -q "cannot write the output" "$tmp/err"; then
        ok "a full disk is noticed"
    else
        not_ok "a full disk is noticed" "$(cat "$tmp/err")"
    fi
else
    echo "skip - a full disk is noticed: /dev/full is missing"
fi

# ---- no daemon ----

echo "some text" >"$tmp/text"
for command in $commands; do
    case $command in
    prompt | tokenize | score) arguments=(text) ;;
    detokenize | cancel) arguments=(1 2) ;;
    perplexity) arguments=("$tmp/text") ;;
    *) arguments=() ;;
    esac
    refuses "$command without a daemon" 3 "no daemon listens" \
        "$command" --socket "$tmp/absent.sock" "${arguments[@]}"
done
refuses "--socket before the command" 3 "no daemon listens" --socket "$tmp/absent.sock" status
INFERD_SOCKET=$tmp/absent.sock refuses "INFERD_SOCKET is used" 3 "no daemon listens" status
refuses "a text that begins with a dash" 3 "no daemon" prompt --socket "$tmp/absent.sock" -- -x
refuses "biases in every form" 3 "no daemon" prompt --socket "$tmp/absent.sock" \
    --logit-bias 5=-inf --logit-bias 6+1.5 --logit-bias 7-2 x
refuses "-1 means all" 3 "no daemon" prompt --socket "$tmp/absent.sock" -n -1 -s -1 x
refuses "an option after the text" 3 "no daemon" prompt x --socket "$tmp/absent.sock"
refuses "a socket path that is too long" 2 "socket path" status --socket "/tmp/$(printf 'a%.0s' {1..200})"

# ---- terminals ----

if grep -q $'\033' "$tmp/err"; then not_ok "no colour in a file"; else ok "no colour in a file"; fi
if command -v script >/dev/null; then
    script -qec "$inferctl --socket $tmp/absent.sock status" /dev/null >"$tmp/out" 2>&1 </dev/null
    if grep -q $'\033\[31m' "$tmp/out"; then ok "colour on a terminal"; else not_ok "colour on a terminal" "$(cat -v "$tmp/out")"; fi
    NO_COLOR=1 script -qec "$inferctl --socket $tmp/absent.sock status" /dev/null >"$tmp/out" 2>&1 </dev/null
    if grep -q $'\033' "$tmp/out"; then not_ok "NO_COLOR is honoured"; else ok "NO_COLOR is honoured"; fi
    script -qec "$inferctl --no-color --socket $tmp/absent.sock status" /dev/null >"$tmp/out" 2>&1 </dev/null
    if grep -q $'\033' "$tmp/out"; then not_ok "--no-color is honoured"; else ok "--no-color is honoured"; fi
else
    echo "skip - colour on a terminal: script is not installed"
fi
exit $failed
