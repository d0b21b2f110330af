# The binaries of the lanes with RDMA: `clovis`, and the tests of the verbs edge and of the transfer machine. Sourced by ../vm.
#
# CLOVIS_VM_PROFILE: the cargo profile (release); `dev` shares its dependencies with ./dev test.
# shellcheck shell=bash

# $1 the package, $2 the target (`lib`, or a test's name), $3 the name in the guest. A package that is not there yet is no error.
build_test_binary() {
    local package=$1 target=$2 name=$3 selection=(--lib) built
    rm -f -- "$GUEST_BINARIES/$name"
    [ "$target" = lib ] || selection=(--test "$target")
    cargo pkgid -p "$package" >/dev/null 2>&1 || return 0
    built=$(cargo test --no-run --profile "${CLOVIS_VM_PROFILE:-release}" -p "$package" "${selection[@]}" "${RDMA_FEATURE[@]}" --message-format=json-render-diagnostics) || return 1
    built=$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' <<<"$built" | tail -n 1)
    [ -n "$built" ] && to_guest "$built" "$name"
}

# Without debugging information: a guest reads every page through 9p.
to_guest() {
    cp -- "$1" "$GUEST_BINARIES/$2" && { strip --strip-debug "$GUEST_BINARIES/$2" 2>/dev/null || true; }
}

# wanted_by NAME LANE...: true if one of the lanes names the binary.
wanted_by() {
    local name=$1
    shift
    grep -qw -- "$name" "${@/#/$HW_CI/lanes/}"
}

# The lanes, each as NAME.sh. What none of them names is not built.
build_rdma_binaries() {
    local profile=${CLOVIS_VM_PROFILE:-release} folder clovis_features=()
    folder=$([ "$profile" = dev ] && printf debug || printf '%s' "$profile")
    RDMA_FEATURE=(--features rdma)
    ! grep -q '^rdma = ' cli/Cargo.toml || clovis_features+=(--features rdma)
    # What the storage lanes' clovis has, this one has too: there is one of it.
    [ ! -e "$GUEST_BINARIES/spdk" ] || clovis_features+=(--features spdk)
    if cargo build --profile "$profile" -p clovis --bin clovis "${clovis_features[@]}" &&
        { ! wanted_by verbs-sys.device "$@" || build_test_binary verbs-sys device verbs-sys.device; }; then
        to_guest "$TARGET/$folder/clovis" clovis
    else
        no_binaries='clovis does not build with RDMA'
        return 0
    fi
    if wanted_by rdma_into_nvme "$@"; then
        cargo build --profile "$profile" -p clovis-tests --example rdma_into_nvme "${clovis_features[@]}" &&
            to_guest "$TARGET/$folder/examples/rdma_into_nvme" rdma_into_nvme || no_binaries='rdma_into_nvme does not build'
    fi
    grep -q '^rdma = ' verbs-net/Cargo.toml || RDMA_FEATURE=()
    # Lanes run it through conformance (guest/clovis.sh).
    ! wanted_by conformance "$@" || build_test_binary verbs-net lib verbs-net.lib || no_binaries='the tests of verbs-net do not build with RDMA'
}
