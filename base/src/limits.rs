//! Limits that more than one crate has to know, each with its arithmetic. docs/limits.md explains them to operators.
//!
//! A limit that only one crate uses lives in that crate's own `limits.rs`.

use crate::units::{BLOCK_BYTES, KIB, MIB};

/// Largest message (header excluded) that travels eagerly: an rpc item with its body.
pub const MESSAGE_BYTES_MAX: u64 = 64 * KIB;

/// Bytes of bulk that one request may name: bounds what a fom holds, and so a server's memory.
pub const REQUEST_BULK_BYTES_MAX: u64 = MIB;

/// Largest unit of a layout. One unit is one segment of bulk and one contiguous buffer.
pub const UNIT_BYTES_MAX: u64 = MIB;
/// Smallest unit: one block.
pub const UNIT_BYTES_MIN: u64 = BLOCK_BYTES;
/// Unit size where nobody chooses one.
pub const UNIT_BYTES_DEFAULT: u64 = 64 * KIB;

/// Segments of one bulk descriptor: a request's worth of the smallest units would be 256, which a message could not name
/// cheaply; 64 lets 1 MiB travel in 16 KiB pieces.
pub const BULK_SEGMENTS_MAX: usize = 64;

/// Largest contiguous buffer of an arena.
pub const BUFFER_BYTES_MAX: u64 = MIB;

/// Devices of a pool version. The permutation of a tile draws from at most 2^16.
pub const POOL_WIDTH_MAX: u32 = 16_384;

const _: () = assert!(UNIT_BYTES_MAX <= REQUEST_BULK_BYTES_MAX);
const _: () = assert!(UNIT_BYTES_MAX <= BUFFER_BYTES_MAX);
const _: () = assert!(UNIT_BYTES_DEFAULT.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(REQUEST_BULK_BYTES_MAX / UNIT_BYTES_DEFAULT <= BULK_SEGMENTS_MAX as u64);
