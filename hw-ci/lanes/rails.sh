# what: two soft-RoCE devices to one peer, one of them cut in mid-transfer
# minutes: 10
# needs: rxe clovis
# shellcheck shell=bash

phase_run() {
    check 'the first soft-RoCE device' 60 soft_roce rxe0 dummy0 10.9.0.1/24 || return
    check 'the second soft-RoCE device' 60 soft_roce rxe1 dummy1 10.9.2.1/24 || return
    local output
    check 'the second one carries data' 60 perftest ib_write_bw rxe1 10.9.2.1 50 -s 65536 -n 50
    copied clovis
    copied verbs-net.lib
    if ! verbs-net.lib --list 2>/dev/null | grep -q 'rails.*: test$'; then
        skip 'two rails' 'this tree has no test of rails yet'
        return
    fi
    # The suite's own tests of rails: both devices, the cut, no lost or doubled message.
    CLOVIS_REQUIRE_RDMA=1 CLOVIS_RDMA_ADDRESS=10.9.0.1 CLOVIS_RDMA_SECOND_ADDRESS=10.9.2.1 rust_tests rails 150 verbs-net.lib rails
}
