//! Answers `GET` over HTTP/1 with what its owner has at a path: `/metrics`, and at control the status page.
//!
//! Whoever asks is not trusted: a request has [`HEAD_BYTES_MAX`] bytes and [`WITHIN`] at most, nothing of it but its method and path is looked
//! at, and slow ones keep each other waiting ([`ANSWERED_AT_ONCE`]), never the daemon. Browsers open connections that they do not use, so
//! each has a thread of its own while it lasts. **Invariant**: all threads have ended, and the port is free, once an [`Exporter`] is dropped.

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
/// Lines of a request's head that are counted.
const HEADERS_MAX: usize = 64;
/// Time for a request, and again for its answer.
const WITHIN: Duration = Duration::from_secs(2);
/// Requests that have a thread of their own; the next one keeps the others waiting.
const ANSWERED_AT_ONCE: usize = 8;

/// What is at a path.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    content_type: &'static str,
    body: String,
}

impl Answer {
    /// Prometheus' text format.
    pub fn metrics(body: String) -> Answer {
        Answer { content_type: "text/plain; version=0.0.4; charset=utf-8", body }
    }

    /// A page that needs nothing but itself.
    pub fn html(body: String) -> Answer {
        Answer { content_type: "text/html; charset=utf-8", body }
    }

    /// JSON.
    pub fn json(body: String) -> Answer {
        Answer { content_type: "application/json", body }
    }

    fn text(body: &str) -> Answer {
        Answer { content_type: "text/plain; charset=utf-8", body: body.to_owned() }
    }
}

/// Why there is no answer, in words that end with a line's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The asker's fault.
    BadRequest(&'static str),
    /// Perhaps later.
    Unavailable(&'static str),
}

/// What is at a path; `None`: nothing.
pub type Found = Option<Result<Answer, Refusal>>;

/// Answers until it is dropped.
pub struct Exporter {
    address: SocketAddr,
    stops: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Listens at `address` and answers with what `page` has at a path (with its query) at that moment; `None`: nothing.
    ///
    /// Errors: the address is not of this machine, or taken.
    pub fn start(
        address: SocketAddr,
        page: impl Fn(&str, &str) -> Found + Send + Sync + 'static,
    ) -> Result<Exporter, Failure> {
        let doing = || format!("telling metrics at {address} (`metrics` in the cluster file)");
        let listener = TcpListener::bind(address).map_err(Failure::while_doing(doing()))?;
        let address = listener.local_addr().map_err(Failure::while_doing(doing()))?;
        let stops = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stops);
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || listen(&listener, &asked, &Arc::new(page)))
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

fn listen<P>(listener: &TcpListener, stops: &AtomicBool, page: &Arc<P>)
where
    P: Fn(&str, &str) -> Found + Send + Sync + 'static,
{
    let clock = MonotonicClock::start();
    let mut answering: Vec<JoinHandle<()>> = Vec::new();
    for stream in listener.incoming() {
        if stops.load(Ordering::Acquire) {
            break;
        }
        answering.retain(|thread| !thread.is_finished());
        match stream {
            Ok(stream) if answering.len() < ANSWERED_AT_ONCE => {
                let page = Arc::clone(page);
                let thread = std::thread::Builder::new().name("metrics-answer".to_owned());
                // What fails is the asker's: gone, or too slow. Without a thread the asker sees its connection end.
                answering.extend(thread.spawn(move || drop(answer(stream, &clock, &*page))));
            }
            Ok(stream) => drop(answer(stream, &clock, &**page)),
            // No descriptors, no memory: not a loop at full speed.
            #[allow(clippy::disallowed_methods)] // nothing tells when there are some again
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    for thread in answering {
        let _ = thread.join();
    }
}

/// Reads a request and answers it.
fn answer(
    mut stream: TcpStream,
    clock: &MonotonicClock,
    page: &dyn Fn(&str, &str) -> Found,
) -> io::Result<()> {
    let deadline = clock.now() + WITHIN;
    stream.set_write_timeout(Some(WITHIN))?;
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&head) {
            Ok(httparse::Status::Complete(_)) => {
                let (path, query) = request.path.unwrap_or_default().split_once('?').unzip();
                let path = path.or(request.path).unwrap_or_default();
                return match request.method {
                    Some("GET") => reply_with(&mut stream, page(path, query.unwrap_or_default())),
                    _ => reply(&mut stream, "405 Method Not Allowed", &Answer::text("GET is all there is\n")),
                };
            }
            Ok(httparse::Status::Partial) if head.len() <= HEAD_BYTES_MAX => {}
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                let words = Answer::text("the request is too long\n");
                return reply(&mut stream, "431 Request Header Fields Too Large", &words);
            }
            Err(_) => return reply(&mut stream, "400 Bad Request", &Answer::text("this is not HTTP/1\n")),
        }
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
    }
}

fn reply_with(stream: &mut TcpStream, found: Found) -> io::Result<()> {
    match found {
        Some(Ok(answer)) => reply(stream, "200 OK", &answer),
        Some(Err(Refusal::BadRequest(words))) => reply(stream, "400 Bad Request", &Answer::text(words)),
        Some(Err(Refusal::Unavailable(words))) => {
            reply(stream, "503 Service Unavailable", &Answer::text(words))
        }
        None => reply(
            stream,
            "404 Not Found",
            &Answer::text("there is /metrics, and at control the status page at /\n"),
        ),
    }
}

fn reply(stream: &mut TcpStream, status: &str, answer: &Answer) -> io::Result<()> {
    let Answer { content_type, body } = answer;
    let bytes = body.len();
    // The page runs its own script and asks its own server, nothing else.
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {bytes}\r\nCache-Control: no-store\r\n\
         Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'\r\n\
         X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(path: &str, query: &str) -> Found {
        match path {
            "/metrics" => Some(Ok(Answer::metrics("up 1\n".to_owned()))),
            "/busy" => Some(Err(Refusal::Unavailable("later\n"))),
            "/query" => Some(Ok(Answer::json(query.to_owned()))),
            _ => None,
        }
    }

    fn exporter() -> Exporter {
        Exporter::start("127.0.0.1:0".parse().unwrap(), page).unwrap()
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
            (b"GET /busy HTTP/1.1\r\n\r\n", "503"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"GET /metrics\r\n\r\n", "400"),
            (b"\x16\x03\x01\x00\r\n\r\n", "400"),
        ] {
            let told = ask(&exporter, request);
            assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{told}");
        }
        assert!(ask(&exporter, b"GET /query?after=3 HTTP/1.1\r\n\r\n").ends_with("\r\n\r\nafter=3"));
    }

    #[test]
    fn a_request_without_an_end_and_one_that_never_comes_are_given_up() {
        let exporter = exporter();
        // Those that have a thread of their own keep nobody waiting; one more does, until its time is over.
        let silent: Vec<TcpStream> =
            (0..=ANSWERED_AT_ONCE).map(|_| TcpStream::connect(exporter.address()).unwrap()).collect();
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
        let refusal = Exporter::start(address, page).err().unwrap().to_string();
        assert!(refusal.contains(&address.to_string()) && refusal.contains("cluster file"), "{refusal}");
        drop(first);
        drop(Exporter::start(address, page).unwrap());
    }
}
