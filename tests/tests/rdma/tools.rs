//! `clovis net` with RDMA: what it lists, and what its selftest moves and counts.

use std::time::Duration;

use clovis_tests::processes::Process;
use clovis_tests::{binary, folder, standin, wait};

use crate::{LIMIT, clovis, clovis_json, endpoint, is_ready};

#[test]
fn list_shows_devices_ports_gids_and_why() {
    if !is_ready() {
        return;
    }
    let listed = clovis_json("addresses=127.0.0.1+127.0.0.2", &["net", "list", "--json"]);
    let rdma = &listed["rdma"];
    assert!(rdma["why_none"].is_null(), "{listed}");
    let devices = rdma["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 2, "{listed}");
    assert_eq!(devices[0]["can"]["memory_windows"], true);
    assert_eq!(devices[0]["ports"][0]["state"], "active");
    assert_eq!(devices[0]["ports"][0]["gids"].as_array().unwrap().len(), 3);
    let nids = rdma["nids"].as_array().unwrap();
    let second = nids.iter().find(|nid| nid["nid"] == "127.0.0.2@o2ib").unwrap();
    // Never index 0, and version 2 where version 1 has the address too.
    assert_eq!((second["device"].as_str(), second["gid_index"].as_u64()), (Some("standin1"), Some(2)));
    assert!(second["why"].as_str().unwrap().contains("RoCE v2"), "{second}");

    let text = clovis("", &["net", "list"]).succeeded();
    for word in ["standin0", "127.0.0.1@o2ib", "active", "memory-windows", "shared-receive-queue"] {
        assert!(text.text().contains(word), "{}", text.text());
    }
}

#[test]
fn list_says_what_a_device_lacks() {
    if !is_ready() {
        return;
    }
    let listed = clovis_json("no-windows no-srq", &["net", "list", "--json"]);
    let can = &listed["rdma"]["devices"][0]["can"];
    assert_eq!((&can["memory_windows"], &can["shared_receive_queue"]), (&false.into(), &false.into()));
    let none = clovis_json("no-device", &["net", "list", "--json"]);
    assert!(none["rdma"]["why_none"].as_str().unwrap().contains("no RDMA device"), "{none}");
    let down = clovis("port-down", &["net", "list"]).succeeded();
    assert!(down.text().contains("not active"), "{}", down.text());
    let bare = clovis("gid0-only", &["net", "list"]).succeeded();
    assert!(bare.text().contains("no GID has an IPv4 address"), "{}", bare.text());
}

/// A client and a server in processes of their own: verified content, nothing copied, nothing registered in steady state, and all counts there.
#[test]
fn two_processes_move_verified_bulk_without_a_copy() {
    if !is_ready() {
        return;
    }
    let scratch = folder("rdma-selftest");
    let server_at = endpoint();
    let mut command = standin::command(binary::clovis(), "");
    let mut server =
        Process::start(command.args(["net", "selftest", "server", server_at.as_str()]), scratch.path());
    wait::until("the server's first line", LIMIT, || {
        server.said().contains("selftest serves at").then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", server.said()));
    for (what, bulk_size) in [("write", "1M"), ("read", "1M"), ("write", "4K"), ("ping", "4K")] {
        for verify in ["simple", "full"] {
            let found = clovis_json(
                "",
                &[
                    "net",
                    "selftest",
                    "client",
                    &server_at,
                    "--what",
                    what,
                    "--bulk-size",
                    bulk_size,
                    "--count",
                    "60",
                    "--concurrency",
                    "4",
                    "--verify",
                    verify,
                    "--json",
                ],
            );
            assert_eq!(found["operations"], 60, "{found}");
            assert_eq!(found["errors"]["wrong_content"], 0, "{found}");
            for side in ["client", "server_side"] {
                let side = &found[side];
                assert_eq!(side["registrations"], 0, "{found}");
                // Messages of 64 bytes and their exposures; a block of bulk would be 4096 and more.
                assert!(side["copied_bytes_per_operation"].as_f64().unwrap() < 1024.0, "{found}");
                for count in ["doorbells", "work_requests", "completions"] {
                    assert!(side[count].as_u64().unwrap() > 0, "{count}: {found}");
                }
                assert!(side["doorbells"].as_u64() <= side["work_requests"].as_u64(), "{found}");
                assert!(side["cpu_us_per_operation"].as_f64().unwrap() > 0.0, "{found}");
            }
        }
    }
    server.ask_to_end().unwrap();
    assert!(server.wait(Duration::from_secs(20)).unwrap().success(), "{}", server.said());
}
