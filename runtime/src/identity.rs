//! Numbers that nobody else has: what tells one start of a process, one owner, one generation from every other.
//!
//! They come from the kernel's generator, never from a clock: processes that start in the same tick of it (ranks of one job, programs that waited
//! for the same event) would be one and the same to their servers, which give each the other's replies. So no generator of numbers in the
//! workspace seeds itself (clippy.toml forbids it): seeds are arguments, and in programs they are drawn here.

use std::io;

/// 64 random bits, not 0: an incarnation, or the seed of a locality.
///
/// # Errors
/// The kernel gives none: its generator is missing, or a filter of system calls forbids it.
pub fn unique_u64() -> io::Result<u64> {
    loop {
        let drawn = getrandom::u64()?;
        if drawn != 0 {
            return Ok(drawn);
        }
    }
}

/// 128 random bits, not 0: an owner, or a name.
///
/// # Errors
/// As [`unique_u64`].
pub fn unique_u128() -> io::Result<u128> {
    Ok(u128::from(unique_u64()?) << 64 | u128::from(unique_u64()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn threads_that_start_in_the_same_moment_draw_different_numbers() {
        let start = std::sync::Barrier::new(8);
        let drawn: Vec<u64> = std::thread::scope(|scope| {
            let draw = || {
                start.wait();
                (0..1000).map(|_| unique_u64().unwrap()).collect::<Vec<u64>>()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(draw)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), 8000);
        assert_eq!(drawn.iter().fold(0, |all, number| all | number), u64::MAX, "every bit is drawn");
        assert_ne!(unique_u128().unwrap(), unique_u128().unwrap());
    }
}
