//! What a key at control may do, as models for [`crate::sim_linear`]: a named lock (docs/locks.md) and the version of the configuration
//! (docs/configuration.md). Pure; shares no code with the system.

use crate::sim_linear::Model;

/// A named lock.
#[derive(Clone, Copy, Debug)]
pub struct NamedLock;

/// Epoch of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Epoch {
    /// Somebody was told.
    Told(u64),
    /// Nobody was told yet: later than this one.
    After(u64),
}

/// One who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Who.
    pub owner: u64,
    /// Epoch of its ticket.
    pub epoch: Epoch,
    /// With others.
    pub is_shared: bool,
    /// It is being taken away.
    pub is_breaking: bool,
}

/// What is known of a lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockState {
    /// By owner.
    holders: Vec<Holder>,
    /// Newest epoch that anybody was told: later grants have later ones.
    told: u64,
}

/// What was done to a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockDid {
    /// It asked for the lock. `granted`: the epoch; `None`: nobody heard the answer.
    Take {
        /// For whom.
        owner: u64,
        /// With others.
        is_shared: bool,
        /// Epoch of the grant.
        granted: Option<u64>,
    },
    /// It asked for the lock and was told that others are before it: these hold it, and so many (or none) wait.
    Refused {
        /// For whom.
        owner: u64,
        /// With others.
        is_shared: bool,
        /// Who holds it.
        holders: Vec<u64>,
        /// Others wait: a reason even if it would fit.
        is_queued: bool,
    },
    /// It gave this grant back. `released`: whether it was held; `None`: nobody heard the answer.
    Release {
        /// Whose.
        owner: u64,
        /// Which grant.
        epoch: u64,
        /// What it was told.
        released: Option<bool>,
    },
    /// It asked whether this grant still holds.
    Renew {
        /// Whose.
        owner: u64,
        /// Which grant.
        epoch: u64,
        /// What it was told.
        is_held: bool,
    },
    /// It began to take the lock from its owner, or found it begun. `is_known`: it was told so.
    BreakBegun {
        /// From whom.
        owner: u64,
        /// It was told so, and not that the owner does not hold it.
        is_known: bool,
    },
    /// It was told that this owner does not hold the lock.
    NotHeld {
        /// Who.
        owner: u64,
    },
    /// The break of this owner's grant is done, by this operation or another.
    BreakDone {
        /// From whom.
        owner: u64,
    },
    /// It was told who holds the lock: owner, epoch, whether it is being broken.
    Listed(Vec<(u64, u64, bool)>),
}

impl LockState {
    fn find(&self, owner: u64) -> Option<Holder> {
        self.holders.iter().copied().find(|holder| holder.owner == owner)
    }

    /// True if `holder`'s grant may be that of `epoch`.
    fn is_grant(holder: Holder, epoch: u64) -> bool {
        match holder.epoch {
            Epoch::Told(told) => told == epoch,
            Epoch::After(earlier) => epoch > earlier,
        }
    }

    fn fits(&self, owner: u64, is_shared: bool) -> bool {
        self.holders.iter().all(|holder| is_shared && holder.is_shared && holder.owner != owner)
    }

    fn with(&self, holder: Holder) -> LockState {
        let mut after = self.without(holder.owner);
        after.holders.push(holder);
        after.holders.sort_unstable();
        if let Epoch::Told(epoch) = holder.epoch {
            after.told = after.told.max(epoch);
        }
        after
    }

    fn without(&self, owner: u64) -> LockState {
        let mut after = self.clone();
        after.holders.retain(|holder| holder.owner != owner);
        after
    }

    fn take(&self, owner: u64, is_shared: bool, granted: Option<u64>) -> Option<LockState> {
        let epoch = granted.map_or(Epoch::After(self.told), Epoch::Told);
        let fresh = Holder { owner, epoch, is_shared, is_breaking: false };
        match (self.find(owner).filter(|found| !found.is_breaking), granted) {
            // The same grant again.
            (Some(found), Some(epoch)) => {
                (found.is_shared == is_shared && LockState::is_grant(found, epoch)).then(|| self.with(fresh))
            }
            (None, Some(epoch)) => {
                (self.fits(owner, is_shared) && epoch > self.told).then(|| self.with(fresh))
            }
            // Nobody heard: it was granted if it could be.
            (None, None) if self.fits(owner, is_shared) => Some(self.with(fresh)),
            (_, None) => Some(self.clone()),
        }
    }
}

impl Model for NamedLock {
    type State = LockState;
    type Did = LockDid;

    fn is_look(did: &LockDid) -> bool {
        match did {
            LockDid::Refused { .. }
            | LockDid::Renew { .. }
            | LockDid::NotHeld { .. }
            | LockDid::Listed(_) => true,
            LockDid::Release { released, .. } => *released == Some(false),
            LockDid::Take { .. } | LockDid::BreakBegun { .. } | LockDid::BreakDone { .. } => false,
        }
    }

    fn after(state: &LockState, did: &LockDid) -> Option<LockState> {
        let is_held = |owner, epoch| {
            state.find(owner).is_some_and(|found| !found.is_breaking && LockState::is_grant(found, epoch))
        };
        match *did {
            LockDid::Take { owner, is_shared, granted } => state.take(owner, is_shared, granted),
            LockDid::Refused { owner, is_shared, ref holders, is_queued } => {
                let is_true = holders.iter().copied().eq(state.holders.iter().map(|holder| holder.owner));
                let is_kept_out = is_queued || !state.fits(owner, is_shared);
                let has_it = state.find(owner).is_some_and(|found| !found.is_breaking);
                (is_true && is_kept_out && !has_it).then(|| state.clone())
            }
            LockDid::Release { owner, epoch, released } => match (is_held(owner, epoch), released) {
                (true, Some(true) | None) => {
                    let mut after = state.without(owner);
                    after.told = after.told.max(epoch);
                    Some(after)
                }
                (false, Some(false) | None) => Some(state.clone()),
                _ => None,
            },
            LockDid::Renew { owner, epoch, is_held: told } => {
                (is_held(owner, epoch) == told).then(|| state.clone())
            }
            LockDid::BreakBegun { owner, is_known } => match state.find(owner) {
                Some(found) => Some(state.with(Holder { is_breaking: true, ..found })),
                None => (!is_known).then(|| state.clone()),
            },
            LockDid::NotHeld { owner } => state.find(owner).is_none().then(|| state.clone()),
            // If it is not being broken, another one's break was done before, and it may have been taken again since.
            LockDid::BreakDone { owner } => {
                let is_breaking = state.find(owner).is_some_and(|found| found.is_breaking);
                Some(if is_breaking { state.without(owner) } else { state.clone() })
            }
            LockDid::Listed(ref listed) => {
                let is_same = |(holder, (owner, epoch, is_breaking)): (&Holder, &(u64, u64, bool))| {
                    holder.owner == *owner
                        && holder.is_breaking == *is_breaking
                        && LockState::is_grant(*holder, *epoch)
                };
                if listed.len() != state.holders.len() || !state.holders.iter().zip(listed).all(is_same) {
                    return None;
                }
                let mut after = state.clone();
                for (holder, (_, epoch, _)) in after.holders.iter_mut().zip(listed) {
                    holder.epoch = Epoch::Told(*epoch);
                    after.told = after.told.max(*epoch);
                }
                Some(after)
            }
        }
    }
}

/// The configuration: versions that grow, by orders and by what control finds out, each with one content.
#[derive(Clone, Copy, Debug)]
pub struct Versions;

/// The version in force, and a hash of its content if anybody read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct VersionState {
    version: u64,
    content: Option<u64>,
}

/// What was done to the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionDid {
    /// It was told this version, with a hash of its content.
    Read {
        /// In force.
        version: u64,
        /// Of its bytes.
        content: u64,
    },
    /// It changed the configuration, and was told the version in force since.
    Changed(u64),
    /// It would change the configuration, and was told that it is so already, in this version.
    WasSo(u64),
}

impl Model for Versions {
    type State = VersionState;
    type Did = VersionDid;

    fn is_look(did: &VersionDid) -> bool {
        !matches!(did, VersionDid::Changed(_))
    }

    fn after(state: &VersionState, did: &VersionDid) -> Option<VersionState> {
        let known = |version| if version == state.version { state.content } else { None };
        let (version, content, is_right) = match *did {
            VersionDid::Read { version, content } => {
                (version, Some(content), known(version).is_none_or(|known| known == content))
            }
            VersionDid::Changed(version) => (version, None, version > state.version),
            VersionDid::WasSo(version) => (version, known(version), true),
        };
        (is_right && version >= state.version).then_some(VersionState { version, content })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim_linear::{Event, Verdict, check};

    fn did<D>(began: u64, ended: u64, did: D) -> Event<D> {
        Event { began, ended: Some(ended), did }
    }

    fn unknown<D>(began: u64, did: D) -> Event<D> {
        Event { began, ended: None, did }
    }

    fn is_right(history: &[Event<LockDid>]) -> bool {
        match check::<NamedLock>(&LockState::default(), history) {
            Verdict::Linearizable => true,
            Verdict::Not(_) => false,
            Verdict::TooLong => panic!("given up"),
        }
    }

    fn take(owner: u64, granted: u64) -> LockDid {
        LockDid::Take { owner, is_shared: false, granted: Some(granted) }
    }

    fn share(owner: u64, granted: u64) -> LockDid {
        LockDid::Take { owner, is_shared: true, granted: Some(granted) }
    }

    fn release(owner: u64, epoch: u64, released: bool) -> LockDid {
        LockDid::Release { owner, epoch, released: Some(released) }
    }

    fn refused(owner: u64, holders: &[u64]) -> LockDid {
        LockDid::Refused { owner, is_shared: false, holders: holders.to_vec(), is_queued: false }
    }

    #[test]
    fn good_histories_of_locks() {
        assert!(is_right(&[
            did(1, 2, take(1, 1)),
            did(3, 4, refused(2, &[1])),
            did(3, 4, take(1, 1)),
            did(5, 6, release(1, 1, true)),
            did(7, 8, release(1, 1, false)),
            did(9, 10, take(2, 2)),
            did(11, 12, LockDid::Listed(vec![(2, 2, false)])),
        ]));
        // Two at once: one of them waits for the other.
        assert!(is_right(&[did(1, 9, take(1, 2)), did(1, 9, take(2, 1)), did(2, 8, release(2, 1, true))]));
        // Shared with others, and an exclusive one that waits.
        let queued = LockDid::Refused { owner: 4, is_shared: true, holders: vec![1, 2], is_queued: true };
        assert!(is_right(&[
            did(1, 2, share(1, 1)),
            did(3, 4, share(2, 2)),
            did(5, 6, refused(3, &[1, 2])),
            did(7, 8, queued),
        ]));
        // Of two who share it, the first was not told before the second was.
        assert!(is_right(&[
            did(1, 2, share(1, 5)),
            unknown(3, LockDid::Take { owner: 2, is_shared: true, granted: None }),
            did(4, 5, share(3, 7)),
            did(6, 7, release(3, 7, true)),
            did(8, 9, LockDid::Listed(vec![(1, 5, false), (2, 6, false)])),
        ]));
        // Nobody heard of a grant, nor of a release: either way is right.
        let lost = || unknown(1, LockDid::Take { owner: 1, is_shared: false, granted: None });
        assert!(is_right(&[lost(), did(3, 4, take(2, 1))]));
        assert!(is_right(&[lost(), did(3, 4, refused(2, &[1])), did(5, 6, take(1, 1))]));
        let lost = unknown(3, LockDid::Release { owner: 1, epoch: 1, released: None });
        assert!(is_right(&[did(1, 2, take(1, 1)), lost.clone(), did(4, 5, take(2, 2))]));
        assert!(is_right(&[did(1, 2, take(1, 1)), lost, did(4, 5, refused(2, &[1]))]));
    }

    #[test]
    fn bad_histories_of_locks() {
        // Two hold it; a grant that is gone; an epoch that comes twice; a release that was none.
        assert!(!is_right(&[did(1, 2, take(1, 1)), did(3, 4, take(2, 2))]));
        assert!(!is_right(&[did(1, 2, take(1, 1)), did(3, 4, LockDid::Listed(vec![]))]));
        let renewed = LockDid::Renew { owner: 1, epoch: 1, is_held: false };
        assert!(!is_right(&[did(1, 2, take(1, 1)), did(3, 4, renewed)]));
        assert!(!is_right(&[did(1, 2, take(1, 1)), did(3, 4, release(1, 1, true)), did(5, 6, take(2, 1)),]));
        assert!(!is_right(&[did(1, 2, take(1, 1)), did(3, 4, release(1, 1, false))]));
        // Refused without a reason; shared beside an exclusive one.
        assert!(!is_right(&[did(1, 2, refused(2, &[]))]));
        assert!(!is_right(&[did(1, 2, take(1, 1)), did(3, 4, share(2, 2))]));
        // A take that nobody heard of is one grant, not two.
        assert!(!is_right(&[
            unknown(1, LockDid::Take { owner: 1, is_shared: false, granted: None }),
            did(3, 4, refused(2, &[1])),
            did(5, 6, take(1, 5)),
            did(7, 8, take(1, 6)),
        ]));
    }

    #[test]
    fn a_break_frees_a_lock_at_its_end_and_not_before() {
        let begun = |is_known| LockDid::BreakBegun { owner: 1, is_known };
        let done = LockDid::BreakDone { owner: 1 };
        let held = did(1, 2, take(1, 1));
        // While it goes on the owner does not hold it any more, and nobody else does.
        assert!(is_right(&[
            held.clone(),
            did(3, 20, begun(true)),
            did(3, 20, done.clone()),
            did(4, 5, release(1, 1, false)),
            did(6, 7, refused(2, &[1])),
            did(21, 22, take(2, 2)),
        ]));
        // It goes on after who asked was told to wait.
        assert!(is_right(&[
            held.clone(),
            did(3, 4, begun(true)),
            unknown(3, done.clone()),
            did(9, 10, take(2, 2))
        ]));
        assert!(!is_right(&[held.clone(), did(3, 4, begun(true)), did(9, 10, take(2, 2))]));
        assert!(!is_right(&[held.clone(), did(3, 4, begun(true)), did(5, 6, release(1, 1, true))]));
        assert!(!is_right(&[held.clone(), did(3, 4, LockDid::NotHeld { owner: 1 })]));
        // Done for both who asked, and taken again meanwhile.
        assert!(is_right(&[
            held,
            did(3, 20, begun(true)),
            did(3, 20, done.clone()),
            did(3, 9, begun(true)),
            did(3, 9, done),
            did(10, 11, take(1, 2)),
        ]));
    }

    /// Control lost power before its answer, and met the question again when the owner had taken the lock anew.
    #[test]
    fn a_break_that_ran_twice_may_have_broken_two_grants() {
        let begun = |is_known| LockDid::BreakBegun { owner: 1, is_known };
        let done = || LockDid::BreakDone { owner: 1 };
        let told = [
            did(1, 2, take(1, 20)),
            did(3, 20, begun(true)),
            did(3, 21, done()),
            did(4, 5, release(1, 20, false)),
            did(6, 7, take(1, 21)),
            did(22, 23, take(2, 22)),
        ];
        let first_run = [unknown(3, begun(false)), unknown(3, done())];
        assert!(!is_right(&told));
        assert!(is_right(&[told.as_slice(), &first_run].concat()));
        // It does not explain a third grant.
        let third = [did(8, 9, release(1, 21, false)), did(10, 11, take(1, 22)), did(24, 25, take(2, 24))];
        assert!(!is_right(&[&told[..5], &first_run, &third].concat()));
        // Told that it goes on: its end is unknown, that of the first run, too.
        let waits = [&told[..2], &told[3..]].concat();
        assert!(!is_right(&[waits.as_slice(), &first_run].concat()));
        assert!(is_right(&[waits.as_slice(), &first_run, &[unknown(3, done())]].concat()));
    }

    #[test]
    fn versions_grow_and_have_one_content() {
        let is_right = |history: &[Event<VersionDid>]| {
            check::<Versions>(&VersionState::default(), history) == Verdict::Linearizable
        };
        let read = |version, content| VersionDid::Read { version, content };
        assert!(is_right(&[did(1, 2, read(1, 7)), did(3, 9, VersionDid::Changed(2)), did(4, 5, read(1, 7))]));
        assert!(is_right(&[did(1, 9, read(5, 7)), did(2, 3, read(4, 6)), did(10, 11, VersionDid::WasSo(5))]));
        assert!(!is_right(&[did(1, 2, read(2, 7)), did(3, 4, read(1, 6))]));
        assert!(!is_right(&[did(1, 2, read(2, 7)), did(3, 4, read(2, 6))]));
        assert!(!is_right(&[did(1, 2, VersionDid::Changed(2)), did(3, 4, read(1, 6))]));
        assert!(!is_right(&[did(1, 2, read(3, 6)), did(3, 4, VersionDid::Changed(3))]));
    }
}
