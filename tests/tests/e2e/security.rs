//! Who may do what: real daemons, and clients with every kind of credential and with none.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, process::Command};

use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::processes::{self, Finished, Process};
use clovis_tests::{binary, folder, wait};
use serde_json::Value;

/// A running cluster, and what its users hold.
struct Guarded {
    cluster: RunningCluster,
    file: PathBuf,
}

impl Guarded {
    /// Another cluster beside this one, made and not started: its folder, and what was said of it.
    fn other_cluster(&self) -> (PathBuf, Value) {
        let other = self.cluster.scratch().join("other");
        let shape = ["--security", "certificates", "--device-size", "16M", "--json"];
        let arguments = [&["cluster", "init", "--dir", other.to_str().unwrap()][..], &shape].concat();
        let made = serde_json::from_str(self.cluster.run(&arguments).succeeded().text()).unwrap();
        (other, made)
    }

    fn start(name: &str, flags: &[&str]) -> Guarded {
        let arguments: Vec<&str> =
            ["--security", "certificates", "--device-size", "16M"].iter().chain(flags).copied().collect();
        let cluster = RunningCluster::start(name, &arguments);
        let file = cluster.scratch().join("file");
        fs::write(&file, b"precious").unwrap();
        Guarded { cluster, file }
    }

    /// Makes a credential and gives it away: with the cluster file, in a folder that holds nothing else.
    fn give(&self, name: &str, rights: &str) -> User {
        self.give_for(name, rights, None)
    }

    /// The same, good for so long only.
    fn give_for(&self, name: &str, rights: &str, expires: Option<&str>) -> User {
        let folder = self.cluster.scratch().join(name);
        fs::create_dir(&folder).unwrap();
        fs::copy(self.cluster.dir().join("clovis.toml"), folder.join("clovis.toml")).unwrap();
        let credential = folder.join("my.pem");
        let to = credential.to_str().unwrap();
        let mut words = vec!["credential", "create", name, "--rights", rights, "--output", to];
        words.extend(expires.iter().flat_map(|time| ["--expires", *time]));
        let _ = self.cluster.run(&words).succeeded();
        User { folder, credential: Some(credential) }
    }

    /// Somebody who has the cluster file and no credential.
    fn stranger(&self) -> User {
        let folder = self.cluster.scratch().join("stranger");
        fs::create_dir_all(&folder).unwrap();
        fs::copy(self.cluster.dir().join("clovis.toml"), folder.join("clovis.toml")).unwrap();
        User { folder, credential: None }
    }

    fn store(&self, user: &User, id: &str) -> Finished {
        user.run(&["cp", "--quiet", "--timeout", "10", self.file.to_str().unwrap(), id])
    }
}

struct User {
    folder: PathBuf,
    credential: Option<PathBuf>,
}

impl User {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary::clovis());
        command.args(arguments).env("CLOVIS_CONFIG", self.folder.join("clovis.toml"));
        if let Some(credential) = &self.credential {
            command.env("CLOVIS_CREDENTIAL", credential);
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        self.run_within(arguments, COMMAND_LIMIT)
    }

    /// Panics if it takes longer.
    fn run_within(&self, arguments: &[&str], limit: Duration) -> Finished {
        processes::run(&mut self.command(arguments), &self.folder, limit)
    }

    fn start(&self, arguments: &[&str]) -> Process {
        Process::start(&mut self.command(arguments), &self.folder)
    }
}

/// The process fid of a server, as the cluster file has it.
fn process_of(config: &Path, index: usize) -> String {
    let text = fs::read_to_string(config).unwrap();
    let fids = text.lines().filter_map(|line| line.strip_prefix("process = \"")?.strip_suffix('"'));
    fids.map(str::to_owned).nth(index).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn without_a_credential_nothing_is_read_written_or_changed() {
    let guarded = Guarded::start("no-credential", &[]);
    let administrator = User { folder: guarded.cluster.dir(), credential: None };
    let _ = guarded.store(&administrator, "1:1").succeeded();

    let stranger = guarded.stranger();
    for words in
        [&["cat", "1:1"][..], &["ls"], &["status"], &["conf", "show"], &["device", "list"], &["lock", "list"]]
    {
        let said = stranger.run(words);
        let said = said.refused();
        assert!(said.contains("admin.pem does not exist"), "{words:?}: {said}");
        assert!(said.contains("clovis credential create"), "{words:?}: {said}");
    }
    // With one of another cluster it gets as far as the daemons, and no further.
    let (_, made) = guarded.other_cluster();
    let foreign = User {
        folder: stranger.folder.clone(),
        credential: Some(PathBuf::from(made["credential"].as_str().unwrap())),
    };
    for words in [&["cat", "1:1"][..], &["rm", "1:1"], &["conf", "show"]] {
        let said = foreign.run(words);
        assert!(said.refused().contains("not of this cluster's authority"), "{words:?}: {}", said.stderr);
    }
    // And without certificates at all: a file that says that a secret is shared.
    let text = fs::read_to_string(stranger.folder.join("clovis.toml")).unwrap();
    let shared = format!("security = \"shared\"\ncredential = \"{}\"", "0".repeat(64));
    fs::write(stranger.folder.join("clovis.toml"), text.replace("security = \"certificates\"", &shared))
        .unwrap();
    let said = stranger.run(&["cat", "1:1"]);
    assert!(said.refused().contains("a credential is wanted and none was shown"), "{}", said.stderr);

    assert_eq!(administrator.run(&["cat", "1:1"]).succeeded().text(), "precious");
}

#[test]
fn each_right_opens_what_it_says_and_no_more() {
    let guarded = Guarded::start("rights", &[]);
    let reader = guarded.give("reader", "connect,read");
    let writer = guarded.give("writer", "connect,read,write");
    let looker = guarded.give("looker", "connect");
    let _ = guarded.store(&writer, "1:1").succeeded();

    assert_eq!(reader.run(&["cat", "1:1"]).succeeded().text(), "precious");
    let _ = reader.run(&["ls"]).succeeded();
    for (said, what) in [
        (guarded.store(&reader, "1:1"), "replace"),
        (guarded.store(&reader, "2:2"), "make"),
        (reader.run(&["rm", "1:1"]), "remove"),
    ] {
        let said = said.refused();
        assert!(
            said.contains("needs the right `write`") && said.contains("reader has connect,read"),
            "{what}: {said}"
        );
        assert!(said.contains("--rights connect,read,write"), "{what}: {said}");
    }
    let _ = looker.run(&["status"]).succeeded();
    assert!(looker.run(&["cat", "1:1"]).refused().contains("needs the right `read`"));

    // What only an administrator does.
    let device = "0x6b00000000000001:1";
    for words in ["break", "fail", "detach"] {
        let said = writer.run(&["device", words, device]);
        assert!(said.refused().contains("needs the right `administer`"), "{words}: {}", said.stderr);
    }
    let wanted = writer.folder.join("wanted.toml");
    let text = fs::read_to_string(writer.folder.join("clovis.toml")).unwrap();
    fs::write(&wanted, text.replace("unit_bytes = 65536", "unit_bytes = 4096")).unwrap();
    let wanted = wanted.to_str().unwrap();
    let said = writer.run(&["conf", "apply", wanted]);
    assert!(said.refused().contains("needs the right `administer`"), "{}", said.stderr);
    let _ = guarded.cluster.run(&["conf", "apply", wanted]).succeeded();

    assert_eq!(writer.run(&["cat", "1:1"]).succeeded().text(), "precious");
    assert!(guarded.cluster.logs().contains("denied to"), "the daemons' logs tell of it");
}

#[test]
fn a_revoked_credential_ends_while_the_daemons_run() {
    let guarded = Guarded::start("revoked", &[]);
    let writer = guarded.give("writer", "connect,read,write");
    let _ = guarded.store(&writer, "1:1").succeeded();
    let said: Value = serde_json::from_str(
        guarded.cluster.run(&["credential", "revoke", "writer", "--json"]).succeeded().text(),
    )
    .unwrap();
    assert_eq!(said["names"][0], "writer");
    let refused = wait::until("the end of a revoked credential", Duration::from_secs(20), || {
        let said = guarded.store(&writer, "2:2");
        (!said.status.success()).then_some(said.stderr)
    });
    let refused = refused.unwrap();
    assert!(refused.contains("revoked"), "{refused}");
    let listed = guarded.cluster.run(&["credential", "list", "--json"]).succeeded().text().to_owned();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let of_writer =
        listed["credentials"].as_array().unwrap().iter().find(|one| one["name"] == "writer").unwrap();
    assert_eq!(of_writer["state"], "revoked");
    // Others go on, and the list holds after a restart.
    assert_eq!(guarded.cluster.run(&["cat", "1:1"]).succeeded().text(), "precious");
    guarded.cluster.kill_hard("server-1");
    guarded.cluster.start_again(&[]);
    assert!(guarded.store(&writer, "2:2").refused().contains("revoked"));
}

#[test]
fn a_credential_that_ends_says_so_to_commands_that_run_and_to_new_ones() {
    let guarded = Guarded::start("ends", &[]);
    let _ = guarded.cluster.run(&["cp", "--quiet", guarded.file.to_str().unwrap(), "1:1"]).succeeded();
    let visitor = guarded.give_for("visitor", "connect,read", Some("6s"));
    let mut watching = visitor.start(&["watch", "1:1", "--lease", "2"]);
    let said = wait::until("a watch", COMMAND_LIMIT, || {
        assert!(watching.is_running(), "{}", watching.said());
        watching.said().contains("watching 1:1").then_some(())
    });
    said.unwrap();
    // Its end comes while it runs: the daemons end its connection, and it is told why.
    let status = watching.wait(COMMAND_LIMIT).unwrap();
    assert!(!status.success() && watching.said().contains("a credential has ended"), "{}", watching.said());
    // Nothing is waited for.
    let said = visitor.run_within(&["cat", "1:1"], Duration::from_secs(10));
    let said = said.refused();
    assert!(
        said.contains("the credential of visitor ended") && said.contains("clovis credential create"),
        "{said}"
    );
    let shown = guarded.cluster.run(&["credential", "list", "--json"]).succeeded();
    let shown: Value = serde_json::from_str(shown.text()).unwrap();
    let all = shown["credentials"].as_array().unwrap();
    assert!(all.iter().any(|one| one["name"] == "visitor" && one["state"] == "ended"), "{shown}");
    assert_eq!(guarded.cluster.run(&["cat", "1:1"]).succeeded().text(), "precious");
}

#[test]
fn a_daemon_of_another_cluster_serves_nobody() {
    let guarded = Guarded::start(
        "foreign-daemon",
        &["--servers", "2", "--layout", "1+1+0", "--devices-per-server", "1"],
    );
    let _ = guarded.cluster.run(&["cp", "--quiet", guarded.file.to_str().unwrap(), "1:1"]).succeeded();
    let (other, _) = guarded.other_cluster();
    // In the place of a server, with the credential that the other cluster's authority made for its own.
    guarded.cluster.kill_hard("server-1");
    let config = guarded.cluster.dir().join("clovis.toml");
    let theirs = other.join("credentials/server-1.pem");
    let process = process_of(&config, 0);
    let said = guarded.cluster.run(&[
        "server",
        "--config",
        config.to_str().unwrap(),
        "--credential",
        theirs.to_str().unwrap(),
        "--process",
        &process,
    ]);
    assert!(said.refused().contains("not of this cluster's authority"), "{}", said.stderr);
    // Nor does control take a client's word for a daemon's.
    let nightly = guarded.give("nightly", "connect,read,write,administer");
    let said = guarded.cluster.run(&[
        "server",
        "--config",
        config.to_str().unwrap(),
        "--credential",
        nightly.credential.as_ref().unwrap().to_str().unwrap(),
        "--process",
        &process,
    ]);
    assert!(said.refused().contains("lacks the right `serve`"), "{}", said.stderr);
    guarded.cluster.start_again(&[]);
    assert_eq!(guarded.cluster.run(&["cat", "1:1"]).succeeded().text(), "precious");
}

#[test]
fn who_expects_the_other_kind_of_security_is_told() {
    let guarded = Guarded::start("kinds", &["--servers", "1", "--layout", "1+1+0"]);
    // A cluster that shares a secret, met by a client that holds a certificate.
    let shared = RunningCluster::start(
        "kinds-shared",
        &["--security", "shared", "--device-size", "16M", "--servers", "1", "--layout", "1+1+0"],
    );
    let user = guarded.give("user", "connect,read");
    let text = fs::read_to_string(shared.dir().join("clovis.toml")).unwrap();
    let secret = text.lines().find(|line| line.starts_with("credential = ")).unwrap();
    let text = text.replace("security = \"shared\"\n", "").replace(secret, "security = \"certificates\"");
    fs::write(user.folder.join("clovis.toml"), text).unwrap();
    let said = user.run_within(&["cat", "1:1", "--timeout", "5"], Duration::from_secs(20));
    assert!(said.refused().contains("TLS"), "{}", said.stderr);
}

#[test]
fn everything_is_encrypted_where_the_cluster_says_so() {
    let guarded = Guarded::start("encrypted", &["--encrypt"]);
    let writer = guarded.give("writer", "connect,read,write");
    let content: Vec<u8> = (0..4u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    fs::write(&guarded.file, &content).unwrap();
    let _ = guarded.store(&writer, "1:1").succeeded();
    let back = guarded.cluster.scratch().join("back");
    let _ = writer.run(&["cat", "1:1", "--output", back.to_str().unwrap()]).succeeded();
    assert!(fs::read(&back).unwrap() == content);
    // One whose file does not ask for it gets it all the same: the daemons ask.
    let text = fs::read_to_string(writer.folder.join("clovis.toml")).unwrap();
    assert!(text.contains("encrypt = true"));
    fs::write(writer.folder.join("clovis.toml"), text.replace("encrypt = true\n", "")).unwrap();
    let _ = writer.run(&["cat", "1:1", "--output", back.to_str().unwrap()]).succeeded();
    assert!(fs::read(&back).unwrap() == content);
}

#[test]
fn keys_are_private_and_the_words_about_credentials_are_true() {
    let scratch = folder("credentials");
    let dir = scratch.path().join("cluster");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(binary::clovis());
        command.args(arguments).env("CLOVIS_CONFIG", dir.join("clovis.toml"));
        processes::run(&mut command, scratch.path(), COMMAND_LIMIT)
    };
    let made = run(&[
        "cluster",
        "init",
        "--dir",
        dir.to_str().unwrap(),
        "--security",
        "certificates",
        "--device-size",
        "16M",
    ])
    .succeeded()
    .text()
    .to_owned();
    assert!(made.contains("cluster start") && made.contains("credentials/admin.pem"), "{made}");
    assert!(
        run(&["cluster", "init", "--dir", dir.to_str().unwrap()])
            .refused()
            .contains("holds a cluster already")
    );
    let credentials = dir.join("credentials");
    for key in ["ca.key", "admin.pem", "control.pem", "server-1.pem", "server-4.pem"] {
        assert_eq!(mode(&credentials.join(key)), 0o600, "{key}");
    }
    assert!(!fs::read_to_string(dir.join("clovis.toml")).unwrap().contains("credential ="));

    let text =
        run(&["credential", "create", "nightly", "--rights", "connect,read", "--expires", "1h", "--json"]);
    let created: Value = serde_json::from_str(text.succeeded().text()).unwrap();
    assert_eq!(mode(Path::new(created["file"].as_str().unwrap())), 0o600);
    let shown: Value =
        serde_json::from_str(run(&["credential", "show", "nightly", "--json"]).succeeded().text()).unwrap();
    for key in ["name", "id", "rights", "expires_unix_s", "state"] {
        assert_eq!(shown[key], created[key], "{key}");
    }
    assert_eq!((shown["state"].as_str(), shown["rights"][1].as_str()), (Some("good"), Some("read")));
    assert!(run(&["credential", "create", "nightly"]).refused().contains("revoke it first"));
    let listed = run(&["credential", "list"]).succeeded().text().to_owned();
    assert!(["control", "server-4", "admin", "nightly"].iter().all(|name| listed.contains(name)), "{listed}");

    // A key that others can read is not used, by daemons neither.
    for name in ["admin", "control"] {
        fs::set_permissions(credentials.join(format!("{name}.pem")), fs::Permissions::from_mode(0o644))
            .unwrap();
    }
    let said = run(&["ls"]);
    assert!(said.refused().contains("open to others (mode 0644)"), "{}", said.stderr);
    let said = run(&["control", "--config", dir.join("clovis.toml").to_str().unwrap()]);
    assert!(said.refused().contains("chmod 600"), "{}", said.stderr);
    // A client's credential makes no daemon.
    let nightly = credentials.join("nightly.pem");
    let config = dir.join("clovis.toml");
    let said =
        run(&["control", "--config", config.to_str().unwrap(), "--credential", nightly.to_str().unwrap()]);
    assert!(said.refused().contains("lacks the right `serve`"), "{}", said.stderr);
}
