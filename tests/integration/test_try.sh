#!/usr/bin/env bash
# README's first command, without its set-up and build: an answer, and nothing left behind.
# shellcheck source=tests/support/sh.bash
source tests/support/sh.bash

before=$(ls -d "${TMPDIR:-/tmp}"/inferd-try.* 2>/dev/null | sort)
start=$SECONDS
run tools/try.sh
is "try: exit status" "$status" 0
matches "try: the question" "$out" 'What is tar\?'
matches "try: the answer" "$out" '[Aa]rchiv'
is "try: nothing on standard error" "$err" ""
check "try: within a minute" test $((SECONDS - start)) -lt $((60 * slowness))
is "try: leaves no folder" "$(ls -d "${TMPDIR:-/tmp}"/inferd-try.* 2>/dev/null | sort)" "$before"
finish
