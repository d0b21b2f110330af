# The emulated NVMe device of a guest, and handing it to SPDK. Sourced by run.
# shellcheck shell=bash

# PCI address of the machine's NVMe device, whoever drives it. Source: PCI class 0108, programming interface 02.
nvme_address() {
    local folder
    for folder in /sys/bus/pci/devices/*; do
        if [ "$(cat "$folder/class")" = 0x010802 ]; then
            printf '%s\n' "${folder##*/}"
            return 0
        fi
    done
    return 1
}

# nvme_driver ADDRESS: who drives it.
nvme_driver() { basename -- "$(readlink -f "/sys/bus/pci/devices/$1/driver")"; }

# nvme_to DRIVER ADDRESS: hands the device to a driver.
nvme_to() {
    local driver=$1 address=$2
    modprobe "$driver" || return 1
    printf '%s\n' "$driver" >"/sys/bus/pci/devices/$address/driver_override" || return 1
    if [ -e "/sys/bus/pci/devices/$address/driver" ]; then
        printf '%s\n' "$address" >"/sys/bus/pci/devices/$address/driver/unbind" || return 1
    fi
    printf '%s\n' "$address" >/sys/bus/pci/drivers_probe || return 1
    until_true 10 driven_by "$driver" "$address"
}

driven_by() { [ "$(nvme_driver "$2")" = "$1" ]; }

# huge_pages COUNT: so many of 2 MiB, and a place where SPDK finds them.
huge_pages() {
    printf '%s\n' "$1" >/proc/sys/vm/nr_hugepages || return 1
    mkdir -p /run/huge
    mountpoint -q /run/huge || mount -t hugetlbfs none /run/huge -o pagesize=2M || return 1
    [ "$(cat /proc/sys/vm/nr_hugepages)" -ge "$1" ]
}
