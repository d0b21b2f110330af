//! Localities of this process on threads of their own: each is started, tells when it serves, and all of them end together.
//!
//! What a thread runs is the caller's: a place to stand is made on the thread, as nothing of a locality may leave it. Start at [`Threads::start`].

use std::future::Future;
use std::thread::JoinHandle;

use futures_channel::oneshot;
use futures_util::future;

use crate::failure::Failure;

/// Called by a thread once it serves.
pub type Ready = Box<dyn FnOnce()>;

/// One thread; it ends when `stop` is dropped.
struct Member {
    name: String,
    stop: oneshot::Sender<()>,
    ready: oneshot::Receiver<()>,
    /// Nobody ever sends: it resolves when the thread has ended.
    end: oneshot::Receiver<()>,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Member {
    /// What a thread left that has ended, or is about to.
    fn join(self) -> Result<(), Failure> {
        let Member { name, stop, thread, .. } = self;
        drop(stop);
        match thread.join() {
            Ok(ended) => ended.map_err(|failure| Failure::new(format!("{name}: {failure}"))),
            Err(_) => Err(Failure::new(format!("{name} panicked"))),
        }
    }
}

/// The threads, in the order of their starts. Dropped, it stops them all.
#[derive(Default)]
pub struct Threads {
    members: Vec<Member>,
}

impl Threads {
    /// Runs `serve` on a new thread. It gets what resolves when it shall end, and what it calls once it serves.
    pub fn start<F>(&mut self, name: String, serve: F) -> Result<(), Failure>
    where
        F: FnOnce(oneshot::Receiver<()>, Ready) -> Result<(), Failure> + Send + 'static,
    {
        let ((stop, stopped), (is_ready, ready)) = (oneshot::channel(), oneshot::channel());
        let (running, end) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let _running = running;
                // Nobody listens if all of this is being given up: then the thread is told to stop, too.
                serve(
                    stopped,
                    Box::new(move || {
                        let _ = is_ready.send(());
                    }),
                )
            })
            .map_err(Failure::while_doing(format!("starting the thread of {name}")))?;
        self.members.push(Member { name, stop, ready, end, thread });
        Ok(())
    }

    /// Until all serve that were started so far. Errors: why the first of them ended before it did.
    pub async fn ready(&mut self) -> Result<(), Failure> {
        for index in 0..self.members.len() {
            let ready = &mut self.members[index].ready;
            // Asked a second time it has given its word already.
            if futures_util::future::FusedFuture::is_terminated(ready) || ready.await.is_ok() {
                continue;
            }
            let member = self.members.remove(index);
            let name = member.name.clone();
            member.join()?;
            return Err(Failure::new(format!("{name} ended before it served")));
        }
        Ok(())
    }

    /// Until one of them has ended; for ever if there is none.
    pub fn first_end(&mut self) -> impl Future<Output = ()> {
        let ends: Vec<_> = self.members.iter_mut().map(|member| &mut member.end).collect();
        async move {
            if ends.is_empty() {
                return future::pending().await;
            }
            // Each resolves by its sender going away.
            let (_ended, ..) = future::select_all(ends).await;
        }
    }

    /// Tells every thread to end, without waiting for it.
    pub fn tell_to_stop(&mut self) {
        for member in &mut self.members {
            // The receiver resolves when its sender goes away.
            drop(std::mem::replace(&mut member.stop, oneshot::channel().0));
        }
    }

    /// Stops every thread, the last one first, and reports the first that failed.
    pub fn stop(&mut self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        while let Some(member) = self.members.pop() {
            outcome = outcome.and(member.join());
        }
        outcome
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // A failure was reported by `stop`, or all of this is being given up for another one.
        let _ = self.stop();
    }
}
