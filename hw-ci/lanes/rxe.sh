# what: the verbs backend on soft-RoCE: devices, perftest, conformance, selftest beside perftest
# minutes: 25
# needs: rxe clovis
# must: debian-12
#
# First what owes nothing to us (the kernel's device, perftest, rping): if that fails, nothing below means anything. Then the edge to
# verbs, the transfer machine's conformance suite, and the selftest beside perftest at the same depth.
# shellcheck shell=bash

readonly DEVICE=rxe0 ADDRESS=10.9.0.1

phase_run() {
    check 'a soft-RoCE device comes up' 60 soft_roce "$DEVICE" dummy0 "$ADDRESS/24" || return
    check 'ibv_devinfo shows an active port' 20 sh -c "ibv_devinfo -d $DEVICE | grep -q PORT_ACTIVE"
    local output
    check 'ib_write_bw on it' 60 perftest ib_write_bw "$DEVICE" "$ADDRESS" 50 -s 65536 -n 200
    check 'rping over rdma-cm' 60 rping_both "$ADDRESS"

    export CLOVIS_REQUIRE_RDMA=1 CLOVIS_RDMA_ADDRESS=$ADDRESS
    copied verbs-sys.device
    rust_tests 'verbs edge' 180 verbs-sys.device
    conformance 'conformance' 600
    copied clovis
    list_networks
    selftest_server "$ADDRESS@o2ib" || return
    steady write-1m write "$ADDRESS" --bulk-size 1M --concurrency 4 --duration 5
    steady read-1m read "$ADDRESS" --bulk-size 1M --concurrency 4 --duration 5
    selftest verified 120 "$ADDRESS@o2ib" --what write --bulk-size 256K --concurrency 4 --count 100 --verify full
    selftest verified-read 120 "$ADDRESS@o2ib" --what read --bulk-size 256K --concurrency 4 --count 100 --verify full
    selftest_server_ends
    beside_perftest
    selftest_server "$ADDRESS@o2ib" --waiting polling || return
    polling_calls_nothing ping --what ping
    polling_calls_nothing write --what write --bulk-size 64K
    selftest_server_ends
}

# Both sides poll, ours and perftest's, and take turns: medians of PAIRS runs. The ratio is ours by perftest's.
beside_perftest() {
    local -r PAIRS=5
    beside write-1m rate ib_read_bw 4 '-s 1048576 -n 50 -t 4' --what write --bulk-size 1M --concurrency 4 --count 50
    beside read-1m rate ib_write_bw 4 '-s 1048576 -n 50 -t 4' --what read --bulk-size 1M --concurrency 4 --count 50
    # perftest's figure is one way; a request and its reply are two.
    beside ping round_trip ib_send_lat 5 '-s 64 -n 500' --what ping --concurrency 1 --count 500
    beside ping-16 messages ib_send_bw 5 '-s 64 -n 4000 -l 16 -t 128' --what ping --concurrency 16 --count 2000
}

# beside NAME VALUE PERFTEST COLUMN 'PERFTEST OPTIONS' SELFTEST OPTIONS...
beside() {
    local name=$1 value=$2 program=$3 column=$4 options=$5 pair peer
    local expression peer_expression unit
    shift 5
    case $value in
    rate) expression='bytes_per_second / 1e6' peer_expression='v * 1.048576' unit=MB/s ;;
    round_trip) expression='latency_us["p50"]' peer_expression='v * 2' unit=us ;;
    messages) expression='operations_per_second * 2 / 1e6' peer_expression='v' unit=Mmsg/s ;;
    esac
    : >"$TMPDIR/pairs"
    for ((pair = 0; pair < PAIRS; pair++)); do
        # Our server leaves with its client: nobody else polls while perftest does.
        selftest_server "$ADDRESS@o2ib" --waiting polling --once || return
        selftest "beside-$name" 90 "$ADDRESS@o2ib" "$@" --waiting polling || return
        wait "$selftest_server"
        peer_sample || return
        printf '%s %s\n' "$(of_selftest "beside-$name" "$expression")" "$peer" >>"$TMPDIR/pairs"
    done
    local medians
    medians=$(python3 -c '
import statistics, sys
pairs = [[float(word) for word in line.split()] for line in open(sys.argv[1])]
pairs = [(ours, eval(sys.argv[2], {"v": peer})) for ours, peer in pairs]
print(*("%.4g" % statistics.median(values) for values in (*zip(*pairs), [ours / peer for ours, peer in pairs])))' "$TMPDIR/pairs" "$peer_expression")
    figure "beside.$name.ours" "${medians%% *}" "$unit"
    figure "beside.$name.$program" "$(cut -d ' ' -f 2 <<<"$medians")" "$unit"
    figure "beside.$name.ratio" "${medians##* }" ''
}

# perftest's figure in $peer. It times by the processor's cycle counter, whose rate it cannot always find in an emulated machine: then it
# says `inf`, or a rate of 0, and is asked again.
peer_sample() {
    local try output
    for ((try = 0; try < 8; try++)); do
        # shellcheck disable=SC2086
        check "$program beside it" 90 perftest "$program" "$DEVICE" "$ADDRESS" 80 $options || return
        peer=$(perftest_column "$column" <<<"$output")
        [[ $peer =~ ^[0-9.]*[1-9][0-9.]*$ ]] && return
    done
    record FAILED "$program gives a figure within $try tries: $peer"
    return 1
}

# polling_calls_nothing NAME OPTIONS...: while a client polls, its system calls are the provider's doorbells and one look at the
# connection's events per millisecond. strace says so, from outside; reading the clock is left out, which a virtual machine's vDSO cannot.
polling_calls_nothing() {
    local name=$1 trace="$RESULTS/strace.$1"
    shift
    check "selftest under strace, $name" 120 strace -f --seccomp-bpf -e 'trace=!clock_gettime' -o "$trace" \
        clovis net selftest client "$ADDRESS@o2ib" "$@" --concurrency 4 --count 500 --waiting polling --json || return
    # The clock of the run starts and ends with a look at the CPU time.
    python3 - "$trace" >"$RESULTS/calls.$name.json" <<'PYTHON'
import collections, json, re, sys

calls = [match.groups() for match in (re.match(r"\d+ +(\w+)\((\d*)", line) for line in open(sys.argv[1])) if match]
ends = [index for index, (call, _) in enumerate(calls) if call == "getrusage"]
inside = collections.Counter(call for call, _ in calls[ends[0] + 1 : ends[-1]])
print(json.dumps({"calls": inside, "others": sum(n for call, n in inside.items() if call not in ("write", "epoll_wait", "getrusage"))}))
PYTHON
    selftest_holds "calls.$name" 'a polling client calls the kernel for doorbells and looks only' '0 <= others <= 8 and calls["write"] > 100'
}
