# What the host has to have for virtual machines. Sourced by ../vm.
#
# Packages come through apt where this is root, and virtme-ng from PyPI into $VM/venv: never into the system's Python. What cannot
# be had leaves its lanes skipped with a reason. Packages are only added, never upgraded: guests run on the host's files.
# shellcheck shell=bash

# Every machine.
readonly PACKAGES_MACHINE=(qemu-system-x86 linux-image-amd64 busybox-static python3-venv kmod iproute2 zstd)
# Lanes with RDMA; cmake, clang and libclang are for the build of the bindings.
readonly PACKAGES_RDMA=(iputils-ping rdma-core ibverbs-providers ibverbs-utils perftest rdmacm-utils strace valgrind cmake clang libclang-dev)
readonly VIRTME_NG='virtme-ng>=1.33,<2'
VENV=$VM/venv
readonly VENV
VENV_OR_HOST_PYTHON=python3

# Why machines cannot be had, or RDMA in them; empty when they can.
no_machine=''
no_rdma=''
KERNEL=''

has_package() { [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null)" = 'ii ' ]; }

# Newest kernel of Debian that is not a cloud flavour (those have no rdma_rxe), and has its modules.
find_kernel() {
    local release
    while read -r release; do
        [ -d "/lib/modules/$release/kernel" ] || continue
        KERNEL=/boot/vmlinuz-$release
        return 0
    done < <(for file in /boot/vmlinuz-*; do printf '%s\n' "${file#/boot/vmlinuz-}"; done | grep -v -e cloud -e '\*' | sort -rV)
    return 1
}

install_host() {
    local missing=() package
    if command -v dpkg-query >/dev/null 2>&1; then
        for package in "${PACKAGES_MACHINE[@]}" "${PACKAGES_RDMA[@]}"; do
            has_package "$package" || missing+=("$package")
        done
    fi
    if [ "${#missing[@]}" -gt 0 ]; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
            say "installing: ${missing[*]}"
            apt_install "${missing[@]}" >"$VM/apt.log" 2>&1 || say "apt-get did not install all of them: $(tail -n 1 "$VM/apt.log")"
        else
            say "not installed: ${missing[*]}   (sudo apt-get install --no-install-recommends ${missing[*]})"
        fi
    fi
    if ! command -v qemu-system-x86_64 >/dev/null 2>&1; then
        no_machine='no qemu-system-x86_64 (apt-get install qemu-system-x86)'
    elif ! find_kernel; then
        no_machine='no kernel with modules in /boot that is not a cloud flavour (apt-get install linux-image-amd64)'
    elif ! install_virtme; then
        no_machine="no virtme-ng: $(tail -n 1 "$VM/venv.log" 2>/dev/null)"
    fi
    if [ -z "$no_machine" ]; then
        VENV_OR_HOST_PYTHON=$VENV/bin/python3
        if [ -z "$(find "/lib/modules/${KERNEL#/boot/vmlinuz-}" -name 'rdma_rxe.ko*' -print -quit)" ]; then
            no_rdma="$KERNEL has no module rdma_rxe (apt-get install linux-image-amd64)"
        fi
        for package in ib_write_bw rping rdma ibv_devinfo; do
            command -v "$package" >/dev/null 2>&1 || no_rdma="no $package (apt-get install ${PACKAGES_RDMA[*]})"
        done
    fi
}

apt_install() {
    # Waits while another apt runs.
    local options=(-q -y --no-install-recommends --no-upgrade -o DPkg::Lock::Timeout=300)
    DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$@" && return 0
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$@"
}

install_virtme() {
    [ -x "$VENV/bin/vng" ] && "$VENV/bin/vng" --version >/dev/null 2>&1 && return 0
    rm -rf -- "$VENV"
    { python3 -m venv "$VENV" && "$VENV/bin/pip" install --quiet --disable-pip-version-check "$VIRTME_NG"; } >"$VM/venv.log" 2>&1
}

# $1 lane. Fails and says why, if its needs cannot be met.
missing_for() {
    local need
    [ -z "$no_machine" ] || { say "$no_machine"; return 1; }
    for need in $(lane_says "$1" needs); do
        case $need in
        rxe) [ -z "$no_rdma" ] || { say "$no_rdma"; return 1; } ;;
        stob) [ -z "$no_stob_binaries" ] || { say "$no_stob_binaries"; return 1; } ;;
        spdk) spdk_folder >/dev/null || { say "$NO_SPDK"; return 1; } ;;
        clovis) [ -z "$no_binaries" ] || { say "$no_binaries"; return 1; } ;;
        *) say "hw-ci/lanes/$1.sh needs '$need', which packages.sh does not know"; return 1 ;;
        esac
    done
}
