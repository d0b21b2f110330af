//! Programs that serve while something is measured: peers' and our own.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::failure::Failure;

/// Ends a peer that is still running when something else failed.
pub(super) struct Running(pub(super) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has usually ended by itself; then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The server of a peer, or of ours, for one client.
pub struct Serving {
    process: Running,
    words: BufReader<ChildStdout>,
    who: &'static str,
}

impl Serving {
    /// Starts it; it has said `word` when this returns.
    pub fn start(command: &mut Command, word: &str, who: &'static str) -> Result<Serving, Failure> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut process = Running(child.map_err(Failure::while_doing(format!("starting {who}")))?);
        let words = process.0.stdout.take().ok_or_else(|| Failure::new(format!("{who} has no output")))?;
        let mut words = BufReader::new(words);
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            let count = words
                .read_line(&mut line)
                .map_err(Failure::while_doing(format!("reading what {who} says")))?;
            if count == 0 {
                return Err(Failure::new(format!("{who} ended before it said {word:?}")));
            }
        }
        Ok(Serving { process, words, who })
    }

    /// Waits for its end, after its client; what it said since it began to serve.
    pub fn end(mut self) -> Result<String, Failure> {
        // Its pipe must not fill up while it ends.
        let mut rest = Vec::new();
        let read = self.words.read_to_end(&mut rest);
        read.map_err(Failure::while_doing(format!("reading what {} says", self.who)))?;
        let waited = self.process.0.wait();
        waited.map_err(Failure::while_doing(format!("waiting for {}", self.who)))?;
        Ok(String::from_utf8_lossy(&rest).into_owned())
    }
}
