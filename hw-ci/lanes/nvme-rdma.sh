# what: from RDMA into NVMe through one buffer, by SPDK: two ends in one process, and a cluster over verbs on an NVMe controller
# minutes: 20
# needs: rxe clovis stob spdk
# disk: 128M
# namespaces: 3
# qemu: -machine q35,kernel-irqchip=split -device intel-iommu,intremap=on,aw-bits=48
# kernel: intel_iommu=on
#
# The bytes of a client come by RDMA READ into a buffer of the server's arena, and SPDK's driver tells the NVMe controller to take them
# from there; on the way back the controller fills a buffer and RDMA WRITE sends it. The arena is registered with both devices, and
# either refuses memory that is not. What the CPU copied is counted. First a program with both ends (tests/examples/rdma_into_nvme.rs), then
# `clovis server` in a cluster of one server with three namespaces of one controller, 2+1+0.
# shellcheck shell=bash

readonly DEVICE=rxe0 ADDRESS=10.9.0.1 DIR=/run/work/cluster
readonly OBJECT_BYTES=8388608

phase_run() {
    copied clovis rdma_into_nvme
    check 'a soft-RoCE device comes up' 60 soft_roce "$DEVICE" dummy0 "$ADDRESS/24" || return
    local address output server_line
    address=$(nvme_address)
    through 'io_uring' /dev/nvme0n1
    check 'the device goes to vfio-pci' 30 to_spdk "$address" || return
    through 'SPDK' "nvme:$address"

    check 'a cluster over verbs is made' 150 clovis cluster start --dir "$DIR" --transport verbs --servers 1 --devices-per-server 3 \
        --layout 2+1+0 --device-size 128M --wait 120 || { keep_logs; return; }
    check 'it stops' 60 clovis cluster stop --dir "$DIR"
    check 'its devices become the namespaces of the controller' 150 onto_namespaces "$address" || return
    check 'it starts on them' 150 clovis cluster start --dir "$DIR" --wait 120 || { keep_logs; return; }
    export CLOVIS_CONFIG=$DIR/clovis.toml
    head -c "$OBJECT_BYTES" /dev/urandom >file
    check 'cp stores 8 MiB' 120 clovis cp --quiet --unit 1M file 12:34
    check 'cat gives the same bytes' 120 same 12:34
    check 'cat with its parity verified gives the same bytes' 120 clovis cat --verify 12:34 --output again
    check_that 'they are the same' cmp file again
    check 'the cluster stops' 60 clovis cluster stop --dir "$DIR"
    server_line=$(grep 'has stopped' "$DIR/log/server-1.log" | tail -n 1)
    printf '%s\n' "$server_line"
    # 8 MiB of data, and with 2+1 half as much parity.
    check_that 'the server took data and parity as bulk' [ "$(of_server 'bytes of bulk received')" = $((OBJECT_BYTES * 3 / 2)) ]
    # Messages that share a packet are copied into it; bulk is never.
    check_that 'the server copied no bulk byte' [ "$(of_server 'bytes copied')" -lt 4096 ]
    figure server.bulk "$(of_server 'bytes of bulk received')" B
    figure server.copied "$(of_server 'bytes copied')" B
    figure server.registrations "$(of_server 'memory registrations')" ''
    figure server.doorbells "$(of_server 'doorbells')" ''
    figure server.syscalls "$(of_server 'system calls')" ''
    local namespace
    for namespace in 1 2 3; do
        check "clovis stob check finds nothing (namespace $namespace)" 90 clovis stob check "nvme:$address#$namespace"
    done
    check 'it starts again' 150 clovis cluster start --dir "$DIR" --wait 120
    check 'cat gives the same bytes after that' 120 same 12:34
    check 'the cluster stops again' 60 clovis cluster stop --dir "$DIR"
    keep_logs
    check_that 'nobody panicked' sh -c "! grep -rl 'panicked at' '$RESULTS/cluster-log'"
}

# through NAME DEVICE: 1 MiB operations both ways.
through() {
    check "RDMA into NVMe and back, $1: bytes equal" 90 rdma_into_nvme "$2" "$ADDRESS" 16 || return
    printf '%s\n' "$output"
    check_that "$1: nothing is copied" grep -q ' 0 bytes copied' <<<"$output"
}

# Hands the device to user space. 64 huge pages are SPDK's own, 256 the server's arena.
to_spdk() { huge_pages 400 && nvme_to vfio-pci "$1"; }

# The devices of the stopped cluster are namespaces from now on: the file says where, and each is formatted as what it is.
onto_namespaces() {
    local id fids namespace
    id=$(sed -n 's/^id = "\(.*\)".*/\1/p' "$DIR/clovis.toml")
    mapfile -t fids < <(sed -n '/^\[\[device\]\]/,/^$/s/^fid = "\([^"]*\)".*/\1/p' "$DIR/clovis.toml")
    [ -n "$id" ] && [ "${#fids[@]}" = 3 ] || return 1
    for namespace in 1 2 3; do
        clovis stob format "nvme:$1#$namespace" --force --fid "${fids[namespace - 1]}" --cluster "$(printf '%u' "$id")" || return 1
        sed -i "s|devices/device-$((namespace - 1)).dev|nvme:$1#$namespace|" "$DIR/clovis.toml"
        rm -f "$DIR/devices/device-$((namespace - 1)).dev"
    done
}

same() { clovis cat "$1" | cmp - file; }

of_server() { sed -n "s/.*[:,] \([0-9]*\) $1.*/\1/p" <<<"$server_line"; }

keep_logs() {
    mkdir -p "$RESULTS/cluster-log"
    cp -r "$DIR"/log/. "$RESULTS/cluster-log/" 2>/dev/null
}
