//! What outlives a server in a session's slot: the last number of a request that changed something, and its result.
//!
//! The handler puts the record into the transaction of its effect ([`crate::Fom::record_in`]), so both are durable or neither
//! is. After a restart the server hands all records back ([`crate::RpcMachine::resume_sessions`]). docs/disk.md#slots-of-sessions has
//! the bytes; the golden bytes below pin them.
//!
//! Bound: [`KEY_BYTES`] and at most [`VALUE_BYTES_MAX`] for each slot of each session that changed something. A result longer than
//! [`RESULT_BYTES_MAX`] is not kept: whoever asks for it again is told so, and nothing runs again.

use base::nid::{Net, NetKind};
use base::{Endpoint, Nid};
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::item::Xid;
use verbs_net::PeerId;

/// Bytes of a key.
pub const KEY_BYTES: usize = 36;
/// Bytes before the result in a value.
const VALUE_HEAD_BYTES: usize = 12;
/// Longest result that is kept.
pub const RESULT_BYTES_MAX: usize = 512;
/// Longest value.
pub const VALUE_BYTES_MAX: usize = VALUE_HEAD_BYTES + RESULT_BYTES_MAX;
/// Format of a value, its first byte.
const FORMAT: u8 = 1;

/// A transaction of the storage behind a service. The slot's record goes into the one that makes the effect durable.
pub trait Transaction {
    /// Puts a record under its key, over the one before.
    fn put_slot(&mut self, key: &[u8; KEY_BYTES], value: &[u8]);
}

/// A session over restarts of its server: the client's incarnation and its number of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionName {
    /// The client, in this incarnation.
    pub peer: PeerId,
    /// Its number of the session.
    pub nonce: Xid,
}

/// The last request that changed something in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotRecord {
    /// The session.
    pub name: SessionName,
    /// Slot in it.
    pub slot: u16,
    /// Number of the request.
    pub xid: Xid,
    /// Body of its reply. `None`: it was too long to keep.
    pub result: Option<Box<[u8]>>,
}

/// Big endian, so that the records of a session stand together, in order of slots.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawKey {
    net_kind: U16,
    net_number: U16,
    address: U32,
    pid: U32,
    portal: U16,
    tmid: U16,
    epoch: U64,
    nonce: U64,
    reserved: U16,
    slot: U16,
}

const _: () = assert!(size_of::<RawKey>() == KEY_BYTES);

impl SessionName {
    /// The key of one of its slots.
    #[must_use]
    pub fn key(&self, slot: u16) -> [u8; KEY_BYTES] {
        let Endpoint { nid, pid, portal, tmid } = self.peer.endpoint;
        let raw = RawKey {
            net_kind: nid.net.kind.code().into(),
            net_number: nid.net.number.into(),
            address: nid.address.into(),
            pid: pid.into(),
            portal: portal.into(),
            tmid: tmid.into(),
            epoch: self.peer.epoch.into(),
            nonce: self.nonce.0.into(),
            reserved: 0.into(),
            slot: slot.into(),
        };
        zerocopy::transmute!(raw)
    }
}

/// The value of a record. `result`: the body of the reply.
#[must_use]
pub fn encode_value(xid: Xid, result: &[u8]) -> Vec<u8> {
    let is_kept = result.len() <= RESULT_BYTES_MAX;
    let mut value = Vec::with_capacity(VALUE_HEAD_BYTES + if is_kept { result.len() } else { 0 });
    value.extend_from_slice(&[FORMAT, u8::from(is_kept), 0, 0]);
    value.extend_from_slice(&xid.0.to_be_bytes());
    if is_kept {
        value.extend_from_slice(result);
    }
    value
}

impl SlotRecord {
    /// From the bytes of a tree. `None`: they are no record.
    #[must_use]
    pub fn parse(key: &[u8], value: &[u8]) -> Option<SlotRecord> {
        let raw = RawKey::read_from_bytes(key).ok()?;
        let kind = NetKind::from_code(raw.net_kind.get())?;
        let nid = Nid { net: Net { kind, number: raw.net_number.get() }, address: raw.address.get() };
        let endpoint = Endpoint { nid, pid: raw.pid.get(), portal: raw.portal.get(), tmid: raw.tmid.get() };
        let peer = PeerId { endpoint, epoch: raw.epoch.get() };
        let name = SessionName { peer, nonce: Xid(raw.nonce.get()) };
        let (head, result) = value.split_at_checked(VALUE_HEAD_BYTES)?;
        let (flags, xid) = head.split_at_checked(4)?;
        let xid = Xid(u64::from_be_bytes(xid.try_into().ok()?));
        let result = match (flags, result.len()) {
            ([FORMAT, 1, 0, 0], ..=RESULT_BYTES_MAX) => Some(result.into()),
            ([FORMAT, 0, 0, 0], 0) => None,
            _ => return None,
        };
        (xid.0 != 0 && raw.reserved.get() == 0).then_some(SlotRecord {
            name,
            slot: raw.slot.get(),
            xid,
            result,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> SessionName {
        let nid = Nid { net: Net { kind: NetKind::Tcp, number: 1 }, address: 0x0a00_0007 };
        let endpoint = Endpoint { nid, pid: 0x8000_1234, portal: 48, tmid: 7 };
        SessionName { peer: PeerId { endpoint, epoch: 0x1122 }, nonce: Xid(3) }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn golden_bytes() {
        let key = name().key(5);
        let golden = "000200010a0000078000123400300007000000000000112200000000000000030000 0005";
        assert_eq!(hex(&key), golden.replace(' ', ""));
        let value = encode_value(Xid(9), &[0xaa, 0xbb]);
        assert_eq!(hex(&value), "010100000000000000000009aabb");
        let record = SlotRecord { name: name(), slot: 5, xid: Xid(9), result: Some([0xaa, 0xbb].into()) };
        assert_eq!(SlotRecord::parse(&key, &value), Some(record));
    }

    #[test]
    fn a_long_result_leaves_its_number() {
        let value = encode_value(Xid(9), &[1; RESULT_BYTES_MAX + 1]);
        assert_eq!(SlotRecord::parse(&name().key(0), &value).unwrap().result, None);
        let value = encode_value(Xid(9), &[1; RESULT_BYTES_MAX]);
        assert_eq!(value.len(), VALUE_BYTES_MAX);
        assert_eq!(
            SlotRecord::parse(&name().key(0), &value).unwrap().result.unwrap().len(),
            RESULT_BYTES_MAX
        );
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(
            key in proptest::collection::vec(any::<u8>(), 0..40),
            value in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let _ = SlotRecord::parse(&key, &value);
            let good = name().key(1);
            let _ = SlotRecord::parse(&good, &value);
        }
    }
}
