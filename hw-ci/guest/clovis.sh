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

# verbs_works ADDRESS: whether this clovis can use the device of an address; else the reason is in $why_no_verbs.
verbs_works() {
    local listed
    listed=$(clovis net list --json 2>&1) || { why_no_verbs="clovis net list: $listed"; return 1; }
    printf '%s\n' "$listed" >"$RESULTS/net-list.$PHASE.$MACHINE.txt"
    why_no_verbs=$(python3 -c '
import json, sys
rdma = json.load(sys.stdin)["rdma"]
print("" if sys.argv[1] in json.dumps(rdma["devices"]) else rdma.get("why_none") or "no device has the address " + sys.argv[1])
' "$1" <<<"$listed")
    [ -z "$why_no_verbs" ]
}

# selftest_server ENDPOINT [OPTIONS...]: in the background; its process id in $selftest_server.
selftest_server() {
    clovis net selftest server "$@" >"$RESULTS/selftest-server.$PHASE.$MACHINE.log" 2>&1 &
    selftest_server=$!
    until_true 60 grep -q 'selftest serves at' "$RESULTS/selftest-server.$PHASE.$MACHINE.log" || {
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
