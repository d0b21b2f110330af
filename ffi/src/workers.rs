//! The tasks of an instance: each runs operations, one after the other, and they wait for letters in turns.
//!
//! The one whose turn it is takes the next letter, passes the turn on, and runs what the letter asks for. So a letter wakes the task that will run it,
//! and an operation finds a task that is there already: nothing is made for it, and no task stands between the mailbox and it.
//!
//! Order: letters are begun in the order of their taking, as a turn is passed on before its operation runs, and tasks are polled in the order they were woken.
//! Bound: a task for each operation that runs, and one that waits for letters; [`limits::WORKERS_RESTING`] others are kept. Thread: the instance's.
//! **Invariant**: at most one worker has the turn, and none only while it is passed on and after [`Letter::Stop`].

use std::cell::{Cell, OnceCell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use runtime::MailReceiver;
use runtime::sync::Notify;

use crate::instance::{Letter, Shared};
use crate::limits;
use crate::work::Running;

/// What is known of one task.
#[derive(Default)]
pub struct Worker {
    has_turn: Cell<bool>,
    /// The letter that was there when it got the turn.
    letter: Cell<Option<Letter>>,
    /// Its task's, from its first poll on.
    waker: OnceCell<Waker>,
    /// What it runs.
    pub running: Cell<Option<Running>>,
}

/// The workers of an instance, and the mailbox that they read in turns.
pub struct Workers {
    /// `None` once the instance has ended.
    receiver: RefCell<Option<MailReceiver<Letter>>>,
    all: RefCell<Vec<Rc<Worker>>>,
    resting: RefCell<Vec<Rc<Worker>>>,
    /// Rung by the letter that ends everything.
    stopped: Notify,
}

impl Workers {
    #[must_use]
    pub fn new(receiver: MailReceiver<Letter>) -> Workers {
        Workers {
            receiver: RefCell::new(Some(receiver)),
            all: RefCell::default(),
            resting: RefCell::default(),
            stopped: Notify::new(),
        }
    }

    /// A worker that has the turn; its task is the caller's to make.
    #[must_use]
    pub fn add(&self) -> Rc<Worker> {
        let worker = Rc::new(Worker { has_turn: Cell::new(true), ..Worker::default() });
        self.all.borrow_mut().push(Rc::clone(&worker));
        worker
    }

    /// The next letter, for the worker whose turn it is: its task is woken by it. Others wait for the turn.
    pub fn poll_turn(&self, worker: &Worker, shared: &Shared, context: &mut Context<'_>) -> Poll<Letter> {
        if let Some(letter) = worker.letter.take() {
            worker.has_turn.set(false);
            return Poll::Ready(letter);
        }
        if !worker.has_turn.get() {
            return Poll::Pending;
        }
        worker.waker.get_or_init(|| context.waker().clone());
        let letter = self.poll_letter(shared, context);
        worker.has_turn.set(letter.is_pending());
        letter
    }

    fn poll_letter(&self, shared: &Shared, context: &mut Context<'_>) -> Poll<Letter> {
        if let Some(letter) = shared.take_own_letter() {
            return Poll::Ready(letter);
        }
        let polled = self.receiver.borrow_mut().as_mut().map(|receiver| pin!(receiver.recv()).poll(context));
        match polled {
            Some(Poll::Pending) => Poll::Pending,
            Some(Poll::Ready(Some(letter))) => {
                shared.made_room();
                Poll::Ready(letter)
            }
            // Nobody can send any more.
            Some(Poll::Ready(None)) | None => Poll::Ready(Letter::Stop),
        }
    }

    /// Gives the turn to a worker that rests. False: there is none.
    #[must_use]
    pub fn pass_on(&self, shared: &Shared) -> bool {
        let Some(next) = self.resting.borrow_mut().pop() else { return false };
        // It rested, so its task was polled.
        let Some(waker) = next.waker.get() else { return false };
        next.has_turn.set(true);
        // On its behalf: its task need not be polled before there is a letter.
        if let Poll::Ready(letter) = self.poll_letter(shared, &mut Context::from_waker(waker)) {
            next.letter.set(Some(letter));
            waker.wake_by_ref();
        }
        true
    }

    /// The worker waits for another turn. False: there are enough that do, and its task is to end.
    #[must_use]
    pub fn rest(&self, worker: &Rc<Worker>) -> bool {
        let mut resting = self.resting.borrow_mut();
        if resting.len() < limits::WORKERS_RESTING {
            resting.push(Rc::clone(worker));
            return true;
        }
        self.all.borrow_mut().retain(|other| !Rc::ptr_eq(other, worker));
        false
    }

    /// What runs now, in no order.
    #[must_use]
    pub fn running(&self) -> Vec<Running> {
        self.all.borrow().iter().filter_map(|worker| worker.running.get()).collect()
    }

    /// True if something runs that is wanted.
    #[must_use]
    pub fn is_running(&self, is_wanted: impl FnMut(Running) -> bool) -> bool {
        self.all.borrow().iter().filter_map(|worker| worker.running.get()).any(is_wanted)
    }

    /// The letter that ends everything has come.
    pub fn stop(&self) {
        self.stopped.notify_one();
    }

    /// Waits for [`Workers::stop`].
    pub async fn stopped(&self) {
        self.stopped.notified().await;
    }

    /// Nobody reads the mailbox any more: what is still in it ends, as does what is sent later.
    pub fn close(&self) {
        let receiver = self.receiver.borrow_mut().take();
        drop(receiver); // outside the borrow: callbacks run
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use runtime::{Arena, ArenaConfig, Locality, LocalityConfig, mailbox};

    use super::*;

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A worker, and a task that only counts how often it is woken.
    struct Desk {
        worker: Rc<Worker>,
        bell: Arc<Bell>,
    }

    impl Desk {
        fn new(workers: &Workers) -> Desk {
            Desk { worker: workers.add(), bell: Arc::default() }
        }

        fn has_letter(&self, workers: &Workers, shared: &Shared) -> bool {
            let waker = Waker::from(Arc::clone(&self.bell));
            workers.poll_turn(&self.worker, shared, &mut Context::from_waker(&waker)).is_ready()
        }

        fn wakes(&self) -> usize {
            self.bell.0.load(Ordering::SeqCst)
        }
    }

    fn office() -> (Workers, Shared) {
        let locality = Locality::new(LocalityConfig {
            index: 0,
            name: "test".to_owned(),
            seed: 1,
            counters: Arc::default(),
            arena: Arena::new(ArenaConfig { capacity_bytes: 1 << 20 }).unwrap(),
            crowd: None,
        });
        let (sender, receiver) = mailbox(8, locality.handle().unparker());
        (Workers::new(receiver), Shared::for_test(sender))
    }

    #[test]
    fn a_letter_wakes_the_one_whose_turn_it_is_and_nobody_else_takes_it() {
        let (workers, shared) = office();
        let one = Desk::new(&workers);
        assert!(!one.has_letter(&workers, &shared));
        shared.post_letter(Letter::Stop);
        assert_eq!(one.wakes(), 1);
        assert!(one.has_letter(&workers, &shared));
        assert!(!workers.pass_on(&shared), "nobody rests");
        let other = Desk::new(&workers);
        shared.post_letter(Letter::Stop);
        assert!(!one.has_letter(&workers, &shared), "its turn is over");
        assert!(other.has_letter(&workers, &shared), "found at its first poll");
        assert!(workers.rest(&one.worker));
        assert!(!one.has_letter(&workers, &shared), "it rests");
        assert!(workers.pass_on(&shared));
        assert_eq!(one.wakes(), 1, "there is no letter yet");
        shared.post_letter(Letter::Stop);
        assert_eq!((one.wakes(), other.wakes()), (2, 0));
        assert!(one.has_letter(&workers, &shared));
    }

    #[test]
    fn a_letter_that_is_there_goes_with_the_turn() {
        let (workers, shared) = office();
        let (one, other) = (Desk::new(&workers), Desk::new(&workers));
        shared.post_letter(Letter::Stop);
        shared.post_letter(Letter::Stop);
        assert!(one.has_letter(&workers, &shared) && other.has_letter(&workers, &shared));
        assert!(workers.rest(&one.worker));
        shared.post_letter(Letter::Stop);
        assert!(workers.pass_on(&shared));
        assert_eq!(one.wakes(), 1);
        assert!(one.has_letter(&workers, &shared));
        assert!(!one.has_letter(&workers, &shared), "one letter for one turn");
    }

    #[test]
    fn workers_that_rest_are_bounded_and_the_others_are_forgotten() {
        let (workers, shared) = office();
        let desks: Vec<Desk> = (0..limits::WORKERS_RESTING + 3).map(|_| Desk::new(&workers)).collect();
        let kept = desks.iter().filter(|desk| workers.rest(&desk.worker)).count();
        assert_eq!(kept, limits::WORKERS_RESTING);
        assert_eq!(workers.all.borrow().len(), limits::WORKERS_RESTING);
        workers.close();
        assert!(shared.is_closed());
    }
}
