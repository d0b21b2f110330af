//! Somebody on the wire of a cluster that encrypts everything: what it changes is refused by name, and what it sees says nothing.

use std::fs;
use std::path::PathBuf;

use clovis_tests::processes::{self, Cleanup, Finished};
use clovis_tests::{binary, folder, standin};

use crate::{LIMIT, is_ready, run};

/// The tests of `verbs-net/src/conformance/tampered.rs`, and what the hand on the wire does in each.
const TAMPERED: [(&str, &str); 14] = [
    ("a_flipped_bit_of_a_pull", "read:flip:12288"),
    ("a_pull_cut_short", "read:cut:12288"),
    ("a_segment_of_the_same_pull_in_the_place_of_another", "read:splice:12288"),
    ("a_pull_of_before_once_more", "read:splice:12288"),
    ("a_flipped_bit_of_a_push", "write:flip:12288"),
    ("a_push_cut_short", "write:cut:12288"),
    ("a_segment_of_the_same_push_in_the_place_of_another", "write:splice:12288"),
    ("a_push_of_before_once_more", "write:splice:12288"),
    ("a_flipped_bit_of_a_message", "send:flip:1080"),
    ("a_message_cut_short", "send:cut:1080"),
    ("a_message_of_before_once_more", "send:splice:1080"),
    ("a_flipped_bit_of_a_long_message", "read:flip:20000"),
    ("without_encryption_nobody_notices", "read:flip:12288"),
    ("a_flipped_bit_of_a_pull", "read:flip:12288 no-windows no-srq no-extended inline=0"),
];

#[test]
fn what_is_changed_on_the_wire_is_refused_by_name() {
    if !is_ready() {
        return;
    }
    let program = standin::test_program("verbs-net", "verbs_net");
    for (name, how) in TAMPERED {
        let (name, words) = (format!("conformance::tampered::{name}"), format!("tamper={how}"));
        let finished = run(&program, &words, &["--ignored", "--exact", &name], &[]);
        let said = String::from_utf8_lossy(&finished.stdout);
        assert!(
            finished.status.success() && said.contains("1 passed"),
            "{words}:\n{said}\n{}",
            finished.stderr
        );
    }
}

/// A cluster over RDMA whose processes all have the stand-in in front, its users' commands too.
struct Cluster {
    /// First, as it is dropped first: it needs the folder.
    _stop: Cleanup,
    scratch: tempfile::TempDir,
    words: String,
}

impl Cluster {
    fn start(encrypt: bool) -> Cluster {
        let scratch = folder("rdma-encrypted");
        let words = format!("tap={}", scratch.path().join("tap").display());
        let mut stop = standin::command(binary::clovis(), "");
        stop.args(["cluster", "stop", "--dir"]).arg(scratch.path().join("cluster"));
        let cluster = Cluster { _stop: Cleanup::at_end(stop), scratch, words };
        let dir = cluster.path("cluster");
        let mut arguments = vec!["cluster", "start", "--dir", dir.to_str().unwrap()];
        arguments.extend(["--transport", "verbs", "--security", "certificates", "--device-size", "16M"]);
        arguments.extend(encrypt.then_some("--encrypt"));
        let _ = cluster.run(&cluster.words, &arguments).succeeded();
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn run(&self, words: &str, arguments: &[&str]) -> Finished {
        let mut command = standin::command(binary::clovis(), words);
        command.args(arguments).env("CLOVIS_CONFIG", self.path("cluster/clovis.toml"));
        processes::run(&mut command, self.scratch.path(), LIMIT)
    }

    /// What has gone over the wire until now, of all processes.
    fn tapped(&self) -> Vec<u8> {
        fs::read(self.path("tap")).unwrap()
    }
}

fn count(what: &[u8], within: &[u8]) -> usize {
    within.windows(what.len()).filter(|window| *window == what).count()
}

const CONTENT: &[u8] = b"plain words that somebody on the wire would like to read\n";
const NAME: &str = "the-name-of-a-lock";

/// Objects in and out, one named lock, all processes real. Answers how often the wire shows the content, the name, and two words that any frame
/// and any item begins with.
fn seen_on_the_wire(encrypt: bool) -> [usize; 4] {
    let cluster = Cluster::start(encrypt);
    let content = CONTENT.repeat((1 << 20) / CONTENT.len());
    fs::write(cluster.path("file"), &content).unwrap();
    let file = cluster.path("file");
    let _ = cluster.run(&cluster.words, &["cp", "--quiet", file.to_str().unwrap(), "1:1"]).succeeded();
    let back = cluster.path("back");
    let read = ["cat", "1:1", "--output", back.to_str().unwrap()];
    let _ = cluster.run(&cluster.words, &read).succeeded();
    assert!(fs::read(&back).unwrap() == content);
    let _ = cluster.run(&cluster.words, &["lock", "take", NAME]).succeeded();
    let tapped = cluster.tapped();
    assert!(tapped.len() > 2 * content.len(), "the tap is on the wire");
    [CONTENT, NAME.as_bytes(), b"CL\x01\x05", b"ClIt\x01"].map(|what| count(what, &tapped))
}

#[test]
fn a_tap_finds_no_plaintext_of_an_encrypted_cluster() {
    if !is_ready() {
        return;
    }
    assert_eq!(seen_on_the_wire(true), [0, 0, 0, 0]);
    // The same without encryption shows all of it, so the tap sees what there is.
    let clear = seen_on_the_wire(false);
    assert!(clear[0] > 10_000 && clear[1..].iter().all(|found| *found > 0), "{clear:?}");
}

/// Bytes of a read that are changed on their way to the client do not reach its user.
#[test]
fn a_read_that_is_changed_on_its_way_is_read_again_or_rebuilt() {
    if !is_ready() {
        return;
    }
    let cluster = Cluster::start(true);
    let content: Vec<u8> =
        (0..1u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let (file, back) = (cluster.path("file"), cluster.path("back"));
    fs::write(&file, &content).unwrap();
    let _ = cluster.run("", &["cp", "--quiet", file.to_str().unwrap(), "1:1"]).succeeded();
    // Several times: what else is under way when the connection ends is another each time.
    for how in ["flip", "cut", "splice", "flip", "flip", "flip", "flip", "flip"] {
        let words = format!("tamper=write:{how}:{SEGMENT_BYTES}");
        let read = ["cat", "1:1", "--output", back.to_str().unwrap()];
        let said = cluster.run(&words, &read).succeeded();
        assert!(
            said.stderr.contains("were tampered with"),
            "{words}: nothing of that length came: {}",
            said.stderr
        );
        assert!(fs::read(&back).unwrap() == content, "{words}");
    }
}

/// Bytes of a segment of such a read: a unit.
const SEGMENT_BYTES: usize = 65_536;
