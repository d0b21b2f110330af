# Our binaries in a guest. Sourced by run; needs BINARIES, the host's folder.
# shellcheck shell=bash

# copied NAME...: copies binaries into memory, since 9p reads every page again, and puts them on the PATH.
copied() {
    local name
    mkdir -p /run/work/bin
    for name in "$@"; do
        [ -x "/run/work/bin/$name" ] || cp -- "$BINARIES/$name" /run/work/bin/ || return 1
    done
    export PATH="/run/work/bin:$PATH"
}
