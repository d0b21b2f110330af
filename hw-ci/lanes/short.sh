# what: what CI runs, in one boot: the conformance suite over soft-RoCE, selftests with their counts, a whole cluster with a killed server
# minutes: 18
# needs: rxe clovis
# must: debian-12
# short: yes
#
# The lanes rxe, masks and cluster have the rest. Nothing here is judged by time but the limits, which are for a busy machine.
# shellcheck shell=bash

readonly DEVICE=rxe0 ADDRESS=10.9.0.1

phase_run() {
    check 'a soft-RoCE device comes up' 60 soft_roce "$DEVICE" dummy0 "$ADDRESS/24" || return
    export CLOVIS_RDMA_ADDRESS=$ADDRESS
    conformance 'conformance' 600
    copied clovis
    list_networks
    selftest_server "$ADDRESS@o2ib" || return
    steady write-1m write "$ADDRESS" --bulk-size 1M --concurrency 4 --count 60
    steady read-1m read "$ADDRESS" --bulk-size 1M --concurrency 4 --count 60
    selftest verified 90 "$ADDRESS@o2ib" --what write --bulk-size 64K --concurrency 4 --count 40 --verify full
    selftest verified-read 90 "$ADDRESS@o2ib" --what read --bulk-size 64K --concurrency 4 --count 40 --verify full
    selftest_server_ends
    cluster_over_verbs "$ADDRESS" 4194304
}
