//! How a process proves that it belongs to a cluster: from the cluster file, and from the credential beside it or named by the user.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use faces::{ClusterFile, SecurityKind};
use verbs_net::{Credential, CredentialError, CredentialOptions, Revocations, Security, Token};

/// The folder of credentials, beside the cluster file.
pub const CREDENTIALS: &str = "credentials";
/// The credential that a command takes where none is named: that of whoever made the cluster.
pub const ADMINISTRATOR: &str = "admin";

/// Where the credential of `name` is kept, for the cluster file `config`: `credentials/NAME.pem` beside it.
#[must_use]
pub fn credential_path(config: &Path, name: &str) -> PathBuf {
    let folder = config.parent().unwrap_or(Path::new(""));
    folder.join(CREDENTIALS).join(format!("{name}.pem"))
}

/// The security of a cluster's member: the shared secret of its file, or a credential: `named`, else the administrator's beside the file.
///
/// Errors: the credential is missing, open to others, broken, or has ended.
pub fn security_of(
    file: &ClusterFile,
    config: &Path,
    named: Option<&Path>,
) -> Result<Security, CredentialError> {
    let path = named.map_or_else(|| credential_path(config, ADMINISTRATOR), Path::to_owned);
    security_with(file, &path, Arc::default())
}

/// The same for a daemon, which is told of revocations while it runs.
///
/// Errors: as [`security_of`].
pub fn security_with(
    file: &ClusterFile,
    credential: &Path,
    revocations: Arc<Revocations>,
) -> Result<Security, CredentialError> {
    match (file.cluster.security, &file.cluster.credential) {
        (SecurityKind::Certificates, _) | (_, None) => {
            let options = CredentialOptions {
                encrypts: file.cluster.encrypt,
                revocations,
                ..CredentialOptions::default()
            };
            Ok(Security::Certificates(Arc::new(Credential::load(credential, options)?)))
        }
        (_, Some(secret)) => Ok(Security::Shared(Token::new(secret.bytes()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_lie_beside_the_cluster_file() {
        assert_eq!(
            credential_path(Path::new("/c/clovis.toml"), "admin"),
            Path::new("/c/credentials/admin.pem")
        );
        assert_eq!(credential_path(Path::new("clovis.toml"), "me"), Path::new("credentials/me.pem"));
    }

    #[test]
    fn a_cluster_that_shares_a_secret_needs_no_file() {
        let text = include_str!("../../control/faces/src/cluster_file_example.toml");
        let file = ClusterFile::parse(text).unwrap();
        let security = security_of(&file, Path::new("/nowhere/clovis.toml"), None).unwrap();
        assert!(
            matches!(security, Security::Shared(token) if token.matches(&file.cluster.credential.unwrap().bytes()))
        );

        let line = text.lines().find(|line| line.starts_with("credential")).unwrap();
        let file = ClusterFile::parse(&text.replace(line, "security = \"certificates\"")).unwrap();
        let refusal = security_of(&file, Path::new("/nowhere/clovis.toml"), None).unwrap_err().to_string();
        assert!(refusal.contains("/nowhere/credentials/admin.pem does not exist"), "{refusal}");
        let named = security_of(&file, Path::new("clovis.toml"), Some(Path::new("/nowhere/me.pem")));
        assert!(named.unwrap_err().to_string().contains("/nowhere/me.pem"));
    }
}
