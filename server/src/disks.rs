//! Disks that come while a server runs: another one in the place of a device (`clovis device replace`), and the first one of a device that was added to the
//! configuration (`clovis conf apply`).
//!
//! With each new configuration the server looks which of its devices want one. What fails is told once for each reason, and tried again with the next
//! configuration or a little later. **Invariant**: one device at a time, so that none is opened twice. What is done: `replacement`, `addition`.
//! Thread: the server's locality. Start at [`follow`].

use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use base::Fid;
use spdk_stob::Backend;

use crate::state::State;
use crate::{addition, replacement};

/// Opens what stands in the place of a device, whose last disk had so many blocks (0: it had none). Errors: in words.
pub type DiskSource = Rc<dyn Fn(Fid, u64) -> Result<Box<dyn Backend>, String>>;
/// Hears of a device that got a disk while the server ran, or why it did not.
pub type DiskTeller = Rc<dyn Fn(Fid, DiskWanted, Result<(), &str>)>;

/// After a failure (no disk in its place, a foreign one) it is looked again so much later, or with the next configuration.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// What a device wants a disk for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskWanted {
    /// It is new to the configuration.
    First,
    /// Its disk is replaced, for the so manieth time.
    Another(u32),
}

/// Gives disks to whoever wants one, for as long as the server lives.
pub(crate) async fn follow(state: Weak<State>, disks: DiskSource, teller: Option<DiskTeller>) {
    let mut told: BTreeMap<Fid, String> = BTreeMap::new();
    loop {
        let Some(alive) = state.upgrade() else { return };
        let (conf, locality) = (alive.conf.clone(), alive.rpc.locality().clone());
        let version = conf.version();
        let mut failed = BTreeMap::new();
        for (device, wanted) in wanted(&alive) {
            let outcome = match wanted {
                DiskWanted::First => addition::add(&alive, device, &disks).await,
                DiskWanted::Another(number) => replacement::replace(&alive, device, number, &disks).await,
            };
            // Told once, not at each try.
            let is_news = outcome.as_ref().err().is_none_or(|reason| told.get(&device) != Some(reason));
            if let Some(teller) = teller.as_ref().filter(|_| is_news) {
                teller(device, wanted, outcome.as_ref().copied().map_err(String::as_str));
            }
            failed.extend(outcome.err().map(|reason| (device, reason)));
        }
        told = failed;
        drop(alive);
        let newer = conf.newer_than(version);
        if told.is_empty() {
            newer.await;
        } else {
            // Either way it is looked again.
            let _newer = locality.timeout_at(locality.now() + TRY_AGAIN, newer).await;
        }
    }
}

fn wanted(state: &State) -> Vec<(Fid, DiskWanted)> {
    let another = replacement::awaited(state).into_iter();
    let another = another.map(|(device, number)| (device, DiskWanted::Another(number)));
    another.chain(addition::awaited(state).into_iter().map(|device| (device, DiskWanted::First))).collect()
}
