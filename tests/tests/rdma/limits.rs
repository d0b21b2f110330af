//! What a machine may lack or limit: each is told apart, by name, with what to do.

use clovis_tests::{binary, folder, processes, standin};

use crate::{LIMIT, clovis, endpoint, is_ready};

fn refusal(words: &str) -> String {
    let finished = clovis(words, &["net", "selftest", "alone", &endpoint(), "--count", "3"]);
    finished.refused().to_owned()
}

#[test]
fn an_address_that_only_gid_0_has_is_refused_by_name() {
    if !is_ready() {
        return;
    }
    let said = refusal("gid0-only");
    assert!(said.contains("127.0.0.1"), "{said}");
}

#[test]
fn no_device_at_all_says_how_to_get_one() {
    if !is_ready() {
        return;
    }
    let said = refusal("no-device");
    assert!(said.contains("no RDMA device") && said.contains("rdma link"), "{said}");
}

#[test]
fn too_little_lockable_memory_names_the_limit_to_raise() {
    if !is_ready() {
        return;
    }
    let scratch = folder("rdma-memlock");
    // The stand-in refuses what is above its word; the shell sets the limit that the message tells of.
    let mut command = standin::command("sh".as_ref(), "memlock=1048576");
    command.args(["-c", "ulimit -l 1024 && exec \"$0\" net selftest alone \"$1\" --count 3"]);
    command.arg(binary::clovis()).arg(endpoint());
    let finished = processes::run(&mut command, scratch.path(), LIMIT);
    let said = finished.refused();
    for word in ["memlock", "1048576", "ulimit -l unlimited", "LimitMEMLOCK"] {
        assert!(said.contains(word), "{said}");
    }
}

/// What a stranger says with its request is shorter than ours: it is turned away before memory is spent on it, and the
/// dialler is told that nobody serves it.
#[test]
fn private_data_cut_short_is_turned_away() {
    if !is_ready() {
        return;
    }
    for bytes in ["0", "1", "15", "55"] {
        let words = format!("private={bytes}");
        let said =
            clovis(&words, &["net", "selftest", "alone", &endpoint(), "--count", "3", "--timeout", "2"]);
        assert!(said.refused().contains("127.0.0.1@o2ib"), "{}", said.stderr);
    }
}

#[test]
fn a_mask_with_an_unknown_word_is_refused() {
    if !is_ready() {
        return;
    }
    let scratch = folder("rdma-mask");
    let mut command = standin::command(binary::clovis(), "");
    command.args(["net", "list"]).env("CLOVIS_RDMA_WITHOUT", "windows,wings");
    let finished = processes::run(&mut command, scratch.path(), LIMIT);
    assert!(finished.refused().contains("wings"), "{}", finished.stderr);
}
