//! Peers that are none: garbage, silence and thousands of connections on the ports of a running cluster; another credential;
//! several clients at once.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::processes::Process;

/// Ports of the cluster's daemons, control first: transfer machine ids of a cluster lie in a row, as its ports do.
fn ports(cluster: &RunningCluster) -> Vec<u16> {
    let text = fs::read_to_string(cluster.dir().join("clovis.toml")).expect("a cluster has its file");
    let endpoints = text.split('"').filter_map(|word| word.parse::<base::Endpoint>().ok());
    endpoints.filter_map(|endpoint| endpoint.port()).collect()
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a daemon listens");
    stream.set_read_timeout(Some(COMMAND_LIMIT)).expect("a socket takes a timeout");
    stream
}

#[test]
fn garbage_and_silence_harm_nobody() {
    let cluster = RunningCluster::start("garbage", &["--device-size", "16M"]);
    let file = cluster.scratch().join("file");
    fs::write(&file, b"kept").unwrap();
    let _ = cluster.run(&["cp", "--quiet", file.to_str().unwrap(), "1:1"]).succeeded();
    let ports = ports(&cluster);
    assert_eq!(ports.len(), 5);

    let mut random = fastrand::Rng::with_seed(14);
    for port in &ports {
        for size in [1, 64, 4096, 70_000] {
            let mut noise = vec![0; size];
            random.fill(&mut noise);
            // Refused writes and resets are what a peer like this deserves; a header's worth is answered by an end.
            let mut stream = connect(*port);
            let sent = stream.write_all(&noise).is_ok();
            if sent && size >= 64 {
                let mut answer = Vec::new();
                let _reset_or_end = stream.read_to_end(&mut answer);
            }
        }
    }
    // Half-open ones, held while others work.
    let silent: Vec<TcpStream> = (0..600).map(|index| connect(ports[index % ports.len()])).collect();
    assert_eq!(cluster.run(&["cat", "1:1"]).succeeded().text(), "kept");
    let _ = cluster.run(&["cp", "--quiet", file.to_str().unwrap(), "2:2"]).succeeded();
    drop(silent);
    assert_eq!(cluster.run(&["ls", "-1"]).succeeded().text(), "1:1\n2:2\n");
    assert!(!cluster.logs().contains("panicked"), "{}", cluster.logs());
}

#[test]
fn another_credential_is_refused_at_once() {
    let cluster = RunningCluster::start("credential", &["--security", "shared", "--device-size", "16M"]);
    let text = fs::read_to_string(cluster.dir().join("clovis.toml")).unwrap();
    let (head, tail) = text.split_once("credential = \"").expect("the file has a credential");
    let other = cluster.scratch().join("other.toml");
    fs::write(&other, format!("{head}credential = \"{}{}", "0".repeat(64), &tail[64..])).unwrap();
    let refused = cluster.run(&["ls", "--config", other.to_str().unwrap()]);
    let said = refused.refused();
    assert!(said.lines().count() == 1 && said.contains("credential"), "{said}");
    assert!(!said.contains(&tail[..64]), "the message gives the credential away");
}

#[test]
fn clients_at_the_same_time_do_not_mix() {
    const CLIENTS: u64 = 6;
    let cluster = RunningCluster::start("clients", &["--device-size", "64M"]);
    let contents: Vec<Vec<u8>> = (0..CLIENTS)
        .map(|seed| {
            let mut content = vec![0; 3_000_000];
            fastrand::Rng::with_seed(seed).fill(&mut content);
            content
        })
        .collect();
    let files: Vec<_> = (0..CLIENTS).map(|index| cluster.scratch().join(format!("source-{index}"))).collect();
    for (file, content) in files.iter().zip(&contents) {
        fs::write(file, content).unwrap();
    }
    let start = |file: &std::path::Path, id: &str| {
        let mut command = cluster.command(&["cp", "--quiet", file.to_str().unwrap(), id]);
        Process::start(&mut command, cluster.scratch())
    };
    // Each to an object of its own, and all to one.
    let mut own: Vec<Process> =
        files.iter().enumerate().map(|(index, file)| start(file, &format!("5:{index}"))).collect();
    let mut shared: Vec<Process> = files.iter().map(|file| start(file, "6:6")).collect();
    for process in &mut own {
        assert!(process.wait(COMMAND_LIMIT).unwrap().success(), "{}", process.said());
    }
    let winners = shared
        .iter_mut()
        .filter_map(|process| {
            let is_winner = process.wait(Duration::from_secs(60)).unwrap().success();
            assert!(is_winner || !process.said().contains("panicked at"), "{}", process.said());
            is_winner.then_some(())
        })
        .count();
    assert!(winners >= 1, "of several writers none won");
    for (index, content) in contents.iter().enumerate() {
        assert!(cluster.run(&["cat", &format!("5:{index}")]).succeeded().stdout == *content, "5:{index}");
    }
    let won = cluster.run(&["cat", "6:6"]).succeeded().stdout;
    assert!(contents.contains(&won), "6:6 is no one's content as a whole");
}
