//! Names inside a domain: stobs and trees.

use std::fmt;

use base::Fid;

/// Names one stob of a domain: a component object and its generation. Ordered by fid, then generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StobId {
    /// The component object.
    pub fid: Fid,
    /// Which generation of it: a replaced object has a new one.
    pub generation: u64,
}

impl fmt::Display for StobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:x}", self.fid, self.generation)
    }
}

/// Names one tree of a domain. Who owns which number is in docs/disk.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeId(pub u32);
