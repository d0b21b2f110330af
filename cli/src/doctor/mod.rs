//! `clovis doctor`: looks at this machine, and at a cluster if one is named, and says what to mend before it hurts.
//!
//! Each check answers with a [`Finding`]: what was seen, why it matters, what to do. **Invariant**: what is printed was seen in this very
//! run. What cannot be seen from here is said to be so ("cannot tell: why"), and never counts as well. A check that needs no cluster runs without one; needs
//! that only some clusters have (RDMA, SPDK) are judged by the cluster file. Nothing is changed.
//! Start at [`run`]; [`machine`], [`networks`], [`clock`], [`processes`] and [`space`] have the checks.

mod clock;
mod finding;
mod machine;
mod networks;
mod processes;
mod space;

use std::path::{Path, PathBuf};
use std::time::Duration;

use base::NetKind;
use clap::Args;
use faces::cluster_file::ClusterFile;
use serde_json::json;
use spdk_stob::is_nvme_address;

use crate::connection::{Station, find_cluster_file, folder_of};
use crate::failure::Failure;
use crate::known_cluster::KnownCluster;
use crate::output;

use finding::{Finding, Verdict};

/// `clovis doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Folder of a cluster, with its clovis.toml (default: the cluster of --config or of the current folder, if there is one)
    pub folder: Option<PathBuf>,
    /// The cluster's configuration file
    #[arg(long, env = "CLOVIS_CONFIG", value_name = "FILE", conflicts_with = "folder")]
    pub config: Option<PathBuf>,
    /// Seconds to wait for each process of the cluster
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub timeout: u64,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A cluster to look at.
struct Patient {
    config: PathBuf,
    file: KnownCluster,
}

impl Patient {
    fn folder(&self) -> &Path {
        folder_of(&self.config)
    }
}

/// What the named cluster needs of a machine that others do not; nothing without a cluster.
#[derive(Clone, Copy, Debug, Default)]
struct Needs {
    rdma: bool,
    spdk: bool,
}

impl Needs {
    fn of(file: &ClusterFile) -> Needs {
        let servers = file.servers.iter().flat_map(|server| &server.endpoints);
        let mut endpoints = servers.chain([&file.control.endpoint]);
        let devices = file.devices.iter().map(|device| device.path.as_path());
        Needs {
            rdma: endpoints.any(|endpoint| endpoint.nid.net.kind == NetKind::O2ib),
            spdk: devices.chain([file.control.store.as_path()]).any(is_nvme_address),
        }
    }
}

/// `clovis doctor`: status 1 if a check failed.
pub fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let patient = find_patient(args)?;
    let needs = patient.as_ref().map(|patient| Needs::of(&patient.file)).unwrap_or_default();
    let mut findings = machine::all(needs);
    findings.extend(networks::all(needs, patient.as_ref().map(|patient| &*patient.file))?);
    findings.extend(clock::all());
    if let Some(patient) = &patient {
        let mut station = Station::new("doctor")?;
        let seen = processes::ask_all(&mut station, patient, Duration::from_secs(args.timeout));
        findings.extend(processes::judge(patient, &seen));
        findings.extend(clock::differences(&seen));
        findings.extend(space::all(patient, &seen));
    }
    let cluster = patient.as_ref().map(|patient| patient.config.as_path());
    if args.json {
        output::line(&format!("{:#}", to_json(cluster, &findings)))?;
    } else {
        output::print(&to_text(cluster, &findings))?;
    }
    match findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count() {
        0 => Ok(()),
        1 => Err(Failure::new("1 check failed")),
        count => Err(Failure::new(format!("{count} checks failed"))),
    }
}

/// The cluster to look at: a named one has to be there, an unnamed one may be missing.
fn find_patient(args: &DoctorArgs) -> Result<Option<Patient>, Failure> {
    let named = match (&args.folder, &args.config) {
        (Some(folder), _) => Some(folder.join("clovis.toml")),
        (None, Some(config)) => Some(config.clone()),
        (None, None) => None,
    };
    let config = match named {
        Some(config) => config,
        None => match find_cluster_file(None) {
            Ok(config) => config,
            Err(_) => return Ok(None),
        },
    };
    let named = std::env::var_os("CLOVIS_CREDENTIAL").map(PathBuf::from);
    let file = KnownCluster::load(&config, named.as_deref())?;
    Ok(Some(Patient { config, file }))
}

fn headline(cluster: Option<&Path>) -> String {
    match cluster {
        Some(config) => format!("this machine, and the cluster of {}", config.display()),
        None => "this machine only: no cluster was named and none is in this folder (clovis doctor FOLDER)"
            .to_owned(),
    }
}

fn to_text(cluster: Option<&Path>, findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or(0);
    let mut text = format!("{}\n", headline(cluster));
    for finding in findings {
        text.push_str(&finding.text(width));
    }
    let count = |wanted: Verdict| findings.iter().filter(|finding| finding.verdict == wanted).count();
    text.push_str(&format!(
        "{} ok, {} warnings, {} failed\n",
        count(Verdict::Ok),
        count(Verdict::Warn),
        count(Verdict::Fail)
    ));
    text
}

fn to_json(cluster: Option<&Path>, findings: &[Finding]) -> serde_json::Value {
    let failed = findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count();
    json!({
        "cluster_file": cluster.map(|config| config.display().to_string()),
        "version": crate::VERSION,
        "findings": findings.iter().map(Finding::json).collect::<Vec<_>>(),
        "failed": failed,
    })
}
