# what: storage on an emulated NVMe device: io_uring and SPDK, power cuts in the middle of writes, figures beside spdk_nvme_perf
# minutes: 25
# needs: stob
# phases: uring spdk last
# disk: 512M
# write-log: yes
# qemu: -machine q35,kernel-irqchip=split -device intel-iommu,intremap=on,aw-bits=48
# kernel: intel_iommu=on
#
# Three boots of one device. Each of the first two ends with its power cut in the middle of writes, as soon as enough of them are
# acknowledged in a journal on the host; the host then plays what the device's volatile cache may have lost (nvme.*.host) and
# puts the worst of it into the machine: nothing after the last flush. The next boot proves that every acknowledged write is there, through the kernel
# and through SPDK. Where no SPDK is installed, its half is skipped by name. Nothing here is a judgement of speed: the device is emulated.
# shellcheck shell=bash

readonly KERNEL_DEVICE=/dev/nvme0n1
# Acknowledgements before the cut.
readonly ENOUGH=150

# Works until the host cuts the power. $1 device.
work_until_cut() {
    local before worker
    before=$(wc -l <"$RESULTS/journal" 2>/dev/null || echo 0)
    power_cut work "$1" "$RESULTS/journal" 300 >"$RESULTS/work.$PHASE.log" 2>&1 &
    worker=$!
    if ! until_true 120 has_lines $((before + ENOUGH)); then
        record FAILED "$PHASE: work goes on ($ENOUGH acknowledgements in 120 s): $(tail -n 1 "$RESULTS/work.$PHASE.log")"
        kill "$worker"
        return 1
    fi
    record ok "$PHASE: the power is cut in the middle of writes to $1"
    touch "$RESULTS/cut.1"
    wait "$worker"
}

# stob_check NAME DEVICE: the full offline verifier.
stob_check() {
    if clovis stob --help >/dev/null 2>&1; then
        check "clovis stob check finds nothing ($1)" 90 clovis stob check "$2"
    else
        skip "clovis stob check ($1)" 'this clovis has no word stob'
    fi
}

has_lines() { [ "$(wc -l <"$RESULTS/journal")" -ge "$1" ]; }

# rate NAME DEVICE KIND BYTES DEPTH: our figure.
rate() {
    check "$1: $3 of $4 bytes, $5 at once" 40 device_rate "$2" "$3" "$4" "$5" 3 || return
    figure "$1.$3.$4.$5" "$(sed -n 's/.*: \([0-9]*\) IOPS.*/\1/p' <<<"$output")" IOPS
    figure "$1.$3.$4.$5.syscalls" "$(sed -n 's/.* \([0-9.]*\) syscalls.*/\1/p' <<<"$output")" /op
    figure "$1.$3.$4.$5.doorbells" "$(sed -n 's/.* \([0-9.]*\) doorbells.*/\1/p' <<<"$output")" /op
    check_that "$1: $3 copies nothing" grep -q 'copied 0 bytes' <<<"$output"
}

# perf ADDRESS KIND BYTES DEPTH: SPDK's own figure for the same.
perf() {
    [ -x "$BINARIES/spdk_nvme_perf" ] || { skip "spdk_nvme_perf $2" 'the SPDK installation has no spdk_nvme_perf'; return; }
    copied spdk_nvme_perf
    check "spdk_nvme_perf: $2 of $3 bytes, $4 at once" 40 \
        spdk_nvme_perf -s 128 -r "trtype:PCIe traddr:$1" -q "$4" -o "$3" -w "$2" -t 3 || return
    figure "spdk_nvme_perf.$2.$3.$4" "$(awk '/^Total/ { printf "%d", $3 }' <<<"$output")" IOPS
}

# Hands the device to user space; the address is in $address.
to_spdk() {
    address=$(nvme_address) || return 1
    huge_pages 400 && nvme_to vfio-pci "$address"
}

phase_uring() {
    copied clovis power_cut device_rate
    check 'the kernel drives an NVMe device' 20 test -b "$KERNEL_DEVICE" || return
    figure volatile_write_cache "$(cat /sys/block/nvme0n1/queue/write_cache)" ''
    rate uring "$KERNEL_DEVICE" randread 4096 32
    check 'it is formatted through io_uring' 30 power_cut format "$KERNEL_DEVICE" || return
    check 'it takes work and gives it back' 60 power_cut work "$KERNEL_DEVICE" "$RESULTS/journal" 3 || return
    check 'all of it is there' 60 power_cut verify "$KERNEL_DEVICE" "$RESULTS/journal" || return
    work_until_cut "$KERNEL_DEVICE"
}

phase_spdk() {
    copied clovis power_cut device_rate
    check 'after the cut every acknowledged write is there (io_uring)' 60 power_cut verify "$KERNEL_DEVICE" "$RESULTS/journal"
    stob_check 'io_uring' "$KERNEL_DEVICE"
    if [ ! -e "$BINARIES/spdk" ]; then
        skip 'the SPDK backend' 'no SPDK on this host (pkg-config finds no spdk_nvme); hw-ci/README.md says what it must offer'
        work_until_cut "$KERNEL_DEVICE"
        return
    fi
    local address
    address=$(nvme_address)
    check 'a device that the kernel drives is refused by name' 20 refused "nvme:$address" 'the kernel drives'
    check 'the device goes to vfio-pci' 20 to_spdk || return
    check 'the same bytes through SPDK' 60 power_cut verify "nvme:$address" "$RESULTS/journal" || return
    stob_check 'SPDK' "nvme:$address"
    check 'the same without root: clovis stob check as nobody, who owns the vfio group and the huge pages' 90 without_root "$address"
    rate spdk "nvme:$address" randread 4096 32
    perf "$address" randread 4096 32
    rate spdk "nvme:$address" randread 4096 1
    perf "$address" randread 4096 1
    check 'a second process is refused while one works' 90 second_refused "nvme:$address"
    work_until_cut "nvme:$address"
}

# without_root ADDRESS: what README.md says of a user of SPDK who is not root. Locked memory is without limit here already.
without_root() {
    local user=65534 group
    group=$(basename -- "$(readlink -f "/sys/bus/pci/devices/$1/iommu_group")")
    chown "$user" "/dev/vfio/$group"
    umount /run/huge
    mount -t hugetlbfs none /run/huge -o "pagesize=2M,uid=$user,mode=0700"
    # The lock of whoever used the device before is root's.
    rm -f -- /var/tmp/spdk_pci_lock_*
    install -d -o "$user" -m 0700 /run/nobody
    chmod a+rx /run/work /run/work/bin
    env XDG_RUNTIME_DIR=/run/nobody HOME=/run/nobody TMPDIR=/run/nobody setpriv --reuid "$user" --regid "$user" --clear-groups --bounding-set -all \
        clovis stob check "nvme:$1"
}

refused() {
    local text
    text=$(device_rate "$1" randread 4096 1 1 2>&1) && return 1
    printf '%s\n' "$text"
    grep -q "$2" <<<"$text"
}

second_refused() {
    local worker status=1 try
    # The kernel lets go of the process before a moment after its end: the first may be refused itself, and starts again.
    for try in 1 2 3; do
        device_rate "$1" randread 4096 1 20 &
        worker=$!
        if until_true 30 claimed_or_ended "$worker" && claimed_by "$worker"; then
            status=0
            break
        fi
        wait "$worker" || true
    done
    [ "$status" != 0 ] || refused "$1" 'Busy' || status=1
    # A check ends at the first command that fails, and a worker that was killed has failed.
    kill "$worker" 2>/dev/null || true
    wait "$worker" 2>/dev/null || true
    return "$status"
}

claimed_or_ended() { claimed_by "$1" || ! kill -0 "$1" 2>/dev/null; }

# claimed_by PROCESS: SPDK writes its owner's number into the file that it locks, and leaves the file behind.
claimed_by() {
    local file
    for file in /var/tmp/spdk_pci_lock_*; do
        [ "$(od -An -td4 -N4 "$file" | tr -d ' ')" = "$1" ] && return 0
    done
    return 1
}

phase_last() {
    copied clovis power_cut device_rate
    check 'after the last cut every acknowledged write is there (io_uring)' 60 power_cut verify "$KERNEL_DEVICE" "$RESULTS/journal"
    stob_check 'after the last cut' "$KERNEL_DEVICE"
    # These destroy what is on the device.
    rate uring "$KERNEL_DEVICE" randwrite 4096 32
    rate uring "$KERNEL_DEVICE" write 1048576 4
    [ -e "$BINARIES/spdk" ] || return 0
    local address
    address=$(nvme_address)
    check 'the device goes to vfio-pci' 20 to_spdk || return
    rate spdk "nvme:$address" randwrite 4096 32
    perf "$address" randwrite 4096 32
    rate spdk "nvme:$address" write 1048576 4
    perf "$address" write 1048576 4
    rate spdk "nvme:$address" write 131072 8
    perf "$address" write 131072 8
}
