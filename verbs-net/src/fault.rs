//! Fault rules: what one machine does to frames on their way out, on purpose, for tests of a running cluster.
//!
//! They stand between the protocol core and its backend, so every backend has them, in every build. Without a rule and
//! without a held frame a send costs one test of a flag.
//!
//! A rule is a line of text (`clovis net fault add`), parsed once into a [`FaultRule`]:
//!
//! ```text
//! ACTION [peer=NID|*@NET] [kind=message|bulk|control|all] [one-in=N] [count=N] [ms=N] [error=CLASS]
//! ```
//!
//! | action | what happens |
//! |---|---|
//! | drop | the frame never leaves. A push that lost a piece fails at its deadline, as it would without its acknowledgement |
//! | delay | the frame and all behind it on that connection leave `ms` later, in order |
//! | duplicate | a message leaves twice; other kinds are left alone |
//! | corrupt | the header's checksum is wrong: the receiver counts a breach and ends the connection. Not for READs and WRITEs |
//!
//! | fail | the frame never leaves and its rail reports `error`: health and resends follow their rules (rail.rs) |
//!
//! The first rule that fires decides. Source of the idea: LNet's drop and delay rules (NID, kind, rate, counters per rule).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base::Endpoint;
use base::nid::{Net, Nid};

use crate::frame::FrameBody;
use crate::limits::FAULT_RULES_MAX;
use crate::rail::ErrorClass;

/// What happens to a frame that a rule fires on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultAction {
    /// It is lost.
    Drop,
    /// It leaves later, with all behind it.
    Delay(Duration),
    /// It leaves twice (messages only).
    Duplicate,
    /// Its header is damaged.
    Corrupt,
    /// It fails with an error of this class, as if its rail had said so.
    Fail(ErrorClass),
}

/// Frames that a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// All of them.
    All,
    /// Requests and replies.
    Message,
    /// Pulls and pushes, their data and their answers.
    Bulk,
    /// Hello, credits, pings, close.
    Control,
}

/// Peers that a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultPeer {
    /// All of them.
    All,
    /// All on one net.
    Net(Net),
    /// All endpoints of one nid.
    Nid(Nid),
}

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRule {
    /// What happens.
    pub action: FaultAction,
    /// To whose frames.
    pub peer: FaultPeer,
    /// To which of them.
    pub kind: FaultKind,
    /// To one in so many, by chance; 1 = each.
    pub one_in: u32,
    /// How often at most; 0 = without end.
    pub count_max: u64,
}

/// Names one rule of one machine; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultId(pub u64);

/// A rule with its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultStatus {
    /// Its name.
    pub id: FaultId,
    /// The rule.
    pub rule: FaultRule,
    /// Frames that it looked at: of its peer and kind.
    pub matched: u64,
    /// Frames that it did something to.
    pub fired: u64,
}

/// Why a rule was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// Not one of the actions.
    #[error("unknown action {got:?}: drop, delay, duplicate, corrupt or fail, and the action comes first")]
    Action {
        /// What was given.
        got: String,
    },
    /// Not a field, or a value that it cannot have.
    #[error(
        "{got:?} is no field of a fault rule: peer=ADDRESS@NET or *@NET, kind=message|bulk|control|all, one-in=N, count=N, ms=N, error=CLASS"
    )]
    Field {
        /// What was given.
        got: String,
    },
    /// A delay without its time, or a time without a delay.
    #[error("ms=N belongs to delay, and delay needs it: 1 to {max}")]
    Milliseconds {
        /// The longest delay.
        max: u64,
    },
    /// A failure without its class, or a class without a failure.
    #[error(
        "error=CLASS belongs to fail, and fail needs it: local-interrupt|dropped|aborted|no-route|timeout|error, remote-dropped|error|timeout or network-timeout"
    )]
    Class,
    /// Too many rules.
    #[error("{max} fault rules are in force already: clear some")]
    TooMany {
        /// The limit.
        max: usize,
    },
}

/// The longest delay: longer ones look like a dead peer anyway.
const DELAY_MS_MAX: u64 = 60_000;

impl FromStr for FaultRule {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<FaultRule, FaultError> {
        let mut words = text.split_ascii_whitespace();
        let action = words.next().unwrap_or_default();
        let mut rule = FaultRule {
            action: FaultAction::Drop,
            peer: FaultPeer::All,
            kind: FaultKind::All,
            one_in: 1,
            count_max: 0,
        };
        let mut delay_ms = None;
        let mut class = None;
        for word in words {
            let bad = || FaultError::Field { got: word.to_owned() };
            let (name, value) = word.split_once('=').ok_or_else(bad)?;
            match name {
                "peer" => rule.peer = parse_peer(value).ok_or_else(bad)?,
                "kind" => {
                    rule.kind = match value {
                        "all" => FaultKind::All,
                        "message" => FaultKind::Message,
                        "bulk" => FaultKind::Bulk,
                        "control" => FaultKind::Control,
                        _ => return Err(bad()),
                    }
                }
                "one-in" => {
                    rule.one_in = value.parse().ok().filter(|one_in| *one_in > 0).ok_or_else(bad)?;
                }
                "count" => rule.count_max = value.parse().map_err(|_| bad())?,
                "error" => class = Some(ErrorClass::from_word(value).ok_or_else(bad)?),
                "ms" => delay_ms = Some(value.parse::<u64>().map_err(|_| bad())?),
                _ => return Err(bad()),
            }
        }
        let milliseconds = FaultError::Milliseconds { max: DELAY_MS_MAX };
        if (action == "fail") != class.is_some() {
            return Err(FaultError::Class);
        }
        rule.action = match (action, delay_ms) {
            ("fail", None) => FaultAction::Fail(class.unwrap_or(ErrorClass::LocalError)),
            ("drop", None) => FaultAction::Drop,
            ("duplicate", None) => FaultAction::Duplicate,
            ("corrupt", None) => FaultAction::Corrupt,
            ("delay", Some(ms)) if (1..=DELAY_MS_MAX).contains(&ms) => {
                FaultAction::Delay(Duration::from_millis(ms))
            }
            ("drop" | "duplicate" | "corrupt" | "delay" | "fail", _) => return Err(milliseconds),
            _ => return Err(FaultError::Action { got: action.to_owned() }),
        };
        Ok(rule)
    }
}

fn parse_peer(text: &str) -> Option<FaultPeer> {
    match text.strip_prefix("*@") {
        Some(net) => net.parse().ok().map(FaultPeer::Net),
        None if text == "*" => Some(FaultPeer::All),
        None => text.parse().ok().map(FaultPeer::Nid),
    }
}

impl fmt::Display for FaultRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match self.action {
            FaultAction::Drop => "drop",
            FaultAction::Delay(_) => "delay",
            FaultAction::Duplicate => "duplicate",
            FaultAction::Corrupt => "corrupt",
            FaultAction::Fail(_) => "fail",
        };
        f.write_str(action)?;
        match self.peer {
            FaultPeer::All => {}
            FaultPeer::Net(net) => write!(f, " peer=*@{net}")?,
            FaultPeer::Nid(nid) => write!(f, " peer={nid}")?,
        }
        let kind = match self.kind {
            FaultKind::All => "all",
            FaultKind::Message => "message",
            FaultKind::Bulk => "bulk",
            FaultKind::Control => "control",
        };
        write!(f, " kind={kind}")?;
        if self.one_in > 1 {
            write!(f, " one-in={}", self.one_in)?;
        }
        if self.count_max > 0 {
            write!(f, " count={}", self.count_max)?;
        }
        if let FaultAction::Fail(class) = self.action {
            write!(f, " error={class}")?;
        }
        if let FaultAction::Delay(time) = self.action {
            write!(f, " ms={}", time.as_millis())?;
        }
        Ok(())
    }
}

impl FaultKind {
    fn covers(self, body: &FrameBody) -> bool {
        let kind = match body {
            FrameBody::Put { .. }
            | FrameBody::Get { .. }
            | FrameBody::Reply { .. }
            | FrameBody::Ack { .. } => FaultKind::Message,
            FrameBody::PullRequest { .. }
            | FrameBody::PullData { .. }
            | FrameBody::PushData { .. }
            | FrameBody::PushAck { .. }
            | FrameBody::Nak { .. } => FaultKind::Bulk,
            _ => FaultKind::Control,
        };
        self == FaultKind::All || self == kind
    }
}

impl FaultPeer {
    fn covers(self, endpoint: Option<Endpoint>) -> bool {
        match self {
            FaultPeer::All => true,
            FaultPeer::Net(net) => endpoint.is_some_and(|found| found.nid.net == net),
            FaultPeer::Nid(nid) => endpoint.is_some_and(|found| found.nid == nid),
        }
    }
}

/// The rules of one machine.
pub(crate) struct FaultRules {
    rules: Vec<FaultStatus>,
    next_id: u64,
    /// Of its own, so that a rule changes nothing else that is random.
    random: fastrand::Rng,
}

impl FaultRules {
    pub(crate) fn new(seed: u64) -> FaultRules {
        FaultRules { rules: Vec::new(), next_id: 1, random: fastrand::Rng::with_seed(seed) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub(crate) fn add(&mut self, rule: FaultRule) -> Result<FaultId, FaultError> {
        if self.rules.len() >= FAULT_RULES_MAX {
            return Err(FaultError::TooMany { max: FAULT_RULES_MAX });
        }
        let id = FaultId(self.next_id);
        self.next_id += 1;
        self.rules.push(FaultStatus { id, rule, matched: 0, fired: 0 });
        Ok(id)
    }

    pub(crate) fn list(&self) -> Vec<FaultStatus> {
        self.rules.clone()
    }

    /// Ends one rule, or all; answers how many.
    pub(crate) fn clear(&mut self, id: Option<FaultId>) -> usize {
        let before = self.rules.len();
        self.rules.retain(|status| id.is_some_and(|id| status.id != id));
        before - self.rules.len()
    }

    /// What happens to a frame: the first rule that fires decides.
    pub(crate) fn judge(&mut self, peer: Option<Endpoint>, body: &FrameBody) -> Option<FaultAction> {
        for status in &mut self.rules {
            let rule = &status.rule;
            if !rule.kind.covers(body) || !rule.peer.covers(peer) {
                continue;
            }
            status.matched += 1;
            let is_spent = rule.count_max != 0 && status.fired >= rule.count_max;
            let is_useless = rule.action == FaultAction::Duplicate && !FaultKind::Message.covers(body);
            if is_spent || is_useless || (rule.one_in > 1 && self.random.u32(0..rule.one_in) != 0) {
                continue;
            }
            status.fired += 1;
            return Some(rule.action);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rules_are_read_and_written_as_the_same_line() {
        for line in [
            "drop kind=all",
            "drop peer=10.0.0.7@tcp1 kind=message one-in=20 count=5",
            "delay peer=*@tcp kind=bulk ms=100",
            "duplicate peer=*@lo kind=message",
            "corrupt peer=*@sim kind=control count=1",
        ] {
            assert_eq!(line.parse::<FaultRule>().unwrap().to_string(), line);
        }
        assert_eq!("drop peer=* kind=all".parse::<FaultRule>().unwrap().to_string(), "drop kind=all");
    }

    #[test]
    fn what_is_no_rule_says_what_is() {
        for (line, want) in [
            ("", "unknown action"),
            ("lose", "unknown action"),
            ("drop kind=everything", "kind=everything"),
            ("drop one-in=0", "one-in=0"),
            ("drop count=-1", "count=-1"),
            ("drop peer=nowhere", "peer=nowhere"),
            ("drop peer=*@moon", "peer=*@moon"),
            ("drop now", "\"now\""),
            ("delay", "delay needs it"),
            ("delay ms=0", "delay needs it"),
            ("drop ms=5", "belongs to delay"),
        ] {
            let error = line.parse::<FaultRule>().unwrap_err().to_string();
            assert!(error.contains(want), "{line}: {error}");
        }
    }

    #[test]
    fn rate_count_peer_and_kind_decide() {
        let mut rules = FaultRules::new(1);
        let here: Endpoint = "10.0.0.7@tcp:1:34:0".parse().unwrap();
        let there: Endpoint = "10.0.0.8@tcp:1:34:0".parse().unwrap();
        let target = crate::frame::PutTarget::message(0, 0);
        let message = FrameBody::Put { sequence: 1, extension_bytes: 0, target };
        let one = rules.add("drop peer=10.0.0.7@tcp kind=message count=2".parse().unwrap()).unwrap();
        for want in [Some(FaultAction::Drop), Some(FaultAction::Drop), None] {
            assert_eq!(rules.judge(Some(here), &message), want);
        }
        assert_eq!(rules.judge(Some(there), &message), None);
        assert_eq!(rules.judge(Some(here), &FrameBody::Noop), None);
        assert_eq!(rules.judge(None, &message), None, "a stranger has no nid yet");
        let status = rules.list()[0];
        assert_eq!((status.id, status.matched, status.fired), (one, 3, 2));
        assert_eq!((rules.clear(Some(FaultId(99))), rules.clear(Some(one))), (0, 1));
        rules.add("duplicate".parse().unwrap()).unwrap();
        assert_eq!(rules.judge(Some(here), &FrameBody::Noop), None, "only messages are doubled");
        rules.add("drop one-in=10".parse().unwrap()).unwrap();
        let fired = (0..1000).filter(|_| rules.judge(Some(here), &FrameBody::Noop).is_some()).count();
        assert!((60..150).contains(&fired), "{fired}");
        while rules.add("drop".parse().unwrap()).is_ok() {}
        assert_eq!((rules.list().len(), rules.clear(None)), (FAULT_RULES_MAX, FAULT_RULES_MAX));
    }

    proptest! {
        #[test]
        fn any_line_is_a_rule_or_an_error(line in "[a-z0-9=*@ .-]{0,60}") {
            if let Ok(rule) = line.parse::<FaultRule>() {
                prop_assert_eq!(rule.to_string().parse::<FaultRule>(), Ok(rule));
            }
        }
    }
}
