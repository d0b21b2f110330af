//! Mail between localities: a bounded queue with many senders on any thread and one receiver in a locality.
//!
//! Full is not an error: [`MailSender::try_send`] gives the letter back. Order: each sender's letters arrive in its order.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;

use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;

use crate::parking::Unparker;

struct Shared<T> {
    letters: ArrayQueue<T>,
    unparker: Unparker,
    receiver: AtomicWaker,
    senders: AtomicUsize,
    is_received: AtomicBool,
}

/// A mailbox for `capacity` letters (at least one) in the locality that `unparker` wakes.
#[must_use]
pub fn mailbox<T>(capacity: usize, unparker: Unparker) -> (MailSender<T>, MailReceiver<T>) {
    let shared = Arc::new(Shared {
        letters: ArrayQueue::new(capacity.max(1)),
        unparker,
        receiver: AtomicWaker::new(),
        senders: AtomicUsize::new(1),
        is_received: AtomicBool::new(true),
    });
    (MailSender { shared: Arc::clone(&shared) }, MailReceiver { shared })
}

/// Sends letters, from any thread.
pub struct MailSender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> MailSender<T> {
    /// Puts a letter into the box and wakes its locality.
    ///
    /// # Errors
    /// The letter, if the box is full now, or nobody will ever read it ([`MailSender::is_closed`]).
    pub fn try_send(&self, letter: T) -> Result<(), T> {
        if self.is_closed() {
            return Err(letter);
        }
        self.shared.letters.push(letter)?;
        self.shared.wake();
        Ok(())
    }

    /// True if the receiver is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        !self.shared.is_received.load(Ordering::SeqCst)
    }
}

impl<T> Shared<T> {
    fn wake(&self) {
        // One ring: a task's waker wakes its locality, too, and a second ring may cost it a turn that finds nothing. A receiver that waits in no
        // task is a driver, which looks into the box in its poll.
        match self.receiver.take() {
            Some(waker) => waker.wake(),
            None => self.unparker.unpark(),
        }
    }
}

impl<T> Clone for MailSender<T> {
    fn clone(&self) -> MailSender<T> {
        self.shared.senders.fetch_add(1, Ordering::SeqCst);
        MailSender { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for MailSender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.shared.wake();
        }
    }
}

/// Takes letters out, in one locality.
pub struct MailReceiver<T> {
    shared: Arc<Shared<T>>,
}

impl<T> MailReceiver<T> {
    /// The oldest letter, if there is one now.
    pub fn try_recv(&mut self) -> Option<T> {
        self.shared.letters.pop()
    }

    /// The oldest letter, as soon as there is one; `None` once the box is empty and no sender is left. Cancelling loses no letter.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|context| {
            if let Some(letter) = self.try_recv() {
                return Poll::Ready(Some(letter));
            }
            self.shared.receiver.register(context.waker());
            // Looked at before the box: what the last sender sent before it went is in the box then.
            let is_last = self.shared.senders.load(Ordering::SeqCst) == 0;
            match self.shared.letters.pop() {
                Some(letter) => Poll::Ready(Some(letter)),
                None if is_last => Poll::Ready(None),
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl<T> fmt::Debug for MailSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MailSender({} of {} letters)", self.shared.letters.len(), self.shared.letters.capacity())
    }
}

impl<T> fmt::Debug for MailReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MailReceiver({} of {} letters)", self.shared.letters.len(), self.shared.letters.capacity())
    }
}

impl<T> Drop for MailReceiver<T> {
    fn drop(&mut self) {
        self.shared.is_received.store(false, Ordering::SeqCst);
        while self.shared.letters.pop().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::parking::Parking;

    fn unparker() -> Unparker {
        Unparker { parking: Parking::new(Arc::default()) }
    }

    #[test]
    fn a_full_box_gives_the_letter_back_and_order_is_kept() {
        let (sender, mut receiver) = mailbox(2, unparker());
        assert_eq!((sender.try_send(1), sender.try_send(2), sender.try_send(3)), (Ok(()), Ok(()), Err(3)));
        assert_eq!(receiver.recv().now_or_never(), Some(Some(1)));
        assert_eq!((receiver.try_recv(), receiver.try_recv()), (Some(2), None));
    }

    #[test]
    fn the_end_is_seen_on_both_sides() {
        let (sender, mut receiver) = mailbox(2, unparker());
        let twin = sender.clone();
        sender.try_send("last").unwrap();
        drop(sender);
        assert_eq!(receiver.recv().now_or_never(), Some(Some("last")));
        assert_eq!(receiver.recv().now_or_never(), None, "a sender is left");
        drop(twin);
        assert_eq!(receiver.recv().now_or_never(), Some(None));
        let (sender, receiver) = mailbox(2, unparker());
        drop(receiver);
        assert_eq!(sender.try_send("nobody"), Err("nobody"));
        assert!(sender.is_closed());
    }

    #[test]
    fn a_letter_makes_its_locality_turn() {
        let unparker = unparker();
        let (sender, _receiver) = mailbox(1, unparker.clone());
        assert!(!unparker.parking.is_notified());
        sender.try_send(()).unwrap();
        assert!(unparker.parking.is_notified());
    }
}
