//! Watch and notify through control, over the network, on simulated disks and virtual time: watchers that die, are cut off and come
//! back, and a control daemon that is killed in the middle of a notify.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use base::{Fid, ObjectId};
use faces::{ConfClient, NotifyOutcome, Transport, WatchEvent, Watcher};
use fops::watch::MissedWhy;
use runtime::Task;
use verbs_net::SimFaults;

use crate::support::{Cluster, Shape, endpoint, raw_client};

const LEASE: Duration = Duration::from_secs(3);

fn object() -> Fid {
    ObjectId::new(12, 1).unwrap().fid()
}

fn cluster(seed: u64) -> Cluster {
    Cluster::without_servers(seed, Shape { transport: Transport::Sim, ..Shape::default() })
}

/// A process that watches the object and acknowledges each notification with its own name and what came.
struct Listener {
    node: usize,
    place: usize,
    heard: Rc<RefCell<Vec<String>>>,
    _task: Task,
}

impl Listener {
    /// Registered when this returns. `pause`: between hearing and acknowledging.
    fn start(cluster: &mut Cluster, node: usize, pause: Duration) -> Listener {
        let (place, locality) = cluster.turner.add("listener");
        let rpc = raw_client(&locality, &cluster.fabric, endpoint(Transport::Sim, node), 1, [7; 32]);
        let conf = ConfClient::connect(&rpc, endpoint(Transport::Sim, 0));
        let name = format!("n{node}");
        let watcher = Watcher::start(&conf, name.clone(), LEASE);
        let deadline = locality.now() + Duration::from_secs(10);
        let watch = cluster.turner.run(watcher.watch(object(), deadline)).unwrap();
        let heard: Rc<RefCell<Vec<String>>> = Rc::default();
        let log = Rc::clone(&heard);
        let handle = locality.clone();
        let task = locality.spawn("listener", async move {
            let _keeps = watcher;
            loop {
                match watch.next().await {
                    WatchEvent::Notified(notified) => {
                        let word = String::from_utf8(notified.payload().to_vec()).unwrap();
                        log.borrow_mut().push(word.clone());
                        handle.sleep(pause).await;
                        let _counted = notified.ack(format!("{name} {word}").as_bytes()).await;
                    }
                    other => log.borrow_mut().push(format!("{other:?}")),
                }
            }
        });
        Listener { node, place, heard, _task: task }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.borrow().clone()
    }

    /// The process is gone, and its connections with it.
    fn kill(&self, cluster: &mut Cluster) {
        cluster.turner.kill(self.place);
        cluster.sim().crash(endpoint(Transport::Sim, self.node));
    }
}

fn conf(cluster: &Cluster) -> ConfClient {
    ConfClient::connect(&cluster.client, endpoint(Transport::Sim, 0))
}

fn notify(cluster: &mut Cluster, word: &str, within: Duration) -> NotifyOutcome {
    let conf = conf(cluster);
    cluster.turner.run(conf.notify(object(), word.as_bytes(), within)).unwrap()
}

/// What came back, in the order of the names, and who missed with why.
fn text(outcome: &NotifyOutcome) -> (Vec<String>, Vec<(String, MissedWhy)>) {
    let mut acks: Vec<String> =
        outcome.acks.iter().map(|ack| String::from_utf8(ack.payload.clone()).unwrap()).collect();
    acks.sort();
    (acks, outcome.missed.iter().map(|missed| (missed.watch.name.clone(), missed.why)).collect())
}

fn within(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Control says that it holds what waits for news, so that nobody asks again before there is some.
#[test]
fn a_watcher_that_waits_does_not_ask_again() {
    let mut cluster = cluster(9);
    let (_, locality) = cluster.turner.add("listener");
    let rpc = raw_client(&locality, &cluster.fabric, endpoint(Transport::Sim, 101), 1, [7; 32]);
    let conf = ConfClient::connect(&rpc, endpoint(Transport::Sim, 0));
    let watcher = Watcher::start(&conf, "n101".to_owned(), Duration::from_secs(30));
    let deadline = locality.now() + Duration::from_secs(10);
    let _watch = cluster.turner.run(watcher.watch(object(), deadline)).unwrap();
    cluster.turner.pass(Duration::from_secs(60));
    let asked = rpc.stats().requester;
    assert!((4..=7).contains(&asked.held), "polls of 10 s for a minute: {asked:?}");
    assert_eq!(asked.resends, 0);
}

/// Whoever waits for news is answered when control is stopped: its drain does not wait for them, and none is left undrained.
#[test]
fn control_that_is_stopped_lets_go_of_what_it_holds() {
    let mut cluster = cluster(10);
    let listener = Listener::start(&mut cluster, 101, Duration::ZERO);
    cluster.turner.pass(LEASE);
    let before = cluster.turner.clock.now();
    cluster.stop_control().unwrap();
    let took = cluster.turner.clock.now().since(before);
    assert!(took < within(500), "{took:?}");
    cluster.start_control().unwrap();
    let outcome = notify(&mut cluster, "later", within(20_000));
    assert_eq!(text(&outcome), (vec!["n101 later".to_owned()], vec![]));
    assert_eq!(listener.heard(), ["later"]);
}

#[test]
fn a_killed_watcher_is_missed_by_name_until_its_lease_ends() {
    let mut cluster = cluster(1);
    let living = Listener::start(&mut cluster, 101, Duration::ZERO);
    let dying = Listener::start(&mut cluster, 102, Duration::ZERO);
    let first = notify(&mut cluster, "one", within(5000));
    assert_eq!(text(&first), (vec!["n101 one".to_owned(), "n102 one".to_owned()], vec![]));
    dying.kill(&mut cluster);
    let began = cluster.turner.clock.now();
    let second = notify(&mut cluster, "two", within(500));
    assert_eq!(
        text(&second),
        (vec!["n101 two".to_owned()], vec![("n102".to_owned(), MissedWhy::NotReached)])
    );
    assert!(cluster.turner.clock.now() >= began + within(500), "it was waited for");
    // Its lease and the grace end while the next one waits: it is not waited for any longer.
    let third = notify(&mut cluster, "three", within(20_000));
    assert_eq!(
        text(&third),
        (vec!["n101 three".to_owned()], vec![("n102".to_owned(), MissedWhy::LeaseEnded)])
    );
    assert!(cluster.turner.clock.now() <= began + LEASE * 5 / 4 + within(100));
    let fourth = notify(&mut cluster, "four", within(20_000));
    assert_eq!(text(&fourth), (vec!["n101 four".to_owned()], vec![]), "it is no longer counted");
    assert_eq!(living.heard(), ["one", "two", "three", "four"], "in their order");
    assert_eq!(dying.heard(), ["one"]);
}

#[test]
fn a_watcher_that_was_cut_off_comes_back_and_knows_whether_it_missed_something() {
    let mut cluster = cluster(2);
    let listener = Listener::start(&mut cluster, 101, Duration::ZERO);
    let (control, there) = (endpoint(Transport::Sim, 0), endpoint(Transport::Sim, 101));
    let cut = |cluster: &mut Cluster| {
        cluster.sim().partition(control, there);
        cluster.sim().partition(there, control);
    };
    // Shorter than the lease: nothing is missed, it only comes late.
    cut(&mut cluster);
    let begun = {
        let conf = conf(&cluster);
        let locality = cluster.client.locality().clone();
        let sim = cluster.sim();
        let heals = async move {
            locality.sleep(within(1000)).await;
            sim.heal_all();
        };
        cluster
            .turner
            .run(futures_util::future::join(conf.notify(object(), b"late", within(15_000)), heals))
            .0
    };
    assert_eq!(text(&begun.unwrap()), (vec!["n101 late".to_owned()], vec![]));
    assert_eq!(listener.heard(), ["late"]);
    // Longer: it is missed and forgotten, and hears of that when it is back, before anything else.
    cut(&mut cluster);
    let missed = notify(&mut cluster, "gone", within(20_000));
    assert_eq!(text(&missed).1, [("n101".to_owned(), MissedWhy::LeaseEnded)]);
    cluster.sim().heal_all();
    cluster.wait_until("the gap", |_| listener.heard().len() > 1);
    let after = notify(&mut cluster, "again", within(15_000));
    assert_eq!(text(&after), (vec!["n101 again".to_owned()], vec![]));
    assert_eq!(listener.heard(), ["late", "Gap", "again"]);
}

/// Control is killed while watchers work on a notify. Its next start knows the watches, the notifier asks again by itself, who has
/// acknowledged says so again, and nobody hears it twice.
#[test]
fn a_notify_survives_a_restart_of_control_and_nobody_hears_it_twice() {
    for seed in 0..8 {
        let mut cluster = cluster(seed);
        let quick = Listener::start(&mut cluster, 101, Duration::ZERO);
        let slow = Listener::start(&mut cluster, 102, within(1500));
        let conf = conf(&cluster);
        let locality = cluster.client.locality().clone();
        let outcome: Rc<RefCell<Option<NotifyOutcome>>> = Rc::default();
        let put = Rc::clone(&outcome);
        let _notifier = locality.spawn("notifier", async move {
            let done = conf.notify(object(), b"word", within(15_000)).await.unwrap();
            *put.borrow_mut() = Some(done);
        });
        cluster.turner.pass(within(200 + 100 * seed));
        assert_eq!(quick.heard(), ["word"], "seed {seed}");
        cluster.kill_control();
        cluster.sim().crash(endpoint(Transport::Sim, 0));
        cluster.start_control().unwrap();
        cluster.wait_until("the outcome", |_| outcome.borrow().is_some());
        let outcome = outcome.borrow_mut().take().unwrap();
        let both = vec!["n101 word".to_owned(), "n102 word".to_owned()];
        assert_eq!(text(&outcome), (both, vec![]), "seed {seed}");
        assert_eq!((quick.heard(), slow.heard()), (vec!["word".to_owned()], vec!["word".to_owned()]));
        let next = notify(&mut cluster, "next", within(15_000));
        assert_eq!(next.acks.len(), 2, "no registration was lost: {next:?}");
        assert_eq!(slow.heard(), ["word", "next"], "seed {seed}");
    }
}

#[test]
fn lost_and_doubled_messages_neither_lose_nor_double_a_notification() {
    for seed in 0..8 {
        let mut cluster = cluster(100 + seed);
        let listeners: Vec<Listener> =
            (101..105).map(|node| Listener::start(&mut cluster, node, Duration::ZERO)).collect();
        let faults = SimFaults { loss_per_mille: 50, duplicate_per_mille: 50, ..SimFaults::default() };
        cluster.sim().set_faults(faults);
        let words: Vec<String> = (0..10).map(|number| format!("w{number}")).collect();
        for word in &words {
            let outcome = notify(&mut cluster, word, within(20_000));
            assert_eq!((outcome.acks.len(), outcome.missed.len()), (4, 0), "seed {seed}: {outcome:?}");
        }
        for listener in &listeners {
            assert_eq!(listener.heard(), words, "seed {seed}");
        }
    }
}

#[test]
fn a_watch_that_is_dropped_is_not_waited_for() {
    let mut cluster = cluster(3);
    let staying = Listener::start(&mut cluster, 101, Duration::ZERO);
    let watcher = Watcher::start(&conf(&cluster), "short".to_owned(), LEASE);
    let deadline = cluster.turner.clock.now() + within(10_000);
    let watch = cluster.turner.run(watcher.watch(object(), deadline)).unwrap();
    let other = cluster.turner.run(watcher.watch(ObjectId::new(12, 2).unwrap().fid(), deadline)).unwrap();
    // What nobody acknowledges is no answer.
    let unread = notify(&mut cluster, "one", within(300));
    assert_eq!(text(&unread), (vec!["n101 one".to_owned()], vec![("short".to_owned(), MissedWhy::NoAnswer)]));
    drop(watch);
    // At once, and not only with the lease: the watcher lives on for its other watch.
    cluster.turner.pass(LEASE / 2);
    let outcome = notify(&mut cluster, "two", within(5000));
    assert_eq!(text(&outcome), (vec!["n101 two".to_owned()], vec![]));
    cluster.turner.run(other.end(deadline)).unwrap();
    assert_eq!(staying.heard(), ["one", "two"]);
}

#[test]
fn what_makes_no_sense_is_refused_with_the_limit() {
    let mut cluster = cluster(4);
    let conf = conf(&cluster);
    let long = cluster.turner.run(conf.notify(object(), &vec![0; 16_385], within(100))).unwrap_err();
    assert!(long.to_string().contains("at most 16384 bytes, and this one has 16385"), "{long}");
    let watcher = Watcher::start(&conf, "x".repeat(65), LEASE);
    let deadline = cluster.turner.clock.now() + within(10_000);
    let bad = cluster.turner.run(watcher.watch(object(), deadline)).unwrap_err();
    assert!(bad.to_string().contains("1 to 64 bytes"), "{bad}");
    let nobody = notify(&mut cluster, "", within(10_000));
    assert_eq!(text(&nobody), (vec![], vec![]));
}
