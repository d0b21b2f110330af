//! A failed device whose units are rebuilt in spare units of the others, and brought back to another disk: the commands, and what they say.

use std::fs;

use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::content::bytes;
use clovis_tests::wait;
use serde_json::Value;

use crate::replacements::{has, put, repair, states, until};

fn status(cluster: &RunningCluster) -> String {
    cluster.run(&["status"]).succeeded().text().to_owned()
}

fn pool(cluster: &RunningCluster) -> Value {
    let said = cluster.run(&["pool", "show", "--json"]).succeeded();
    serde_json::from_str(said.text()).expect("one JSON object")
}

#[test]
fn without_a_disk_a_device_goes_to_spare_units_and_comes_back_with_one() {
    let cluster = RunningCluster::start("spares", &["--device-size", "64M"]);
    let content: Vec<Vec<u8>> = (0..12).map(|seed| bytes(seed, 1_500_000)).collect();
    for (index, content) in content.iter().enumerate() {
        put(&cluster, &format!("1:{index}"), content);
    }
    let refused = cluster.run(&["repair", "start", "2"]);
    assert!(refused.refused().contains("is online: nothing is repaired there"), "{}", refused.refused());
    let _ = cluster.run(&["device", "fail", "2"]).succeeded();
    assert!(status(&cluster).contains("`clovis repair start` with its name"), "{}", status(&cluster));
    let whole = pool(&cluster);
    assert_eq!((&whole["may_lose"], &whole["devices_given_up"]), (&1.into(), &1.into()), "{whole}");

    let begun = cluster.run(&["repair", "start", "2", "--detach"]).succeeded();
    assert!(begun.text().contains("are being rebuilt in spare units"), "{}", begun.text());
    let refused = cluster.run(&["device", "replace", "2"]);
    assert!(refused.refused().contains("clovis repair abort"), "{}", refused.refused());
    // Everybody dies on the way; clients write on it.
    until(&cluster, "2", "a copy that is known", |repair| repair["spares"] == "to spare units");
    assert!(status(&cluster).contains("being rebuilt in spare units"), "{}", status(&cluster));
    cluster.kill_hard("server-1");
    cluster.kill_hard("control");
    cluster.start_again(&[]);
    let changed = bytes(77, 900_000);
    put(&cluster, "1:3", &changed);
    wait::until("the device to be in spare units", COMMAND_LIMIT, || {
        (states(&cluster)[2] == "repaired").then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {}\n{}", repair(&cluster, "2"), cluster.logs()));
    let said = status(&cluster);
    assert!(said.contains("its units stand in spare units, and nothing is missing"), "{said}");
    assert!(said.contains("clovis device replace 0x6b00000000000001:0x3"), "{said}");
    assert_eq!(pool(&cluster)["may_lose"], 2, "as many as with all devices");
    let refused = cluster.run(&["device", "attach", "2"]);
    assert!(refused.refused().contains("is repaired"), "{}", refused.refused());

    // As many more as the layout outlives: three of eight are gone then.
    for device in ["0", "5"] {
        let _ = cluster.run(&["device", "fail", device]).succeeded();
    }
    let refused = cluster.run(&["repair", "start", "5"]);
    assert!(
        refused.refused().contains("all 1 spare units of a group stand for other devices"),
        "{}",
        refused.refused()
    );
    for (index, content) in content.iter().enumerate() {
        let wanted = if index == 3 { &changed } else { content };
        has(&cluster, &format!("1:{index}"), wanted, "with three devices lost");
    }
    for device in ["0", "5"] {
        let _ = cluster.run(&["device", "replace", device]).succeeded();
    }

    // Another disk in its place.
    fs::remove_file(cluster.dir().join("devices/device-2.dev")).unwrap();
    let back = cluster.run(&["device", "replace", "2"]).succeeded();
    assert!(back.text().contains("beside the spare units"), "{}", back.text());
    assert!(back.text().contains("is online"), "{}", back.text());
    until(&cluster, "2", "its spare units to be freed", |repair| {
        repair["spares"] == "freeing spare units" && repair["state"] == "done"
    });
    assert_eq!(states(&cluster), ["online"; 8]);
    assert!(status(&cluster).contains("Nothing to do."), "{}", status(&cluster));
    for (index, content) in content.iter().enumerate() {
        let wanted = if index == 3 { &changed } else { content };
        let verified = cluster.run(&["cat", "--verify", &format!("1:{index}")]).succeeded();
        assert!(verified.stdout == *wanted, "1:{index} with parity verified");
    }
    let events = cluster.run(&["events"]).succeeded();
    for cause in ["to spare units", "in spare units", "disk replaced", "copy complete", "spares freed"] {
        assert!(events.text().contains(cause), "{cause}: {}", events.text());
    }
}
