#!/usr/bin/env bash
# completion.sh bash|zsh INFERCTL: the completion script of inferctl, made from what its --help says,
# which is made from the table of its options.
set -euo pipefail

shell=${1:?bash or zsh} inferctl=${2:?the built inferctl}

# "NAME SUMMARY" for each command.
commands=$("$inferctl" --help | awk '/^Commands:/ {on = 1; next} /^$/ {on = 0} on {$1 = $1; print}')
# options COMMAND: "LETTER NAME ARGUMENT|HELP" for each, "-" where there is none.
options() {
    "$inferctl" "$1" --help | awk '
        /^  -[a-zA-Z] +--|^ +--[a-z]/ {
            line = $0; letter = "-"; argument = "-"
            sub(/^ +/, "", line)
            if (line ~ /^-[a-zA-Z] /) { letter = substr(line, 2, 1); sub(/^-[a-zA-Z] +/, "", line) }
            name = line; sub(/[ ].*/, "", name); sub(/^--/, "", name)
            rest = substr(line, length(name) + 3)
            if (rest ~ /^ [^ ]/) { argument = rest; sub(/^ /, "", argument); sub(/ .*/, "", argument)
                rest = substr(rest, length(argument) + 2) }
            sub(/^ +/, "", rest)
            print letter, name, argument "|" rest
        }'
}
names=$(awk '{print $1}' <<<"$commands")
[ -n "$names" ] || { echo "completion.sh: $inferctl --help names no command" >&2; exit 1; }

make_bash() {
    echo "# Completion of inferctl(1) for bash, made from inferctl --help."
    echo "_inferctl() {"
    echo '    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command= i options'
    echo "    for ((i = 1; i < COMP_CWORD; i++)); do"
    echo '        case ${COMP_WORDS[i]} in'
    echo "        $(tr '\n' '|' <<<"$names" | sed 's/|$//')) command=\${COMP_WORDS[i]}; break ;;"
    echo "        esac"
    echo "    done"
    echo "    COMPREPLY=()"
    echo '    case $before in'
    echo '    --file|-f|--socket) mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;'
    echo "    --priority) mapfile -t COMPREPLY < <(compgen -W 'interactive normal batch' -- \"\$word\"); return ;;"
    echo '    --model|-m) mapfile -t COMPREPLY < <(compgen -W "$(inferctl models --json 2>/dev/null | sed -n '"'s/.*\"name\": *\"\\([A-Za-z0-9._-]*\\)\".*/\\1/p'"')" -- "$word"); return ;;'
    echo "    esac"
    echo '    case $command in'
    local name
    for name in $names; do
        echo "    $name) options='$(options "$name" | awk '{printf "%s--%s", (NR > 1 ? " " : ""), $2}')' ;;"
    done
    echo "    *) options='$(tr '\n' ' ' <<<"$names")help --help --version --socket --model --json' ;;"
    echo "    esac"
    echo '    if [[ $word == -* || -z $command ]]; then'
    echo '        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")'
    echo "    fi"
    echo "}"
    echo "complete -o default -F _inferctl inferctl"
}

# In a zsh specification in single quotes.
quoted() {
    sed "s/[]:[\\\\]/\\\\&/g; s/'/'\\\\''/g" <<<"$1"
}

make_zsh() {
    local name summary long argument help action
    echo "#compdef inferctl"
    echo "# Completion of inferctl(1) for zsh, made from inferctl --help."
    echo "local -a commands"
    echo "commands=("
    while read -r name summary; do
        echo "    '$name:$(quoted "$summary")'"
    done <<<"$commands"
    echo ")"
    echo "local command=\${words[(r)($(tr '\n' '|' <<<"$names" | sed 's/|$//'))]}"
    echo 'case $command in'
    for name in $names; do
        echo "$name)"
        printf '    _arguments'
        while IFS='|' read -r head help; do
            read -r _ long argument <<<"$head"
            action=
            case $long in
            file | socket) action=_files ;;
            priority) action='(interactive normal batch)' ;;
            esac
            printf " \\\\\n        '--%s[%s]%s'" "$long" "$(quoted "$help")" \
                "$([ "$argument" = - ] || echo ":$(quoted "$argument"):$action")"
        done < <(options "$name")
        echo " \\"
        echo "        '*::: :_default'"
        echo "    ;;"
    done
    echo "*)"
    echo "    _describe command commands"
    echo "    ;;"
    echo "esac"
}

case $shell in
bash) make_bash ;;
zsh) make_zsh ;;
*)
    echo "completion.sh: '$shell' is neither bash nor zsh" >&2
    exit 2
    ;;
esac
