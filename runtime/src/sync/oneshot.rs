//! One value from one task to another of the same locality.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
    is_sender_gone: bool,
    is_receiver_gone: bool,
}

/// A sender and a receiver for one value.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let state = Rc::new(RefCell::new(State {
        value: None,
        waker: None,
        is_sender_gone: false,
        is_receiver_gone: false,
    }));
    (Sender { state: Rc::clone(&state) }, Receiver { state })
}

/// Gives the value.
pub struct Sender<T> {
    state: Rc<RefCell<State<T>>>,
}

impl<T> Sender<T> {
    /// Gives the value and wakes the receiver.
    ///
    /// # Errors
    /// The value, if the receiver is gone.
    pub fn send(self, value: T) -> Result<(), T> {
        let waker = {
            let mut state = self.state.borrow_mut();
            if state.is_receiver_gone {
                return Err(value);
            }
            state.value = Some(value);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// True if the receiver is gone: the value is wanted by nobody.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.borrow().is_receiver_gone
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.state.borrow_mut();
            state.is_sender_gone = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The sender went without giving a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sender went without giving a value")]
pub struct Canceled;

/// Waits for the value.
#[must_use = "a future does nothing until awaited"]
pub struct Receiver<T> {
    state: Rc<RefCell<State<T>>>,
}

impl<T> Receiver<T> {
    /// The value, if it was given; `Ok(None)` if it may still be.
    ///
    /// # Errors
    /// [`Canceled`], also after the value was taken and the sender is gone.
    pub fn try_recv(&mut self) -> Result<Option<T>, Canceled> {
        let mut state = self.state.borrow_mut();
        match state.value.take() {
            None if state.is_sender_gone => Err(Canceled),
            value => Ok(value),
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sender(wanted: {})", !self.is_closed())
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receiver(has its value: {})", self.state.borrow().value.is_some())
    }
}

impl<T> Future for Receiver<T> {
    type Output = Result<T, Canceled>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T, Canceled>> {
        let mut state = self.state.borrow_mut();
        if let Some(value) = state.value.take() {
            return Poll::Ready(Ok(value));
        }
        if state.is_sender_gone {
            return Poll::Ready(Err(Canceled));
        }
        let old = state.waker.replace(context.waker().clone());
        drop(state);
        drop(old);
        Poll::Pending
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let leftover = {
            let mut state = self.state.borrow_mut();
            state.is_receiver_gone = true;
            (state.value.take(), state.waker.take())
        };
        drop(leftover);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_value_arrives_before_or_after_the_wait() {
        let (sender, receiver) = channel();
        sender.send(1).unwrap();
        assert_eq!(receiver.now_or_never(), Some(Ok(1)));
        let (sender, mut receiver) = channel();
        assert_eq!((&mut receiver).now_or_never(), None);
        assert_eq!(receiver.try_recv(), Ok(None));
        sender.send(2).unwrap();
        assert_eq!(receiver.try_recv(), Ok(Some(2)));
    }

    #[test]
    fn either_side_sees_that_the_other_is_gone() {
        let (sender, receiver) = channel::<u8>();
        drop(sender);
        assert_eq!(receiver.now_or_never(), Some(Err(Canceled)));
        let (sender, receiver) = channel();
        let value = Rc::new(());
        assert!(!sender.is_closed());
        drop(receiver);
        assert!(sender.is_closed());
        assert!(sender.send(Rc::clone(&value)).is_err());
        let (sender, receiver) = channel();
        sender.send(Rc::clone(&value)).unwrap();
        drop(receiver);
        assert_eq!(Rc::strong_count(&value), 1, "an unread value is dropped with its receiver");
    }
}
