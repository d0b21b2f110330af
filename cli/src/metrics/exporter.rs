//! Answers `GET /metrics` over HTTP, one request at a time, on a thread of its own.
//!
//! Whoever asks is not trusted: a request has [`HEAD_BYTES_MAX`] bytes and [`WITHIN`] at most, nothing of it but its first line is looked at, and
//! a slow one keeps others who ask waiting, never the daemon. **Invariant**: the thread has ended, and the port is free, once an
//! [`Exporter`] is dropped.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use runtime::MonotonicClock;

use crate::failure::Failure;

/// Bytes of a request up to the empty line.
const HEAD_BYTES_MAX: usize = 8192;

/// Time for a request, and again for its answer.
const WITHIN: Duration = Duration::from_secs(2);

/// Tells metrics until it is dropped.
pub struct Exporter {
    address: SocketAddr,
    stops: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Listens at `address` and answers with what `text` says at that moment.
    ///
    /// Errors: the address is not of this machine, or taken.
    pub fn start(
        address: SocketAddr,
        text: impl Fn() -> String + Send + 'static,
    ) -> Result<Exporter, Failure> {
        let doing = || format!("telling metrics at {address} (`metrics` in the cluster file)");
        let listener = TcpListener::bind(address).map_err(Failure::while_doing(doing()))?;
        let address = listener.local_addr().map_err(Failure::while_doing(doing()))?;
        let stops = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stops);
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || {
                let clock = MonotonicClock::start();
                for stream in listener.incoming() {
                    if asked.load(Ordering::Acquire) {
                        break;
                    }
                    match stream {
                        // What fails is the asker's: gone, or too slow.
                        Ok(stream) => drop(answer(stream, &clock, &text)),
                        // No descriptors, no memory: not a loop at full speed.
                        #[allow(clippy::disallowed_methods)] // nothing tells when there are some again
                        Err(_) => std::thread::sleep(Duration::from_millis(100)),
                    }
                }
            })
            .map_err(Failure::while_doing("starting the thread for metrics"))?;
        Ok(Exporter { address, stops, thread: Some(thread) })
    }

    /// Where it listens.
    #[cfg(test)]
    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Release);
        // Wakes it. If the machine has no socket left for this, the process ends without it.
        if TcpStream::connect_timeout(&self.address, WITHIN).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Reads a request and answers it.
fn answer(mut stream: TcpStream, clock: &MonotonicClock, text: &dyn Fn() -> String) -> io::Result<()> {
    let deadline = clock.now() + WITHIN;
    stream.set_write_timeout(Some(WITHIN))?;
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let left = deadline.since(clock.now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&chunk[..count]);
        if head.len() > HEAD_BYTES_MAX {
            return reply(&mut stream, "431 Request Header Fields Too Large", "the request is too long\n");
        }
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, path, version) = (words.next(), words.next(), words.next());
    if version.is_none_or(|version| !version.starts_with(b"HTTP/1.")) {
        return reply(&mut stream, "400 Bad Request", "this is not HTTP/1\n");
    }
    let path = path.map(|path| path.split(|byte| *byte == b'?').next().unwrap_or_default());
    match (method, path) {
        (Some(b"GET"), Some(b"/metrics")) => reply(&mut stream, "200 OK", &text()),
        (Some(b"GET"), _) => reply(&mut stream, "404 Not Found", "there is /metrics, and nothing else\n"),
        _ => reply(&mut stream, "405 Method Not Allowed", "GET /metrics is all there is\n"),
    }
}

fn reply(stream: &mut TcpStream, status: &str, body: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exporter() -> Exporter {
        Exporter::start("127.0.0.1:0".parse().unwrap(), || "up 1\n".to_owned()).unwrap()
    }

    fn ask(exporter: &Exporter, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(exporter.address()).unwrap();
        stream.write_all(request).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn metrics_are_told_and_nothing_else() {
        let exporter = exporter();
        let told = ask(&exporter, b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n");
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n") && told.ends_with("\r\n\r\nup 1\n"), "{told}");
        assert!(told.contains("Content-Length: 5\r\n"));
        for (request, status) in [
            (&b"GET /metrics?x=1 HTTP/1.0\r\n\r\n"[..], "200"),
            (b"GET / HTTP/1.1\r\n\r\n", "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"GET /metrics\r\n\r\n", "400"),
            (b"\x16\x03\x01\x00\r\n\r\n", "400"),
        ] {
            let told = ask(&exporter, request);
            assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{told}");
        }
    }

    #[test]
    fn a_request_without_an_end_and_one_that_never_comes_are_given_up() {
        let exporter = exporter();
        let silent = TcpStream::connect(exporter.address()).unwrap();
        let mut long = TcpStream::connect(exporter.address()).unwrap();
        long.write_all(&[b'x'; HEAD_BYTES_MAX + 1]).unwrap();
        let told = ask(&exporter, b"GET /metrics HTTP/1.1\r\n\r\n");
        assert!(told.starts_with("HTTP/1.1 200 OK"));
        drop((silent, long));
    }

    #[test]
    fn its_port_is_free_when_it_is_gone_and_a_taken_one_is_named() {
        let first = exporter();
        let address = first.address();
        let refusal = Exporter::start(address, String::new).err().unwrap().to_string();
        assert!(refusal.contains(&address.to_string()) && refusal.contains("cluster file"), "{refusal}");
        drop(first);
        drop(Exporter::start(address, String::new).unwrap());
    }
}
