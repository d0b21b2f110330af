//! The status page: what control sees, in a browser. docs/operators.md has the operator's view.
//!
//! One page without outside assets, and two answers in JSON that it asks for. It shows and changes nothing, and holds no secret: states, sizes, rates
//! and names of parts. A control daemon that does not lead shows what the one that leads says ([`view`]). Its figures are those of `clovis status --json`, made by the same code ([`Picture`]).
//!
//! Threads: the exporter's threads ask control's locality through a mailbox ([`Questions`]); control answers between two requests.
//! Bounds: [`QUESTIONS_MAX`] wait; who finds no room, or no answer within [`WITHIN`], is told so. Start at [`Questions::answer_all`].

mod view;

use std::sync::mpsc;
use std::time::Duration;

use control::Control;
use faces::Credential;
use faces::cluster_file::ClusterFile;
use runtime::{LocalityHandle, MailReceiver, MailSender, mailbox};
use serde_json::{Value, json};

use crate::events::event_json;
use crate::metrics::exporter::{Answer, Found, Refusal};
use crate::status::{Load, Picture, sample_json};
use view::Source;

/// Questions that wait for control.
const QUESTIONS_MAX: usize = 16;
/// How long one waits.
const WITHIN: Duration = Duration::from_secs(2);

const PAGE: &str = include_str!("page.html");

/// What a browser asks of control.
enum Question {
    Status,
    Load { after: u64 },
}

struct Letter {
    question: Question,
    answer: mpsc::SyncSender<String>,
}

/// The asking side, for the exporter's threads.
#[derive(Clone)]
pub struct Asker(MailSender<Letter>);

/// The answering side, in control's locality.
pub struct Questions(MailReceiver<Letter>);

/// Both sides, for control in this locality.
pub fn questions(locality: &LocalityHandle) -> (Asker, Questions) {
    let (sender, receiver) = mailbox(QUESTIONS_MAX, locality.unparker());
    (Asker(sender), Questions(receiver))
}

impl Asker {
    /// What is at this path; `None`: nothing.
    pub fn page(&self, path: &str, query: &str) -> Found {
        match path {
            "/" => Some(Ok(Answer::html(PAGE.to_owned()))),
            "/status.json" => Some(self.ask(Question::Status)),
            "/load.json" => {
                let after = query.strip_prefix("after=").unwrap_or("0").parse();
                Some(match after {
                    Ok(after) => self.ask(Question::Load { after }),
                    Err(_) => Err(Refusal::BadRequest("after= takes the number of a sample\n")),
                })
            }
            _ => None,
        }
    }

    fn ask(&self, question: Question) -> Result<Answer, Refusal> {
        let busy = Refusal::Unavailable("control is busy or stopping; ask again\n");
        let (answer, answered) = mpsc::sync_channel(1);
        if self.0.try_send(Letter { question, answer }).is_err() {
            return Err(busy);
        }
        answered.recv_timeout(WITHIN).map(Answer::json).map_err(|_| busy)
    }
}

impl Questions {
    /// Answers until nobody can ask any more.
    pub async fn answer_all(mut self, control: &Control, credential: Option<Credential>) {
        // The file in force and its transaction: a large one is not read anew for every look.
        let mut known: Option<(u64, ClusterFile)> = None;
        while let Some(Letter { question, answer }) = self.0.recv().await {
            let json = match question {
                Question::Status => status(control, credential, &mut known).await,
                Question::Load { after } => load(control, after).await,
            };
            // Whoever asked does not wait any more.
            let _ = answer.try_send(json.unwrap_or_else(|error| json!({ "error": error })).to_string());
        }
    }
}

async fn status(
    control: &Control,
    credential: Option<Credential>,
    known: &mut Option<(u64, ClusterFile)>,
) -> Result<Value, String> {
    let members = control.members();
    let source = Source::of(control, &members)?;
    if let Some((transaction, text)) = source.text(known.as_ref().map(|(number, _)| *number)).await? {
        let file = ClusterFile::parse_hidden(&text, credential).map_err(|error| error.to_string())?;
        *known = Some((transaction, file));
    }
    let Some((transaction, file)) = known else { return Err("control has no cluster file".to_owned()) };
    let seen = source.look().await?;
    let events: Vec<Value> = seen.events.iter().map(event_json).collect();
    let picture = Picture::of(file, &seen.status, Load::of(&seen.load), &seen.repairs);
    // Samples of the load are numbered by whoever decides: another lead, other samples.
    let daemon = json!({ "number": members.own, "leader": members.leader, "term": members.term });
    Ok(json!({ "status": picture.json(*transaction), "events": events, "daemon": daemon }))
}

async fn load(control: &Control, after: u64) -> Result<Value, String> {
    let members = control.members();
    let reply = Source::of(control, &members)?.load(after).await?;
    let samples: Vec<Value> = reply.samples.iter().map(sample_json).collect();
    Ok(json!({ "period_ms": reply.period_ms, "samples": samples }))
}
