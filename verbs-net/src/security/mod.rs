//! Who is at the other end: certificates, what they say, and the TLS 1.3 hello that proves them.
//!
//! Promise: where a machine has [`Security::Certificates`], a connection comes up only between two holders of a certificate of the
//! cluster's authority, and [`Identity`] says who the peer is and what it may do. The hello travels inside TLS; a recording of it is
//! worth nothing. What verbs sends behind a hello that asks for encryption is sealed by `sealing`. Must not know: sockets (bytes go in and out of `hello::SecureHello`), fops (the layer above asks for the
//! rights of a peer). Bound: one record of `record::RECORD_BYTES_MAX` bytes and what rustls keeps of a handshake, per connection.
//! Threads: a [`Credential`] is shared by all; a hello belongs to its connection. Bytes: docs/wire.md; reasons: docs/rfd/0010.
//! Start at [`Credential`], then `hello`.

use std::fmt;
use std::sync::Arc;

use crate::hello::Token;

mod credential;
mod hello;
mod identity;
mod record;
mod revocations;
mod sealing;

pub use credential::{Credential, CredentialError, CredentialOptions, read_private};
pub use identity::{CREDENTIAL_NAME_BYTES_MAX, CredentialId, DAEMON_NAME, Identity, IdentityError};
pub use revocations::{ParseRevocationsError, Revocations};
pub use rustls::pki_types::UnixTime;
pub use rustls::time_provider::TimeProvider;
pub use sealing::SealedOperation;

pub(crate) use hello::{Established, HelloFault, SecureHello, dial, listen};
pub(crate) use record::{RECORD_BYTES_MAX, Record, record_at};
pub(crate) use sealing::{Opener, Place, SEAL_BYTES, Seal, Sealer, Sealing, TAG_BYTES};

/// How a machine proves that it belongs to the cluster, and what it asks of others.
#[derive(Clone)]
pub enum Security {
    /// Secret bytes that all share, in the clear: for one process, the simulation, and nets that are closed by other means. Who
    /// has them may do everything.
    Shared(Token),
    /// A certificate of its own; over tcp and verbs.
    Certificates(Arc<Credential>),
}

impl Security {
    /// The credential, where there is one.
    #[must_use]
    pub fn credential(&self) -> Option<&Arc<Credential>> {
        match self {
            Security::Shared(_) => None,
            Security::Certificates(credential) => Some(credential),
        }
    }
}

impl From<Token> for Security {
    fn from(token: Token) -> Security {
        Security::Shared(token)
    }
}

impl From<[u8; 32]> for Security {
    fn from(bytes: [u8; 32]) -> Security {
        Security::Shared(Token::new(bytes))
    }
}

impl From<Arc<Credential>> for Security {
    fn from(credential: Arc<Credential>) -> Security {
        Security::Certificates(credential)
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Security::Shared(token) => write!(f, "Shared({token:?})"),
            Security::Certificates(credential) => write!(f, "Certificates({})", credential.identity().name),
        }
    }
}

#[cfg(test)]
pub(crate) mod authority;
