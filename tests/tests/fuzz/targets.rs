//! The decoders, each with examples of what it takes.

use std::sync::LazyLock;

use base::checksum::crc32c;
use base::units::narrow;
use fops::codec::{decode, encode};
use fops::{Fop, FopError, admin, component, conf, conf_sync, object, repair};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use spdk_stob::format::change::Change;
use spdk_stob::format::record::RecordHeader;
use spdk_stob::format::superblock::Superblock;
use verbs_net::{Credential, CredentialOptions};

use crate::engine::Target;

fn nothing(_: &mut [u8]) {}

/// Decodes as each request, and as each reply: what is taken is written the same way each time.
fn body<T: fops::codec::Encode + fops::codec::Decode<()>>(bytes: &[u8]) -> String {
    match decode::<T>(bytes) {
        Ok(body) => {
            let once = encode(&body).expect("what was decoded fits a message");
            let again: T = decode(&once).expect("what was written is read");
            assert_eq!(encode(&again).unwrap(), once);
            std::any::type_name::<T>().into()
        }
        Err(error) => error.to_string(),
    }
}

macro_rules! each_fop {
    ($bytes:expr, $($fop:ty),* $(,)?) => {{
        let (which, bytes) = $bytes.split_first().map_or((0, &[][..]), |(which, bytes)| (*which, bytes));
        let requests: &[fn(&[u8]) -> String] = &[$(body::<$fop>),*];
        let replies: &[fn(&[u8]) -> String] = &[$(body::<<$fop as Fop>::Reply>),*];
        (requests, replies, usize::from(which), bytes)
    }};
}

type Decoders = &'static [fn(&[u8]) -> String];

fn fops(bytes: &[u8]) -> (Decoders, Decoders, usize, &[u8]) {
    each_fop!(
        bytes,
        object::ObjectOpen,
        object::ObjectUpdate,
        object::ObjectDelete,
        object::ObjectList,
        conf::ConfGet,
        conf::ConfText,
        conf::ConfApply,
        conf::ConfHistory,
        conf::EventsGet,
        conf::Register,
        conf::Heartbeat,
        conf::DeviceReport,
        conf::ClusterStatus,
        component::ComponentWrite,
        component::ComponentRead,
        component::ComponentDelete,
        admin::DeviceFault,
        admin::NetFault,
        admin::Ping,
        admin::Shutdown,
        admin::ProcessGet,
        conf::DeviceCommand,
        repair::RepairTurn,
        repair::RepairGet,
        conf_sync::ConfSync,
        conf_sync::ConfUpload,
        conf_sync::ConfApplyUpload,
        conf_sync::StatusGet,
    )
}

/// The first byte chooses the body.
fn fop(bytes: &[u8]) -> String {
    let (requests, _, which, rest) = fops(bytes);
    format!(
        "{} {}",
        char::from(b'a' + u8::try_from(which % requests.len()).unwrap()),
        requests[which % requests.len()](rest)
    )
}

fn reply(bytes: &[u8]) -> String {
    let (_, replies, which, rest) = fops(bytes);
    if which == 255 {
        return body::<FopError>(rest);
    }
    format!(
        "{} {}",
        char::from(b'a' + u8::try_from(which % replies.len()).unwrap()),
        replies[which % replies.len()](rest)
    )
}

/// One byte of choice, then zeros: most bodies of fixed shape take them.
fn zeros() -> Vec<Vec<u8>> {
    (0..28_u8)
        .flat_map(|which| [0, 8, 16, 40, 96].map(|count| [vec![which], vec![0; count]].concat()))
        .collect()
}

fn endpoint(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let endpoint = match text.parse::<base::Endpoint>() {
        Ok(endpoint) => {
            assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
            let _ = (endpoint.socket_address(), endpoint.port());
            "an endpoint".to_owned()
        }
        Err(error) => error.to_string(),
    };
    let nid = text.parse::<base::Nid>().map_or_else(|error| error.to_string(), |nid| nid.to_string());
    // Error texts quote what they got: only their first words are a kind.
    let start = |text: &str| text.split(['"', '\'', '`']).next().unwrap_or_default().to_owned();
    format!("{} {}", start(&endpoint), start(&nid).split('@').next_back().unwrap_or_default())
}

fn item(bytes: &[u8]) -> String {
    match rpc::item::Header::parse(bytes) {
        Ok(header) => {
            // Where the parts lie must be inside the item.
            assert_eq!(header.item_bytes(), bytes.len());
            format!("{:?}", header.kind)
        }
        Err(error) => error.to_string(),
    }
}

fn mend_item(bytes: &mut [u8]) {
    // crc32c in docs/wire.md, the item's header.
    let range = 52..56;
    let Some(sum) = bytes.get_mut(range.clone()) else { return };
    sum.fill(0);
    let sum = crc32c(bytes);
    bytes[range].copy_from_slice(&sum.to_le_bytes());
}

/// Headers of each kind, with a body.
fn items() -> Vec<Vec<u8>> {
    use rpc::item::{HEADER_BYTES, Header, Kind, SessionId, Xid};
    let kinds = [
        Kind::Request { opcode: 16 },
        Kind::OneWay { opcode: 3 },
        Kind::Establish,
        Kind::Established { slots: 8, lifetime_ms: 9 },
        Kind::Ended,
        Kind::Cancel,
    ];
    let header = |kind| Header {
        kind,
        session: if matches!(kind, Kind::OneWay { .. } | Kind::Establish) {
            SessionId::default()
        } else {
            SessionId(5)
        },
        slot: 1,
        xid: Xid(3),
        time_left_ms: 500,
        config_version: 7,
        request_id: 11,
        is_inline: false,
        source_bytes: 0,
        sink_bytes: 0,
        body_bytes: if matches!(kind, Kind::Request { .. } | Kind::OneWay { .. }) { 16 } else { 0 },
    };
    kinds
        .into_iter()
        .map(|kind| {
            let header = header(kind);
            let mut item = vec![0; HEADER_BYTES + narrow(u64::from(header.body_bytes))];
            header.seal(&mut item);
            item
        })
        .collect()
}

fn slot_record(bytes: &[u8]) -> String {
    let (key, value) = bytes.split_at(bytes.len().min(rpc::slot_record::KEY_BYTES));
    match rpc::slot_record::SlotRecord::parse(key, value) {
        Some(record) => {
            assert_eq!(record.name.key(record.slot), key, "written another way than read");
            format!("a record, {}", if record.result.is_some() { "kept" } else { "not kept" })
        }
        None => "no record".into(),
    }
}

fn slot_records() -> Vec<Vec<u8>> {
    let endpoint = "10.0.0.5@tcp:12345:34:1".parse().unwrap();
    let peer = verbs_net::PeerId { endpoint, epoch: 5 };
    let name = rpc::slot_record::SessionName { peer, nonce: rpc::item::Xid(3) };
    let value = rpc::slot_record::encode_value(rpc::item::Xid(9), b"result");
    vec![[&name.key(2)[..], &value].concat()]
}

fn addb_file(bytes: &[u8]) -> String {
    match rpc::addb::Snapshot::parse(bytes) {
        Ok(found) => {
            let shape = found.header.shape;
            assert!(found.records.len() + found.damaged + found.unknown <= shape.records);
            assert!(found.histograms.len() + found.histograms_damaged <= shape.histograms);
            assert_eq!(found.missing_bytes, (8 * shape.words()).saturating_sub(bytes.len()));
            // Names may have been mended once; from then on they stay.
            let once = rpc::addb::Header::parse(&found.header.to_bytes()).expect("what was written is read");
            assert_eq!(rpc::addb::Header::parse(&once.to_bytes()), Ok(once));
            for (_, histogram) in &found.histograms {
                let (half, most) = (histogram.percentile(50), histogram.percentile(99));
                assert!(half <= most && most <= histogram.longest());
            }
            let some = |count: usize, word: &'static str| if count > 0 { word } else { "" };
            format!(
                "a file {}{}{}{}{}",
                some(found.records.len(), "with records "),
                some(found.damaged, "torn "),
                some(found.histograms.len(), "with histograms "),
                some(found.histograms_damaged, "wrong histograms "),
                some(found.missing_bytes, "cut "),
            )
        }
        Err(error) => error.to_string(),
    }
}

fn mend_addb(bytes: &mut [u8]) {
    const BYTES: usize = rpc::addb::header::HEADER_BYTES;
    let Some(header) = bytes.get_mut(..BYTES) else { return };
    let sum = crc32c(&header[..BYTES - 4]);
    header[BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
}

/// A ring that has gone round, with a histogram.
fn addb_files() -> Vec<Vec<u8>> {
    use base::Instant;
    use rpc::addb::header::Shape;
    use rpc::addb::{AddbSpace, Phase, Ring, Side};
    let space = AddbSpace::in_memory(Shape { records: 8, histograms: 3 }).unwrap();
    let ring = Ring::new(Some(&space), 0, 0, "10.0.0.5@tcp:12345:34:1".parse().unwrap());
    for n in 0..11 {
        ring.phase(Instant::from_nanos(n), Phase::Run, n, 32, 0);
        ring.ended(Instant::from_nanos(n << n), Side::Server, 32, Instant::ZERO);
    }
    vec![space.to_bytes()]
}

fn conf_file(bytes: &[u8]) -> String {
    match faces::cluster_file::ClusterFile::parse(&String::from_utf8_lossy(bytes)) {
        Ok(_) => "a cluster".into(),
        Err(error) => error.to_string().lines().last().unwrap_or_default().chars().take(30).collect(),
    }
}

fn small_configuration() -> faces::Configuration {
    let text = include_str!("../../../control/faces/src/cluster_file_example.toml");
    faces::ClusterFile::parse(text).expect("the example is one").initial_configuration()
}

/// A whole configuration, as its parts make it.
fn configuration(bytes: &[u8]) -> String {
    match faces::Configuration::from_bytes(bytes) {
        Ok(found) => {
            assert_eq!(found.to_bytes().expect("what was read is written"), bytes);
            "a configuration".into()
        }
        Err(error) => error.to_string().chars().filter(|letter| !letter.is_ascii_digit()).take(40).collect(),
    }
}

/// The first byte says what kind of lie the rest is: a reply to who fetches, taken as `ConfClient` takes it, with all that was right before.
fn conf_reply(bytes: &[u8]) -> String {
    use conf_sync::ConfSyncReply;
    use faces::conf_parts::{Parts, Whole};
    let known = small_configuration();
    let reply = match decode::<ConfSyncReply>(bytes) {
        Ok(reply) => reply,
        Err(error) => return error.to_string().chars().take(40).collect(),
    };
    let kind = |error: String| -> String {
        error.chars().filter(|letter| !letter.is_ascii_digit()).take(40).collect()
    };
    match reply {
        ConfSyncReply::Current { .. } => "current".into(),
        ConfSyncReply::Changes { version, checksum, steps, .. } => {
            // Whatever the checksum says: what the steps make is bounded, or they are refused and change nothing.
            let mut changed = known.to_bytes().expect("the example is one");
            for step in &steps {
                let before = changed.clone();
                match faces::conf_difference::apply(&mut changed, step, 4096) {
                    Ok(()) => assert!(changed.len() <= 4096),
                    Err(_) => assert_eq!(changed, before),
                }
            }
            match faces::conf_client::changed(&known, &steps, (version, checksum)) {
                Ok(next) => format!("changes to {}", next.version.min(1)),
                Err(error) => kind(error.to_string()),
            }
        }
        ConfSyncReply::Part { version, total_bytes, checksum, offset, part, .. } => {
            let whole = Whole { version, bytes: total_bytes, checksum };
            let mut parts = match Parts::begin(whole) {
                Ok(parts) => parts,
                Err(error) => return kind(error.to_string()),
            };
            match parts.take(whole, offset, &part) {
                Ok(false) => "a part".into(),
                Ok(true) => parts.into_bytes().map_or_else(
                    |error| kind(error.to_string()),
                    |bytes| {
                        assert_eq!(base::units::wide(bytes.len()), total_bytes);
                        configuration(&bytes)
                    },
                ),
                Err(error) => kind(error.to_string()),
            }
        }
    }
}

fn configurations() -> Vec<Vec<u8>> {
    vec![small_configuration().to_bytes().expect("the example is one")]
}

fn conf_replies() -> Vec<Vec<u8>> {
    use conf_sync::ConfSyncReply;
    let (one, mut other) = (small_configuration(), small_configuration());
    other.version += 1;
    other.pool.devices[2].size_blocks = 9;
    other.pool.awaited_disks.push(other.pool.devices[1].device);
    let [one, other] = [one, other].map(|one| one.to_bytes().expect("the example is one"));
    let steps = vec![faces::conf_difference::difference(&one, &other)];
    let part = |offset: usize| ConfSyncReply::Part {
        version: 1,
        newest: 1,
        total_bytes: base::units::wide(one.len()),
        checksum: crc32c(&one),
        offset: base::units::wide(offset),
        part: one[offset..].to_vec(),
    };
    let changes = ConfSyncReply::Changes { version: 2, newest: 2, checksum: crc32c(&other), steps };
    [ConfSyncReply::Current { version: 3 }, changes, part(0), part(40)]
        .map(|reply| encode(&reply).expect("it fits a message"))
        .to_vec()
}

fn superblock(bytes: &[u8]) -> String {
    match Superblock::parse(bytes) {
        Ok(found) => {
            assert_eq!(Superblock::parse(&found.to_bytes()), Ok(found));
            "a superblock".into()
        }
        Err(fault) => format!("{fault:?}").split('(').next().unwrap_or_default().into(),
    }
}

fn mend_superblock(bytes: &mut [u8]) {
    const BYTES: usize = spdk_stob::format::superblock::SUPERBLOCK_BYTES;
    let Some(block) = bytes.get_mut(..BYTES) else { return };
    let sum = crc32c(&block[..BYTES - 4]);
    block[BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
}

fn superblocks() -> Vec<Vec<u8>> {
    const BYTES: usize = spdk_stob::format::superblock::SUPERBLOCK_BYTES;
    let mut bytes = vec![0; BYTES];
    bytes[..8].copy_from_slice(&spdk_stob::format::superblock::SUPERBLOCK_MAGIC);
    bytes[8..12].copy_from_slice(&spdk_stob::format::FORMAT_VERSION.to_le_bytes());
    mend_superblock(&mut bytes);
    vec![bytes]
}

fn record(bytes: &[u8]) -> String {
    let Some(header) = RecordHeader::parse(bytes) else { return "no record".into() };
    let _ = header.next();
    match header.body(bytes) {
        Some(body) => changes(body),
        None => "a record without its body".into(),
    }
}

fn mend_record(bytes: &mut [u8]) {
    const BYTES: usize = spdk_stob::format::record::RECORD_HEADER_BYTES;
    let Some((header, _)) = bytes.split_first_chunk_mut::<BYTES>() else { return };
    let sum = crc32c(&header[..BYTES - 4]);
    header[BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
}

fn records() -> Vec<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    bytes[..8].copy_from_slice(&spdk_stob::format::record::RECORD_MAGIC);
    bytes[8..10].copy_from_slice(&u16::try_from(spdk_stob::format::FORMAT_VERSION).unwrap().to_le_bytes());
    bytes[10] = 1;
    mend_record(&mut bytes);
    vec![bytes]
}

/// Changes, one after the other, to the end or the first that is none.
fn changes(mut bytes: &[u8]) -> String {
    let mut said = String::new();
    while !bytes.is_empty() {
        match Change::decode(bytes) {
            Ok((change, used)) => {
                assert!(used > 0 && used <= bytes.len());
                let mut again = Vec::new();
                change.encode(&mut again);
                let (same, _) = Change::decode(&again).expect("what was written is read");
                assert_eq!(same, change);
                if said.len() < 60 {
                    said.push_str(format!("{change:?}").split([' ', '{']).next().unwrap_or_default());
                }
                bytes = &bytes[used..];
            }
            Err(fault) => return format!("{said} {fault:?}"),
        }
    }
    said
}

fn change_examples() -> Vec<Vec<u8>> {
    use base::BlockExtent;
    let stob = spdk_stob::StobId { fid: base::Fid { container: 1, key: 2 }, generation: 1 };
    let extent = BlockExtent { start: 8, count: 4 };
    let tree = spdk_stob::TreeId(3);
    [
        Change::Map { stob, start: 1, device_start: 9, checksums: vec![1, 2, 3] },
        Change::Punch { stob, extent },
        Change::StobCreate { stob },
        Change::StobDelete { stob },
        Change::Snapshot { from: stob, to: stob },
        Change::Allocate { stob, extent },
        Change::Shared { extent, owners: 2 },
        Change::TreePut { tree, key: b"key".to_vec(), value: b"value".to_vec() },
        Change::TreeDelete { tree, key: b"key".to_vec() },
    ]
    .iter()
    .map(|change| {
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        bytes
    })
    .collect()
}

/// A daemon's credential, with an authority made for it.
static DAEMON: LazyLock<Credential> = LazyLock::new(|| {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    let identity = format!("clovis:1/control/0000000000000001/{}/4102444800", base::Rights::ALL);
    params.subject_alt_names = vec![
        SanType::URI(identity.try_into().unwrap()),
        SanType::DnsName(verbs_net::security::DAEMON_NAME.try_into().unwrap()),
    ];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().unwrap();
    let own = params.signed_by(&key, &issuer).unwrap().pem();
    let text = format!("{own}{authority}{}", key.serialize_pem());
    Credential::from_pem(&text, CredentialOptions::default()).unwrap()
});

fn tls_hello(bytes: &[u8]) -> String {
    verbs_net::fuzz::tls_hello(&DAEMON, bytes)
}

/// All of them, in the order of `main.rs`.
pub fn all() -> Vec<Target> {
    let [frames, hellos, extensions] = verbs_net::fuzz::examples();
    let texts = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
    let target = |name, examples, mend, decode, verdicts_least| Target {
        name,
        examples,
        mend,
        decode,
        verdicts_least,
    };
    vec![
        target("net_frame", frames, verbs_net::fuzz::mend_frame, verbs_net::fuzz::frame, 8),
        target("net_hello", hellos, nothing, verbs_net::fuzz::hello, 6),
        target("net_tls_hello", vec![verbs_net::fuzz::client_hello(&DAEMON)], nothing, tls_hello, 3),
        target(
            "net_identity",
            texts(&["clovis:1/reader/00c0ffee00c0ffee/connect,read/1821398400", "00c0ffee00c0ffee reader\n"]),
            nothing,
            verbs_net::fuzz::identity,
            6,
        ),
        target("net_extension", extensions, nothing, verbs_net::fuzz::extension, 5),
        target(
            "net_push_seals",
            verbs_net::fuzz::push_seal_examples(),
            nothing,
            verbs_net::fuzz::push_seals,
            4,
        ),
        target("net_descriptor", vec![vec![0; 64]], nothing, verbs_net::fuzz::descriptor, 2),
        target(
            "net_verbs",
            vec![
                [&b"LC\x01\x01\0\0\0\0\x07"[..], &[0; 47]].concat(),
                [&b"CLro"[..], &[0; 28]].concat(),
                [&b"CLrd"[..], &[0; 12]].concat(),
            ],
            nothing,
            verbs_net::fuzz::verbs,
            3,
        ),
        target(
            "net_fault_rule",
            texts(&[
                "drop",
                "delay peer=*@tcp kind=bulk one-in=3 count=2 ms=40",
                "corrupt peer=10.0.0.5@o2ib1",
            ]),
            nothing,
            verbs_net::fuzz::fault_rule,
            4,
        ),
        target(
            "net_endpoint",
            texts(&["172.16.0.124@o2ib:12345:44:301", "0@lo", "3@sim:1:2:3"]),
            nothing,
            endpoint,
            4,
        ),
        target("rpc_item", items(), mend_item, item, 8),
        target("rpc_fop", zeros(), nothing, fop, 20),
        target("rpc_reply", zeros(), nothing, reply, 20),
        target("rpc_slot_record", slot_records(), nothing, slot_record, 2),
        target("addb_file", addb_files(), mend_addb, addb_file, 10),
        target(
            "conf_file",
            texts(&["version = 1\n[control]\nendpoint = \"127.0.0.1@tcp:1:34:0\"\n"]),
            nothing,
            conf_file,
            3,
        ),
        target("conf_whole", configurations(), nothing, configuration, 3),
        target("conf_sync", conf_replies(), nothing, conf_reply, 6),
        target("stob_superblock", superblocks(), mend_superblock, superblock, 4),
        target("stob_record", records(), mend_record, record, 2),
        target("stob_change", change_examples(), nothing, changes, 9),
    ]
}
