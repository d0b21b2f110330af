//! Somebody on the wire of a cluster that encrypts everything: what it changes is refused by name, and what it sees says nothing.

use std::fs;
use std::path::Path;
use std::time::Duration;

use clovis_tests::processes::{self, Finished};
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
