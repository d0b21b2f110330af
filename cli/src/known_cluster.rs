//! A cluster that a command or daemon knows from its file, and the credential that it shows there.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use client::membership;
use faces::cluster_file::{ClusterFile, SecurityKind};
use runtime::LocalityHandle;
use verbs_net::{Revocations, Security};

use crate::args::ConnectArgs;
use crate::connection::{find_cluster_file, folder_of, read_cluster_file};
use crate::credential::folder::REVOKED;
use crate::failure::Failure;

/// How often a daemon looks whether the list of revoked credentials has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A cluster file, where it is, and whose credential goes with it. Reads like the file.
#[derive(Clone, Debug)]
pub struct KnownCluster {
    file: ClusterFile,
    config: PathBuf,
    credential: PathBuf,
    revocations: Arc<Revocations>,
}

impl Deref for KnownCluster {
    type Target = ClusterFile;
    fn deref(&self) -> &ClusterFile {
        &self.file
    }
}

impl KnownCluster {
    /// The cluster of `config`. `credential`: the file of one; else the administrator's beside the cluster file. It is read when
    /// it is needed.
    pub fn load(config: &Path, credential: Option<&Path>) -> Result<KnownCluster, Failure> {
        let (_, file) = read_cluster_file(config)?;
        Ok(KnownCluster::new(file, config, credential, membership::ADMINISTRATOR))
    }

    /// The one that a command's flags name.
    pub fn of(args: &ConnectArgs) -> Result<KnownCluster, Failure> {
        KnownCluster::load(&find_cluster_file(args.config.as_deref())?, args.credential.as_deref())
    }

    /// The same for the daemon `name`, whose credential has its name.
    pub fn of_daemon(
        config: &Path,
        credential: Option<&Path>,
        name: impl FnOnce(&ClusterFile) -> String,
    ) -> Result<(String, KnownCluster), Failure> {
        let (text, file) = read_cluster_file(config)?;
        let name = name(&file);
        Ok((text, KnownCluster::new(file, config, credential, &name)))
    }

    /// A file that is in memory only: of a cluster in one process.
    pub fn in_memory(file: ClusterFile) -> KnownCluster {
        KnownCluster::new(file, Path::new("clovis.toml"), None, membership::ADMINISTRATOR)
    }

    fn new(file: ClusterFile, config: &Path, credential: Option<&Path>, name: &str) -> KnownCluster {
        let credential = credential.map_or_else(|| membership::credential_path(config, name), Path::to_owned);
        KnownCluster { file, config: config.to_owned(), credential, revocations: Arc::default() }
    }

    /// The cluster file's path.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// What proves that this process belongs to the cluster. Errors: its credential is missing, open to others, or has ended.
    pub fn security(&self) -> Result<Security, Failure> {
        let revocations = Arc::clone(&self.revocations);
        membership::security_with(&self.file, &self.credential, revocations)
            .map_err(|error| Failure::new(error.to_string()))
    }

    /// Keeps the list of revoked credentials in force while the daemon runs. Errors: the list is there and cannot be read.
    pub fn watch_revocations(&self, handle: &LocalityHandle) -> Result<(), Failure> {
        if self.file.cluster.security != SecurityKind::Certificates {
            return Ok(());
        }
        let path = folder_of(&self.config).join(membership::CREDENTIALS).join(REVOKED);
        let mut list = RevokedList { path, seen: None, revocations: Arc::clone(&self.revocations) };
        list.refresh()?;
        let sleeper = handle.clone();
        // Detached: it ends with the locality.
        drop(handle.spawn("revocations", async move {
            loop {
                sleeper.sleep(LOOK_EVERY).await;
                if let Err(failure) = list.refresh() {
                    // What was revoked stays revoked.
                    eprintln!("clovis: {failure}");
                }
            }
        }));
        Ok(())
    }
}

/// The file of revoked credentials, as it was last seen.
struct RevokedList {
    path: PathBuf,
    seen: Option<(SystemTime, u64)>,
    revocations: Arc<Revocations>,
}

impl RevokedList {
    fn refresh(&mut self) -> Result<(), Failure> {
        let doing = || format!("reading {}", self.path.display());
        let about = match std::fs::metadata(&self.path) {
            Ok(about) => about,
            // Nothing was ever revoked; a list that went away still counts.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Failure::while_doing(doing())(error)),
        };
        let mark = about.modified().ok().map(|time| (time, about.len()));
        if mark.is_some() && mark == self.seen {
            return Ok(());
        }
        // Seen, whatever it says: a wrong list is told once.
        self.seen = mark;
        let text = std::fs::read_to_string(&self.path).map_err(Failure::while_doing(doing()))?;
        let ids = Revocations::parse(&text).map_err(Failure::while_doing(doing()))?;
        self.revocations.replace(ids);
        Ok(())
    }
}
