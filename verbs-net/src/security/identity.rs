//! What a certificate says of its holder, as a URI among its alternative names, signed with the rest:
//!
//! `clovis:1/NAME/ID/RIGHTS/EXPIRES`, for example `clovis:1/reader/00c0ffee00c0ffee/connect,read/1821398400`.
//!
//! The 1 is the version of this text. **Invariant**: an [`Identity`] is written as it was read. Untrusted until the chain is verified.

use std::fmt;
use std::str::FromStr;

use base::Rights;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// The DNS name in the certificates of daemons, and in no other: what a dialling side asks TLS to verify.
pub const DAEMON_NAME: &str = "daemon.clovis";
/// Bytes of a name.
pub const CREDENTIAL_NAME_BYTES_MAX: usize = 64;
/// URIs of a certificate that are looked at.
const URIS_MAX: usize = 8;

/// Number of one credential: random, never given twice. 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CredentialId(pub u64);

impl fmt::Display for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for CredentialId {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<CredentialId, IdentityError> {
        let is_ours = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = u64::from_str_radix(text, 16).ok().filter(|_| is_ours);
        number.map(CredentialId).ok_or(IdentityError::BadField { field: "id" })
    }
}

/// Who holds a certificate, and what it opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name for people: small letters, digits, `.`, `-` and `_`.
    pub name: String,
    /// What revocations name.
    pub id: CredentialId,
    /// What it may do.
    pub rights: Rights,
    /// When it ends, in seconds since 1970.
    pub expires_unix_s: u64,
}

/// A certificate, or a text, says nothing that this cluster understands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// It cannot be read at all.
    #[error("the certificate cannot be read")]
    NotACertificate,
    /// It is none of ours.
    #[error("the certificate carries no clovis identity: use one that `clovis credential create` made")]
    NoUri,
    /// It is one of a later program.
    #[error("the certificate's identity has a version that this program does not know: upgrade it")]
    Version,
    /// A part of it is wrong.
    #[error("the certificate's identity has a wrong {field}")]
    BadField {
        /// Which.
        field: &'static str,
    },
}

/// True for names of credentials.
fn is_name(text: &str) -> bool {
    let is_letter = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    (1..=CREDENTIAL_NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(is_letter)
        && !text.starts_with(['.', '-'])
}

impl Identity {
    /// Checks a name that a person chose. Errors: it cannot be one.
    ///
    /// # Errors
    /// [`IdentityError::BadField`]
    pub fn check_name(name: &str) -> Result<(), IdentityError> {
        if is_name(name) { Ok(()) } else { Err(IdentityError::BadField { field: "name" }) }
    }

    /// The URI.
    #[must_use]
    pub fn to_uri(&self) -> String {
        format!("clovis:1/{}/{}/{}/{}", self.name, self.id, self.rights, self.expires_unix_s)
    }

    /// Reads a URI.
    ///
    /// # Errors
    /// Of another scheme or version, or a wrong part.
    pub fn parse_uri(uri: &str) -> Result<Identity, IdentityError> {
        let bad = |field| IdentityError::BadField { field };
        let text = uri.strip_prefix("clovis:").ok_or(IdentityError::NoUri)?;
        let parts: Vec<&str> = text.splitn(6, '/').collect();
        let [version, name, id, rights, expires] = parts[..] else {
            return Err(if text.starts_with("1/") { bad("shape") } else { IdentityError::Version });
        };
        if version != "1" {
            return Err(IdentityError::Version);
        }
        Identity::check_name(name)?;
        let identity = Identity {
            name: name.to_owned(),
            id: id.parse()?,
            rights: rights.parse().map_err(|_| bad("list of rights"))?,
            expires_unix_s: expires.parse().map_err(|_| bad("end"))?,
        };
        // One way to write it: rights in order and once, numbers without signs and zeros in front.
        if identity.to_uri() == uri { Ok(identity) } else { Err(bad("shape")) }
    }

    /// What the first certificate in a PEM text says.
    ///
    /// # Errors
    /// There is none, or it is none of ours.
    pub fn of_pem(text: &str) -> Result<Identity, IdentityError> {
        let certificate = CertificateDer::from_pem_slice(text.as_bytes());
        Identity::of_certificate(&certificate.map_err(|_| IdentityError::NotACertificate)?)
    }

    /// What a certificate says. The chain is for others to verify.
    ///
    /// # Errors
    /// It is no certificate, or none of ours.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Identity, IdentityError> {
        let parsed =
            webpki::EndEntityCert::try_from(certificate).map_err(|_| IdentityError::NotACertificate)?;
        let mut uris = parsed.valid_uri_names().take(URIS_MAX).filter(|uri| uri.starts_with("clovis:"));
        match (uris.next(), uris.next()) {
            (Some(uri), None) => Identity::parse_uri(uri),
            (Some(_), Some(_)) => Err(IdentityError::BadField { field: "number of identities" }),
            (None, _) => Err(IdentityError::NoUri),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Identity {
        Identity {
            name: "reader".to_owned(),
            id: CredentialId(0x00c0_ffee_00c0_ffee),
            rights: "connect,read".parse().unwrap(),
            expires_unix_s: 1_821_398_400,
        }
    }

    #[test]
    fn the_uri_is_the_documented_one_and_reads_back() {
        let uri = "clovis:1/reader/00c0ffee00c0ffee/connect,read/1821398400";
        assert_eq!(sample().to_uri(), uri);
        assert_eq!(Identity::parse_uri(uri), Ok(sample()));
    }

    #[test]
    fn what_is_written_otherwise_is_refused() {
        for (uri, field) in [
            ("clovis:1/reader/00c0ffee00c0ffee/connect,read/1821398400/", "shape"),
            ("clovis:1/reader/00c0ffee00c0ffee/connect,read", "shape"),
            ("clovis:1/reader/00c0ffee00c0ffee/read,connect/1821398400", "shape"),
            ("clovis:1/reader/00c0ffee00c0ffee/read,read/1821398400", "shape"),
            ("clovis:1/reader/00c0ffee00c0ffee/connect,read/+1821398400", "shape"),
            ("clovis:1/reader/00c0ffee00c0ffee/connect,read/01", "shape"),
            ("clovis:1/reader/00c0ffee00c0ffee/connect,all/1821398400", "list of rights"),
            ("clovis:1/reader/00c0ffee00c0ffee//1821398400", "list of rights"),
            ("clovis:1/reader/00C0ffee00c0ffee/connect,read/1821398400", "id"),
            ("clovis:1/reader/c0ffee/connect,read/1821398400", "id"),
            ("clovis:1/../00c0ffee00c0ffee/connect,read/1821398400", "name"),
            ("clovis:1//00c0ffee00c0ffee/connect,read/1821398400", "name"),
            ("clovis:1/reader/00c0ffee00c0ffee/connect,read/x", "end"),
        ] {
            assert_eq!(Identity::parse_uri(uri), Err(IdentityError::BadField { field }), "{uri}");
        }
        let later = "clovis:2/reader/00c0ffee00c0ffee/connect,read/1821398400";
        assert_eq!(Identity::parse_uri(later), Err(IdentityError::Version));
        assert_eq!(Identity::parse_uri("https://example.org"), Err(IdentityError::NoUri));
    }

    #[test]
    fn names_are_file_names_that_no_shell_minds() {
        for good in ["a", "admin", "server-1", "7.x_y", &"n".repeat(CREDENTIAL_NAME_BYTES_MAX)] {
            assert_eq!(Identity::check_name(good), Ok(()), "{good}");
        }
        for bad in ["", ".hidden", "-rf", "A", "a b", "a/b", "ä", &"n".repeat(CREDENTIAL_NAME_BYTES_MAX + 1)]
        {
            assert!(Identity::check_name(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn random_texts_never_panic(text in "(clovis:1/)?[ -~é]{0,80}") {
            if let Ok(identity) = Identity::parse_uri(&text) {
                prop_assert_eq!(identity.to_uri(), text);
            }
        }
    }
}
