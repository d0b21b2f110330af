//! Bytes for files and objects of tests.

/// `count` bytes that follow from `seed`.
#[must_use]
pub fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}
