//! A configuration that comes in parts: checked as one.
//!
//! **Invariant**: parts of two versions never mix: each names its version, the size and the checksum of the whole, and one that says
//! otherwise than the first is refused. What a peer claims takes no memory: only the bytes that came do.
//! Bound: `CONFIGURATION_BYTES_MAX`. Start at [`Parts::begin`].

use base::checksum::crc32c;
use base::units::wide;

use crate::limits::CONFIGURATION_BYTES_MAX;

/// Why parts are not a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadParts {
    /// Longer than a configuration can be.
    #[error("it claims {bytes} bytes, and a configuration has at most {CONFIGURATION_BYTES_MAX}")]
    TooLong {
        /// As claimed.
        bytes: u64,
    },
    /// Not the next part.
    #[error("a part begins at byte {found}, and {expected} were there before")]
    Offset {
        /// Where it begins.
        found: u64,
        /// Where the next one has to.
        expected: u64,
    },
    /// Says something else of the whole than the parts before.
    #[error("a part is of another configuration than those before: {found}, and not {expected}")]
    Other {
        /// What it says: bytes, or the checksum.
        found: u64,
        /// What those before said.
        expected: u64,
    },
    /// Brings nothing, and more is missing.
    #[error("a part has no bytes, and {missing} are missing")]
    Empty {
        /// How many.
        missing: u64,
    },
    /// Has more than is missing.
    #[error("a part has {bytes} bytes, and {missing} were missing")]
    TooMuch {
        /// How many it has.
        bytes: u64,
        /// How many were missing.
        missing: u64,
    },
    /// The whole is not what was meant.
    #[error("the checksum of what came is {found:#010x}, and should be {expected:#010x}")]
    Checksum {
        /// Of what came.
        found: u32,
        /// As named.
        expected: u32,
    },
}

/// What a part says of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Its version.
    pub version: u64,
    /// Its bytes.
    pub bytes: u64,
    /// CRC-32C of them.
    pub checksum: u32,
}

/// The parts that came so far.
#[derive(Clone, Debug)]
pub struct Parts {
    whole: Whole,
    bytes: Vec<u8>,
}

impl Parts {
    /// Nothing came yet. Error: the whole would be too long.
    pub fn begin(whole: Whole) -> Result<Parts, BadParts> {
        if whole.bytes > wide(CONFIGURATION_BYTES_MAX) {
            return Err(BadParts::TooLong { bytes: whole.bytes });
        }
        Ok(Parts { whole, bytes: Vec::new() })
    }

    /// Version of what comes.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.whole.version
    }

    /// Offset of the next part.
    #[must_use]
    pub fn offset(&self) -> u64 {
        wide(self.bytes.len())
    }

    /// Takes the next part. True: it was the last. Errors: see [`BadParts`]; nothing was taken then.
    pub fn take(&mut self, whole: Whole, offset: u64, part: &[u8]) -> Result<bool, BadParts> {
        for (found, expected) in [
            (whole.version, self.whole.version),
            (whole.bytes, self.whole.bytes),
            (whole.checksum.into(), self.whole.checksum.into()),
        ] {
            if found != expected {
                return Err(BadParts::Other { found, expected });
            }
        }
        if offset != self.offset() {
            return Err(BadParts::Offset { found: offset, expected: self.offset() });
        }
        let missing = self.whole.bytes - self.offset();
        if wide(part.len()) > missing {
            return Err(BadParts::TooMuch { bytes: wide(part.len()), missing });
        }
        if part.is_empty() && missing > 0 {
            return Err(BadParts::Empty { missing });
        }
        self.bytes.extend_from_slice(part);
        Ok(self.offset() == self.whole.bytes)
    }

    /// The whole, once the last part was taken. Error: its checksum is another.
    pub fn into_bytes(self) -> Result<Vec<u8>, BadParts> {
        let (found, expected) = (crc32c(&self.bytes), self.whole.checksum);
        if found == expected { Ok(self.bytes) } else { Err(BadParts::Checksum { found, expected }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> Whole {
        Whole { version: 7, bytes: wide(bytes.len()), checksum: crc32c(bytes) }
    }

    #[test]
    fn parts_in_order_are_the_whole() {
        let bytes = b"one, two, three";
        let mut parts = Parts::begin(whole(bytes)).unwrap();
        assert_eq!(parts.take(whole(bytes), 0, &bytes[..5]), Ok(false));
        assert_eq!(parts.take(whole(bytes), 5, &bytes[5..]), Ok(true));
        assert_eq!(parts.into_bytes().unwrap(), bytes);
        let empty = Whole { version: 1, bytes: 0, checksum: 0 };
        assert_eq!(Parts::begin(empty).unwrap().take(empty, 0, &[]), Ok(true));
    }

    #[test]
    fn parts_that_overlap_are_short_or_mixed_and_absurd_totals_are_refused() {
        let bytes = b"one, two, three";
        let mut parts = Parts::begin(whole(bytes)).unwrap();
        parts.take(whole(bytes), 0, &bytes[..5]).unwrap();
        for (other, offset, part, problem) in [
            (whole(bytes), 4, &bytes[4..], "begins at byte 4"),
            (whole(bytes), 6, &bytes[6..], "begins at byte 6"),
            (whole(bytes), 5, &bytes[..0], "no bytes"),
            (whole(bytes), 5, &[0; 11][..], "were missing"),
            (Whole { version: 8, ..whole(bytes) }, 5, &bytes[5..], "8, and not 7"),
            (Whole { bytes: 16, ..whole(bytes) }, 5, &bytes[5..], "16, and not 15"),
            (Whole { checksum: 1, ..whole(bytes) }, 5, &bytes[5..], "another configuration"),
        ] {
            let refused = parts.take(other, offset, part).unwrap_err().to_string();
            assert!(refused.contains(problem), "{refused}");
        }
        // What was refused left nothing behind.
        assert_eq!(parts.take(whole(bytes), 5, b"TWO, THREE"), Ok(true));
        assert!(matches!(parts.into_bytes(), Err(BadParts::Checksum { .. })));
        let absurd = Whole { version: 1, bytes: u64::MAX, checksum: 0 };
        assert!(matches!(Parts::begin(absurd), Err(BadParts::TooLong { .. })));
    }
}
