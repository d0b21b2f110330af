//! The status page: what it shows is what `clovis status --json` says, told over HTTP and read in a browser.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::http::get;
use clovis_tests::{processes, wait};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(90);

fn status(cluster: &RunningCluster) -> Value {
    serde_json::from_str(cluster.run(&["status", "--json"]).succeeded().text()).unwrap()
}

/// What `clovis status --json` says, as the page has it in its tiles.
fn figures_of(status: &Value) -> BTreeMap<String, u64> {
    let count = |list: &str| {
        let online = status[list].as_array().unwrap().iter().filter(|one| one["state"] == "online");
        u64::try_from(online.count()).unwrap()
    };
    let blocks = |key: &str| -> u64 {
        let devices =
            status["devices"].as_array().unwrap().iter().filter(|one| !one["free_blocks"].is_null());
        devices.map(|device| device[key].as_u64().unwrap()).sum()
    };
    let mut figures = BTreeMap::from([
        ("devices_online".to_owned(), count("devices")),
        ("servers_online".to_owned(), count("processes")),
        ("used_bytes".to_owned(), (blocks("size_blocks") - blocks("free_blocks")) * 4096),
        ("configuration_version".to_owned(), status["configuration_version"].as_u64().unwrap()),
    ]);
    let load = &status["load"];
    for (figure, key) in [
        ("sample", "number"),
        ("reads", "reads"),
        ("read_bytes", "read_bytes"),
        ("read_p99_ns", "read_p99_ns"),
        ("writes", "writes"),
        ("written_bytes", "written_bytes"),
        ("write_p99_ns", "write_p99_ns"),
    ] {
        figures.extend(load[key].as_u64().map(|value| (figure.to_owned(), value)));
    }
    figures
}

/// The value of an attribute that follows `from` in a page.
fn attribute<'a>(page: &'a str, from: &str, name: &str) -> Option<&'a str> {
    let behind = page.split_once(from)?.1;
    let (_, value) = behind.split_once('>')?.0.split_once(&format!("{name}=\""))?;
    Some(value.split_once('"')?.0)
}

/// The page as a browser has it once its script has run.
fn browse(port: u16, folder: &Path) -> String {
    let mut command = Command::new("chromium");
    let profile = folder.join("browser");
    command
        // Chromium's own sandbox does not run as root; what it opens here is ours.
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(["--virtual-time-budget=3000", "--dump-dom"])
        .arg(format!("http://127.0.0.1:{port}/"))
        .env("HOME", folder);
    processes::run(&mut command, folder, COMMAND_LIMIT).succeeded().text().to_owned()
}

fn figures_in(page: &str) -> BTreeMap<String, u64> {
    let tiles = page.split("data-figure=\"").skip(1);
    let figure = |tile: &str| {
        let name = tile.split_once('"')?.0.to_owned();
        Some((name, attribute(tile, "\"", "data-value")?.parse().ok()?))
    };
    tiles.filter_map(figure).collect()
}

#[test]
fn the_page_shows_what_status_says_under_load_and_after_a_failure() {
    // Control's port and those of four servers.
    let port = processes::free_ports(5);
    let shape = ["--device-size", "32M", "--servers", "4", "--devices-per-server", "1", "--layout", "2+1+1"];
    let port_word = port.to_string();
    let options: Vec<&str> = shape.into_iter().chain(["--metrics-port", &port_word]).collect();
    let cluster = RunningCluster::start("page", &options);
    let (head, page) = get(port, "/");
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("text/html"), "{head}");
    assert!(head.contains("default-src 'none'"), "{head}");
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        let own = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!own.contains(outside), "the page reaches for {outside}");
    }
    assert!(get(port, "/nothing").0.starts_with("HTTP/1.1 404"));
    assert!(get(port, "/load.json?after=x").0.starts_with("HTTP/1.1 400"));
    assert!(get(port + 1, "/").0.starts_with("HTTP/1.1 404"), "a server has no page");
    let credential = fs::read_to_string(cluster.dir().join("clovis.toml")).unwrap();
    let credential = credential.lines().find(|line| line.starts_with("credential")).unwrap().to_owned();
    let secret = credential.split('"').nth(1).unwrap();
    assert!(!get(port, "/status.json").1.contains(secret));

    let has_browser = processes::have("chromium", "the page in a browser");
    let shown = || match has_browser {
        true => figures_in(&browse(port, cluster.scratch())),
        false => {
            let told: Value = serde_json::from_str(&get(port, "/status.json").1).unwrap();
            figures_of(&told["status"])
        }
    };
    let file = cluster.scratch().join("file");
    fs::write(&file, vec![7; 1 << 20]).unwrap();
    let stops = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stops.load(Ordering::Acquire) {
                let _ = cluster.run(&["cp", "--quiet", file.to_str().unwrap(), "1:1"]).succeeded();
                let _ = cluster.run(&["cat", "1:1"]).succeeded();
            }
        });
        // The same sample before and after the page was made: then both told of the same. What is used changes all the time.
        let steady = |mut figures: BTreeMap<String, u64>| {
            assert!(figures.remove("used_bytes").is_some_and(|used| used > 0), "{figures:?}");
            figures
        };
        let same = wait::until("a look at the page within one sample", LIMIT, || {
            let before = steady(figures_of(&status(&cluster)));
            let shown = steady(shown());
            let after = steady(figures_of(&status(&cluster)));
            let busy = before.get("writes").is_some_and(|writes| *writes > 0);
            (busy && before == after).then_some((before, shown))
        });
        stops.store(true, Ordering::Release);
        let (told, shown) = same.unwrap();
        assert_eq!(shown, told);
        assert!(told["read_bytes"] > 0 && told["write_p99_ns"] > 0, "{told:?}");
    });
    let load: Value = serde_json::from_str(&get(port, "/load.json?after=0").1).unwrap();
    let samples = load["samples"].as_array().unwrap();
    let newest = samples.last().unwrap()["number"].as_u64().unwrap();
    assert_eq!(samples.len(), usize::try_from(newest).unwrap(), "none is missing since the start");
    let later: Value = serde_json::from_str(&get(port, &format!("/load.json?after={newest}")).1).unwrap();
    assert!(later["samples"].as_array().unwrap().len() <= 1);

    cluster.kill_hard("server-4");
    let told = wait::until("server-4 to be missed, and the page to say so", LIMIT, || {
        let before = figures_of(&status(&cluster));
        let shown = shown();
        let is_missed = before["devices_online"] == 3 && before["servers_online"] == 3;
        (is_missed && before == figures_of(&status(&cluster))).then_some((before, shown))
    });
    let (told, shown) = told.unwrap();
    assert_eq!(shown, told);
    if has_browser {
        let page = browse(port, cluster.scratch());
        let device = "data-device=\"0x6b00000000000001:0x4\"";
        assert_eq!(attribute(&page, device, "data-state"), Some("transient"), "{page}");
        assert!(page.contains("server-4 is silent"), "{page}");
        assert!(page.contains("online</span>") && page.contains("lease lost"), "no event: {page}");
    }
}

fn number_in(page: &str, name: &str) -> Option<u64> {
    attribute(page, "id=\"daemon\"", name)?.parse().ok()
}

#[test]
fn the_page_of_a_daemon_that_does_not_lead_shows_what_the_one_that_leads_says_and_never_what_is_old() {
    // Ports of the first control daemon, of two servers, and of the other control daemons.
    let port = processes::free_ports(5);
    let port_word = port.to_string();
    let shape =
        ["--control", "3", "--servers", "2", "--layout", "1+1+0", "--device-size", "16M", "--metrics-port"];
    let cluster = RunningCluster::start("page-daemons", &[&shape[..], &[&port_word]].concat());
    let port_of = |number: u64| if number == 1 { port } else { port + 1 + u16::try_from(number).unwrap() };
    let content = cluster.scratch().join("content");
    fs::write(&content, vec![7; 300_000]).unwrap();
    let _ = cluster.run(&["cp", "--quiet", content.to_str().unwrap(), "1:1"]).succeeded();
    let has_browser = processes::have("chromium", "the page of a daemon that does not lead");
    let told =
        |number: u64| -> Value { serde_json::from_str(&get(port_of(number), "/status.json").1).unwrap() };
    let leader = || {
        let all = cluster.run(&["control", "member", "list", "--json"]).succeeded();
        let all: Value = serde_json::from_str(all.text()).unwrap();
        all.as_array().unwrap().iter().find(|one| one["state"] == "leads")?["number"].as_u64()
    };
    // Each page says who it is of and who leads, and the same as the command.
    let agree = |numbers: &[u64]| {
        for number in numbers {
            wait::until(&format!("page {number} to say what status says"), LIMIT, || {
                let (leads, before) = (leader()?, figures_of(&status(&cluster)));
                let (shown, of, from) = if has_browser {
                    let page = browse(port_of(*number), cluster.scratch());
                    assert!(
                        !page.contains("class=\"old\"") || page.contains("no control daemon leads"),
                        "{page}"
                    );
                    (figures_in(&page), number_in(&page, "data-number")?, number_in(&page, "data-leader")?)
                } else {
                    let told = told(*number);
                    let daemon = &told["daemon"];
                    (figures_of(&told["status"]), daemon["number"].as_u64()?, daemon["leader"].as_u64()?)
                };
                let is_same = before == shown && before == figures_of(&status(&cluster));
                (is_same && of == *number && from == leads).then_some(())
            })
            .unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
        }
    };
    agree(&[1, 2, 3]);
    let first = wait::until("a leader", LIMIT, leader).unwrap();
    let load: Value =
        serde_json::from_str(&get(port_of(if first == 1 { 2 } else { 1 }), "/load.json?after=0").1).unwrap();
    assert!(load["period_ms"].as_u64() > Some(0) && load["samples"].is_array(), "{load}");
    let name = |number: u64| if number == 1 { "control".to_owned() } else { format!("control-{number}") };
    cluster.kill_hard(&name(first));
    let left: Vec<u64> = (1..=3).filter(|number| *number != first).collect();
    agree(&left);
    // Alone, the last one knows of nobody who leads: it shows no figures, and says why.
    let second = wait::until("another leader", LIMIT, leader).unwrap();
    cluster.kill_hard(&name(second));
    let last = left.into_iter().find(|number| *number != second).unwrap();
    wait::until("the last one to know that nobody leads", LIMIT, || {
        let told = told(last);
        told["error"].as_str().is_some_and(|error| error.contains("no control daemon leads")).then_some(())
    })
    .unwrap();
    if has_browser {
        let page = browse(port_of(last), cluster.scratch());
        assert!(page.contains("no control daemon leads") && figures_in(&page).is_empty(), "{page}");
    }
}

/// What `clovis repair status --json` says of the only repair, or nothing if it is over.
fn repair_told(cluster: &RunningCluster) -> Option<Value> {
    let said = cluster.run(&["repair", "status", "--json"]).succeeded();
    let said: Value = serde_json::from_str(said.text()).unwrap();
    Some(said["repairs"][0].clone())
        .filter(|repair| !["done", "null"].contains(&&*repair["state"].to_string().replace('"', "")))
}

/// A repair as told, in the words of the page: device, state, objects, bytes, bytes that are expected.
type Copied = (String, String, [u64; 3]);

fn copied(repair: &Value) -> Copied {
    let word = |key: &str| repair[key].as_str().unwrap().to_owned();
    let numbers = ["objects", "bytes", "expected_bytes"].map(|key| repair[key].as_u64().unwrap());
    (word("device"), word("state"), numbers)
}

/// The only repair in a page.
fn copied_in(page: &str) -> Option<Copied> {
    assert!(page.matches("data-repair=").count() <= 1, "{page}");
    let (_, row) = page.split_once("data-repair=\"")?;
    let device = row.split_once('"')?.0.to_owned();
    let state = attribute(page, "data-repair", "data-state")?.to_owned();
    let number = |name| attribute(page, "data-repair", name)?.parse().ok();
    Some((device, state, [number("data-objects")?, number("data-bytes")?, number("data-expected-bytes")?]))
}

#[test]
fn the_page_shows_a_repair_at_work_as_the_commands_do_and_lets_it_go_when_it_is_over() {
    let port = processes::free_ports(5);
    let port_word = port.to_string();
    let shape = ["--device-size", "64M", "--servers", "4", "--devices-per-server", "1", "--layout", "2+1+1"];
    let options: Vec<&str> =
        shape.into_iter().chain(["--security", "shared", "--metrics-port", &port_word]).collect();
    let cluster = RunningCluster::start("page-repair", &options);
    let file = cluster.scratch().join("file");
    fs::write(&file, vec![9; 1_500_000]).unwrap();
    for object in 0..16 {
        let id = format!("1:{object}");
        let _ = cluster.run(&["cp", "--quiet", file.to_str().unwrap(), &id]).succeeded();
    }
    let has_browser = processes::have("chromium", "a repair on the page in a browser");
    // As the page has it, or what it is made of where there is no browser.
    let shown = || {
        if has_browser {
            let page = browse(port, cluster.scratch());
            let is_hidden = attribute(&page, "id=\"repairing\"", "hidden").is_some();
            let copied = copied_in(&page);
            assert_eq!(is_hidden, copied.is_none(), "{page}");
            return copied;
        }
        let told: Value = serde_json::from_str(&get(port, "/status.json").1).unwrap();
        let repairs = told["status"]["repairs"].as_array().unwrap().clone();
        repairs.iter().find(|repair| repair["state"] != "done").map(copied)
    };
    assert_eq!(shown(), None, "before anything is repaired");
    let own = fs::read_to_string(cluster.dir().join("clovis.toml")).unwrap();
    let slow = cluster.scratch().join("slow.toml");
    fs::write(&slow, format!("{own}\n[profile]\nrepair_bytes_per_second = 131072\n")).unwrap();
    let _ = cluster.run(&["conf", "apply", slow.to_str().unwrap()]).succeeded();
    let _ = cluster.run(&["device", "fail", "1"]).succeeded();
    let _ = cluster.run(&["device", "replace", "1", "--detach"]).succeeded();
    // At work, what is shown lies between two looks.
    let (before, seen, after) = wait::until("a running repair on the page", LIMIT, || {
        let before = copied(&repair_told(&cluster)?);
        let shown = shown()?;
        let after = copied(&repair_told(&cluster)?);
        let is_running = [&before, &shown, &after].iter().all(|(_, state, _)| state == "running");
        (is_running && before.2[1] > 0).then_some((before, shown, after))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
    assert_eq!((seen.0.as_str(), &before.0), ("0x6b00000000000001:0x2", &seen.0));
    for ((first, now), then) in before.2.iter().zip(seen.2).zip(after.2).take(2) {
        assert!(*first <= now && now <= then, "{before:?}, {seen:?}, {after:?}");
    }
    assert!(after.2[1] < after.2[2], "it is nearly over: {after:?}");
    // While it stands still, all three say the same.
    let _ = cluster.run(&["repair", "pause", "1"]).succeeded();
    let (told, seen) = wait::until("the page of a paused repair", LIMIT, || {
        let told = copied(&repair_told(&cluster)?);
        let of_status = copied(&status(&cluster)["repairs"][0]);
        let shown = shown()?;
        (told.1 == "paused" && told == of_status && shown.1 == "paused").then_some((told, shown))
    })
    .unwrap();
    assert_eq!(told, seen);
    let _ = cluster.run(&["conf", "apply", cluster.dir().join("clovis.toml").to_str().unwrap()]).succeeded();
    let _ = cluster.run(&["repair", "resume", "1"]).succeeded();
    wait::until("the end of the repair", LIMIT, || repair_told(&cluster).is_none().then_some(())).unwrap();
    assert_eq!(shown(), None, "it is over");
    if has_browser {
        let page = browse(port, cluster.scratch());
        let device = "data-device=\"0x6b00000000000001:0x2\"";
        assert_eq!(attribute(&page, device, "data-state"), Some("online"), "{page}");
        assert!(page.contains("copy complete"), "no event: {page}");
    }
}
