//! The cluster file of control, which operators change in the middle of a run and put back: one at each client, with everything else that may go wrong.
//!
//! Judged as it goes: what is read is never older than what was acknowledged to anybody before it was asked for, one number is one text, and each text is still
//! there under its number. At the end of a run the history names all that was acknowledged.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use base::Endpoint;
use client::Client;
use control::OperatorFile;
use faces::cluster_file::HIDDEN;
use faces::{ClusterFile, Configuration, Credential, PoolConfig};
use fops::conf::{ConfApply, ConfApplyReply, ConfHistory, ConfText};
use rpc::{Bulk, CallOptions};
use runtime::clock::SimulatedClock;
use runtime::{LocalityHandle, SharedBuffer};

use crate::growth;
use crate::operator;
use crate::oracle::Oracle;

/// Longest pause between two changes.
const PAUSE_MAX: Duration = Duration::from_millis(400);
/// Where a pool grows: what is copied in a second at most.
const MOVED_PER_SECOND: u64 = 256 << 10;
/// How often a pool grows.
const EXPANSIONS_MAX: usize = 2;
/// When control is said to have read the file first, in seconds since 1970.
const READ_AT: u64 = 1000;

fn credential() -> Credential {
    Credential::from_bytes([0x5a; 32])
}

/// What a cluster file says of one cluster, whose members come by their number.
#[derive(Clone)]
pub struct ClusterText {
    /// Everything but its name and members.
    rest: String,
    head: String,
    members: Vec<Endpoint>,
    pool: PoolConfig,
}

impl ClusterText {
    /// `localities`: where each server's listen, in the order of `configuration`. `members`: founders and whoever joins them.
    pub fn new(
        configuration: &Configuration,
        localities: &[Vec<Endpoint>],
        members: &[Endpoint],
    ) -> ClusterText {
        let Configuration { cluster, profile, pool, pools, processes, .. } = configuration;
        let head = format!(
            "id = \"{cluster:#x}\"\nprofile = \"{profile}\"\ntransport = \"sim\"\ncredential = \"{HIDDEN}\"\n"
        );
        let mut rest = format!(
            "[pool]\nfid = \"{}\"\nversion = \"{}\"\nlayout = \"{}\"\nunit_bytes = {}\n",
            pool.pool, pool.pool_version, pool.width, pool.unit_bytes
        );
        let (first, all) = (pools.first_devices as usize, pool.devices.len());
        if first < all {
            // Others wait to be taken in, and what moves to them shall be on its way for a while.
            let _ =
                write!(rest, "devices = {first}\n[profile]\nrepair_bytes_per_second = {MOVED_PER_SECOND}\n");
        }
        for (process, localities) in processes.iter().zip(localities) {
            let each: Vec<String> = localities.iter().map(|at| format!("\"{at}\"")).collect();
            let process = process.process;
            let _ = write!(rest, "[[server]]\nprocess = \"{process}\"\nendpoints = [{}]\n", each.join(", "));
        }
        for (place, device) in pool.devices.iter().enumerate() {
            let server = processes.iter().position(|process| process.process == device.process);
            let localities = server.map(|server| &localities[server][..]).unwrap_or_default();
            let locality = localities.iter().position(|at| *at == device.endpoint).unwrap_or_default();
            let _ = write!(
                rest,
                "[[device]]\nfid = \"{}\"\nserver = \"{}\"\nlocality = {locality}\npath = \"d{place}\"\nsize_bytes = 1048576\n",
                device.device, device.process
            );
        }
        ClusterText { rest, head, members: members.to_vec(), pool: pool.clone() }
    }

    /// The file of everybody, with so many versions of the pool beside the first one. The last but one lacks a device.
    pub fn expanded(&self, versions: usize) -> String {
        let mut text = self.of(self.members.len(), "first");
        let PoolConfig { pool, width, unit_bytes, devices, .. } = &self.pool;
        let first = devices[0].device;
        for number in 0..versions {
            let last = devices[devices.len() - EXPANSIONS_MAX + number].device;
            let version = growth::pool_version(2 + number);
            let _ = write!(
                text,
                "[[pool_version]]\npool = \"{pool}\"\nfid = \"{version}\"\nlayout = \"{width}\"\nunit_bytes = {unit_bytes}\ndevices = [\"{first}..{last}\"]\n",
            );
        }
        text
    }

    /// The file of the first `members`, under a name.
    fn of(&self, members: usize, name: &str) -> String {
        let ClusterText { rest, head, .. } = self;
        let first = self.members[0];
        let mut text = format!(
            "[cluster]\nname = \"{name}\"\n{head}[control]\nnumber = 1\nendpoint = \"{first}\"\nstore = \"control\"\nstore_bytes = 33554432\n"
        );
        for (number, at) in (2..).zip(&self.members[1..members]) {
            let _ = write!(
                text,
                "[[control.member]]\nnumber = {number}\nendpoint = \"{at}\"\nstore = \"control-{number}\"\n"
            );
        }
        text + rest
    }

    /// What control reads when it starts; the founders are its members.
    pub fn first(&self, founders: usize) -> OperatorFile {
        OperatorFile { text: self.of(founders, "first"), credential: Some(credential()), unix_s: READ_AT }
    }

    /// The configuration that it is.
    pub fn configuration(&self, founders: usize) -> Configuration {
        ClusterFile::parse_hidden(&self.of(founders, "first"), Some(credential()))
            .unwrap_or_else(|error| panic!("the simulation's cluster file is wrong: {error}"))
            .initial_configuration()
    }

    /// A change: the file of everybody, under another name.
    fn renamed(&self, name: &str) -> String {
        self.of(self.members.len(), name)
    }
}

/// What was acknowledged to operators, by its number: note and text.
#[derive(Default)]
pub struct Acknowledged(BTreeMap<u64, (String, String)>);

impl Acknowledged {
    fn newest(&self) -> u64 {
        self.0.last_key_value().map_or(1, |(number, _)| *number)
    }
}

/// One operator, at a client.
pub struct Operator {
    pub oracle: Rc<RefCell<Oracle>>,
    pub locality: LocalityHandle,
    pub client: Client,
    pub clock: Rc<SimulatedClock>,
    pub control: Endpoint,
    pub text: Rc<ClusterText>,
    pub acknowledged: Rc<RefCell<Acknowledged>>,
    /// Its names differ from those of all others.
    pub name: String,
    pub random: fastrand::Rng,
    pub stop: Rc<Cell<bool>>,
}

impl Operator {
    pub async fn run(mut self) {
        for change in 1.. {
            let pause = u64::try_from(PAUSE_MAX.as_nanos()).unwrap_or(u64::MAX);
            self.locality.sleep(Duration::from_nanos(self.random.u64(0..pause))).await;
            if self.stop.get() || !self.judged_change(change).await {
                return;
            }
        }
    }

    /// One change, of everybody who may be a member.
    pub async fn change_once(mut self) {
        self.judged_change(1).await;
    }

    /// False: control said what cannot be.
    async fn judged_change(&mut self, number: u64) -> bool {
        let outcome = self.change(number).await;
        let is_right = outcome.is_ok();
        if let Err(violation) = outcome {
            self.oracle.borrow_mut().violate(self.clock.now(), violation);
        }
        is_right
    }

    /// One change, or a rollback to an earlier one. Error: what control said cannot be.
    async fn change(&mut self, number: u64) -> Result<(), String> {
        let newest = self.acknowledged.borrow().newest();
        let Some((base, _)) = text_of(&self.client, self.control, 0).await else { return Ok(()) };
        if base < newest {
            return Err(format!("transaction {base} is said to be in force after {newest} was acknowledged"));
        }
        let earlier: Vec<u64> =
            self.acknowledged.borrow().0.keys().copied().filter(|earlier| *earlier < base).collect();
        let rollback = match earlier.len() {
            1.. if self.random.u32(0..3) == 0 => Some(earlier[self.random.usize(0..earlier.len())]),
            _ => None,
        };
        let (text, note) = match rollback {
            Some(earlier) => {
                let told = text_of(&self.client, self.control, earlier).await;
                let Some((found, text)) = told else { return Ok(()) };
                let is_same =
                    self.acknowledged.borrow().0.get(&earlier).is_some_and(|(_, known)| *known == text);
                if found != earlier || !is_same {
                    return Err(format!(
                        "transaction {earlier} was acknowledged with another text: {text:?}"
                    ));
                }
                (text, format!("{}: rollback {number} to {earlier}", self.name))
            }
            None => {
                let name = format!("{}-{number}", self.name);
                (self.text.renamed(&name), name)
            }
        };
        let answer = put_in_force(&self.client, self.control, base, &note, &text).await;
        let Ok(reply) = answer else { return Ok(()) };
        // Without changes it says what was in force already, which somebody else may have brought: a rollback to the text in force.
        if reply.changes == 0 {
            return Ok(());
        }
        let mut oracle = self.oracle.borrow_mut();
        oracle.sometimes.reached("a cluster file was put in force");
        if rollback.is_some() {
            oracle.sometimes.reached("an earlier cluster file was put in force again");
        }
        oracle.tell(self.clock.now(), || format!("transaction {}: {note}", reply.transaction));
        if reply.transaction <= base {
            return Err(format!("{note:?}, made for {base}, became transaction {}", reply.transaction));
        }
        match self.acknowledged.borrow_mut().0.insert(reply.transaction, (note.clone(), text)) {
            None => Ok(()),
            Some((other, _)) => Err(format!("transaction {} is {other:?} and {note:?}", reply.transaction)),
        }
    }
}

/// A text and its number; 0: the one in force. `None`: no answer.
pub async fn text_of(client: &Client, control: Endpoint, transaction: u64) -> Option<(u64, String)> {
    let reply = operator::ask(client, control, &ConfText { transaction, offset: 0 }).await.ok()?;
    Some((reply.transaction, String::from_utf8(reply.part).ok()?))
}

/// Asks control to put a text in force that was made for transaction `base`.
pub async fn put_in_force(
    client: &Client,
    control: Endpoint,
    base: u64,
    note: &str,
    text: &str,
) -> Result<ConfApplyReply, String> {
    let locality = client.locality();
    let source = SharedBuffer::copy_from_slice(locality.arena(), text.as_bytes(), locality.counters())
        .ok_or("no memory for the text")?;
    let ask = ConfApply { base, unix_s: 0, note: note.to_owned() };
    operator::ask_with(client, control, &ask, Bulk::from_source(vec![source])).await
}

/// All that was acknowledged is in the history that control tells when all is well. Ok: how many that were.
pub async fn judge(client: &Client, control: Endpoint, acknowledged: &Acknowledged) -> Result<u64, String> {
    let options = CallOptions::until(client.locality().now() + operator::ANSWER_TIME * 5);
    let answer = client.rpc().call(control, &ConfHistory, Bulk::none(), options).await;
    let told =
        answer.map_err(|error| format!("the history of the cluster file cannot be read: {error}"))?.reply;
    let notes: BTreeMap<u64, String> =
        told.transactions.into_iter().map(|one| (one.number, one.note)).collect();
    let oldest = notes.first_key_value().map_or(u64::MAX, |(number, _)| *number);
    for (number, (note, _)) in acknowledged.0.range(oldest..) {
        if notes.get(number) != Some(note) {
            let found = notes.get(number);
            return Err(format!(
                "transaction {number} was acknowledged as {note:?}, and is {found:?} in the history"
            ));
        }
    }
    Ok(acknowledged.0.len() as u64)
}
