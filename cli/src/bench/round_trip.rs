//! Peers of the round trip of a small message over TCP loopback: `sockperf ping-pong`, `ucx_perftest tag_lat` and `am_lat`.
//!
//! A sample's "bytes" are those of the messages one way, so that a ratio of rates is a ratio of round trips per second. sockperf
//! blocks in its reads, as programs on sockets do; ucx polls and never sleeps.

use std::process::{Command, Stdio};
use std::time::Duration;

use runtime::MonotonicClock;

use super::net::MESSAGE_BYTES;
use super::pairs::Sample;
use super::peer::{Absent, find_program, output};
use super::report::Peer;
use super::serving::Running;
use crate::failure::Failure;
use crate::traffic::free_endpoint;

/// How long a peer's server may take until it listens.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

/// A program that sends a message there and back over TCP loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PingPong {
    /// `sockperf ping-pong --tcp`, blocking.
    Sockperf,
    /// `ucx_perftest -t tag_lat` over its tcp transport, polling.
    Ucx,
    /// `ucx_perftest -t am_lat`: the transport's own active messages, below what `tag_lat` adds; polling.
    UcxActive,
}

impl PingPong {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            PingPong::Sockperf => "sockperf ping-pong",
            PingPong::Ucx => "ucx_perftest tag_lat",
            PingPong::UcxActive => "ucx_perftest am_lat",
        }
    }

    /// What a report says of it. `absent`: it is not installed.
    pub fn or_absent(self, absent: Option<Absent>) -> Peer {
        absent.map_or_else(|| Peer::Ran(self.name().to_owned()), |absent| Peer::Absent(absent.0))
    }

    /// The least ratio of our round trips per second to its.
    pub const fn target(self) -> f64 {
        match self {
            // At most 1.1 times its round trip.
            PingPong::Sockperf => 1.0 / 1.1,
            // No slower.
            PingPong::Ucx | PingPong::UcxActive => 1.0,
        }
    }

    const fn program(self) -> &'static str {
        match self {
            PingPong::Sockperf => "sockperf",
            PingPong::Ucx | PingPong::UcxActive => "ucx_perftest",
        }
    }

    /// Errors: it is not installed.
    pub fn find(self) -> Result<(), Absent> {
        let package = match self {
            PingPong::Sockperf => "sockperf",
            PingPong::Ucx | PingPong::UcxActive => "ucx-utils",
        };
        find_program(self.program()).map(drop).ok_or_else(|| Absent(format!("apt-get install {package}")))
    }

    /// One run of about `lasting`, whose round trips take about `expected`.
    pub fn sample(self, lasting: Duration, expected: Duration) -> Result<Sample, Failure> {
        let port = free_endpoint()?.port().unwrap_or_default();
        let server = self.serve(port)?;
        wait_until_it_listens(port, self)?;
        let text = self.ask(port, lasting, expected)?;
        drop(server);
        let parsed = match self {
            PingPong::Sockperf => parse_sockperf(&text),
            PingPong::Ucx | PingPong::UcxActive => parse_ucx(&text),
        };
        parsed.ok_or_else(|| Failure::new(format!("{} printed no result", self.program())))
    }

    fn command(self) -> Command {
        let mut command = Command::new(self.program());
        // Others ignore them.
        command.env("UCX_TLS", "tcp").env("UCX_NET_DEVICES", "lo");
        command
    }

    fn serve(self, port: u16) -> Result<Running, Failure> {
        let port = port.to_string();
        let mut command = self.command();
        match self {
            PingPong::Sockperf => command.args(["server", "--tcp", "-i", "127.0.0.1", "-p", &port]),
            PingPong::Ucx | PingPong::UcxActive => command.args(["-p", &port]),
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Failure::while_doing(format!("starting {}", self.program())))?;
        Ok(Running(child))
    }

    fn ask(self, port: u16, lasting: Duration, expected: Duration) -> Result<String, Failure> {
        let (port, bytes) = (port.to_string(), MESSAGE_BYTES.to_string());
        let mut command = self.command();
        match self {
            PingPong::Sockperf => {
                // It leaves half a second at both ends out.
                let seconds = (lasting.as_secs() + 1).to_string();
                command
                    .args(["ping-pong", "--tcp", "-i", "127.0.0.1", "-p", &port])
                    .args(["-t", &seconds, "-m", &bytes]);
            }
            PingPong::Ucx | PingPong::UcxActive => {
                let count =
                    (lasting.as_nanos() / expected.as_nanos().max(1)).clamp(1000, 10_000_000).to_string();
                match self {
                    PingPong::UcxActive => command.args(["-t", "am_lat", "-d", "lo", "-x", "tcp"]),
                    _ => command.args(["-t", "tag_lat"]),
                };
                command.args(["-s", &bytes, "-n", &count, "-w", "200", "-f", "-p", &port, "127.0.0.1"]);
            }
        }
        output(&mut command)
    }
}

/// Looks at the socket tables of the kernel instead of connecting: ucx takes the first connection for its client.
fn wait_until_it_listens(port: u16, peer: PingPong) -> Result<(), Failure> {
    let clock = MonotonicClock::start();
    let deadline = clock.now() + LISTENS_WITHIN;
    while clock.now() < deadline {
        if is_listening(port) {
            return Ok(());
        }
        #[allow(clippy::disallowed_methods)] // the condition is another program's, which does not tell
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(Failure::new(format!("{} does not listen after {} s", peer.program(), LISTENS_WITHIN.as_secs())))
}

fn is_listening(port: u16) -> bool {
    let listens = |table: &str| {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        text.lines().skip(1).any(|line| {
            let mut words = line.split_whitespace().skip(1);
            let local = words.next().and_then(|word| word.rsplit(':').next().map(str::to_owned));
            let state = words.nth(1);
            local.is_some_and(|local| u16::from_str_radix(&local, 16) == Ok(port)) && state == Some("0A")
        })
    };
    listens("/proc/net/tcp") || listens("/proc/net/tcp6")
}

/// `[Valid Duration] RunTime=2.550 sec; SentMessages=24106; ReceivedMessages=24106`
fn parse_sockperf(text: &str) -> Option<Sample> {
    let line = text.lines().find(|line| line.contains("[Valid Duration]"))?;
    let after = |name: &str| line.split(name).nth(1);
    let seconds = after("RunTime=")?.split_whitespace().next()?.parse::<f64>().ok()?;
    let count = after("ReceivedMessages=")?.split(';').next()?.trim().parse::<u64>().ok()?;
    sample(count, seconds)
}

/// The last line of `-f`: iterations, three latencies one way in microseconds, and rates.
fn parse_ucx(text: &str) -> Option<Sample> {
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<f64>().ok());
    let count = numbers.next()?;
    let overall_us = numbers.nth(2)?;
    if !(1.0..1e12).contains(&count) {
        return None;
    }
    // A whole number in this range.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    sample(count as u64, count * overall_us * 2.0 / 1e6)
}

fn sample(round_trips: u64, seconds: f64) -> Option<Sample> {
    let took = Duration::try_from_secs_f64(seconds).ok().filter(|took| !took.is_zero())?;
    Some(Sample { bytes: round_trips * base::units::wide(MESSAGE_BYTES), took })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_peers_print_is_understood() {
        let text = "sockperf: [Total Run] RunTime=3.0 sec; SentMessages=9; ReceivedMessages=9\n\
                    sockperf: [Valid Duration] RunTime=2.500 sec; SentMessages=24106; ReceivedMessages=24106\n";
        let read = parse_sockperf(text).unwrap();
        assert_eq!((read.bytes, read.took), (24_106 * 64, Duration::from_millis(2500)));
        let text = "Final:                 50000      5.609     5.908     6.000       10.33      10.33      169275      169275\n";
        let read = parse_ucx(text).unwrap();
        assert_eq!((read.bytes, read.took), (50_000 * 64, Duration::from_millis(600)));
        assert_eq!(parse_ucx("nothing"), None);
        assert_eq!(parse_sockperf("sockperf: No messages were received"), None);
    }
}
