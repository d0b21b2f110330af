//! One owner of a resource, without I/O: who uses what of it, who waits, what was borrowed for it, what is asked back.
//!
//! The same machine stands at the root (control, which owns everything), at a borrower (a client, which borrows of control and lets its
//! local users use that), and at any owner between: what it lends of what it borrowed is sublet.
//! **Invariant**: two credits that conflict are never used at a time by different users, over all owners of a tree, as long as a lost
//! borrower is buried only when nothing of it can have an effect any more. **Invariant**: whoever waits gets what it asked for once those before
//! it gave back: nobody passes a waiter whose wish conflicts with its own. **Invariant**: a loan that was asked back gets no new users.
//! Lost wake-ups: none; every event that may free something looks at the whole queue again.
//! A user that holds a credit and waits for a conflicting one waits for itself: give back first. Loans are whole: not split, joined or weakened.
//! Bounds: the caller's (each queue and table entry is made by an `Ask` or a `Borrow` of its). Cost: a settled queue of w over u uses takes w x (w + u) comparisons.
//! Thread: none. Tables of states: docs/rm.md. Start at [`Owner::handle`].

use std::collections::{BTreeMap, VecDeque};

use fops::rm::BorrowerId;

use crate::rm::resource::ResourceType;

/// Whose request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum User {
    /// Somebody beside the owner: each request stands for itself.
    Local,
    /// Another owner, which keeps its own users apart: its loans do not conflict with each other.
    Borrower(BorrowerId),
}

/// Name of a request, and of the use or loan that it becomes: chosen by whoever asks, never used twice by one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asker {
    /// Who.
    pub user: User,
    /// Which request.
    pub number: u64,
}

/// What happens to an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<C> {
    /// Somebody wants a credit. Again: the same answer.
    Ask {
        /// Who.
        asker: Asker,
        /// What.
        credit: C,
    },
    /// Given back, or no longer waited for.
    Return {
        /// Whose.
        asker: Asker,
    },
    /// A borrower's lease ended, and its effects may still be under way: it gets nothing more, and nobody gets what it has.
    Lost {
        /// Who.
        borrower: BorrowerId,
    },
    /// Nothing of a borrower can have an effect any more: its loans are free.
    Buried {
        /// Who.
        borrower: BorrowerId,
    },
    /// The creditor lent what [`Action::Borrow`] asked for.
    Lent {
        /// As in the action.
        number: u64,
        /// What exactly.
        credit: C,
    },
    /// The creditor does not lend it.
    Denied {
        /// As in the action.
        number: u64,
    },
    /// The creditor wants a loan back. May come again, and late.
    AskedBack {
        /// Which.
        number: u64,
    },
    /// The lease from the creditor ended: what was borrowed is no longer ours.
    CreditorLost,
}

/// What an owner wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<C> {
    /// It may be used from now on, until it is returned.
    Granted {
        /// Whose request.
        asker: Asker,
        /// What exactly.
        credit: C,
    },
    /// It will not be granted.
    Refused {
        /// Whose request.
        asker: Asker,
        /// Why.
        why: Refused,
    },
    /// Others wait for what it has. A borrower gives it back as soon as nobody uses it there; a local user may do as it likes.
    AskBack {
        /// Whose use.
        asker: Asker,
    },
    /// It may not be used any longer, from this moment on.
    Void {
        /// Whose use.
        asker: Asker,
    },
    /// Ask the creditor.
    Borrow {
        /// Name of the request there, and of the loan.
        number: u64,
        /// What.
        credit: C,
        /// For whom.
        asker: Asker,
    },
    /// Give a loan back to the creditor.
    GiveBack {
        /// Which.
        number: u64,
    },
}

/// Why a request ended without a credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// The resource has no more of it.
    Exhausted,
    /// The creditor said no.
    Denied,
    /// The lease from the creditor ended.
    CreditorLost,
}

/// Where a request stands at its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RequestState {
    /// Not there, or no longer.
    None,
    /// In the queue.
    Waiting,
    /// In the queue, and the creditor is asked.
    Borrowing,
    /// It may be used.
    Used,
    /// The same, and others wait for it.
    AskedBack,
    /// Its borrower is lost; nobody else may use it yet.
    Lost,
}

/// Where a loan from the creditor stands at the borrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoanState {
    /// Not there, or no longer.
    None,
    /// The creditor is asked.
    Borrowing,
    /// Ours, and nobody uses it.
    Idle,
    /// Somebody uses it.
    InUse,
    /// The same, and it goes back after the last use.
    AskedBack,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting<C> {
    asker: Asker,
    credit: C,
    /// Number of the loan that was asked for it.
    borrowing: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Use<C> {
    credit: C,
    /// The loan that covers it; `None` at the root.
    from: Option<u64>,
    asked_back: bool,
    lost: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Loan<C> {
    credit: C,
    asked_back: bool,
}

/// The owner of one resource in one place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner<R: ResourceType> {
    resource: R,
    is_root: bool,
    waiting: VecDeque<Waiting<R::Credit>>,
    uses: BTreeMap<Asker, Use<R::Credit>>,
    borrowed: BTreeMap<u64, Loan<R::Credit>>,
}

/// Different users, who have to be kept apart here.
fn are_apart(one: Asker, other: Asker) -> bool {
    one.user != other.user || (one.user == User::Local && one.number != other.number)
}

impl<R: ResourceType> Owner<R> {
    /// Owns all of `resource`, unlent.
    #[must_use]
    pub fn root(resource: R) -> Owner<R> {
        Owner { is_root: true, ..Owner::borrower(resource) }
    }

    /// Owns nothing, and borrows what is asked of it.
    #[must_use]
    pub fn borrower(resource: R) -> Owner<R> {
        Owner {
            resource,
            is_root: false,
            waiting: VecDeque::new(),
            uses: BTreeMap::new(),
            borrowed: BTreeMap::new(),
        }
    }

    /// What it is about.
    #[must_use]
    pub fn resource(&self) -> &R {
        &self.resource
    }

    /// A loan that stood before a restart of the root: in force, whatever else is.
    pub fn restore(&mut self, asker: Asker, credit: R::Credit) {
        self.uses.insert(asker, Use { credit, from: None, asked_back: false, lost: false });
    }

    /// Nobody waits, nothing is used, lent or borrowed: it may be forgotten, but for what the resource itself remembers.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.uses.is_empty() && self.borrowed.is_empty()
    }

    /// One event; what follows of it, in order. `last_number`: the last number used for a loan, one more with each
    /// [`Action::Borrow`]; all owners that borrow of one creditor share it.
    pub fn handle(&mut self, event: Event<R::Credit>, last_number: &mut u64) -> Vec<Action<R::Credit>> {
        let mut actions = Vec::new();
        match event {
            Event::Ask { asker, credit } => match self.uses.get(&asker) {
                Some(Use { lost: true, .. }) => {
                    actions.push(Action::Refused { asker, why: Refused::Denied });
                }
                Some(found) => actions.push(Action::Granted { asker, credit: found.credit.clone() }),
                None if self.waiting.iter().any(|waiting| waiting.asker == asker) => {}
                None => self.waiting.push_back(Waiting { asker, credit, borrowing: None }),
            },
            Event::Return { asker } => {
                self.waiting.retain(|waiting| waiting.asker != asker);
                if self.uses.get(&asker).is_some_and(|found| !found.lost) {
                    self.uses.remove(&asker);
                }
            }
            Event::Lost { borrower } => {
                let user = User::Borrower(borrower);
                self.waiting.retain(|waiting| waiting.asker.user != user);
                let theirs = self.uses.iter_mut().filter(|(asker, _)| asker.user == user);
                theirs.for_each(|(_, found)| found.lost = true);
            }
            Event::Buried { borrower } => {
                let user = User::Borrower(borrower);
                self.waiting.retain(|waiting| waiting.asker.user != user);
                self.uses.retain(|asker, _| asker.user != user);
            }
            Event::Lent { number, credit } => {
                for waiting in &mut self.waiting {
                    waiting.borrowing = waiting.borrowing.filter(|borrowing| *borrowing != number);
                }
                self.borrowed.entry(number).or_insert(Loan { credit, asked_back: false });
            }
            Event::Denied { number } => {
                let denied = |waiting: &Waiting<_>| waiting.borrowing == Some(number);
                for asker in self.waiting.iter().filter(|found| denied(found)).map(|found| found.asker) {
                    actions.push(Action::Refused { asker, why: Refused::Denied });
                }
                self.waiting.retain(|waiting| !denied(waiting));
            }
            Event::AskedBack { number } => {
                if let Some(loan) = self.borrowed.get_mut(&number) {
                    loan.asked_back = true;
                    for (asker, found) in &mut self.uses {
                        if found.from == Some(number) && !found.asked_back {
                            found.asked_back = true;
                            actions.push(Action::AskBack { asker: *asker });
                        }
                    }
                }
            }
            Event::CreditorLost => {
                let voided = std::mem::take(&mut self.uses);
                actions.extend(voided.into_keys().map(|asker| Action::Void { asker }));
                let refused = std::mem::take(&mut self.waiting).into_iter();
                let why = Refused::CreditorLost;
                actions.extend(refused.map(|waiting| Action::Refused { asker: waiting.asker, why }));
                self.borrowed.clear();
            }
        }
        self.settle(last_number, &mut actions);
        actions
    }

    /// Grants what can be granted, asks for what has to come first, gives back what nobody is to use.
    fn settle(&mut self, last_number: &mut u64, actions: &mut Vec<Action<R::Credit>>) {
        let mut place = 0;
        while let Some(Waiting { asker, credit, borrowing }) = self.waiting.get(place).cloned() {
            let before = self.waiting.iter().take(place);
            let is_passing = |first: &Waiting<_>| {
                are_apart(first.asker, asker) && self.resource.conflicts(&first.credit, &credit)
            };
            if before.clone().any(is_passing) {
                place += 1;
                continue;
            }
            let mut in_the_way = 0;
            for (other, found) in &mut self.uses {
                if are_apart(*other, asker) && self.resource.conflicts(&found.credit, &credit) {
                    in_the_way += 1;
                    if !found.asked_back && !found.lost {
                        found.asked_back = true;
                        actions.push(Action::AskBack { asker: *other });
                    }
                }
            }
            if in_the_way > 0 {
                place += 1;
                continue;
            }
            let mut lent = self.borrowed.iter().filter(|(_, loan)| !loan.asked_back);
            let from = lent.find(|(_, loan)| self.resource.covers(&loan.credit, &credit));
            let from = from.map(|(number, _)| *number);
            if !self.is_root && from.is_none() {
                if borrowing.is_none() {
                    *last_number += 1;
                    self.waiting[place].borrowing = Some(*last_number);
                    actions.push(Action::Borrow { number: *last_number, credit, asker });
                }
                place += 1;
                continue;
            }
            // Out of the queue either way: the next one moves to this place.
            self.waiting.remove(place);
            let chosen = if self.is_root { self.resource.choose(&credit) } else { Some(credit) };
            match chosen {
                None => actions.push(Action::Refused { asker, why: Refused::Exhausted }),
                Some(credit) => {
                    let granted = Use { credit: credit.clone(), from, asked_back: false, lost: false };
                    self.uses.insert(asker, granted);
                    actions.push(Action::Granted { asker, credit });
                }
            }
        }
        let is_idle = |number: u64| self.uses.values().all(|found| found.from != Some(number));
        let done: Vec<u64> = self
            .borrowed
            .iter()
            .filter(|(_, loan)| loan.asked_back || !self.resource.is_kept(&loan.credit))
            .map(|(number, _)| *number)
            .filter(|number| is_idle(*number))
            .collect();
        for number in done {
            self.borrowed.remove(&number);
            actions.push(Action::GiveBack { number });
        }
    }

    /// Where a request stands.
    #[must_use]
    pub fn request(&self, asker: Asker) -> RequestState {
        if let Some(found) = self.uses.get(&asker) {
            return match (found.lost, found.asked_back) {
                (true, _) => RequestState::Lost,
                (false, true) => RequestState::AskedBack,
                (false, false) => RequestState::Used,
            };
        }
        match self.waiting.iter().find(|waiting| waiting.asker == asker) {
            None => RequestState::None,
            Some(Waiting { borrowing: None, .. }) => RequestState::Waiting,
            Some(_) => RequestState::Borrowing,
        }
    }

    /// Where a loan from the creditor stands.
    #[must_use]
    pub fn loan(&self, number: u64) -> LoanState {
        let Some(loan) = self.borrowed.get(&number) else {
            let asks = self.waiting.iter().any(|waiting| waiting.borrowing == Some(number));
            return if asks { LoanState::Borrowing } else { LoanState::None };
        };
        let is_used = self.uses.values().any(|found| found.from == Some(number));
        match (loan.asked_back, is_used) {
            (true, _) => LoanState::AskedBack,
            (false, true) => LoanState::InUse,
            (false, false) => LoanState::Idle,
        }
    }

    /// What a request was granted.
    #[must_use]
    pub fn granted(&self, asker: Asker) -> Option<&R::Credit> {
        self.uses.get(&asker).map(|found| &found.credit)
    }

    /// Everything that is used or lent.
    pub fn uses(&self) -> impl Iterator<Item = (Asker, &R::Credit)> {
        self.uses.iter().map(|(asker, found)| (*asker, &found.credit))
    }

    /// Whoever has what `asker` waits for; and how many requests that conflict wait before it.
    #[must_use]
    pub fn in_the_way(&self, asker: Asker) -> (Vec<Asker>, usize) {
        let Some(place) = self.waiting.iter().position(|waiting| waiting.asker == asker) else {
            return (Vec::new(), 0);
        };
        let wanted = &self.waiting[place].credit;
        let keeps = |(other, found): &(&Asker, &Use<R::Credit>)| {
            are_apart(**other, asker) && self.resource.conflicts(&found.credit, wanted)
        };
        let before = self.waiting.iter().take(place);
        let ahead = before
            .filter(|first| are_apart(first.asker, asker) && self.resource.conflicts(&first.credit, wanted));
        (self.uses.iter().filter(keeps).map(|(other, _)| *other).collect(), ahead.count())
    }

    /// How many wait.
    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests;
