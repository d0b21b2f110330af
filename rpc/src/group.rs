//! Peers of which one leads, under the name of one of them: whoever calls that name is taken to the one that leads.
//!
//! A member that does not lead says so, and perhaps who does ([`FopError::NotLeader`]); one that is out of reach, or that serves nobody, is passed
//! over. **Invariant**: a request that may have run is sent to another member only if it may run twice ([`Fop::REPEAT`]): members share no
//! reply cache. A request that waits long at a member is dropped when the member's machine answers no ping any more: it may stand still.
//! Left over: a group of which no member leads. The call goes round until its deadline, and its error is the last one seen.
//! Thread: the owning locality. Start at [`RpcMachine::set_group`].

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use base::{Endpoint, Instant};
use fops::{Fop, FopError, Repeat};
use futures_util::future::{Either, select};

use crate::config::{Answer, Bulk, CallOptions};
use crate::error::CallError;
use crate::machine::RpcMachine;

/// Without a connection to a member for this long, a first one too, the next one is asked.
const UNREACHABLE_MAX: Duration = Duration::from_millis(500);
/// How often a member that has not answered is pinged, and how long that may take.
const PING_EVERY: Duration = Duration::from_secs(1);
/// Pause after every member was asked in vain. The first is short, as a lead that was handed over is taken up soon, and each one twice as long as the one
/// before: an election takes longer than asking round.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// The members, and which of them led when last heard.
pub(crate) struct Group {
    name: Endpoint,
    members: RefCell<Vec<Endpoint>>,
    leads: Cell<usize>,
    /// Requests that one member did not answer and that were sent to another.
    moved: Cell<u64>,
}

impl Group {
    fn leader(&self) -> Endpoint {
        let members = self.members.borrow();
        members.get(self.leads.get()).copied().unwrap_or(self.name)
    }

    /// `member` was asked in vain; the next one, unless another call has found out already.
    fn pass_over(&self, member: Endpoint) {
        if self.leader() == member {
            self.leads.set((self.leads.get() + 1) % self.members.borrow().len());
        }
    }

    /// `member`, which does not lead, says who does. It may have joined since this process started.
    fn follow(&self, member: Endpoint, leader: Endpoint) {
        if self.leader() != member || leader == member {
            return;
        }
        let mut members = self.members.borrow_mut();
        let known = members.iter().position(|known| *known == leader);
        self.leads.set(known.unwrap_or_else(|| {
            members.push(leader);
            members.len() - 1
        }));
    }

    fn count(&self) -> usize {
        self.members.borrow().len()
    }
}

/// Whether the next member is to be asked after this.
fn goes_on<F: Fop>(error: &CallError) -> bool {
    match error {
        CallError::Fop(FopError::NotLeader { .. } | FopError::NotServing { .. }) => true,
        CallError::Fop(_) => false,
        error => error.is_unreachable() && (F::REPEAT == Repeat::Idempotent || !error.may_have_executed()),
    }
}

impl RpcMachine {
    /// From now on calls of `name` go to whichever of `name` and `others` leads. Without others it is a peer like any other.
    pub fn set_group(&self, name: Endpoint, others: &[Endpoint]) {
        let mut members = vec![name];
        members.extend(others.iter().filter(|other| **other != name));
        let group = Group { name, members: RefCell::new(members), leads: Cell::new(0), moved: Cell::new(0) };
        *self.group().borrow_mut() = (!others.is_empty()).then(|| Rc::new(group));
    }

    /// Who was last known to lead the group of this name; the name itself if there is no such group.
    #[must_use]
    pub fn leader_of(&self, name: Endpoint) -> Endpoint {
        self.group_of(name).map_or(name, |group| group.leader())
    }

    /// Requests to the group of this name that one member did not answer and that were sent to another: each may have run at both.
    #[must_use]
    pub fn moved_in_group(&self, name: Endpoint) -> u64 {
        self.group_of(name).map_or(0, |group| group.moved.get())
    }

    pub(crate) fn group_of(&self, to: Endpoint) -> Option<Rc<Group>> {
        self.group().borrow().as_ref().filter(|group| group.name == to).cloned()
    }

    pub(crate) async fn call_group<F: Fop>(
        &self,
        group: &Group,
        fop: &F,
        bulk: Bulk,
        options: CallOptions,
    ) -> Result<Answer<F::Reply>, CallError> {
        let locality = self.locality().clone();
        let unreachable_max = options.unreachable_max.map_or(UNREACHABLE_MAX, |max| max.min(UNREACHABLE_MAX));
        let options = options.unreachable_max(unreachable_max).connect_max(unreachable_max);
        let Bulk { source, mut sink } = bulk;
        let may_ask_another = sink.is_empty();
        let (mut asked, mut pause) = (0, PAUSE_MIN);
        loop {
            let member = group.leader();
            let bulk = Bulk { source: source.clone(), sink: std::mem::take(&mut sink) };
            let answer = {
                let call = pin!(self.call_itself(member, fop, bulk, options));
                let silence = pin!(self.silence(member, options.deadline));
                match select(call, silence).await {
                    Either::Left((answer, _)) => answer,
                    Either::Right((error, _)) => Err(error(F::NAME)),
                }
            };
            let Err(error) = answer else { return answer };
            if !goes_on::<F>(&error) || !may_ask_another {
                return Err(error);
            }
            group.moved.set(group.moved.get() + 1);
            match error {
                CallError::Fop(FopError::NotLeader { leader: Some(leader) }) => group.follow(member, leader),
                _ => group.pass_over(member),
            }
            asked += 1;
            if asked % group.count() == 0 {
                locality.sleep(pause).await;
                pause = PAUSE_MAX.min(2 * pause);
            }
            if locality.now() >= options.deadline {
                return Err(error);
            }
        }
    }

    /// Waits until the machine of `member` leaves a ping unanswered. Answer: the error of a call of that name.
    async fn silence(&self, member: Endpoint, deadline: Instant) -> impl FnOnce(&'static str) -> CallError {
        let locality = self.locality().clone();
        let since = locality.now();
        loop {
            locality.sleep(PING_EVERY).await;
            if locality.now() >= deadline {
                // The call's own deadline says it better.
                std::future::pending::<()>().await;
            }
            if self.discover(member, PING_EVERY).await.is_err() {
                break;
            }
        }
        let age = locality.now().since(since);
        move |operation| CallError::PeerLost {
            peer: member,
            operation,
            age,
            resends: 0,
            may_have_executed: true,
            cause: crate::Cause { waited_for: crate::requester::WaitedFor::Reply, net: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(tmid: u16) -> Endpoint {
        Endpoint { nid: base::Nid::LOOPBACK, pid: 1, portal: 34, tmid }
    }

    fn group() -> Group {
        let members = (1..=3).map(endpoint).collect();
        Group { name: endpoint(1), members: RefCell::new(members), leads: Cell::new(0), moved: Cell::new(0) }
    }

    #[test]
    fn the_next_is_asked_once_for_each_that_was_asked_in_vain() {
        let group = group();
        assert_eq!(group.leader(), endpoint(1));
        group.pass_over(endpoint(1));
        group.pass_over(endpoint(1));
        assert_eq!(group.leader(), endpoint(2), "two calls found out the same");
        group.pass_over(endpoint(2));
        group.pass_over(endpoint(3));
        assert_eq!(group.leader(), endpoint(1), "and round");
    }

    #[test]
    fn who_leads_is_believed_if_the_one_that_was_asked_says_so() {
        let group = group();
        group.follow(endpoint(1), endpoint(3));
        assert_eq!(group.leader(), endpoint(3));
        group.follow(endpoint(1), endpoint(2));
        assert_eq!(group.leader(), endpoint(3), "a late answer");
        group.follow(endpoint(3), endpoint(9));
        assert_eq!((group.leader(), group.count()), (endpoint(9), 4), "one that joined");
        group.follow(endpoint(9), endpoint(9));
        assert_eq!(group.leader(), endpoint(9));
    }

    #[test]
    fn only_what_may_run_twice_goes_on_after_it_may_have_run() {
        let lost = |may_have_executed| CallError::PeerLost {
            peer: endpoint(1),
            operation: "x",
            age: Duration::ZERO,
            resends: 0,
            may_have_executed,
            cause: crate::Cause { waited_for: crate::requester::WaitedFor::Reply, net: None },
        };
        type Once = fops::object::ObjectUpdate;
        type Twice = fops::conf::ConfApply;
        assert!(
            goes_on::<Twice>(&lost(true)) && goes_on::<Once>(&lost(false)) && !goes_on::<Once>(&lost(true))
        );
        assert!(goes_on::<Once>(&FopError::NotLeader { leader: None }.into()));
        assert!(!goes_on::<Twice>(&FopError::ReplyGone.into()));
    }
}
