#!/usr/bin/env bash
# ./dev bench ffi [PAIRS]: what the C path costs over the Rust client.
#
# Instructions: callgrind counts whole programs that do COUNT and 5 COUNT reads of 4 KiB; the difference over the difference of counts is an
# operation's share, and start and end cancel. Both programs drive one client thread from a foreign one; spinning is taken out by
# a crowd of localities (CLOVIS_SPIN=off), since idle turns are no work. Allocations: calls of malloc, calloc and posix_memalign, in the same way.
# Copies: c0cp of 1 GiB and clovis cp of the same file into the same cluster, in turns; the median of the ratios.
set -euo pipefail
pairs=${1:-11}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
cd -- "$here"
scratch=$(mktemp -d)
stop() { "$scratch/p/bin/clovis" cluster stop --dir "$scratch/c" >/dev/null 2>&1 || true; rm -rf -- "$scratch"; }
trap stop EXIT
./dev install "$scratch/p" >&2
cargo build --release --quiet -p clovis-tests --example foreign_thread
target=$(cargo metadata --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
export CLOVIS_CONFIG="$scratch/c/clovis.toml" LD_LIBRARY_PATH="$scratch/p/lib"
"$scratch/p/bin/clovis" cluster start --dir "$scratch/c" --device-size "${CLOVIS_BENCH_DEVICE:-1G}" >/dev/null
ha=$(sed -n 's/^endpoint *= *"\(.*\)"/\1/p' "$CLOVIS_CONFIG" | head -n 1)
flags=(-l 127.0.0.1@tcp:12345:44:301 -H "$ha" -p 0x7000000000000001:0 -P 0x7200000000000000:0)

if command -v valgrind >/dev/null 2>&1; then
    "${CC:-cc}" -O2 -g "-I$scratch/p/include/mero" ffi/bench/ops.c -o "$scratch/ops" "-L$scratch/p/lib" -lclovis
    head -c 65536 /dev/urandom > "$scratch/block"
    "$scratch/p/bin/clovis" cp "$scratch/block" 0xbe9c:1 >/dev/null 2>&1
    # $1: name, the rest: the program. Prints instructions and allocations of one run.
    count() {
        local out="$scratch/callgrind.$1"
        shift
        valgrind --quiet --tool=callgrind --callgrind-out-file="$out" "$@" >/dev/null 2>"$scratch/valgrind.log" ||
            { cat "$scratch/valgrind.log" >&2; exit 1; }
        awk '
            /^summary:/ { instructions = $2 }
            # Names are given once as (N) NAME, later as (N); a line calls=COUNT follows the callee.
            /^cfn=/ { split($0, part, "[()]"); id = part[2]; if ($2 != "") name[id] = $2; callee = name[id] }
            /^fn=/ { split($0, part, "[()]"); if ($2 != "") name[part[2]] = $2 }
            /^calls=/ { split($1, part, "="); if (callee ~ /^(malloc|calloc|posix_memalign|aligned_alloc)$/) allocations += part[2] }
            END { print instructions, allocations + 0 }' "$out"
    }
    few=300 many=1500
    export CLOVIS_SPIN=off
    read -r c_few c_few_allocations < <(count c1 "$scratch/ops" 127.0.0.1@tcp:12345:44:302 "$ha" $few)
    read -r c_many c_many_allocations < <(count c2 "$scratch/ops" 127.0.0.1@tcp:12345:44:302 "$ha" $many)
    read -r rust_few rust_few_allocations < <(count r1 "$target/release/examples/foreign_thread" $few)
    read -r rust_many rust_many_allocations < <(count r2 "$target/release/examples/foreign_thread" $many)
    unset CLOVIS_SPIN
    awk -v n=$((many - few)) -v c=$((c_many - c_few)) -v r=$((rust_many - rust_few)) -v ca=$((c_many_allocations - c_few_allocations)) \
        -v ra=$((rust_many_allocations - rust_few_allocations)) 'BEGIN {
        printf "instructions per operation: C %.0f, Rust from a foreign thread %.0f, added %.0f (bound: 2000)\n", c / n, r / n, (c - r) / n
        printf "allocations per operation:  C %.2f, Rust from a foreign thread %.2f, added %.2f (bound: 0)\n", ca / n, ra / n, (ca - ra) / n }'
else
    echo "instructions: skipped, as there is no valgrind on this machine"
fi

[ "$pairs" -gt 0 ] || exit 0
bytes=${CLOVIS_BENCH_BYTES:-$((1 << 30))}
head -c "$bytes" /dev/urandom > "$scratch/file"
seconds() { local from; from=$(date +%s%N); "$@" >/dev/null 2>&1 || { echo "bench: failed: $*" >&2; exit 1; }; echo $(($(date +%s%N) - from)); }
for ((pair = 1; pair <= pairs; pair++)); do
    # Taking turns at going first.
    if ((pair % 2)); then
        c=$(seconds "$scratch/p/bin/c0cp" "${flags[@]}" -o 77:1 -s 1m -c $((bytes >> 20)) "$scratch/file")
        rust=$(seconds "$scratch/p/bin/clovis" cp "$scratch/file" 77:2)
    else
        rust=$(seconds "$scratch/p/bin/clovis" cp "$scratch/file" 77:2)
        c=$(seconds "$scratch/p/bin/c0cp" "${flags[@]}" -o 77:1 -s 1m -c $((bytes >> 20)) "$scratch/file")
    fi
    "$scratch/p/bin/clovis" rm 77:1 77:2
    echo "$c $rust"
done | awk '{ c[NR] = $1; r[NR] = $2; ratio[NR] = $1 / $2 }
    END {
        for (i = 1; i <= NR; i++) for (j = i + 1; j <= NR; j++) if (ratio[j] < ratio[i]) { t = ratio[i]; ratio[i] = ratio[j]; ratio[j] = t }
        for (i = 1; i <= NR; i++) { sc += c[i]; sr += r[i] }
        printf "c0cp over clovis cp, %d pairs: median %.3f, lowest %.3f, highest %.3f (bound: 1.1); means %.2f s and %.2f s\n", NR, ratio[int((NR + 1) / 2)], ratio[1], ratio[NR], sc / NR / 1e9, sr / NR / 1e9 }'
