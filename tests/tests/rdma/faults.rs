//! Each completion error of verbs, on each kind of operation, in the middle of traffic: the connection ends, another is made, all
//! content that counts is right, and nothing hangs.

use crate::{clovis_json, endpoint, is_ready};

/// Numbers of enum ibv_wc_status: all that reliable connections know, and one that nobody does. Source: verbs.h.
const STATUSES: [u32; 12] = [1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 13, 21];

const LOCAL_OPERATION: u32 = 2;

fn survives(kind: &str, what: &str, status: u32) {
    // The first ones are part of coming up; this one is in the middle.
    let words = format!("fault={kind}:{status}:23");
    let found = clovis_json(
        &words,
        &[
            "net",
            "selftest",
            "alone",
            &endpoint(),
            "--what",
            what,
            "--bulk-size",
            "64K",
            "--count",
            "60",
            "--concurrency",
            "4",
            "--verify",
            "full",
            "--keep-going",
            "--timeout",
            "3",
            "--json",
        ],
    );
    assert_eq!(found["errors"]["wrong_content"], 0, "{words}: {found}");
    // After IBV_WC_LOC_QP_OP_ERR calls wait for a second (the link may be going down): two rounds of four more are lost to it.
    let least = if status == LOCAL_OPERATION { 40 } else { 50 };
    assert!(found["operations"].as_u64().unwrap() >= least, "{words}: {found}");
    let failed: u64 = ["transfer_failed", "timed_out", "peer_lost"]
        .iter()
        .map(|kind| found["errors"][*kind].as_u64().unwrap())
        .sum();
    assert!(failed > 0, "the fault was never met, {words}: {found}");
}

fn each_status(kind: &str, what: &str) {
    if is_ready() {
        for status in STATUSES {
            survives(kind, what, status);
        }
    }
}

#[test]
fn each_error_of_a_send() {
    each_status("send", "ping");
}

#[test]
fn each_error_of_a_read() {
    each_status("read", "write");
}

#[test]
fn each_error_of_a_write() {
    each_status("write", "read");
}

#[test]
fn each_error_of_a_bind() {
    each_status("bind", "write");
}

#[test]
fn each_error_of_a_receive() {
    each_status("receive", "ping");
}
