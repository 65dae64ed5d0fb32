#!/usr/bin/env bash
# test_tokenize.sh: inferd --inspect --tokenize against token ids of the reference implementation:
# the vocabularies in the repository, and those in the shared folder where it is there.
set -u
cd "$(dirname "$0")/../.." || exit 1
inferd=${INFERD_BUILD:-build}/inferd
shared=${INFERD_SHARED:-../shared}/fixtures/vocab

# check NAME MODEL TEXT IDS
check() {
    if "$inferd" --inspect "$2" --tokenize <"$3" | cmp -s - "$4"; then
        echo "ok - $1"
    else
        echo "not ok - $1"
    fi
}

for name in gpt-2 qwen2 phi-3; do
    check "mixed text with $name" tests/data/vocab/ggml-vocab-$name.gguf tests/data/vocab/mixed.txt \
        tests/data/vocab/$name.ids
done
check "mixed text with unix" models/unix-46m-Q6_K.gguf tests/data/vocab/mixed.txt \
    tests/data/vocab/unix.ids
for name in llama-bpe llama-spm; do
    if [ -f "$shared/ggml-vocab-$name.gguf" ]; then
        check "mixed text with $name" "$shared/ggml-vocab-$name.gguf" tests/data/vocab/mixed.txt \
            "$shared/$name.ids"
    else
        echo "skip - mixed text with $name: the vocabulary is not in the repository"
    fi
done

ids() {
    "$inferd" --inspect models/unix-46m-Q6_K.gguf --tokenize "$@"
}
[ "$(printf 'a\\nb' | ids)" = "$(printf 'a\nb' | ids)" ] && echo "ok - escapes are replaced" ||
    echo "not ok - escapes are replaced"
[ "$(printf 'a\\nb' | ids --no-escape)" != "$(printf 'a\nb' | ids --no-escape)" ] &&
    echo "ok - --no-escape keeps them" || echo "not ok - --no-escape keeps them"
