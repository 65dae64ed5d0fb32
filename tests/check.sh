#!/usr/bin/env bash
# check.sh: everything that `make check` checks, in the order in which it fails soonest.
#
# Each step counts as one test; the steps that run test programs add what those count. The last
# line of the output is exactly "N passed, N failed, N skipped"; exit non-zero when any failed.
#
#   CHECK_STEPS="format layers ..."   runs only these steps
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

make=(make --no-print-directory -s CUDA="${CUDA:-0}")
jobs=-j$(nproc)
passed=0 failed=0 skipped=0
began=$SECONDS
logs=build/check
mkdir -p "$logs" || exit 2

# A leak, an overflow or a race in any process of a test must fail it, also where nobody looks at
# its exit status.
export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export INFERD_NO_DEPS=1

# step NAME WHAT COMMAND...: exit status 77 means skipped, with the reason as the last line.
step() {
    local name=$1 what=$2 log=$logs/$1.log status start=$SECONDS
    shift 2
    [ -z "${CHECK_STEPS:-}" ] || [[ " $CHECK_STEPS " == *" $name "* ]] || return 0
    "$@" >"$log" 2>&1
    status=$?
    case $status in
    0)
        printf 'ok   %-10s %s (%d s)\n' "$name" "$what" $((SECONDS - start))
        passed=$((passed + 1))
        ;;
    77)
        printf 'skip %-10s %s: %s\n' "$name" "$what" "$(tail -n 1 "$log")"
        skipped=$((skipped + 1))
        ;;
    *)
        printf 'FAIL %-10s %s (%d s)\n' "$name" "$what" $((SECONDS - start))
        tail -n 60 "$log"
        failed=$((failed + 1))
        ;;
    esac
    return $status
}

# counted NAME WHAT COMMAND...: a run of test programs, shown as it goes; its last line is counted.
counted() {
    local name=$1 log=$logs/$1.log last start=$SECONDS p f s
    [ -z "${CHECK_STEPS:-}" ] || [[ " $CHECK_STEPS " == *" $name "* ]] || return 0
    echo "---- $2"
    shift 2
    "$@" 2>&1 | tee "$log"
    last=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1)
    if [ -z "$last" ]; then
        echo "FAIL $name: ended without a total"
        failed=$((failed + 1))
        return 1
    fi
    read -r p _ f _ s _ <<<"$last"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    printf -- '---- %s: %s (%d s)\n' "$name" "$last" $((SECONDS - start))
}

check_layers() {
    tests/layers.sh --self-test && tests/layers.sh
}

# Every public header compiles alone, as C99 and as C++, with the strictest warnings.
check_headers() {
    local header compiler bad=0
    for header in include/inferd/*.h; do
        for compiler in "gcc -x c -std=c99" "clang -x c -std=c99" "g++ -x c++ -std=c++11" "clang++ -x c++ -std=c++11"; do
            command -v "${compiler%% *}" >/dev/null || continue
            # shellcheck disable=SC2086
            printf '#include "%s"\nextern int infer_header_compiles;\n' "${header#include/}" |
                $compiler -Iinclude -Wall -Wextra -Werror -Wpedantic -Wno-long-long -fsyntax-only - || {
                echo "$header does not compile alone with $compiler"
                bad=1
            }
        done
    done
    return $bad
}

check_scripts() {
    local list
    mapfile -t list < <(find tools tests .ci -type f \( -name '*.sh' -o -name '*.bash' -o -name run \) | sort)
    for script in "${list[@]}"; do
        bash -n "$script" || return 1
    done
    command -v shellcheck >/dev/null || {
        echo "shellcheck is not installed"
        return 77
    }
    shellcheck -x -S warning "${list[@]}"
}

# With nvcc, the CUDA backend: for one GPU alone, which is what takes the time; of the oldest one
# kernel, which has most of what device.cuh makes differently there. It must load where there is no
# driver, as a backend that finds no device.
check_cuda() {
    local out=build/cuda-check nvcc
    nvcc=$(command -v nvcc) || nvcc=/usr/local/cuda/bin/nvcc
    [ -x "$nvcc" ] || {
        echo "nvcc was not found"
        return 77
    }
    "${make[@]}" "$jobs" CUDA=1 CUDA_CODE=sm_90a B=$out "$out/inferd-backend-cuda.so" || return 1
    "$nvcc" -std=c++17 -Iinclude -Ikernels -arch=sm_75 -cubin -o "$out/chain.cubin" \
        kernels/cuda/chain.cu || return 1
    INFERD_BUILD=$out tests/layers.sh || return 1
    cat >"$out/load.c" <<'PROGRAM'
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    void *library = dlopen(argv[argc - 1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        puts(dlerror());
    return library == NULL || dlsym(library, "infer_backend_v1") == NULL;
}
PROGRAM
    gcc "$out/load.c" -o "$out/load" -ldl && "$out/load" "$out/inferd-backend-cuda.so"
}

build() {
    "${make[@]}" "$jobs" "$@"
}

# Nobody runs what clang makes here: it is asked for its warnings, which it has before it optimizes,
# and whether everything links. Kernels that stand in for a GPU's take it minutes when it does.
build_with_clang() {
    build CC=clang B=build/clang-check EXTRA_CFLAGS="-O0 -g0" all tests
}

step format "clang-format finds nothing to change" "${make[@]}" check-format
step layers "the layer law" check_layers
step headers "public headers compile alone, as C99 and C++11" check_headers
step scripts "shell scripts" check_scripts
step build "build with gcc, warnings are errors" build all
step tests "build of the tests" build tests
step objects "the layer law, on the built objects" tests/layers.sh
step cuda "the CUDA backend with nvcc" check_cuda
counted unit "tests" "${make[@]}" check-unit
step clang "build with clang, warnings are errors" build_with_clang
step san "build with AddressSanitizer and UBSan" build SAN=1 tests
counted san-unit "tests under AddressSanitizer, LeakSanitizer and UBSan" "${make[@]}" SAN=1 check-unit

echo "make check took $((SECONDS - began)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
