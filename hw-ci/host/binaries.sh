# What is built on the host for the guests. Sourced by ../vm.
#
# One build for all lanes: `clovis` and the test binaries that lanes name in `# binaries:`, with RDMA, into $VM/bin.
# shellcheck shell=bash

GUEST_BINARIES=$VM/bin
no_binaries=''

# Programs of SPDK itself, copied beside ours where pkg-config finds an SPDK.
readonly SPDK_PROGRAMS=(spdk_nvme_perf spdk_nvme_identify)
no_stob_binaries=''
readonly NO_SPDK='no SPDK on this host (pkg-config finds no spdk_nvme); hw-ci/README.md says what it must offer'

# Where SPDK is installed, or nothing. hw-ci/README.md says what an installation must offer.
spdk_folder() {
    local folder
    pkg-config --exists spdk_nvme spdk_env_dpdk spdk_syslibs 2>/dev/null || return 1
    # Its .pc files name no folders but in flags.
    folder=$(pkg-config --libs-only-L spdk_nvme)
    folder=${folder%% *}
    readlink -f -- "${folder#-L}/.."
}

# The storage programs: `clovis`, and the examples of spdk-stob that measure a device and prove power cuts; with SPDK if there is one.
# $1 yes: lanes with RDMA are chosen too, so `clovis` is built with both (rdma_binaries.sh): there is one of it.
build_stob_binaries() {
    local with_rdma=$1 folder='' options=() program
    rm -f -- "$GUEST_BINARIES/spdk" "${SPDK_PROGRAMS[@]/#/$GUEST_BINARIES/}"
    if folder=$(spdk_folder); then
        say "SPDK in $folder: library version $(pkg-config --modversion spdk_nvme)"
        options=(--features spdk)
        for program in "${SPDK_PROGRAMS[@]}"; do
            [ ! -x "$folder/bin/$program" ] || cp -- "$folder/bin/$program" "$GUEST_BINARIES/"
        done
    fi
    # One by one: together, the features that examples need of others' crates would build everything anew.
    if { [ "$with_rdma" = no ] && ! cargo build --release -p clovis --bins "${options[@]}"; } ||
        ! cargo build --release -p spdk-stob --example power_cut --example device_rate "${options[@]}"; then
        no_stob_binaries='the storage programs do not build'
        return
    fi
    [ "$with_rdma" = yes ] || cp -- "$TARGET/release/clovis" "$GUEST_BINARIES/"
    cp -- "$TARGET"/release/examples/{power_cut,device_rate} "$GUEST_BINARIES/"
    [ -z "$folder" ] || touch "$GUEST_BINARIES/spdk"
}

# The lanes, so that nothing is built that none of them needs.
build_guest_binaries() {
    local lane wanted=no stob_wanted=no
    mkdir -p -- "$GUEST_BINARIES"
    rm -f -- "$GUEST_BINARIES/spdk" # of an earlier run, which may have had an SPDK
    for lane in "$@"; do
        case " $(lane_says "$lane" needs) " in *' spdk '*) spdk_folder >/dev/null || continue ;; esac
        case " $(lane_says "$lane" needs) " in *' clovis '*) wanted=yes ;; esac
        case " $(lane_says "$lane" needs) " in *' stob '*) stob_wanted=yes ;; esac
    done
    [ "$stob_wanted" = no ] || build_stob_binaries "$wanted"
    if [ "$wanted" = no ]; then
        [ "$stob_wanted" = yes ] || say "none needed"
        return 0
    fi
    build_rdma_binaries "${@/%/.sh}"
}
