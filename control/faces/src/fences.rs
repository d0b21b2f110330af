//! Fences at a data service: which tickets are refused, and which changes with a ticket are under way.
//!
//! **Invariant**: once [`Fences::settled`] gave a number, no change that a fence up to that number refuses is under way, and none
//! starts. A change asks twice: when it arrives ([`Fences::enter`]) and before its effect begins ([`Pass::begin`]); from then to the end of
//! its pass it counts as under way. Pure but for the bell. Bound: `limits::FENCES_MAX` owners, held by control; a pass for each
//! running request. Thread: one locality. Rules: docs/locks.md#fencing. Start at [`Fences::enter`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use fops::FopError;
use fops::lock::{Fence, OwnerId, Ticket};
use runtime::sync::Notify;

#[derive(Default)]
struct Table {
    /// Tickets up to this epoch are refused, whoever's they are.
    floor: u64,
    by_owner: BTreeMap<OwnerId, u64>,
    /// Number of the newest fence in the table.
    newest: u64,
    /// Changes whose effect has begun, by ticket.
    under_way: BTreeMap<(OwnerId, u64), u32>,
}

impl Table {
    /// The newest refused epoch that stands against a ticket; 0 if none does.
    fn refused_up_to(&self, owner: OwnerId) -> u64 {
        self.floor.max(self.by_owner.get(&owner).copied().unwrap_or(0))
    }

    fn check(&self, ticket: Ticket) -> Result<(), FopError> {
        let fenced = self.refused_up_to(ticket.owner);
        if ticket.epoch <= fenced { Err(FopError::Fenced { epoch: ticket.epoch, fenced }) } else { Ok(()) }
    }

    fn apply(&mut self, fence: Fence) {
        self.newest = self.newest.max(fence.number);
        if fence.owner == OwnerId::EVERYONE {
            self.floor = self.floor.max(fence.epoch);
            let floor = self.floor;
            self.by_owner.retain(|_, epoch| *epoch > floor);
        } else {
            let epoch = self.by_owner.entry(fence.owner).or_default();
            *epoch = (*epoch).max(fence.epoch);
        }
    }

    /// True while the effect of a change that is refused by now goes on.
    fn has_late_changes(&self) -> bool {
        self.under_way.keys().any(|(owner, epoch)| *epoch <= self.refused_up_to(*owner))
    }
}

#[derive(Default)]
struct Inner {
    table: RefCell<Table>,
    /// Rings when a change is over.
    over: Notify,
}

/// The fences in force at a locality. Clones share them.
#[derive(Clone, Default)]
pub struct Fences {
    inner: Rc<Inner>,
}

impl Fences {
    /// A change arrives. Error: its ticket is refused.
    pub fn enter(&self, ticket: Ticket) -> Result<Pass, FopError> {
        self.inner.table.borrow().check(ticket)?;
        Ok(Pass { fences: self.clone(), ticket, begun: Cell::new(false) })
    }

    /// Puts fences in force, in any order. Changes that have begun go on; see [`Fences::settled`].
    pub fn apply(&self, fences: &[Fence]) {
        let mut table = self.inner.table.borrow_mut();
        fences.iter().for_each(|fence| table.apply(*fence));
    }

    /// Number of the newest fence in force, 0 for none.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.inner.table.borrow().newest
    }

    /// Waits until no refused change is under way. Answer: the number of the newest fence for which that is so.
    pub async fn settled(&self) -> u64 {
        loop {
            let over = self.inner.over.notified();
            if !self.inner.table.borrow().has_late_changes() {
                return self.newest();
            }
            over.await;
        }
    }
}

/// One change that was let in.
pub struct Pass {
    fences: Fences,
    ticket: Ticket,
    begun: Cell<bool>,
}

impl Pass {
    /// The effect begins now: from here on a fence waits for this change. May be called again. Error: refused by now.
    pub fn begin(&self) -> Result<(), FopError> {
        let mut table = self.fences.inner.table.borrow_mut();
        table.check(self.ticket)?;
        if !self.begun.replace(true) {
            *table.under_way.entry((self.ticket.owner, self.ticket.epoch)).or_default() += 1;
        }
        Ok(())
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if !self.begun.get() {
            return;
        }
        let key = (self.ticket.owner, self.ticket.epoch);
        let mut table = self.fences.inner.table.borrow_mut();
        if let Some(count) = table.under_way.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                table.under_way.remove(&key);
            }
        }
        drop(table);
        self.fences.inner.over.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn ticket(owner: u128, epoch: u64) -> Ticket {
        Ticket { owner: OwnerId(owner), epoch }
    }

    fn fence(number: u64, owner: u128, epoch: u64) -> Fence {
        Fence { number, owner: OwnerId(owner), epoch }
    }

    #[test]
    fn old_tickets_of_a_fenced_owner_are_refused_and_new_ones_are_not() {
        let fences = Fences::default();
        fences.apply(&[fence(1, 7, 5), fence(2, 8, 6)]);
        assert!(matches!(fences.enter(ticket(7, 5)), Err(FopError::Fenced { fenced: 5, .. })));
        assert!(fences.enter(ticket(7, 6)).is_ok() && fences.enter(ticket(9, 1)).is_ok());
        // An older fence that comes late takes nothing back.
        fences.apply(&[fence(1, 7, 3)]);
        assert!(fences.enter(ticket(7, 5)).is_err());
        fences.apply(&[fence(3, 0, 6)]);
        assert!(fences.enter(ticket(9, 6)).is_err() && fences.enter(ticket(9, 7)).is_ok());
        assert!(fences.inner.table.borrow().by_owner.is_empty(), "the floor stands for both");
        assert_eq!(fences.newest(), 3);
    }

    #[test]
    fn a_fence_is_settled_once_no_refused_change_is_under_way() {
        let fences = Fences::default();
        let (waits, begun, other) =
            (fences.enter(ticket(7, 5)).unwrap(), fences.enter(ticket(7, 4)).unwrap(), ticket(8, 1));
        begun.begin().unwrap();
        begun.begin().unwrap();
        let other = fences.enter(other).unwrap();
        other.begin().unwrap();
        fences.apply(&[fence(1, 7, 5)]);
        assert!(matches!(waits.begin(), Err(FopError::Fenced { .. })), "it was let in, and is refused now");
        let mut settled = fences.settled().boxed_local();
        assert!((&mut settled).now_or_never().is_none());
        drop(waits);
        assert!((&mut settled).now_or_never().is_none());
        drop(begun);
        assert_eq!((&mut settled).now_or_never(), Some(1), "changes of others go on");
    }
}
