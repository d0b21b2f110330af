//! The engine: takes an example, damages it, mends its checksum half of the time, and keeps what led to a verdict not seen before.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// One decoder.
pub struct Target {
    pub name: &'static str,
    /// Bytes that it takes, to begin with.
    pub examples: Vec<Vec<u8>>,
    /// Puts a checksum right again.
    pub mend: fn(&mut [u8]),
    /// The decoder: a word for how it ended. Panics are findings.
    pub decode: fn(&[u8]) -> String,
    /// Kinds of verdicts that a short run finds at least.
    pub verdicts_least: usize,
}

/// When a run ends.
#[derive(Clone, Copy)]
pub enum Limit {
    Runs(u64),
    Time(Duration),
}

/// What a run did.
pub struct Report {
    pub runs: u64,
    pub verdicts: usize,
    pub pool: usize,
}

/// Inputs longer than this are cut: longer ones find nothing that these do not, slower.
const BYTES_MAX: usize = 16 * 1024;
/// Kept inputs at most.
const POOL_MAX: usize = 4096;
const INTERESTING: [u64; 14] =
    [0, 1, 2, 7, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x1_0000, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// A verdict without its numbers and without what it quotes: each is a kind.
fn kind_of(verdict: &str) -> String {
    let words = verdict.split(['"', '\'', '`']).step_by(2);
    words.flat_map(str::chars).filter(|c| !c.is_ascii_hexdigit()).take(80).collect()
}

fn place(random: &mut fastrand::Rng, bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { random.usize(..bytes.len()) }
}

fn damage(random: &mut fastrand::Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = place(random, bytes);
    match random.u32(..9) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.u32(..8),
        1 if !bytes.is_empty() => bytes[at] = random.u8(..),
        2 => bytes.insert(at, random.u8(..)),
        3 if !bytes.is_empty() => {
            let end = (at + 1 + random.usize(..8)).min(bytes.len());
            bytes.drain(at..end);
        }
        4 => bytes.truncate(at),
        // A length, a count, an index.
        5 | 6 => {
            let value =
                INTERESTING[random.usize(..INTERESTING.len())].wrapping_add(random.u64(..3)).wrapping_sub(1);
            let width = [1, 2, 4, 8][random.usize(..4)];
            let value = if random.bool() { value.to_le_bytes() } else { value.swap_bytes().to_le_bytes() };
            for (byte, new) in bytes.iter_mut().skip(at).zip(&value[..width]) {
                *byte = *new;
            }
        }
        7 if !other.is_empty() => {
            let from = place(random, other);
            let end = (from + 1 + random.usize(..64)).min(other.len());
            let part = other[from..end].to_vec();
            bytes.splice(at..at, part);
        }
        _ => bytes.extend(std::iter::repeat_n(random.u8(..), random.usize(1..32))),
    }
    bytes.truncate(BYTES_MAX);
}

/// Fuzzes a target.
///
/// # Panics
/// At the first finding, with the bytes.
pub fn run(target: &Target, limit: Limit) -> Report {
    let seed = match limit {
        Limit::Runs(_) => 7,
        // The finding itself is printed; the seed only has to be another one each time.
        Limit::Time(_) => runtime::identity::unique_u64().unwrap(),
    };
    let mut random = fastrand::Rng::with_seed(seed);
    #[allow(clippy::disallowed_methods)] // how long a person asked to wait
    let start = Instant::now();
    let mut pool: Vec<Vec<u8>> = target.examples.clone();
    pool.push(Vec::new());
    let mut verdicts = BTreeSet::new();
    let mut runs = 0;
    loop {
        let is_over = match limit {
            Limit::Runs(most) => runs >= most,
            Limit::Time(most) => runs % 1024 == 0 && start.elapsed() >= most,
        };
        if is_over {
            return Report { runs, verdicts: verdicts.len(), pool: pool.iter().map(Vec::len).sum() };
        }
        let first = usize::try_from(runs).unwrap();
        let mut bytes = pool[if first < pool.len() { first } else { random.usize(..pool.len()) }].clone();
        if first >= target.examples.len() {
            let other = pool[random.usize(..pool.len())].clone();
            for _ in 0..1 + random.u32(..4) {
                damage(&mut random, &mut bytes, &other);
            }
            if random.bool() {
                (target.mend)(&mut bytes);
            }
        }
        runs += 1;
        let Ok(verdict) = catch_unwind(AssertUnwindSafe(|| (target.decode)(&bytes))) else {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!(
                "{}: a decoder panicked, run {runs} of seed {seed}, on {} bytes: {hex}",
                target.name,
                bytes.len()
            );
        };
        if verdicts.insert(kind_of(&verdict)) && pool.len() < POOL_MAX {
            pool.push(bytes);
        }
    }
}
