//! Trees of owners with a network between them: every order of events for a few parts, random orders for many, and the tables of docs/rm.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use fops::lock::LockMode::{self, Exclusive, Shared};

use super::*;
use crate::rm::resource::{Span, Spans, Whole};

/// What is on its way between an owner and its creditor. Of different loans, in any order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Message<C> {
    Borrow { from: usize, number: u64, credit: C },
    Lent { to: usize, number: u64, credit: C },
    Back { from: usize, number: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Before,
    Waits,
    Has,
    Done,
}

/// Where the lease of an owner stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Life {
    Holds,
    /// It counts its lease as ended and stopped.
    Ended,
    /// Its creditor does too.
    Lost,
    Buried,
}

/// Owner 0 is the root; `creditor[n]` is whom owner n borrows of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct World<R: ResourceType> {
    owners: Vec<Owner<R>>,
    creditor: Vec<usize>,
    numbers: Vec<u64>,
    messages: BTreeSet<Message<R::Credit>>,
    /// Local users by owner and number.
    users: BTreeMap<(usize, u64), (Phase, R::Credit)>,
    life: Vec<Life>,
    deaths_left: usize,
}

#[derive(Clone, Debug)]
enum Step<C> {
    Ask(usize, u64),
    Release(usize, u64),
    Deliver(Message<C>),
    /// The borrower hears that its creditor wants a loan back.
    Hear(usize, u64),
    End(usize),
    Lose(usize),
    Bury(usize),
}

fn id(owner: usize) -> BorrowerId {
    BorrowerId(u128::try_from(owner).unwrap())
}

fn local(number: u64) -> Asker {
    Asker { user: User::Local, number }
}

fn loan_of(owner: usize, number: u64) -> Asker {
    Asker { user: User::Borrower(id(owner)), number }
}

impl<R: ResourceType + Clone + Ord + fmt::Debug> World<R> {
    fn new(resource: R, creditor: &[usize], users: &[(usize, R::Credit)], deaths: usize) -> World<R> {
        let owners = (0..creditor.len()).map(|owner| match owner {
            0 => Owner::root(resource.clone()),
            _ => Owner::borrower(resource.clone()),
        });
        let users = (1..).zip(users);
        World {
            owners: owners.collect(),
            creditor: creditor.to_vec(),
            numbers: vec![0; creditor.len()],
            messages: BTreeSet::new(),
            users: users.map(|(n, (owner, credit))| ((*owner, n), (Phase::Before, credit.clone()))).collect(),
            life: vec![Life::Holds; creditor.len()],
            deaths_left: deaths,
        }
    }

    fn handle(&mut self, owner: usize, event: Event<R::Credit>) {
        let actions = self.owners[owner].handle(event, &mut self.numbers[owner]);
        for action in actions {
            match action {
                Action::Granted { asker: Asker { user: User::Local, number }, .. } => {
                    self.users.get_mut(&(owner, number)).unwrap().0 = Phase::Has;
                }
                Action::Granted { asker: Asker { user: User::Borrower(to), number }, credit } => {
                    let to = usize::try_from(to.0).unwrap();
                    assert!(self.messages.insert(Message::Lent { to, number, credit }), "lent twice");
                }
                Action::Refused { asker: Asker { user: User::Local, number }, .. }
                | Action::Void { asker: Asker { user: User::Local, number } } => {
                    self.users.get_mut(&(owner, number)).unwrap().0 = Phase::Done;
                }
                // Its lease ended before ours.
                Action::Refused { .. } | Action::Void { .. } | Action::AskBack { .. } => {}
                Action::Borrow { number, credit, .. } => {
                    assert!(self.messages.insert(Message::Borrow { from: owner, number, credit }));
                }
                Action::GiveBack { number } => {
                    assert!(self.messages.insert(Message::Back { from: owner, number }), "returned twice");
                }
            }
        }
    }

    /// Everything that can happen next.
    fn steps(&self) -> Vec<Step<R::Credit>> {
        let mut steps = Vec::new();
        for ((owner, number), (phase, _)) in &self.users {
            match phase {
                Phase::Before => steps.push(Step::Ask(*owner, *number)),
                Phase::Has => steps.push(Step::Release(*owner, *number)),
                Phase::Waits | Phase::Done => {}
            }
        }
        steps.extend(self.messages.iter().cloned().map(Step::Deliver));
        for owner in 1..self.owners.len() {
            for number in self.asked_back(owner) {
                if matches!(self.owners[owner].loan(number), LoanState::Idle | LoanState::InUse) {
                    steps.push(Step::Hear(owner, number));
                }
            }
            // A sublet ends before the loan it is made of.
            let mut debtors = (1..self.owners.len()).filter(|debtor| self.creditor[*debtor] == owner);
            match self.life[owner] {
                Life::Holds
                    if self.deaths_left > 0 && debtors.all(|debtor| self.life[debtor] != Life::Holds) =>
                {
                    steps.push(Step::End(owner));
                }
                Life::Ended => steps.push(Step::Lose(owner)),
                Life::Lost => steps.push(Step::Bury(owner)),
                Life::Holds | Life::Buried => {}
            }
        }
        steps
    }

    /// What the creditor would tell it.
    fn asked_back(&self, owner: usize) -> Vec<u64> {
        let creditor = &self.owners[self.creditor[owner]];
        let theirs = creditor.uses().filter(|(asker, _)| asker.user == User::Borrower(id(owner)));
        theirs
            .filter(|(asker, _)| creditor.request(*asker) == RequestState::AskedBack)
            .map(|(asker, _)| asker.number)
            .collect()
    }

    fn step(&mut self, step: &Step<R::Credit>) {
        match step.clone() {
            Step::Ask(owner, number) => {
                let user = self.users.get_mut(&(owner, number)).unwrap();
                if self.life[owner] != Life::Holds {
                    user.0 = Phase::Done;
                    return;
                }
                user.0 = Phase::Waits;
                let credit = user.1.clone();
                self.handle(owner, Event::Ask { asker: local(number), credit });
            }
            Step::Release(owner, number) => {
                self.users.get_mut(&(owner, number)).unwrap().0 = Phase::Done;
                self.handle(owner, Event::Return { asker: local(number) });
            }
            Step::Deliver(message) => {
                self.messages.remove(&message);
                let is_heard = |owner: usize| matches!(self.life[owner], Life::Holds | Life::Ended);
                match message {
                    // Control knows the sessions of the lost no more.
                    Message::Borrow { from, number, credit } if is_heard(from) => {
                        let asker = loan_of(from, number);
                        self.handle(self.creditor[from], Event::Ask { asker, credit });
                    }
                    Message::Back { from, number } if is_heard(from) => {
                        let asker = loan_of(from, number);
                        self.handle(self.creditor[from], Event::Return { asker });
                    }
                    Message::Lent { to, number, credit } if self.life[to] == Life::Holds => {
                        self.handle(to, Event::Lent { number, credit });
                    }
                    _ => {}
                }
            }
            Step::Hear(owner, number) => self.handle(owner, Event::AskedBack { number }),
            Step::End(owner) => {
                self.deaths_left -= 1;
                self.life[owner] = Life::Ended;
                self.handle(owner, Event::CreditorLost);
            }
            Step::Lose(owner) => {
                self.life[owner] = Life::Lost;
                self.handle(self.creditor[owner], Event::Lost { borrower: id(owner) });
            }
            Step::Bury(owner) => {
                self.life[owner] = Life::Buried;
                self.handle(self.creditor[owner], Event::Buried { borrower: id(owner) });
            }
        }
    }

    /// Nothing that conflicts is used at a time, and every loan stands in both books or is on its way.
    fn check(&self) {
        let has: Vec<_> = self.users.iter().filter(|(_, (phase, _))| *phase == Phase::Has).collect();
        for (place, (one, (_, credit))) in has.iter().enumerate() {
            for (other, (_, second)) in &has[..place] {
                let resource = self.owners[0].resource();
                assert!(!resource.conflicts(credit, second), "{one:?} and {other:?} in {self:?}");
            }
        }
        for owner in 1..self.owners.len() {
            if self.life[owner] != Life::Holds {
                continue;
            }
            let creditor = &self.owners[self.creditor[owner]];
            for number in 1..=self.numbers[owner] {
                let here = self.owners[owner].loan(number);
                let there = creditor.request(loan_of(owner, number));
                let is = |message: &Message<R::Credit>| match message {
                    Message::Borrow { from, number: of, .. } if (*from, *of) == (owner, number) => Some('b'),
                    Message::Lent { to, number: of, .. } if (*to, *of) == (owner, number) => Some('l'),
                    Message::Back { from, number: of } if (*from, *of) == (owner, number) => Some('r'),
                    _ => None,
                };
                let on_its_way: String = self.messages.iter().filter_map(is).collect();
                let is_lent = matches!(there, RequestState::Used | RequestState::AskedBack);
                let balances = match (here, on_its_way.as_str()) {
                    // Given up while it was asked for, or lent for one who no longer waits.
                    (LoanState::Borrowing | LoanState::None, "b") => there == RequestState::None,
                    (LoanState::Borrowing | LoanState::None, "l") => is_lent,
                    (LoanState::None, "r") => is_lent,
                    (LoanState::Borrowing | LoanState::None, "") => {
                        !is_lent
                            || self.owners[self.creditor[owner]].request(loan_of(owner, number))
                                == RequestState::Waiting
                    }
                    (_, "") => is_lent,
                    _ => false,
                };
                assert!(balances, "loan {number} of {owner}: {here:?} {there:?} {on_its_way} in {self:?}");
            }
        }
    }

    /// Nothing happens any more: then everybody has had what it wanted.
    fn check_end(&self) {
        assert!(self.messages.is_empty());
        for (user, (phase, _)) in &self.users {
            assert_eq!(*phase, Phase::Done, "{user:?} waits for ever in {self:?}");
        }
        assert!(self.owners.iter().all(|owner| owner.waiting_count() == 0));
    }
}

/// Every order of events. Returns how many states there are.
fn explore<R: ResourceType + Clone + Ord + fmt::Debug>(start: World<R>) -> usize {
    let mut seen = BTreeSet::new();
    let mut ends = 0;
    let mut open = vec![start];
    while let Some(world) = open.pop() {
        let steps = world.steps();
        // Only a step that must come is an end's lack; that somebody might still die is none.
        if steps.iter().all(|step| matches!(step, Step::End(_))) {
            world.check_end();
            ends += 1;
        }
        for step in steps {
            let mut next = world.clone();
            next.step(&step);
            if !seen.contains(&next) {
                next.check();
                seen.insert(next.clone());
                open.push(next);
            }
        }
    }
    assert!(ends > 0);
    seen.len()
}

fn span(first: u64, end: u64, mode: LockMode) -> Span<u64> {
    Span { first, end: Some(end), mode }
}

#[test]
fn every_order_of_two_borrowers_with_readers_and_writers() {
    let all = [Shared, Exclusive];
    let mut states = 0;
    // Two users each: all ways to read and write.
    for mask in 0..16usize {
        let mode = |bit: usize| all[(mask >> bit) & 1];
        let users = [(1, mode(0)), (1, mode(1)), (2, mode(2)), (2, mode(3))];
        states += explore(World::new(Whole, &[0, 0, 0], &users, 0));
    }
    println!("{states} states");
    assert!(states > 10_000, "{states}");
}

#[test]
fn every_order_of_three_borrowers_that_want_parts() {
    let users = [
        (1, span(0, 2, Exclusive)),
        (2, span(1, 3, Exclusive)),
        (3, span(2, 4, Shared)),
        (3, span(0, 4, Shared)),
    ];
    let states = explore(World::new(Spans::default(), &[0, 0, 0, 0], &users, 0));
    println!("{states} states");
    assert!(states > 1_000, "{states}");
}

#[test]
fn every_order_with_a_borrower_that_dies() {
    let mut states = 0;
    for users in [
        [(1, Exclusive), (1, Exclusive), (2, Exclusive)],
        [(1, Shared), (1, Exclusive), (2, Exclusive)],
        [(1, Exclusive), (2, Shared), (2, Exclusive)],
        [(1, Shared), (2, Shared), (2, Exclusive)],
    ] {
        states += explore(World::new(Whole, &[0, 0, 0], &users, 1));
    }
    println!("{states} states");
    assert!(states > 1_000, "{states}");
}

/// The root lends to 1 and 2; 1 sublets to 3, which may die, and then 1 too.
#[test]
fn every_order_with_a_sublet_whose_borrower_and_creditor_die() {
    let users = [(3, Exclusive), (1, Shared), (2, Exclusive)];
    let states = explore(World::new(Whole, &[0, 0, 0, 1], &users, 2));
    println!("{states} states");
    assert!(states > 1_000, "{states}");
}

/// A small generator, the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(count).unwrap()).unwrap()
    }
}

/// Long runs: five borrowers, one of them with two of its own; they die and come back under other numbers, and users give up waiting.
#[test]
fn random_orders_with_deaths_stay_safe_and_end() {
    let mut granted = 0;
    for seed in 0..60 {
        let mut random = Random(seed);
        let mut world = World::new(Spans::default(), &[0, 0, 0, 0, 1, 1], &[], 6);
        let mut next_user = 1;
        for turn in 0..1_500 {
            if turn < 1_200 && random.below(4) == 0 {
                let owner = 1 + random.below(world.owners.len() - 1);
                let first = u64::try_from(random.below(8)).unwrap();
                let count = 1 + u64::try_from(random.below(4)).unwrap();
                let mode = if random.below(3) == 0 { Exclusive } else { Shared };
                world.users.insert((owner, next_user), (Phase::Before, span(first, first + count, mode)));
                next_user += 1;
            }
            if random.below(40) == 0 {
                let waits = world.users.iter().find(|(_, (phase, _))| *phase == Phase::Waits);
                if let Some(((owner, number), _)) = waits.map(|(key, value)| (*key, value.clone())) {
                    world.users.get_mut(&(owner, number)).unwrap().0 = Phase::Done;
                    world.handle(owner, Event::Return { asker: local(number) });
                }
            }
            let mut steps = world.steps();
            let ends = |step: &Step<_>| matches!(step, Step::End(_));
            if turn > 1_200 || random.below(200) > 0 {
                steps.retain(|step| !ends(step));
            }
            if steps.is_empty() {
                continue;
            }
            let step = steps.swap_remove(random.below(steps.len()));
            world.step(&step);
            granted += world.users.values().filter(|(phase, _)| *phase == Phase::Has).count();
            world.check();
            world.users.retain(|_, (phase, _)| *phase != Phase::Done);
            // A new incarnation takes the place of one that is buried.
            if let Step::Bury(owner) = step
                && world.creditor[owner] == 0
                && !world.creditor.contains(&owner)
            {
                let place = world.owners.len();
                world.owners.push(Owner::borrower(Spans::default()));
                world.creditor.push(0);
                world.numbers.push(0);
                world.life.push(Life::Holds);
                assert!(place < 16);
            }
        }
        world.deaths_left = 0;
        // Nobody asks any more: everything ends.
        let mut left = 20_000;
        loop {
            let steps = world.steps();
            if steps.is_empty() {
                break;
            }
            world.step(&steps[random.below(steps.len())]);
            world.check();
            left -= 1;
            assert!(left > 0, "seed {seed} does not end: {world:?}");
        }
        world.check_end();
    }
    assert!(granted > 10_000, "{granted}");
}

/// An owner with request 1 of borrower 1 in a state. At a borrower, others are local.
fn in_state(state: RequestState, is_root: bool) -> (Owner<Whole>, Asker, u64) {
    let mut owner = if is_root { Owner::root(Whole) } else { Owner::borrower(Whole) };
    let (us, other) = (loan_of(1, 1), loan_of(2, 1));
    let mut number = 0;
    let ask = |asker| Event::Ask { asker, credit: Exclusive };
    let lent = |number| Event::Lent { number, credit: Exclusive };
    let mut events = Vec::new();
    match state {
        RequestState::None => {}
        RequestState::Waiting => events.extend([ask(other), lent(1), ask(us)]),
        RequestState::Borrowing => events.push(ask(us)),
        RequestState::Used => events.extend([ask(us), lent(1)]),
        RequestState::AskedBack => events.extend([ask(us), lent(1), ask(other)]),
        RequestState::Lost => {
            events.extend([ask(us), lent(1), Event::Lost { borrower: id(1) }]);
        }
    }
    for event in events {
        if !is_root || !matches!(event, Event::Lent { .. }) {
            owner.handle(event, &mut number);
        }
    }
    assert_eq!(owner.request(us), state);
    (owner, us, number)
}

fn word<T: fmt::Debug>(state: T) -> String {
    match format!("{state:?}").as_str() {
        "AskedBack" => "asked back".to_owned(),
        "InUse" => "in use".to_owned(),
        other => other.to_lowercase(),
    }
}

/// A table of Markdown: each state against each event.
fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut text = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    text
}

#[test]
fn docs_print_the_table_of_a_request_at_its_owner() {
    let states = [
        RequestState::None,
        RequestState::Waiting,
        RequestState::Borrowing,
        RequestState::Used,
        RequestState::AskedBack,
        RequestState::Lost,
    ];
    let head = [
        "request",
        "ask",
        "return",
        "what is in the way returns",
        "another asks",
        "lent",
        "denied",
        "its borrower is lost",
        "buried",
        "creditor lost",
    ];
    let mut rows = Vec::new();
    for state in states {
        // At the root nothing is borrowed; the other states are the same there.
        let is_root = !matches!(state, RequestState::Borrowing);
        let mut row = vec![word(state)];
        let (us, other) = (loan_of(1, 1), loan_of(2, 1));
        for (column, event) in [
            Event::Ask { asker: us, credit: Exclusive },
            Event::Return { asker: us },
            Event::Return { asker: other },
            Event::Ask { asker: loan_of(3, 1), credit: Exclusive },
            Event::Lent { number: 1, credit: Exclusive },
            Event::Denied { number: 1 },
            Event::Lost { borrower: id(1) },
            Event::Buried { borrower: id(1) },
            Event::CreditorLost,
        ]
        .into_iter()
        .enumerate()
        {
            // The creditor has a say only at a borrower.
            let has_creditor = [4, 5, 8].contains(&column);
            if has_creditor && state == RequestState::Lost {
                // A borrower that lost one of its own, and then its creditor: nothing is left of either.
                let (mut owner, us, mut number) = in_state(state, false);
                owner.handle(event, &mut number);
                row.push(word(owner.request(us)));
                continue;
            }
            let (mut owner, us, mut number) = in_state(state, is_root && !has_creditor);
            owner.handle(event, &mut number);
            row.push(word(owner.request(us)));
        }
        rows.push(row);
    }
    compare(&table(&head, rows));
}

#[test]
fn docs_print_the_table_of_a_loan_at_its_borrower() {
    let head = [
        "loan",
        "ask of a local user",
        "return by the last user",
        "lent",
        "denied",
        "asked back",
        "creditor lost",
    ];
    let mut rows = Vec::new();
    for state in
        [LoanState::None, LoanState::Borrowing, LoanState::Idle, LoanState::InUse, LoanState::AskedBack]
    {
        let made = || {
            let mut owner = Owner::borrower(Whole);
            let mut number = 0;
            let ask = |number| Event::Ask { asker: local(number), credit: Shared };
            let lent = Event::Lent { number: 1, credit: Shared };
            let back = Event::AskedBack { number: 1 };
            let events = match state {
                LoanState::None => vec![],
                LoanState::Borrowing => vec![ask(1)],
                LoanState::Idle => vec![ask(1), lent, Event::Return { asker: local(1) }],
                LoanState::InUse => vec![ask(1), lent],
                LoanState::AskedBack => vec![ask(1), lent, back],
            };
            for event in events {
                owner.handle(event, &mut number);
            }
            assert_eq!(owner.loan(1), state);
            (owner, number)
        };
        let mut row = vec![word(state)];
        for event in [
            Event::Ask { asker: local(2), credit: Shared },
            Event::Return { asker: local(1) },
            Event::Lent { number: 1, credit: Shared },
            Event::Denied { number: 1 },
            Event::AskedBack { number: 1 },
            Event::CreditorLost,
        ] {
            let (mut owner, mut number) = made();
            owner.handle(event, &mut number);
            row.push(word(owner.loan(1)));
        }
        rows.push(row);
    }
    compare(&table(&head, rows));
}

fn compare(table: &str) {
    let docs = include_str!("../../../../../docs/rm.md");
    assert!(docs.contains(table), "docs/rm.md lacks this table:\n{table}");
}

#[test]
fn asking_again_gets_the_same_and_giving_up_leaves_nothing() {
    let mut owner = Owner::root(Whole);
    let mut number = 0;
    let ask = |asker| Event::Ask { asker, credit: Exclusive };
    let (one, other) = (loan_of(1, 1), loan_of(2, 1));
    let granted = Action::Granted { asker: one, credit: Exclusive };
    assert_eq!(owner.handle(ask(one), &mut number), std::slice::from_ref(&granted));
    assert_eq!(owner.handle(ask(one), &mut number), [granted]);
    assert_eq!(owner.handle(ask(other), &mut number), [Action::AskBack { asker: one }]);
    assert_eq!(owner.handle(ask(other), &mut number), [], "it keeps its place");
    assert_eq!(owner.in_the_way(other), (vec![one], 0));
    assert_eq!(owner.handle(Event::Return { asker: other }, &mut number), []);
    assert_eq!(owner.handle(Event::Return { asker: one }, &mut number), []);
    assert!(owner.is_idle());
}

#[test]
fn a_reader_does_not_pass_a_writer_that_waits_and_kept_readers_cost_no_message() {
    let mut root = Owner::root(Whole);
    let mut number = 0;
    let mut ask = |root: &mut Owner<Whole>, owner, credit| {
        root.handle(Event::Ask { asker: loan_of(owner, 1), credit }, &mut number)
    };
    ask(&mut root, 1, Shared);
    ask(&mut root, 2, Exclusive);
    assert_eq!(ask(&mut root, 3, Shared), []);
    assert_eq!(root.request(loan_of(3, 1)), RequestState::Waiting);
    let mut reader = Owner::borrower(Whole);
    let mut number = 0;
    reader.handle(Event::Ask { asker: local(1), credit: Shared }, &mut number);
    reader.handle(Event::Lent { number: 1, credit: Shared }, &mut number);
    assert_eq!(reader.handle(Event::Return { asker: local(1) }, &mut number), []);
    let again = reader.handle(Event::Ask { asker: local(2), credit: Shared }, &mut number);
    assert_eq!(again, [Action::Granted { asker: local(2), credit: Shared }]);
}
