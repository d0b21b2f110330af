//! Messages that the net did not take yet, in order.

use std::collections::VecDeque;

use runtime::SharedBuffer;
use verbs_net::{BulkCookie, Lane, PeerId, Refused};

use super::side::Context;

/// One message with what goes with it.
#[derive(Debug)]
pub struct Letter {
    /// Receiver.
    pub to: PeerId,
    /// Credits.
    pub lane: Lane,
    /// What the receiver may touch.
    pub exposes: Option<BulkCookie>,
    /// What of the receiver's this message ends.
    pub invalidates: Option<BulkCookie>,
    /// The bytes.
    pub message: SharedBuffer,
}

/// The queue. Its length is bounded by what its owner has in flight.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<Letter>,
}

impl Outbox {
    /// Sends a message now or, in order, when the net takes it. Errors: the net will never take it.
    pub fn send(&mut self, context: &mut Context<'_>, letter: Letter) -> Result<(), Refused> {
        if !self.waiting.is_empty() {
            self.waiting.push_back(letter);
            return self.retry(context);
        }
        self.waiting.extend(hand_over(context, letter)?);
        Ok(())
    }

    /// Tries again. Errors: the net refused a message for good; it is dropped, and the others go on.
    pub fn retry(&mut self, context: &mut Context<'_>) -> Result<(), Refused> {
        let mut refused_for_good = None;
        // The letters of a peer without credits wait; those of other peers do not wait for it.
        let mut blocked: Vec<PeerId> = Vec::new();
        for _ in 0..self.waiting.len() {
            let Some(letter) = self.waiting.pop_front() else { break };
            if blocked.contains(&letter.to) {
                self.waiting.push_back(letter);
                continue;
            }
            match hand_over(context, letter) {
                Ok(None) => {}
                Ok(Some(letter)) => {
                    blocked.push(letter.to);
                    self.waiting.push_back(letter);
                }
                Err(refused) => {
                    refused_for_good.get_or_insert(refused);
                }
            }
        }
        refused_for_good.map_or(Ok(()), Err)
    }

    /// Drops what waits for a peer.
    pub fn forget(&mut self, peer: PeerId) {
        self.waiting.retain(|letter| letter.to != peer);
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }
}

/// One letter to the net. It comes back if it has to wait. Errors: the net will never take it.
fn hand_over(context: &mut Context<'_>, letter: Letter) -> Result<Option<Letter>, Refused> {
    let Letter { to, lane, exposes, invalidates, message } = letter;
    match context.send(to, lane, exposes, invalidates, message) {
        Ok(()) => Ok(None),
        Err((refused, _)) if refused.is_permanent() => Err(refused),
        Err((_, message)) => Ok(Some(Letter { to, lane, exposes, invalidates, message })),
    }
}
