//! The bytes of one TCP connection, as the frames see them: as they are, or through a [`Guard`].
//!
//! A guard keeps at most two records of what came and [`SEALED_BYTES_MAX`] of what is to go.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::TcpStream;

use runtime::Counters;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use crate::backend::guard::{Finding, Guard};
use crate::error::RefuseReason;
use crate::security::{HelloFault, RECORD_BYTES_MAX, Record, SecureHello, record_at};

/// Plain bytes that are sealed in one go.
const SEALED_BYTES_MAX: usize = 64 * 1024;

/// One TCP connection.
pub(super) struct Channel {
    pub(super) stream: TcpStream,
    guard: Option<Box<Guard>>,
}

impl Channel {
    /// Bytes as they are, or behind `hello`.
    pub(super) fn new(stream: TcpStream, hello: Option<Box<dyn SecureHello>>, is_dialled: bool) -> Channel {
        let guard = hello.map(|hello| Box::new(Guard::new(hello, is_dialled, true)));
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
            return read(&self.stream, first, second);
        };
        while !digest(guard)? {
            if guard.is_over() {
                self.guard = None;
                return self.read(first, second, counters);
            }
            if guard.is_raw_in {
                return read(&self.stream, first, second);
            }
            let held = guard.arrived.len();
            guard.arrived.resize(RECORD_BYTES_MAX.max(held + 1), 0);
            let bytes = read(&self.stream, &mut guard.arrived[held..], &mut []);
            guard.arrived.truncate(held + *bytes.as_ref().unwrap_or(&0));
            let is_over = match &bytes {
                Ok(count) => *count == 0,
                Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            };
            if is_over && guard.is_dialled && !guard.is_established {
                // Who shares a secret takes a handshake for garbage and hangs up without a word that we understand.
                return Err(fail(guard, HelloFault { reason: RefuseReason::Handshake }));
            }
            if bytes? == 0 {
                return Ok(0);
            }
        }
        Ok(guard.take_plain(first, second, counters))
    }

    /// Writes what the frames have. `WouldBlock`: nothing of it now.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>], counters: &Counters) -> io::Result<usize> {
        let Some(guard) = &mut self.guard else { return write(&self.stream, slices) };
        flush(guard, &self.stream, counters)?;
        if guard.is_raw_out {
            return write(&self.stream, slices);
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
        guard.seal(&plain).map_err(|fault| fail(guard, fault))?;
        counters.copied_bytes.add(sealed as u64);
        match flush(guard, &self.stream, counters) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(sealed),
        }
    }

    /// Writes what the handshake has to say. `WouldBlock` is no error: the rest stays.
    pub(super) fn flush(&mut self, counters: &Counters) -> io::Result<()> {
        let Some(guard) = &mut self.guard else { return Ok(()) };
        match flush(guard, &self.stream, counters) {
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
        self.guard.as_ref().is_none_or(|guard| guard.takes_frames())
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

fn digest(guard: &mut Guard) -> io::Result<bool> {
    guard.digest().map_err(|fault| fail(guard, fault))
}

/// Keeps the reason, for whoever gets the error of a stream.
fn fail(guard: &mut Guard, fault: HelloFault) -> io::Error {
    guard.fault = Some(fault);
    io::ErrorKind::InvalidData.into()
}

fn flush(guard: &mut Guard, stream: &TcpStream, counters: &Counters) -> io::Result<()> {
    while guard.left < guard.leaving.len() {
        counters.syscalls.add(1);
        match write(stream, &[IoSlice::new(&guard.leaving[guard.left..])]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => guard.left += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    guard.leaving.clear();
    guard.left = 0;
    Ok(())
}

/// Reads into one place, or into two at once. By system calls of our own: those of libc are points of cancellation, which costs each of
/// them two locked instructions in a process of several threads.
fn read(stream: &TcpStream, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
    if second.is_empty() {
        let (_, bytes) = rustix::net::recv(stream, first, RecvFlags::empty())?;
        return Ok(bytes);
    }
    Ok(rustix::io::readv(stream, &mut [IoSliceMut::new(first), IoSliceMut::new(second)])?)
}

/// Writes without a signal: a program that links the library keeps its SIGPIPE as it is, which may be to die of it.
fn write(stream: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    if let [only] = slices {
        return Ok(rustix::net::send(stream, only, SendFlags::NOSIGNAL)?);
    }
    let mut nothing = SendAncillaryBuffer::default();
    Ok(rustix::net::sendmsg(stream, slices, &mut nothing, SendFlags::NOSIGNAL)?)
}
