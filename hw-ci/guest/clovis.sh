# Our binaries in a guest. Sourced by run; needs BINARIES, the host's folder.
# shellcheck shell=bash

# copied NAME...: copies binaries into memory, since 9p reads every page again, and puts them on the PATH.
copied() {
    local name
    mkdir -p /run/work/bin
    for name in "$@"; do
        [ -x "/run/work/bin/$name" ] || cp -- "$BINARIES/$name" /run/work/bin/ || return 1
    done
    export PATH="/run/work/bin:$PATH"
}

# What clovis says about the networks here, for the reader of the results.
list_networks() { clovis net list --json >"$RESULTS/net-list.$PHASE.$MACHINE.json" 2>&1 || true; }

# conformance NAME SECONDS [FILTER...]: the suite of verbs-net's backends over the device of $CLOVIS_RDMA_ADDRESS, with a shared secret and with
# certificates, in the clear and encrypted. No device is a failure.
conformance() {
    local name=$1 seconds=$2
    shift 2
    [ $# -gt 0 ] || set -- verbs:: verbs_secured:: verbs_sealed::
    copied verbs-net.lib
    CLOVIS_REQUIRE_RDMA=1 rust_tests "$name" "$seconds" verbs-net.lib "$@"
}

# selftest_server ENDPOINT [OPTIONS...]: in the background; its process id in $selftest_server.
selftest_server() {
    clovis net selftest server "$@" >"$RESULTS/selftest-server.$PHASE.$MACHINE.log" 2>&1 &
    selftest_server=$!
    until_true 120 grep -q 'selftest serves at' "$RESULTS/selftest-server.$PHASE.$MACHINE.log" || {
        record FAILED "the selftest server serves: $(tail -n 1 "$RESULTS/selftest-server.$PHASE.$MACHINE.log")"
        return 1
    }
}

selftest_server_ends() {
    kill "$selftest_server" 2>/dev/null
    wait "$selftest_server"
}

# selftest NAME SECONDS ENDPOINT OPTIONS...: one client run; its JSON in $RESULTS/NAME.json.
selftest() {
    local name=$1 seconds=$2
    shift 2
    check "selftest $name" "$seconds" sh -c 'file=$1; shift; "$@" >"$file"' _ "$RESULTS/$name.json" clovis net selftest client "$@" --json
}

# of_selftest NAME EXPRESSION: a value of its JSON, as in of_selftest x 'client["copied_bytes"]'.
of_selftest() {
    python3 -c 'import json, sys; print(eval(sys.argv[2], {"__builtins__": {}}, json.load(open(sys.argv[1]))))' "$RESULTS/$1.json" "$2"
}

# selftest_holds NAME WHAT EXPRESSION: a condition on its JSON.
selftest_holds() { check_that "$2 ($1: $3)" [ "$(of_selftest "$1" "$3" 2>&1)" = True ]; }

# steady NAME WHAT ADDRESS OPTIONS...: a bulk run after its warm-up: nothing is registered and no bulk byte is copied, on both sides.
steady() {
    local name=$1 what=$2 address=$3 side
    shift 3
    selftest "$name" 120 "$address@o2ib" --what "$what" "$@" || return
    figure "$name" "$(of_selftest "$name" 'bytes_per_second / 1e6')" MB/s
    for side in client server_side; do
        selftest_holds "$name" "no registration in steady state, $side" "$side[\"registrations\"] == 0"
        # What is copied are the messages, as they are built; the end of the run brings a few of its own.
        selftest_holds "$name" "no bulk byte is copied, $side" "$side[\"copied_bytes\"] <= (operations + 8) * message_bytes"
        for count in doorbells work_requests completions syscalls; do
            figure "$name.$side.$count" "$(of_selftest "$name" "$side.get(\"${count}_per_operation\")")" /op
        done
        figure "$name.$side.cpu" "$(of_selftest "$name" "$side[\"cpu_us_per_operation\"]")" us/op
    done
}
