# what: the verbs backend on soft-RoCE: devices, perftest, conformance, selftest beside perftest
# minutes: 9
# needs: rxe clovis
# must: debian-12
# short: yes
#
# First what owes nothing to us (the kernel's device, perftest, rping): if that fails, nothing below means anything. Then the edge to
# verbs, the transfer machine's conformance suite, and the selftest beside perftest at the same depth.
# shellcheck shell=bash

readonly DEVICE=rxe0 ADDRESS=10.9.0.1

phase_run() {
    check 'a soft-RoCE device comes up' 60 soft_roce "$DEVICE" dummy0 "$ADDRESS/24" || return
    check 'ibv_devinfo shows an active port' 20 sh -c "ibv_devinfo -d $DEVICE | grep -q PORT_ACTIVE"
    local output
    if check 'ib_write_bw on it' 60 perftest ib_write_bw "$DEVICE" "$ADDRESS" 50 -s 65536 -n 200; then
        figure ib_write_bw.65536 "$(perftest_column 4 <<<"$output")" MB/s
    fi
    check 'rping over rdma-cm' 60 rping_both "$ADDRESS"

    export CLOVIS_REQUIRE_RDMA=1 CLOVIS_RDMA_ADDRESS=$ADDRESS
    if [ -x "$BINARIES/verbs-sys.device" ]; then
        copied verbs-sys.device
        rust_tests 'verbs edge' 120 verbs-sys.device
    else
        skip 'the edge to verbs' 'this tree has no package verbs-sys'
    fi
    copied clovis
    if ! verbs_works "$ADDRESS"; then
        skip 'conformance and selftest over verbs' "$why_no_verbs"
        return
    fi
    copied verbs-net.lib
    rust_tests 'conformance' 180 verbs-net.lib verbs
    selftest_server "$ADDRESS@o2ib" || return
    beside ib_read_bw write 4
    beside ib_write_bw read 4
    if selftest ping 40 "$ADDRESS@o2ib" --what ping --concurrency 1 --duration 3; then
        local latency
        check 'ib_send_lat beside it' 40 perftest ib_send_lat "$DEVICE" "$ADDRESS" 30 -s 64 -n 200
        latency=$(perftest_column 6 <<<"$output")
        figure ib_send_lat.64 "$latency" us
        figure ping.p50 "$(of_selftest ping 'latency_us["p50"]')" us
    fi
    selftest verified 60 "$ADDRESS@o2ib" --what write --bulk-size 256K --concurrency 4 --count 100 --verify full
    selftest verified-read 60 "$ADDRESS@o2ib" --what read --bulk-size 256K --concurrency 4 --count 100 --verify full
    selftest_server_ends
}

# beside PERFTEST WHAT CONCURRENCY: 1 MiB at the same depth, and the counts that have to be zero.
beside() {
    local name=$2-1m
    selftest "$name" 60 "$ADDRESS@o2ib" --what "$2" --bulk-size 1M --concurrency "$3" --duration 5 || return
    figure "$name" "$(of_selftest "$name" 'bytes_per_second / 1e6')" MB/s
    if check "$1 beside it" 60 perftest "$1" "$DEVICE" "$ADDRESS" 50 -s 1048576 -n 20 -t "$3"; then
        figure "$1.1m" "$(perftest_column 4 <<<"$output")" MB/s
    fi
    local side
    for side in client server_side; do
        selftest_holds "$name" "no registration in steady state, $side" "$side[\"registrations\"] == 0"
        # Messages are small; bulk would be 1048576.
        selftest_holds "$name" "bulk is not copied, $side" "$side[\"copied_bytes_per_operation\"] < 1024"
        figure "$name.$side.doorbells" "$(of_selftest "$name" "$side[\"doorbells_per_operation\"]")" /op
        figure "$name.$side.syscalls" "$(of_selftest "$name" "$side[\"syscalls_per_operation\"]")" /op
        figure "$name.$side.cpu" "$(of_selftest "$name" "$side[\"cpu_us_per_operation\"]")" us/op
    done
}

rping_both() {
    local server
    rping -s -a "$1" -C 10 &
    server=$!
    until_true 20 sh -c 'rdma resource show cm_id | grep -q LISTEN' || return 1
    rping -c -a "$1" -C 10 -v && wait "$server"
}
