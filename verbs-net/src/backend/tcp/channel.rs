//! The bytes of one TCP connection, as the frames see them: as they are, or through a hello that proves both ends.
//!
//! Guarded: what the peer sends is cut into records; the handshake goes back and forth below the frames; then each side's first
//! frame, its hello, travels in a record of its own. Behind it the bytes are as they are again and the guard goes, unless one side
//! asked that everything stays sealed. A guard keeps at most two records of what came and [`SEALED_BYTES_MAX`] of what is to go.

use std::io::{self, IoSlice, Read as _};
use std::net::TcpStream;

use runtime::{Counters, copy_counted};

use super::{read_two, write_slices};
use crate::error::RefuseReason;
use crate::security::{Established, HelloFault, RECORD_BYTES_MAX, Record, SecureHello, record_at};

/// Plain bytes that are sealed in one go.
const SEALED_BYTES_MAX: usize = 64 * 1024;

/// One TCP connection.
pub(super) struct Channel {
    pub(super) stream: TcpStream,
    guard: Option<Box<Guard>>,
}

/// What a guard found out, once.
pub(super) enum Finding {
    /// Who the peer is.
    Peer(Established),
    /// The peer sent a plain hello where a sealed one is wanted.
    Plain,
}

struct Guard {
    hello: Box<dyn SecureHello>,
    is_dialled: bool,
    /// From the wire: records not yet understood, and behind the last one bytes as they are.
    arrived: Vec<u8>,
    /// Out of records; the frames have taken `plain_taken` of them.
    plain: Vec<u8>,
    plain_taken: usize,
    /// For the wire; `left` of them are gone.
    leaving: Vec<u8>,
    left: usize,
    finding: Option<Finding>,
    fault: Option<HelloFault>,
    is_established: bool,
    is_sealed: bool,
    /// What comes next, or goes next, is as it is.
    is_raw_in: bool,
    is_raw_out: bool,
}

impl Guard {
    fn take_plain(&mut self, first: &mut [u8], second: &mut [u8], counters: &Counters) -> usize {
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

    fn has_plain(&self) -> bool {
        self.plain_taken < self.plain.len()
    }

    /// Understands what has arrived, until there is something for the frames. False: more has to come.
    fn digest(&mut self) -> io::Result<bool> {
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
                Record::None => return Err(self.fail(HelloFault { reason: RefuseReason::Handshake })),
                Record::Whole(bytes) => {
                    let handled = self.hello.handle_record(&self.arrived[..bytes], &mut self.plain);
                    self.arrived.drain(..bytes);
                    self.hello.poll_transmit(&mut self.leaving);
                    if let Err(fault) = handled {
                        return Err(self.fail(fault));
                    }
                    if let Some(established) = self.hello.established()
                        && !self.is_established
                    {
                        self.is_established = true;
                        self.is_sealed = established.is_sealed;
                        self.finding = Some(Finding::Peer(established.clone()));
                    }
                    // The peer's hello came in this record.
                    self.is_raw_in = self.has_plain() && !self.is_sealed;
                }
            }
        }
    }

    fn fail(&mut self, fault: HelloFault) -> io::Error {
        self.fault = Some(fault);
        io::ErrorKind::InvalidData.into()
    }

    fn flush(&mut self, stream: &mut TcpStream, counters: &Counters) -> io::Result<()> {
        while self.left < self.leaving.len() {
            counters.syscalls.add(1);
            match write_slices(stream, &[IoSlice::new(&self.leaving[self.left..])]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.left += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.leaving.clear();
        self.left = 0;
        Ok(())
    }
}

impl Channel {
    /// Bytes as they are, or behind `hello`.
    pub(super) fn new(stream: TcpStream, hello: Option<Box<dyn SecureHello>>, is_dialled: bool) -> Channel {
        let guard = hello.map(|mut hello| {
            let mut leaving = Vec::new();
            hello.poll_transmit(&mut leaving);
            Box::new(Guard {
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
                is_raw_in: false,
                is_raw_out: false,
            })
        });
        Channel { stream, guard }
    }

    /// Reads what is there for the frames into two places. `WouldBlock`: nothing now.
    pub(super) fn read(
        &mut self,
        first: &mut [u8],
        second: &mut [u8],
        counters: &Counters,
    ) -> io::Result<usize> {
        let Some(guard) = &mut self.guard else {
            return match second.len() {
                0 => self.stream.read(first),
                _ => read_two(&mut self.stream, first, second),
            };
        };
        while !guard.digest()? {
            if guard.is_raw_in && guard.is_raw_out && guard.leaving.is_empty() && guard.finding.is_none() {
                // Both hellos are over and nothing is left of them.
                self.guard = None;
                return self.read(first, second, counters);
            }
            if guard.is_raw_in {
                return read_two(&mut self.stream, first, second);
            }
            let held = guard.arrived.len();
            guard.arrived.resize(RECORD_BYTES_MAX.max(held + 1), 0);
            let bytes = self.stream.read(&mut guard.arrived[held..]);
            guard.arrived.truncate(held + *bytes.as_ref().unwrap_or(&0));
            let is_over = match &bytes {
                Ok(count) => *count == 0,
                Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            };
            if is_over && guard.is_dialled && !guard.is_established {
                // Who shares a secret takes a handshake for garbage and hangs up without a word that we understand.
                return Err(guard.fail(HelloFault { reason: RefuseReason::Handshake }));
            }
            if bytes? == 0 {
                return Ok(0);
            }
        }
        Ok(guard.take_plain(first, second, counters))
    }

    /// Writes what the frames have. `WouldBlock`: nothing of it now.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>], counters: &Counters) -> io::Result<usize> {
        let Some(guard) = &mut self.guard else { return write_slices(&mut self.stream, slices) };
        guard.flush(&mut self.stream, counters)?;
        if guard.is_raw_out {
            return write_slices(&mut self.stream, slices);
        }
        if !guard.is_established {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // As one: the hello's header and payload have to be in one record, behind which bytes are as they are.
        let mut plain = Vec::new();
        for slice in slices {
            plain.extend_from_slice(&slice[..slice.len().min(SEALED_BYTES_MAX - plain.len())]);
        }
        let sealed = plain.len();
        guard.hello.seal(&plain).map_err(|fault| guard.fail(fault))?;
        counters.copied_bytes.add(sealed as u64);
        guard.hello.poll_transmit(&mut guard.leaving);
        guard.is_raw_out = !guard.is_sealed;
        match guard.flush(&mut self.stream, counters) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(sealed),
        }
    }

    /// Writes what the handshake has to say. `WouldBlock` is no error: the rest stays.
    pub(super) fn flush(&mut self, counters: &Counters) -> io::Result<()> {
        let Some(guard) = &mut self.guard else { return Ok(()) };
        match guard.flush(&mut self.stream, counters) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// True while bytes go through records: a short read or write says nothing of the kernel's buffers.
    pub(super) fn is_guarded(&self) -> bool {
        self.guard.is_some()
    }

    /// True if the next frame has to be written alone: it is the hello, and goes sealed.
    pub(super) fn sends_one_frame(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| !guard.is_raw_out && !guard.is_sealed)
    }

    /// True if bytes wait here for the kernel to take them.
    pub(super) fn has_leaving(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.left < guard.leaving.len())
    }

    /// True if bytes for the frames are here already, so that the kernel will not tell of them.
    pub(super) fn has_arrived(&self) -> bool {
        let is_whole = |guard: &Guard| {
            guard.has_plain()
                || (guard.is_raw_in && !guard.arrived.is_empty())
                || matches!(record_at(&guard.arrived), Record::Whole(_))
        };
        self.guard.as_deref().is_some_and(is_whole)
    }

    /// True if frames can be written as far as the handshake is concerned.
    pub(super) fn takes_frames(&self) -> bool {
        self.guard.as_ref().is_none_or(|guard| guard.is_established || guard.is_raw_out)
    }

    /// What the guard has found out since the last call.
    pub(super) fn take_finding(&mut self) -> Option<Finding> {
        self.guard.as_mut().and_then(|guard| guard.finding.take())
    }

    /// Why reading or writing failed, if the guard failed it.
    pub(super) fn fault(&self) -> Option<HelloFault> {
        self.guard.as_ref().and_then(|guard| guard.fault)
    }
}
