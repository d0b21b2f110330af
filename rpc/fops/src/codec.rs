//! The one codec of variable-shaped bodies: bincode 2 with fixed-width little-endian integers and a bound on what a length
//! prefix may claim. Frozen: a change here is a new wire version (docs/wire.md, docs/rfd/0003).

use std::ops::Deref;

use base::limits::MESSAGE_BYTES_MAX;
use base::units::narrow;
use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::de::Decoder;
use bincode::de::read::Reader;
use bincode::error::DecodeError;

/// What a body has to be. The codec's traits under our name, so that no other crate names the codec.
pub use bincode::{Decode, Encode};

#[expect(clippy::cast_possible_truncation, reason = "a message is far smaller than any usize")]
const BODY_BYTES_MAX: usize = MESSAGE_BYTES_MAX as usize;

/// Bytes of the largest value that is encoded to travel in parts, or by its changes, or to be stored: a configuration.
pub const LONG_BYTES_MAX: usize = 1 << 20;

type Frozen = Configuration<LittleEndian, Fixint, Limit<BODY_BYTES_MAX>>;

const FROZEN: Frozen =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<BODY_BYTES_MAX>();

const FROZEN_LONG: Configuration<LittleEndian, Fixint, Limit<LONG_BYTES_MAX>> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<LONG_BYTES_MAX>();

/// Why bytes are not the body that they should be, or a body does not fit a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The body is larger than a message may be, or cannot be written.
    #[error("the body does not encode: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// The bytes are not such a body.
    #[error("the bytes are not the body expected: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    /// The encoded body would not fit a message.
    #[error("the body has {bytes} bytes, more than the {MESSAGE_BYTES_MAX} of a message")]
    TooLong {
        /// Size of the encoded body.
        bytes: usize,
    },
    /// The encoded value is longer than anything that travels in parts.
    #[error("the value has {bytes} bytes, more than the {LONG_BYTES_MAX} of what travels in parts")]
    TooLongForParts {
        /// Size of the encoded value.
        bytes: usize,
    },
    /// Bytes are left over behind the body.
    #[error("{left} bytes stand behind the body")]
    TrailingBytes {
        /// How many.
        left: usize,
    },
}

/// Bytes in a body: the same on the wire as a `Vec<u8>`. Decoded, they come straight from the message, where those of a `Vec<u8>` go into memory that
/// is cleared for them first, which for a few bytes takes longer than all else of their body.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode)]
pub struct ByteString(pub Vec<u8>);

impl From<Vec<u8>> for ByteString {
    fn from(bytes: Vec<u8>) -> ByteString {
        ByteString(bytes)
    }
}

impl Deref for ByteString {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<Context> Decode<Context> for ByteString {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<ByteString, DecodeError> {
        let length = u64::decode(decoder)?;
        let length = usize::try_from(length).map_err(|_| DecodeError::OutsideUsizeRange(length))?;
        decoder.claim_container_read::<u8>(length)?;
        let Some(bytes) = decoder.reader().peek_read(length) else {
            return Err(DecodeError::UnexpectedEnd { additional: length });
        };
        let bytes = bytes.to_vec();
        decoder.reader().consume(length);
        Ok(ByteString(bytes))
    }
}

bincode::impl_borrow_decode!(ByteString);

/// Encodes `body`. Errors: larger than a message.
pub fn encode<T: Encode>(body: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::encode_to_vec(body, FROZEN)?;
    if bytes.len() > narrow(MESSAGE_BYTES_MAX) {
        return Err(CodecError::TooLong { bytes: bytes.len() });
    }
    Ok(bytes)
}

/// Encodes `body` into the front of `buffer` and says how many bytes it took; `None` if there is not enough room.
/// Does not allocate.
pub fn encode_into<T: Encode>(body: &T, buffer: &mut [u8]) -> Result<Option<usize>, CodecError> {
    match bincode::encode_into_slice(body, buffer, FROZEN) {
        Ok(used) => Ok(Some(used)),
        Err(bincode::error::EncodeError::UnexpectedEnd) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Decodes a body that must fill `bytes` exactly. Never allocates more than a message holds.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    let (body, used) = bincode::decode_from_slice(bytes, FROZEN)?;
    match bytes.len() - used {
        0 => Ok(body),
        left => Err(CodecError::TrailingBytes { left }),
    }
}

/// Encodes what may be longer than a message, in the same form. Errors: longer than [`LONG_BYTES_MAX`].
pub fn encode_long<T: Encode>(value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::encode_to_vec(value, FROZEN_LONG)?;
    if bytes.len() > LONG_BYTES_MAX {
        return Err(CodecError::TooLongForParts { bytes: bytes.len() });
    }
    Ok(bytes)
}

/// Decodes what [`encode_long`] made; it must fill `bytes` exactly. Never allocates more than about [`LONG_BYTES_MAX`].
pub fn decode_long<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::decode_from_slice(bytes, FROZEN_LONG)?;
    match bytes.len() - used {
        0 => Ok(value),
        left => Err(CodecError::TrailingBytes { left }),
    }
}
