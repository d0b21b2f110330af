# The binaries of the lanes with RDMA: `clovis`, and the tests of the verbs edge and of the transfer machine. Sourced by ../vm.
#
# CLOVIS_VM_PROFILE: the cargo profile (release); with `dev` what ./dev test has built is not built again.
# shellcheck shell=bash

# $1 the package, the rest its features: what cargo builds. In the profile of the tests the whole workspace with the features of ./dev test.
build_of() {
    local package=$1
    shift
    if [ "${CLOVIS_VM_PROFILE:-release}" = dev ]; then
        printf '%s\n' --workspace --features clovis-tests/rdma
    else
        printf '%s\n' -p "$package" "$@"
    fi
}

manifest_of() { cargo metadata --no-deps --format-version 1 | python3 -c 'import json, sys; print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == sys.argv[1]))' "$1"; }

# $1 the package, $2 the target (`lib`, or a test's name), $3 the name in the guest. A package that is not there yet is no error.
build_test_binary() {
    local package=$1 target=$2 name=$3 selection=(--lib) built
    rm -f -- "$GUEST_BINARIES/$name"
    [ "$target" = lib ] || selection=(--test "$target")
    cargo pkgid -p "$package" >/dev/null 2>&1 || return 0
    # shellcheck disable=SC2046
    built=$(cargo test --no-run --profile "${CLOVIS_VM_PROFILE:-release}" "${selection[@]}" $(build_of "$package" "${RDMA_FEATURE[@]}") --message-format=json-render-diagnostics) || return 1
    # The whole workspace has more of that kind: the one whose manifest is the package's.
    built=$(grep -F "\"manifest_path\":\"$(manifest_of "$package")\"" <<<"$built" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
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
    # shellcheck disable=SC2046
    if cargo build --profile "$profile" --bin clovis $(build_of clovis "${clovis_features[@]}") &&
        { ! wanted_by verbs-sys.device "$@" || build_test_binary verbs-sys device verbs-sys.device; }; then
        to_guest "$TARGET/$folder/clovis" clovis
    else
        no_binaries='clovis does not build with RDMA'
        return 0
    fi
    if wanted_by rdma_into_nvme "$@"; then
        # shellcheck disable=SC2046
        cargo build --profile "$profile" --example rdma_into_nvme $(build_of clovis-tests "${clovis_features[@]}") &&
            to_guest "$TARGET/$folder/examples/rdma_into_nvme" rdma_into_nvme || no_binaries='rdma_into_nvme does not build'
    fi
    grep -q '^rdma = ' verbs-net/Cargo.toml || RDMA_FEATURE=()
    # Lanes run it through conformance (guest/clovis.sh).
    ! wanted_by conformance "$@" || build_test_binary verbs-net lib verbs-net.lib || no_binaries='the tests of verbs-net do not build with RDMA'
}
