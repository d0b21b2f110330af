//! Stands between a net and the frames until both ends have proved who they are.
//!
//! What the peer sends is cut into records; the handshake goes back and forth below the frames; then each side's first frame, its hello,
//! travels in a record of its own. Behind it the bytes are as they are again and the guard goes, unless one side asked that everything
//! stays sealed: then it stays over tcp, and over verbs it hands out keys and goes. A guard does no I/O: tcp feeds it from a stream, verbs with messages.

use runtime::{Counters, copy_counted};

use crate::error::RefuseReason;
use crate::security::{Established, HelloFault, Record, Sealing, SecureHello, record_at};

/// What a guard found out, once.
pub(super) enum Finding {
    /// Who the peer is.
    Peer(Established),
    /// The peer sent a plain hello where a sealed one is wanted.
    Plain,
}

/// The state of one end.
pub(super) struct Guard {
    hello: Box<dyn SecureHello>,
    pub(super) is_dialled: bool,
    /// From the wire: records not yet understood, and behind the last one bytes as they are.
    pub(super) arrived: Vec<u8>,
    /// Out of records; the frames have taken `plain_taken` of them.
    plain: Vec<u8>,
    plain_taken: usize,
    /// For the wire; `left` of them are gone.
    pub(super) leaving: Vec<u8>,
    pub(super) left: usize,
    pub(super) finding: Option<Finding>,
    pub(super) fault: Option<HelloFault>,
    pub(super) is_established: bool,
    pub(super) is_sealed: bool,
    /// What is sealed behind the hello goes through here.
    carries_sealed: bool,
    /// What comes next, or goes next, is as it is.
    pub(super) is_raw_in: bool,
    pub(super) is_raw_out: bool,
}

impl Guard {
    /// A guard with what the dialling side says first.
    ///
    /// `carries_sealed`: where everything is sealed, it is as records of the handshake's TLS.
    pub(super) fn new(mut hello: Box<dyn SecureHello>, is_dialled: bool, carries_sealed: bool) -> Guard {
        let mut leaving = Vec::new();
        hello.poll_transmit(&mut leaving);
        Guard {
            hello,
            is_dialled,
            arrived: Vec::new(),
            plain: Vec::new(),
            plain_taken: 0,
            leaving,
            left: 0,
            finding: None,
            fault: None,
            is_established: false,
            is_sealed: false,
            carries_sealed,
            is_raw_in: false,
            is_raw_out: false,
        }
    }

    pub(super) fn take_plain(&mut self, first: &mut [u8], second: &mut [u8], counters: &Counters) -> usize {
        let rest = &self.plain[self.plain_taken..];
        let (one, two) =
            (first.len().min(rest.len()), second.len().min(rest.len().saturating_sub(first.len())));
        copy_counted(counters, &mut first[..one], &rest[..one]);
        copy_counted(counters, &mut second[..two], &rest[one..one + two]);
        self.plain_taken += one + two;
        if self.plain_taken == self.plain.len() {
            self.plain.clear();
            self.plain_taken = 0;
        }
        one + two
    }

    pub(super) fn has_plain(&self) -> bool {
        self.plain_taken < self.plain.len()
    }

    /// Understands what has arrived, until there is something for the frames. False: more has to come.
    pub(super) fn digest(&mut self) -> Result<bool, HelloFault> {
        loop {
            if self.has_plain() {
                return Ok(true);
            }
            if self.is_raw_in {
                self.plain = std::mem::take(&mut self.arrived);
                return Ok(self.has_plain());
            }
            match record_at(&self.arrived) {
                Record::Part => return Ok(false),
                Record::None if !self.is_established && !self.is_dialled => {
                    // Somebody without a certificate. Its hello is answered in its own words: that it needs one.
                    self.finding = Some(Finding::Plain);
                    (self.is_raw_in, self.is_raw_out) = (true, true);
                }
                Record::None => return Err(HelloFault { reason: RefuseReason::Handshake }),
                Record::Whole(bytes) => {
                    let handled = self.hello.handle_record(&self.arrived[..bytes], &mut self.plain);
                    self.arrived.drain(..bytes);
                    self.hello.poll_transmit(&mut self.leaving);
                    handled?;
                    if let Some(established) = self.hello.established()
                        && !self.is_established
                    {
                        self.is_established = true;
                        self.is_sealed = established.is_sealed && self.carries_sealed;
                        self.finding = Some(Finding::Peer(established.clone()));
                    }
                    // The peer's hello came in this record.
                    self.is_raw_in = self.has_plain() && !self.is_sealed;
                }
            }
        }
    }

    /// Seals what the frames have to say first, and the rest if all is sealed; it is among what is leaving then.
    pub(super) fn seal(&mut self, plain: &[u8]) -> Result<(), HelloFault> {
        self.hello.seal(plain)?;
        self.hello.poll_transmit(&mut self.leaving);
        self.is_raw_out = !self.is_sealed;
        Ok(())
    }

    /// Keys for what does not go through here.
    pub(super) fn sealing(&self) -> Result<Sealing, HelloFault> {
        self.hello.sealing()
    }

    /// True if frames can be sent as far as the handshake is concerned.
    pub(super) fn takes_frames(&self) -> bool {
        self.is_established || self.is_raw_out
    }

    /// True if both hellos are over and nothing is left of them: from now on bytes, or messages, are as they are.
    pub(super) fn is_over(&self) -> bool {
        self.is_raw_in
            && self.is_raw_out
            && self.leaving.is_empty()
            && self.finding.is_none()
            && !self.has_plain()
    }

    // ---- where messages keep their bounds

    /// One message of the peer: what of it is for the frames, perhaps nothing.
    pub(super) fn open(&mut self, message: &[u8]) -> Result<Vec<u8>, HelloFault> {
        self.arrived.extend_from_slice(message);
        self.digest()?;
        Ok(std::mem::take(&mut self.plain))
    }

    /// What is to be sent as one message.
    pub(super) fn take_leaving(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.leaving)
    }
}
