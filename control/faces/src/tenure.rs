//! What the program that holds a lock cooperatively makes of what it is asked, and of what becomes of the lock. Pure.
//!
//! **Invariant**: a request of somebody else begins only while the lock is held and the program has not agreed to give it back. **Invariant**: the lock is
//! given back only when no such request is under way: what they write is over before the next holder's begins. **Invariant**: of a request whose
//! lock was lost before it was over nobody hears that it was done. Table: docs/locks.md#cooperation. Start at [`Tenure::handle`].

/// Where the time of a holder stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenureState {
    /// Held, and to be kept until somebody asks.
    Held,
    /// Held; the program has agreed to give it back, and finishes what it does.
    Agreed,
    /// The program gives it back: what it runs for others ends first.
    Leaving,
    /// Given back.
    Released,
    /// Broken, fenced, or its lease ended.
    Lost,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenureEvent {
    /// Somebody wants the lock.
    AskedToRelease,
    /// The program says yes to that.
    Agrees,
    /// The program says no to that.
    Refuses,
    /// Somebody wants a request run under the lock.
    AskedToRun,
    /// The program has run one.
    Answers,
    /// The program drops one, or says that it did not run it.
    GivesUp,
    /// The program gives the lock back.
    Releases,
    /// Control took it back, as it was asked to.
    GivenBack,
    /// Control says that it is not held any more, or has not answered for a lease.
    IsLost,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenureAction {
    /// Nothing.
    Nothing,
    /// The program is to decide.
    AskProgram,
    /// Tell the asker: it will be given back.
    SayReleases,
    /// Tell the asker: no, with the program's reason.
    SayRefuses,
    /// Tell the asker: no request begins any more, as the lock is about to be free.
    SayLeaving,
    /// Tell the asker what the program answered.
    SayDone,
    /// Tell the asker: it was run, and the lock was lost meanwhile.
    SayLost,
    /// Tell the asker: this is not the holder.
    SayNotHere,
    /// Tell the program.
    TellProgram,
}

/// A lock in the hands of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    state: TenureState,
    /// Requests that the program has and has not ended.
    running: u32,
}

impl Default for Tenure {
    fn default() -> Tenure {
        Tenure { state: TenureState::Held, running: 0 }
    }
}

impl Tenure {
    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> TenureState {
        self.state
    }

    /// True once control may be told that the lock is free: the program leaves, and runs nothing for others.
    #[must_use]
    pub fn may_give_back(&self) -> bool {
        self.state == TenureState::Leaving && self.running == 0
    }

    /// Takes an event.
    pub fn handle(&mut self, event: TenureEvent) -> TenureAction {
        use TenureAction as Do;
        use TenureState::{Agreed, Held, Leaving, Lost, Released};
        let is_over = matches!(self.state, Released | Lost);
        match event {
            TenureEvent::AskedToRelease => match self.state {
                Held => Do::AskProgram,
                // It was asked already.
                Agreed | Leaving => Do::SayReleases,
                Released | Lost => Do::SayNotHere,
            },
            TenureEvent::Agrees => {
                if self.state == Held {
                    self.state = Agreed;
                }
                if is_over { Do::SayNotHere } else { Do::SayReleases }
            }
            TenureEvent::Refuses => match self.state {
                Held => Do::SayRefuses,
                // It agreed to somebody else's wish meanwhile, and the lock is everybody's.
                Agreed | Leaving => Do::SayReleases,
                Released | Lost => Do::SayNotHere,
            },
            TenureEvent::AskedToRun => match self.state {
                Held => {
                    self.running += 1;
                    Do::AskProgram
                }
                // Whoever asks is about to get the lock.
                Agreed | Leaving => Do::SayLeaving,
                Released | Lost => Do::SayNotHere,
            },
            TenureEvent::Answers => {
                self.running = self.running.saturating_sub(1);
                if self.state == Lost { Do::SayLost } else { Do::SayDone }
            }
            TenureEvent::GivesUp => {
                self.running = self.running.saturating_sub(1);
                Do::SayRefuses
            }
            TenureEvent::Releases => {
                if !is_over {
                    self.state = Leaving;
                }
                Do::Nothing
            }
            TenureEvent::GivenBack => {
                if self.state == Leaving {
                    self.state = Released;
                }
                Do::Nothing
            }
            TenureEvent::IsLost => {
                if is_over {
                    return Do::Nothing;
                }
                self.state = Lost;
                Do::TellProgram
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [TenureState; 5] = [
        TenureState::Held,
        TenureState::Agreed,
        TenureState::Leaving,
        TenureState::Released,
        TenureState::Lost,
    ];
    const EVENTS: [(TenureEvent, &str); 9] = [
        (TenureEvent::AskedToRelease, "asked to release"),
        (TenureEvent::Agrees, "program agrees"),
        (TenureEvent::Refuses, "program refuses"),
        (TenureEvent::AskedToRun, "asked to run"),
        (TenureEvent::Answers, "program has run it"),
        (TenureEvent::GivesUp, "program did not run it"),
        (TenureEvent::Releases, "program releases"),
        (TenureEvent::GivenBack, "given back"),
        (TenureEvent::IsLost, "told it is lost"),
    ];

    fn word(action: TenureAction) -> &'static str {
        match action {
            TenureAction::Nothing => "",
            TenureAction::AskProgram => "asks the program",
            TenureAction::SayReleases => "says yes",
            TenureAction::SayRefuses => "says no",
            TenureAction::SayLeaving => "says no: about to be free",
            TenureAction::SayDone => "says the answer",
            TenureAction::SayLost => "says lost",
            TenureAction::SayNotHere => "says not here",
            TenureAction::TellProgram => "tells the program",
        }
    }

    /// Each pair, in the words of docs/locks.md. A change here is a change there.
    #[test]
    fn docs_print_the_table_of_a_holder() {
        let mut table = String::from("| holder |");
        EVENTS.iter().for_each(|(_, head)| table.push_str(&format!(" {head} |")));
        table.push_str(&format!("\n|---|{}\n", "---|".repeat(EVENTS.len())));
        for state in STATES {
            table.push_str(&format!("| {} |", format!("{state:?}").to_lowercase()));
            for (event, _) in EVENTS {
                let mut tenure = Tenure { state, running: 1 };
                let action = word(tenure.handle(event));
                let after = format!("{:?}", tenure.state).to_lowercase();
                let cell = match (tenure.state == state, action) {
                    (true, "") => " |".to_owned(),
                    (true, action) => format!(" {action} |"),
                    (false, "") => format!(" {after} |"),
                    (false, action) => format!(" {after}, {action} |"),
                };
                table.push_str(&cell);
            }
            table.push('\n');
        }
        let docs = include_str!("../../../docs/locks.md");
        assert!(docs.contains(&table), "docs/locks.md lacks this table:\n{table}");
    }

    /// Every order of a few events: what the head of this file promises.
    #[test]
    fn no_request_begins_late_none_runs_over_the_release_and_none_that_lost_the_lock_is_done() {
        fn go(tenure: Tenure, begun: u32, left: u32, has_agreed: bool, seen: &mut u32) {
            *seen += 1;
            assert!(tenure.running <= begun);
            if left == 0 {
                return;
            }
            for (event, _) in EVENTS {
                let ends = matches!(event, TenureEvent::Answers | TenureEvent::GivesUp);
                // The program ends what it has, and control takes back what it is asked to.
                if ends && tenure.running == 0 || event == TenureEvent::GivenBack && !tenure.may_give_back() {
                    continue;
                }
                let mut next = tenure;
                let action = next.handle(event);
                let begins = event == TenureEvent::AskedToRun && action == TenureAction::AskProgram;
                assert!(!begins || tenure.state == TenureState::Held && !has_agreed);
                assert!(next.state != TenureState::Released || next.running == 0);
                let is_done = action == TenureAction::SayDone;
                assert!(!is_done || !matches!(tenure.state, TenureState::Released | TenureState::Lost));
                let has_agreed = has_agreed || action == TenureAction::SayReleases;
                go(next, begun + u32::from(begins), left - 1, has_agreed, seen);
            }
        }
        let mut seen = 0;
        go(Tenure::default(), 0, 6, false, &mut seen);
        assert!(seen > 50_000, "{seen}");
    }
}
