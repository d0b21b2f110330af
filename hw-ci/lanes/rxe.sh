# what: the verbs backend on soft-RoCE: devices, perftest, conformance, selftest beside perftest
# minutes: 20
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
    conformance 'conformance' 300
    copied clovis
    list_networks
    selftest_server "$ADDRESS@o2ib" || return
    steady write-1m write "$ADDRESS" --bulk-size 1M --concurrency 4 --duration 5
    beside ib_read_bw 1048576 -n 50 -t 4
    steady read-1m read "$ADDRESS" --bulk-size 1M --concurrency 4 --duration 5
    beside ib_write_bw 1048576 -n 50 -t 4
    if selftest ping 60 "$ADDRESS@o2ib" --what ping --concurrency 1 --duration 3; then
        figure ping.p50 "$(of_selftest ping 'latency_us["p50"]')" us
        if check 'ib_send_lat beside it' 60 perftest ib_send_lat "$DEVICE" "$ADDRESS" 50 -s 64 -n 500; then
            figure ib_send_lat.64 "$(perftest_column 5 <<<"$output")" us
        fi
    fi
    if selftest ping-16 60 "$ADDRESS@o2ib" --what ping --concurrency 16 --duration 3; then
        figure ping-16 "$(of_selftest ping-16 'operations_per_second')" /s
        if check 'ib_send_bw -l 16 beside it' 60 perftest ib_send_bw "$DEVICE" "$ADDRESS" 50 -s 64 -n 4000 -l 16 -t 128; then
            figure ib_send_bw-l16.64 "$(perftest_column 5 <<<"$output")" Mmsg/s
        fi
    fi
    selftest verified 120 "$ADDRESS@o2ib" --what write --bulk-size 256K --concurrency 4 --count 100 --verify full
    selftest verified-read 120 "$ADDRESS@o2ib" --what read --bulk-size 256K --concurrency 4 --count 100 --verify full
    selftest_server_ends
}

# beside PERFTEST BYTES OPTIONS...: the same size at the same depth.
beside() {
    local program=$1 bytes=$2
    shift 2
    if check "$program beside it" 90 perftest "$program" "$DEVICE" "$ADDRESS" 80 -s "$bytes" "$@"; then
        figure "$program.$bytes" "$(perftest_column 4 <<<"$output")" MB/s
    fi
}
