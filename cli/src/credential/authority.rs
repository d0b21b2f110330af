//! The cluster's authority: a key that signs certificates, and its own certificate, which all trust.
//!
//! Must not know: files. P-256 keys, ECDSA with SHA-256. What a certificate says of its holder: verbs-net's `Identity`.

use std::time::Duration;

use base::Rights;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use verbs_net::security::{DAEMON_NAME, Identity};

use crate::credential::Holder;
use crate::failure::Failure;

/// How long an authority is good: as long as a cluster may live.
const AUTHORITY_LASTS: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Certificates begin earlier than they are made, for clocks that are behind.
const CLOCKS_DIFFER: Duration = Duration::from_secs(3600);

/// An authority that can sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, as PEM.
    certificate: String,
}

fn failed(doing: &'static str) -> impl Fn(rcgen::Error) -> Failure {
    move |error| Failure::new(format!("{doing}: {error}"))
}

/// What stands in an authority's certificate: made anew from the cluster's id, so that it is the issuer of what its key signs.
fn params(cluster: u64) -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::new(Vec::new()).map_err(failed("making an authority"))?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("clovis cluster {cluster:016x}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Seconds since 1970 as rcgen has them.
macro_rules! at {
    ($unix_s:expr) => {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs($unix_s)
    };
}

impl Authority {
    /// A new one; answers its private key too, as PEM.
    pub fn make(cluster: u64, now_unix_s: u64) -> Result<(Authority, String), Failure> {
        let key = KeyPair::generate().map_err(failed("making the authority's key"))?;
        let mut params = params(cluster)?;
        params.not_before = at!(now_unix_s.saturating_sub(CLOCKS_DIFFER.as_secs()));
        params.not_after = at!(now_unix_s + AUTHORITY_LASTS.as_secs());
        let certificate =
            params.self_signed(&key).map_err(failed("signing the authority's certificate"))?.pem();
        let private = key.serialize_pem();
        Ok((Authority { issuer: Issuer::new(params, key), certificate }, private))
    }

    /// One that was made before. Errors: the key cannot be read.
    pub fn open(cluster: u64, key: &str, certificate: String) -> Result<Authority, Failure> {
        let key = KeyPair::from_pem(key).map_err(failed("reading the authority's key"))?;
        Ok(Authority { issuer: Issuer::new(params(cluster)?, key), certificate })
    }

    /// Its certificate, as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A credential for `identity`: certificate, authority's certificate and private key, as PEM.
    pub fn sign(&self, identity: &Identity, holder: Holder, now_unix_s: u64) -> Result<String, Failure> {
        let doing = "making a certificate";
        let mut params = CertificateParams::new(Vec::new()).map_err(failed(doing))?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, identity.name.as_str());
        params.serial_number = Some(SerialNumber::from(identity.id.0));
        let uri = identity.to_uri().try_into().map_err(failed(doing))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        if holder == Holder::Daemon {
            let name = DAEMON_NAME.try_into().map_err(failed(doing))?;
            params.subject_alt_names.push(SanType::DnsName(name));
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.not_before = at!(now_unix_s.saturating_sub(CLOCKS_DIFFER.as_secs()));
        params.not_after = at!(identity.expires_unix_s);
        let key = KeyPair::generate().map_err(failed("making a key"))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed("signing a certificate"))?;
        Ok(format!("{}{}{}", certificate.pem(), self.certificate, key.serialize_pem()).replace('\r', ""))
    }
}

impl Holder {
    /// What its credential opens.
    pub fn rights(self) -> Rights {
        match self {
            Holder::Daemon => Rights::ALL,
            Holder::Client(rights) => rights,
        }
    }
}
