#!/usr/bin/env bash
# layers.sh: the layer law, checked on what the sources include and on what the objects export.
#
#   layers.sh              checks this tree; prints each violation; "ok" and exit 0 when there is none
#   layers.sh --self-test  plants one violation of each kind in a copy and sees that all are found
#
# The law, folder by folder, is the table in check_sources(). INFERD_BUILD names the folder of the
# built objects (build); what is not built yet is not checked.
set -uo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
root=${LAYERS_ROOT:-$here}
cd "$root" || exit 2
build=${INFERD_BUILD:-build}
violations=0

complain() {
    echo "layers: $*"
    violations=$((violations + 1))
}

# ---- sources ------------------------------------------------------------------------------------

# Headers of the C library and the kernel; compilers' own for the instruction sets are apart.
libc='(assert|ctype|dirent|dlfcn|elf|endian|errno|fcntl|fenv|float|getopt|inttypes|langinfo|libgen|limits|link|locale|math|memory|poll|pthread|pwd|grp|sched|semaphore|setjmp|signal|spawn|stdalign|stdarg|stdatomic|stdbool|stddef|stdint|stdio|stdlib|stdnoreturn|string|strings|syslog|termios|threads|time|uchar|unistd|utime|wchar|wctype|byteswap|execinfo|fnmatch|glob|malloc|mntent|wordexp|ucontext)\.h|(sys|linux|asm|bits|netinet|arpa|net)/.*\.h'
intrinsics='(immintrin|x86intrin|cpuid|emmintrin|arm_neon|arm_acle)\.h'
cuda='(cuda|cuda_.*|nccl|cublas.*|mma|cooperative_groups.*|cub/.*|curand.*)\.(h|hpp|cuh)'

# includes PATH...: "file line kind name" for each include; kind is "<" or '"'.
includes() {
    [ $# -gt 0 ] || return 0
    awk '/^[ \t]*#[ \t]*include[ \t]*[<"]/ {
            kind = match($0, /<[^>"]*>/) ? "<" : "\""
            if (kind != "<") match($0, /"[^"]*"/)
            print FILENAME, FNR, kind, substr($0, RSTART + 1, RLENGTH - 2)
        }' "$@"
}

# files FOLDER [PATTERN...]: the C sources below a folder.
files() {
    [ -d "$1" ] || return 0
    find "$1" -type f \( -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' \) | sort
}

# allow WHO ANGLE QUOTED FILE...: every include of the files must match one of the two patterns. A
# quoted name that is a file beside the includer is always its own business.
allow() {
    local who=$1 angle=$2 quoted=$3 file line kind name
    shift 3
    while read -r file line kind name; do
        if [ "$kind" = '<' ]; then
            grep -qxE -- "$angle" <<<"$name" ||
                complain "$file:$line: <$name> is not for $who"
        elif [[ $name == *..* ]]; then
            complain "$file:$line: \"$name\" climbs out of its folder"
        elif [ ! -e "$(dirname "$file")/$name" ]; then
            grep -qxE -- "$quoted" <<<"$name" ||
                complain "$file:$line: \"$name\" is not for $who"
        fi
    done < <(includes "$@")
}

allow_folder() {
    local folder=$1 list
    shift
    mapfile -t list < <(files "$folder")
    [ ${#list[@]} = 0 ] || allow "$folder" "$1" "$2" "${list[@]}"
}

check_sources() {
    local x list
    #            folder           <...>                     "..."
    allow_folder include/inferd   "$libc"                   'inferd/[a-z_]+\.h'
    allow_folder client/lib       "$libc|inferd/[a-z_]+\.h"                 'inferd/[a-z_]+\.h'
    allow_folder client/examples  "$libc|inferd/client\.h"  'inferd/(client|errors|limits|sampling)\.h'
    allow_folder client/inferctl  "$libc|histedit\.h|editline/readline\.h|jansson\.h|inferd/(client|errors|limits|sampling|abi)\.h" 'inferd/(client|errors|limits|sampling|abi)\.h'
    allow_folder daemon/base      "$libc"                   'base/.*|inferd/(errors|limits)\.h'
    allow_folder daemon/io        "$libc|liburing\.h|liburing/.*" '(io|base)/.*|inferd/(errors|limits|backend)\.h'
    allow_folder daemon/proto     "$libc"                   '(proto|base)/.*|inferd/[a-z_]+\.h'
    allow_folder daemon/model     "$libc|pcre2\.h|hwy/.*"   '(model|base)/.*|inferd/[a-z_]+\.h'
    allow_folder daemon/kv        "$libc"                   '(kv|base)/.*|inferd/(backend|errors|limits|sampling)\.h'
    allow_folder daemon/sched     "$libc"                   '(sched|base)/.*|inferd/(errors|limits|sampling)\.h'
    allow_folder daemon/engine    "$libc"                   '(engine|model|kv|base)/.*|inferd/(backend|errors|limits|sampling)\.h'
    allow_folder kernels/ref      "$libc"                   'ref/.*|inferd/(backend|limits|errors|sampling)\.h'
    for x in kernels/*/; do
        x=$(basename "$x")
        case $x in ref | '*') continue ;; esac
        allow_folder "kernels/$x" "$libc|$intrinsics$([ "$x" != cuda ] || echo "|$cuda")" \
            "(ref|$x)/.*|inferd/(backend|limits|errors|sampling)\.h"
    done

    # The daemon's own files may use every room of the daemon, but never a kernel or the client.
    mapfile -t list < <(find daemon -maxdepth 1 -name '*.[ch]' 2>/dev/null | sort)
    [ ${#list[@]} = 0 ] || allow "the daemon's own files" \
        "$libc|hwloc\.h|hwloc/.*|liburing\.h|seccomp\.h|systemd/.*" \
        '(base|io|proto|model|kv|sched|engine)/.*|inferd/[a-z_]+\.h|[a-z_]+\.h' "${list[@]}"

    # One hub: only dispatch may know the wire and the engine at once.
    for x in ${list[@]+"${list[@]}"}; do
        case $x in daemon/dispatch*) continue ;; esac
        if includes "$x" | grep -q ' "proto/\| proto/session' &&
            includes "$x" | grep -qE ' (sched|engine|kv)/'; then
            complain "$x: ties proto to sched, engine or kv; only daemon/dispatch*.c may"
        fi
    done

    # What touches shared memory has two users, one on each side of the trust boundary.
    while read -r file line _; do
        case $file in
        client/lib/* | daemon/proto/*) ;;
        *) complain "$file:$line: touches a ring; only client/lib and daemon/proto may" ;;
        esac
    done < <(find client daemon kernels \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \) -print0 2>/dev/null |
        xargs -0 -r grep -nHE 'infer_ring_(load|store|used|put|get)[^a-z_]' | sed 's/:/ /;s/:/ /')
}

# ---- objects ------------------------------------------------------------------------------------

needed() {
    readelf -d "$1" 2>/dev/null | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'
}

# shared_object FILE NEEDED-PATTERN EXPORT-PATTERN
shared_object() {
    local file=$1 name
    while read -r name; do
        grep -qxE -- "$2|libasan\..*|libubsan\..*" <<<"$name" || complain "$file: links $name"
    done < <(needed "$file")
    while read -r name; do
        grep -qxE -- "$3" <<<"$name" || complain "$file: exports $name"
    done < <(nm -D --defined-only --format=posix "$file" 2>/dev/null | awk '$2 != "A" {print $1}' | sed 's/@.*//')
    # Whatever is undefined must come from a versioned library, not from the program that loads it.
    while read -r name; do
        case $name in
        *@*) ;;
        _ITM_* | __gmon_start__ | __asan_* | __ubsan_* | __sanitizer_* | __lsan_*) ;;
        *) complain "$file: leaves $name to the program that loads it" ;;
        esac
    done < <(nm -D --undefined-only "$file" 2>/dev/null | awk '$1 == "U" {print $2}')
}

check_objects() {
    local x size copy
    command -v readelf >/dev/null || return 0
    x=$build/libinferclient.so.0
    if [ -e "$x" ]; then
        shared_object "$x" 'libc\.so\.6|ld-linux.*' 'infer_[a-z_]+'
        if ! nm -a "$x" 2>/dev/null | grep -q __asan_init; then
            copy=$(mktemp)
            strip -o "$copy" "$x" && size=$(stat -c %s "$copy")
            rm -f "$copy"
            [ "${size:-0}" -lt 102400 ] || complain "$x: $size bytes stripped, the bound is 102400"
        fi
    fi
    for x in "$build"/inferd-backend-*.so; do
        [ -e "$x" ] || continue
        case $x in
        *-cuda.so) shared_object "$x" 'libc\.so\.6|libm\.so\.6|libpthread\.so\.0|libdl\.so\.2|librt\.so\.1|ld-linux.*|libnccl.*' 'infer_backend_v1' ;;
        *) shared_object "$x" 'libc\.so\.6|libm\.so\.6|libpthread\.so\.0|ld-linux.*' 'infer_backend_v1' ;;
        esac
    done
}

# ---- sizes: said, not enforced ------------------------------------------------------------------

check_sizes() {
    find include client daemon kernels tests -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null | sort | while read -r x; do
        awk -v file="$x" '
            /^{/ {start = FNR}
            /^}/ {if (start && FNR - start - 1 > 70) print "layers: warning: " file ":" start ": a function of " FNR - start - 1 " lines"; start = 0}
            END {if (FNR > 800) print "layers: warning: " file ": " FNR " lines"}' "$x"
    done
}

# ---- does it catch anything? ----------------------------------------------------------------------

plant() { # FILE INCLUDE
    mkdir -p "$tree/$(dirname "$1")"
    printf '#include %s\n' "$2" >>"$tree/$1"
}

self_test() {
    local tree out bad=0 want
    tree=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$tree'" EXIT
    plant include/inferd/x.h '"base/report.h"'
    plant include/inferd/y.h '<liburing.h>'
    plant client/lib/a.c '"proto/session.h"'
    plant client/lib/b.c '<jansson.h>'
    plant client/inferctl/a.c '<hwloc.h>'
    plant client/inferctl/b.c '"../lib/conn.h"'
    plant daemon/base/a.c '"model/gguf.h"'
    plant daemon/proto/a.c '"sched/sched.h"'
    plant daemon/model/a.c '"kv/kv.h"'
    plant daemon/kv/a.c '"engine/engine.h"'
    plant daemon/sched/a.c '"proto/session.h"'
    plant daemon/sched/b.c '<liburing.h>'
    plant daemon/engine/a.c '"proto/session.h"'
    plant daemon/engine/b.c '"sched/sched.h"'
    plant daemon/main.c '"ref/quant.h"'
    plant daemon/metrics.c '"proto/session.h"'
    plant daemon/metrics.c '"engine/engine.h"'
    plant daemon/engine/c.c '"inferd/ring.h"'
    echo 'void f(void) { infer_ring_store(word, 1); }' >"$tree/daemon/dispatch.c"
    plant kernels/cpu/a.c '"base/checked.h"'
    plant kernels/cpu/b.c '"inferd/abi.h"'
    plant kernels/ref/a.c '<immintrin.h>'
    plant kernels/null/a.c '"cpu/a.h"'
    plant kernels/cuda/a.cu '"base/checked.h"'
    plant kernels/cuda/b.cuh '<vector>'
    # What is allowed must pass, or the law would be empty the other way round.
    plant daemon/dispatch_ok.c '"proto/session.h"'
    plant daemon/dispatch_ok.c '"engine/engine.h"'
    plant daemon/engine/ok.c '"model/plan.h"'
    plant kernels/cpu/ok.c '<immintrin.h>'
    plant kernels/cuda/ok.cu '<cuda_fp16.h>'
    plant kernels/cuda/ok.cu '"ref/blocks.h"'
    out=$(LAYERS_ROOT=$tree "$here/tests/layers.sh" 2>&1) && bad=1
    for want in include/inferd/x.h include/inferd/y.h client/lib/a.c client/lib/b.c \
        client/inferctl/a.c client/inferctl/b.c daemon/base/a.c daemon/proto/a.c daemon/model/a.c \
        daemon/kv/a.c daemon/sched/a.c daemon/sched/b.c daemon/engine/a.c daemon/engine/b.c \
        daemon/main.c daemon/metrics.c daemon/engine/c.c daemon/dispatch.c kernels/cpu/a.c kernels/cpu/b.c \
        kernels/ref/a.c kernels/null/a.c kernels/cuda/a.cu kernels/cuda/b.cuh; do
        grep -qF -- "$want" <<<"$out" || {
            echo "layers: self-test: the violation in $want was not found"
            bad=1
        }
    done
    for want in daemon/dispatch_ok.c daemon/engine/ok.c kernels/cpu/ok.c kernels/cuda/ok.cu; do
        ! grep -qF -- "$want" <<<"$out" || {
            echo "layers: self-test: $want is lawful, but: $(grep -F -- "$want" <<<"$out")"
            bad=1
        }
    done
    [ $bad = 0 ] && echo "ok"
    return $bad
}

if [ "${1:-}" = --self-test ]; then
    self_test
    exit
fi

check_sources
check_objects
check_sizes
if [ $violations -gt 0 ]; then
    echo "layers: $violations violations"
    exit 1
fi
echo ok
