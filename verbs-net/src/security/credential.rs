//! A credential: a certificate, its private key and the authority's certificate, in one PEM file of mode 0600.
//!
//! Promise: a [`Credential`] fits together (the key is the certificate's, the authority signed it, it has not ended) and its
//! file was nobody else's to read. Left over: a copy that leaves the machine is as good as the original until it is revoked.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::{Right, Rights};
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::security::hello::{ALPN_CLEAR, ALPN_SEALED};
use crate::security::{DAEMON_NAME, Identity, IdentityError, Revocations};

/// Bytes of a credential's file.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Whose bits in a file's mode let others read, change or run it.
const OTHERS: u32 = 0o077;

/// Why a credential cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// The file is not there.
    #[error(
        "the credential {} does not exist: name yours with --credential or CLOVIS_CREDENTIAL; who runs the cluster makes one with \
         `clovis credential create NAME`", path.display()
    )]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("reading the credential {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others can read the private key in it.
    #[error(
        "the private key in {} is open to others (mode {mode:04o}): it may be known already; `chmod 600` it, or revoke it and make \
         another", path.display()
    )]
    OpenToOthers {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is longer than a credential.
    #[error("{} is no credential: it is longer than {FILE_BYTES_MAX} bytes", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
    },
    /// A part is missing.
    #[error(
        "the credential has no {what}: it is made of a certificate, the authority's certificate and a private key, in PEM"
    )]
    NoPart {
        /// Which.
        what: &'static str,
    },
    /// Its certificate is not one of ours.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It has ended.
    #[error("the credential of {name} ended {} s ago: make another with `clovis credential create`", now_unix_s - expires_unix_s)]
    Expired {
        /// Whose.
        name: String,
        /// Its end.
        expires_unix_s: u64,
        /// The machine's time.
        now_unix_s: u64,
    },
    /// The parts do not fit together.
    #[error("the credential does not fit together: {reason}")]
    Unfit {
        /// What the TLS library says.
        reason: String,
    },
}

/// How a credential is used.
#[derive(Clone)]
pub struct CredentialOptions {
    /// Ask for encryption of all that goes over the connections, not of their hello only. If one side asks, both do.
    pub encrypts: bool,
    /// Which credentials of others are no longer good.
    pub revocations: Arc<Revocations>,
    /// The time that ends of certificates are held against.
    pub clock: Arc<dyn TimeProvider>,
}

impl Default for CredentialOptions {
    /// No encryption, no revocations, the machine's time.
    fn default() -> CredentialOptions {
        CredentialOptions {
            encrypts: false,
            revocations: Arc::default(),
            clock: Arc::new(DefaultTimeProvider),
        }
    }
}

/// A certificate with its key, ready for use.
pub struct Credential {
    identity: Arc<Identity>,
    revocations: Arc<Revocations>,
    clock: Arc<dyn TimeProvider>,
    encrypts: bool,
    pub(crate) dial: Arc<ClientConfig>,
    /// Of daemons.
    pub(crate) listen: Option<Arc<ServerConfig>>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Reads a file that holds a private key, of at most 64 KiB. Who may read it besides its owner is looked at on the open file.
///
/// # Errors
/// Missing, open to others, too long, unreadable.
pub fn read_private(path: &Path) -> Result<String, CredentialError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => CredentialError::Missing { path: path.to_owned() },
        _ => CredentialError::Read { path: path.to_owned(), source },
    };
    let mut file = File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if about.mode() & OTHERS != 0 {
        return Err(CredentialError::OpenToOthers { path: path.to_owned(), mode: about.mode() & 0o7777 });
    }
    let mut text = String::new();
    file.by_ref().take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(CredentialError::TooLong { path: path.to_owned() });
    }
    Ok(text)
}

impl Credential {
    /// Reads one from its file.
    ///
    /// # Errors
    /// See [`CredentialError`]: each says what to do.
    pub fn load(path: &Path, options: CredentialOptions) -> Result<Credential, CredentialError> {
        Credential::from_pem(&read_private(path)?, options)
    }

    /// From its text.
    ///
    /// # Errors
    /// A part is missing, they do not fit together, or it has ended.
    pub fn from_pem(text: &str, options: CredentialOptions) -> Result<Credential, CredentialError> {
        let CredentialOptions { encrypts, revocations, clock } = options;
        let unfit = |error: &dyn fmt::Display| CredentialError::Unfit { reason: error.to_string() };
        let mut certificates = CertificateDer::pem_slice_iter(text.as_bytes());
        let mut certificate = |what| match certificates.next() {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) => Err(unfit(&error)),
            None => Err(CredentialError::NoPart { what }),
        };
        let own = certificate("certificate")?;
        let authority = certificate("authority's certificate")?;
        let key = || {
            PrivateKeyDer::from_pem_slice(text.as_bytes())
                .map_err(|_| CredentialError::NoPart { what: "private key" })
        };
        let identity = Identity::of_certificate(&own)?;
        let now_unix_s = clock.current_time().map_or(0, |now| now.as_secs());
        if identity.expires_unix_s <= now_unix_s {
            let Identity { name, expires_unix_s, .. } = identity;
            return Err(CredentialError::Expired { name, expires_unix_s, now_unix_s });
        }
        let mut roots = RootCertStore::empty();
        roots.add(authority).map_err(|error| unfit(&error))?;
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let alpn: Vec<Vec<u8>> = match encrypts {
            true => vec![ALPN_SEALED.to_vec()],
            false => vec![ALPN_CLEAR.to_vec(), ALPN_SEALED.to_vec()],
        };
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::clone(&roots),
            Arc::clone(&provider),
        );
        let verifier = verifier.build().map_err(|error| unfit(&error))?;
        let mut dial = dial_config(&provider, &clock, Arc::clone(&verifier) as _)
            .with_client_auth_cert(vec![own.clone()], key()?)
            .map_err(|error| unfit(&error))?;
        dial.alpn_protocols.clone_from(&alpn);
        dial.resumption = Resumption::disabled();
        dial.enable_sni = false;
        // Signed by that authority and not ended: what the others will find.
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_unix_s));
        let of_clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let of_clients = of_clients.map_err(|error| unfit(&error))?;
        of_clients.verify_client_cert(&own, &[], now).map_err(|error| unfit(&error))?;
        let listen = if identity.rights.has(Right::Serve) {
            verifier
                .verify_server_cert(&own, &[], &daemon_name()?, &[], now)
                .map_err(|error| unfit(&error))?;
            let mut listen = ServerConfig::builder_with_details(provider, Arc::clone(&clock))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map_err(|error| unfit(&error))?
                .with_client_cert_verifier(of_clients)
                .with_single_cert(vec![own], key()?)
                .map_err(|error| unfit(&error))?;
            listen.alpn_protocols = alpn;
            // Each connection proves itself anew; nothing may come between the handshake and the bytes behind it.
            listen.send_tls13_tickets = 0;
            listen.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
            Some(Arc::new(listen))
        } else {
            None
        };
        Ok(Credential {
            identity: Arc::new(identity),
            revocations,
            clock,
            encrypts,
            dial: Arc::new(dial),
            listen,
        })
    }

    /// Whose it is, and what it opens.
    #[must_use]
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// What it opens.
    #[must_use]
    pub fn rights(&self) -> Rights {
        self.identity.rights
    }

    /// Which credentials of others are no longer good.
    #[must_use]
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// True if it asks for the encryption of everything.
    #[must_use]
    pub fn encrypts(&self) -> bool {
        self.encrypts
    }

    /// Seconds since 1970 by the machine's time; 0 if that is not known.
    #[must_use]
    pub fn now_unix_s(&self) -> u64 {
        self.clock.current_time().map_or(0, |now| now.as_secs())
    }
}

/// The name that a daemon's certificate has.
pub(crate) fn daemon_name() -> Result<ServerName<'static>, CredentialError> {
    let name = ServerName::try_from(DAEMON_NAME);
    name.map_err(|error| CredentialError::Unfit { reason: error.to_string() })
}

fn dial_config(
    provider: &Arc<CryptoProvider>,
    clock: &Arc<dyn TimeProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let builder = ClientConfig::builder_with_details(Arc::clone(provider), Arc::clone(clock));
    // Cannot fail: the provider has suites of the only version that is built in.
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = builder.expect("ring has cipher suites for TLS 1.3");
    // The verifier is the library's own, with our authority instead of the public ones.
    builder.dangerous().with_custom_certificate_verifier(verifier)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::security::authority::{Authority, FAR, at};

    fn load(path: &Path) -> Result<Credential, CredentialError> {
        Credential::load(path, CredentialOptions::default())
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reader.pem");
        std::fs::write(&path, Authority::new().client("reader", "connect,read", FAR)).unwrap();
        for mode in [0o644, 0o640, 0o604, 0o610, 0o602] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = load(&path).unwrap_err();
            assert!(matches!(error, CredentialError::OpenToOthers { mode: found, .. } if found == mode));
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        for mode in [0o600, 0o400] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(load(&path).unwrap().identity().name, "reader");
        }
        let missing = load(&folder.path().join("nobody.pem")).unwrap_err();
        assert!(missing.to_string().contains("clovis credential create"), "{missing}");
    }

    #[test]
    fn a_credential_fits_together_or_says_what_does_not() {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let text = ours.daemon("control", FAR);
        let options = CredentialOptions::default;
        assert!(Credential::from_pem(&text, options()).unwrap().listen.is_some());
        let client = Credential::from_pem(&ours.client("me", "connect", FAR), options()).unwrap();
        assert!(client.listen.is_none(), "who has no right to serve cannot listen");

        let sections = |text: &str| -> Vec<String> {
            text.split_inclusive("-----\n").collect::<Vec<_>>().chunks(2).map(|two| two.concat()).collect()
        };
        let [own, authority, key] = sections(&text).try_into().unwrap();
        let refusal =
            |parts: &[&str]| Credential::from_pem(&parts.concat(), options()).unwrap_err().to_string();
        assert!(refusal(&[&key]).contains("no certificate"));
        assert!(refusal(&[&own, &key]).contains("no authority's certificate"));
        assert!(refusal(&[&own, &authority]).contains("no private key"));
        assert!(refusal(&[&authority, &own, &key]).contains("no clovis identity"));
        let other = sections(&theirs.daemon("control", FAR));
        assert!(refusal(&[&own, &authority, &other[2]]).contains("does not fit together"));
        assert!(refusal(&[&own, &other[1], &key]).contains("does not fit together"));
        assert!(refusal(&["-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"]).contains("fit"));
    }

    #[test]
    fn what_has_ended_says_so() {
        let text = Authority::new().client("old", "connect", 1_000_000);
        let options = |now| CredentialOptions { clock: at(now), ..CredentialOptions::default() };
        assert!(Credential::from_pem(&text, options(999_999)).is_ok());
        let error = Credential::from_pem(&text, options(1_000_060)).unwrap_err().to_string();
        assert!(error.contains("old ended 60 s ago"), "{error}");
    }
}
