//! An authority for tests: makes credentials of every kind, good and bad.

use std::sync::Arc;
use std::time::Duration;

use base::Rights;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use crate::security::{CredentialId, DAEMON_NAME, Identity};

/// An end that no test reaches: the year 2100.
pub(crate) const FAR: u64 = 4_102_444_800;

/// A clock that stands.
#[derive(Debug)]
struct Fixed(u64);

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
    }
}

/// A clock that stands at that second.
pub(crate) fn at(unix_s: u64) -> Arc<dyn TimeProvider> {
    Arc::new(Fixed(unix_s))
}

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A client's credential.
    pub(crate) fn client(&self, name: &str, rights: &str, expires: u64) -> String {
        self.make(name, rights.parse().unwrap(), expires, false)
    }

    /// A daemon's.
    pub(crate) fn daemon(&self, name: &str, expires: u64) -> String {
        self.make(name, Rights::ALL, expires, true)
    }

    pub(crate) fn make(&self, name: &str, rights: Rights, expires: u64, is_daemon: bool) -> String {
        let id = CredentialId(base::checksum::crc32c(name.as_bytes()).into());
        let identity = Identity { name: name.to_owned(), id, rights, expires_unix_s: expires };
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI(identity.to_uri().try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if is_daemon {
            params.subject_alt_names.push(SanType::DnsName(DAEMON_NAME.try_into().unwrap()));
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.not_before = rcgen::date_time_ymd(1970, 1, 1);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(expires);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        format!("{}{}{}", certificate.pem(), self.pem, key.serialize_pem()).replace("\r\n", "\n")
    }
}
