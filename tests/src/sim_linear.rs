//! Is a history linearizable? A checker that shares no code with the system. Pure.
//!
//! A history is what clients did to one thing (a single-block object, a single key): each operation has a beginning, an end, and what it
//! did and was told. It is linearizable if every operation can be given one moment between its beginning and its end so
//! that, in the order of these moments, each answer is right by the thing's [`Model`]. An operation whose end nobody knows may have its
//! moment at any time after its beginning, or never.
//!
//! Method: that of Wing and Gong, search over which operation comes next, with Lowe's memory of the sets of operations done together with the
//! state, so that no such pair is searched twice. Exponential at worst in the operations that
//! overlap, of which there are few: [`check`] gives up after [`STATES_MAX`] states and says so. Models: [`Register`] here, those of keys in
//! [`crate::sim_keys`].

use std::collections::BTreeSet;
use std::fmt::Debug;

/// States after which a search is given up.
pub const STATES_MAX: usize = 200_000;

/// What a history is of.
pub trait Model {
    /// What the thing holds at one moment.
    type State: Clone + Ord;
    /// What an operation did, with what it was told.
    type Did: Clone + Debug + PartialEq;

    /// The state after `did` took effect in `state`; `None`: it cannot have been told what it was there.
    fn after(state: &Self::State, did: &Self::Did) -> Option<Self::State>;

    /// True if `did` never changes anything, wherever it is right.
    fn is_look(did: &Self::Did) -> bool;

    /// False if an operation whose end nobody knows has no say in this history, as it may never have happened.
    fn may_matter(unknown: &Self::Did, history: &[Event<Self::Did>]) -> bool {
        let _ = (unknown, history);
        true
    }
}

/// One operation of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<D> {
    /// When it began.
    pub began: u64,
    /// When it ended, later than `began`; `None`: nobody knows whether and when it took effect.
    pub ended: Option<u64>,
    /// What it did.
    pub did: D,
}

/// A value that is written and read. Written values are unique, so that a value tells its write.
#[derive(Clone, Copy, Debug)]
pub struct Register;

/// What was done to a register. Only writes may be unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// It wrote this value. Deleting is writing 0, and so is "absent".
    Write(u64),
    /// It returned this value.
    Read(u64),
}

impl Model for Register {
    type State = u64;
    type Did = Did;

    fn after(state: &u64, did: &Did) -> Option<u64> {
        match did {
            Did::Write(written) => Some(*written),
            Did::Read(returned) => (returned == state).then_some(*state),
        }
    }

    fn is_look(did: &Did) -> bool {
        matches!(did, Did::Read(_))
    }

    /// An unknown write that nobody read has no say.
    fn may_matter(unknown: &Did, history: &[Event<Did>]) -> bool {
        match unknown {
            Did::Write(value) => history.iter().any(|event| event.did == Did::Read(*value)),
            Did::Read(_) => false,
        }
    }
}

/// What a check came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<D> {
    /// There is an order.
    Linearizable,
    /// There is none: the operations, in the order of their beginning, of the shortest beginning of the history that has none.
    Not(Vec<Event<D>>),
    /// The search was given up.
    TooLong,
}

/// Judges a history of a thing that held `initial` at first. The events may come in any order.
#[must_use]
pub fn check<M: Model>(initial: &M::State, history: &[Event<M::Did>]) -> Verdict<M::Did> {
    let counts = |event: &&Event<M::Did>| event.ended.is_some() || M::may_matter(&event.did, history);
    let mut events: Vec<Event<M::Did>> = history.iter().filter(counts).cloned().collect();
    events.sort_by_key(|event| (event.began, event.ended.unwrap_or(u64::MAX)));
    match search::<M>(initial, &events) {
        Some(true) => Verdict::Linearizable,
        None => Verdict::TooLong,
        Some(false) => Verdict::Not(shortest::<M>(initial, &events)),
    }
}

/// The shortest prefix, by ends of operations, that has no order: what ends later is not known to have happened there.
fn shortest<M: Model>(initial: &M::State, events: &[Event<M::Did>]) -> Vec<Event<M::Did>> {
    let mut ends: Vec<u64> = events.iter().filter_map(|event| event.ended).collect();
    ends.sort_unstable();
    let prefix = |end: u64| -> Vec<Event<M::Did>> {
        let begun = events.iter().filter(|event| event.began <= end);
        let seen = begun.map(|event| match event.ended {
            Some(ended) if ended <= end => event.clone(),
            _ => Event { ended: None, ..event.clone() },
        });
        seen.collect()
    };
    let first_bad = ends.partition_point(|end| search::<M>(initial, &prefix(*end)) == Some(true));
    ends.get(first_bad).map_or_else(|| events.to_vec(), |end| prefix(*end))
}

/// Which operations are done, as bits: all before `base` are, and those of `above`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Done {
    base: usize,
    above: BTreeSet<usize>,
}

impl Done {
    fn has(&self, index: usize) -> bool {
        index < self.base || self.above.contains(&index)
    }

    fn with(&self, index: usize) -> Done {
        let mut done = self.clone();
        done.above.insert(index);
        while done.above.remove(&done.base) {
            done.base += 1;
        }
        done
    }
}

/// `Some`: whether there is an order. `None`: given up.
fn search<M: Model>(initial: &M::State, events: &[Event<M::Did>]) -> Option<bool> {
    let known = events.iter().filter(|event| event.ended.is_some()).count();
    let twins = twins(events);
    let mut seen = BTreeSet::new();
    let mut open = vec![(Done { base: 0, above: BTreeSet::new() }, initial.clone(), 0usize)];
    while let Some((done, state, ended)) = open.pop() {
        if ended == known {
            return Some(true);
        }
        if !seen.insert((done.clone(), state.clone())) {
            continue;
        }
        if seen.len() > STATES_MAX {
            return None;
        }
        // Whoever began after the first end among those left cannot be next.
        let left = || (done.base..events.len()).filter(|index| !done.has(*index));
        let first_end = left().filter_map(|index| events[index].ended).min().unwrap_or(u64::MAX);
        let next = left().take_while(|index| events[*index].began < first_end);
        let next = next.filter(|index| twins[*index].is_none_or(|twin| done.has(twin)));
        let next = next.filter_map(|index| Some((index, M::after(&state, &events[index].did)?)));
        // One that may never have happened and changes nothing: it did not.
        let next: Vec<(usize, M::State)> =
            next.filter(|(index, after)| events[*index].ended.is_some() || *after != state).collect();
        // A look that is right and tells nothing new: taking it at once loses no order.
        let is_free = |(index, after): &(usize, M::State)| {
            let event = &events[*index];
            *after == state && event.ended.is_some() && M::is_look(&event.did)
        };
        let free = next.iter().position(is_free);
        let next = match free {
            Some(free) => vec![next[free].clone()],
            None => next,
        };
        for (index, after) in next {
            open.push((done.with(index), after, ended + usize::from(events[index].ended.is_some())));
        }
    }
    Some(false)
}

/// Of each operation whose end nobody knows: the last one before it that did the same and whose end nobody knows either. Whatever the later one of the two
/// explains, the earlier one does, so that need not be tried.
fn twins<D: PartialEq>(events: &[Event<D>]) -> Vec<Option<usize>> {
    let is_twin = |one: &Event<D>, other: &Event<D>| {
        one.ended.is_none() && other.ended.is_none() && one.did == other.did
    };
    let twin =
        |(index, event): (usize, &Event<D>)| events[..index].iter().rposition(|one| is_twin(one, event));
    events.iter().enumerate().map(twin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: u64, began: u64, ended: u64) -> Event<Did> {
        Event { began, ended: Some(ended), did: Did::Write(value) }
    }

    fn unknown(value: u64, began: u64) -> Event<Did> {
        Event { began, ended: None, did: Did::Write(value) }
    }

    fn read(value: u64, began: u64, ended: u64) -> Event<Did> {
        Event { began, ended: Some(ended), did: Did::Read(value) }
    }

    fn is_linear(history: &[Event<Did>]) -> bool {
        match check::<Register>(&0, history) {
            Verdict::Linearizable => true,
            Verdict::Not(_) => false,
            Verdict::TooLong => panic!("given up"),
        }
    }

    #[test]
    fn good_histories() {
        assert!(is_linear(&[]));
        assert!(is_linear(&[read(0, 1, 2)]));
        assert!(is_linear(&[write(1, 1, 2), read(1, 3, 4)]));
        // While a write runs, a read may return either.
        assert!(is_linear(&[write(1, 1, 10), read(0, 2, 3), read(1, 4, 5)]));
        // Two writes at once, in either order.
        assert!(is_linear(&[write(1, 1, 10), write(2, 1, 10), read(1, 11, 12), read(1, 13, 14)]));
        assert!(is_linear(&[write(1, 1, 10), write(2, 1, 10), read(2, 2, 4), read(1, 5, 6)]));
        // The textbook's queue of overlaps: each read inside of the next write.
        let chain: Vec<Event<Did>> = (1..40u64)
            .flat_map(|n| [write(n, n * 10, n * 10 + 15), read(n, n * 10 + 12, n * 10 + 19)])
            .collect();
        assert!(is_linear(&chain));
        // An unknown write: before, later, never.
        assert!(is_linear(&[write(1, 1, 2), unknown(2, 3), read(2, 4, 5), read(2, 6, 7)]));
        assert!(is_linear(&[unknown(2, 3), read(0, 4, 5), read(0, 6, 7), read(2, 100, 101)]));
        assert!(is_linear(&[unknown(2, 3), write(1, 4, 5), read(1, 6, 7)]));
        assert!(is_linear(&[unknown(2, 3), write(1, 4, 5), read(1, 6, 7), read(2, 8, 9)]));
    }

    #[test]
    fn bad_histories() {
        // A lost write, a stale read, a value from nowhere, one before its write.
        assert!(!is_linear(&[write(1, 1, 2), read(0, 3, 4)]));
        assert!(!is_linear(&[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)]));
        assert!(!is_linear(&[read(7, 1, 2)]));
        assert!(!is_linear(&[read(1, 1, 2), write(1, 3, 4)]));
        // New, then old: both reads are within the write, one after the other.
        assert!(!is_linear(&[write(1, 1, 10), read(1, 2, 3), read(0, 4, 5)]));
        // Two writes at once, and readers who saw them in different orders.
        assert!(!is_linear(&[write(1, 1, 10), write(2, 1, 10), read(1, 11, 12), read(2, 13, 14),]));
        assert!(!is_linear(&[unknown(2, 3), read(2, 4, 5), read(0, 6, 7)]));
        assert!(!is_linear(&[unknown(2, 3), read(2, 4, 5), write(1, 6, 7), read(2, 8, 9)]));
        assert!(!is_linear(&[unknown(2, 30), read(2, 4, 5)]));
    }

    #[test]
    fn an_unknown_operation_that_may_have_run_several_times_counts_as_often() {
        let again = |count| vec![unknown(2, 3); count];
        let seen = [read(2, 4, 5), write(1, 6, 7), read(2, 8, 9), write(1, 10, 11), read(2, 12, 13)];
        let is_right = |count: usize| is_linear(&[again(count), seen.to_vec()].concat());
        assert!(!is_right(2) && is_right(3));
        // Many of them do not make the search long: order among them tells nothing, and those that are not needed are left out.
        assert!(is_right(400));
        let lost = [again(400), seen.to_vec(), vec![write(3, 14, 15), read(1, 16, 17)]].concat();
        assert!(!is_linear(&lost));
    }

    #[test]
    fn the_counterexample_is_the_shortest() {
        let mut history = vec![write(1, 1, 2), read(0, 3, 4)];
        history.extend((10..60).map(|n| write(n, n * 10, n * 10 + 5)));
        assert_eq!(check::<Register>(&0, &history), Verdict::Not(vec![write(1, 1, 2), read(0, 3, 4)]));
    }

    #[test]
    fn what_a_real_register_does_passes_and_one_changed_read_does_not() {
        // A register that takes effect at a drawn moment of each operation: linearizable by construction.
        let mut random = fastrand::Rng::with_seed(5);
        let mut rejected = 0;
        for _ in 0..60 {
            let mut moments: Vec<(u64, Event<Did>)> = (1..60u64)
                .map(|n| {
                    let began = random.u64(0..1000);
                    let ended = began + random.u64(2..80);
                    let did = if random.bool() { Did::Write(n) } else { Did::Read(0) };
                    let is_unknown = matches!(did, Did::Write(_)) && random.u8(0..10) == 0;
                    let event = Event { began, ended: (!is_unknown).then_some(ended), did };
                    (random.u64(began..ended), event)
                })
                .collect();
            moments.sort_by_key(|(moment, _)| *moment);
            let mut value = 0;
            let mut history: Vec<Event<Did>> = Vec::new();
            for (_, mut event) in moments {
                match &mut event.did {
                    Did::Write(written) => value = *written,
                    Did::Read(returned) => *returned = value,
                }
                history.push(event);
            }
            assert!(is_linear(&history));
            // The last read returns what was there long before: wrong, unless nothing was written in between.
            if let Some(last) =
                history.iter().rposition(|event| matches!(event.did, Did::Read(value) if value != 0))
            {
                history[last].did = Did::Read(0);
                rejected += u32::from(!is_linear(&history));
            }
        }
        assert!(rejected > 45, "{rejected} of 60");
    }
}
