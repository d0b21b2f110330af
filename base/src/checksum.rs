//! CRC-32C (Castagnoli), the one checksum of wire headers, disk records and blocks.
//!
//! Source: RFC 3720 appendix B.4 (test vectors). The kernel is the crate `crc-fast`.

/// CRC-32C of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// Up to this length a copy costs less than another round of the kernel.
const SHORT_BYTES: usize = 256;

/// CRC-32C of `bytes` as if the `BLANK` ones from `at` on were zero: of what holds its own checksum.
///
/// Panics if those are not within `bytes`: a bug of the caller.
#[must_use]
pub fn crc32c_blanking<const BLANK: usize>(bytes: &[u8], at: usize) -> u32 {
    let (field, zeros) = (at..at + BLANK, [0; BLANK]);
    let mut copy = [0; SHORT_BYTES];
    if let Some(copy) = copy.get_mut(..bytes.len()) {
        copy.copy_from_slice(bytes);
        copy[field].copy_from_slice(&zeros);
        return crc32c(copy);
    }
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in [&bytes[..field.start], &zeros, &bytes[field.end..]] {
        digest.update(part);
    }
    // A 32-bit CRC always fits: crc-fast returns every width in a u64.
    (digest.finalize() & 0xffff_ffff) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
    }

    #[test]
    fn a_blank_field_counts_as_zeros_in_short_and_long() {
        for bytes in [4, 9, SHORT_BYTES, SHORT_BYTES + 1, 5000] {
            let written: Vec<u8> = (1..=u8::MAX).cycle().take(bytes).collect();
            for at in [0, 1, bytes / 2, bytes - 4].into_iter().filter(|at| at + 4 <= bytes) {
                let mut blank = written.clone();
                blank[at..at + 4].fill(0);
                assert_eq!(
                    crc32c_blanking::<4>(&written, at),
                    crc32c(&blank),
                    "{bytes} bytes, blank at {at}"
                );
            }
        }
    }
}
