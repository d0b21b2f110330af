#!/usr/bin/env bash
# ./dev bench ffi [PAIRS]: what the C path costs over the Rust client.
#
# Instructions: callgrind counts whole programs that do COUNT and 5 COUNT reads of 4 KiB; the difference over the difference of counts is an
# operation's share, and start and end cancel. Allocations: calls of malloc, calloc, posix_memalign and aligned_alloc, in the same way. Three
# rounds; each figure is the median, with the lowest and the highest.
#
# Both programs are one foreign thread and one client thread (a locality with the Rust client and nothing else), against the same servers:
#   ffi/bench/ops.c                    obj_op, op_launch, op_wait: one operation, used again and again
#   tests/examples/foreign_thread.rs   a letter to the client's thread, a wait for its end: one Arc, used again and again
# In both the foreign thread writes a letter into the mailbox of the client's thread, that one wakes (eventfd), a task calls
# `Object::read`, copies the 4 KiB to where the foreign thread wants them, and wakes it (futex) after the lock is free. In Rust the future of `block_on`
# takes the letter and spawns the task; in C a task that has waited for the letter is there (ffi/src/workers.rs), which is a turn of the client's
# thread and two allocations less. So what is left is that, against what the C interface does: arguments checked, states, times of states,
# callbacks, cancelling, several extents and segments, panics kept from C.
# Spinning is taken out by a crowd of localities (CLOVIS_SPIN=off), since idle turns are no work; and both programs pause for 2 ms before each
# operation, so that each finds the client's thread asleep. Without the pause a letter comes before or behind an idle turn (2,400 instructions) as the
# threads happen to run under valgrind: 4.0 turns for an operation in one program and 3.3 in the other, which is no work of either.
#
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
    c_program=("$scratch/ops" 127.0.0.1@tcp:12345:44:302 "$ha")
    pause_us=2000
    rust_program=("$target/release/examples/foreign_thread")
    for ((round = 1; round <= 3; round++)); do
        read -r c_few c_few_allocations < <(count c1 "${c_program[@]}" $few $pause_us)
        read -r c_many c_many_allocations < <(count c2 "${c_program[@]}" $many $pause_us)
        read -r rust_few rust_few_allocations < <(count r1 "${rust_program[@]}" $few $pause_us)
        read -r rust_many rust_many_allocations < <(count r2 "${rust_program[@]}" $many $pause_us)
        echo $((c_many - c_few)) $((rust_many - rust_few)) $((c_many_allocations - c_few_allocations)) \
            $((rust_many_allocations - rust_few_allocations))
    done > "$scratch/rounds"
    unset CLOVIS_SPIN
    awk -v n=$((many - few)) '
        function sorted(of,  i, j, t) {
            for (i = 1; i <= NR; i++) for (j = i + 1; j <= NR; j++) if (of[j] < of[i]) { t = of[i]; of[i] = of[j]; of[j] = t }
        }
        function figure(of, form) {
            sorted(of)
            return sprintf(form " (" form " to " form ")", of[int((NR + 1) / 2)] / n, of[1] / n, of[NR] / n)
        }
        { c[NR] = $1; r[NR] = $2; i[NR] = $1 - $2; ca[NR] = $3; ra[NR] = $4; a[NR] = $3 - $4 }
        END {
            printf "instructions per operation, median of %d: C %s, Rust from a foreign thread %s, added %s (bound: 2000)\n", NR, figure(c, "%.0f"), figure(r, "%.0f"), figure(i, "%.0f")
            printf "allocations per operation, median of %d: C %s, Rust from a foreign thread %s, added %s (bound: 0)\n", NR, figure(ca, "%.2f"), figure(ra, "%.2f"), figure(a, "%.2f")
        }' "$scratch/rounds"
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
