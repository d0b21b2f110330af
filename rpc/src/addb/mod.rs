//! ADDB: what each request did and when, always on: a bounded ring of records per locality, counters, and histograms.
//!
//! - [`phase`]: the named steps of a request, at its client and at its server, and other things worth a record.
//! - [`record`]: one step of one request, 32 bytes. [`histogram`]: how long requests took, in buckets.
//! - [`header`]: what an ADDB file says of its process, and where its parts lie. docs/addb.md has the bytes.
//! - [`space`]: memory for all of it, in the process or in a file that outlives it. [`ring`]: the one writer.
//! - [`snapshot`]: the reading side, for bytes that nobody vouches for.
//!
//! Cost of a record: four stores and a counter. No allocation, no lock, no system call; the time is that of the locality's turn, so work
//! that does not wait counts to the step before which its turn ends. Bounds: [`crate::limits`]; the oldest record is overwritten.
//! Thread: the ring belongs to its locality; a snapshot may be taken by anybody at any time.
//! **Invariant**: no record, counter or histogram has a pointer or a length in it: whatever a crash leaves can be read.

pub mod header;
pub mod histogram;
pub mod phase;
pub mod record;
pub mod ring;
pub mod snapshot;
pub mod space;

pub use header::{Header, Origin};
pub use histogram::{Histogram, Side};
pub use phase::{Event, Phase};
pub use record::{Record, Steps, What};
pub use ring::Ring;
pub use snapshot::{Snapshot, SnapshotError};
pub use space::AddbSpace;
