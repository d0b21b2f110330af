//! `clovis credential create|list|show|revoke`: who may connect to a cluster, and what they may do there.
//!
//! Works on the folder `credentials` beside the cluster file, where the authority's key is: on the machine where the cluster was
//! made, without its daemons. Daemons look for revocations every second.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base::Rights;
use serde_json::{Value, json};
use verbs_net::security::Identity;

use crate::conf::time_text;
use crate::connection::{find_cluster_file, folder_of, load_cluster_file, unix_s};
use crate::credential::folder::{CredentialFolder, Issued};
use crate::failure::Failure;
use crate::output;
use crate::table::{Align, Table};

pub mod args;
mod authority;
pub mod folder;

use args::{CreateArgs, CredentialCommand, ListArgs, RevokeArgs, ShowArgs};

/// How long credentials are good: those of daemons and of the administrator that `cluster init` makes, and others.
pub const DAEMONS_LAST: Duration = Duration::from_secs(3650 * 86_400);
const OTHERS_LAST: Duration = Duration::from_secs(365 * 86_400);

/// What a new credential is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A daemon: everything.
    Daemon,
    /// A client, with these rights.
    Client(Rights),
}

/// `clovis credential ...`
pub fn run(command: &CredentialCommand) -> Result<(), Failure> {
    match command {
        CredentialCommand::Create(args) => create(args),
        CredentialCommand::List(args) => list(args),
        CredentialCommand::Show(args) => show(args),
        CredentialCommand::Revoke(args) => revoke(args),
    }
}

/// The folder of the cluster that a command is about.
fn folder_for(config: Option<&Path>) -> Result<CredentialFolder, Failure> {
    let config = find_cluster_file(config)?;
    let file = load_cluster_file(&config)?;
    CredentialFolder::open(folder_of(&config), file.cluster.id.0)
}

fn create(args: &CreateArgs) -> Result<(), Failure> {
    if args.new_authority {
        let config = find_cluster_file(args.config.as_deref())?;
        let file = load_cluster_file(&config)?;
        CredentialFolder::make(folder_of(&config), file.cluster.id.0, unix_s())?;
    }
    let folder = folder_for(args.config.as_deref())?;
    let holder = if args.daemon { Holder::Daemon } else { Holder::Client(args.rights) };
    let lasts = args.expires.unwrap_or(if args.daemon { DAEMONS_LAST } else { OTHERS_LAST });
    let now = unix_s();
    let (issued, path) = folder.create(&args.name, holder, now, lasts, args.output.as_deref())?;
    if args.json {
        let mut value = identity_json(&issued.identity, now, false);
        value["file"] = json!(path.to_string_lossy());
        return output::line(&value.to_string());
    }
    let identity = &issued.identity;
    output::print(&format!(
        "{} may {} until {} (id {})\nIts credential is {}: hand it over with clovis.toml, keep its mode 0600.\nNext:\n  \
         export CLOVIS_CONFIG=CLOVIS.TOML CLOVIS_CREDENTIAL={}\n",
        identity.name,
        words_of(identity.rights),
        time_text(identity.expires_unix_s),
        identity.id,
        path.display(),
        path.display(),
    ))
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let folder = folder_for(args.config.as_deref())?;
    let revoked = folder.revoked()?;
    let now = unix_s();
    let issued = folder.issued()?;
    if args.json {
        let all: Vec<Value> = issued
            .iter()
            .map(|Issued { identity, issued_unix_s }| {
                let mut value = identity_json(identity, now, revoked.contains(&identity.id));
                value["issued_unix_s"] = json!(issued_unix_s);
                value
            })
            .collect();
        return output::line(&json!({ "credentials": all }).to_string());
    }
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("ID", Align::Left),
        ("RIGHTS", Align::Left),
        ("UNTIL (UTC)", Align::Left),
        ("STATE", Align::Left),
    ]);
    for Issued { identity, .. } in &issued {
        table.row([
            identity.name.clone(),
            identity.id.to_string(),
            identity.rights.to_string(),
            time_text(identity.expires_unix_s),
            state(identity, now, revoked.contains(&identity.id)).to_owned(),
        ]);
    }
    output::print(&table.render())
}

fn show(args: &ShowArgs) -> Result<(), Failure> {
    let path = if args.credential.components().count() == 1 && !args.credential.exists() {
        let config = find_cluster_file(args.config.as_deref())?;
        client::membership::credential_path(&config, &args.credential.to_string_lossy())
    } else {
        args.credential.clone()
    };
    let text = verbs_net::security::read_private(&path).map_err(|error| Failure::new(error.to_string()))?;
    let identity =
        Identity::of_pem(&text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    // Whether it was revoked is known where the cluster's folder is.
    let known = folder_for(args.config.as_deref()).and_then(|folder| folder.revoked());
    let is_revoked = known.is_ok_and(|revoked| revoked.contains(&identity.id));
    let now = unix_s();
    if args.json {
        return output::line(&identity_json(&identity, now, is_revoked).to_string());
    }
    output::print(&format!(
        "name    {}\nid      {}\nrights  {}\nuntil   {} UTC\nstate   {}\n",
        identity.name,
        identity.id,
        identity.rights,
        time_text(identity.expires_unix_s),
        state(&identity, now, is_revoked)
    ))
}

fn revoke(args: &RevokeArgs) -> Result<(), Failure> {
    let folder = folder_for(args.config.as_deref())?;
    let revoked = folder.revoke(&args.credential, unix_s())?;
    let list = folder.revoked_path();
    if args.json {
        let ids: Vec<String> = revoked.iter().map(|identity| identity.id.to_string()).collect();
        let names: Vec<&str> = revoked.iter().map(|identity| identity.name.as_str()).collect();
        return output::line(
            &json!({ "revoked": ids, "names": names, "file": list.to_string_lossy() }).to_string(),
        );
    }
    for identity in &revoked {
        output::line(&format!("{} (id {}) is revoked", identity.name, identity.id))?;
    }
    output::line(&format!(
        "Daemons that run from this folder know within a second; on other machines copy {} beside their clovis.toml.",
        list.display()
    ))
}

fn state(identity: &Identity, now_unix_s: u64, is_revoked: bool) -> &'static str {
    match (is_revoked, identity.expires_unix_s <= now_unix_s) {
        (true, _) => "revoked",
        (false, true) => "ended",
        (false, false) => "good",
    }
}

fn identity_json(identity: &Identity, now_unix_s: u64, is_revoked: bool) -> Value {
    json!({
        "name": identity.name,
        "id": identity.id.to_string(),
        "rights": identity.rights.iter().map(|right| right.word()).collect::<Vec<_>>(),
        "expires_unix_s": identity.expires_unix_s,
        "state": state(identity, now_unix_s, is_revoked),
    })
}

/// `connect, read and write`
fn words_of(rights: Rights) -> String {
    let words: Vec<&str> = rights.iter().map(|right| right.word()).collect();
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => "do nothing".to_owned(),
    }
}

/// Credentials of a new cluster, in its folder: of control, of the servers, of whoever administers it.
pub fn make_all(
    folder: &Path,
    cluster: u64,
    daemons: impl IntoIterator<Item = String>,
) -> Result<PathBuf, Failure> {
    let now = unix_s();
    let folder = CredentialFolder::make(folder, cluster, now)?;
    for name in daemons {
        folder.create(&name, Holder::Daemon, now, DAEMONS_LAST, None)?;
    }
    let administrator = Holder::Client(Rights::CLIENT);
    let (_, path) =
        folder.create(client::membership::ADMINISTRATOR, administrator, now, DAEMONS_LAST, None)?;
    Ok(path)
}
