# what: a whole cluster over verbs: cp, cat, a killed server, degraded read, bit-exact
# minutes: 15
# needs: rxe clovis
# must: debian-12
# shellcheck shell=bash

readonly DEVICE=rxe0 ADDRESS=10.9.0.1

phase_run() {
    check 'a soft-RoCE device comes up' 60 soft_roce "$DEVICE" dummy0 "$ADDRESS/24" || return
    copied clovis
    list_networks
    cluster_over_verbs "$ADDRESS" 8388608
}
