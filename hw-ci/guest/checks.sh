# Counting inside a guest. A check is one line in /run/results/checks: `ok NAME`, `FAILED NAME`, `skip NAME: REASON`.
# Figures are lines `NAME<tab>VALUE<tab>UNIT` in /run/results/figures. Sourced by run; needs RESULTS.
# shellcheck shell=bash

check_number=0

# $1 verdict, the rest: the name.
record() {
    local verdict=$1
    shift
    printf '%s %s\n' "$verdict" "$*" >>"$RESULTS/checks"
    printf '%s %s\n' "$verdict" "$*"
}

skip() { record skip "$1: $2"; }

# $1 name, $2 value, $3 unit
figure() { printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$RESULTS/figures"; }

# check NAME SECONDS COMMAND...: passed if it ends well in time. Its output is kept in a log and in $output.
check() {
    local name=$1 seconds=$2 log status=0
    shift 2
    check_number=$((check_number + 1))
    log="$RESULTS/$PHASE.$MACHINE.$check_number.log"
    printf '+ %s\n' "$*" >"$log"
    if [ "$(type -t "$1")" = function ]; then
        # A function cannot be given to timeout: it runs in a shell of its own, which is.
        ( set -e; "$@" ) >>"$log" 2>&1 &
        local child=$! waited=0
        while kill -0 "$child" 2>/dev/null && [ "$waited" -lt $((seconds * 5)) ]; do
            sleep 0.2
            waited=$((waited + 1))
        done
        if kill -0 "$child" 2>/dev/null; then
            kill -KILL "$child"
            status=124
        fi
        local ended=0
        wait "$child" || ended=$?
        [ "$status" = 124 ] || status=$ended
    else
        timeout --kill-after=5 "$seconds" "$@" >>"$log" 2>&1 || status=$?
    fi
    output=$(tail -n +2 "$log")
    case $status in
    0) record ok "$name" ;;
    124 | 137) record FAILED "$name: still running after $seconds s (${log##*/})" ;;
    *) record FAILED "$name: status $status (${log##*/}): $(tail -n 1 "$log" | cut -c 1-200)" ;;
    esac
    if [ "$status" != 0 ]; then
        tail -n 20 "$log"
    fi
    return "$status"
}

# check_that NAME COMMAND...: a quick condition, such as a comparison.
check_that() {
    local name=$1
    shift
    if "$@"; then record ok "$name"; else record FAILED "$name: $*"; return 1; fi
}

# rust_tests NAME SECONDS BINARY [FILTER...]: counts the tests of a test binary one by one. Fails if none ran.
rust_tests() {
    local name=$1 seconds=$2 binary=$3 log status=0
    shift 3
    check_number=$((check_number + 1))
    log="$RESULTS/$PHASE.$MACHINE.$check_number.log"
    timeout --kill-after=5 "$seconds" "$binary" --test-threads=1 "$@" >"$log" 2>&1 || status=$?
    sed -n 's/^test \(.*\) \.\.\. ok$/ok '"$name"': \1/p; s/^test \(.*\) \.\.\. FAILED$/FAILED '"$name"': \1/p' "$log" >>"$RESULTS/checks"
    grep -E '^test (result:|.* FAILED$)' "$log"
    if [ "$status" != 0 ] && ! grep -q '^test .* FAILED$' "$log"; then
        record FAILED "$name: status $status (${log##*/}): $(tail -n 1 "$log" | cut -c 1-200)"
    elif ! grep -q '^test .* \.\.\. ok$' "$log"; then
        record FAILED "$name: no test ran (${log##*/})"
    fi
    if [ "$status" != 0 ]; then
        grep -A 20 -E '^(failures:|thread .* panicked)' "$log" | head -n 60
    fi
    return "$status"
}

# until_true SECONDS COMMAND...: waits for a condition, looking five times a second.
until_true() {
    local looks=$(($1 * 5)) look
    shift
    for ((look = 0; look < looks; look++)); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.2
    done
    "$@" >/dev/null 2>&1
}

# Two machines meet: each calls `meet NAME SECONDS`, and both go on when both have come.
meet() {
    local number
    touch "$RESULTS/at.$1.$MACHINE"
    for ((number = 1; number <= MACHINES; number++)); do
        until_true "$2" test -e "$RESULTS/at.$1.$number" || {
            record FAILED "machine $number came to '$1' within $2 s"
            return 1
        }
    done
}
