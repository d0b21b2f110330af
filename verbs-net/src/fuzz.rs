//! The decoders of what a peer sends, for the fuzzing suite (`tests/tests/fuzz`): bytes in, a verdict out, no connection.
//!
//! A verdict is text that tells kinds of outcomes apart. Each decoder also checks itself: what it takes, it writes the same way again.

use crate::discovery::Features;
use crate::frame::{CHECKSUM_AT, Frame, FrameBody, HEADER_BYTES, PutTarget};
use crate::hello::{HELLO_BYTES, Hello, Token};
use crate::remote::{
    PushSeal, RemoteAccess, RemoteExposure, RemoteSegment, encode_exposure, encode_push_seals,
    parse_extension, parse_push_seals,
};
use crate::security::{SEAL_BYTES, Seal};
use crate::{BulkCookie, BulkDescriptor, FaultRule};

/// A frame's header.
#[must_use]
pub fn frame(bytes: &[u8]) -> String {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return "short".into() };
    match Frame::parse(header, 1) {
        Ok(frame) => {
            let again = Frame::parse(&frame.encode(), 1);
            assert_eq!(again.as_ref().ok(), Some(&frame), "written another way than read");
            let _ = frame.payload_len();
            format!("{:?}", frame.body.kind())
        }
        Err(error) => error.to_string(),
    }
}

/// Gives a damaged header its checksum back, so that damage gets as far as the fields.
pub fn mend_frame(bytes: &mut [u8]) {
    let Some(header) = bytes.first_chunk_mut::<HEADER_BYTES>() else { return };
    header[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
    let sum = base::checksum::crc32c(&header[..]);
    header[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_le_bytes());
}

/// A hello.
#[must_use]
pub fn hello(bytes: &[u8]) -> String {
    match Hello::parse(bytes) {
        Ok(hello) => {
            assert!(Hello::parse(&hello.encode()).is_ok_and(|again| again.encode() == hello.encode()));
            format!("{:?}", hello.endpoint.nid.net.kind)
        }
        Err(error) => error.to_string(),
    }
}

/// What a listening side gets instead of a TLS hello, cut into records as a stream backend cuts them.
///
/// # Panics
/// If bytes that nobody signed prove anything.
#[must_use]
pub fn tls_hello(credential: &crate::Credential, bytes: &[u8]) -> String {
    use crate::security::{Record, listen, record_at};
    let Ok(mut hello) = listen(credential) else { return "not a daemon's".into() };
    let (mut rest, mut plain, mut answer) = (bytes, Vec::new(), Vec::new());
    loop {
        match record_at(rest) {
            Record::None => return "no record".into(),
            Record::Part => break,
            Record::Whole(count) => {
                let handled = hello.handle_record(&rest[..count], &mut plain);
                hello.poll_transmit(&mut answer);
                assert!(hello.established().is_none() && plain.is_empty(), "garbage proved something");
                if let Err(fault) = handled {
                    return fault.reason.to_string();
                }
                rest = &rest[count..];
            }
        }
    }
    format!("waits, {} bytes answered", answer.len().next_power_of_two())
}

/// What a dialling side says first, for examples.
#[must_use]
pub fn client_hello(credential: &crate::Credential) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(mut hello) = crate::security::dial(credential) {
        hello.poll_transmit(&mut bytes);
    }
    bytes
}

/// A certificate's identity, and a line of the list of revocations.
#[must_use]
pub fn identity(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let listed = crate::Revocations::parse(&text).is_ok();
    match crate::Identity::parse_uri(&text) {
        Ok(identity) => {
            assert_eq!(identity.to_uri(), text, "written another way than read");
            identity.rights.to_string()
        }
        Err(error) => format!("{error} {listed}"),
    }
}

/// The exposures that stand in front of a message.
#[must_use]
pub fn extension(bytes: &[u8]) -> String {
    match parse_extension(bytes) {
        Ok(exposures) => {
            let mut again = Vec::new();
            for exposure in &exposures {
                encode_exposure(exposure, &mut again);
            }
            assert_eq!(again, bytes, "written another way than read");
            format!("{} exposures", exposures.len())
        }
        Err(error) => error.to_string(),
    }
}

/// What opens the segments of a push on a sealed connection.
#[must_use]
pub fn push_seals(bytes: &[u8]) -> String {
    match parse_push_seals(bytes) {
        Ok(seals) => {
            assert_eq!(&encode_push_seals(&seals)[..], bytes, "written another way than read");
            format!("{} seals", seals.len())
        }
        Err(error) => error.to_string(),
    }
}

/// Seals of a push, to begin with.
#[must_use]
pub fn push_seal_examples() -> Vec<Vec<u8>> {
    let seal = Seal::decode(&[7; SEAL_BYTES]);
    let of = |count| (0..count).map(|segment_index| PushSeal { segment_index, seal }).collect::<Vec<_>>();
    [1, 2, 64].map(|count| encode_push_seals(&of(count)).into_vec()).to_vec()
}

/// A bulk descriptor.
#[must_use]
pub fn descriptor(bytes: &[u8]) -> String {
    match BulkDescriptor::parse(bytes) {
        Ok(descriptor) => {
            let again = BulkDescriptor::parse(&descriptor.to_bytes());
            assert_eq!(again.as_ref().ok(), Some(&descriptor));
            assert!(descriptor.total_bytes() > 0);
            format!("{} segments", descriptor.segments.len())
        }
        Err(error) => error.to_string(),
    }
}

/// What the verbs backend takes with a request for a connection, and its words about long messages.
#[must_use]
pub fn verbs(bytes: &[u8]) -> String {
    crate::backend::verbs::fuzz(bytes)
}

/// A line of a fault rule.
#[must_use]
pub fn fault_rule(bytes: &[u8]) -> String {
    match String::from_utf8_lossy(bytes).parse::<FaultRule>() {
        Ok(rule) => {
            assert_eq!(rule.to_string().parse::<FaultRule>().ok(), Some(rule));
            "a rule".into()
        }
        Err(error) => error.to_string(),
    }
}

/// Bytes that each decoder takes, to begin with: of frames, hellos and extensions.
#[must_use]
pub fn examples() -> [Vec<Vec<u8>>; 3] {
    let bodies = [
        FrameBody::Hello,
        FrameBody::Noop,
        FrameBody::Put { sequence: 1, extension_bytes: 0, target: PutTarget::message(4, 5) },
        FrameBody::Get { sequence: 2, portal: 3, match_bits: 4, operation: 5, offset_bytes: 0, bytes: 64 },
        FrameBody::Reply { sequence: 3, operation: 5, offset_bytes: 0 },
        FrameBody::Ack { sequence: 4, operation: 5, offset_bytes: 0, bytes: 64 },
        FrameBody::PullRequest { cookie: 1, key: 2, transfer: 3, segment_index: 0, segment_count: 2 },
        FrameBody::PullData { transfer: 3, segment_index: 0, offset_bytes: 4096 },
        FrameBody::PushData {
            cookie: 1,
            key: 2,
            transfer: 3,
            segment_index: 0,
            offset_bytes: 0,
            total_bytes: 4096,
            ack_wanted: true,
        },
    ];
    let payload = |body: &FrameBody| match body {
        FrameBody::Hello => HELLO_BYTES,
        FrameBody::Put { .. } | FrameBody::PullData { .. } | FrameBody::PushData { .. } => 4096,
        _ => 0,
    };
    let frames = bodies
        .into_iter()
        .map(|body| {
            // Lengths of an example: far below 4 GiB.
            let payload_bytes = u32::try_from(payload(&body)).unwrap_or(0);
            Frame { version: 1, credits: 1, to_epoch: 7, payload_bytes, body }.encode().to_vec()
        })
        .collect();
    let hellos = ["10.0.0.5@tcp:12345:34:1", "10.0.0.5@o2ib1:12345:44:301", "0@lo:12345:34:1"]
        .into_iter()
        .filter_map(|endpoint| endpoint.parse().ok())
        .map(|endpoint| {
            let hello = Hello {
                version_min: 1,
                version_max: 1,
                window: 32,
                epoch: 7,
                config_version: 3,
                endpoint,
                token: Token::new([9; 32]),
                features: Features::MULTI_RAIL | Features::DISCOVERY,
                rail: endpoint.nid,
                nonce: 11,
            };
            hello.encode().to_vec()
        })
        .collect();
    let mut extensions = vec![Vec::new()];
    for (access, are_windows, seals) in
        [(RemoteAccess::Read, true, 0), (RemoteAccess::Write, false, 0), (RemoteAccess::Read, true, 3)]
    {
        let segments = (0..3).map(|n| RemoteSegment { address: n << 20, rkey: 77, bytes: 4096 }).collect();
        let seals = (0..seals).map(|_| Seal::decode(&[7; SEAL_BYTES])).collect();
        let cookie = BulkCookie(1 << 32);
        let exposure = RemoteExposure { cookie, key: 5, access, are_windows, segments, seals };
        // A message carries two.
        let before = extensions.last().filter(|_| extensions.len() < 3);
        let mut bytes = before.cloned().unwrap_or_default();
        encode_exposure(&exposure, &mut bytes);
        extensions.push(bytes);
    }
    [frames, hellos, extensions]
}
