# bench.bash: what the scripts of tests/bench share; to be sourced. A row of the table is what one
# measure gave over its repeats, in the form of bench.h; rows go to the file that $rows names.

say() {
    echo "bench: $*" >&2
}

# The number of threads of both sides of a comparison.
bench_threads() {
    echo "${INFERD_THREADS:-$(($(nproc) < 16 ? $(nproc) : 16))}"
}

quotient() {
    awk "BEGIN {print $1 / $2}"
}

# median VALUE...
median() {
    printf '%s\n' "$@" | sort -g | awk '{v[NR] = $1} END {print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'
}

# row NAME UNIT GOAL VALUE...: median and range of the values
row() {
    local name=$1 unit=$2 goal=$3 sorted
    shift 3
    sorted=$(printf '%s\n' "$@" | sort -g)
    printf '%s|%s|%.4g|%.4g|%.4g|%d|%s\n' "$name" "$unit" "$(median "$@")" "$(head -n 1 <<<"$sorted")" \
        "$(tail -n 1 <<<"$sorted")" $# "$goal" >>"${rows:?}"
}

# The value of a key in llama.cpp's side of a comparison: "NAME": [value, ...
theirs() { # JSON NAME
    tr -d '\n ' <<<"$1" | sed "s/.*\"$2\":\[\([0-9.e+-]*\).*/\1/"
}

# The table, under what machine it was measured on. WIDTH of the names; MORE: what else to say.
table() { # WIDTH THREADS [MORE]
    printf '\n%s, %s, %d threads%s\n\n' "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)" \
        "$(uname -sr)" "$2" "${3:+; $3}"
    awk -F '|' -v width="$1" 'BEGIN {printf "%-*s %10s %10s %10s %4s  %-9s %s\n", width, "", "median", "lowest", "highest", "n", "unit", "goal"}
        {printf "%-*s %10s %10s %10s %4s  %-9s %s\n", width, $1, $3, $4, $5, $6, $2, $7}' "${rows:?}"
}
