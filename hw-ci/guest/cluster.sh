# A whole cluster over verbs in one guest. Sourced by run; needs soft_roce.sh and clovis.sh.
# shellcheck shell=bash

readonly CLUSTER=/run/work/cluster

# cluster_over_verbs ADDRESS BYTES: a cluster whose members show certificates stores, reads back bit-exact, kills a server, reads degraded, and lets it come back.
cluster_over_verbs() {
    local address=$1 bytes=$2 victim
    # 4+2+1 needs seven devices: four servers of two.
    if ! check 'a cluster starts over verbs' 240 clovis cluster start --dir "$CLUSTER" --transport verbs --security certificates \
        --device-size 64M --wait 200; then
        cluster_logs
        return 1
    fi
    export CLOVIS_CONFIG=$CLUSTER/clovis.toml
    check 'every endpoint is on o2ib' 5 sh -c '! grep -E "@(tcp|lo)" "$CLOVIS_CONFIG" && grep -q "@o2ib" "$CLOVIS_CONFIG"'
    check 'no secret is shared' 5 sh -c '! grep -q "^credential" "$CLOVIS_CONFIG" && grep -q "\"certificates\"" "$CLOVIS_CONFIG"'
    # A NID stands for every process of the cluster there.
    check 'clovis net ping reaches every process' 90 clovis net ping "$address@o2ib" --count 3
    head -c "$bytes" /dev/urandom >file
    check "cp stores $bytes bytes" 180 clovis cp --quiet file 12:34
    check 'cat gives the same bytes' 180 same 12:34
    victim=$(cut -d ' ' -f 1 "$CLUSTER"/run/server-2.pid)
    kill -KILL "$victim"
    check 'after kill -9 of a server, cat rebuilds the same bytes' 240 same 12:34
    check 'the killed server comes back' 240 clovis cluster start --dir "$CLUSTER" --wait 200
    check 'cp stores again' 180 clovis cp --quiet file 56:78
    check 'cat gives those bytes too' 180 same 56:78
    check 'the cluster stops' 90 clovis cluster stop --dir "$CLUSTER"
    cluster_logs
    check_that 'nobody panicked' sh -c "! grep -rl 'panicked at' '$RESULTS/cluster-log'"
    check_that 'no device resource is left behind' until_true 20 nothing_left
}

cluster_logs() {
    mkdir -p "$RESULTS/cluster-log"
    cp -r "$CLUSTER"/log/. "$RESULTS/cluster-log/" 2>/dev/null
}

same() { clovis cat "$1" | cmp - file; }
