//! The resource manager's parts that both sides need: what is lent ([`resource`]), the machine of one owner ([`owner`]), both pure;
//! and a client's session with control ([`borrower`]).
//!
//! Control's side is `control::loans`. Words and tables: docs/rm.md. Start at [`Owner::handle`] and [`Borrower::hold`].

pub mod borrower;
pub mod owner;
pub mod resource;

pub use borrower::{Borrower, Hold, HoldError};
pub use owner::{Action, Asker, Event, LoanState, Owner, Refused, RequestState, User};
pub use resource::{BadCredit, Numbers, Resource, ResourceType, Span, Spans, Whole};
