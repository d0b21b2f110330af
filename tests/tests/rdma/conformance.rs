//! The tests of the verbs edge and the conformance suite of the backend, on devices that have everything and on devices that lack it.

use clovis_tests::standin;

use crate::{is_ready, run};

/// Runs the tests of `program` that `filter` names, and checks that there were as many as expected at least.
fn all_pass(package: &str, target: &str, filter: &[&str], least: usize, words: &str, mask: &str) {
    if !is_ready() {
        return;
    }
    let program = standin::test_program(package, target);
    let finished = run(&program, words, filter, &[("CLOVIS_RDMA_WITHOUT", mask)]);
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    assert!(
        finished.status.success(),
        "on a device with {words:?}, without {mask:?}:\n{said}\n{}",
        finished.stderr
    );
    let passed = said.lines().find_map(|line| {
        let (_, rest) = line.split_once("test result: ok. ")?;
        rest.split_once(" passed")?.0.parse::<usize>().ok()
    });
    assert!(passed.is_some_and(|passed| passed >= least), "{passed:?} of {least} tests:\n{said}");
    assert!(
        !said.contains("skipped:") && !finished.stderr.contains("skipped:"),
        "{said}\n{}",
        finished.stderr
    );
}

fn edge(words: &str) {
    all_pass("verbs-sys", "device", &["--test-threads=1"], 9, words, "");
}

fn backend(words: &str) {
    let suites = ["verbs::", "verbs_secured::", "verbs_sealed::", "--test-threads=1"];
    all_pass("verbs-net", "verbs_net", &suites, 102, words, "");
}

#[test]
fn the_edge_works_with_all_that_a_device_can_have() {
    edge("");
}

#[test]
fn the_edge_works_on_a_device_that_has_little() {
    edge("no-windows no-srq no-extended inline=0");
}

#[test]
fn the_backend_conforms_with_all_that_a_device_can_have() {
    backend("");
}

#[test]
fn the_backend_conforms_without_memory_windows() {
    backend("no-windows");
}

#[test]
fn the_backend_conforms_without_a_shared_receive_queue() {
    backend("no-srq");
}

#[test]
fn the_backend_conforms_without_extended_queues() {
    backend("no-extended");
}

#[test]
fn the_backend_conforms_on_a_device_that_has_little() {
    backend("no-windows no-srq no-extended inline=0");
}

/// The work-arounds for rxe's provider are right on a provider that is right.
#[test]
fn the_backend_conforms_on_a_device_that_says_it_is_rxe() {
    backend("vendor=0xffffff");
}

/// The mask of our own does what a device that lacks it does.
#[test]
fn the_mask_hides_what_the_device_has() {
    all_pass("verbs-net", "verbs_net", &["verbs::pull", "verbs::push"], 3, "", "windows,srq,extended,inline");
}
