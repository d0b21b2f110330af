//! A lock is broken, or given back because somebody asked for it, while its owner's writes are on their way: none of them may land once the next owner holds
//! the lock (docs/locks.md#fencing, docs/locks.md#cooperation, docs/ha.md#leases).
//!
//! Parts: control, one server, the old owner with one write (others do not change what becomes of it; it may be one that it makes for somebody else, whose request
//! it runs), and the lock's next owner. Messages are lost (never
//! delivered), late, in any order, and delivered again. The server may crash once, or control restart once. Time goes in ticks: control's clock shows true time, the server's may be slow.
//! A lease is [`LEASE`] ticks, its grace [`GRACE`]: the real lease is longer, what matters is the order of events around its end.

use std::fmt::Debug;

use stateright::{Checker, Model, Property};

/// Ticks of the server's clock, from the sending of the heartbeat that was answered.
const LEASE: u8 = 3;
/// What control waits for on top.
const GRACE: u8 = 1;
/// The last tick: a lease ends, is won back, and ends again.
const HORIZON: u8 = 8;
const HEARTBEATS: u8 = 2;
const FENCE_REQUESTS: u8 = 2;
/// A server's clock that is slow loses one tick in so many: over a lease as much as the grace.
const LOSES_ONE_IN: u8 = LEASE + GRACE;

/// An error in the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutation {
    /// Control grants the lock anew as soon as it is broken.
    GrantsAtOnce,
    /// Control takes the lease as ended without the grace.
    NoGrace,
    /// After a restart control takes the leases that it does not know as ended.
    RestartForgetsLeases,
    /// The server asks whether a write is fenced when it arrives, but not when its effect begins.
    ChecksOnlyArrival,
    /// The server acknowledges a fence while a refused write's effect goes on.
    AcknowledgesEarly,
    /// A lease that ended and is granted again holds at once, without the fences of the time between.
    ServesWithoutFences,
    /// An answer to a request for fences from before the gap counts for the time after it.
    TakesOldAnswer,
    /// The server counts its lease from the answer and not from the request.
    LeaseFromAnswer,
    /// A restarted server keeps serving by the lease of its earlier incarnation.
    KeepsLeaseOverCrash,
    /// The owner, asked for the lock, gives it back while a request that it runs for somebody else still writes.
    GivesBackEarly,
}

/// What is assumed, and which error is in.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// The server's clock may be slow.
    is_slow: bool,
    /// Ticks that the effect of a write takes at most.
    effect: u8,
    /// How often the server crashes, and control restarts.
    crashes: u8,
    restarts: u8,
    mutation: Option<Mutation>,
}

impl Rules {
    fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Write {
    /// On its way, or sent again.
    Sent,
    Entered,
    /// Its effect began at this time.
    UnderWay(u8),
    Landed,
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lock {
    Held,
    Breaking,
    /// The next owner has it; true: because the server acknowledged.
    Granted(bool),
    /// The next owner has it, as the old one was asked for it and gave it back: no fence was made.
    GivenBack,
}

/// A heartbeat on its way: one at a time, and a new one gives the old one up. (One that arrives late lets control wait longer, and its answer is no
/// longer heard.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Heartbeat {
    None,
    /// By the server's clock.
    Sent(u8),
    Answered(u8),
}

/// Requests for fences and their answers are sets of bits: what was sent once may arrive at any time, any number of times, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    now: u8,
    /// Ticks that the server's clock is behind.
    behind: u8,
    /// Ticks since it fell behind, as far as they matter.
    since_lost: u8,
    // The server.
    lease_until: Option<u8>,
    knows_fences: bool,
    /// Gaps in its lease, crashes included, as far as requests for fences fall on both sides of them: they carry it.
    gap: u8,
    is_fenced: bool,
    /// The old owner's.
    write: Write,
    // Control.
    heard_at: u8,
    is_acknowledged: bool,
    lock: Lock,
    // On the net; by gap, and whether a fence is acknowledged or told.
    heartbeat: Heartbeat,
    fence_requests: [u8; 2],
    fence_answers: [u8; 2],
    // What is left to happen.
    heartbeats_left: u8,
    fence_requests_left: u8,
    crashes_left: u8,
    restarts_left: u8,
    // What must not be.
    landed_late: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Tick,
    TickOfControlOnly,
    SendHeartbeat,
    HeartbeatArrives(u8),
    AnswerArrives(u8),
    AskForFences,
    FenceRequestArrives { gap: u8, acknowledges: bool },
    FenceAnswerArrives { gap: u8, tells: bool },
    WriteArrives,
    EffectBegins,
    EffectEnds,
    Break,
    Grant,
    GiveBack,
    ServerCrashes,
    ControlRestarts,
}

fn bit(of: u8) -> u8 {
    1 << of
}

impl State {
    fn server_clock(&self) -> u8 {
        self.now - self.behind
    }

    fn lease_holds(&self) -> bool {
        self.lease_until.is_some_and(|until| self.server_clock() < until)
    }

    fn serves(&self) -> bool {
        self.lease_holds() && self.knows_fences
    }

    /// An effect that is as old as it may become lets no time pass.
    fn time_may_pass(&self, rules: &Rules) -> bool {
        let is_due = matches!(self.write, Write::UnderWay(began) if self.now >= began + rules.effect);
        self.now < HORIZON && !is_due
    }

    fn write_is_over(&self) -> bool {
        matches!(self.write, Write::Landed | Write::Refused)
    }

    fn may_grant(&self, rules: &Rules) -> bool {
        let wait = if rules.has(Mutation::NoGrace) { LEASE } else { LEASE + GRACE };
        self.is_acknowledged || self.now >= self.heard_at + wait || rules.has(Mutation::GrantsAtOnce)
    }
}

impl Model for Rules {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            now: 0,
            behind: 0,
            since_lost: LOSES_ONE_IN,
            lease_until: Some(LEASE),
            knows_fences: true,
            gap: 0,
            is_fenced: false,
            write: Write::Sent,
            heard_at: 0,
            is_acknowledged: false,
            lock: Lock::Held,
            heartbeat: Heartbeat::None,
            fence_requests: [0; 2],
            fence_answers: [0; 2],
            heartbeats_left: HEARTBEATS,
            fence_requests_left: FENCE_REQUESTS,
            crashes_left: self.crashes,
            restarts_left: self.restarts,
            landed_late: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.lock == Lock::GivenBack && state.write_is_over() {
            // Nothing is left that could land.
            return;
        }
        if state.time_may_pass(self) {
            actions.push(Action::Tick);
            if self.is_slow && state.since_lost >= LOSES_ONE_IN - 1 {
                actions.push(Action::TickOfControlOnly);
            }
        }
        if state.heartbeats_left > 0 {
            actions.push(Action::SendHeartbeat);
        }
        match state.heartbeat {
            Heartbeat::None => {}
            Heartbeat::Sent(sent) => actions.push(Action::HeartbeatArrives(sent)),
            Heartbeat::Answered(sent) => actions.push(Action::AnswerArrives(sent)),
        }
        if state.fence_requests_left > 0 {
            actions.push(Action::AskForFences);
        }
        for gap in 0..=state.gap {
            for (index, word) in [false, true].into_iter().enumerate() {
                if state.fence_requests[index] & bit(gap) != 0 {
                    actions.push(Action::FenceRequestArrives { gap, acknowledges: word });
                }
                if state.fence_answers[index] & bit(gap) != 0 {
                    actions.push(Action::FenceAnswerArrives { gap, tells: word });
                }
            }
        }
        match state.write {
            // It is sent again while the server does not serve.
            Write::Sent if state.serves() => actions.push(Action::WriteArrives),
            Write::Entered => actions.push(Action::EffectBegins),
            Write::UnderWay(_) => actions.push(Action::EffectEnds),
            Write::Sent | Write::Landed | Write::Refused => {}
        }
        match state.lock {
            Lock::Held => {
                actions.push(Action::Break);
                if state.write_is_over() || self.has(Mutation::GivesBackEarly) {
                    actions.push(Action::GiveBack);
                }
            }
            Lock::Breaking if state.may_grant(self) => actions.push(Action::Grant),
            Lock::Breaking | Lock::Granted(_) | Lock::GivenBack => {}
        }
        if state.crashes_left > 0 {
            actions.push(Action::ServerCrashes);
        }
        if state.restarts_left > 0 {
            actions.push(Action::ControlRestarts);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = *before;
        match action {
            Action::Tick => {
                state.now += 1;
                state.since_lost = (state.since_lost + 1).min(LOSES_ONE_IN);
            }
            Action::TickOfControlOnly => {
                state.now += 1;
                state.behind += 1;
                state.since_lost = 0;
            }
            Action::SendHeartbeat => {
                state.heartbeat = Heartbeat::Sent(state.server_clock());
                state.heartbeats_left -= 1;
            }
            Action::HeartbeatArrives(sent) => {
                state.heard_at = state.now;
                state.heartbeat = Heartbeat::Answered(sent);
            }
            Action::AnswerArrives(sent) => {
                state.heartbeat = Heartbeat::None;
                if !state.lease_holds() && !self.has(Mutation::ServesWithoutFences) {
                    state.knows_fences = false;
                    // What was asked until now was asked before the gap.
                    let asked = state.fence_requests.iter().any(|set| set & bit(state.gap) != 0);
                    state.gap += u8::from(asked);
                }
                let from = if self.has(Mutation::LeaseFromAnswer) { state.server_clock() } else { sent };
                state.lease_until = state.lease_until.max(Some(from + LEASE));
            }
            Action::AskForFences => {
                let is_settled = !matches!(state.write, Write::UnderWay(_));
                let may = is_settled || self.has(Mutation::AcknowledgesEarly);
                let acknowledges = state.is_fenced && may;
                state.fence_requests[usize::from(acknowledges)] |= bit(state.gap);
                state.fence_requests_left -= 1;
            }
            Action::FenceRequestArrives { gap, acknowledges } => {
                state.is_acknowledged |= acknowledges;
                let is_told = matches!(state.lock, Lock::Breaking | Lock::Granted(_));
                state.fence_answers[usize::from(is_told)] |= bit(gap);
            }
            Action::FenceAnswerArrives { gap, tells } => {
                state.is_fenced |= tells;
                let counts = gap == state.gap || self.has(Mutation::TakesOldAnswer);
                state.knows_fences |= counts && state.lease_holds();
            }
            Action::WriteArrives => {
                state.write = if state.is_fenced { Write::Refused } else { Write::Entered };
            }
            Action::EffectBegins => {
                let is_late = state.is_fenced && !self.has(Mutation::ChecksOnlyArrival);
                let may = state.serves() && !is_late;
                state.write = if may { Write::UnderWay(state.now) } else { Write::Refused };
            }
            Action::EffectEnds => {
                state.write = Write::Landed;
                state.landed_late = matches!(state.lock, Lock::Granted(_) | Lock::GivenBack);
            }
            Action::Break => state.lock = Lock::Breaking,
            Action::Grant => state.lock = Lock::Granted(state.is_acknowledged),
            Action::GiveBack => state.lock = Lock::GivenBack,
            Action::ServerCrashes => {
                state.crashes_left -= 1;
                if !self.has(Mutation::KeepsLeaseOverCrash) {
                    (state.lease_until, state.knows_fences) = (None, false);
                }
                (state.gap, state.is_fenced, state.heartbeat) = (state.gap + 1, false, Heartbeat::None);
                // The device is the dead process's until its last write has ended or was given up: the next one waits for its lock.
                state.write = match state.write {
                    Write::Entered => Write::Sent,
                    Write::UnderWay(_) => Write::Refused,
                    other => other,
                };
            }
            Action::ControlRestarts => {
                state.restarts_left -= 1;
                state.is_acknowledged = false;
                let forgets = self.has(Mutation::RestartForgetsLeases);
                state.heard_at = if forgets { 0 } else { state.now };
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Rules>> {
        vec![
            Property::always(
                "no write of the old owner lands once the next one has the lock",
                |_, state: &State| !state.landed_late,
            ),
            Property::sometimes("granted on the server's word", |_, state: &State| {
                state.lock == Lock::Granted(true)
            }),
            Property::sometimes("granted after the lease ended", |_, state: &State| {
                state.lock == Lock::Granted(false)
            }),
            Property::sometimes("the write lands before the break", |_, state: &State| {
                state.write == Write::Landed && state.lock == Lock::Held
            }),
            Property::sometimes("given back once the write has landed", |_, state: &State| {
                state.lock == Lock::GivenBack && state.write == Write::Landed
            }),
            Property::sometimes("the write is refused on its way", |rules: &Rules, state: &State| {
                state.write == Write::Refused && state.crashes_left == rules.crashes
            }),
            Property::sometimes("it serves again after a gap", |_, state: &State| {
                state.serves() && state.lock == Lock::Granted(false)
            }),
        ]
    }
}

/// As it should be, the server crashing once.
const CRASH: Rules = Rules { is_slow: false, effect: GRACE, crashes: 1, restarts: 0, mutation: None };
/// As it should be, control restarting once.
const RESTART: Rules = Rules { crashes: 0, restarts: 1, ..CRASH };
/// A slow clock takes the whole grace, so effects take no time.
const SLOW: Rules = Rules { is_slow: true, effect: 0, restarts: 0, ..RESTART };

const SAFE: &str = "no write of the old owner lands once the next one has the lock";

fn is_safe(rules: Rules) -> bool {
    let checker = rules.checker().threads(2).spawn_bfs().join();
    println!("fencing {rules:?}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    let is_safe = checker.discovery(SAFE).is_none();
    if is_safe {
        checker.assert_properties();
    }
    is_safe
}

#[test]
fn no_order_of_events_lets_a_late_write_through() {
    for rules in [CRASH, RESTART, SLOW] {
        assert!(is_safe(rules), "{rules:?}");
    }
}

/// The grace is one: what a slow clock takes of it, an effect cannot take, too (docs/locks.md#fencing says so).
#[test]
fn a_slow_clock_and_a_slow_device_together_are_too_much() {
    assert!(!is_safe(Rules { is_slow: true, ..RESTART }));
    assert!(!is_safe(Rules { effect: GRACE + 1, ..RESTART }));
}

#[test]
fn every_seeded_error_is_found() {
    for (rules, mutation) in [
        (RESTART, Mutation::GrantsAtOnce),
        (RESTART, Mutation::NoGrace),
        (SLOW, Mutation::NoGrace),
        (RESTART, Mutation::RestartForgetsLeases),
        (RESTART, Mutation::ChecksOnlyArrival),
        (RESTART, Mutation::AcknowledgesEarly),
        (RESTART, Mutation::ServesWithoutFences),
        (RESTART, Mutation::TakesOldAnswer),
        (RESTART, Mutation::LeaseFromAnswer),
        (CRASH, Mutation::KeepsLeaseOverCrash),
        (RESTART, Mutation::GivesBackEarly),
    ] {
        assert!(!is_safe(Rules { mutation: Some(mutation), ..rules }), "{mutation:?} was not found");
    }
}
