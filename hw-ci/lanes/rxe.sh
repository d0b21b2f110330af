# what: the verbs backend on soft-RoCE: devices, perftest, conformance, selftest beside perftest
# minutes: 8
# needs: rxe
# must: debian-12
# short: yes
#
# First what owes nothing to us (the kernel's device, perftest, rping): if that fails, nothing below means anything.
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
}

rping_both() {
    local server
    rping -s -a "$1" -C 10 &
    server=$!
    until_true 20 sh -c 'rdma resource show cm_id | grep -q LISTEN' || return 1
    rping -c -a "$1" -C 10 -v && wait "$server"
}
