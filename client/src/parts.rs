//! The caller's buffers as one run of bytes: block-aligned slices of it without a copy.
//!
//! A part whose length is not a multiple of the block cannot be cut into blocks in place: the blocks that straddle a seam are
//! copied (counted) into buffers of the arena, all others stay slices of the caller's buffers. Padding up to a block is zeros.
//!
//! **Invariant**: every part held is a multiple of the block long, so every slice at block bounds is made of whole blocks.

use std::ops::Range;

use base::units::{BLOCK_BYTES, narrow, wide};
use runtime::{Arena, Buffer, Counters, SharedBuffer, copy_counted};

/// Bytes in parts, each a multiple of the block long.
#[derive(Clone, Default)]
pub struct Parts {
    /// Start of each part, then the end of the last one.
    starts: Vec<u64>,
    parts: Vec<SharedBuffer>,
}

impl Parts {
    /// Takes `parts`; blocks that straddle seams are copied, the end is padded with zeros to a whole block.
    pub async fn gather(parts: Vec<SharedBuffer>, arena: &Arena, counters: &Counters) -> Parts {
        let mut gathered = Parts::default();
        let mut seam: Option<(Buffer, usize)> = None;
        for part in parts {
            let mut rest = 0..part.len();
            if let Some((mut block, filled)) = seam.take() {
                let taken = rest.len().min(BLOCK - filled);
                copy_counted(counters, &mut block[filled..filled + taken], &part[..taken]);
                rest.start = taken;
                if filled + taken < BLOCK {
                    seam = Some((block, filled + taken));
                    continue;
                }
                gathered.push(block.freeze());
            }
            let whole = rest.len() / BLOCK * BLOCK;
            if whole > 0 {
                gathered.push(part.slice(rest.start..rest.start + whole));
            }
            rest.start += whole;
            if !rest.is_empty() {
                let mut block = arena.alloc(BLOCK).await;
                copy_counted(counters, &mut block[..rest.len()], &part[rest.clone()]);
                seam = Some((block, rest.len()));
            }
        }
        if let Some((mut block, filled)) = seam {
            block[filled..].fill(0);
            gathered.push(block.freeze());
        }
        gathered
    }

    /// Adds a part that is a multiple of the block long.
    fn push(&mut self, part: SharedBuffer) {
        let start = self.byte_count();
        if self.starts.is_empty() {
            self.starts.push(0);
        }
        self.starts.push(start + wide(part.len()));
        self.parts.push(part);
    }

    /// Bytes in all, padding included.
    #[must_use]
    pub fn byte_count(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The slices that make up `bytes` (inside [`Parts::byte_count`], block-aligned), in order, without a copy.
    #[must_use]
    pub fn slices(&self, bytes: Range<u64>) -> Vec<SharedBuffer> {
        let mut slices = Vec::new();
        let mut at = bytes.start;
        while at < bytes.end {
            // The part that holds `at`: the last one that starts at or before it.
            let index = self.starts.partition_point(|start| *start <= at).saturating_sub(1);
            let (Some(part), Some(start)) = (self.parts.get(index), self.starts.get(index)) else { break };
            let end = bytes.end.min(start + wide(part.len()));
            slices.push(part.slice(narrow(at - start)..narrow(end - start)));
            at = end;
        }
        slices
    }
}

/// A block as a length in memory.
const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_BYTES);
