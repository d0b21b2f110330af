//! The status page: what control sees, in a browser. docs/operators.md has the operator's view.
//!
//! One page without outside assets, and two answers in JSON that it asks for. It shows and changes nothing, and holds no secret: states, sizes, rates
//! and names of parts. Its figures are those of `clovis status --json`, made by the same code ([`Picture`]).
//!
//! Threads: the exporter's threads ask control's locality through a mailbox ([`Questions`]); control answers between two requests.
//! Bounds: [`QUESTIONS_MAX`] wait; who finds no room, or no answer within [`WITHIN`], is told so. Start at [`Questions::answer_all`].

use std::sync::mpsc;
use std::time::Duration;

use control::Control;
use faces::Credential;
use faces::cluster_file::ClusterFile;
use fops::load::LoadGet;
use runtime::{LocalityHandle, MailReceiver, MailSender, mailbox};
use serde_json::{Value, json};

use crate::events::event_json;
use crate::metrics::exporter::{Answer, Found, Refusal};
use crate::status::{Load, Picture, sample_json};

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
                Question::Status => status(control, credential, &mut known),
                Question::Load { after } => load(control, after),
            };
            // Whoever asked does not wait any more.
            let _ = answer.try_send(json.to_string());
        }
    }
}

fn status(
    control: &Control,
    credential: Option<Credential>,
    known: &mut Option<(u64, ClusterFile)>,
) -> Value {
    let Some((transaction, text)) = control.cluster_text() else {
        return json!({ "error": match control.decides() {
            true => "control was started without a cluster file",
            false => "this control daemon does not lead: look at the page of the one that does (`clovis control member list`)",
        } });
    };
    let file = match known.take().filter(|(number, _)| *number == transaction) {
        Some((_, file)) => file,
        None => match ClusterFile::parse_hidden(&text, credential) {
            Ok(file) => file,
            Err(error) => return json!({ "error": error.to_string() }),
        },
    };
    let load = Load::of(&control.load(&LoadGet { after: 0, most: 1 }));
    let (status, repairs) = (control.status(), control.repairs());
    let events: Vec<Value> = control.events().iter().map(event_json).collect();
    let json =
        json!({ "status": Picture::of(&file, &status, load, &repairs).json(transaction), "events": events });
    *known = Some((transaction, file));
    json
}

fn load(control: &Control, after: u64) -> Value {
    let reply = control.load(&LoadGet { after, most: u32::MAX });
    let samples: Vec<Value> = reply.samples.iter().map(sample_json).collect();
    json!({ "period_ms": reply.period_ms, "samples": samples })
}
