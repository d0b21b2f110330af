//! Asking a peer what it is: its features, incarnation and nids, by a ping of the net below (no session, no fom).
//!
//! Thread: the owning locality. Bound: one record per peer that is being asked.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::task::{Poll, Waker};
use std::time::Duration;

use base::Endpoint;
use verbs_net::{NetError, PeerId, PeerInfo, Refused};

use crate::machine::RpcMachine;

/// Why a peer did not say what it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoverError {
    /// The transport did not take the ping.
    #[error("{peer}: {refused}")]
    Refused {
        /// Whom it was for.
        peer: Endpoint,
        /// Why.
        refused: Refused,
    },
    /// There was no answer, or none that is one.
    #[error("{peer}: {error}")]
    Net {
        /// Who was asked.
        peer: Endpoint,
        /// Why.
        error: NetError,
    },
}

#[derive(Default)]
struct Asked {
    waiting: usize,
    answer: Option<Result<PeerInfo, NetError>>,
    wakers: Vec<Waker>,
}

/// Peers that are being asked.
#[derive(Default)]
pub(crate) struct Discoveries(RefCell<BTreeMap<Endpoint, Asked>>);

impl Discoveries {
    pub(crate) fn on_discovered(&self, peer: Endpoint, result: &Result<PeerInfo, NetError>) {
        if let Some(asked) = self.0.borrow_mut().get_mut(&peer) {
            asked.answer = Some(result.clone());
            asked.wakers.drain(..).for_each(Waker::wake);
        }
    }
}

/// One who waits; the last one takes the record away.
struct Waiting<'a> {
    discoveries: &'a Discoveries,
    peer: Endpoint,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut all = self.discoveries.0.borrow_mut();
        let Some(asked) = all.get_mut(&self.peer) else { return };
        asked.waiting -= 1;
        if asked.waiting == 0 {
            all.remove(&self.peer);
        }
    }
}

impl RpcMachine {
    /// Asks `peer` what it is, and waits for at most `within`.
    ///
    /// # Errors
    /// See [`DiscoverError`].
    pub async fn discover(&self, peer: Endpoint, within: Duration) -> Result<PeerInfo, DiscoverError> {
        let now = self.locality().now();
        let discoveries = self.discoveries();
        let asks = {
            let mut all = discoveries.0.borrow_mut();
            let asked = all.entry(peer).or_default();
            asked.waiting += 1;
            asked.waiting == 1
        };
        let _waiting = Waiting { discoveries, peer };
        if asks {
            let asked =
                self.with_transfer_machine_mut(|tm| tm.try_ping(now, PeerId::any(peer), now + within));
            asked.map_err(|refused| DiscoverError::Refused { peer, refused })?;
        }
        let answer = std::future::poll_fn(|context| {
            let mut all = discoveries.0.borrow_mut();
            let Some(asked) = all.get_mut(&peer) else { return Poll::Pending };
            match &asked.answer {
                Some(answer) => Poll::Ready(answer.clone()),
                None => {
                    asked.wakers.push(context.waker().clone());
                    Poll::Pending
                }
            }
        });
        answer.await.map_err(|error| DiscoverError::Net { peer, error })
    }
}
