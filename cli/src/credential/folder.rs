//! The folder `credentials` of a cluster:
//!
//! ```text
//! ca.pem      the authority's certificate: it is in every credential too
//! ca.key      its private key, mode 0600: needed to make credentials, by no daemon; keep it where no client can read it
//! NAME.pem    a credential: certificate, authority's certificate, private key; mode 0600
//! issued      a line for each credential that was made: its identity, and when
//! revoked     a line for each that is no longer good: its id first; daemons look at it every second
//! ```
//! Bound: a line for each credential ever made. Commands that change the folder hold a lock on it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::membership::CREDENTIALS;
use verbs_net::Revocations;
use verbs_net::security::{CredentialId, Identity, read_private};

use crate::credential::Holder;
use crate::credential::authority::Authority;
use crate::failure::Failure;

/// Name of the list of what is no longer good.
pub const REVOKED: &str = "revoked";
const ISSUED: &str = "issued";

/// A folder whose authority can sign. Locked while it lives.
pub struct CredentialFolder {
    path: PathBuf,
    cluster: u64,
    _lock: fs::File,
}

/// One credential that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// What stands in it.
    pub identity: Identity,
    /// When it was made.
    pub issued_unix_s: u64,
}

fn lock(path: &Path) -> Result<fs::File, Failure> {
    let doing = || format!("the folder {}", path.display());
    let file = fs::File::open(path).map_err(Failure::while_doing(doing()))?;
    file.lock().map_err(Failure::while_doing(doing()))?;
    Ok(file)
}

/// Writes a new file with a mode, durably. Errors: it exists.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let doing = || format!("writing {}", path.display());
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(Failure::while_doing(doing()))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(Failure::while_doing(doing()))
}

fn append(path: &Path, line: &str) -> Result<(), Failure> {
    let doing = || format!("writing {}", path.display());
    let mut file = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .open(path)
        .map_err(Failure::while_doing(doing()))?;
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(Failure::while_doing(doing()))
}

/// A text, or none if there is no such file.
fn text_of(path: &Path) -> Result<String, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Failure::while_doing(format!("reading {}", path.display()))(error)),
    }
}

fn new_id() -> Result<CredentialId, Failure> {
    let mut bytes = [0u8; 8];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| std::io::Read::read_exact(&mut source, &mut bytes))
        .map_err(Failure::while_doing("reading /dev/urandom for a credential's id"))?;
    Ok(CredentialId(u64::from_le_bytes(bytes)))
}

impl CredentialFolder {
    /// Makes the folder and its authority, for the cluster in `cluster_folder`.
    pub fn make(cluster_folder: &Path, cluster: u64, now_unix_s: u64) -> Result<CredentialFolder, Failure> {
        let path = cluster_folder.join(CREDENTIALS);
        fs::create_dir_all(&path)
            .map_err(Failure::while_doing(format!("making the folder {}", path.display())))?;
        let (authority, key) = Authority::make(cluster, now_unix_s)?;
        let lock = lock(&path)?;
        write_new(&path.join("ca.key"), &key, 0o600)?;
        write_new(&path.join("ca.pem"), &authority.certificate().replace('\r', ""), 0o644)?;
        Ok(CredentialFolder { path, cluster, _lock: lock })
    }

    /// The folder beside the file of `cluster`. Errors: the cluster has none.
    pub fn open(cluster_folder: &Path, cluster: u64) -> Result<CredentialFolder, Failure> {
        let path = cluster_folder.join(CREDENTIALS);
        if !path.join("ca.pem").exists() {
            return Err(Failure::new(format!(
                "{} holds no authority: credentials are made on the machine, and by the user, that made the cluster (docs/security.md)",
                path.display()
            )));
        }
        let lock = lock(&path)?;
        Ok(CredentialFolder { path, cluster, _lock: lock })
    }

    /// The list that daemons look at.
    pub fn revoked_path(&self) -> PathBuf {
        self.path.join(REVOKED)
    }

    /// All that were made, oldest first.
    pub fn issued(&self) -> Result<Vec<Issued>, Failure> {
        let path = self.path.join(ISSUED);
        let mut all = Vec::new();
        for (index, line) in text_of(&path)?.lines().enumerate() {
            let issued = line.split_once(' ').and_then(|(time, uri)| {
                Some(Issued { issued_unix_s: time.parse().ok()?, identity: Identity::parse_uri(uri).ok()? })
            });
            all.push(
                issued.ok_or_else(|| {
                    Failure::new(format!("{}: line {} is damaged", path.display(), index + 1))
                })?,
            );
        }
        Ok(all)
    }

    /// What is no longer good.
    pub fn revoked(&self) -> Result<BTreeSet<CredentialId>, Failure> {
        let path = self.revoked_path();
        Revocations::parse(&text_of(&path)?)
            .map_err(Failure::while_doing(format!("reading {}", path.display())))
    }

    /// Makes a credential, in `output` or in this folder; answers it and where it is. Errors: the name is no name, or has a
    /// credential that is good; the file exists.
    pub fn create(
        &self,
        name: &str,
        holder: Holder,
        now_unix_s: u64,
        lasts: Duration,
        output: Option<&Path>,
    ) -> Result<(Issued, PathBuf), Failure> {
        Identity::check_name(name).map_err(|_| {
            Failure::new(format!(
                "{name:?} cannot be the name of a credential: 1 to 64 small letters, digits, `.`, `-` and `_`, not beginning with `.` \
                 or `-`"
            ))
        })?;
        if name == "ca" {
            return Err(Failure::new("`ca` is the authority's name: choose another"));
        }
        let revoked = self.revoked()?;
        let is_good = |one: &Issued| {
            one.identity.name == name
                && one.identity.expires_unix_s > now_unix_s
                && !revoked.contains(&one.identity.id)
        };
        if let Some(one) = self.issued()?.iter().find(|one| is_good(one)) {
            return Err(Failure::new(format!(
                "{name} has a credential already, id {}: revoke it first (`clovis credential revoke {name}`), or choose another name",
                one.identity.id
            )));
        }
        let key = self.path.join("ca.key");
        let key =
            read_private(&key).map_err(|error| Failure::new(format!("the authority's key: {error}")))?;
        let certificate = text_of(&self.path.join("ca.pem"))?;
        let authority = Authority::open(self.cluster, &key, certificate)?;
        let identity = Identity {
            name: name.to_owned(),
            id: new_id()?,
            rights: holder.rights(),
            expires_unix_s: now_unix_s + lasts.as_secs(),
        };
        let text = authority.sign(&identity, holder, now_unix_s)?;
        let path = output.map_or_else(|| self.path.join(format!("{name}.pem")), Path::to_owned);
        if output.is_none() && path.exists() {
            // Of the same name and no longer good: it makes way.
            fs::remove_file(&path).map_err(Failure::while_doing(format!("replacing {}", path.display())))?;
        }
        // Noted first: one that exists is always listed, so it can be revoked.
        append(&self.path.join(ISSUED), &format!("{now_unix_s} {}\n", identity.to_uri()))?;
        write_new(&path, &text, 0o600)?;
        Ok((Issued { identity, issued_unix_s: now_unix_s }, path))
    }

    /// Takes back what has this name or id; answers what that was. Errors: nothing that is good has it.
    pub fn revoke(&self, named: &str, now_unix_s: u64) -> Result<Vec<Identity>, Failure> {
        let revoked = self.revoked()?;
        let id = named.parse::<CredentialId>().ok();
        let found: Vec<Identity> = self
            .issued()?
            .into_iter()
            .map(|issued| issued.identity)
            .filter(|identity| identity.name == named || Some(identity.id) == id)
            .collect();
        if found.is_empty() {
            return Err(Failure::new(format!(
                "no credential has the name or id {named:?}: `clovis credential list` shows them"
            )));
        }
        let new: Vec<Identity> =
            found.into_iter().filter(|identity| !revoked.contains(&identity.id)).collect();
        if new.is_empty() {
            return Err(Failure::new(format!("{named} is revoked already")));
        }
        let line =
            |identity: &Identity| format!("{} {} revoked at {now_unix_s}\n", identity.id, identity.name);
        append(&self.revoked_path(), &new.iter().map(line).collect::<String>())?;
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use verbs_net::{Credential, CredentialOptions};

    const NOW: u64 = 1_795_000_000;
    const DAY: Duration = Duration::from_secs(86_400);

    fn client(rights: &str) -> Holder {
        Holder::Client(rights.parse().unwrap())
    }

    fn made() -> (tempfile::TempDir, CredentialFolder) {
        let folder = tempfile::tempdir().unwrap();
        let made = CredentialFolder::make(folder.path(), 7, NOW).unwrap();
        (folder, made)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn credentials_load_and_say_what_was_asked_for() {
        let (_folder, made) = made();
        let long = Duration::from_secs(3650 * 86_400);
        let (issued, path) = made.create("reader", client("connect,read"), NOW, long, None).unwrap();
        assert_eq!((mode(&path), mode(&made.path.join("ca.key"))), (0o600, 0o600));
        let loaded = Credential::load(&path, CredentialOptions::default()).unwrap();
        assert_eq!(**loaded.identity(), issued.identity);
        assert_eq!(loaded.rights().to_string(), "connect,read");
        let (_, path) = made.create("server-1", Holder::Daemon, NOW, long, None).unwrap();
        let loaded = Credential::load(&path, CredentialOptions::default()).unwrap();
        assert_eq!(loaded.rights(), base::Rights::ALL);
        let names: Vec<String> = made.issued().unwrap().into_iter().map(|one| one.identity.name).collect();
        assert_eq!(names, ["reader", "server-1"]);
    }

    #[test]
    fn a_name_has_one_good_credential() {
        let (_folder, made) = made();
        let (first, path) = made.create("me", client("connect"), NOW, DAY, None).unwrap();
        let again = |now| made.create("me", client("connect"), now, DAY, None);
        assert!(again(NOW).unwrap_err().to_string().contains("revoke it first"));
        let revoked = made.revoke("me", NOW).unwrap();
        assert_eq!(revoked, std::slice::from_ref(&first.identity));
        assert!(made.revoked().unwrap().contains(&first.identity.id));
        assert!(made.revoke("me", NOW).unwrap_err().to_string().contains("revoked already"));
        let (second, same_path) = again(NOW).unwrap();
        assert!(second.identity.id != first.identity.id && same_path == path);
        assert_eq!(made.revoke(&second.identity.id.to_string(), NOW).unwrap(), [second.identity]);
        // One that has ended makes way too.
        again(NOW + 1).unwrap();
        again(NOW + 1 + DAY.as_secs()).unwrap();
    }

    #[test]
    fn wrong_names_and_open_keys_are_refused() {
        let (folder, made) = made();
        for name in ["", "ca", "A", "a/b", "../x"] {
            assert!(made.create(name, client("connect"), NOW, DAY, None).is_err(), "{name}");
        }
        assert!(made.revoke("nobody", NOW).unwrap_err().to_string().contains("credential list"));
        assert!(made.issued().unwrap().is_empty(), "nothing was made");
        fs::set_permissions(made.path.join("ca.key"), fs::Permissions::from_mode(0o644)).unwrap();
        let refusal = made.create("me", client("connect"), NOW, DAY, None).unwrap_err().to_string();
        assert!(refusal.contains("open to others"), "{refusal}");
        let elsewhere = folder.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let refusal = CredentialFolder::open(&elsewhere, 7).err().unwrap().to_string();
        assert!(refusal.contains("holds no authority"), "{refusal}");
    }
}
