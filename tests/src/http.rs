//! What a daemon answers to a browser or to Prometheus.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

/// Head and body of the answer to `GET path` at a port of loopback.
///
/// # Panics
/// If nobody listens there, or the answer is no HTTP.
#[must_use]
pub fn get(port: u16, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("somebody listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("the request is taken");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the answer is text");
    let (head, body) = text.split_once("\r\n\r\n").expect("the answer has a head");
    (head.to_owned(), body.to_owned())
}
