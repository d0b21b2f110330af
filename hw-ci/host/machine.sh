# One virtual machine, or two: boot, watch, cut the power. Sourced by ../vm.
#
# The guest runs Debian's kernel on the host's own files (9p, read-only, with overlays that are thrown away). Its one writable folder
# of the host is the lane's results, at /run/results. It talks to this side through files there:
#   checks, figures     lines of guest/checks.sh
#   finished.N          machine N ran its script to the end
#   cut.N               machine N wants its power cut now (in the middle of something)
# shellcheck shell=bash

machine_groups=()

# What udev would load for devices that no lane looks at: half of the time to boot, where the machine is emulated.
readonly NO_MODULES=ahci,libata,sr_mod,sg,scsi_mod,kvm,kvm_amd,kvm_intel,ccp,psmouse,evdev,aesni_intel,i2c_i801,lpc_ich,iTCO_wdt,i6300esb,pcspkr,button,powernow_k8

# Emulation costs a factor of ten to fifty. A KVM that only emulates itself (nested, paravirtual) does not boot Debian's kernels, so it
# is tried, once for each host kernel, with a short limit.
accelerator() {
    local probe="$VM/kvm-probe" key
    [ -z "${accelerator_found-}" ] || { printf '%s' "$accelerator_found"; return; }
    key="$(uname -r) $(basename -- "$KERNEL")"
    if [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ] || [ -d /sys/module/kvm_pvm ]; then
        accelerator_found=tcg
    elif [ -f "$probe" ] && [ "$(head -n 1 "$probe")" = "$key" ]; then
        accelerator_found=$(tail -n 1 "$probe")
    else
        accelerator_found=kvm
        if ! timeout --kill-after=5 60 "$VENV/bin/vng" --run "$KERNEL" --cpus 1 --memory 512M --user root --disable-microvm --force-9p \
            --exec 'echo booted-with-kvm' </dev/null 2>&1 | grep -q booted-with-kvm; then
            accelerator_found=tcg
        fi
        printf '%s\n%s\n' "$key" "$accelerator_found" >"$probe"
    fi
    printf '%s' "$accelerator_found"
}

machine_line() {
    [ -z "$no_machine" ] || { printf 'none: %s' "$no_machine"; return; }
    printf '%s, %s, %s cores, %s' "${KERNEL#/boot/vmlinuz-}" \
        "$([ "$(accelerator)" = kvm ] && printf 'KVM' || printf 'emulated (no usable KVM)')" "${CLOVIS_VM_CPUS:-2}" "${CLOVIS_VM_MEMORY:-3G}"
}

# $1 results, $2 machine number, $3 namespace: the file behind a namespace of the machine's NVMe device.
disk_image() { printf '%s/nvme%s%s.img' "$1" "$2" "$([ "$3" = 1 ] || printf -- '-%s' "$3")"; }

# $1 lane, $2 results, $3 phase, $4 machine number, $5 of how many. Starts it in a process group of its own.
start_machine() {
    local lane=$1 results=$2 phase=$3 number=$4 count=$5 options=() qemu='' link="$results/link.socket"
    options+=(--run "$KERNEL" --cpus "${CLOVIS_VM_CPUS:-2}" --memory "${CLOVIS_VM_MEMORY:-3G}" --user root --name "clovis-$number")
    options+=(--disable-microvm --force-9p --rwdir "/run/results=$results" --cwd "$HW_CI")
    # --verbose: what the kernel says goes to the console too, warnings and worse: one that gives up tells it nowhere else.
    options+=(--verbose --append quiet --append loglevel=5)
    # No CD-ROM and the like for udev to look at.
    qemu+=' -nodefaults'
    if [ "$(accelerator)" = tcg ]; then
        options+=(--disable-kvm)
        qemu+=' -cpu max'
    fi
    if [ -n "$(lane_says "$lane" disk)" ]; then
        local namespace namespaces
        namespaces=$(lane_says "$lane" namespaces 1)
        if [ "$namespaces" -gt 1 ]; then
            qemu+=' -device nvme,id=nvme1,serial=clovis'
            for ((namespace = 1; namespace <= namespaces; namespace++)); do
                qemu+=" -drive file=$(disk_image "$results" "$number" "$namespace"),if=none,id=nv$namespace,format=raw,cache=writeback,discard=unmap"
                qemu+=" -device nvme-ns,drive=nv$namespace,bus=nvme1,nsid=$namespace"
            done
        elif [ "$(lane_says "$lane" write-log)" = yes ]; then
            # Everything that the device was told, in order, so that any loss of what was not flushed can be played afterwards.
            : >"$results/nvme$number.$phase.log"
            qemu+=" -drive driver=blklogwrites,if=none,id=nv0,cache=writeback,log-super-update-interval=1"
            qemu+=",file.driver=file,file.filename=$results/nvme$number.img"
            qemu+=",log.driver=file,log.filename=$results/nvme$number.$phase.log"
            qemu+=' -device nvme,drive=nv0,serial=clovis'
        else
            qemu+=" -drive file=$results/nvme$number.img,if=none,id=nv0,format=raw,cache=writeback,discard=unmap"
            qemu+=' -device nvme,drive=nv0,serial=clovis'
        fi
    fi
    if [ "$count" -gt 1 ]; then
        qemu+=" -device virtio-net-pci,netdev=n0,mac=52:54:00:c1:00:0$number"
        qemu+=" -netdev stream,id=n0,server=$([ "$number" = 1 ] && printf on || printf off),addr.type=unix,addr.path=$link"
    fi
    [ -z "$(lane_says "$lane" qemu)" ] || qemu+=" $(lane_says "$lane" qemu)"
    # An emulated timer on a busy host is late; Debian's kernel panics over that before it has a console.
    options+=(--append "module_blacklist=$NO_MODULES" --append no_timer_check)
    [ -z "$(lane_says "$lane" kernel)" ] || options+=(--append "$(lane_says "$lane" kernel)")
    local command="bash '$HW_CI/guest/run' '$lane' '$phase' '$number' '$count' '$GUEST_BINARIES'"
    # Through cat: qemu would truncate a file again and again. setsid: the whole group can be ended, and only it.
    PATH="$VENV/bin:$PATH" setsid bash -c '"$@" </dev/null 2>&1 | cat' _ \
        vng "${options[@]}" --qemu-opts="$qemu" --exec "$command" >"$results/console.$phase.$number" 9>&- &
    machine_groups+=($!)
}

# Ends every machine that still runs. The group's id is that of the setsid process.
end_machines() {
    local group
    for group in "${machine_groups[@]}"; do
        kill -KILL -- "-$group" 2>/dev/null || true
        wait "$group" 2>/dev/null || true
    done
    machine_groups=()
}

# $1 lane, $2 results. True if every phase came to its end.
boot_lane() {
    local lane=$1 results=$2 count phase number size deadline group namespace
    count=$(lane_says "$lane" machines 1)
    size=$(lane_says "$lane" disk)
    if [ -n "$size" ]; then
        for ((number = 1; number <= count; number++)); do
            for ((namespace = 1; namespace <= $(lane_says "$lane" namespaces 1); namespace++)); do
                truncate -s "$size" "$(disk_image "$results" "$number" "$namespace")"
            done
        done
    fi
    deadline=$((SECONDS + 60 * $(lane_says "$lane" minutes 10)))
    for phase in $(lane_says "$lane" phases run); do
        run_phase "$lane" "$results" "$count" "$deadline" "$phase" || return 1
        # What only this side can do between two phases, with the device at rest. Its checks go the same way.
        if [ -f "$HW_CI/lanes/$lane.$phase.host" ]; then
            env RESULTS="$results" BINARIES="$GUEST_BINARIES" HW_CI="$HW_CI" bash "$HW_CI/lanes/$lane.$phase.host" || return 1
        fi
    done
    [ -z "$size" ] || rm -f -- "$results"/nvme*.img "$results"/nvme*.log "$results"/before.img
}

# One phase. A machine that ends before the guest's first word (its kernel did not come up) is no verdict on anything: it is started again.
run_phase() {
    local lane=$1 results=$2 count=$3 deadline=$4 phase=$5 attempt number
    for attempt in 1 2 3; do
        rm -f -- "$results"/finished.* "$results"/cut.* "$results"/at.* "$results"/begun.* "$results/link.socket"
        for ((number = 1; number <= count; number++)); do
            start_machine "$lane" "$results" "$phase" "$number" "$count"
            if [ "$number" = 1 ] && [ "$count" -gt 1 ]; then
                wait_for_link "$results" "$deadline" || break
            fi
        done
        watch_machines "$lane" "$results" "$count" "$deadline" "$phase" && return 0
        if [ "$attempt" = 3 ] || [ "$SECONDS" -ge "$deadline" ] || compgen -G "$results/begun.*" >/dev/null; then
            return 1
        fi
        say "lane $lane: no machine came up (attempt $attempt); again"
    done
}

wait_for_link() {
    while [ ! -S "$1/link.socket" ] && [ "$SECONDS" -lt "$2" ] && kill -0 "${machine_groups[0]}" 2>/dev/null; do
        sleep 0.1
    done
    [ -S "$1/link.socket" ]
}

# Waits until every machine has ended, asked for a power cut, or run out of time. Looks five times a second: a cut comes in the middle of what the guest does.
watch_machines() {
    local lane=$1 results=$2 count=$3 deadline=$4 phase=$5 group running wanted=ok
    while :; do
        running=0
        for group in "${machine_groups[@]}"; do
            ! kill -0 "$group" 2>/dev/null || running=$((running + 1))
        done
        if compgen -G "$results/cut.*" >/dev/null; then
            say "power cut in phase $phase"
            break
        fi
        [ "$running" -gt 0 ] || break
        if [ "$SECONDS" -ge "$deadline" ]; then
            say "lane $lane: ended in phase $phase after $(lane_says "$lane" minutes 10) minutes; last words of the console:"
            tail -n 15 "$results/console.$phase.1" | sed 's/^/  | /'
            wanted=late
            break
        fi
        sleep 0.2
    done
    end_machines
    [ "$wanted" = ok ] || return 1
    for ((number = 1; number <= count; number++)); do
        [ -e "$results/finished.$number" ] || compgen -G "$results/cut.*" >/dev/null || {
            say "lane $lane: machine $number ended early in phase $phase; last words of its console:"
            tail -n 15 "$results/console.$phase.$number" | sed 's/^/  | /'
            return 1
        }
    done
}
