//! Locks that are held cooperatively, through control, over the network, on virtual time: holders that give back, that refuse, that run requests of others, that
//! die; a control daemon that is killed in the middle; lost and doubled messages.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use faces::held_lock::{ask_holder, take_lock};
use faces::{
    ConfClient, GrantedLock, HeldLock, HolderSaid, LockCall, LockError, LockWish, TakeProgress, Transport,
    WatchEvent, Watcher,
};
use fops::codec;
use fops::lock::{LockBreak, LockMode, LockName, OnDeath, OwnerId};
use fops::news::{CONFIGURATION, ConfigurationNews, LockNews, of_lock};
use fops::watch::{MissedWhy, WatchList};
use rpc::Bulk;
use runtime::{LocalityHandle, Task};
use verbs_net::SimFaults;

use crate::support::{Cluster, Shape, endpoint, raw_client};

/// How long control may take.
const WITHIN: Duration = Duration::from_secs(10);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn lock() -> LockName {
    LockName { object: None, name: "image".to_owned() }
}

fn wish(owner: u128, on_death: OnDeath) -> LockWish {
    let (mode, why) = (LockMode::Exclusive, format!("test {owner}"));
    LockWish { lock: lock(), owner: OwnerId(owner), mode, on_death, why }
}

/// A process: what it does is said in its log.
struct Process {
    node: usize,
    place: usize,
    locality: LocalityHandle,
    conf: ConfClient,
    log: Rc<RefCell<Vec<String>>>,
    tasks: Vec<Task>,
}

impl Process {
    fn start(cluster: &mut Cluster, node: usize) -> Process {
        let (place, locality) = cluster.turner.add("process");
        let rpc = raw_client(&locality, &cluster.fabric, endpoint(Transport::Sim, node), 1, [7; 32]);
        let conf = ConfClient::connect(&rpc, endpoint(Transport::Sim, 0));
        Process { node, place, locality, conf, log: Rc::default(), tasks: Vec::new() }
    }

    fn say(&self) -> impl Fn(String) + 'static {
        let log = Rc::clone(&self.log);
        move |line| log.borrow_mut().push(line)
    }

    fn said(&self) -> Vec<String> {
        self.log.borrow().clone()
    }

    fn has_said(&self, line: &str) -> bool {
        self.log.borrow().iter().any(|said| said == line)
    }

    fn run(&mut self, future: impl Future<Output = ()> + 'static) {
        self.tasks.push(self.locality.spawn("process", future));
    }

    fn kill(&self, cluster: &mut Cluster) {
        cluster.turner.kill(self.place);
        cluster.sim().crash(endpoint(Transport::Sim, self.node));
    }

    /// Takes the lock, waiting up to a minute, and says what the holders say.
    fn takes(&self, wish: LockWish) -> impl Future<Output = GrantedLock> + 'static {
        let (conf, say) = (self.conf.clone(), self.say());
        async move {
            let mut last = String::new();
            let granted = take_lock(&conf, wish, (Duration::from_secs(60), WITHIN), |progress| {
                let line = match progress {
                    TakeProgress::Said { said: HolderSaid::Refuses { reason }, .. } => {
                        format!("no: {reason}")
                    }
                    TakeProgress::Said { said, .. } => format!("{said:?}"),
                    _ => return,
                };
                if line != last {
                    say(line.clone());
                    last = line;
                }
            })
            .await
            .unwrap();
            say(format!("has {}", granted.ticket.epoch));
            granted
        }
    }

    /// Holds the lock, decides as `agrees` says, finishes for `finish`, and runs requests: each says its payload and takes `work`.
    fn holds(&mut self, wish: LockWish, agrees: Result<Duration, &'static str>, work: Duration) {
        let taking = self.takes(wish);
        let (conf, locality, say) = (self.conf.clone(), self.locality.clone(), self.say());
        self.run(async move {
            let held = HeldLock::cooperate(&conf, taking.await, WITHIN).await.unwrap();
            say("cooperates".to_owned());
            loop {
                match held.next().await {
                    LockCall::Release(call) => {
                        say(format!("asked by {} for {}", call.owner().0, call.why()));
                        match agrees {
                            Ok(finish) => {
                                let _heard = call.agree().await;
                                locality.sleep(finish).await;
                                break;
                            }
                            Err(reason) => drop(call.refuse(reason).await),
                        }
                    }
                    LockCall::Run(call) => {
                        let word = String::from_utf8(call.payload().to_vec()).unwrap();
                        say(format!("runs {word}"));
                        locality.sleep(work).await;
                        let heard = call.answer(format!("did {word}").as_bytes()).await;
                        say(format!("ran {word}, heard {}", heard.unwrap_or(false)));
                    }
                    LockCall::Lost => {
                        say("lost".to_owned());
                        return;
                    }
                    other => panic!("{other:?}"),
                }
            }
            let released = held.release(WITHIN).await.unwrap();
            say(format!("released {released}"));
        });
    }
}

fn cluster(seed: u64) -> Cluster {
    Cluster::without_servers(seed, Shape { transport: Transport::Sim, ..Shape::default() })
}

/// A cluster with a holder that cooperates, at node 101 for owner 1.
fn held(
    seed: u64,
    on_death: OnDeath,
    agrees: Result<Duration, &'static str>,
    work: Duration,
) -> (Cluster, Process) {
    let mut cluster = cluster(seed);
    let mut holder = Process::start(&mut cluster, 101);
    holder.holds(wish(1, on_death), agrees, work);
    cluster.wait_until("the holder", |_| holder.has_said("cooperates"));
    (cluster, holder)
}

fn conf(cluster: &Cluster) -> ConfClient {
    ConfClient::connect(&cluster.client, endpoint(Transport::Sim, 0))
}

#[expect(clippy::result_large_err, reason = "a test's helper")]
fn ask(cluster: &mut Cluster, word: &str, within: Duration) -> Result<String, LockError> {
    let conf = conf(cluster);
    let answer = cluster.turner.run(ask_holder(&conf, &lock(), None, word.as_bytes(), within));
    answer.map(|answer| String::from_utf8(answer).unwrap())
}

fn break_lock(cluster: &mut Cluster) {
    let (owner, why) = (OwnerId(1), "an administrator".to_owned());
    let fop = LockBreak { lock: lock(), owner, why, wait_ms: 0 };
    let control = cluster.endpoint(0);
    cluster.call(control, &fop, Bulk::none()).unwrap();
}

/// Someone who watches what control tells.
fn listen(cluster: &mut Cluster, node: usize, topic: base::Fid) -> Process {
    let mut process = Process::start(cluster, node);
    let watcher = Watcher::start(&process.conf, format!("n{node}"), ms(3000));
    let deadline = process.locality.now() + WITHIN;
    let watch = cluster.turner.run(watcher.watch(topic, deadline)).unwrap();
    let say = process.say();
    process.run(async move {
        let _keeps = watcher;
        loop {
            let notified = match watch.next().await {
                WatchEvent::Notified(notified) => notified,
                other => {
                    say(format!("{other:?}"));
                    continue;
                }
            };
            let bytes = notified.payload().to_vec();
            assert_eq!(notified.from(), endpoint(Transport::Sim, 0), "control's own word");
            assert!(notified.ack(b"").await.unwrap(), "nobody waits for it, and that is no error");
            say(if topic == CONFIGURATION {
                format!("version {}", codec::decode::<ConfigurationNews>(&bytes).unwrap().version)
            } else {
                match codec::decode::<LockNews>(&bytes).unwrap() {
                    LockNews::Taken { grant } => format!("taken {}", grant.ticket),
                    LockNews::Released { ticket, .. } => format!("released {ticket}"),
                    LockNews::Breaking { ticket, why, .. } => format!("breaking {ticket}: {why}"),
                    LockNews::Broken { ticket, .. } => format!("broken {ticket}"),
                }
            });
        }
    });
    process
}

#[test]
fn a_holder_keeps_the_lock_until_another_asks_finishes_and_passes_it_on() {
    let mut cluster = cluster(1);
    let news = listen(&mut cluster, 110, of_lock(&lock()));
    let mut holder = Process::start(&mut cluster, 101);
    holder.holds(wish(1, OnDeath::Hold), Ok(ms(3000)), ms(0));
    cluster.turner.pass(Duration::from_secs(60));
    assert_eq!(holder.said(), ["has 1", "cooperates"], "nobody asked");
    let mut other = Process::start(&mut cluster, 102);
    let began = cluster.turner.clock.now();
    other.holds(wish(2, OnDeath::Hold), Err("I stay"), ms(0));
    cluster.wait_until("the yes", |_| other.has_said("Releases"));
    assert!(cluster.turner.clock.now() < began + ms(200), "it was asked at once");
    // While the holder finishes, nothing of others begins.
    let refused = ask(&mut cluster, "late", ms(1000)).unwrap_err();
    assert!(matches!(&refused, LockError::NoAnswer { .. }), "{refused}");
    cluster.wait_until("the lock", |_| other.has_said("cooperates"));
    assert!(cluster.turner.clock.now() < began + ms(3300), "at once when it was free");
    assert_eq!(holder.said(), ["has 1", "cooperates", "asked by 2 for test 2", "released true"]);
    assert_eq!(other.said(), ["Releases", "has 2", "cooperates"]);
    let (first, second) = (OwnerId(1), OwnerId(2));
    assert_eq!(
        news.said(),
        [format!("taken {first}:1"), format!("released {first}:1"), format!("taken {second}:2")]
    );
    // Who holds it now says no, and is not bothered again soon.
    let mut third = Process::start(&mut cluster, 103);
    third.holds(wish(3, OnDeath::Hold), Ok(ms(0)), ms(0));
    cluster.turner.pass(Duration::from_secs(20));
    assert_eq!(third.said(), ["no: I stay"]);
    let asked = other.said().iter().filter(|line| line.starts_with("asked by 3")).count();
    assert_eq!(asked, 1, "{:?}", other.said());
}

#[test]
fn a_holder_that_refuses_is_broken_the_ordinary_way_and_hears_of_it_at_once() {
    let (mut cluster, holder) = held(2, OnDeath::Hold, Err("a long job"), ms(0));
    let mut other = Process::start(&mut cluster, 102);
    other.holds(wish(2, OnDeath::Hold), Ok(ms(0)), ms(0));
    cluster.wait_until("the no", |_| other.has_said("no: a long job"));
    let news = listen(&mut cluster, 110, of_lock(&lock()));
    break_lock(&mut cluster);
    let broken_at = cluster.turner.clock.now();
    cluster.wait_until("the holder hears", |_| holder.has_said("lost"));
    assert!(cluster.turner.clock.now() < broken_at + ms(100), "not with its next look, ten seconds later");
    cluster.wait_until("the next one", |_| other.has_said("has 2"));
    let owner = OwnerId(1);
    cluster.wait_until("the news", |_| news.said().len() == 3);
    assert_eq!(
        news.said()[..2],
        [format!("breaking {owner}:1: an administrator"), format!("broken {owner}:1")]
    );
    // What a process of another owner asked is answered by nobody now: the old one is gone from the list of watches.
    let list = WatchList { object: Some(fops::news::of_holder(&lock(), OwnerId(1))), after: None };
    let control = cluster.endpoint(0);
    cluster.turner.pass(Duration::from_secs(20));
    assert_eq!(cluster.call(control, &list, Bulk::none()).unwrap().reply.watches, []);
}

#[test]
fn requests_of_others_run_at_the_holder_each_once_and_the_lock_waits_for_them() {
    let (mut cluster, holder) = held(3, OnDeath::Hold, Ok(ms(0)), ms(700));
    assert_eq!(ask(&mut cluster, "one", ms(5000)).unwrap(), "did one");
    let slow = ask(&mut cluster, "two", ms(300)).unwrap_err();
    assert!(
        matches!(slow, LockError::NoAnswer { why: MissedWhy::NotReached | MissedWhy::NoAnswer, .. }),
        "{slow}"
    );
    cluster.wait_until("the second", |_| holder.has_said("ran two, heard false"));
    assert_eq!(holder.said()[2..], ["runs one", "ran one, heard true", "runs two", "ran two, heard false"]);
    let long = ask(&mut cluster, &"x".repeat(20_000), ms(300)).unwrap_err();
    assert!(matches!(long, LockError::LongRequest { bytes: 20_000 }), "{long}");
    // With the lock free there is nobody to ask.
    let mut other = Process::start(&mut cluster, 102);
    other.holds(wish(2, OnDeath::Hold), Ok(ms(0)), ms(0));
    cluster.wait_until("the lock", |_| other.has_said("cooperates"));
    other.kill(&mut cluster);
    let dead = ask(&mut cluster, "three", ms(2000)).unwrap_err();
    assert!(matches!(dead, LockError::NoAnswer { why: MissedWhy::NotReached, .. }), "{dead}");
    cluster.turner.pass(Duration::from_secs(15));
    let gone = ask(&mut cluster, "four", ms(2000)).unwrap_err();
    assert!(matches!(gone, LockError::NotCooperative { owner: OwnerId(2), .. }), "{gone}");
}

/// The program has one request under way, and is asked for the lock: it goes only when that is over.
#[test]
fn a_release_waits_for_what_runs_and_a_lost_lock_makes_no_request_done() {
    let mut cluster = cluster(4);
    let process = Process::start(&mut cluster, 101);
    let granted = cluster.turner.run(process.takes(wish(1, OnDeath::Hold)));
    let held = cluster.turner.run(HeldLock::cooperate(&process.conf, granted, WITHIN)).unwrap();
    let asker = conf(&cluster);
    let answers: Rc<RefCell<Vec<String>>> = Rc::default();
    let mut asks = Vec::new();
    for word in ["one", "two"] {
        let (asker, answers) = (asker.clone(), Rc::clone(&answers));
        asks.push(cluster.client.locality().spawn("asker", async move {
            let said = ask_holder(&asker, &lock(), None, word.as_bytes(), ms(20_000)).await;
            let said = said.map(|answer| String::from_utf8(answer).unwrap()).map_err(|e| e.to_string());
            answers.borrow_mut().push(format!("{said:?}"));
        }));
    }
    let mut calls = Vec::new();
    for _ in 0..2 {
        match cluster.turner.run(held.next()) {
            LockCall::Run(call) => calls.push(call),
            other => panic!("{other:?}"),
        }
    }
    let is_over = Rc::new(Cell::new(false));
    let (ended, release) = (Rc::clone(&is_over), held.release(WITHIN));
    let _releasing = process.locality.spawn("release", async move {
        assert!(!release.await.unwrap(), "it was lost before");
        ended.set(true);
    });
    cluster.turner.pass(Duration::from_secs(3));
    assert!(!is_over.get(), "two requests are under way");
    let second = calls.pop().unwrap();
    assert!(cluster.turner.run(calls.pop().unwrap().answer(b"done")).unwrap());
    cluster.turner.pass(Duration::from_secs(1));
    assert!(!is_over.get(), "one is");
    break_lock(&mut cluster);
    cluster.wait_until("the end", |_| is_over.get());
    assert!(cluster.turner.run(second.answer(b"done")).unwrap());
    cluster.wait_until("both answers", |_| answers.borrow().len() == 2);
    let answers = answers.borrow();
    assert_eq!(answers[0], "Ok(\"done\")");
    assert!(answers[1].contains("lost image while it ran"), "{answers:?}");
}

#[test]
fn a_dead_holder_is_fenced_after_its_lease_and_one_that_is_to_hold_stays() {
    let (mut cluster, holder) = held(5, OnDeath::Fence, Ok(ms(0)), ms(0));
    let mut other = Process::start(&mut cluster, 102);
    holder.kill(&mut cluster);
    let died_at = cluster.turner.clock.now();
    other.holds(wish(2, OnDeath::Hold), Err("no"), ms(0));
    cluster.wait_until("the lock passes on", |_| other.has_said("has 2"));
    let took = cluster.turner.clock.now().since(died_at);
    assert!(took > ms(3000) && took < ms(5000), "{took:?}: its lease and the grace, not its watch's");
    // The next one is to hold whatever happens: who waits is not served by its death.
    cluster.wait_until("the second holder", |_| other.has_said("cooperates"));
    other.kill(&mut cluster);
    let mut third = Process::start(&mut cluster, 103);
    third.holds(wish(3, OnDeath::Hold), Ok(ms(0)), ms(0));
    cluster.turner.pass(Duration::from_secs(30));
    assert_eq!(third.said(), ["Silent", "NotCooperative"], "left to the administrator");
}

#[test]
fn an_asker_that_dies_leaves_nothing_and_a_holder_that_looks_away_keeps_its_lock() {
    let (mut cluster, holder) = held(6, OnDeath::Hold, Err("no"), ms(2000));
    let mut asker = Process::start(&mut cluster, 102);
    let conf = asker.conf.clone();
    asker.run(async move {
        let _never = ask_holder(&conf, &lock(), None, b"word", ms(10_000)).await;
    });
    cluster.wait_until("it runs", |_| holder.has_said("runs word"));
    // While it is busy somebody else wants the lock, and hears later than it waits for an answer.
    let mut other = Process::start(&mut cluster, 103);
    other.holds(wish(3, OnDeath::Hold), Ok(ms(0)), ms(0));
    asker.kill(&mut cluster);
    cluster.wait_until("the no", |_| other.has_said("no: no"));
    other.kill(&mut cluster);
    cluster.turner.pass(Duration::from_secs(10));
    assert_eq!(
        holder.said()[2..],
        ["runs word", "ran word, heard true", "asked by 3 for test 3"],
        "the holder goes on; control counted its answer though nobody waits for it"
    );
    assert_eq!(ask(&mut cluster, "next", ms(5000)).unwrap(), "did next");
}

/// Control is killed while a request runs and a taker waits. The holder hears each once, and all are answered.
#[test]
fn a_restart_of_control_in_the_middle_runs_nothing_twice() {
    for seed in 0..8 {
        let (mut cluster, holder) = held(20 + seed, OnDeath::Fence, Ok(ms(500)), ms(1500));
        let asker = conf(&cluster);
        let outcome: Rc<RefCell<Option<String>>> = Rc::default();
        let put = Rc::clone(&outcome);
        let _asking = cluster.client.locality().spawn("asker", async move {
            let said = ask_holder(&asker, &lock(), None, b"word", ms(20_000)).await;
            *put.borrow_mut() = Some(format!("{:?}", said.map(|answer| String::from_utf8(answer).unwrap())));
        });
        cluster.turner.pass(ms(50 + 200 * seed));
        let mut other = Process::start(&mut cluster, 102);
        other.holds(wish(2, OnDeath::Hold), Err("no"), ms(0));
        cluster.turner.pass(ms(50));
        cluster.kill_control();
        cluster.sim().crash(endpoint(Transport::Sim, 0));
        cluster.start_control().unwrap();
        cluster.wait_until("the outcome", |_| outcome.borrow().is_some());
        assert_eq!(outcome.borrow().as_deref(), Some("Ok(\"did word\")"), "seed {seed}");
        cluster.wait_until("the lock passes on", |_| other.has_said("cooperates"));
        let runs = holder.said().iter().filter(|line| *line == "runs word").count();
        assert_eq!((runs, holder.has_said("lost")), (1, false), "seed {seed}: {:?}", holder.said());
    }
}

/// The holder dies with a request, and control too; another process of the same owner, with the same grant, is asked in its place: it was not meant.
#[test]
fn a_request_of_a_dead_process_is_not_run_by_the_next_one_of_its_owner() {
    let (mut cluster, first) = held(30, OnDeath::Hold, Ok(ms(0)), ms(5000));
    let asker = conf(&cluster);
    let outcome: Rc<RefCell<Option<String>>> = Rc::default();
    let put = Rc::clone(&outcome);
    let _asking = cluster.client.locality().spawn("asker", async move {
        let said = ask_holder(&asker, &lock(), None, b"word", ms(20_000)).await;
        *put.borrow_mut() = Some(said.map_err(|error| error.to_string()).unwrap_err());
    });
    cluster.wait_until("it runs", |_| first.has_said("runs word"));
    first.kill(&mut cluster);
    let mut next = Process::start(&mut cluster, 102);
    next.holds(wish(1, OnDeath::Hold), Ok(ms(0)), ms(0));
    cluster.wait_until("the next one", |_| next.has_said("cooperates"));
    cluster.kill_control();
    cluster.sim().crash(endpoint(Transport::Sim, 0));
    cluster.start_control().unwrap();
    cluster.wait_until("the outcome", |_| outcome.borrow().is_some());
    let said = outcome.borrow().clone().unwrap();
    assert!(said.contains("may have been run"), "{said}");
    assert_eq!(next.said(), ["has 1", "cooperates"], "the same grant, and nothing to do");
    assert_eq!(ask(&mut cluster, "more", ms(5000)).unwrap(), "did more");
}

#[test]
fn lost_and_doubled_messages_neither_lose_nor_double_a_request() {
    for seed in 0..8 {
        let (mut cluster, holder) = held(40 + seed, OnDeath::Hold, Ok(ms(0)), ms(20));
        let faults = SimFaults { loss_per_mille: 50, duplicate_per_mille: 50, ..SimFaults::default() };
        cluster.sim().set_faults(faults);
        for number in 0..10 {
            let answer = ask(&mut cluster, &format!("w{number}"), ms(20_000));
            assert_eq!(answer.unwrap(), format!("did w{number}"), "seed {seed}");
        }
        let mut other = Process::start(&mut cluster, 102);
        other.holds(wish(2, OnDeath::Hold), Ok(ms(0)), ms(0));
        cluster.wait_until("the lock passes on", |_| other.has_said("has 2"));
        let mut runs: BTreeMap<String, u32> = BTreeMap::new();
        for line in holder.said().iter().filter(|line| line.starts_with("runs ")) {
            *runs.entry(line.clone()).or_default() += 1;
        }
        assert!(runs.len() == 10 && runs.values().all(|count| *count == 1), "seed {seed}: {runs:?}");
    }
}

/// News are not stored: who watches hears over a restart that it may have missed some.
#[test]
fn whoever_watches_the_configuration_hears_of_each_version_and_of_a_gap_over_a_restart() {
    let mut cluster = Cluster::start(7, Shape { transport: Transport::Sim, ..Shape::default() });
    let listener = listen(&mut cluster, 110, CONFIGURATION);
    let before = cluster.control().configuration().version;
    cluster.kill_server(1);
    cluster.wait_until("its devices are out of service", |cluster| {
        cluster.control().configuration().version > before
    });
    let version = cluster.control().configuration().version;
    cluster.wait_until("the word", |_| listener.has_said(&format!("version {version}")));
    cluster.kill_control();
    cluster.sim().crash(endpoint(Transport::Sim, 0));
    cluster.start_control().unwrap();
    cluster.wait_until("the gap", |_| listener.has_said("Gap"));
    let count = listener.said().len();
    cluster.kill_server(0);
    cluster.wait_until("the next word", |_| listener.said().len() > count);
    let forged = conf(&cluster);
    let refused = cluster.turner.run(forged.notify(CONFIGURATION, b"version 7", ms(100))).unwrap_err();
    assert!(refused.to_string().contains("control itself tells"), "{refused}");
}
