//! What the status page shows, from where it is true: of this control daemon while it decides, and else of the one that leads, asked as `clovis status` asks.
//!
//! Nothing is kept from one look to the next but the cluster file, by the number of its transaction, so what cannot be had now is not shown as if it
//! could. Bound: [`WITHIN`] for all questions of a look. Thread: control's locality. Start at [`Source::of`].

use std::rc::Rc;
use std::time::Duration;

use base::units::wide;
use base::{Endpoint, Instant};
use control::Control;
use faces::conf_client::StatusPages;
use fops::Fop;
use fops::conf::{ClusterStatusReply, ConfText, Event, EventsGet};
use fops::load::{LoadGet, LoadGetReply};
use fops::member::MembersReply;
use fops::repair::{RepairGet, RepairStatus};
use rpc::{Bulk, CallOptions};

/// How long a look may take: less than a browser is kept waiting.
const WITHIN: Duration = Duration::from_millis(1500);
/// Events of a look at another daemon.
const EVENTS: u64 = 200;

/// Where a look goes.
pub enum Source<'a> {
    /// This daemon decides.
    Here(&'a Control),
    /// Another one leads, at this endpoint.
    Leader {
        /// This daemon, through which it is asked.
        control: &'a Control,
        /// Where it listens.
        endpoint: Endpoint,
        /// Until then.
        until: Instant,
    },
}

/// What was seen.
pub struct Seen {
    /// Processes and devices.
    pub status: ClusterStatusReply,
    /// Every repair that control knows of.
    pub repairs: Vec<RepairStatus>,
    /// The newest sample.
    pub load: LoadGetReply,
    /// The newest, oldest first.
    pub events: Vec<Event>,
}

impl<'a> Source<'a> {
    /// Whoever decides. Error, in words: nobody does, as far as this daemon knows.
    pub fn of(control: &'a Control, members: &MembersReply) -> Result<Source<'a>, String> {
        if control.decides() {
            return Ok(Source::Here(control));
        }
        let leads =
            members.members.iter().find(|one| one.number == members.leader && one.number != members.own);
        match leads.and_then(|leads| leads.endpoint) {
            Some(endpoint) => {
                let until = control.rpc().locality().now() + WITHIN;
                Ok(Source::Leader { control, endpoint, until })
            }
            None => {
                Err("no control daemon leads now, as far as this one knows (`clovis control member list`)"
                    .to_owned())
            }
        }
    }

    /// Text of the cluster file in force, and its transaction; `None`: the one that is `known`. Error: there is none, or it cannot be had.
    pub async fn text(&self, known: Option<u64>) -> Result<Option<(u64, Rc<str>)>, String> {
        if let Source::Here(control) = self {
            let kept = control.cluster_text().ok_or("control was started without a cluster file")?;
            return Ok(Some(kept).filter(|(number, _)| Some(*number) != known));
        }
        let (mut bytes, mut transaction) = (Vec::new(), 0);
        loop {
            let offset = wide(bytes.len());
            let reply = self.ask(&ConfText { transaction, offset }).await?;
            if known == Some(reply.transaction) && offset == 0 {
                return Ok(None);
            }
            // From here on the parts of this very text, also if another comes in force meanwhile.
            transaction = reply.transaction;
            let is_last = reply.part.is_empty() || offset + wide(reply.part.len()) >= reply.total_bytes;
            bytes.extend(reply.part);
            if is_last {
                break;
            }
        }
        let text =
            String::from_utf8(bytes).map_err(|error| format!("the cluster file is no text: {error}"))?;
        Ok(Some((transaction, Rc::from(text))))
    }

    /// Everything else that the page shows.
    pub async fn look(&self) -> Result<Seen, String> {
        let newest = LoadGet { after: 0, most: 1 };
        if let Source::Here(control) = self {
            let (status, repairs, events) = (control.status(), control.repairs(), control.events());
            return Ok(Seen { status, repairs, load: control.load(&newest), events });
        }
        let mut status = StatusPages::default();
        while let Some(ask) = status.ask() {
            status.take(self.ask(&ask).await?);
        }
        let status = status.seen;
        let load = self.ask(&newest).await?;
        let mut repairs: Vec<RepairStatus> = Vec::new();
        loop {
            let reply = self.ask(&RepairGet { after: repairs.last().map(|last| last.device) }).await?;
            let is_last = !reply.has_more || reply.repairs.is_empty();
            repairs.extend(reply.repairs);
            if is_last {
                break;
            }
        }
        let last = self.ask(&EventsGet { after: u64::MAX, wait_ms: 0 }).await?.newest;
        let events = self.ask(&EventsGet { after: last.saturating_sub(EVENTS), wait_ms: 0 }).await?.events;
        Ok(Seen { status, repairs, load, events })
    }

    /// Samples of the load after one that is known.
    pub async fn load(&self, after: u64) -> Result<LoadGetReply, String> {
        let question = LoadGet { after, most: u32::MAX };
        match self {
            Source::Here(control) => Ok(control.load(&question)),
            Source::Leader { .. } => self.ask(&question).await,
        }
    }

    async fn ask<F: Fop>(&self, question: &F) -> Result<F::Reply, String> {
        match self {
            Source::Here(_) => Err("asked of itself".to_owned()),
            Source::Leader { control, endpoint, until } => {
                let answer =
                    control.rpc().call(*endpoint, question, Bulk::none(), CallOptions::until(*until)).await;
                answer
                    .map(|answer| answer.reply)
                    .map_err(|error| format!("the control daemon that leads, at {endpoint}: {error}"))
            }
        }
    }
}
