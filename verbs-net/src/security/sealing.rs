//! Seals what TLS does not carry: messages of a queue pair, and bulk that a card moves. AES-256-GCM, under keys of the hello's handshake.
//!
//! Each direction of a connection has one secret, which both ends export from their handshake (RFC 5705 as in RFC 8446, 7.5). HKDF makes
//! keys of it: for messages and for bulk, and a new one for each generation of numbers. Everything that a side seals has a number
//! of its own; the number is the nonce. Messages come in order, so theirs is counted at both ends; that of bulk travels with its tag
//! in a sealed message, and what the bytes are for is bound to them ([`Place`]).
//!
//! **Invariant**: no two things are sealed under one key and nonce: secrets are of one connection and one direction, the two purposes have
//! keys of their own, and a number is taken once, because the counter only grows and ends at [`NUMBERS_MAX`]. **Invariant**: a key seals at
//! most 2^34 blocks: below the 2^34.5 at which AES-GCM keeps an attacker's advantage under 2^-57 (RFC 8446, 5.5).
//! A forgery costs its connection, so an attacker has one guess for each key. Bytes: docs/wire.md#sealed-connections-over-verbs.

use std::cell::RefCell;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use base::limits::BUFFER_BYTES_MAX;

use crate::error::PeerMisbehaved;

/// Bytes that a direction's secret has.
pub(crate) const SECRET_BYTES: usize = 32;
/// Bytes that sealing adds to a message.
pub(crate) const TAG_BYTES: usize = 16;
/// Bytes of a [`Seal`] on the wire.
pub(crate) const SEAL_BYTES: usize = 24;
/// Label of the exporter; its context says which side seals.
pub(crate) const EXPORTER_LABEL: &[u8] = b"EXPORTER-clovis-o2ib/1";

/// Numbers of one generation of a key for messages: at most 8 KiB each, so 2^37 bytes.
const MESSAGES_SHIFT: u32 = 24;
/// Of a key for bulk: at most 1 MiB each, so 2^38 bytes.
const BULK_SHIFT: u32 = 18;
/// Things that one side seals on one connection, at most: then the connection ends, and another has other secrets.
pub(crate) const NUMBERS_MAX: u64 = 1 << 48;

const _: () = assert!(BUFFER_BYTES_MAX << BULK_SHIFT <= 1 << 38);

/// What a piece of bulk is for: it opens as nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) operation: SealedOperation,
    pub(crate) segment_index: u8,
    /// The exposure's cookie and key; of a long message its number, and 0.
    pub(crate) name: u64,
    pub(crate) key: u64,
}

/// What is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum SealedOperation {
    /// A message of the queue pair.
    Message = 0,
    /// A segment that is pulled.
    Pull = 1,
    /// A segment that was pushed.
    Push = 2,
    /// A message that is longer than a receive.
    LongMessage = 3,
}

impl std::fmt::Display for SealedOperation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SealedOperation::Message => "message",
            SealedOperation::Pull => "pull",
            SealedOperation::Push => "push",
            SealedOperation::LongMessage => "long message",
        })
    }
}

/// The number and the tag of something sealed: it travels in a sealed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) number: u64,
    pub(crate) tag: [u8; TAG_BYTES],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSeal {
    number: U64,
    tag: [u8; TAG_BYTES],
}

const _: () = assert!(size_of::<RawSeal>() == SEAL_BYTES);

impl Seal {
    pub(crate) fn encode(&self) -> [u8; SEAL_BYTES] {
        zerocopy::transmute!(RawSeal { number: self.number.into(), tag: self.tag })
    }

    /// Any bytes are a seal; what they open is another question.
    pub(crate) fn decode(bytes: &[u8; SEAL_BYTES]) -> Seal {
        let raw: RawSeal = zerocopy::transmute!(*bytes);
        Seal { number: raw.number.get(), tag: raw.tag }
    }
}

/// Authenticated beside the bytes of bulk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Bound {
    operation: u8,
    segment_index: u8,
    reserved: [u8; 2],
    bytes: U32,
    name: U64,
    key: U64,
}

impl Place {
    /// What came in this place is not what the peer sealed for it.
    pub(crate) const fn broken(&self) -> PeerMisbehaved {
        let Place { operation, name, segment_index, .. } = *self;
        PeerMisbehaved::BrokenSeal { operation, name, segment_index }
    }

    fn bound(&self, bytes: usize) -> Bound {
        Bound {
            operation: self.operation as u8,
            segment_index: self.segment_index,
            reserved: [0; 2],
            // A buffer has at most 1 MiB.
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX).into(),
            name: self.name.into(),
            key: self.key.into(),
        }
    }
}

/// The other side did not seal this, or not as this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

/// All numbers are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

/// Keys of one direction and purpose. The two newest generations that were asked for are kept.
struct Keys {
    secret: Prk,
    purpose: &'static [u8],
    shift: u32,
    made: [Option<(u64, LessSafeKey)>; 2],
}

impl Keys {
    fn new(secret: &Prk, purpose: &'static [u8], shift: u32) -> Keys {
        Keys { secret: secret.clone(), purpose, shift, made: [None, None] }
    }

    fn key(&mut self, number: u64) -> &LessSafeKey {
        let generation = number >> self.shift;
        let slot = &mut self.made[usize::from(generation & 1 == 1)];
        if slot.as_ref().is_some_and(|(found, _)| *found != generation) {
            *slot = None;
        }
        let (secret, purpose) = (&self.secret, self.purpose);
        &slot.get_or_insert_with(|| (generation, derive(secret, purpose, generation))).1
    }
}

fn derive(secret: &Prk, purpose: &[u8], generation: u64) -> LessSafeKey {
    let generation = generation.to_le_bytes();
    let info = [purpose, &generation];
    #[allow(clippy::expect_used)] // HKDF-SHA256 gives up to 255 * 32 bytes; 32 are asked for
    let okm = secret.expand(&info, &AES_256_GCM).expect("32 bytes are within HKDF's reach");
    LessSafeKey::new(UnboundKey::from(okm))
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

struct Direction {
    messages: Keys,
    bulk: Keys,
    next_message: u64,
    next_bulk: u64,
}

impl Direction {
    fn new(secret: &[u8; SECRET_BYTES]) -> Direction {
        let secret = Prk::new_less_safe(HKDF_SHA256, secret);
        Direction {
            messages: Keys::new(&secret, b"clovis message", MESSAGES_SHIFT),
            bulk: Keys::new(&secret, b"clovis bulk", BULK_SHIFT),
            next_message: 0,
            next_bulk: 0,
        }
    }

    /// The number of the next message of this direction.
    fn take_message(&mut self) -> Result<u64, Exhausted> {
        take(&mut self.next_message)
    }
}

fn take(next: &mut u64) -> Result<u64, Exhausted> {
    if *next >= NUMBERS_MAX {
        return Err(Exhausted);
    }
    *next += 1;
    Ok(*next - 1)
}

/// What one side seals on one connection.
pub(crate) struct Sealer(Direction);

impl Sealer {
    pub(crate) fn new(secret: &[u8; SECRET_BYTES]) -> Sealer {
        Sealer(Direction::new(secret))
    }

    /// Seals the next message in its place; its tag goes behind it. The messages have to leave in the order of these calls.
    pub(crate) fn seal_message(&mut self, message: &mut [u8]) -> Result<[u8; TAG_BYTES], Exhausted> {
        let number = self.0.take_message()?;
        Ok(seal(self.0.messages.key(number), number, &[], message))
    }

    /// Seals a piece of bulk in its place.
    pub(crate) fn seal_bulk(&mut self, place: &Place, bytes: &mut [u8]) -> Result<Seal, Exhausted> {
        let number = take(&mut self.0.next_bulk)?;
        let bound = place.bound(bytes.len());
        Ok(Seal { number, tag: seal(self.0.bulk.key(number), number, bound.as_bytes(), bytes) })
    }
}

fn seal(key: &LessSafeKey, number: u64, beside: &[u8], bytes: &mut [u8]) -> [u8; TAG_BYTES] {
    #[allow(clippy::expect_used)] // 2^36 - 32 bytes are AES-GCM's most; a buffer has 2^20
    let tag = key
        .seal_in_place_separate_tag(nonce(number), Aad::from(beside), bytes)
        .expect("a buffer is shorter than what AES-GCM seals at once");
    let mut copied = [0; TAG_BYTES];
    copied.copy_from_slice(tag.as_ref());
    copied
}

/// What the other side has sealed on one connection.
pub(crate) struct Opener(RefCell<Direction>);

impl Opener {
    pub(crate) fn new(secret: &[u8; SECRET_BYTES]) -> Opener {
        Opener(RefCell::new(Direction::new(secret)))
    }

    /// Opens the next message in its place; answers how long it is.
    pub(crate) fn open_message(&self, message: &mut [u8]) -> Result<usize, Broken> {
        let direction = &mut *self.0.borrow_mut();
        let number = direction.take_message().map_err(|_| Broken)?;
        let key = direction.messages.key(number);
        key.open_in_place(nonce(number), Aad::empty(), message).map(|plain| plain.len()).map_err(|_| Broken)
    }

    /// Opens a piece of bulk in its place. What does not open is left as zeros, as ring leaves it.
    pub(crate) fn open_bulk(&self, place: &Place, seal: &Seal, bytes: &mut [u8]) -> Result<(), Broken> {
        if seal.number >= NUMBERS_MAX {
            return Err(Broken);
        }
        let bound = place.bound(bytes.len());
        let mut direction = self.0.borrow_mut();
        let (beside, tag) = (Aad::from(bound.as_bytes()), Tag::from(seal.tag));
        let key = direction.bulk.key(seal.number);
        key.open_in_place_separate_tag(nonce(seal.number), beside, tag, bytes, 0..)
            .map(|_| ())
            .map_err(|_| Broken)
    }
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opener")
    }
}

/// Both directions of one connection, as one end has them.
pub(crate) struct Sealing {
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLACE: Place = Place { operation: SealedOperation::Pull, segment_index: 3, name: 0x21, key: 7 };

    fn ends() -> (Sealer, Opener) {
        let secret = [0x5a; SECRET_BYTES];
        (Sealer::new(&secret), Opener::new(&secret))
    }

    fn message(sealer: &mut Sealer, text: &[u8]) -> Vec<u8> {
        let mut bytes = text.to_vec();
        let tag = sealer.seal_message(&mut bytes).unwrap();
        bytes.extend_from_slice(&tag);
        bytes
    }

    fn opened(opener: &Opener, sealed: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut bytes = sealed.to_vec();
        let length = opener.open_message(&mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn golden_bytes_of_what_is_sealed() {
        let (mut sealer, _) = ends();
        let mut text = String::new();
        for what in [&b"first"[..], b"second"] {
            text += &format!("message {}\n", hex(&message(&mut sealer, what)));
        }
        for number in [0, 1 << BULK_SHIFT] {
            sealer.0.next_bulk = number;
            let mut bytes = *b"a piece of bulk";
            let seal = sealer.seal_bulk(&PLACE, &mut bytes).unwrap();
            text += &format!("bulk {} seal {}\n", hex(&bytes), hex(&seal.encode()));
        }
        sealer.0.next_message = 1 << MESSAGES_SHIFT;
        text += &format!("message {}\n", hex(&message(&mut sealer, b"of the next key")));
        assert_eq!(text, include_str!("../../tests/golden/sealed_v1.txt"));
    }

    #[test]
    fn messages_open_in_their_order_and_in_no_other() {
        let (mut sealer, opener) = ends();
        let texts = [&b"one"[..], b"", b"three"];
        let sealed: Vec<_> = texts.iter().map(|text| message(&mut sealer, text)).collect();
        for (text, sealed) in texts.iter().zip(&sealed) {
            assert_eq!(sealed.len(), text.len() + TAG_BYTES);
            assert_eq!(opened(&opener, sealed).as_deref(), Ok(*text));
        }
        let fresh = || ends().1;
        assert_eq!(opened(&fresh(), &sealed[1]), Err(Broken), "one was left out");
        let again = fresh();
        assert!(opened(&again, &sealed[0]).is_ok());
        assert_eq!(opened(&again, &sealed[0]), Err(Broken), "replayed");
        for cut in 0..sealed[0].len() {
            assert_eq!(opened(&fresh(), &sealed[0][..cut]), Err(Broken), "{cut}");
        }
        let other = Opener::new(&[0x5b; SECRET_BYTES]);
        assert_eq!(opened(&other, &sealed[0]), Err(Broken), "of another connection or direction");
    }

    #[test]
    fn bulk_opens_only_as_what_it_was_sealed_for() {
        let (mut sealer, opener) = ends();
        let mut sealed = *b"a piece of bulk";
        let seal = sealer.seal_bulk(&PLACE, &mut sealed).unwrap();
        let open = |place: Place, seal: Seal, sealed: &[u8]| {
            let mut bytes = sealed.to_vec();
            opener.open_bulk(&place, &seal, &mut bytes).map(|()| bytes)
        };
        assert_eq!(open(PLACE, seal, &sealed).as_deref(), Ok(&b"a piece of bulk"[..]));
        let others = [
            Place { operation: SealedOperation::Push, ..PLACE },
            Place { segment_index: 2, ..PLACE },
            Place { name: 0x22, ..PLACE },
            Place { key: 8, ..PLACE },
        ];
        for other in others {
            assert_eq!(open(other, seal, &sealed), Err(Broken), "{other:?}");
        }
        assert_eq!(open(PLACE, Seal { number: 1, ..seal }, &sealed), Err(Broken), "of another time");
        assert_eq!(open(PLACE, Seal { number: u64::MAX, ..seal }, &sealed), Err(Broken));
        assert_eq!(open(PLACE, seal, &sealed[1..]), Err(Broken), "cut short");
        let mut next = *b"a piece of bulk";
        let of_next = sealer.seal_bulk(&PLACE, &mut next).unwrap();
        assert_ne!(next, sealed, "the same bytes, sealed twice, are not alike");
        assert_eq!(open(PLACE, of_next, &sealed), Err(Broken), "the bytes of before");
        // A message is not bulk, and bulk is no message.
        let as_message = [&sealed[..], &seal.tag].concat();
        assert_eq!(opened(&opener, &as_message), Err(Broken));
    }

    #[test]
    fn keys_change_before_they_are_used_up_and_numbers_end() {
        let (mut sealer, opener) = ends();
        // Around a change of the key, in any order: two generations are at hand.
        let border = 1 << BULK_SHIFT;
        let pieces: Vec<_> = (border - 2..border + 2)
            .map(|number| {
                sealer.0.next_bulk = number;
                let mut bytes = [7; 64];
                let seal = sealer.seal_bulk(&PLACE, &mut bytes).unwrap();
                assert_eq!(seal.number, number);
                (seal, bytes)
            })
            .collect();
        for index in [3, 0, 2, 1] {
            let (seal, mut bytes) = pieces[index];
            assert_eq!(opener.open_bulk(&PLACE, &seal, &mut bytes), Ok(()));
            assert_eq!(bytes, [7; 64]);
        }
        // Generations far apart are made again when they are asked for.
        for number in [0, 5 * border, 0] {
            sealer.0.next_bulk = number;
            let mut bytes = [9; 8];
            let seal = sealer.seal_bulk(&PLACE, &mut bytes).unwrap();
            assert_eq!(opener.open_bulk(&PLACE, &seal, &mut bytes), Ok(()));
        }
        let message_border = 1 << MESSAGES_SHIFT;
        (sealer.0.next_message, opener.0.borrow_mut().next_message) =
            (message_border - 1, message_border - 1);
        for text in [&b"last of a key"[..], b"first of the next"] {
            assert_eq!(opened(&opener, &message(&mut sealer, text)).as_deref(), Ok(text));
        }
        (sealer.0.next_message, sealer.0.next_bulk) = (NUMBERS_MAX - 1, NUMBERS_MAX - 1);
        assert!(sealer.seal_message(&mut [1]).is_ok() && sealer.seal_bulk(&PLACE, &mut [1]).is_ok());
        assert_eq!(sealer.seal_message(&mut [1]), Err(Exhausted));
        assert_eq!(sealer.seal_bulk(&PLACE, &mut [1]), Err(Exhausted));
        opener.0.borrow_mut().next_message = NUMBERS_MAX;
        assert_eq!(opener.open_message(&mut [0; 32]), Err(Broken));
    }

    /// What docs/security.md says of the cost: CPU time of this thread, the best of 40 rounds.
    #[test]
    #[ignore = "a measurement: cargo test --release -p verbs-net --lib -- --ignored --nocapture what_sealing_costs"]
    fn what_sealing_costs() {
        use std::time::Duration;
        const ROUNDS: usize = 40;
        for (bytes, times) in [(1 << 20, 16), (16 << 10, 1 << 10), (4 << 10, 1 << 12), (256, 1 << 14)] {
            let (mut sealer, opener) = ends();
            let plain = vec![7_u8; bytes];
            let mut pieces = vec![plain.clone(); times];
            let mut best = [Duration::MAX; 3];
            for _ in 0..ROUNDS {
                let mut at = runtime::process::thread_cpu_time();
                let mut lap = |what: usize| {
                    let now = runtime::process::thread_cpu_time();
                    best[what] = best[what].min(now - at);
                    at = now;
                };
                pieces.iter_mut().for_each(|piece| std::hint::black_box(piece).copy_from_slice(&plain));
                lap(0);
                let sealed = pieces.iter_mut().map(|piece| sealer.seal_bulk(&PLACE, piece).unwrap());
                let seals: Vec<Seal> = sealed.collect();
                lap(1);
                for (piece, seal) in pieces.iter_mut().zip(&seals) {
                    opener.open_bulk(&PLACE, seal, piece).unwrap();
                }
                lap(2);
            }
            assert!(pieces.iter().all(|piece| *piece == plain));
            for (what, time) in ["copy", "seal", "open"].into_iter().zip(best) {
                let each_ns = time.as_nanos() / times as u128;
                let per_mib_us = time.as_secs_f64() * 1e6 / (times * bytes) as f64 * f64::from(1 << 20);
                println!("{bytes:8} bytes: {what} {each_ns:8} ns each, {per_mib_us:7.1} us/MiB");
            }
        }
    }

    proptest! {
        #[test]
        fn damage_is_always_found(
            text in proptest::collection::vec(any::<u8>(), 1..300), at in any::<usize>(), flip in 1u8..,
        ) {
            let (mut sealer, opener) = ends();
            let mut sealed = message(&mut sealer, &text);
            let place = at % sealed.len();
            sealed[place] ^= flip;
            prop_assert_eq!(opened(&opener, &sealed), Err(Broken));
            let mut bytes = text.clone();
            let mut seal = sealer.seal_bulk(&PLACE, &mut bytes).unwrap();
            let place = at % (bytes.len() + TAG_BYTES);
            match bytes.get_mut(place) {
                Some(byte) => *byte ^= flip,
                None => seal.tag[place - text.len()] ^= flip,
            }
            prop_assert_eq!(opener.open_bulk(&PLACE, &seal, &mut bytes), Err(Broken));
        }
    }
}
