# what: a whole cluster over verbs: cp, cat, a killed server, degraded read, bit-exact
# minutes: 6
# needs: rxe clovis
# must: debian-12
# short: yes
# shellcheck shell=bash

readonly DEVICE=rxe0 ADDRESS=10.9.0.1 DIR=/run/work/cluster

phase_run() {
    check 'a soft-RoCE device comes up' 60 soft_roce "$DEVICE" dummy0 "$ADDRESS/24" || return
    copied clovis
    if ! verbs_works "$ADDRESS"; then
        skip 'the cluster over verbs' "$why_no_verbs"
        return
    fi
    # 4+2+1 needs seven devices: four servers of two.
    check 'a cluster starts over verbs' 120 clovis cluster start --dir "$DIR" --transport verbs --device-size 64M --wait 100 || {
        cp -r "$DIR"/log "$RESULTS/cluster-log" 2>/dev/null
        return
    }
    export CLOVIS_CONFIG=$DIR/clovis.toml
    check 'every endpoint is on o2ib' 5 sh -c '! grep -E "@(tcp|lo)" "$CLOVIS_CONFIG" && grep -q "@o2ib" "$CLOVIS_CONFIG"'
    check 'clovis net list names the device' 20 sh -c "clovis net list | grep -q $DEVICE"
    check 'clovis net ping reaches every process' 60 clovis net ping "$ADDRESS@o2ib" --count 3
    head -c 8388608 /dev/urandom >file
    check 'cp stores 8 MiB' 120 clovis cp --quiet file 12:34
    check 'cat gives the same bytes' 120 same 12:34
    local victim
    victim=$(cut -d ' ' -f 1 "$DIR"/run/server-2.pid)
    kill -KILL "$victim"
    check 'after kill -9 of a server, cat rebuilds the same bytes' 150 same 12:34
    check 'the killed server comes back' 120 clovis cluster start --dir "$DIR" --wait 100
    check 'cp stores again' 120 clovis cp --quiet file 56:78
    check 'cat gives those bytes too' 120 same 56:78
    check 'the cluster stops' 60 clovis cluster stop --dir "$DIR"
    mkdir -p "$RESULTS/cluster-log"
    cp -r "$DIR"/log/. "$RESULTS/cluster-log/" 2>/dev/null
    check_that 'nobody panicked' sh -c "! grep -rl 'panicked at' '$RESULTS/cluster-log'"
    check_that 'no device resource is left behind' until_true 20 nothing_left
}

same() { clovis cat "$1" | cmp - file; }

nothing_left() { [ "$(rdma resource show qp | grep -c 'type RC')" = 0 ]; }
