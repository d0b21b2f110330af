//! Members of control that come and go in the middle of a run: one more daemon starts and is taken in, then one of the others is taken out, runs on for a while as
//! if nobody had told it, and goes. An operator asks again and again, as `clovis control member` does; anything may go wrong meanwhile.

use std::cell::Cell;
use std::rc::Rc;

/// How far that is. Numbers are those of the daemons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Step {
    /// Nobody has asked for anything.
    #[default]
    Before,
    /// One more runs, and is to be taken in.
    Joins {
        number: u64,
    },
    /// It is a member.
    Joined,
    /// This one is to be taken out.
    Leaves {
        number: u64,
    },
    /// It is no member, and does not have to know that.
    Left {
        number: u64,
    },
    /// It still runs, and will be retired.
    Lingers {
        number: u64,
    },
    Over,
}

impl Step {
    /// What the operator asks for: which daemon, and whether it comes.
    pub fn order(self) -> Option<(u64, bool)> {
        match self {
            Step::Joins { number } => Some((number, true)),
            Step::Leaves { number } => Some((number, false)),
            _ => None,
        }
    }

    /// The next one, once the order is carried out.
    fn done(self) -> Step {
        match self {
            Step::Joins { .. } => Step::Joined,
            Step::Leaves { number } => Step::Left { number },
            other => other,
        }
    }

    /// It began, and is not over.
    pub fn is_under_way(self) -> bool {
        !matches!(self, Step::Before | Step::Over)
    }
}

/// See the module head. Clones are the same.
#[derive(Clone, Default)]
pub struct Membership(Rc<Cell<Step>>);

impl Membership {
    pub fn step(&self) -> Step {
        self.0.get()
    }

    pub fn set(&self, step: Step) {
        self.0.set(step);
    }

    /// The answer to the order of `step` was that it is done. False if somebody else knew that already.
    pub fn note_done(&self, step: Step) -> bool {
        let is_news = self.step() == step;
        if is_news {
            self.set(step.done());
        }
        is_news
    }
}
