//! `helpers/ufid.h`: object ids that nobody else makes. Bits from the top: 37 zero, 11 salt, 31 generation, 29 process, 20 sequence.
//!
//! The salt is random for each generator, the generation its second of making, so that ids of a restarted program differ.

use std::ffi::c_int;

use runtime::identity;

use crate::abi::{CMutex, Clovis, Uint128};
use crate::errno;
use crate::helpers::lock::{m0_mutex_lock, m0_mutex_unlock};
use crate::helpers::time;
use crate::instance::shared_of;
use crate::say;

/// `struct m0_ufid_generator`
#[repr(C)]
pub struct Generator {
    instance: *mut Clovis,
    lock: CMutex,
    salt: u64,
    generation: u64,
    process: u64,
    sequence: u64,
    is_initialised: bool,
}

const _: () = assert!(size_of::<Generator>() == 112);

const SALT_BITS: u32 = 11;
const GENERATION_BITS: u32 = 31;
const PROCESS_BITS: u32 = 29;
const SEQUENCE_BITS: u32 = 20;

const fn low(value: u64, bits: u32) -> u64 {
    value & ((1 << bits) - 1)
}

fn id_of(salt: u64, generation: u64, process: u64, sequence: u64) -> Uint128 {
    let mut id = u128::from(low(salt, SALT_BITS));
    id = id << GENERATION_BITS | u128::from(low(generation, GENERATION_BITS));
    id = id << PROCESS_BITS | u128::from(low(process, PROCESS_BITS));
    id = id << SEQUENCE_BITS | u128::from(low(sequence, SEQUENCE_BITS));
    let bytes = id.to_be_bytes();
    let half = |half: &[u8]| half.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    Uint128 { hi: half(&bytes[..8]), lo: half(&bytes[8..]) }
}

/// # Safety
/// `generator` is null or initialised; `id` is null or writable.
unsafe fn next(generator: *mut Generator, count: u64, skip: u64, id: *mut Uint128) -> c_int {
    // SAFETY: the caller's contract.
    let is_ready = unsafe { generator.as_ref() }.is_some_and(|generator| generator.is_initialised);
    if !is_ready || id.is_null() || count == 0 || count + skip >= 1 << SEQUENCE_BITS {
        say!("m0_ufid_next: no generator, no place for the id, or {count} ids at once");
        return errno::EINVAL;
    }
    // SAFETY: the caller's contract; the lock makes the fields ours.
    unsafe {
        m0_mutex_lock(&raw mut (*generator).lock);
        let mut first = (*generator).sequence + skip;
        if first + count > 1 << SEQUENCE_BITS {
            // The sequence is used up: the next generation begins, never one that was.
            (*generator).generation += 1;
            first = 0;
        }
        (*generator).sequence = first + count;
        *id = id_of((*generator).salt, (*generator).generation, (*generator).process, first);
        m0_mutex_unlock(&raw mut (*generator).lock);
    }
    0
}

crate::export! {
    /// `m0_ufid_init`
    fn m0_ufid_init(instance: *mut Clovis, generator: *mut Generator) -> c_int [errno::EIO] {
        // SAFETY: the header's contract.
        let Some(shared) = (unsafe { shared_of("m0_ufid_init", instance) }) else { return errno::EINVAL };
        // SAFETY: the header's contract.
        let Some(to) = (unsafe { generator.as_mut() }) else { return errno::EINVAL };
        let Ok(random) = identity::unique_u64() else {
            say!("m0_ufid_init: the kernel gives no random numbers");
            return errno::EIO;
        };
        *to = Generator {
            instance,
            lock: [0; 8],
            salt: random >> (u64::BITS - SALT_BITS),
            generation: time::now() / 1_000_000_000,
            process: shared.process.key ^ u64::from(std::process::id()),
            sequence: 0,
            is_initialised: true,
        };
        0
    }

    /// `m0_ufid_fini`
    fn m0_ufid_fini(generator: *mut Generator) [()] {
        // SAFETY: the header's contract.
        if let Some(generator) = unsafe { generator.as_mut() } {
            generator.is_initialised = false;
        }
    }

    /// `m0_ufid_new`
    fn m0_ufid_new(generator: *mut Generator, count: u32, skip: u32, id: *mut Uint128) -> c_int [errno::EIO] {
        // SAFETY: the header's contract.
        unsafe { next(generator, u64::from(count), u64::from(skip), id) }
    }

    /// `m0_ufid_next`
    fn m0_ufid_next(generator: *mut Generator, count: u32, id: *mut Uint128) -> c_int [errno::EIO] {
        // SAFETY: the header's contract.
        unsafe { next(generator, u64::from(count), 0, id) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_they_should() {
        let all = id_of(u64::MAX, u64::MAX, u64::MAX, u64::MAX);
        assert_eq!((all.hi, all.lo), ((1 << 27) - 1, u64::MAX));
        assert_eq!(id_of(0, 0, 1, 1), Uint128 { hi: 0, lo: 1 << 20 | 1 });
        assert_eq!(id_of(1, 0, 0, 0), Uint128 { hi: 1 << 16, lo: 0 });
    }
}
