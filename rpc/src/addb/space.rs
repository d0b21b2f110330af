//! Memory for one ring, its counters and its histograms: of the process, or a file that outlives it.
//!
//! A space is made where files are known (the binary) and claimed by the one ring that writes into it, in its locality. Whoever has a
//! copy may read it, also from another thread.
//! **Invariant**: at most one ring writes into a space; a second claim is refused.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base::Endpoint;
use runtime::Words;

use crate::addb::header::{Header, Origin, Shape};

#[derive(Debug)]
struct SpaceInner {
    words: Words,
    shape: Shape,
    origin: Origin,
    is_claimed: AtomicBool,
}

/// Memory for a ring. Copies are the same memory.
#[derive(Clone, Debug)]
pub struct AddbSpace(Arc<SpaceInner>);

impl AddbSpace {
    /// Memory of this process.
    ///
    /// # Errors
    /// No address space.
    pub fn in_memory(shape: Shape) -> io::Result<AddbSpace> {
        Ok(AddbSpace::of(Words::anonymous(shape.words())?, shape, Origin::default()))
    }

    /// Memory that is a file: what is written is there when the process was killed. `file` is open for reading and writing and belongs
    /// to the caller alone (locked); its content goes.
    ///
    /// # Errors
    /// The file system is full, or does not map files.
    pub fn in_file(file: File, shape: Shape, origin: Origin) -> io::Result<AddbSpace> {
        Ok(AddbSpace::of(Words::in_file(file, shape.words())?, shape, origin))
    }

    fn of(words: Words, shape: Shape, origin: Origin) -> AddbSpace {
        AddbSpace(Arc::new(SpaceInner { words, shape, origin, is_claimed: AtomicBool::new(false) }))
    }

    /// Makes the caller its writer and writes the header; false if it has a writer, or had one.
    pub(crate) fn claim(&self, locality: u32, endpoint: Endpoint) -> bool {
        if self.0.is_claimed.swap(true, Ordering::Relaxed) {
            return false;
        }
        let header = Header::new(self.0.origin.clone(), locality, endpoint, self.0.shape);
        let bytes = header.to_bytes();
        for (word, bytes) in self.words().iter().zip(bytes.as_chunks().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        true
    }

    /// How large its parts are.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.0.shape
    }

    /// Its words, as they stand in a file.
    #[inline]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        self.0.words.as_slice()
    }

    /// A copy of its bytes now, for [`crate::addb::Snapshot::parse`].
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words().iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect()
    }
}
