# what: instructions in user space per operation, by callgrind: both sides beside perftest's, on soft-RoCE
# minutes: 40
# needs: rxe clovis
#
# Whole programs are counted, with FEW and with MANY operations; the difference over the difference of counts is an operation's share, and
# start and end cancel (both are multiples of 16, as the list of ib_send_bw is). perftest makes some times as many where its operations are so small
# that the start of a process, which is never twice the same, would be seen. Everybody sleeps until something comes, perftest by its events too, so that looking in vain is not counted. The provider's
# instructions are in all figures. perftest has one buffer, one peer and no protocol: its figure is the least that an operation can take here.
# shellcheck shell=bash

readonly DEVICE=rxe0 ADDRESS=10.9.0.1 FEW=64 MANY=384
readonly -a CALLGRIND=(valgrind --quiet --tool=callgrind)

phase_run() {
    check 'a soft-RoCE device comes up' 60 soft_roce "$DEVICE" dummy0 "$ADDRESS/24" || return
    command -v valgrind >/dev/null || { skip 'instructions per operation' 'no valgrind'; return; }
    copied clovis
    # A request and its reply are a message each way on each side, as a turn of ib_send_lat is.
    beside ping 1 ib_send_lat '-s 64' 37000 --what ping --concurrency 1
    # One message each way for 1 of ib_send_bw, whose sides either send or receive.
    beside ping-16 32 ib_send_bw '-s 64 -l 16 -t 64' 37000 --what ping --concurrency 16
    # A message, a READ or WRITE, and a reply, with windows bound and taken back, beside a READ or WRITE.
    beside write-64k 4 ib_read_bw '-s 65536 -t 4' 45000 --what write --bulk-size 64K --concurrency 4 --verify none
    # ib_write_bw cannot sleep; a SEND of as many bytes costs its side as much as a WRITE.
    beside read-64k 4 ib_send_bw '-s 65536 -t 4' 45000 --what read --bulk-size 64K --concurrency 4 --verify none
}

# beside NAME TIMES PERFTEST 'PERFTEST OPTIONS' LIMIT SELFTEST OPTIONS...: figures of both, perftest's of TIMES as many operations; ours are at most LIMIT for the sum of both sides, a quarter above
# what they were on 2026-11-21.
beside() {
    local name=$1 times=$2 program=$3 options=$4 limit=$5 count side ours=0 theirs=0 value
    shift 5
    for count in $FEW $MANY; do
        check "selftest under callgrind, $name, $count" 400 ours "$name" "$count" "$@" || return
        # shellcheck disable=SC2086
        check "$program under callgrind, $name, $count" 200 theirs "$name" "$program" "$((count * times))" "$count" $options || return
    done
    for side in client server; do
        value=$(share "ours.$name.$side" 1)
        figure "instructions.$name.$side" "$value" /op
        ours=$((ours + value))
        value=$(share "theirs.$name.$side" "$times")
        figure "instructions.$name.$program.$side" "$value" /op
        theirs=$((theirs + value))
    done
    figure "instructions.$name.ratio" "$(awk "BEGIN { printf \"%.2f\", $ours / $theirs }")" ''
    check_that "$name: $ours instructions on both sides, at most $limit; $program's are $theirs" [ "$ours" -le "$limit" ]
}

counted() {
    local into=$1
    shift
    "${CALLGRIND[@]}" --callgrind-out-file="$into" "$@"
}

# ours NAME COUNT OPTIONS...
ours() {
    local into="$TMPDIR/ours.$1" count=$2 server
    shift 2
    counted "$into.server.$count" clovis net selftest server "$ADDRESS@o2ib" --once --waiting sleeping --timeout 300 >"$into.log" 2>&1 &
    server=$!
    until_true 120 grep -q 'selftest serves at' "$into.log" || { cat "$into.log"; return 1; }
    counted "$into.client.$count" clovis net selftest client "$ADDRESS@o2ib" --waiting sleeping --timeout 300 --count "$count" "$@" ||
        { cat "$into.log"; kill -KILL "$server"; return 1; }
    wait "$server"
}

# theirs NAME PROGRAM OPERATIONS COUNT OPTIONS...
theirs() {
    local name=$1 program=$2 operations=$3 count=$4
    shift 4
    # %q{...}: valgrind takes it from the environment, where perftest() says which side this is.
    PERFTEST_UNDER=("${CALLGRIND[@]}" "--callgrind-out-file=$TMPDIR/theirs.$name.%q{PERFTEST_SIDE}.$count")
    perftest "$program" "$DEVICE" "$ADDRESS" 180 -e -n "$operations" "$@"
}

# share FILES TIMES: instructions of one operation, of which there were TIMES as many.
share() {
    local file
    for file in "$TMPDIR/$1.$FEW" "$TMPDIR/$1.$MANY"; do
        awk '/^(summary|totals):/ { print $2; exit }' "$file"
    done | awk -v n=$(((MANY - FEW) * $2)) 'NR == 1 { few = $1 } NR == 2 { printf "%d\n", ($1 - few) / n }'
}
