# Soft-RoCE devices in a guest. Sourced by run.
# shellcheck shell=bash

# soft_roce NAME NETDEV ADDRESS/BITS: an rxe device on a network device that is there, or on a new dummy.
soft_roce() {
    local name=$1 netdev=$2 address=$3
    # rxe's checksum comes from a module that nothing loads by itself.
    modprobe crc32_generic && modprobe rdma_rxe && modprobe rdma_ucm && modprobe ib_uverbs || return 1
    ip link set lo up
    if ! ip link show "$netdev" >/dev/null 2>&1; then
        ip link add "$netdev" type dummy || return 1
    fi
    # 4096 bytes of payload and the headers of RoCE: the largest MTU of verbs.
    ip link set "$netdev" mtu 4200 2>/dev/null || true
    ip link set "$netdev" up
    # Twice is an error that says so; a device that was deleted comes back with its address still there.
    ip addr replace "$address" dev "$netdev"
    rdma link add "$name" type rxe netdev "$netdev" || return 1
    until_true 10 gid_of "$name" "${address%/*}"
}

# gid_of DEVICE ADDRESS: index of the RoCE v2 GID of an IPv4 address. Index 0 is link-local and leads nowhere.
gid_of() {
    local device=$1 address=$2 wanted index type
    # shellcheck disable=SC2046
    wanted=$(printf '0000:0000:0000:0000:0000:ffff:%02x%02x:%02x%02x' $(tr . ' ' <<<"$address"))
    for index in $(seq 0 15); do
        type=$(cat "/sys/class/infiniband/$device/ports/1/gid_attrs/types/$index" 2>/dev/null) || continue
        if [ "$type" = 'RoCE v2' ] && [ "$(cat "/sys/class/infiniband/$device/ports/1/gids/$index")" = "$wanted" ]; then
            printf '%s\n' "$index"
            return 0
        fi
    done
    return 1
}

# perftest PROGRAM DEVICE ADDRESS SECONDS OPTIONS...: both ends in this machine, the client's output to standard output.
# Both run under the command PERFTEST_UNDER, which finds `client` or `server` in $PERFTEST_SIDE.
PERFTEST_UNDER=()
perftest() {
    local program=$1 device=$2 address=$3 seconds=$4 gid server status=0
    shift 4
    gid=$(gid_of "$device" "$address") || { printf 'no GID for %s on %s\n' "$address" "$device"; return 1; }
    PERFTEST_SIDE=server timeout --kill-after=5 "$seconds" "${PERFTEST_UNDER[@]}" "$program" -d "$device" -x "$gid" -F "$@" >"$TMPDIR/$program.server" 2>&1 &
    server=$!
    # It listens on port 18515 for the exchange of addresses.
    until_true "$((seconds / 4))" listens 18515 || { cat "$TMPDIR/$program.server"; return 1; }
    PERFTEST_SIDE=client timeout --kill-after=5 "$seconds" "${PERFTEST_UNDER[@]}" "$program" -d "$device" -x "$gid" -F "$@" "$address" || status=$?
    wait "$server" || status=$?
    [ "$status" = 0 ] || cat "$TMPDIR/$program.server"
    return "$status"
}

listens() { ss -Hltn "sport = :$1" | grep -q .; }

# The line of results of perftest, column $1 of it.
perftest_column() { awk -v column="$1" '/^ *[0-9]+ +[0-9]+ +[0-9.]+/ { value = $column } END { print value }'; }

# rping over rdma-cm, both ends here.
rping_both() {
    local server
    rping -s -a "$1" -C 10 &
    server=$!
    until_true 20 sh -c 'rdma resource show cm_id | grep -q LISTEN' || return 1
    rping -c -a "$1" -C 10 -v && wait "$server"
}

# True when no queue pair of a program is left.
nothing_left() { [ "$(rdma resource show qp | grep -c 'type RC')" = 0 ]; }
