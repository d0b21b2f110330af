//! The words that every crate shares: identifiers, addresses, extents, units, time, limits, checksums and blame.
//!
//! Must not know: I/O, clocks, randomness, any other crate of the workspace. Everything here is a plain value.
//! Start reading at [`fid`] (names of things), then [`endpoint`] (names of places) and [`limits`].
#![forbid(unsafe_code)]

pub mod checksum;
pub mod endpoint;
pub mod errors;
pub mod extent;
pub mod fid;
pub mod layout_width;
pub mod limits;
pub mod lookup_map;
pub mod nid;
pub mod rights;
pub mod time;
pub mod units;

pub use endpoint::Endpoint;
pub use errors::{Blame, Blamed};
pub use extent::{BlockExtent, ByteExtent};
pub use fid::{Fid, FidType, ObjectId};
pub use layout_width::LayoutWidth;
pub use lookup_map::LookupMap;
pub use nid::{Net, NetKind, Nid};
pub use rights::{Right, Rights};
pub use time::Instant;
