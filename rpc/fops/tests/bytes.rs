//! Bytes of every body: pinned (golden), agreed upon by an independent codec (wincode, over tuples of the same shape), and
//! hostile ones refused without a panic or a large allocation.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "helpers of tests; tuples mirror bodies")]

use base::{BlockExtent, Endpoint, Fid, LayoutWidth};
use fops::codec::{CodecError, Decode, Encode, decode, encode, encode_into};
use fops::{
    FopError, admin, component, conf, conf_sync, load, lock, member, news, object, repair, rm, watch,
};
use proptest::prelude::*;

type RawFid = (u64, u64);

const FID: Fid = Fid { container: 0x0102_0304_0506_0708, key: 9 };
const RAW: RawFid = (0x0102_0304_0506_0708, 9);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `body` has exactly these bytes, and another codec reads and writes the same for a tuple of its shape.
#[track_caller]
fn pinned<T>(body: T, agreed: Vec<u8>, golden: &str)
where
    T: Encode + Decode<()> + PartialEq + std::fmt::Debug,
{
    let bytes = encode(&body).unwrap();
    assert_eq!(hex(&bytes), golden.replace([' ', '\n'], ""), "golden bytes");
    assert_eq!(hex(&bytes), hex(&agreed), "bytes of wincode");
    assert_eq!(decode::<T>(&agreed).unwrap(), body);
    let mut buffer = vec![0xee; bytes.len()];
    assert_eq!(encode_into(&body, &mut buffer).unwrap(), Some(bytes.len()));
    assert_eq!(buffer, bytes);
    if !bytes.is_empty() {
        buffer.pop();
        assert_eq!(encode_into(&body, &mut buffer).unwrap(), None, "one byte short");
        for cut in 0..bytes.len() {
            assert!(decode::<T>(&bytes[..cut]).is_err(), "cut to {cut} bytes");
        }
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(matches!(decode::<T>(&longer), Err(CodecError::TrailingBytes { left: 1 })));
}

macro_rules! agreed {
    ($shape:ty: $value:expr) => {{
        let value: $shape = $value;
        wincode::serialize(&value).unwrap()
    }};
}

fn record() -> object::ObjectRecord {
    object::ObjectRecord {
        version: 2,
        generation: 0x55,
        object: FID,
        size_bytes: 0x10001,
        width: LayoutWidth::new(4, 2, 1).unwrap(),
        unit_bytes: 65536,
        pool_version: Fid { container: 7, key: 8 },
        deleted: false,
    }
}

type RawRecord = (u64, u64, RawFid, u64, (u32, u32, u32), u32, RawFid, bool);

fn raw_record() -> RawRecord {
    (2, 0x55, RAW, 0x10001, (4, 2, 1), 65536, (7, 8), false)
}

const RECORD_HEX: &str =
    "0200000000000000 5500000000000000 0807060504030201 0900000000000000 0100010000000000
    04000000 02000000 01000000 00000100 0700000000000000 0800000000000000 00";
const FID_HEX: &str = "0807060504030201 0900000000000000";

#[test]
fn orders_about_devices() {
    pinned(
        conf::DeviceCommand { device: FID, order: conf::DeviceOrder::Detach { force: true } },
        agreed!((RawFid, (u32, bool)): (RAW, (0, true))),
        &format!("{FID_HEX} 00000000 01"),
    );
    pinned(
        conf::DeviceCommand { device: FID, order: conf::DeviceOrder::Attach },
        agreed!((RawFid, u32): (RAW, 1)),
        &format!("{FID_HEX} 01000000"),
    );
    pinned(
        conf::DeviceCommand { device: FID, order: conf::DeviceOrder::Replace },
        agreed!((RawFid, u32): (RAW, 2)),
        &format!("{FID_HEX} 02000000"),
    );
    pinned(
        conf::DeviceCommand { device: FID, order: conf::DeviceOrder::Restored { replacement: 9 } },
        agreed!((RawFid, (u32, u32)): (RAW, (3, 9))),
        &format!("{FID_HEX} 03000000 09000000"),
    );
    for (order, number) in [
        (conf::DeviceOrder::RepairStart, 4_u8),
        (conf::DeviceOrder::RepairPause, 5),
        (conf::DeviceOrder::RepairResume, 6),
        (conf::DeviceOrder::RepairAbort, 7),
    ] {
        pinned(
            conf::DeviceCommand { device: FID, order },
            agreed!((RawFid, u32): (RAW, number.into())),
            &format!("{FID_HEX} {number:02x}000000"),
        );
    }
    pinned(
        conf::DeviceCommandReply {
            version: 7,
            state: "on".to_owned(),
            is_new: true,
            is_heeded: false,
            replacement: 5,
        },
        agreed!((u64, String, bool, bool, u32): (7, "on".to_owned(), true, false, 5)),
        "0700000000000000 0200000000000000 6f6e 01 00 05000000",
    );
}

#[test]
fn bodies_of_repairs() {
    let progress = || repair::RepairProgress {
        records: 1,
        objects: 2,
        bytes: 3,
        last: Some(FID),
        lost_count: 1,
        lost: vec![FID],
    };
    type RawProgress = (u64, u64, u64, Option<RawFid>, u64, Vec<RawFid>);
    let raw = || -> RawProgress { (1, 2, 3, Some(RAW), 1, vec![RAW]) };
    let progress_hex = format!(
        "0100000000000000 0200000000000000 0300000000000000 01 {FID_HEX} 0100000000000000 0100000000000000 {FID_HEX}"
    );
    let turn = |word| repair::RepairTurn { process: FID, epoch: 6, device: FID, replacement: 9, word };
    let head_hex = format!("{FID_HEX} 0600000000000000 {FID_HEX} 09000000");
    pinned(
        turn(repair::RepairWord::Asks),
        agreed!((RawFid, u64, RawFid, u32, u32): (RAW, 6, RAW, 9, 0)),
        &format!("{head_hex} 00000000"),
    );
    pinned(
        turn(repair::RepairWord::Copies(progress())),
        agreed!((RawFid, u64, RawFid, u32, (u32, RawProgress)): (RAW, 6, RAW, 9, (1, raw()))),
        &format!("{head_hex} 01000000 {progress_hex}"),
    );
    pinned(
        turn(repair::RepairWord::Ended(progress())),
        agreed!((RawFid, u64, RawFid, u32, (u32, RawProgress)): (RAW, 6, RAW, 9, (2, raw()))),
        &format!("{head_hex} 02000000 {progress_hex}"),
    );
    pinned(
        turn(repair::RepairWord::Fails(progress(), "no".to_owned())),
        agreed!((RawFid, u64, RawFid, u32, (u32, RawProgress, String)): (RAW, 6, RAW, 9, (3, raw(), "no".to_owned()))),
        &format!("{head_hex} 03000000 {progress_hex} 0200000000000000 6e6f"),
    );
    for (order, number) in [
        (repair::RepairOrder::Wait, 0_u8),
        (repair::RepairOrder::Run, 1),
        (repair::RepairOrder::Pause, 2),
        (repair::RepairOrder::Leave, 3),
    ] {
        pinned(
            repair::RepairTurnReply { order, progress: progress(), bytes_per_second: 5, version: 7 },
            agreed!((u32, RawProgress, u64, u64): (number.into(), raw(), 5, 7)),
            &format!("{number:02x}000000 {progress_hex} 0500000000000000 0700000000000000"),
        );
    }
    pinned(repair::RepairGet { after: None }, agreed!(Option<RawFid>: None), "00");
    let status = repair::RepairStatus {
        device: FID,
        process: FID,
        replacement: 9,
        state: "on".to_owned(),
        reason: String::new(),
        progress: progress(),
        expected_bytes: 4,
        bytes_per_second: 5,
        bytes_per_second_max: 6,
    };
    pinned(
        repair::RepairGetReply { repairs: vec![status], has_more: true },
        agreed!((Vec<(RawFid, RawFid, u32, String, String, RawProgress, (u64, u64, u64))>, bool):
            (vec![(RAW, RAW, 9, "on".to_owned(), String::new(), raw(), (4, 5, 6))], true)),
        &format!(
            "0100000000000000 {FID_HEX} {FID_HEX} 09000000 0200000000000000 6f6e 0000000000000000 {progress_hex} \
             0400000000000000 0500000000000000 0600000000000000 01"
        ),
    );
}

#[test]
fn bodies_of_members() {
    let endpoint: Endpoint = "127.0.0.1@tcp2:12345:34:5".parse().unwrap();
    pinned(
        member::MemberMessage { cluster: 1, from: 2, to: 3, message: 4, offset: 5, total_bytes: 6 },
        agreed!((u64, u64, u64, u64, u64, u64): (1, 2, 3, 4, 5, 6)),
        "0100000000000000 0200000000000000 0300000000000000 0400000000000000 0500000000000000 0600000000000000",
    );
    pinned(member::MemberMessageReply, Vec::new(), "");
    pinned(member::MembersGet, Vec::new(), "");
    let status = member::MemberStatus {
        number: 8,
        endpoint: Some(endpoint),
        is_voter: true,
        silent_ms: None,
        last: Some(9),
    };
    pinned(
        member::MembersReply {
            own: 1,
            term: 2,
            leader: 3,
            committed: 4,
            applied: 5,
            last: 6,
            members: vec![status],
        },
        agreed!((u64, u64, u64, u64, u64, u64, Vec<(u64, Option<(((u32, u16), u32), u32, u16, u16)>, bool, Option<u64>, Option<u64>)>):
            (1, 2, 3, 4, 5, 6, vec![(8, Some((((1, 2), 0x7f00_0001), 12345, 34, 5)), true, None, Some(9))])),
        "0100000000000000 0200000000000000 0300000000000000 0400000000000000 0500000000000000 0600000000000000 \
         0100000000000000 0800000000000000 01 01000000 0200 0100007f 39300000 2200 0500 01 00 01 0900000000000000",
    );
    pinned(
        member::MemberChange { number: 4, adds: true },
        agreed!((u64, bool): (4, true)),
        "0400000000000000 01",
    );
    pinned(member::MemberChangeReply { is_done: false }, agreed!(bool: false), "00");
}

#[test]
fn bodies_of_control() {
    pinned(conf::ConfGet { known_version: 3 }, agreed!(u64: 3), "0300000000000000");
    pinned(
        conf::ConfGetReply { version: 4, configuration: Some(vec![0xaa, 0xbb]) },
        agreed!((u64, Option<Vec<u8>>): (4, Some(vec![0xaa, 0xbb]))),
        "0400000000000000 01 0200000000000000 aabb",
    );
    pinned(
        conf::ConfGetReply { version: 4, configuration: None },
        agreed!((u64, Option<Vec<u8>>): (4, None)),
        "0400000000000000 00",
    );
    let endpoint: Endpoint = "127.0.0.1@tcp2:12345:34:5".parse().unwrap();
    pinned(
        conf::Register {
            process: FID,
            epoch: 6,
            devices: vec![conf::RegisteredDevice {
                device: FID,
                endpoint,
                size_blocks: 1024,
                replacement: 9,
            }],
        },
        agreed!((RawFid, u64, Vec<(RawFid, ((u32, u16), u32), u32, u16, u16, u64, u32)>):
            (RAW, 6, vec![(RAW, ((1, 2), 0x7f00_0001), 12345, 34, 5, 1024, 9)])),
        &format!(
            "{FID_HEX} 0600000000000000 0100000000000000 {FID_HEX} 01000000 0200 0100007f 39300000 2200 0500 0004000000000000 09000000"
        ),
    );
    pinned(
        conf::RegisterReply { version: 1, lease_ms: 3000 },
        agreed!((u64, u64): (1, 3000)),
        "0100000000000000 b80b000000000000",
    );
    pinned(
        conf::Heartbeat {
            process: FID,
            epoch: 6,
            devices: vec![conf::DeviceHealth { device: FID, free_blocks: 5, errors: 1, failed: true }],
        },
        agreed!((RawFid, u64, Vec<(RawFid, u64, u64, bool)>): (RAW, 6, vec![(RAW, 5, 1, true)])),
        &format!(
            "{FID_HEX} 0600000000000000 0100000000000000 {FID_HEX} 0500000000000000 0100000000000000 01"
        ),
    );
    pinned(
        conf::HeartbeatReply { version: 1, known: false },
        agreed!((u64, bool): (1, false)),
        "0100000000000000 00",
    );
    pinned(
        conf::DeviceReport { device: FID, evidence: conf::DeviceEvidence::Operator },
        agreed!((RawFid, u32): (RAW, 2)),
        &format!("{FID_HEX} 02000000"),
    );
    pinned(conf::DeviceReportReply { version: 5 }, agreed!(u64: 5), "0500000000000000");
    pinned(conf::ClusterStatus, Vec::new(), "");
    pinned(
        conf::ClusterStatusReply {
            version: 1,
            processes: vec![conf::ProcessStatus { process: FID, silent_ms: Some(12), alive: true }],
            devices: vec![conf::DeviceStatus {
                device: FID,
                state: "online".to_owned(),
                size_blocks: 4,
                free_blocks: Some(3),
                errors: 2,
            }],
        },
        agreed!((u64, Vec<(RawFid, Option<u64>, bool)>, Vec<(RawFid, String, u64, Option<u64>, u64)>):
            (1, vec![(RAW, Some(12), true)], vec![(RAW, "online".to_owned(), 4, Some(3), 2)])),
        &format!(
            "0100000000000000 0100000000000000 {FID_HEX} 01 0c00000000000000 01
             0100000000000000 {FID_HEX} 0600000000000000 6f6e6c696e65 0400000000000000 01 0300000000000000 0200000000000000"
        ),
    );
}

#[test]
fn bodies_of_cluster_file_changes() {
    pinned(
        conf::ConfText { transaction: 3, offset: 5 },
        agreed!((u64, u64): (3, 5)),
        "0300000000000000 0500000000000000",
    );
    pinned(
        conf::ConfTextReply { transaction: 3, total_bytes: 7, part: vec![0xaa] },
        agreed!((u64, u64, Vec<u8>): (3, 7, vec![0xaa])),
        "0300000000000000 0700000000000000 0100000000000000 aa",
    );
    pinned(
        conf::ConfApply { base: 2, unix_s: 9, note: "ab".to_owned() },
        agreed!((u64, u64, String): (2, 9, "ab".to_owned())),
        "0200000000000000 0900000000000000 0200000000000000 6162",
    );
    pinned(
        conf::ConfApplyReply { transaction: 3, version: 4, changes: 5 },
        agreed!((u64, u64, u32): (3, 4, 5)),
        "0300000000000000 0400000000000000 05000000",
    );
    pinned(conf::ConfHistory, agreed!((): ()), "");
    let by: Endpoint = "127.0.0.1@tcp2:12345:34:5".parse().unwrap();
    let record = conf::ConfTransaction {
        number: 1,
        version: 2,
        unix_s: 3,
        by,
        note: "n".to_owned(),
        changes: 4,
        text_bytes: 5,
    };
    let bytes = encode(&record).unwrap();
    // Endpoints are pinned with the other bodies.
    let endpoint = encode(&by).unwrap();
    let mut expected = [1u64, 2, 3].map(u64::to_le_bytes).concat();
    expected.extend(endpoint);
    expected.extend(agreed!((String, u32, u64): ("n".to_owned(), 4, 5)));
    assert_eq!(hex(&bytes), hex(&expected));
    let reply = conf::ConfHistoryReply { transactions: vec![record] };
    let bytes = encode(&reply).unwrap();
    assert_eq!(bytes[..8], 1u64.to_le_bytes());
    assert_eq!(decode::<conf::ConfHistoryReply>(&bytes).unwrap(), reply);
    for cut in 0..bytes.len() {
        assert!(decode::<conf::ConfHistoryReply>(&bytes[..cut]).is_err(), "cut to {cut} bytes");
    }
}

#[test]
fn bodies_of_events() {
    pinned(
        conf::EventsGet { after: 3, wait_ms: 5 },
        agreed!((u64, u32): (3, 5)),
        "0300000000000000 05000000",
    );
    let event = conf::Event {
        number: 1,
        version: 2,
        unix_s: 3,
        subject: FID,
        cause: "c".to_owned(),
        from: "f".to_owned(),
        to: "t".to_owned(),
    };
    pinned(
        conf::EventsReply { oldest: 1, newest: 4, events: vec![event] },
        agreed!((u64, u64, Vec<(u64, u64, u64, RawFid, String, String, String)>):
            (1, 4, vec![(1, 2, 3, RAW, "c".to_owned(), "f".to_owned(), "t".to_owned())])),
        &format!(
            "0100000000000000 0400000000000000 0100000000000000 0100000000000000 0200000000000000 0300000000000000
             {FID_HEX} 0100000000000000 63 0100000000000000 66 0100000000000000 74"
        ),
    );
}

#[test]
fn bodies_of_object_records() {
    pinned(
        object::ObjectOpen { device: FID, mode: object::OpenMode::CreateOrOpen, record: record() },
        agreed!((RawFid, u32, RawRecord): (RAW, 2, raw_record())),
        &format!("{FID_HEX} 02000000 {RECORD_HEX}"),
    );
    pinned(
        object::ObjectOpenReply { record: record(), created: true },
        agreed!((RawRecord, bool): (raw_record(), true)),
        &format!("{RECORD_HEX} 01"),
    );
    pinned(
        object::ObjectUpdate { device: FID, expected_version: 1, repair: false, record: record() },
        agreed!((RawFid, u64, bool, RawRecord): (RAW, 1, false, raw_record())),
        &format!("{FID_HEX} 0100000000000000 00 {RECORD_HEX}"),
    );
    pinned(object::ObjectUpdateReply { record: record() }, agreed!(RawRecord: raw_record()), RECORD_HEX);
    pinned(
        object::ObjectDelete { device: FID, object: FID, version: 3 },
        agreed!((RawFid, RawFid, u64): (RAW, RAW, 3)),
        &format!("{FID_HEX} {FID_HEX} 0300000000000000"),
    );
    pinned(object::ObjectDeleteReply { existed: true }, agreed!(bool: true), "01");
    pinned(
        object::ObjectForget { device: FID, object: FID, job: 0x8000_0003 },
        agreed!((RawFid, RawFid, u32): (RAW, RAW, 0x8000_0003)),
        &format!("{FID_HEX} {FID_HEX} 03000080"),
    );
    pinned(object::ObjectForgetReply { existed: true }, agreed!(bool: true), "01");
    pinned(
        object::ObjectList { device: FID, after: Some(FID), limit: 100 },
        agreed!((RawFid, Option<RawFid>, u32): (RAW, Some(RAW), 100)),
        &format!("{FID_HEX} 01 {FID_HEX} 64000000"),
    );
    pinned(
        object::ObjectListReply { records: vec![record()], more: true },
        agreed!((Vec<RawRecord>, bool): (vec![raw_record()], true)),
        &format!("0100000000000000 {RECORD_HEX} 01"),
    );
}

#[test]
fn bodies_of_components_and_admin() {
    let extents = vec![BlockExtent { start: 16, count: 2 }];
    pinned(
        component::ComponentWrite {
            device: FID,
            component: FID,
            generation: 1,
            extents: extents.clone(),
            checksums: vec![0xdead_beef, 1],
        },
        agreed!((RawFid, RawFid, u64, Vec<(u64, u64)>, Vec<u32>):
            (RAW, RAW, 1, vec![(16, 2)], vec![0xdead_beef, 1])),
        &format!(
            "{FID_HEX} {FID_HEX} 0100000000000000 0100000000000000 1000000000000000 0200000000000000
             0200000000000000 efbeadde 01000000"
        ),
    );
    pinned(component::ComponentWriteReply { free_blocks: 6 }, agreed!(u64: 6), "0600000000000000");
    pinned(
        component::ComponentRead { device: FID, component: FID, generation: 1, extents: extents.clone() },
        agreed!((RawFid, RawFid, u64, Vec<(u64, u64)>): (RAW, RAW, 1, vec![(16, 2)])),
        &format!("{FID_HEX} {FID_HEX} 0100000000000000 0100000000000000 1000000000000000 0200000000000000"),
    );
    pinned(
        component::ComponentReadReply { checksums: vec![7], absent: extents },
        agreed!((Vec<u32>, Vec<(u64, u64)>): (vec![7], vec![(16, 2)])),
        "0100000000000000 07000000 0100000000000000 1000000000000000 0200000000000000",
    );
    pinned(
        component::ComponentDelete { device: FID, component: FID, from_generation: 5, below_generation: 7 },
        agreed!((RawFid, RawFid, u64, u64): (RAW, RAW, 5, 7)),
        &format!("{FID_HEX} {FID_HEX} 0500000000000000 0700000000000000"),
    );
    pinned(component::ComponentDeleteReply { deleted: 1 }, agreed!(u64: 1), "0100000000000000");
    let extents = vec![BlockExtent { start: 16, count: 2 }];
    pinned(
        component::ComponentPunch { device: FID, component: FID, generation: 1, extents, job: 0x8000_0003 },
        agreed!((RawFid, RawFid, u64, Vec<(u64, u64)>, u32): (RAW, RAW, 1, vec![(16, 2)], 0x8000_0003)),
        &format!(
            "{FID_HEX} {FID_HEX} 0100000000000000 0100000000000000 1000000000000000 0200000000000000 03000080"
        ),
    );
    pinned(component::ComponentPunchReply { free_blocks: 6 }, agreed!(u64: 6), "0600000000000000");
    pinned(
        admin::DeviceFault { device: FID, failed: true },
        agreed!((RawFid, bool): (RAW, true)),
        &format!("{FID_HEX} 01"),
    );
    pinned(admin::DeviceFaultReply, Vec::new(), "");
    pinned(admin::Ping { payload: vec![1, 2].into() }, agreed!(Vec<u8>: vec![1, 2]), "0200000000000000 0102");
    pinned(
        admin::PingReply { payload: vec![3].into(), epoch: 4 },
        agreed!((Vec<u8>, u64): (vec![3], 4)),
        "0100000000000000 03 0400000000000000",
    );
    pinned(admin::ProcessGet, Vec::new(), "");
    pinned(
        admin::ProcessGetReply {
            version: "0.1".to_owned(),
            epoch: 4,
            unix_us: Some(5),
            store: Some(admin::StoreSpace { blocks: 7, free_blocks: 6 }),
        },
        agreed!((String, u64, Option<u64>, Option<(u64, u64)>): ("0.1".to_owned(), 4, Some(5), Some((7, 6)))),
        "0300000000000000 302e31 0400000000000000 01 0500000000000000 01 0700000000000000 0600000000000000",
    );
    pinned(admin::Shutdown, Vec::new(), "");
    pinned(admin::ShutdownReply, Vec::new(), "");
    let rule = || "drop".to_owned();
    pinned(
        admin::NetFault { request: admin::NetFaultRequest::Add { rule: rule() } },
        agreed!((u32, String): (0, rule())),
        "00000000 0400000000000000 64726f70",
    );
    pinned(admin::NetFault { request: admin::NetFaultRequest::List }, agreed!((u32,): (1,)), "01000000");
    pinned(
        admin::NetFault { request: admin::NetFaultRequest::Clear { id: Some(7) } },
        agreed!((u32, Option<u64>): (2, Some(7))),
        "02000000 01 0700000000000000",
    );
    pinned(
        admin::NetFaultReply {
            rules: vec![admin::NetFaultStatus { id: 7, rule: rule(), matched: 9, fired: 8 }],
        },
        agreed!((Vec<(u64, String, u64, u64)>,): (vec![(7, rule(), 9, 8)],)),
        "0100000000000000 0700000000000000 0400000000000000 64726f70 0900000000000000 0800000000000000",
    );
}

/// The numbers of errors are those of their order in the enum: appended to, never reordered.
#[test]
fn errors() {
    let reason = || "why".to_owned();
    let text = "0300000000000000 776879";
    let raw_text = || "why".to_owned();
    pinned(
        FopError::NoSuchObject { object: FID },
        agreed!((u32, RawFid): (0, RAW)),
        &format!("00000000 {FID_HEX}"),
    );
    pinned(
        FopError::ObjectExists { object: FID },
        agreed!((u32, RawFid): (1, RAW)),
        &format!("01000000 {FID_HEX}"),
    );
    pinned(
        FopError::VersionConflict { object: FID, expected: 1, found: 2 },
        agreed!((u32, RawFid, u64, u64): (2, RAW, 1, 2)),
        &format!("02000000 {FID_HEX} 0100000000000000 0200000000000000"),
    );
    pinned(
        FopError::WrongServer { device: FID },
        agreed!((u32, RawFid): (3, RAW)),
        &format!("03000000 {FID_HEX}"),
    );
    pinned(
        FopError::Device { device: FID, reason: reason() },
        agreed!((u32, RawFid, String): (4, RAW, raw_text())),
        &format!("04000000 {FID_HEX} {text}"),
    );
    pinned(
        FopError::Checksum { device: FID, extent: BlockExtent { start: 1, count: 2 } },
        agreed!((u32, RawFid, (u64, u64)): (5, RAW, (1, 2))),
        &format!("05000000 {FID_HEX} 0100000000000000 0200000000000000"),
    );
    pinned(FopError::DamagedInTransit { block: 3 }, agreed!((u32, u64): (6, 3)), "06000000 0300000000000000");
    pinned(
        FopError::NoSpace { device: FID, wanted_blocks: 2, free_blocks: 1 },
        agreed!((u32, RawFid, u64, u64): (7, RAW, 2, 1)),
        &format!("07000000 {FID_HEX} 0200000000000000 0100000000000000"),
    );
    pinned(
        FopError::Stale { have: 1, need: 2 },
        agreed!((u32, u64, u64): (8, 1, 2)),
        "08000000 0100000000000000 0200000000000000",
    );
    let with_reason: [(u32, FopError); 5] = [
        (9, FopError::BadRequest { reason: reason() }),
        (10, FopError::Bulk { reason: reason() }),
        (11, FopError::NotServing { reason: reason() }),
        (12, FopError::NotPermitted { reason: reason() }),
        (14, FopError::Internal { reason: reason() }),
    ];
    for (number, error) in with_reason {
        let agreed = agreed!((u32, String): (number, raw_text()));
        pinned(error, agreed, &format!("{} {text}", hex(&number.to_le_bytes())));
    }
    pinned(FopError::ReplyGone, agreed!(u32: 13), "0d000000");
}

#[test]
fn bodies_of_load() {
    let times =
        load::Times { sum_ns: 5, longest_ns: 3, buckets: vec![load::TimeBucket { bucket: 7, count: 2 }] };
    pinned(
        load::LoadReport {
            process: FID,
            locality: 1,
            epoch: 2,
            read_bytes: 3,
            written_bytes: 4,
            reads: times,
            writes: load::Times::default(),
        },
        agreed!((RawFid, u32, u64, u64, u64, (u64, u64, Vec<(u8, u64)>), (u64, u64, Vec<(u8, u64)>)):
            (RAW, 1, 2, 3, 4, (5, 3, vec![(7, 2)]), (0, 0, vec![]))),
        &format!(
            "{FID_HEX} 01000000 0200000000000000 0300000000000000 0400000000000000
             0500000000000000 0300000000000000 0100000000000000 07 0200000000000000
             0000000000000000 0000000000000000 0000000000000000"
        ),
    );
    pinned(load::LoadGet { after: 1, most: 2 }, agreed!((u64, u32): (1, 2)), "0100000000000000 02000000");
    let sample = load::LoadSample {
        number: 1,
        unix_s: 2,
        processes: 3,
        reads: 4,
        writes: 5,
        read_bytes: 6,
        written_bytes: 7,
        read_p50_ns: 8,
        read_p99_ns: 9,
        write_p50_ns: 10,
        write_p99_ns: 11,
    };
    let numbers = |from: u64, to: u64| hex(&(from..=to).flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
    let reply = load::LoadGetReply { period_ms: 9, samples: vec![sample] };
    let bytes = encode(&reply).unwrap();
    assert_eq!(hex(&bytes), format!("09000000{}{}03000000{}", numbers(1, 1), numbers(1, 2), numbers(4, 11)));
    assert_eq!(decode::<load::LoadGetReply>(&bytes).unwrap(), reply);
}

#[test]
fn bodies_of_what_travels_in_parts() {
    pinned(
        conf_sync::ConfSync { format: 2, known_version: 3, version: 4, offset: 5 },
        agreed!((u32, u64, u64, u64): (2, 3, 4, 5)),
        "02000000 0300000000000000 0400000000000000 0500000000000000",
    );
    pinned(
        conf_sync::ConfSyncReply::Current { version: 3 },
        agreed!((u32, u64): (0, 3)),
        "00000000 0300000000000000",
    );
    pinned(
        conf_sync::ConfSyncReply::Changes {
            version: 4,
            newest: 5,
            checksum: 6,
            steps: vec![vec![conf_sync::ConfSplice { at: 7, gone: 1, put: vec![0xaa, 0xbb] }]],
        },
        agreed!((u32, u64, u64, u32, Vec<Vec<(u32, u32, Vec<u8>)>>):
            (1, 4, 5, 6, vec![vec![(7, 1, vec![0xaa, 0xbb])]])),
        "01000000 0400000000000000 0500000000000000 06000000 0100000000000000 0100000000000000 07000000 01000000 0200000000000000 aabb",
    );
    pinned(
        conf_sync::ConfSyncReply::Part {
            version: 4,
            newest: 5,
            total_bytes: 9,
            checksum: 6,
            offset: 7,
            part: vec![0xaa, 0xbb],
        },
        agreed!((u32, u64, u64, u64, u32, u64, Vec<u8>): (2, 4, 5, 9, 6, 7, vec![0xaa, 0xbb])),
        "02000000 0400000000000000 0500000000000000 0900000000000000 06000000 0700000000000000 0200000000000000 aabb",
    );
    pinned(
        conf_sync::ConfUpload { upload: 1, offset: 2, total_bytes: 3 },
        agreed!((u64, u64, u64): (1, 2, 3)),
        "0100000000000000 0200000000000000 0300000000000000",
    );
    pinned(conf_sync::ConfUploadReply { bytes: 2 }, agreed!(u64: 2), "0200000000000000");
    pinned(
        conf_sync::ConfApplyUpload { upload: 1, checksum: 2, base: 3, unix_s: 4, note: "n".to_owned() },
        agreed!((u64, u32, u64, u64, String): (1, 2, 3, 4, "n".to_owned())),
        "0100000000000000 02000000 0300000000000000 0400000000000000 0100000000000000 6e",
    );
    pinned(
        conf_sync::StatusGet { processes_from: 1, devices_from: 2 },
        agreed!((u32, u32): (1, 2)),
        "01000000 02000000",
    );
    pinned(
        conf_sync::StatusGetReply {
            version: 1,
            processes_total: 2,
            devices_total: 3,
            processes: vec![conf::ProcessStatus { process: FID, silent_ms: None, alive: false }],
            devices: Vec::new(),
        },
        agreed!((u64, u32, u32, Vec<(RawFid, Option<u64>, bool)>, Vec<u8>): (1, 2, 3, vec![(RAW, None, false)], vec![])),
        &format!("0100000000000000 02000000 03000000 0100000000000000 {FID_HEX} 00 00 0000000000000000"),
    );
}

#[test]
fn opcodes_are_pinned() {
    use fops::Opcode as O;
    let numbers = [
        (O::ConfGet, 1),
        (O::Register, 2),
        (O::Heartbeat, 3),
        (O::DeviceReport, 4),
        (O::ClusterStatus, 5),
        (O::ObjectOpen, 16),
        (O::ObjectUpdate, 17),
        (O::ObjectDelete, 18),
        (O::ObjectList, 19),
        (O::ObjectForget, 20),
        (O::ComponentWrite, 32),
        (O::ComponentRead, 33),
        (O::ComponentDelete, 34),
        (O::ComponentPunch, 35),
        (O::DeviceFault, 48),
        (O::Ping, 49),
        (O::Shutdown, 50),
        (O::NetFault, 51),
        (O::LockTake, 60),
        (O::LockRelease, 61),
        (O::LockRenew, 62),
        (O::LockBreak, 63),
        (O::LockList, 64),
        (O::FencesGet, 65),
        (O::TicketedWrite, 70),
        (O::TicketedComponentDelete, 71),
        (O::TicketedOpen, 72),
        (O::TicketedUpdate, 73),
        (O::TicketedDelete, 74),
        (O::WatchRegister, 80),
        (O::WatchUnregister, 81),
        (O::WatchPoll, 82),
        (O::WatchAck, 83),
        (O::Notify, 84),
        (O::WatchList, 85),
        (O::NotifyOutcomesGet, 86),
        (O::RmBegin, 90),
        (O::RmBorrow, 91),
        (O::RmReturn, 92),
        (O::RmPoll, 93),
        (O::RmList, 94),
        (O::LoadReport, 100),
        (O::LoadGet, 101),
        (O::ConfSync, 130),
        (O::ConfUpload, 131),
        (O::ConfApplyUpload, 132),
        (O::StatusGet, 133),
    ];
    for (opcode, number) in numbers {
        assert_eq!(opcode as u16, number, "{opcode:?}");
    }
}

#[test]
fn lengths_that_claim_too_much_are_refused_before_memory_is_taken() {
    for claimed in [u64::MAX, 1 << 40, 65_537] {
        let bytes = claimed.to_le_bytes();
        assert!(decode::<admin::Ping>(&bytes).is_err(), "{claimed}");
        assert!(decode::<object::ObjectListReply>(&bytes).is_err(), "{claimed}");
    }
    let too_long = admin::Ping { payload: vec![0; 65_536].into() };
    assert!(encode(&too_long).is_err());
    let mut unknown_mode =
        encode(&object::ObjectOpen { device: FID, mode: object::OpenMode::Open, record: record() }).unwrap();
    unknown_mode[16] = 3;
    assert!(decode::<object::ObjectOpen>(&unknown_mode).is_err());
}

/// Decodes hostile bytes as everything; what does decode encodes back to the same bytes.
fn decode_as_everything(bytes: &[u8]) {
    fn one<T: Encode + Decode<()>>(bytes: &[u8]) {
        if let Ok(body) = decode::<T>(bytes) {
            assert_eq!(encode(&body).unwrap(), bytes);
        }
    }
    one::<conf::ConfGet>(bytes);
    one::<conf::ConfGetReply>(bytes);
    one::<conf::Register>(bytes);
    one::<conf::RegisterReply>(bytes);
    one::<conf::Heartbeat>(bytes);
    one::<conf::HeartbeatReply>(bytes);
    one::<conf::DeviceReport>(bytes);
    one::<conf::DeviceReportReply>(bytes);
    one::<conf::DeviceCommand>(bytes);
    one::<conf::DeviceCommandReply>(bytes);
    one::<repair::RepairTurn>(bytes);
    one::<repair::RepairTurnReply>(bytes);
    one::<repair::RepairGet>(bytes);
    one::<repair::RepairGetReply>(bytes);
    one::<conf::ClusterStatus>(bytes);
    one::<conf::ClusterStatusReply>(bytes);
    one::<conf_sync::ConfSync>(bytes);
    one::<conf_sync::ConfSyncReply>(bytes);
    one::<conf_sync::ConfUpload>(bytes);
    one::<conf_sync::ConfApplyUpload>(bytes);
    one::<conf_sync::StatusGet>(bytes);
    one::<conf_sync::StatusGetReply>(bytes);
    one::<object::ObjectOpen>(bytes);
    one::<object::ObjectOpenReply>(bytes);
    one::<object::ObjectUpdate>(bytes);
    one::<object::ObjectUpdateReply>(bytes);
    one::<object::ObjectDelete>(bytes);
    one::<object::ObjectDeleteReply>(bytes);
    one::<object::ObjectList>(bytes);
    one::<object::ObjectListReply>(bytes);
    one::<component::ComponentWrite>(bytes);
    one::<component::ComponentWriteReply>(bytes);
    one::<component::ComponentRead>(bytes);
    one::<component::ComponentReadReply>(bytes);
    one::<component::ComponentDelete>(bytes);
    one::<component::ComponentDeleteReply>(bytes);
    one::<component::ComponentPunch>(bytes);
    one::<component::ComponentPunchReply>(bytes);
    one::<object::ObjectForget>(bytes);
    one::<object::ObjectForgetReply>(bytes);
    one::<admin::DeviceFault>(bytes);
    one::<admin::DeviceFaultReply>(bytes);
    one::<admin::Ping>(bytes);
    one::<admin::PingReply>(bytes);
    one::<admin::ProcessGet>(bytes);
    one::<admin::ProcessGetReply>(bytes);
    one::<admin::Shutdown>(bytes);
    one::<admin::ShutdownReply>(bytes);
    one::<admin::NetFault>(bytes);
    one::<admin::NetFaultReply>(bytes);
    one::<lock::LockTake>(bytes);
    one::<lock::LockTakeReply>(bytes);
    one::<lock::LockListReply>(bytes);
    one::<lock::FencesReply>(bytes);
    one::<watch::WatchRegister>(bytes);
    one::<watch::WatchPoll>(bytes);
    one::<watch::WatchPollReply>(bytes);
    one::<watch::WatchAck>(bytes);
    one::<watch::Notify>(bytes);
    one::<watch::NotifyReply>(bytes);
    one::<watch::WatchListReply>(bytes);
    one::<watch::NotifyOutcomesGet>(bytes);
    one::<watch::NotifyOutcomesReply>(bytes);
    one::<news::LockNews>(bytes);
    one::<news::HolderAsk>(bytes);
    one::<news::HolderAnswer>(bytes);
    one::<load::LoadReport>(bytes);
    one::<load::LoadGet>(bytes);
    one::<load::LoadGetReply>(bytes);
    one::<rm::RmBegin>(bytes);
    one::<rm::RmBorrow>(bytes);
    one::<rm::RmBorrowReply>(bytes);
    one::<rm::RmReturn>(bytes);
    one::<rm::RmPoll>(bytes);
    one::<rm::RmPollReply>(bytes);
    one::<rm::RmListReply>(bytes);
    one::<FopError>(bytes);
}

proptest! {
    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..160)) {
        decode_as_everything(&bytes);
    }

    /// Mostly zeros with small numbers: lengths and variants that nearly make sense.
    #[test]
    fn plausible_bytes_never_panic(bytes in proptest::collection::vec(prop_oneof![8 => Just(0u8), 2 => 0u8..4, 1 => any::<u8>()], 0..160)) {
        decode_as_everything(&bytes);
    }

    #[test]
    fn component_writes_agree(
        extents in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..20),
        checksums in proptest::collection::vec(any::<u32>(), 0..50),
        generation: u64,
    ) {
        let body = component::ComponentWrite {
            device: FID,
            component: FID,
            generation,
            extents: extents.iter().map(|(start, count)| BlockExtent { start: *start, count: *count }).collect(),
            checksums: checksums.clone(),
        };
        let agreed = agreed!((RawFid, RawFid, u64, Vec<(u64, u64)>, Vec<u32>):
            (RAW, RAW, generation, extents, checksums));
        prop_assert_eq!(encode(&body).unwrap(), agreed);
    }
}

const OWNER: lock::OwnerId = lock::OwnerId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
const OWNER_HEX: &str = "100f0e0d0c0b0a09 0807060504030201";

fn lock_name() -> lock::LockName {
    lock::LockName { object: Some(FID), name: "ab".to_owned() }
}

type RawName = (Option<RawFid>, String);

fn raw_name() -> RawName {
    (Some(RAW), "ab".to_owned())
}

#[test]
fn bodies_of_locks() {
    let name = format!("01 {FID_HEX} 0200000000000000 6162");
    let ticket = lock::Ticket { owner: OWNER, epoch: 5 };
    pinned(
        lock::LockTake {
            lock: lock_name(),
            owner: OWNER,
            mode: lock::LockMode::Exclusive,
            on_death: lock::OnDeath::Fence,
            why: "x".to_owned(),
            wait_ms: 9,
        },
        agreed!((RawName, u128, u32, u32, String, u32): (raw_name(), OWNER.0, 1, 1, "x".to_owned(), 9)),
        &format!("{name} {OWNER_HEX} 01000000 01000000 0100000000000000 78 09000000"),
    );
    pinned(
        lock::LockTakeReply::Granted { epoch: 5, lease_ms: 3000 },
        agreed!((u32, u64, u64): (0, 5, 3000)),
        "00000000 0500000000000000 b80b000000000000",
    );
    pinned(
        lock::LockTakeReply::Busy { holders: vec![OWNER], ahead: 2 },
        agreed!((u32, Vec<u128>, u32): (1, vec![OWNER.0], 2)),
        &format!("01000000 0100000000000000 {OWNER_HEX} 02000000"),
    );
    pinned(
        lock::LockRelease { lock: lock_name(), owner: OWNER, epoch: 5 },
        agreed!((RawName, u128, u64): (raw_name(), OWNER.0, 5)),
        &format!("{name} {OWNER_HEX} 0500000000000000"),
    );
    pinned(lock::LockReleaseReply { released: true }, agreed!(bool: true), "01");
    pinned(
        lock::LockRenew { lock: lock_name(), ticket },
        agreed!((RawName, (u128, u64)): (raw_name(), (OWNER.0, 5))),
        &format!("{name} {OWNER_HEX} 0500000000000000"),
    );
    pinned(lock::LockRenewReply { held: true, waiting: 1 }, agreed!((bool, u32): (true, 1)), "01 01000000");
    pinned(
        lock::LockBreak { lock: lock_name(), owner: OWNER, why: "x".to_owned(), wait_ms: 9 },
        agreed!((RawName, u128, String, u32): (raw_name(), OWNER.0, "x".to_owned(), 9)),
        &format!("{name} {OWNER_HEX} 0100000000000000 78 09000000"),
    );
    let endpoint: Endpoint = "127.0.0.1@tcp2:12345:34:5".parse().unwrap();
    let endpoint_hex = "01000000 0200 0100007f 39300000 2200 0500";
    let raw_endpoint: ((u32, u16), u32) = ((1, 2), 0x7f00_0001);
    pinned(
        lock::LockBreakReply {
            state: lock::BreakState::Waiting,
            waiting: vec![lock::FenceWait { device: FID, process: FID, endpoint, lease_ends_ms: 7 }],
        },
        agreed!((u32, Vec<(RawFid, RawFid, ((u32, u16), u32), u32, u16, u16, u64)>):
            (1, vec![(RAW, RAW, raw_endpoint, 12345, 34, 5, 7)])),
        &format!("01000000 0100000000000000 {FID_HEX} {FID_HEX} {endpoint_hex} 0700000000000000"),
    );
    pinned(
        lock::LockList { object: None, after: Some((lock_name(), OWNER)) },
        agreed!((Option<RawFid>, Option<(RawName, u128)>): (None, Some((raw_name(), OWNER.0)))),
        &format!("00 01 {name} {OWNER_HEX}"),
    );
    let grant = lock::LockGrant {
        lock: lock_name(),
        ticket,
        mode: lock::LockMode::Shared,
        on_death: lock::OnDeath::Hold,
        from: endpoint,
        since_unix_s: 3,
        why: "y".to_owned(),
        breaking: Some(lock::LockBreaking { fence: 4, by: endpoint, why: "z".to_owned() }),
    };
    type RawEndpoint = (((u32, u16), u32), u32, u16, u16);
    type RawGrant =
        (RawName, (u128, u64), u32, u32, RawEndpoint, u64, String, Option<(u64, RawEndpoint, String)>);
    let place: RawEndpoint = (raw_endpoint, 12345, 34, 5);
    let raw_grant: RawGrant =
        (raw_name(), (OWNER.0, 5), 0, 0, place, 3, "y".to_owned(), Some((4, place, "z".to_owned())));
    let grant_hex = format!(
        "{name} {OWNER_HEX} 0500000000000000 00000000 00000000 {endpoint_hex} 0300000000000000
         0100000000000000 79 01 0400000000000000 {endpoint_hex} 0100000000000000 7a"
    );
    let grant_hex = grant_hex.replace("         ", "");
    pinned(
        lock::LockListReply {
            locks: vec![lock::LockEntry { grant, silent_ms: Some(8), waiting: 1, fenced: true }],
            more: false,
        },
        agreed!((Vec<(RawGrant, Option<u64>, u32, bool)>, bool): (vec![(raw_grant, Some(8), 1, true)], false)),
        &format!("0100000000000000 {grant_hex} 01 0800000000000000 01000000 01 00"),
    );
    pinned(
        lock::FencesGet { process: FID, epoch: 6, devices: vec![FID], known: 3, after: 4, wait_ms: 9 },
        agreed!((RawFid, u64, Vec<RawFid>, u64, u64, u32): (RAW, 6, vec![RAW], 3, 4, 9)),
        &format!(
            "{FID_HEX} 0600000000000000 0100000000000000 {FID_HEX} 0300000000000000 0400000000000000 09000000"
        ),
    );
    pinned(
        lock::FencesReply { fences: vec![lock::Fence { number: 4, owner: OWNER, epoch: 5 }], more: true },
        agreed!((Vec<(u64, u128, u64)>, bool): (vec![(4, OWNER.0, 5)], true)),
        &format!("0100000000000000 0400000000000000 {OWNER_HEX} 0500000000000000 01"),
    );
    pinned(
        lock::Ticketed { ticket, change: object::ObjectDelete { device: FID, object: FID, version: 2 } },
        agreed!(((u128, u64), (RawFid, RawFid, u64)): ((OWNER.0, 5), (RAW, RAW, 2))),
        &format!("{OWNER_HEX} 0500000000000000 {FID_HEX} {FID_HEX} 0200000000000000"),
    );
    pinned(
        FopError::Fenced { epoch: 5, fenced: 6 },
        agreed!((u32, u64, u64): (15, 5, 6)),
        "0f000000 0500000000000000 0600000000000000",
    );
    let leader: Endpoint = "127.0.0.1@tcp2:12345:34:5".parse().unwrap();
    pinned(
        FopError::NotLeader { leader: Some(leader) },
        agreed!((u32, Option<(((u32, u16), u32), u32, u16, u16)>): (16, Some((((1, 2), 0x7f00_0001), 12345, 34, 5)))),
        "10000000 01 01000000 0200 0100007f 39300000 2200 0500",
    );
}

#[test]
fn bodies_of_watches() {
    let watcher = watch::WatcherId(OWNER.0);
    let notify = watch::NotifyId(3);
    let notify_hex = "0300000000000000 0000000000000000";
    let from: Endpoint = "127.0.0.1@tcp2:12345:34:5".parse().unwrap();
    let from_hex = "01000000 0200 0100007f 39300000 2200 0500";
    type RawEndpoint = (((u32, u16), u32), u32, u16, u16);
    let raw_from: RawEndpoint = (((1, 2), 0x7f00_0001), 12345, 34, 5);
    pinned(
        watch::WatchRegister {
            watch: watch::WatchRecord {
                watcher,
                cookie: 4,
                object: FID,
                name: "ab".to_owned(),
                lease_ms: 3000,
            },
        },
        agreed!((u128, u64, RawFid, String, u32): (OWNER.0, 4, RAW, "ab".to_owned(), 3000)),
        &format!("{OWNER_HEX} 0400000000000000 {FID_HEX} 0200000000000000 6162 b80b0000"),
    );
    pinned(watch::WatchRegisterReply { lease_ms: 3000 }, agreed!(u32: 3000), "b80b0000");
    pinned(
        watch::WatchUnregister { watcher, cookie: 4 },
        agreed!((u128, u64): (OWNER.0, 4)),
        &format!("{OWNER_HEX} 0400000000000000"),
    );
    pinned(watch::WatchUnregisterReply { was_registered: true }, agreed!(bool: true), "01");
    pinned(
        watch::WatchPoll { watcher, incarnation: 5, after: 6, wait_ms: 9 },
        agreed!((u128, u64, u64, u32): (OWNER.0, 5, 6, 9)),
        &format!("{OWNER_HEX} 0500000000000000 0600000000000000 09000000"),
    );
    pinned(
        watch::WatchPollReply {
            incarnation: 5,
            cookies: vec![4],
            notifications: vec![watch::Notification {
                number: 6,
                cookie: 4,
                notify,
                object: FID,
                from,
                payload: vec![7],
            }],
        },
        agreed!((u64, Vec<u64>, Vec<(u64, u64, u128, RawFid, RawEndpoint, Vec<u8>)>):
            (5, vec![4], vec![(6, 4, 3, RAW, raw_from, vec![7])])),
        &format!(
            "0500000000000000 0100000000000000 0400000000000000 0100000000000000 0600000000000000 0400000000000000 \
             {notify_hex} {FID_HEX} {from_hex} 0100000000000000 07"
        ),
    );
    pinned(
        watch::WatchAck { watcher, cookie: 4, notify, payload: vec![8] },
        agreed!((u128, u64, u128, Vec<u8>): (OWNER.0, 4, 3, vec![8])),
        &format!("{OWNER_HEX} 0400000000000000 {notify_hex} 0100000000000000 08"),
    );
    pinned(watch::WatchAckReply { counted: false }, agreed!(bool: false), "00");
    pinned(
        watch::Notify { id: notify, object: FID, payload: vec![7], wait_ms: 9 },
        agreed!((u128, RawFid, Vec<u8>, u32): (3, RAW, vec![7], 9)),
        &format!("{notify_hex} {FID_HEX} 0100000000000000 07 09000000"),
    );
    let place = watch::WatchPlace { watcher, cookie: 4, name: "ab".to_owned(), from };
    type RawPlace = (u128, u64, String, RawEndpoint);
    let raw_place: RawPlace = (OWNER.0, 4, "ab".to_owned(), raw_from);
    let place_hex = format!("{OWNER_HEX} 0400000000000000 0200000000000000 6162 {from_hex}");
    pinned(
        watch::NotifyReply::Done {
            acks: vec![watch::NotifyAck { watch: place.clone(), payload: vec![8] }],
            missed: vec![watch::NotifyMissed { watch: place.clone(), why: watch::MissedWhy::Left }],
        },
        agreed!((u32, Vec<(RawPlace, Vec<u8>)>, Vec<(RawPlace, u32)>):
            (0, vec![(raw_place.clone(), vec![8])], vec![(raw_place.clone(), 3)])),
        &format!(
            "00000000 0100000000000000 {place_hex} 0100000000000000 08 0100000000000000 {place_hex} 03000000"
        ),
    );
    pinned(watch::NotifyReply::Busy, agreed!(u32: 1), "01000000");
    pinned(
        watch::NotifyReply::Long { acks: 9, missed: 1 },
        agreed!((u32, u32, u32): (2, 9, 1)),
        "02000000 09000000 01000000",
    );
    pinned(
        watch::NotifyOutcomesGet { id: notify, after: 64 },
        agreed!((u128, u32): (3, 64)),
        &format!("{notify_hex} 40000000"),
    );
    pinned(
        watch::NotifyOutcomesReply::Page {
            acks: vec![watch::NotifyAck { watch: place.clone(), payload: vec![8] }],
            missed: vec![],
        },
        agreed!((u32, Vec<(RawPlace, Vec<u8>)>, Vec<(RawPlace, u32)>):
            (0, vec![(raw_place.clone(), vec![8])], vec![])),
        &format!("00000000 0100000000000000 {place_hex} 0100000000000000 08 0000000000000000"),
    );
    pinned(watch::NotifyOutcomesReply::Forgotten, agreed!(u32: 1), "01000000");
    pinned(
        watch::WatchList { object: Some(FID), after: Some((watcher, 4)) },
        agreed!((Option<RawFid>, Option<(u128, u64)>): (Some(RAW), Some((OWNER.0, 4)))),
        &format!("01 {FID_HEX} 01 {OWNER_HEX} 0400000000000000"),
    );
    let entry = watch::WatchEntry { watch: place, object: FID, lease_ms: 3000, silent_ms: 9, waiting: 2 };
    type RawEntry = (RawPlace, RawFid, u32, u64, u32);
    pinned(
        watch::WatchListReply { watches: vec![entry], more: true },
        agreed!((Vec<RawEntry>, bool): (vec![(raw_place, RAW, 3000, 9, 2)], true)),
        &format!("0100000000000000 {place_hex} {FID_HEX} b80b0000 0900000000000000 02000000 01"),
    );
}

#[test]
fn payloads_of_news() {
    let lock = lock::LockName { object: Some(FID), name: "ab".to_owned() };
    let lock_hex = format!("01 {FID_HEX} 0200000000000000 6162");
    type RawLock = (Option<RawFid>, String);
    let raw_lock: RawLock = (Some(RAW), "ab".to_owned());
    let ticket = lock::Ticket { owner: OWNER, epoch: 5 };
    let released = news::LockNews::Released { lock: lock.clone(), ticket };
    assert_eq!(released.lock(), &lock);
    let ticket_hex = format!("{OWNER_HEX} 0500000000000000");
    pinned(
        released,
        agreed!((u32, RawLock, u128, u64): (1, raw_lock.clone(), OWNER.0, 5)),
        &format!("01000000 {lock_hex} {ticket_hex}"),
    );
    pinned(
        news::LockNews::Broken { lock: lock.clone(), ticket },
        agreed!((u32, RawLock, u128, u64): (3, raw_lock.clone(), OWNER.0, 5)),
        &format!("03000000 {lock_hex} {ticket_hex}"),
    );
    pinned(news::ConfigurationNews { version: 9 }, agreed!(u64: 9), "0900000000000000");
    let to = (watch::WatcherId(OWNER.0), 4);
    let to_hex = format!("{OWNER_HEX} 0400000000000000");
    let (owner, mode) = (OWNER, lock::LockMode::Exclusive);
    pinned(
        news::HolderAsk {
            lock: lock.clone(),
            to,
            wish: news::HolderWish::Release { owner, mode, why: "ab".to_owned() },
        },
        agreed!((RawLock, u128, u64, u32, u128, u32, String):
            (raw_lock.clone(), OWNER.0, 4, 0, OWNER.0, 1, "ab".to_owned())),
        &format!("{lock_hex} {to_hex} 00000000 {OWNER_HEX} 01000000 0200000000000000 6162"),
    );
    pinned(
        news::HolderAsk { lock, to, wish: news::HolderWish::Run { within_ms: 9, payload: vec![7] } },
        agreed!((RawLock, u128, u64, u32, u32, Vec<u8>): (raw_lock, OWNER.0, 4, 1, 9, vec![7])),
        &format!("{lock_hex} {to_hex} 01000000 09000000 0100000000000000 07"),
    );
    pinned(news::HolderAnswer::Releases, agreed!(u32: 0), "00000000");
    pinned(
        news::HolderAnswer::Refuses { reason: "ab".to_owned() },
        agreed!((u32, String): (1, "ab".to_owned())),
        "01000000 0200000000000000 6162",
    );
    pinned(
        news::HolderAnswer::Done { answer: vec![8] },
        agreed!((u32, Vec<u8>): (2, vec![8])),
        "02000000 0100000000000000 08",
    );
    pinned(news::HolderAnswer::Lost, agreed!(u32: 3), "03000000");
    pinned(news::HolderAnswer::NotHere, agreed!(u32: 4), "04000000");
}

#[test]
fn bodies_of_credits() {
    let borrower = rm::BorrowerId(OWNER.0);
    let from: Endpoint = "127.0.0.1@tcp2:12345:34:5".parse().unwrap();
    let from_hex = "01000000 0200 0100007f 39300000 2200 0500";
    type RawEndpoint = (((u32, u16), u32), u32, u16, u16);
    let raw_from: RawEndpoint = (((1, 2), 0x7f00_0001), 12345, 34, 5);
    pinned(
        rm::RmBegin { borrower, name: "ab".to_owned() },
        agreed!((u128, String): (OWNER.0, "ab".to_owned())),
        &format!("{OWNER_HEX} 0200000000000000 6162"),
    );
    pinned(
        rm::RmBeginReply { epoch: 5, lease_ms: 3000 },
        agreed!((u64, u64): (5, 3000)),
        "0500000000000000 b80b000000000000",
    );
    pinned(
        rm::RmBorrow {
            borrower,
            number: 4,
            resource: rm::RmResource::Object(FID),
            credit: rm::RmCredit::Whole { mode: lock::LockMode::Exclusive },
            wait_ms: 9,
        },
        agreed!((u128, u64, (u32, RawFid), (u32, u32), u32): (OWNER.0, 4, (0, RAW), (0, 1), 9)),
        &format!("{OWNER_HEX} 0400000000000000 00000000 {FID_HEX} 00000000 01000000 09000000"),
    );
    pinned(rm::RmResource::Keys(FID), agreed!((u32, RawFid): (1, RAW)), &format!("01000000 {FID_HEX}"));
    pinned(rm::RmResource::Fids, agreed!(u32: 2), "02000000");
    pinned(
        rm::RmResource::Named("ab".to_owned()),
        agreed!((u32, String): (3, "ab".to_owned())),
        "03000000 0200000000000000 6162",
    );
    pinned(
        rm::RmCredit::Bytes { first: 1, end: 2, mode: lock::LockMode::Shared },
        agreed!((u32, u64, u64, u32): (1, 1, 2, 0)),
        "01000000 0100000000000000 0200000000000000 00000000",
    );
    pinned(
        rm::RmCredit::Keys { first: vec![1], end: Some(vec![2]), mode: lock::LockMode::Shared },
        agreed!((u32, Vec<u8>, Option<Vec<u8>>, u32): (2, vec![1], Some(vec![2]), 0)),
        "02000000 0100000000000000 01 01 0100000000000000 02 00000000",
    );
    let fids = rm::RmCredit::Fids(rm::FidRange { first: 1, count: 2 });
    let fids_hex = "03000000 0100000000000000 0200000000000000";
    pinned(fids.clone(), agreed!((u32, (u64, u64)): (3, (1, 2))), fids_hex);
    pinned(
        rm::RmBorrowReply::Lent { credit: fids.clone() },
        agreed!((u32, (u32, (u64, u64))): (0, (3, (1, 2)))),
        &format!("00000000 {fids_hex}"),
    );
    let holder = rm::RmHolder { borrower, name: "ab".to_owned(), from, lost: true };
    type RawHolder = (u128, String, RawEndpoint, bool);
    let raw_holder: RawHolder = (OWNER.0, "ab".to_owned(), raw_from, true);
    let holder_hex = format!("{OWNER_HEX} 0200000000000000 6162 {from_hex} 01");
    pinned(
        rm::RmBorrowReply::Busy { holders: vec![holder.clone()], ahead: 3 },
        agreed!((u32, Vec<RawHolder>, u32): (1, vec![raw_holder.clone()], 3)),
        &format!("01000000 0100000000000000 {holder_hex} 03000000"),
    );
    pinned(rm::RmBorrowReply::NoSession, agreed!(u32: 2), "02000000");
    pinned(rm::RmBorrowReply::Exhausted, agreed!(u32: 3), "03000000");
    pinned(
        rm::RmReturn { borrower, numbers: vec![4], leave: true },
        agreed!((u128, Vec<u64>, bool): (OWNER.0, vec![4], true)),
        &format!("{OWNER_HEX} 0100000000000000 0400000000000000 01"),
    );
    pinned(
        rm::RmPoll { borrower, version: 6, known: vec![4], wait_ms: 9 },
        agreed!((u128, u64, Vec<u64>, u32): (OWNER.0, 6, vec![4], 9)),
        &format!("{OWNER_HEX} 0600000000000000 0100000000000000 0400000000000000 09000000"),
    );
    pinned(
        rm::RmPollReply { has_session: true, asked_back: vec![4], version: 6 },
        agreed!((bool, Vec<u64>, u64): (true, vec![4], 6)),
        "01 0100000000000000 0400000000000000 0600000000000000",
    );
    pinned(
        rm::RmList { after: Some((borrower, 4)) },
        agreed!(Option<(u128, u64)>: Some((OWNER.0, 4))),
        &format!("01 {OWNER_HEX} 0400000000000000"),
    );
    let entry = rm::RmLoanEntry {
        holder,
        number: 4,
        resource: rm::RmResource::Fids,
        credit: fids.clone(),
        asked_back: false,
        silent_ms: 7,
    };
    pinned(
        rm::RmListReply { loans: vec![entry], more: false, borrowers: 1, waiting: 2 },
        agreed!((Vec<(RawHolder, u64, u32, (u32, (u64, u64)), bool, u64)>, bool, u32, u32):
            (vec![(raw_holder, 4, 2, (3, (1, 2)), false, 7)], false, 1, 2)),
        &format!(
            "0100000000000000 {holder_hex} 0400000000000000 02000000 {fids_hex} 00 0700000000000000 00 01000000 02000000"
        ),
    );
    pinned(
        rm::BorrowerRecord { borrower, name: "ab".to_owned(), epoch: 5, from, fence: 6 },
        agreed!((u128, String, u64, RawEndpoint, u64): (OWNER.0, "ab".to_owned(), 5, raw_from, 6)),
        &format!("{OWNER_HEX} 0200000000000000 6162 0500000000000000 {from_hex} 0600000000000000"),
    );
    pinned(
        rm::LoanRecord { borrower, number: 4, resource: rm::RmResource::Fids, credit: fids },
        agreed!((u128, u64, u32, (u32, (u64, u64))): (OWNER.0, 4, 2, (3, (1, 2)))),
        &format!("{OWNER_HEX} 0400000000000000 02000000 {fids_hex}"),
    );
}

#[test]
fn owners_and_tickets_are_read_as_they_are_written_and_nothing_else_is() {
    let ticket = lock::Ticket { owner: OWNER, epoch: 5 };
    assert_eq!(ticket.to_string().parse(), Ok(ticket));
    assert_eq!("ff".parse(), Ok(lock::OwnerId(255)));
    for bad in ["", "0", "+1", "xyz", "123456789012345678901234567890123"] {
        assert!(bad.parse::<lock::OwnerId>().is_err(), "{bad}");
    }
    for bad in ["ff", "ff:", "ff:0", ":1", "0:1", "ff:1:2"] {
        assert!(bad.parse::<lock::Ticket>().is_err(), "{bad}");
    }
}
