//! Types of resources: which credits of one conflict, which one stands for another. A new type is an implementation of [`ResourceType`].
//!
//! [`Resource`] puts those that travel behind one type, so that one table at control has them all: a new one adds a variant to
//! `fops::rm` and an arm here. **Invariant** (checked in the tests for each type): conflicts are symmetric; a credit that covers another conflicts
//! with whatever that one conflicts with. Thread: none. Start at [`ResourceType`].

use std::fmt;

use fops::lock::LockMode;
use fops::rm::{FidRange, RmCredit, RmResource};

use crate::limits::{FID_RANGE_MAX, RM_KEY_BYTES_MAX, RM_NAME_BYTES_MAX};

/// A kind of thing that is lent.
pub trait ResourceType {
    /// What may be used of it.
    type Credit: Clone + Ord + fmt::Debug;

    /// True if two users may not have these at the same time.
    fn conflicts(&self, one: &Self::Credit, other: &Self::Credit) -> bool;

    /// True if whoever has `held` may do everything that `wanted` allows.
    fn covers(&self, held: &Self::Credit, wanted: &Self::Credit) -> bool;

    /// At the root: what is lent for a wish that nothing conflicts with. A type whose parts are alike takes some; `None`: there are no more.
    fn choose(&mut self, wanted: &Self::Credit) -> Option<Self::Credit> {
        Some(wanted.clone())
    }

    /// At a borrower: is a loan that nobody uses kept until it is asked back? Else it goes back after its last use.
    fn is_kept(&self, credit: &Self::Credit) -> bool;
}

/// Reading beside reading; nothing beside writing.
fn modes_conflict(one: LockMode, other: LockMode) -> bool {
    one == LockMode::Exclusive || other == LockMode::Exclusive
}

fn mode_covers(held: LockMode, wanted: LockMode) -> bool {
    held == LockMode::Exclusive || wanted == LockMode::Shared
}

/// A named thing: as a whole, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Whole;

impl ResourceType for Whole {
    type Credit = LockMode;

    fn conflicts(&self, one: &LockMode, other: &LockMode) -> bool {
        modes_conflict(*one, *other)
    }

    fn covers(&self, held: &LockMode, wanted: &LockMode) -> bool {
        mode_covers(*held, *wanted)
    }

    fn is_kept(&self, credit: &LockMode) -> bool {
        *credit == LockMode::Shared
    }
}

/// An ordered space of which parts are lent: bytes of an object, keys of an index. `Place`: a point in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spans<Place>(std::marker::PhantomData<Place>);

impl<Place> Default for Spans<Place> {
    fn default() -> Spans<Place> {
        Spans(std::marker::PhantomData)
    }
}

/// A part of an ordered space. An empty one conflicts with nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span<Place> {
    /// First place in it.
    pub first: Place,
    /// First place behind it; `None`: it has no end.
    pub end: Option<Place>,
    /// How.
    pub mode: LockMode,
}

impl<Place: Ord> Span<Place> {
    fn begins_before_end_of(&self, other: &Span<Place>) -> bool {
        other.end.as_ref().is_none_or(|end| self.first < *end)
    }
}

impl<Place: Clone + Ord + fmt::Debug> ResourceType for Spans<Place> {
    type Credit = Span<Place>;

    fn conflicts(&self, one: &Span<Place>, other: &Span<Place>) -> bool {
        modes_conflict(one.mode, other.mode)
            && one.begins_before_end_of(other)
            && other.begins_before_end_of(one)
    }

    fn covers(&self, held: &Span<Place>, wanted: &Span<Place>) -> bool {
        let ends_inside = match (&held.end, &wanted.end) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(held), Some(wanted)) => wanted <= held,
        };
        mode_covers(held.mode, wanted.mode) && held.first <= wanted.first && ends_inside
    }

    fn is_kept(&self, credit: &Span<Place>) -> bool {
        credit.mode == LockMode::Shared
    }
}

/// Numbers that are handed out once, in ranges, and never come back: a range that is returned, or whose borrower died, is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Numbers {
    /// The first that was never handed out.
    pub next: u64,
}

impl ResourceType for Numbers {
    type Credit = FidRange;

    fn conflicts(&self, _: &FidRange, _: &FidRange) -> bool {
        // Whoever asks names how many, not which: what is lent is new each time.
        false
    }

    fn covers(&self, held: &FidRange, wanted: &FidRange) -> bool {
        held.first <= wanted.first
            && wanted.first.saturating_add(wanted.count) <= held.first.saturating_add(held.count)
    }

    fn choose(&mut self, wanted: &FidRange) -> Option<FidRange> {
        let first = self.next;
        self.next = first.checked_add(wanted.count)?;
        Some(FidRange { first, count: wanted.count })
    }

    fn is_kept(&self, _: &FidRange) -> bool {
        true
    }
}

/// A resource that travels: all types behind one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Bytes of an object, or all of them.
    Object(Spans<u64>),
    /// Keys of an index.
    Keys(Spans<Vec<u8>>),
    /// Numbers of objects.
    Fids(Numbers),
    /// A named thing.
    Named(Whole),
}

/// A credit that does not fit its resource, or its limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadCredit {
    /// Not one of this kind of resource.
    #[error("a credit of that kind does not belong to {resource}")]
    OtherKind {
        /// The resource.
        resource: RmResource,
    },
    /// A name that cannot be.
    #[error("a resource's name has 1 to {RM_NAME_BYTES_MAX} bytes and no control characters")]
    BadName,
    /// A key that is too long.
    #[error("a key has {bytes} bytes; at most {RM_KEY_BYTES_MAX} are possible")]
    LongKey {
        /// Its length.
        bytes: usize,
    },
    /// Nothing, or too much.
    #[error("a range of {count} fids was asked for; 1 to {FID_RANGE_MAX} are possible")]
    Count {
        /// As asked.
        count: u64,
    },
    /// Nothing.
    #[error("the end of what was asked for does not lie behind its beginning")]
    Empty,
}

impl Resource {
    /// The type of a resource by its name. `next_fid`: where the numbers go on, at the root.
    #[must_use]
    pub fn of(name: &RmResource, next_fid: u64) -> Resource {
        match name {
            RmResource::Object(_) => Resource::Object(Spans::default()),
            RmResource::Keys(_) => Resource::Keys(Spans::default()),
            RmResource::Fids => Resource::Fids(Numbers { next: next_fid }),
            RmResource::Named(_) => Resource::Named(Whole),
        }
    }
}

/// Looks whether a credit may be asked of a resource. Errors: see [`BadCredit`].
pub fn check(resource: &RmResource, credit: &RmCredit) -> Result<(), BadCredit> {
    match (resource, credit) {
        (RmResource::Object(_), RmCredit::Whole { .. }) => Ok(()),
        (RmResource::Object(_), RmCredit::Bytes { first, end, .. }) => {
            if first < end {
                Ok(())
            } else {
                Err(BadCredit::Empty)
            }
        }
        (RmResource::Keys(_), RmCredit::Whole { .. }) => Ok(()),
        (RmResource::Keys(_), RmCredit::Keys { first, end, .. }) => {
            let bytes = first.len().max(end.as_ref().map_or(0, Vec::len));
            match end {
                _ if bytes > RM_KEY_BYTES_MAX => Err(BadCredit::LongKey { bytes }),
                Some(end) if first >= end => Err(BadCredit::Empty),
                _ => Ok(()),
            }
        }
        (RmResource::Fids, RmCredit::Fids(FidRange { count, .. })) => {
            if (1..=FID_RANGE_MAX).contains(count) {
                Ok(())
            } else {
                Err(BadCredit::Count { count: *count })
            }
        }
        (RmResource::Named(name), RmCredit::Whole { .. }) => {
            let fits = (1..=RM_NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
            if fits { Ok(()) } else { Err(BadCredit::BadName) }
        }
        _ => Err(BadCredit::OtherKind { resource: resource.clone() }),
    }
}

fn bytes_span(credit: &RmCredit) -> Option<Span<u64>> {
    match credit {
        RmCredit::Whole { mode } => Some(Span { first: 0, end: None, mode: *mode }),
        RmCredit::Bytes { first, end, mode } => Some(Span { first: *first, end: Some(*end), mode: *mode }),
        _ => None,
    }
}

fn key_span(credit: &RmCredit) -> Option<Span<Vec<u8>>> {
    match credit {
        RmCredit::Whole { mode } => Some(Span { first: Vec::new(), end: None, mode: *mode }),
        RmCredit::Keys { first, end, mode } => {
            Some(Span { first: first.clone(), end: end.clone(), mode: *mode })
        }
        _ => None,
    }
}

impl ResourceType for Resource {
    type Credit = RmCredit;

    /// Credits of another kind never get here ([`check`]); they would conflict with everything.
    fn conflicts(&self, one: &RmCredit, other: &RmCredit) -> bool {
        match (self, one, other) {
            (Resource::Object(spans), one, other) => match (bytes_span(one), bytes_span(other)) {
                (Some(one), Some(other)) => spans.conflicts(&one, &other),
                _ => true,
            },
            (Resource::Keys(spans), one, other) => match (key_span(one), key_span(other)) {
                (Some(one), Some(other)) => spans.conflicts(&one, &other),
                _ => true,
            },
            (Resource::Fids(numbers), RmCredit::Fids(one), RmCredit::Fids(other)) => {
                numbers.conflicts(one, other)
            }
            (Resource::Named(whole), RmCredit::Whole { mode: one }, RmCredit::Whole { mode: other }) => {
                whole.conflicts(one, other)
            }
            _ => true,
        }
    }

    fn covers(&self, held: &RmCredit, wanted: &RmCredit) -> bool {
        match (self, held, wanted) {
            (Resource::Object(spans), held, wanted) => match (bytes_span(held), bytes_span(wanted)) {
                (Some(held), Some(wanted)) => spans.covers(&held, &wanted),
                _ => false,
            },
            (Resource::Keys(spans), held, wanted) => match (key_span(held), key_span(wanted)) {
                (Some(held), Some(wanted)) => spans.covers(&held, &wanted),
                _ => false,
            },
            (Resource::Fids(numbers), RmCredit::Fids(held), RmCredit::Fids(wanted)) => {
                numbers.covers(held, wanted)
            }
            (Resource::Named(whole), RmCredit::Whole { mode: held }, RmCredit::Whole { mode: wanted }) => {
                whole.covers(held, wanted)
            }
            _ => false,
        }
    }

    fn choose(&mut self, wanted: &RmCredit) -> Option<RmCredit> {
        match (self, wanted) {
            (Resource::Fids(numbers), RmCredit::Fids(wanted)) => numbers.choose(wanted).map(RmCredit::Fids),
            (_, wanted) => Some(wanted.clone()),
        }
    }

    fn is_kept(&self, credit: &RmCredit) -> bool {
        match credit {
            RmCredit::Whole { mode } | RmCredit::Bytes { mode, .. } | RmCredit::Keys { mode, .. } => {
                *mode == LockMode::Shared
            }
            RmCredit::Fids(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use base::{Fid, FidType};

    use super::*;

    fn all() -> Vec<(RmResource, Vec<RmCredit>)> {
        let modes = [LockMode::Shared, LockMode::Exclusive];
        let fid = Fid::new(FidType::Object, 1, 1);
        let whole: Vec<RmCredit> = modes.iter().map(|mode| RmCredit::Whole { mode: *mode }).collect();
        let mut bytes = whole.clone();
        let mut keys = whole.clone();
        for mode in modes {
            for (first, end) in [(0, 1), (0, 3), (1, 2), (2, 4), (3, u64::MAX)] {
                bytes.push(RmCredit::Bytes { first, end, mode });
                let key = |at: u64| at.to_be_bytes().to_vec();
                keys.push(RmCredit::Keys {
                    first: key(first),
                    end: (end != u64::MAX).then(|| key(end)),
                    mode,
                });
            }
        }
        let fids = [1, 7].map(|count| RmCredit::Fids(FidRange { first: 0, count })).to_vec();
        vec![
            (RmResource::Object(fid), bytes),
            (RmResource::Keys(fid), keys),
            (RmResource::Fids, fids),
            (RmResource::Named("a thing".to_owned()), whole),
        ]
    }

    #[test]
    fn every_type_keeps_the_rules_of_its_kind() {
        for (name, credits) in all() {
            let resource = Resource::of(&name, 1);
            for one in &credits {
                check(&name, one).unwrap();
                assert!(resource.covers(one, one), "{name} {one:?}");
                for other in &credits {
                    assert_eq!(resource.conflicts(one, other), resource.conflicts(other, one));
                    for third in &credits {
                        if resource.covers(one, other) && resource.conflicts(other, third) {
                            assert!(resource.conflicts(one, third), "{name} {one:?} {other:?} {third:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn parts_conflict_where_they_meet_and_only_with_a_writer() {
        let spans = Spans::<u64>::default();
        let span = |first, end, mode| Span { first, end: Some(end), mode };
        use LockMode::{Exclusive, Shared};
        assert!(!spans.conflicts(&span(0, 4, Exclusive), &span(4, 8, Exclusive)));
        assert!(spans.conflicts(&span(0, 5, Exclusive), &span(4, 8, Shared)));
        assert!(!spans.conflicts(&span(0, 5, Shared), &span(4, 8, Shared)));
        let rest = Span { first: 4, end: None, mode: Exclusive };
        assert!(
            spans.conflicts(&rest, &span(100, 101, Shared)) && !spans.conflicts(&rest, &span(0, 4, Shared))
        );
        assert!(spans.covers(&rest, &span(100, 101, Shared)) && !spans.covers(&span(4, 9, Exclusive), &rest));
    }

    #[test]
    fn numbers_never_come_twice_and_end() {
        let mut numbers = Numbers { next: u64::MAX - 10 };
        let wish = FidRange { first: 0, count: 6 };
        assert_eq!(numbers.choose(&wish), Some(FidRange { first: u64::MAX - 10, count: 6 }));
        assert_eq!(numbers.choose(&wish), None);
        assert_eq!(numbers.next, u64::MAX - 4, "a wish that is too large takes nothing");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let fid = Fid::new(FidType::Object, 1, 1);
        let mode = LockMode::Shared;
        let object = RmResource::Object(fid);
        assert_eq!(check(&object, &RmCredit::Bytes { first: 3, end: 3, mode }), Err(BadCredit::Empty));
        let fids = |count| RmCredit::Fids(FidRange { first: 0, count });
        assert!(matches!(check(&object, &fids(1)), Err(BadCredit::OtherKind { .. })));
        for count in [0, FID_RANGE_MAX + 1] {
            assert_eq!(check(&RmResource::Fids, &fids(count)), Err(BadCredit::Count { count }));
        }
        let key = RmCredit::Keys { first: vec![0; RM_KEY_BYTES_MAX + 1], end: None, mode };
        assert!(matches!(check(&RmResource::Keys(fid), &key), Err(BadCredit::LongKey { .. })));
        for name in [String::new(), "a\nb".to_owned(), "x".repeat(RM_NAME_BYTES_MAX + 1)] {
            let whole = RmCredit::Whole { mode };
            assert_eq!(check(&RmResource::Named(name), &whole), Err(BadCredit::BadName));
        }
    }
}
