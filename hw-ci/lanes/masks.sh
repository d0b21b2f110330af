# what: the conformance suite and selftests without memory windows, shared receive queue, extended verbs, inline data
# minutes: 45
# needs: rxe clovis
#
# One device plays all of them: CLOVIS_RDMA_WITHOUT hides what it has.
# shellcheck shell=bash

readonly DEVICE=rxe0 ADDRESS=10.9.0.1

phase_run() {
    check 'a soft-RoCE device comes up' 60 soft_roce "$DEVICE" dummy0 "$ADDRESS/24" || return
    copied clovis
    list_networks
    export CLOVIS_RDMA_ADDRESS=$ADDRESS
    local mask name
    for mask in windows srq extended,inline windows,srq,extended,inline; do
        export CLOVIS_RDMA_WITHOUT=$mask
        name=${mask//,/-}
        conformance "without $mask" 600
        selftest_server "$ADDRESS@o2ib" || continue
        steady "write-without-$name" write "$ADDRESS" --bulk-size 64K --count 60 --verify full
        steady "read-without-$name" read "$ADDRESS" --bulk-size 64K --count 60 --verify full
        selftest_server_ends
    done
    export CLOVIS_RDMA_WITHOUT=wings
    check 'an unknown word is refused by name' 20 sh -c 'clovis net selftest server $1@o2ib 2>&1 | grep -q wings' _ "$ADDRESS"
}
