//! Limits of a configuration and of what control keeps, each with its arithmetic.

use std::time::Duration;

use base::limits::{MESSAGE_BYTES_MAX, REQUEST_BULK_BYTES_MAX};
use base::units::wide;

/// Server processes of a cluster: ten devices each make the most devices.
pub const SERVERS_MAX: usize = 1024;
/// Control daemons: five, and two that come in place of others.
pub const CONTROLS_MAX: usize = 7;
/// Devices of a cluster. Each takes 66 bytes of a configuration, which whoever is new fetches in parts: [`CONFIGURATION_BYTES_MAX`].
pub const DEVICES_MAX: usize = 10_240;

/// Pool versions beside the first one.
pub const POOL_VERSIONS_MAX: usize = 8;
/// Runs of devices (those that stand behind each other in the cluster file) of all these pool versions together.
pub const DEVICE_RUNS_MAX: usize = 64;
/// Bytes of a pool's name.
pub const POOL_NAME_BYTES_MAX: usize = 24;

/// Devices that have a slot of spare units at a time, of all pools together: as many as the widest parity (N + K is at most 255) has of one.
pub const SPARE_SLOTS_MAX: usize = 128;
/// Devices whose disks are being replaced at a time, until each is formatted.
pub const AWAITED_DISKS_MAX: usize = 64;
/// Localities (endpoints) of one server process.
pub const LOCALITIES_MAX: usize = 64;
/// Racks, enclosures, controllers, disks, nodes and services of a cluster together: a disk for each device, as much again, and 4096.
pub const PARTS_MAX: usize = 2 * DEVICES_MAX + 4096;
/// Bytes of a cluster file: the largest cluster's file has about 200 bytes per device and server, and 80 per part:
/// 11,264 × 200 + 24,576 × 80 = 4.2 MB.
pub const CLUSTER_FILE_BYTES_MAX: usize = 4 << 20;
/// A cluster file of so many bytes fits every store of control.
pub const CLUSTER_FILE_BYTES_ALWAYS: usize = 512 << 10;
/// A longer one is at most this part of the store: a third of a checkpoint area, which is 1/128 (docs/disk.md). The configuration that belongs to it, twice,
/// is another third.
pub const CLUSTER_FILE_STORE_PART: u64 = 384;

/// Bytes of the smallest store of control for a cluster file of so many bytes; 0: any.
#[must_use]
pub const fn store_bytes_for(text_bytes: usize) -> u64 {
    if text_bytes <= CLUSTER_FILE_BYTES_ALWAYS {
        return 0;
    }
    (text_bytes as u64 * CLUSTER_FILE_STORE_PART).next_multiple_of(base::units::MIB)
}
/// Bytes of a part of a cluster file that is being brought to control: the bulk of one request.
pub const CLUSTER_UPLOAD_PART_BYTES: usize = 1 << 20;
/// Bytes of a part of a cluster file in one message.
pub const CLUSTER_TEXT_PART_BYTES: usize = 48 << 10;
/// Bytes of the note of a transaction.
pub const NOTE_BYTES_MAX: usize = 200;
/// Transactions that control keeps.
pub const TRANSACTIONS_KEPT: usize = 64;
/// Bytes of the texts of the transactions that control keeps: two of the longest, and in a smaller store less ([`text_bytes_kept`]). The one in force is
/// kept however long it is.
pub const TRANSACTION_TEXT_BYTES_MAX: usize = 2 * CLUSTER_FILE_BYTES_MAX;

/// Bytes of texts that a store of so many bytes is to keep: half of a checkpoint area, which has at least 1.5 MiB.
#[must_use]
pub fn text_bytes_kept(store_bytes: u64) -> usize {
    base::units::narrow(store_bytes / 256).clamp(768 << 10, TRANSACTION_TEXT_BYTES_MAX)
}

/// Bytes of a part of a configuration in one message.
pub const CONF_PART_BYTES: usize = 48 << 10;
/// Bytes of the changes of a configuration in one message; longer ones come one message after the other.
pub const CONF_CHANGES_BYTES: usize = 48 << 10;
/// Bytes of a splice without what comes: two numbers and a length.
pub const CONF_SPLICE_BYTES: usize = 4 + 4 + 8;
/// Differences between versions that control keeps, for those who have an older one: an hour of a change each second, and more. 80 bytes each besides
/// what is in [`CONF_HISTORY_BYTES`].
pub const CONF_HISTORY_STEPS: usize = 4096;
/// Bytes of these differences. Whoever is so far behind fetches everything, which is not much longer.
pub const CONF_HISTORY_BYTES: usize = 1 << 20;
/// For so long control hands the same version to all who begin to fetch everything, so that it does not change under them; what changed since follows
/// as a difference. 15 parts to each of 10,000 clients over 100 Gbit/s are 0.6 s.
pub const CONF_HANDOUT: Duration = Duration::from_secs(5);
/// Messages after which a configuration that was asked for has to be whole: each of the 15 parts of the largest one, begun anew 60 times.
pub const CONF_SYNC_MESSAGES_MAX: usize = 1024;
/// Processes, and devices, of a page of the status of the cluster.
pub const STATUS_PAGE: usize = 512;
/// Targets that are named to one who waits for a fence; a break waits for all of them.
pub const FENCE_WAITS_NAMED: usize = 768;

/// Changes of states that control keeps.
pub const EVENTS_KEPT: usize = 1024;
/// Events of one answer.
pub const EVENTS_PAGE: usize = 256;
/// Longest wait for an event that a request may ask of control, in milliseconds.
pub const EVENTS_WAIT_MS_MAX: u32 = 30_000;
/// Losses of a device within [`FLAP_WINDOW_LEASES`] from which on its return is held back.
pub const FLAPS_MAX: usize = 3;
/// Losses are counted for so many lengths of the lease.
pub const FLAP_WINDOW_LEASES: u32 = 20;
/// A flapping device is taken back after its server was heard for so many lengths of the lease without a gap.
pub const FLAP_HOLD_LEASES: u32 = 2;

/// Locks that are held at a time: one for each lock and owner. At most 600 bytes of memory each, 10 MiB.
pub const LOCKS_MAX: usize = 16_384;
/// Bytes of a lock's name.
pub const LOCK_NAME_BYTES_MAX: usize = 64;
/// Places in the queues of locks.
pub const LOCK_WAITERS_MAX: usize = 1024;
/// Requests about locks and fences that wait at control at a time: a third of its foms. What comes on top is answered at once, and asked again
/// after a pause.
pub const LOCK_WAITS_MAX: usize = 80;
/// Longest wait for a lock, or for the end of a break, of one request, in milliseconds: who waits longer asks again.
pub const LOCK_WAIT_MS_MAX: u32 = 5_000;
/// One who waits for a lock keeps its place for so long after the end of its request, in milliseconds.
pub const LOCK_PLACE_MS: u64 = 2_000;
/// Owners whose tickets are fenced one by one; 32 bytes each at control and at every locality of every server.
pub const FENCES_MAX: usize = 4096;
/// Fences of one answer.
pub const FENCES_PAGE: usize = 1024;
/// Longest wait for a fence of one request, in milliseconds.
pub const FENCES_WAIT_MS_MAX: u32 = 10_000;
/// Locks of one page of a list.
pub const LOCKS_PAGE: usize = 64;
/// Holders that an answer names to one who has to wait.
pub const LOCK_HOLDERS_NAMED: usize = 16;

/// Requests that wait for an event at a time; what comes on top is answered at once.
pub const EVENTS_WAITS_MAX: usize = 16;

/// A server tells control so often what it did.
pub const LOAD_REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// The time that a sample of the cluster's load covers: two reports of each server.
pub const LOAD_PERIOD: Duration = Duration::from_secs(10);
/// Samples that control keeps: an hour, 35 KiB.
pub const LOAD_PERIODS_KEPT: usize = 360;

/// Watches of a cluster: 300 bytes each in memory, 5 MiB, and 200 in control's store. One for each client that there can be.
pub const WATCHES_MAX: usize = 16_384;
/// Watches of one watcher, named in each answer to it.
pub const WATCHES_PER_WATCHER_MAX: usize = 64;
/// Bytes of a watcher's name.
pub const WATCH_NAME_BYTES_MAX: usize = 64;
/// Lease of a watch where nobody chooses one.
pub const WATCH_LEASE_DEFAULT_MS: u32 = 10_000;
/// Shortest lease of a watch, in milliseconds.
pub const WATCH_LEASE_MIN_MS: u32 = 1_000;
/// Longest lease of a watch, in milliseconds.
pub const WATCH_LEASE_MAX_MS: u32 = 120_000;
/// A watcher asks again so many times in its lease: two answers may be late before it ends.
pub const WATCH_POLLS_PER_LEASE: u32 = 3;
/// A watcher whose request control could not let wait asks so many times in its lease.
pub const WATCH_TRIES_PER_LEASE: u32 = 10;
/// Requests of watchers that wait at control at a time; what comes on top is answered at once and asks again after a pause.
pub const WATCH_WAITS_MAX: usize = 64;
/// Notifications that a watch keeps for a program that does not fetch them; then it has a gap.
pub const WATCH_INBOX_MAX: usize = 64;
/// Bytes of a notify: three of them fit one answer to a watcher.
pub const NOTIFY_BYTES_MAX: usize = 16 << 10;
/// Bytes of an acknowledgement.
pub const NOTIFY_ACK_BYTES_MAX: usize = 512;
/// Notifies under way at a time, each a fom with 16 KiB. What comes on top asks again.
pub const NOTIFIES_MAX: usize = 32;
/// Answers to notifies that are kept for those who ask again.
pub const NOTIFIES_KEPT: usize = 32;
/// Watches that notifies under way and kept answers are for, all together: at most 700 bytes each, 44 MiB, nearly all of it what they acknowledged with. Four notifies
/// for as many watches as there may be; one that finds no room asks again.
pub const NOTIFY_OUTCOMES_MAX: usize = 4 * WATCHES_MAX;
/// Outcomes of a notify in one message: one that is for more watches is told in pages.
pub const NOTIFY_PAGE: usize = 64;
/// Longest wait for acknowledgements, in milliseconds: shorter than a fom may wait before it is named as hung.
pub const NOTIFY_WAIT_MS_MAX: u32 = 25_000;
/// Bytes of payload of one answer to a watcher.
pub const WATCH_PAGE_BYTES: usize = 3 * NOTIFY_BYTES_MAX;
/// Notifications of one answer to a watcher.
pub const WATCH_PAGE: usize = 64;
/// Watches of one page of their list.
pub const WATCH_LIST_PAGE: usize = 256;
/// Bytes of a request that is proxied to the holder of a lock: a notify less what names the lock and the holder.
pub const HOLDER_REQUEST_BYTES_MAX: usize = NOTIFY_BYTES_MAX - HOLDER_ASK_BYTES;
/// Bytes of a holder's answer, or of the reason why there is none: an acknowledgement less what kind of answer it is. What is longer goes into an object.
pub const HOLDER_ANSWER_BYTES_MAX: usize = NOTIFY_ACK_BYTES_MAX - (4 + 8);
/// A lock that nobody has to renew is looked after so often by the program that holds it cooperatively.
pub const LOCK_LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Sessions of borrowers at control, one for each client: at most 300 bytes of memory each, 5 MiB.
pub const BORROWERS_MAX: usize = 16_384;
/// Loans and waiting requests of a cluster together, two for each borrower: at most 800 bytes each with their keys, 26 MiB.
pub const LOANS_MAX: usize = 2 * BORROWERS_MAX;
/// Changes of loans that become durable together: at most 400 bytes each, 200 KiB of the 1 MiB of a record of control's log. More go one after the other.
pub const LOAN_CHANGES_AT_ONCE: usize = 512;
/// The law of memory of a control daemon, which `control/tests/scale.rs` measures. What it takes whatever the cluster: 16 MiB of replies kept for
/// resends, ADDB, the hour of load, 1.5 MiB of differences of the configuration, buffers of its store.
pub const CONTROL_BASE_BYTES: u64 = 28 << 20;
/// For each device of the configuration: what is known of it, and its part of five copies of the configuration.
pub const CONTROL_DEVICE_BYTES: u64 = 1024;
/// For each locality of a server: its session, what it did, what runs for it.
pub const CONTROL_SERVER_BYTES: u64 = 12 << 10;
/// For each client: its session, and what it holds.
pub const CONTROL_CLIENT_BYTES: u64 = 9 << 10;
/// Sessions of rpc at control: each borrower, each locality of servers (four on average), and commands.
pub const CONTROL_SESSIONS_MAX: usize = BORROWERS_MAX + 4 * SERVERS_MAX + 4096;
/// Loans and waiting requests of one borrower.
pub const LOANS_PER_BORROWER_MAX: usize = 1024;
/// Requests that wait for credits of one resource: each event looks at all pairs of them.
pub const RM_QUEUE_MAX: usize = 128;
/// Requests of borrowers that wait at control at a time, for credits or for something to do; what comes on top is answered at once and
/// asks again after a pause.
pub const RM_WAITS_MAX: usize = 48;
/// Longest wait for a credit of one request, in milliseconds: who waits longer asks again.
pub const RM_WAIT_MS_MAX: u32 = 5_000;
/// Shortest wait for a credit, in milliseconds: one who does not want to wait still waits until those who do not use theirs gave them back.
pub const RM_TRY_MS: u32 = 250;
/// One who waits for a credit keeps its place for so long after the end of its request, in milliseconds.
pub const RM_PLACE_MS: u64 = 2_000;
/// A borrower polls so many times in its lease: two answers may be late before it ends.
pub const RM_POLLS_PER_LEASE: u32 = 4;
/// Bytes of the name of a borrower or of a named resource.
pub const RM_NAME_BYTES_MAX: usize = 64;
/// Bytes of a key at an end of a range of keys.
pub const RM_KEY_BYTES_MAX: usize = 256;
/// Most fids of one range.
pub const FID_RANGE_MAX: u64 = 1 << 20;
/// Fids that a client borrows at a time: a message to control for so many new objects.
pub const FID_RANGE_DEFAULT: u64 = 1024;
/// Loans that are named in one answer to a poll.
pub const RM_PAGE: usize = 256;
/// Loans of one page of a list.
pub const RM_LIST_PAGE: usize = 48;
/// Holders that an answer names to one who has to wait.
pub const RM_HOLDERS_NAMED: usize = 16;

/// After a replacement is heeded by every server a copy waits so long, for changes in place that had begun before (docs/rfd/0009).
pub const REPAIR_SETTLE: Duration = Duration::from_secs(5);
/// A server tells control so often how far its copies are, and asks so often what to do about those that stand still.
pub const REPAIR_TURN_INTERVAL: Duration = Duration::from_millis(500);
/// Lost objects that a repair names; all are counted.
pub const REPAIR_LOST_NAMED: usize = 16;
/// Bytes of the reason why a repair failed.
pub const REPAIR_REASON_BYTES_MAX: usize = 400;
/// Tries of a copy that gets no further before its repair counts as failed.
pub const REPAIR_TRIES_MAX: u32 = 10;
/// Repairs of one answer.
pub const REPAIRS_PAGE: usize = 32;
/// A failed device waits so long for another disk before its units are rebuilt in spare units by themselves, where the cluster file says nothing. Long enough for
/// somebody who has a disk at hand: then everything is copied once, and not there and back. Short beside the days in which another device fails.
pub const SPARE_REPAIR_AFTER_SECONDS: u64 = 600;
/// Least time after which a cluster file may have devices made failed that are away: below it a server that is started again would lose its devices' bytes.
pub const FAIL_AFTER_SECONDS_MIN: u64 = 60;
/// Least rate of repairs that a cluster file may ask for, in bytes per second: below it a window of a large object takes days.
pub const REPAIR_RATE_MIN: u64 = 4096;

/// Encoded bytes of an endpoint: net kind and number, address, pid, portal, transfer machine id.
const ENDPOINT_BYTES: usize = 4 + 2 + 4 + 4 + 2 + 2;
/// Encoded bytes of a fid.
const FID_BYTES: usize = 16;
/// Encoded bytes of a `DeviceConfig`: device, process, endpoint, state, size, number of its disk.
pub(crate) const DEVICE_CONFIG_BYTES: usize = FID_BYTES + FID_BYTES + ENDPOINT_BYTES + 4 + 8 + 4;
/// Encoded bytes of a `ProcessConfig`: process, endpoint, epoch.
pub(crate) const PROCESS_CONFIG_BYTES: usize = FID_BYTES + ENDPOINT_BYTES + 8;
/// The rest of a `Configuration`: version, cluster, profile, control, pool, pool version, width, unit size, three lengths, the version that changes need.
pub(crate) const CONFIGURATION_HEAD_BYTES: usize =
    8 + 8 + FID_BYTES + ENDPOINT_BYTES + 2 * FID_BYTES + 12 + 4 + 3 * 8 + 8;

/// Encoded bytes of the largest `FurtherPools`: devices of the first version; versions (pool, fid, width, unit size, a length), their runs; names;
/// pools in rebalance.
pub const FURTHER_POOLS_BYTES_MAX: usize = 4
    + 8
    + POOL_VERSIONS_MAX * (2 * FID_BYTES + 12 + 4 + 8)
    + DEVICE_RUNS_MAX * 8
    + 8
    + (POOL_VERSIONS_MAX + 1) * (FID_BYTES + 8 + POOL_NAME_BYTES_MAX)
    + 8
    + (POOL_VERSIONS_MAX + 1) * (FID_BYTES + 4);

/// Encoded bytes of the largest `Spares`: slots (device, slot, phase, number of the copy), the version that reads need, copies begun.
pub const SPARES_BYTES_MAX: usize = 8 + SPARE_SLOTS_MAX * 16 + 8 + 4;

/// Encoded bytes of the largest configuration.
pub const CONFIGURATION_BYTES_MAX: usize = CONFIGURATION_HEAD_BYTES
    + FURTHER_POOLS_BYTES_MAX
    + SPARES_BYTES_MAX
    + SERVERS_MAX * PROCESS_CONFIG_BYTES
    + DEVICES_MAX * DEVICE_CONFIG_BYTES
    + AWAITED_DISKS_MAX * FID_BYTES;

/// What a `ConfGetReply` adds to a configuration that fits one message: version, option tag, length.
const CONF_GET_REPLY_BYTES: usize = 8 + 1 + 8;
/// Bytes of the largest configuration that a `ConfGetReply` carries: what requesters get who do not know `ConfSync`.
pub const CONF_MESSAGE_BYTES: usize = 65_536 - CONF_GET_REPLY_BYTES - ITEM_HEADER_ROOM;
/// What a `Part` adds: variant, four numbers, checksum, length; and what `Changes` do: variant, two numbers, checksum, length.
const CONF_PART_HEAD_BYTES: usize = 4 + 4 * 8 + 4 + 8;
/// Encoded bytes of a `ProcessStatus`: fid, silence, flag.
const PROCESS_STATUS_BYTES: usize = FID_BYTES + 9 + 1;
/// Encoded bytes of a `DeviceStatus`: fid, a word of at most 16 bytes, three numbers, one of them optional.
const DEVICE_STATUS_BYTES: usize = FID_BYTES + 8 + 16 + 8 + 9 + 8;
/// Bytes of processes and devices of the largest `ClusterStatusReply`: what fits it is for requesters who do not know `StatusGet`.
pub const CLUSTER_STATUS_BYTES: usize = 65_536 - 3 * 8 - ITEM_HEADER_ROOM;

/// True if the status of so many processes and devices fits one message.
#[must_use]
pub fn status_fits_a_message(processes: usize, devices: usize) -> bool {
    processes * PROCESS_STATUS_BYTES + devices * DEVICE_STATUS_BYTES <= CLUSTER_STATUS_BYTES
}

/// Room for the item's header in front of a body.
const ITEM_HEADER_ROOM: usize = 1024;

const _: () =
    assert!(wide(CONF_MESSAGE_BYTES + CONF_GET_REPLY_BYTES + ITEM_HEADER_ROOM) == MESSAGE_BYTES_MAX);
const _: () = assert!(wide(CONF_PART_BYTES + CONF_PART_HEAD_BYTES + ITEM_HEADER_ROOM) <= MESSAGE_BYTES_MAX);
const _: () =
    assert!(wide(CONF_CHANGES_BYTES + CONF_PART_HEAD_BYTES + ITEM_HEADER_ROOM) <= MESSAGE_BYTES_MAX);
const _: () = assert!(CONFIGURATION_BYTES_MAX <= fops::codec::LONG_BYTES_MAX);
const _: () = assert!(
    wide(STATUS_PAGE * (PROCESS_STATUS_BYTES + DEVICE_STATUS_BYTES) + 4 * 8 + ITEM_HEADER_ROOM)
        <= MESSAGE_BYTES_MAX
);
const _: () = assert!(wide(CLUSTER_TEXT_PART_BYTES + ITEM_HEADER_ROOM) <= MESSAGE_BYTES_MAX);
const _: () = assert!(wide(CLUSTER_UPLOAD_PART_BYTES) <= REQUEST_BULK_BYTES_MAX);
/// Encoded bytes of a `ConfTransaction`: five numbers, endpoint, change count, note with its length.
const TRANSACTION_BYTES_MAX: usize = 4 * 8 + 4 + ENDPOINT_BYTES + 8 + NOTE_BYTES_MAX;
/// Encoded bytes of an `Event`: three numbers, fid, three words of at most 16 bytes.
const EVENT_BYTES_MAX: usize = 3 * 8 + FID_BYTES + 3 * (8 + 16);
const _: () = assert!(wide(3 * 8 + EVENTS_PAGE * EVENT_BYTES_MAX + ITEM_HEADER_ROOM) <= MESSAGE_BYTES_MAX);
const _: () =
    assert!(wide(8 + TRANSACTIONS_KEPT * TRANSACTION_BYTES_MAX + ITEM_HEADER_ROOM) <= MESSAGE_BYTES_MAX);
/// Encoded bytes of a `LoadSample`: ten numbers, a count.
const LOAD_SAMPLE_BYTES: usize = 10 * 8 + 4;
const _: () =
    assert!(wide(4 + 8 + LOAD_PERIODS_KEPT * LOAD_SAMPLE_BYTES + ITEM_HEADER_ROOM) <= MESSAGE_BYTES_MAX);
/// Foms that are left for heartbeats and for what does not wait.
const FOMS_FREE: usize = 16;
const _: () = assert!(
    LOCK_WAITS_MAX + RM_WAITS_MAX + WATCH_WAITS_MAX + NOTIFIES_MAX + EVENTS_WAITS_MAX + FOMS_FREE
        <= rpc::limits::FOMS_MAX
);
/// Encoded bytes of a `WatchPlace`: watcher, cookie, name, endpoint.
const WATCH_PLACE_BYTES: usize = 16 + 8 + 8 + WATCH_NAME_BYTES_MAX + ENDPOINT_BYTES;
const _: () = assert!(
    wide(4 + 2 * 8 + NOTIFY_PAGE * (WATCH_PLACE_BYTES + 8 + NOTIFY_ACK_BYTES_MAX) + ITEM_HEADER_ROOM)
        <= MESSAGE_BYTES_MAX
);
/// Encoded bytes of a `Notification` without its payload: number, cookie, notify, object, endpoint, length.
const NOTIFICATION_BYTES: usize = 2 * 8 + 16 + FID_BYTES + ENDPOINT_BYTES + 8;
const _: () = assert!(
    wide(
        3 * 8
            + WATCHES_PER_WATCHER_MAX * 8
            + WATCH_PAGE * NOTIFICATION_BYTES
            + WATCH_PAGE_BYTES
            + ITEM_HEADER_ROOM
    ) <= MESSAGE_BYTES_MAX
);
const _: () = assert!(
    wide(8 + 1 + WATCH_LIST_PAGE * (WATCH_PLACE_BYTES + FID_BYTES + 4 + 8 + 4) + ITEM_HEADER_ROOM)
        <= MESSAGE_BYTES_MAX
);
/// Encoded bytes of a `HolderAsk` without its payload: lock, watcher, cookie, kind, time, length.
const HOLDER_ASK_BYTES: usize = LOCK_NAME_ENCODED + 16 + 8 + 4 + 4 + 8;
// A wish to release with its reason, and a grant that is told, are shorter than a notify.
const _: () = assert!(LOCK_ENTRY_BYTES_MAX + HOLDER_ASK_BYTES <= NOTIFY_BYTES_MAX);
const _: () = assert!(NOTIFY_WAIT_MS_MAX as u128 + 1_000 < rpc::limits::HUNG_AFTER.as_millis());
/// Encoded bytes of a lock's name: option, fid, length, text.
const LOCK_NAME_ENCODED: usize = 1 + FID_BYTES + 8 + LOCK_NAME_BYTES_MAX;
/// Encoded bytes of a `LockEntry`: name, ticket, two words, endpoint, since, why, breaking (fence, endpoint, why), silence, waiting, fenced.
const LOCK_ENTRY_BYTES_MAX: usize = LOCK_NAME_ENCODED
    + (16 + 8)
    + 2 * 4
    + ENDPOINT_BYTES
    + 8
    + (8 + NOTE_BYTES_MAX)
    + (1 + 8 + ENDPOINT_BYTES + 8 + NOTE_BYTES_MAX)
    + 9
    + 4
    + 1;
const _: () =
    assert!(wide(8 + 1 + LOCKS_PAGE * LOCK_ENTRY_BYTES_MAX + ITEM_HEADER_ROOM) <= MESSAGE_BYTES_MAX);
const _: () = assert!(wide(8 + 1 + FENCES_PAGE * (8 + 16 + 8) + ITEM_HEADER_ROOM) <= MESSAGE_BYTES_MAX);
/// Encoded bytes of an `RmHolder`: borrower, name, endpoint, flag.
const RM_HOLDER_BYTES: usize = 16 + 8 + RM_NAME_BYTES_MAX + ENDPOINT_BYTES + 1;
/// Encoded bytes of an `RmLoanEntry`: holder, number, resource, credit (two keys), flag, silence.
const RM_LOAN_ENTRY_BYTES: usize =
    RM_HOLDER_BYTES + 8 + (4 + 8 + RM_NAME_BYTES_MAX) + (4 + 2 * (9 + RM_KEY_BYTES_MAX) + 4) + 1 + 8;
const _: () =
    assert!(wide(4 * 8 + RM_LIST_PAGE * RM_LOAN_ENTRY_BYTES + ITEM_HEADER_ROOM) <= MESSAGE_BYTES_MAX);
const _: () =
    assert!(wide(4 * 8 + RM_HOLDERS_NAMED * RM_HOLDER_BYTES + ITEM_HEADER_ROOM) <= MESSAGE_BYTES_MAX);
const _: () =
    assert!(wide(4 * 8 + 8 * (RM_PAGE + LOANS_PER_BORROWER_MAX) + ITEM_HEADER_ROOM) <= MESSAGE_BYTES_MAX);
/// Encoded bytes of a `RepairStatus`: two fids, number, state, reason, progress (four numbers, a fid, those that are lost), three numbers.
const REPAIR_STATUS_BYTES_MAX: usize = 2 * FID_BYTES
    + 4
    + (8 + 16)
    + (8 + REPAIR_REASON_BYTES_MAX)
    + (4 * 8 + 1 + FID_BYTES + 8 + REPAIR_LOST_NAMED * FID_BYTES)
    + 3 * 8;
const _: () =
    assert!(wide(8 + 1 + REPAIRS_PAGE * REPAIR_STATUS_BYTES_MAX + ITEM_HEADER_ROOM) <= MESSAGE_BYTES_MAX);
/// Encoded bytes of a `FenceWait`: two fids, endpoint, time.
const FENCE_WAIT_BYTES: usize = 2 * FID_BYTES + ENDPOINT_BYTES + 8;
const _: () =
    assert!(wide(4 + 8 + FENCE_WAITS_NAMED * FENCE_WAIT_BYTES + ITEM_HEADER_ROOM) <= MESSAGE_BYTES_MAX);
// docs/configuration.md says this number.
const _: () = assert!(CONFIGURATION_BYTES_MAX == 723_670);
