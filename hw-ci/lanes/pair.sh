# what: two machines over a lossy link: rping, perftest, selftest with full verification at 0, 1 and 5 % loss
# minutes: 25
# needs: rxe clovis
# machines: 2
#
# The link is a socket between two QEMUs; loss is netem on both ends. Reliable connections repair it: nothing may be lost or wrong.
# Memory windows are left out where packets are lost: a retransmission makes soft-RoCE bind a window again that it has bound (Linux 6.1,
# rxe_requester), and the connection fails. So with windows the connections come back, and content and counts still have to be right.
# shellcheck shell=bash

readonly DEVICE=rxe0 LINK=link0

phase_run() {
    local own=10.9.1.$MACHINE other=10.9.1.$((3 - MACHINE))
    check "machine $MACHINE has a link" 40 link_up || { touch "$RESULTS/at.given-up.$MACHINE"; return; }
    check "machine $MACHINE: a soft-RoCE device on the link" 60 soft_roce "$DEVICE" "$LINK" "$own/24" || return
    meet devices 300 || return
    [ "$MACHINE" = 1 ] || check 'the machines see each other' 60 until_true 50 ping -c 1 -W 1 "$other"
    local rate
    copied clovis
    list_networks
    for rate in 0 1 5; do
        check "machine $MACHINE: netem loss $rate %" 10 lossy "$rate"
        meet "loss-$rate" 200 || return
        if [ "$MACHINE" = 1 ]; then
            rping -s -a "$own" -C 20 >"$RESULTS/rping-server.$rate.log" 2>&1 &
            until_true 20 sh -c 'rdma resource show cm_id | grep -q LISTEN'
            meet "rping-$rate" 100
            meet "rping-$rate-done" 150
            kill %% 2>/dev/null
            wait
        else
            meet "rping-$rate" 100
            check "rping at $rate % loss" 120 rping -c -a "$other" -C 20
            meet "rping-$rate-done" 150
        fi
        over_clovis "$rate" "$own" "$other"
        figure "loss-$rate.retries.$MACHINE" "$(cat "/sys/class/infiniband/$DEVICE/ports/1/hw_counters/completer_retry_err")" ''
        figure "loss-$rate.out_of_sequence.$MACHINE" "$(cat "/sys/class/infiniband/$DEVICE/ports/1/hw_counters/out_of_seq_request")" ''
    done
}

# $1 loss, $2 own address, $3 the other's
over_clovis() {
    if [ "$MACHINE" = 1 ]; then
        selftest_server "$2@o2ib" --timeout 120
        meet "selftest-$1" 150
        meet "selftest-$1-done" 800
        selftest_server_ends
        return
    fi
    meet "selftest-$1" 150
    local what
    [ "$1" = 0 ] || export CLOVIS_RDMA_WITHOUT=windows
    for what in write read; do
        selftest "$what-loss-$1" 180 "$3@o2ib" --what "$what" --bulk-size 64K --concurrency 4 --count 60 --verify full --timeout 120 &&
            figure "$what-loss-$1" "$(of_selftest "$what-loss-$1" 'bytes_per_second / 1e6')" MB/s
    done
    selftest "ping-loss-$1" 150 "$3@o2ib" --what ping --concurrency 4 --count 200 --timeout 120
    unset CLOVIS_RDMA_WITHOUT
    if [ "$1" != 0 ] && selftest "windows-loss-$1" 180 "$3@o2ib" --what write --bulk-size 64K --concurrency 4 --count 60 --verify full --timeout 120 --keep-going; then
        selftest_holds "windows-loss-$1" 'with windows connections come back and no byte is wrong' 'errors["wrong_content"] == 0 and operations >= 30'
        figure "windows-loss-$1.peer_lost" "$(of_selftest "windows-loss-$1" 'errors["peer_lost"]')" ''
    fi
    meet "selftest-$1-done" 800
}

# The one PCI card is the link.
link_up() {
    local name
    modprobe virtio_net
    until_true 20 sh -c 'ls -d /sys/bus/virtio/drivers/virtio_net/virtio*/net/*'
    name=$(basename -- /sys/bus/virtio/drivers/virtio_net/virtio*/net/*)
    ip link set "$name" down
    ip link set "$name" name "$LINK"
    ip link set "$LINK" up
}

lossy() {
    modprobe sch_netem
    tc qdisc replace dev "$LINK" root netem loss "$1%" limit 10000
}
