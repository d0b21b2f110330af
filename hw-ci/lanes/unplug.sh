# what: cables pulled and devices gone in mid-traffic: link down and up, rdma link delete and back
# minutes: 8
# needs: rxe clovis
#
# Each time: no hang, no wrong byte, the error names the peer, and traffic works again once the device is back.
# shellcheck shell=bash

readonly DEVICE=rxe0 NETDEV=dummy0 ADDRESS=10.9.0.1

phase_run() {
    check 'a soft-RoCE device comes up' 60 soft_roce "$DEVICE" "$NETDEV" "$ADDRESS/24" || return
    # What needs none of our code: the kernel takes the device away under a running rping.
    check 'rdma link delete under rping' 90 deleted_under_rping
    check 'the device comes back' 60 soft_roce "$DEVICE" "$NETDEV" "$ADDRESS/24" || return
    copied clovis
    if ! verbs_works "$ADDRESS"; then
        skip 'unplugging under clovis' "$why_no_verbs"
        return
    fi
    selftest_server "$ADDRESS@o2ib" || return
    check 'link down and up under a selftest that goes on' 120 link_flaps
    selftest after-flap 60 "$ADDRESS@o2ib" --what write --bulk-size 64K --count 20 --verify full
    check 'rdma link delete under a selftest: it ends with the peer in its message' 90 deleted_under_selftest
    selftest_server_ends
    check 'the device comes back again' 60 soft_roce "$DEVICE" "$NETDEV" "$ADDRESS/24" || return
    selftest_server "$ADDRESS@o2ib" || return
    selftest after-delete 60 "$ADDRESS@o2ib" --what read --bulk-size 64K --count 20 --verify full
    selftest_server_ends
}

deleted_under_rping() {
    rping -s -a "$ADDRESS" -C 1000000 &
    local server=$! client
    until_true 20 sh -c 'rdma resource show cm_id | grep -q LISTEN' || return 1
    rping -c -a "$ADDRESS" -C 1000000 &
    client=$!
    until_true 20 sh -c 'rdma resource show qp | grep -q RTS' || return 1
    rdma link delete "$DEVICE"
    until_true 20 gone "$DEVICE" || return 1
    kill -KILL "$server" "$client"
    wait "$server" "$client"
    return 0
}

gone() { [ ! -e "/sys/class/infiniband/$1" ]; }

link_flaps() {
    clovis net selftest client "$ADDRESS@o2ib" --what write --bulk-size 64K --verify full --duration 25 --timeout 10 --keep-going --json >"$RESULTS/flap.json" &
    local client=$!
    until_true 20 sh -c 'rdma resource show qp | grep -q RTS' || return 1
    ip link set "$NETDEV" down
    # As long as a cable takes to be put back.
    sleep 5
    ip link set "$NETDEV" up
    wait "$client" && [ "$(of_selftest flap 'errors["wrong_content"] == 0 and operations > 0')" = True ]
}

deleted_under_selftest() {
    local text status=0
    clovis net selftest client "$ADDRESS@o2ib" --what write --bulk-size 64K --duration 60 --timeout 20 >client.log 2>&1 &
    local client=$!
    until_true 20 sh -c 'rdma resource show qp | grep -q RTS' || return 1
    rdma link delete "$DEVICE"
    wait "$client" || status=$?
    cat client.log
    [ "$status" = 1 ] && grep -q "$ADDRESS@o2ib" client.log
}
