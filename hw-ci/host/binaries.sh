# What is built on the host for the guests. Sourced by ../vm.
#
# One build for all lanes: `clovis` and the test binaries that lanes name in `# binaries:`, with RDMA, into $VM/bin.
# shellcheck shell=bash

GUEST_BINARIES=$VM/bin
no_binaries=''

# The lanes, so that nothing is built that none of them needs.
build_guest_binaries() {
    local lane wanted=no
    mkdir -p -- "$GUEST_BINARIES"
    for lane in "$@"; do
        case " $(lane_says "$lane" needs) " in *' clovis '*) wanted=yes ;; esac
    done
    if [ "$wanted" = no ]; then
        say "none needed"
        return 0
    fi
    build_rdma_binaries
}
