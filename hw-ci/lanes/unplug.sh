# what: cables pulled and devices gone in mid-traffic: link down and up, rdma link delete and back
# minutes: 20
# needs: rxe clovis
#
# Each time: no hang, no wrong byte, the error names the peer and the cause, and traffic works again once the device is back, without a
# restart. A second device is there because librdmacm (rdma-core 44) gives a removed device back only while another one is left;
# soft-RoCE's removal waits for every process that has it open (hw-ci/README.md).
# shellcheck shell=bash

readonly DEVICE=rxe0 NETDEV=dummy0 ADDRESS=10.9.0.1

phase_run() {
    check 'a soft-RoCE device comes up' 60 soft_roce "$DEVICE" "$NETDEV" "$ADDRESS/24" || return
    # What needs none of our code: the kernel takes the device away under a running rping.
    check 'rdma link delete under rping' 90 deleted_under_rping
    check 'the device comes back' 60 soft_roce "$DEVICE" "$NETDEV" "$ADDRESS/24" || return
    check 'a second device' 60 soft_roce rxe1 dummy1 10.9.2.1/24
    copied clovis
    list_networks
    selftest_server "$ADDRESS@o2ib" --timeout 60 || return
    check 'link down and up under a selftest that goes on' 180 link_flaps
    selftest after-flap 90 "$ADDRESS@o2ib" --what write --bulk-size 64K --count 20 --verify full --timeout 60
    check 'rdma link delete under a selftest: the client ends and its message names peer and cause' 150 deleted_under_selftest
    check 'the kernel has let the device go, with the server alive' 60 until_true 50 gone "$DEVICE"
    check_that 'the server lives on' kill -0 "$selftest_server"
    check 'the device comes back again' 60 soft_roce "$DEVICE" "$NETDEV" "$ADDRESS/24" || return
    check 'the same server serves on it again' 120 serves_again
    selftest after-delete 90 "$ADDRESS@o2ib" --what read --bulk-size 64K --count 20 --verify full --timeout 60
    selftest_server_ends
    check_that 'no device resource is left behind' until_true 20 nothing_left
}

deleted_under_rping() {
    rping -s -a "$ADDRESS" -C 1000000 &
    local server=$! client
    until_true 20 sh -c 'rdma resource show cm_id | grep -q LISTEN' || return 1
    rping -c -a "$ADDRESS" -C 1000000 &
    client=$!
    until_true 20 connected || return 1
    rdma link delete "$DEVICE" &
    until_true 20 gone "$DEVICE" || true
    # They may have heard of it and ended by themselves.
    kill -KILL "$server" "$client" || true
    wait "$server" "$client" || true
    until_true 20 gone "$DEVICE"
}

# The management pair of each port is ready to send from its start: one of a connection is meant.
connected() { rdma resource show qp | grep 'type RC' | grep -q 'state RTS'; }

gone() { [ ! -e "/sys/class/infiniband/$1" ] && ! rdma link | grep -q "link $1/"; }

# Five seconds without a link, as long as a cable takes to be put back, counted from when the kernel has taken it down.
link_flaps() {
    clovis net selftest client "$ADDRESS@o2ib" --what write --bulk-size 64K --verify full --duration 30 --timeout 10 --keep-going --json >"$RESULTS/flap.json" &
    local client=$!
    until_true 60 connected || return 1
    ip link set "$NETDEV" down
    sleep 5
    ip link set "$NETDEV" up
    wait "$client" && [ "$(of_selftest flap 'errors["wrong_content"] == 0 and operations > 0')" = True ]
}

deleted_under_selftest() {
    local status=0
    clovis net selftest client "$ADDRESS@o2ib" --what write --bulk-size 64K --duration 90 --timeout 20 >client.log 2>&1 &
    local client=$!
    until_true 60 connected || return 1
    # In the background: it returns when the last process has closed the device.
    rdma link delete "$DEVICE" &
    wait "$client" || status=$?
    cat client.log
    [ "$status" = 1 ] && grep -q "$ADDRESS@o2ib" client.log && grep -qE 'device was removed|connection was lost|is gone|cannot be reached' client.log
}

# It looks for its device once a second; a client that comes earlier is refused.
serves_again() {
    until_true 100 clovis net selftest client "$ADDRESS@o2ib" --what ping --count 1 --timeout 5
}
