# what: the edge, the conformance suite and a selftest without memory windows, shared receive queue, extended verbs, inline data
# minutes: 10
# needs: rxe clovis
#
# One device plays all of them: CLOVIS_RDMA_WITHOUT hides what it has.
# shellcheck shell=bash

readonly DEVICE=rxe0 ADDRESS=10.9.0.1

phase_run() {
    check 'a soft-RoCE device comes up' 60 soft_roce "$DEVICE" dummy0 "$ADDRESS/24" || return
    copied clovis
    if ! verbs_works "$ADDRESS"; then
        skip 'masked capabilities' "$why_no_verbs"
        return
    fi
    copied verbs-net.lib
    export CLOVIS_REQUIRE_RDMA=1 CLOVIS_RDMA_ADDRESS=$ADDRESS
    local mask name
    for mask in windows srq extended inline windows,srq,extended,inline; do
        export CLOVIS_RDMA_WITHOUT=$mask
        name=${mask//,/-}
        rust_tests "without $mask" 150 verbs-net.lib verbs
        selftest_server "$ADDRESS@o2ib" || continue
        selftest "write-without-$name" 60 "$ADDRESS@o2ib" --what write --bulk-size 64K --count 40 --verify full
        selftest "read-without-$name" 60 "$ADDRESS@o2ib" --what read --bulk-size 64K --count 40 --verify full
        selftest_server_ends
    done
    export CLOVIS_RDMA_WITHOUT=wings
    check 'an unknown word is refused by name' 20 sh -c 'clovis net list 2>&1 | grep -q wings'
}
