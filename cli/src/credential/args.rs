//! The words and flags of `clovis credential`.

use std::path::PathBuf;
use std::time::Duration;

use base::{Right, Rights};
use clap::{Args, Subcommand};

/// `clovis credential ...`
#[derive(Debug, Subcommand)]
pub enum CredentialCommand {
    /// Make a credential: a certificate and its key in one file, for a client or another daemon
    Create(CreateArgs),
    /// List the credentials that were made, with their rights, ends and states
    List(ListArgs),
    /// Show what a credential says: name, id, rights, end
    Show(ShowArgs),
    /// Take a credential back: running daemons end its connections within a second
    Revoke(RevokeArgs),
}

/// `clovis credential create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Whose it is: small letters, digits, `.`, `-` and `_`
    pub name: String,
    /// What its holder may do, of connect, read, write, administer
    #[arg(long, value_name = "RIGHTS", default_value = "connect,read,write", value_parser = client_rights)]
    pub rights: Rights,
    /// How long it is good: 90d, 12h, 30m or 45s [default: 365d; of daemons 3650d]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub expires: Option<Duration>,
    /// A daemon's, such as server-5: it may do everything, and be connected to
    #[arg(long, conflicts_with = "rights")]
    pub daemon: bool,
    /// Make the cluster's authority first: for a cluster that shared a secret until now
    #[arg(long)]
    pub new_authority: bool,
    /// File to write [default: credentials/NAME.pem beside the configuration file]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The cluster's configuration file
    #[arg(long, env = "CLOVIS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `clovis credential list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The cluster's configuration file
    #[arg(long, env = "CLOVIS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `clovis credential show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A credential's file, or the name of one in the cluster's folder
    pub credential: PathBuf,
    /// The cluster's configuration file
    #[arg(long, env = "CLOVIS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `clovis credential revoke`
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Name or id: a name means all that were made with it
    pub credential: String,
    /// The cluster's configuration file
    #[arg(long, env = "CLOVIS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Rights that a client may have, and can do something with.
fn client_rights(text: &str) -> Result<Rights, String> {
    let rights: Rights = text.parse().map_err(|error: base::rights::ParseRightsError| error.to_string())?;
    if rights.has(Right::Serve) {
        return Err("`serve` is for daemons: use --daemon".to_owned());
    }
    if !rights.has(Right::Connect) {
        return Err("without `connect` the others open nothing: write connect,...".to_owned());
    }
    Ok(rights)
}

/// `90d`, `12h`, `30m`, `45s`, at most a hundred years.
fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write 90d, 12h, 30m or 45s");
    let split = text.len().checked_sub(1).filter(|at| text.is_char_boundary(*at)).ok_or_else(wrong)?;
    let (digits, unit) = text.split_at(split);
    let unit_s = match unit {
        "d" => 86_400,
        "h" => 3600,
        "m" => 60,
        "s" => 1,
        _ => return Err(wrong()),
    };
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    match count.checked_mul(unit_s) {
        Some(seconds @ 1..=3_153_600_000) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{text:?} is not between a second and a hundred years")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_a_bound() {
        for (text, seconds) in [("90d", 7_776_000), ("12h", 43_200), ("30m", 1800), ("45s", 45)] {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "d", "90", "-1d", "1y", "1.5h", "0s", "99999999d", "9ä", "18446744073709551615d"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_client_can_connect_and_is_no_daemon() {
        assert!(client_rights("connect,read").is_ok());
        assert!(client_rights("read").unwrap_err().contains("connect"));
        assert!(client_rights("connect,serve").unwrap_err().contains("--daemon"));
        assert!(client_rights("connect,all").unwrap_err().contains("\"all\" is no right"));
    }
}
