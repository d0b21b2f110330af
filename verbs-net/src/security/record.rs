//! TLS records as the wire carries them: 1 byte type, 2 bytes version, 2 bytes length, then that many bytes. Only the bounds are
//! looked at, to know where a record ends: behind the last one, bytes of ours may follow.

/// Bytes of a record's header.
const HEADER_BYTES: usize = 5;
/// The longest: 2^14 bytes and what sealing adds at most (RFC 8446, 5.2).
pub(crate) const RECORD_BYTES_MAX: usize = HEADER_BYTES + 16_384 + 256;
/// The types that TLS 1.3 sends: change cipher spec, alert, handshake, application data.
const TYPES: std::ops::RangeInclusive<u8> = 20..=23;

/// What stands at the front of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// One whole, of so many bytes.
    Whole(usize),
    /// The beginning of one.
    Part,
    /// No record: the peer speaks something else.
    None,
}

/// Looks at the front of `bytes`.
pub(crate) fn record_at(bytes: &[u8]) -> Record {
    if bytes.first().is_some_and(|kind| !TYPES.contains(kind))
        || bytes.get(1).is_some_and(|major| *major != 3)
    {
        return Record::None;
    }
    let Some([_, _, _, high, low]) = bytes.first_chunk::<HEADER_BYTES>() else { return Record::Part };
    let whole = HEADER_BYTES + usize::from(u16::from_be_bytes([*high, *low]));
    match whole {
        whole if whole > RECORD_BYTES_MAX => Record::None,
        whole if whole <= bytes.len() => Record::Whole(whole),
        _ => Record::Part,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_told_from_other_bytes_as_soon_as_possible() {
        assert_eq!(record_at(&[]), Record::Part);
        assert_eq!(record_at(&[22, 3, 1, 0]), Record::Part);
        assert_eq!(record_at(&[22, 3, 1, 0, 2, 9]), Record::Part);
        assert_eq!(record_at(&[22, 3, 1, 0, 2, 9, 9]), Record::Whole(7));
        assert_eq!(record_at(&[23, 3, 3, 0, 0, 9, 9]), Record::Whole(5));
        assert_eq!(record_at(&[19]), Record::None);
        assert_eq!(record_at(&crate::frame::MAGIC.to_le_bytes()), Record::None);
        assert_eq!(record_at(&[22, 4]), Record::None);
        assert_eq!(record_at(&[22, 3, 1, 0x41, 0x01]), Record::None, "16641 bytes");
        assert_eq!(record_at(&[22, 3, 1, 0x41, 0x00]), Record::Part, "16640 bytes");
    }
}
